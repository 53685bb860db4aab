//! The decode threads: rows of the order to pixels in a slab.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam::utils::CachePadded;

use crate::SampleId;
use crate::config::{BadSamples, LoaderConfig};
use crate::dataset::Dataset;
use crate::decode::{Decoder, SeekPoints};
use crate::error::{Error, Fault};
use crate::read_ahead::{Piece, ReadAhead};
use crate::sampler::{Deal, Epoch, Plan, Purpose, Stream};
use crate::slab::{Pool, Run, Ticket};
use crate::stats::{Lap, Tally};

/// Bytes of files that a decode thread keeps memory for; a rare giant's are given back.
const KEPT: usize = 24 << 20;

/// What the loader and its threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) data: Arc<Dataset>,
    pub(crate) config: LoaderConfig,
    pub(crate) plan: Arc<Plan>,
    pub(crate) deal: Deal,
    pub(crate) pool: Arc<Pool>,
    pub(crate) ahead: Option<ReadAhead>,
    pub(crate) tallies: Vec<CachePadded<Tally>>,
    /// Bad samples that were replaced and not yet counted.
    pub(crate) bad: Mutex<Vec<Bad>>,
}

/// A sample that was replaced.
#[derive(Debug)]
pub(crate) struct Bad {
    pub(crate) batch: u64,
    pub(crate) row: usize,
    pub(crate) sample: SampleId,
    pub(crate) error: Error,
}

impl Shared {
    pub(crate) fn bad(&self) -> MutexGuard<'_, Vec<Bad>> {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next rows, and, behind a URL, the promises of their files.
    fn take(&self, pieces: &mut Vec<Piece>) -> Option<Ticket> {
        match &self.ahead {
            None => self.pool.take(),
            Some(ahead) => ahead.take(pieces, || {
                let ticket = self.pool.take()?;
                let rows = ticket.rows().len();
                Some((ticket, rows))
            }),
        }
    }
}

/// Starts a decode thread. What it cannot go on from, a panic too, reaches the loader as an error.
pub(crate) fn spawn(shared: &Arc<Shared>, number: usize) -> Result<JoinHandle<()>, Error> {
    const STAGE: &str = "decode";
    let shared = Arc::clone(shared);
    let guarded = move || {
        let work = || {
            if shared.config.pin {
                pin(number)?;
            }
            Worker::new(&shared, number)?.work();
            Ok(())
        };
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let message = common::panic_text(&*panic).to_owned();
            Err(Error::Panic { stage: STAGE, message })
        });
        if let Err(error) = result {
            shared.pool.hand_over().give_up(error);
        }
    };
    std::thread::Builder::new()
        .name(STAGE.into())
        .spawn(guarded)
        .map_err(Error::io("start a thread for", STAGE.as_ref()))
}

/// Keeps this thread on one core: the n-th of those this process may use, counted round.
fn pin(number: usize) -> Result<(), Error> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let refused = |error: rustix::io::Errno| {
        Error::io("keep a decode thread on one core of", "this machine".as_ref())(error.into())
    };
    let allowed = sched_getaffinity(None).map_err(refused)?;
    let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    let mut one = CpuSet::new();
    one.set(cores[number % cores.len().max(1)]);
    sched_setaffinity(None, &one).map_err(refused)
}

/// A decode thread, with what it keeps from one run of rows to the next.
struct Worker<'a> {
    shared: &'a Shared,
    tally: &'a Tally,
    lap: Lap,
    decoder: Decoder,
    order: Option<Epoch>,
    samples: Vec<SampleId>,
    /// Files of this machine, one behind the other, their seek points, and where each of them ends.
    files: Vec<u8>,
    points: Vec<u8>,
    ends: Vec<(usize, usize)>,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, number: usize) -> Result<Self, Error> {
        let decoder = Decoder::new(shared.config.decode());
        let no_memory = |fault: Fault| Error::Memory { bytes: 0, reason: fault.to_string() };
        Ok(Self {
            shared,
            tally: &shared.tallies[number],
            lap: Lap::start(),
            decoder: decoder.map_err(no_memory)?,
            order: None,
            samples: Vec::new(),
            files: Vec::new(),
            points: Vec::new(),
            ends: Vec::new(),
        })
    }

    /// Writes run after run. Ends when none is left, or the loader stops.
    fn work(&mut self) {
        let shared = self.shared;
        let mut pieces = Vec::new();
        while let Some(ticket) = shared.take(&mut pieces) {
            let batch = ticket.batch();
            let Some(mut run) = shared.pool.enter(ticket) else { return };
            self.tally.blocked(self.lap.take());
            let epoch = self.draw(&run);
            let written = match &shared.ahead {
                None => self.write(&mut run, epoch),
                Some(ahead) => self.write_fetched(&mut run, epoch, (ahead, &mut pieces)),
            };
            self.tally.busy(self.lap.take());
            match written {
                Ok(()) => run.finish(),
                Err(error) => shared.pool.hand_over().fail(batch, error),
            }
        }
    }

    /// Draws the run's samples. Gives their epoch.
    fn draw(&mut self, run: &Run<'_>) -> u64 {
        let (epoch, batch) = self.shared.deal.place(run.batch());
        let order = Epoch::of(&mut self.order, &self.shared.plan, epoch);
        self.samples.clear();
        self.samples.extend(run.rows().map(|row| order.sample(batch, row)));
        epoch
    }

    /// Reads the run's files and writes its rows.
    fn write(&mut self, run: &mut Run<'_>, epoch: u64) -> Result<(), Error> {
        if self.files.len() > KEPT {
            self.files = Vec::new();
        }
        if self.points.len() > KEPT {
            self.points = Vec::new();
        }
        self.ends.clear();
        let (data, mut end) = (&self.shared.data, (0, 0));
        for &sample in &self.samples {
            end.0 = data.read_behind(sample, &mut self.files, end.0)?;
            end.1 = data.read_points_behind(sample, &mut self.points, end.1);
            self.ends.push(end);
        }
        self.tally.starved(self.lap.take());
        let mut start = (0, 0);
        for (at, row) in run.rows().enumerate() {
            let end = self.ends[at];
            let Self { shared, tally, decoder, files, points, samples, .. } = self;
            let (image, record) = (&files[start.0..end.0], &points[start.1..end.1]);
            start = end;
            let shown = (row, samples[at], epoch);
            tally.decoded(1, image.len() as u64);
            let points = shared.data.seek_points(samples[at], record, image);
            let seen = points
                .and_then(|points| show(shared, decoder, (&mut *run, shown), (image, points)));
            // Points that do not fit are told of and left out: without, an image decodes or is bad as ever.
            let seen = seen.or_else(|error| match record.is_empty() {
                true => Err(error),
                false => show(shared, decoder, (&mut *run, shown), (image, SeekPoints::NONE))
                    .inspect(|()| shared.data.unfit(samples[at], &error)),
            });
            if let Err(error) = seen {
                self.substitute(run, shown, error)?;
            }
        }
        Ok(())
    }

    /// Writes the rows of a run from files behind a URL, each when it has come: files that wait here
    /// would keep others from being asked for.
    fn write_fetched(
        &mut self,
        run: &mut Run<'_>,
        epoch: u64,
        (ahead, pieces): (&ReadAhead, &mut Vec<Piece>),
    ) -> Result<(), Error> {
        let mut pieces = pieces.drain(..);
        for (at, row) in run.rows().enumerate() {
            let bytes = ahead.bytes(pieces.next(), self.samples[at])?;
            self.tally.starved(self.lap.take());
            let Self { shared, tally, decoder, samples, .. } = self;
            let shown = (row, samples[at], epoch);
            let file = (&*bytes, SeekPoints::NONE);
            tally.decoded(1, bytes.len() as u64);
            if let Err(error) = show(shared, decoder, (&mut *run, shown), file) {
                self.substitute(run, shown, error)?;
            }
            self.tally.busy(self.lap.take());
        }
        Ok(())
    }

    /// Writes another sample into the row of one that cannot be decoded, where that is allowed.
    fn substitute(
        &mut self,
        run: &mut Run<'_>,
        (row, drawn, epoch): Shown,
        mut error: Error,
    ) -> Result<(), Error> {
        let Shared { data, config, ahead, .. } = self.shared;
        let mut sample = drawn;
        for tries in 1..=100 {
            if config.bad == BadSamples::Halt {
                break;
            }
            self.shared.bad().push(Bad { batch: run.batch(), row, sample, error });
            let mut stream = Stream::new(config.seed, epoch, drawn, Purpose::Substitute);
            for _ in 0..tries {
                sample = stream.below(data.len() as u64);
            }
            let bytes = match ahead {
                None => data.bytes(sample)?,
                Some(ahead) => ahead.read(sample)?,
            };
            let (of, decoder) = ((&mut *run, (row, sample, epoch)), &mut self.decoder);
            self.tally.decoded(1, bytes.len() as u64);
            match show(self.shared, decoder, of, (&bytes, SeekPoints::NONE)) {
                Ok(()) => return Ok(()),
                Err(another) => error = another,
            }
        }
        Err(error)
    }
}

/// A row, the sample it shows, and in which epoch.
type Shown = (usize, SampleId, u64);

/// Writes one sample's view into a row. The error is the sample's own fault.
fn show(
    shared: &Shared,
    decoder: &mut Decoder,
    (run, (row, sample, epoch)): (&mut Run<'_>, Shown),
    file: (&[u8], SeekPoints<'_>),
) -> Result<(), Error> {
    let Shared { data, config, .. } = shared;
    let view = |width, height| config.view(sample, epoch, (width, height));
    decoder
        .view_seeking(file, view, config.large, run.pixels(row))
        .map_err(|fault| data.fault(sample, fault))?;
    run.describe(row, data.label(sample), sample);
    Ok(())
}
