//! Starts and joins the stages, and hands out batches in order.
//!
//! # Bounds, and why nothing can deadlock
//! There are `depth + 2` slabs, made at the start. A batch exists only on a slab and a draw only
//! with one of its rows, so queues with a place for each slab, or for each row, never block their
//! senders: the fetch stage waits for empty slabs and nothing else. Draws come in the order of
//! their batches, and decode threads wait for nothing but draws; so the oldest unfinished batch
//! always goes on, and when it is whole it is published. The one thing that can hold the loader up
//! is a caller who keeps all slabs as live batches.
//!
//! # Ends
//! *Done*: the sampler ends, the draw channel closes, the decode threads end, the last batch is
//! handed out. *Failed*: the error comes in its batch's place, after all earlier batches; a panic
//! comes at once. *Cancelled*: the loader is dropped and closes its channels. In all three every
//! thread is joined.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{self, RecvTimeoutError};
use serde::{Deserialize, Serialize};

use crate::SampleId;
use crate::augment::{Mode, OwnView, Scene, View};
use crate::batch::Batch;
use crate::collate::Reorder;
use crate::cursor::Cursor;
use crate::dataset::Dataset;
use crate::decode::{DecodeOptions, Decoder, Filter, Orientation, Scaling};
use crate::error::Error;
use crate::fetch::{self, Draw};
use crate::sampler::{LastBatch, Plan, Purpose, Shuffle, Stream};
use crate::slab::{Filled, Free, HostMemory, Slab};
use crate::stats::{Clock, Lap, Quarantined, Stats};

/// Time between looks at whether the next batch is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// What to do with a sample that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadSamples {
    /// End with an error that names it.
    #[default]
    Halt,
    /// Put another sample in its row, chosen by (seed, epoch, sample), and count it.
    Skip {
        /// Most bad samples, as a share of this rank's samples of an epoch; more end the run.
        max_share: f64,
    },
}

/// How a [`Loader`] works. Build it from [`LoaderConfig::default`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// Rows of a batch on this rank.
    pub batch: usize,
    /// Encoder size: pixels a side.
    pub large: usize,
    /// Generator size: pixels a side; `large`, or its half or quarter.
    pub small: usize,
    /// Which part of an image is seen.
    pub mode: Mode,
    /// A view of one's own in place of `mode`.
    #[serde(skip)]
    pub own_view: Option<OwnView>,
    /// The resampling filter.
    pub filter: Filter,
    /// Reduced-size decoding of large crops.
    pub scaling: Scaling,
    /// Whether EXIF orientation counts.
    pub orientation: Orientation,
    /// Most pixels an image header may claim.
    pub max_pixels: u64,
    /// Order of the samples.
    pub shuffle: Shuffle,
    /// Seed of order and views.
    pub seed: u64,
    /// Decode threads. The batches do not depend on it.
    pub threads: usize,
    /// Whether each decode thread is kept on one core; an error where the system forbids it.
    pub pin: bool,
    /// This process's number among `world`.
    pub rank: usize,
    /// Number of processes that share an epoch.
    pub world: usize,
    /// What becomes of the last samples of an epoch.
    pub last: LastBatch,
    /// The loader ends before this epoch, counted from the first of the run; none for no end.
    pub epochs: Option<u64>,
    /// What to do with bad samples.
    pub bad: BadSamples,
    /// Batches made ahead of the one in use. Two more slabs are made: one for the caller, one
    /// being filled.
    pub depth: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        let decode = DecodeOptions::default();
        Self {
            batch: 64,
            large: 256,
            small: 128,
            mode: Mode::default(),
            own_view: None,
            filter: decode.filter,
            scaling: decode.scaling,
            orientation: decode.orientation,
            max_pixels: decode.max_pixels,
            shuffle: Shuffle::default(),
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            pin: false,
            rank: 0,
            world: 1,
            last: LastBatch::default(),
            epochs: None,
            bad: BadSamples::default(),
            depth: 2,
        }
    }
}

impl LoaderConfig {
    /// Says everything that is wrong with the options, at once.
    fn check(&self) -> Result<(), Error> {
        let mut problems = Vec::new();
        let mut require = |good: bool, problem: String| {
            if !good {
                problems.push(problem);
            }
        };
        let Self { batch, large, small, threads, rank, world, depth, .. } = *self;
        require((1..=1 << 20).contains(&batch), format!("batch = {batch}: 1 to 1048576 rows"));
        require((1..=4096).contains(&large), format!("large = {large}: 1 to 4096 pixels"));
        require(
            [1, 2, 4].iter().any(|by| small * by == large),
            format!("small = {small}: must be large = {large}, or its half or quarter"),
        );
        require((1..=1024).contains(&threads), format!("threads = {threads}: 1 to 1024"));
        require(world > 0 && rank < world, format!("rank = {rank}: must be below world = {world}"));
        require((1..=1024).contains(&depth), format!("depth = {depth}: 1 to 1024 batches"));
        if let Err(problem) = self.mode.check(large) {
            require(false, problem);
        }
        if let BadSamples::Skip { max_share } = self.bad {
            let good = (0.0..=1.0).contains(&max_share);
            require(good, format!("max_share = {max_share}: 0 to 1"));
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::Config { problem: problems.join("; ") }),
        }
    }

    /// What `sample` shows in `epoch` of a source of `width` by `height` pixels: a function of the
    /// options, the seed and these numbers.
    pub fn view(&self, sample: SampleId, epoch: u64, (width, height): (usize, usize)) -> View {
        let key = (self.seed, epoch, sample);
        let mut scene = Scene::new(key, (width, height), self.large);
        match &self.own_view {
            Some(own) => own.choose(&mut scene),
            None => scene.by(self.mode),
        }
    }

    /// The samples of this rank's part of the batch at `at`, row by row. No image is read.
    ///
    /// # Errors
    /// As [`Loader::start`]: options that do not hold together, too few samples.
    pub fn draws(&self, data: &Dataset, at: Cursor) -> Result<Vec<SampleId>, Error> {
        self.check()?;
        Ok(self.plan(data)?.epoch(at.epoch).samples(at.batch).collect())
    }

    fn decode(&self) -> DecodeOptions {
        let Self { filter, scaling, orientation, max_pixels, .. } = *self;
        DecodeOptions { filter, scaling, orientation, max_pixels }
    }

    fn plan(&self, data: &Dataset) -> Result<Plan, Error> {
        let Self { batch: rows, rank, world, seed, shuffle, last, .. } = *self;
        let shards = data.shard_sizes();
        let plan = Plan { shards, rows, rank, world, seed, shuffle, last };
        if plan.batches() == 0 {
            let (split, samples) = (data.split().to_string(), data.len());
            return Err(Error::TooFew { split, samples, batch: rows, world });
        }
        Ok(plan)
    }
}

/// What the stages share.
#[derive(Debug)]
struct Shared {
    data: Arc<Dataset>,
    config: LoaderConfig,
    fetch: Arc<Clock>,
    decode: Clock,
    consumer: Clock,
    images: AtomicU64,
    bytes: AtomicU64,
    /// Closes when the loader stops.
    stopped: async_channel::Receiver<()>,
}

/// What the threads tell the loader.
#[derive(Debug)]
enum Message {
    /// A batch is whole, or one of its samples ended the run.
    Batch { batch: u64, after: Cursor, result: Result<Filled, Error> },
    /// A bad sample of a batch that is not yet whole was replaced.
    Bad { batch: u64, sample: SampleId, error: Error },
    /// A thread cannot go on.
    Broken(Error),
}

/// An endless (or counted) stream of batches. Dropping it stops and joins all threads.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    plan: Arc<Plan>,
    started: Instant,
    lap: Lap,
    order: Reorder<(Cursor, Result<Filled, Error>)>,
    bad: Vec<(u64, SampleId, Error)>, // not yet counted, by batch
    bad_this_epoch: (u64, u64),       // epoch, count
    bad_total: u64,
    quarantine: Vec<Quarantined>,
    batches: u64,
    free: async_channel::Sender<Free>,
    draws: async_channel::Receiver<Draw>,
    stop: async_channel::Sender<()>,
    messages: channel::Receiver<Message>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts loading at `cursor`. The first batch is on its way when this returns.
    ///
    /// # Errors
    /// [`Error::Config`] for options or a cursor that make no sense, [`Error::TooFew`] when an
    /// epoch holds no batch, [`Error::Memory`] when batch memory cannot be had, and [`Error::Io`]
    /// when a thread cannot be started.
    pub fn start(
        data: Arc<Dataset>,
        config: LoaderConfig,
        cursor: Cursor,
        memory: Arc<dyn HostMemory>,
    ) -> Result<Self, Error> {
        config.check()?;
        let plan = Arc::new(config.plan(&data)?);
        if cursor.batch >= plan.batches() {
            let problem = format!(
                "cursor at batch {} of an epoch of {}: was it made with another batch size or data?",
                cursor.batch,
                plan.batches()
            );
            return Err(Error::Config { problem });
        }
        if data.remote().is_some() && config.shuffle == Shuffle::Global {
            tracing::warn!(
                "shuffle = \"global\" over {} takes a request for each image; \"shards\" reads \
                 neighbours together",
                data.index().dir().display()
            );
        }
        let slabs = config.depth + 2;
        let (free, free_slabs) = async_channel::bounded(slabs);
        for _ in 0..slabs {
            let slab = Slab::make(&*memory, config.batch, (config.large, config.small))?;
            // The channel has a place for each.
            let _ = free.try_send(slab);
        }
        let (send_draws, draws) = async_channel::bounded(slabs * config.batch);
        let (send, messages) = channel::bounded(slabs + config.threads + 1);
        let (stop, stopped) = async_channel::bounded(1);
        let shared = Arc::new(Shared {
            data,
            config,
            fetch: Arc::default(),
            decode: Clock::default(),
            consumer: Clock::default(),
            images: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            stopped,
        });
        let mut loader = Self {
            shared,
            plan,
            started: Instant::now(),
            lap: Lap::start(),
            order: Reorder::new(),
            bad: Vec::new(),
            bad_this_epoch: (0, 0),
            bad_total: 0,
            quarantine: Vec::new(),
            batches: 0,
            free,
            draws,
            stop,
            messages,
            threads: Vec::new(),
        };
        loader.spawn(cursor, free_slabs, send_draws, &send)?;
        Ok(loader)
    }

    fn spawn(
        &mut self,
        cursor: Cursor,
        free: async_channel::Receiver<Free>,
        draws: async_channel::Sender<Draw>,
        messages: &channel::Sender<Message>,
    ) -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .map_err(Error::io("start", "the fetch runtime".as_ref()))?;
        let Shared { data, config, fetch, stopped, .. } = &*self.shared;
        let shared = (Arc::clone(data), Arc::clone(&self.plan), Arc::clone(fetch));
        let span = (cursor, config.epochs.unwrap_or(u64::MAX));
        let stopped = stopped.clone();
        let fetching = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = fetch::fetch(shared, span, free, draws) => {}
                    _ = stopped.recv() => {}
                }
            });
        };
        let threads = config.threads;
        self.threads.push(spawn("fetch", messages.clone(), fetching)?);
        for number in 0..threads {
            let (shared, draws) = (Arc::clone(&self.shared), self.draws.clone());
            let send = messages.clone();
            let decoding = move || {
                let pinned = if shared.config.pin { pin(number) } else { Ok(()) };
                if let Err(error) = pinned {
                    // Fails only when the loader is gone, and then nobody asks.
                    let _ = send.send(Message::Broken(error));
                    return;
                }
                decode_worker(&shared, &draws, &send);
            };
            self.threads.push(spawn("decode", messages.clone(), decoding)?);
        }
        Ok(())
    }

    /// What happened so far, and which stage limits.
    pub fn stats(&self) -> Stats {
        let Shared { data, config, fetch, decode, consumer, images, bytes, .. } = &*self.shared;
        Stats {
            seconds: self.started.elapsed().as_secs_f64(),
            fetch: fetch.stage(1),
            decode: decode.stage(config.threads),
            consumer: consumer.stage(1),
            images: images.load(Ordering::Relaxed),
            bytes: bytes.load(Ordering::Relaxed),
            batches: self.batches,
            queued_samples: self.draws.len(),
            queued_batches: self.messages.len(),
            remote: data.traffic(),
            bad: self.bad_total,
            quarantine: self.quarantine.clone(),
            bottleneck: String::new(),
        }
        .with_bottleneck()
    }

    /// Batches in an epoch, the same on every rank.
    pub fn batches_per_epoch(&self) -> u64 {
        self.plan.batches()
    }

    /// Counts the bad samples of a batch; too many in an epoch end the run.
    fn count_bad(&mut self, batch: u64, after: Cursor) -> Result<(), Error> {
        let epoch = if after.batch == 0 { after.epoch - 1 } else { after.epoch };
        if self.bad_this_epoch.0 != epoch {
            self.bad_this_epoch = (epoch, 0);
        }
        let mut last = None;
        for (_, sample, error) in self.bad.extract_if(.., |bad| bad.0 == batch) {
            self.bad_total += 1;
            self.bad_this_epoch.1 += 1;
            if self.quarantine.len() < Stats::QUARANTINE {
                self.quarantine.push(Quarantined { sample, report: report(&error) });
            }
            last = Some(error);
        }
        let (bad, drawn) = (self.bad_this_epoch.1, self.plan.epoch_rows());
        match (self.shared.config.bad, last) {
            (BadSamples::Skip { max_share }, Some(error))
                if bad as f64 > max_share * drawn as f64 =>
            {
                Err(Error::TooManyBad { bad, drawn, max_share, source: Box::new(error) })
            }
            _ => Ok(()),
        }
    }

    /// The next batch, as the iterator gives it, while `go_on` holds, which is looked at ten times a
    /// second. Then [`Error::Stopped`], and the batch comes with the next call.
    pub fn next_while(&mut self, go_on: impl Fn() -> bool) -> Option<Result<Batch, Error>> {
        if self.threads.is_empty() {
            return None; // ended before
        }
        self.shared.consumer.busy(self.lap.take());
        let received = self.receive(go_on);
        self.shared.consumer.starved(self.lap.take());
        let (after, filled) = match received {
            Some(Ok(batch)) => batch,
            Some(Err(Error::Stopped)) => return Some(Err(Error::Stopped)),
            Some(Err(error)) => {
                self.stop();
                return Some(Err(error));
            }
            None => {
                self.stop();
                return None;
            }
        };
        self.batches += 1;
        let sides = (self.shared.config.large, self.shared.config.small);
        Some(Ok(Batch::new(filled, sides, after, self.free.clone())))
    }

    /// Waits for the next batch in order; none at the end.
    fn receive(&mut self, go_on: impl Fn() -> bool) -> Option<Result<(Cursor, Filled), Error>> {
        loop {
            if let Some((after, result)) = self.order.take() {
                let counted = self.count_bad(self.batches, after);
                return Some(counted.and(result).map(|filled| (after, filled)));
            }
            match self.messages.recv_timeout(LOOK) {
                Ok(Message::Batch { batch, after, result }) => {
                    self.order.put(batch, (after, result));
                }
                Ok(Message::Bad { batch, sample, error }) => self.bad.push((batch, sample, error)),
                Ok(Message::Broken(error)) => return Some(Err(error)),
                Err(RecvTimeoutError::Timeout) if go_on() => {}
                Err(RecvTimeoutError::Timeout) => return Some(Err(Error::Stopped)),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn stop(&mut self) {
        self.stop.close();
        self.free.close();
        self.draws.close();
        // With its receiver gone, no thread can wait for room in this channel.
        self.messages = channel::never();
        for thread in self.threads.drain(..) {
            // A panic was caught inside the thread and told as an error.
            let _ = thread.join();
        }
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_while(|| true)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An error and its causes in one line.
fn report(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Starts a thread whose panic reaches the loader as an error.
fn spawn(
    stage: &'static str,
    messages: channel::Sender<Message>,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let guarded = move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let message = text.unwrap_or_else(|| "no message".into());
            // Fails only when the loader is gone, and then nobody asks.
            let _ = messages.send(Message::Broken(Error::Panic { stage, message }));
        }
    };
    std::thread::Builder::new()
        .name(stage.into())
        .spawn(guarded)
        .map_err(Error::io("start a thread for", stage.as_ref()))
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

/// Ends when fetching is done (the receiver closes) or the loader is gone (a send fails).
fn decode_worker(
    shared: &Shared,
    draws: &async_channel::Receiver<Draw>,
    messages: &channel::Sender<Message>,
) {
    let mut decoder = match Decoder::new(shared.config.decode()) {
        Ok(decoder) => decoder,
        Err(fault) => {
            let error = Error::Memory { bytes: 0, reason: fault.to_string() };
            let _ = messages.send(Message::Broken(error));
            return;
        }
    };
    let mut lap = Lap::start();
    while let Ok(draw) = draws.recv_blocking() {
        shared.decode.starved(lap.take());
        let (batch, after) = (draw.batch, draw.after);
        let result = decode(shared, &mut decoder, draw, messages).transpose();
        shared.decode.busy(lap.take());
        let Some(result) = result else { continue };
        if messages.send(Message::Batch { batch, after, result }).is_err() {
            return;
        }
        shared.decode.blocked(lap.take());
    }
}

/// Writes one row. Gives the batch when it was its last one.
fn decode(
    shared: &Shared,
    decoder: &mut Decoder,
    mut draw: Draw,
    messages: &channel::Sender<Message>,
) -> Result<Option<Filled>, Error> {
    let Draw { epoch, batch, .. } = draw;
    let (data, seed) = (&shared.data, shared.config.seed);
    let mut sample = draw.sample;
    let mut bytes = std::mem::replace(&mut draw.bytes, Ok(Bytes::new()));
    let mut tries = 0;
    loop {
        let error = match decode_sample(shared, decoder, (sample, bytes?), &mut draw) {
            Ok(()) => return Ok(draw.row.finish(data.label(sample), sample)),
            Err(error) => error,
        };
        if shared.config.bad == BadSamples::Halt || tries == 100 {
            return Err(error);
        }
        // Fails only when the loader is gone; then the next send ends this thread.
        let _ = messages.send(Message::Bad { batch, sample, error });
        let mut stream = Stream::new(seed, epoch, draw.sample, Purpose::Substitute);
        tries += 1;
        for _ in 0..tries {
            sample = stream.below(data.len() as u64);
        }
        bytes = data.bytes_unless(sample, &shared.stopped);
    }
}

/// Writes one sample's view into the row. The error is the sample's own fault.
fn decode_sample(
    shared: &Shared,
    decoder: &mut Decoder,
    (sample, bytes): (SampleId, Bytes),
    draw: &mut Draw,
) -> Result<(), Error> {
    let Shared { data, config, .. } = shared;
    let epoch = draw.epoch;
    let view = |width, height| config.view(sample, epoch, (width, height));
    let result = decoder.view(&bytes, view, config.large, draw.row.pixels());
    shared.images.fetch_add(1, Ordering::Relaxed);
    shared.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    result.map_err(|fault| data.fault(sample, fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of four small pictures.
    fn data(dir: &std::path::Path) -> Arc<Dataset> {
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(9, 9).write_to(&mut png, image::ImageFormat::Png).unwrap();
        let mut index = crate::index::IndexWriter::new();
        index.begin_split("train").unwrap();
        let mut shard = crate::shard::ShardWriter::create(&dir.join("train-000000.tar")).unwrap();
        for key in ["a", "b", "c", "d"] {
            let entry = shard.append(key, "png", png.get_ref(), None).unwrap();
            index.sample(key, entry, None, crate::index::Format::Png, (9, 9));
        }
        index.end_shard("train-000000.tar", shard.finish().unwrap()).unwrap();
        index.write(dir).unwrap();
        Arc::new(Dataset::open(dir, "train").unwrap())
    }

    #[test]
    fn a_decode_thread_that_panics_ends_the_run_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let data = data(dir.path());
        for threads in [1, 4] {
            let config = LoaderConfig { batch: 4, threads, ..LoaderConfig::default() };
            let memory = Arc::new(crate::slab::Trap::new());
            let mut loader =
                Loader::start(Arc::clone(&data), config, Cursor::default(), memory).unwrap();
            let error = loader.next().unwrap().unwrap_err();
            let Error::Panic { stage: "decode", ref message } = error else { panic!("{error:?}") };
            assert!(message.contains("the trap shut"), "{message}");
            assert!(loader.next().is_none());
        }
    }

    #[test]
    fn a_batch_that_is_not_waited_for_any_more_comes_with_the_next_call() {
        let dir = tempfile::tempdir().unwrap();
        let data = data(dir.path());
        let config = LoaderConfig { batch: 2, depth: 1, ..LoaderConfig::default() };
        let memory = Arc::new(crate::slab::Heap);
        let mut loader = Loader::start(data, config, Cursor::default(), memory).unwrap();
        // All slabs there are, so that no batch can be filled.
        let mut held: Vec<_> = (0..3).map(|_| loader.next().unwrap().unwrap()).collect();
        for _ in 0..2 {
            let error = loader.next_while(|| false).unwrap().unwrap_err();
            assert!(matches!(error, Error::Stopped) && !error.is_input());
        }
        let last = held.last().unwrap().cursor();
        held.clear();
        let next = loader.next_while(|| true).unwrap().unwrap();
        let order = |cursor: Cursor| (cursor.epoch, cursor.batch);
        assert_eq!(order(next.cursor()), (last.epoch + last.batch, (last.batch + 1) % 2));
    }

    #[test]
    fn a_panic_in_a_stage_becomes_an_error_that_names_it() {
        let (send, messages) = channel::bounded(1);
        let thread = spawn("decode", send, || panic!("row {}", 7)).unwrap();
        let Ok(Message::Broken(error)) = messages.recv() else { panic!("no message") };
        assert_eq!(error.to_string(), "the decode thread panicked: row 7");
        assert!(!error.is_input());
        thread.join().unwrap();
    }
}
