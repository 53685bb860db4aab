//! The writing end of a build.

mod publish;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use pipeline::shard::{ShardWriter, Written};

use super::{MaxRejected, Plan, Report, Run};
use crate::Error;
use crate::catalog::{Item, Raw, Rejected, Split};
use crate::journal::{Finished, Read, Stored, Workplace};
use crate::progress::Progress;
use crate::recode::{Coded, MAX_PIXELS, Recoder, weight};
use crate::source::Stream;

/// Source bytes that may be on their way at once.
const BYTES_IN_FLIGHT: u64 = 64 << 20;

/// Images that may be on their way at once, per thread.
const IMAGES_IN_FLIGHT: usize = 32;

/// What became of one item.
enum Outcome {
    Stored(Coded),
    Rejected(String),
}

/// An item to be made.
struct Ticket {
    number: usize,
    length: u64,
    /// What was read of the pipe before it.
    read: Option<Read>,
    source: Source,
}

/// Where an item's bytes are.
enum Source {
    /// Where the catalog's item of this place says.
    Catalog(usize),
    /// Here: they came through the pipe.
    Pipe(Vec<u8>),
}

/// The shards of one split.
struct SplitWriter {
    /// The shard in work.
    shard: Option<ShardWriter>,
    /// What it holds so far.
    pending: Finished,
    shards: u32,
    finished: Vec<Finished>,
    /// Items before this one are stored or rejected.
    next: usize,
}

/// The writing end: takes results in order, and holds the shards in work.
pub(super) struct Writer<'a> {
    plan: &'a Plan,
    run: &'a Run<'a>,
    pub(super) workplace: Workplace,
    stream: Option<Stream>,
    /// The stream has ended, or there is none.
    ended: bool,
    /// The stream's items so far; the catalog's are numbered after them.
    streamed: Vec<Item>,
    /// What an interrupted run has read of the stream, by images: this run must read the same.
    expected: BTreeMap<usize, u64>,
    /// The next item to hand out.
    ticket: usize,
    /// The next item to be written, and what was read of the pipe before it.
    next: usize,
    read: Option<Read>,
    parts: BTreeMap<Split, SplitWriter>,
    /// The shard before, while it is synced to disk.
    closing: Option<(JoinHandle<Result<Written, pipeline::Error>>, Finished)>,
    /// How many files were rejected, and the first of them.
    rejected: (u64, Option<Rejected>),
    pub(super) report: Report,
    progress: Progress,
}

impl<'a> Writer<'a> {
    /// A writer that goes on after the shards that are `finished`.
    pub(super) fn new(
        plan: &'a Plan,
        run: &'a Run<'a>,
        workplace: Workplace,
        finished: Vec<Finished>,
        stream: Option<Stream>,
    ) -> Self {
        let items = plan.catalog.items.len() as u64;
        let done = finished.iter().map(|shard| shard.stored.len() + shard.rejected.len());
        let done = done.sum::<usize>() as u64;
        let total = stream.is_none().then_some(items);
        let mut writer = Self {
            plan,
            run,
            workplace,
            ended: stream.is_none(),
            stream,
            streamed: Vec::new(),
            expected: BTreeMap::new(),
            ticket: 0,
            next: 0,
            read: None,
            parts: BTreeMap::new(),
            closing: None,
            rejected: (0, None),
            report: Report::default(),
            progress: Progress::start("building", done, total),
        };
        writer.count_rejected(&plan.catalog.rejected);
        for shard in finished {
            writer.report.resumed += shard.stored.len() as u64;
            writer.expected.extend(shard.read.map(|read| (read.images, read.digest)));
            writer.count_rejected(&shard.rejected);
            let part = writer.part(shard.split);
            part.shards += 1;
            part.next = shard.next;
            writer.enlist(shard);
        }
        writer
    }

    /// Runs the threads until every item is written.
    pub(super) fn run_to_end(&mut self) -> Result<(), Error> {
        self.check_rejected()?;
        let threads = self.run.threads.max(1);
        let window = threads * IMAGES_IN_FLIGHT;
        let (ticket_sender, tickets) = bounded(window);
        let (results, result_receiver) = bounded(window);
        let budget = Budget::new(MAX_PIXELS.into());
        let (plan, budget) = (self.plan, &budget);
        let recoders: Vec<Recoder> = (0..threads)
            .map(|_| Recoder::new(plan.coding.clone()))
            .collect::<Result<_, Error>>()?;
        std::thread::scope(|scope| {
            for mut recoder in recoders {
                let (tickets, results) = (tickets.clone(), results.clone());
                scope.spawn(move || {
                    // Ends when the writer drops its side of either channel.
                    for Ticket { number, source, .. } in tickets {
                        // A panic is the writer's to report, who would wait for this ticket.
                        let make = || make(plan, source, budget, &mut recoder);
                        let outcome = catch_unwind(AssertUnwindSafe(make));
                        if results.send((number, outcome)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop((tickets, results));
            // Both ends that the writer holds are dropped with it, which ends the threads.
            let written = self.write_all(ticket_sender, result_receiver, window);
            // Whatever happened, the shard that is being closed is whole and is recorded.
            let settled = self.join_closing();
            match written {
                Err(Error::Interrupted { .. }) => {
                    settled?;
                    Err(Error::Interrupted { shards: self.report.shards })
                }
                other => other.and(settled),
            }
        })
    }

    /// Hands out tickets and writes results in the order of the tickets.
    fn write_all(
        &mut self,
        tickets: Sender<Ticket>,
        results: Receiver<(usize, std::thread::Result<Result<Outcome, Error>>)>,
        window: usize,
    ) -> Result<(), Error> {
        let mut early: BTreeMap<usize, Outcome> = BTreeMap::new();
        let mut out: VecDeque<(usize, u64, Option<Read>)> = VecDeque::new();
        let (mut held, mut bytes) = (None, 0);
        let mut failed = None;
        loop {
            while out.len() < window && failed.is_none() {
                let ticket = match held.take().map_or_else(|| self.ticket(), |held| Ok(Some(held)))
                {
                    Ok(Some(ticket)) => ticket,
                    Ok(None) => break,
                    Err(error @ Error::Interrupted { .. }) => return Err(error),
                    // What came before it is still written, so that the next run need not.
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                };
                let Ticket { number, length, read, .. } = ticket;
                if bytes + length > BYTES_IN_FLIGHT && !out.is_empty() {
                    held = Some(ticket);
                    break;
                }
                tickets.send(ticket).expect("threads take tickets as long as the writer lives");
                out.push_back((number, length, read));
                bytes += length;
            }
            if out.is_empty() {
                break;
            }
            let (done, outcome) =
                results.recv().expect("threads report every ticket that they take");
            early.insert(done, outcome.unwrap_or_else(|panic| resume_unwind(panic))?);
            while let Some(&(number, length, read)) = out.front() {
                let Some(outcome) = early.remove(&number) else { break };
                out.pop_front();
                bytes -= length;
                (self.next, self.read) = (number, read);
                self.write(outcome)?;
                self.progress.advance(length);
            }
            self.check_interrupted()?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        (self.next, self.read) = (self.ticket, self.has_read());
        for split in Split::ALL {
            self.finish_shard(split)?;
        }
        self.check_rejected()
    }

    fn check_interrupted(&self) -> Result<(), Error> {
        match self.run.interrupted.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted { shards: self.report.shards }),
            false => Ok(()),
        }
    }

    /// A ticket for the next item that no earlier run has stored; none at the end.
    fn ticket(&mut self) -> Result<Option<Ticket>, Error> {
        while !self.ended {
            self.check_interrupted()?;
            let read = self.has_read();
            let Some((item, bytes)) = self.stream.as_mut().map_or(Ok(None), Stream::next)? else {
                self.ended = true;
                self.check_read()?;
                break;
            };
            let (number, length, split) = (self.ticket, u64::from(item.length), item.split);
            self.ticket += 1;
            self.streamed.push(item);
            self.check_read()?;
            if number >= self.part(split).next {
                let source = Source::Pipe(bytes);
                return Ok(Some(Ticket { number, length, read, source }));
            }
        }
        let read = self.has_read();
        while let Some(item) = self.plan.catalog.items.get(self.ticket - self.streamed.len()) {
            let number = self.ticket;
            self.ticket += 1;
            if number >= self.part(item.split).next {
                let source = Source::Catalog(number - self.streamed.len());
                return Ok(Some(Ticket { number, length: item.length.into(), read, source }));
            }
        }
        Ok(None)
    }

    /// How far the stream was read; its end counts as an image.
    fn has_read(&self) -> Option<Read> {
        let images = self.streamed.len() + usize::from(self.ended);
        self.stream.as_ref().map(|stream| Read { images, digest: stream.digest() })
    }

    /// Compares what was read with what an interrupted run had read so far.
    fn check_read(&mut self) -> Result<(), Error> {
        let (Some(stream), Some(read)) = (&self.stream, self.has_read()) else { return Ok(()) };
        let same = self.expected.remove(&read.images).is_none_or(|digest| digest == read.digest);
        let short = self.ended && !self.expected.is_empty();
        match same && !short {
            true => Ok(()),
            false => Err(stream.changed(read.images)),
        }
    }

    fn item(&self, number: usize) -> &Item {
        match number.checked_sub(self.streamed.len()) {
            None => &self.streamed[number],
            Some(number) => &self.plan.catalog.items[number],
        }
    }

    fn part(&mut self, split: Split) -> &mut SplitWriter {
        self.parts.entry(split).or_insert_with(|| SplitWriter {
            shard: None,
            pending: Finished::empty(split),
            shards: 0,
            finished: Vec::new(),
            next: 0,
        })
    }

    /// Writes the item whose turn it is.
    fn write(&mut self, outcome: Outcome) -> Result<(), Error> {
        let number = self.next;
        let Item { key, split, label, .. } = self.item(number).clone();
        let coded = match outcome {
            Outcome::Rejected(reason) => {
                let rejected = Rejected { name: self.name(number), reason };
                self.count_rejected(std::slice::from_ref(&rejected));
                self.part(split).pending.rejected.push(rejected);
                return self.check_rejected();
            }
            Outcome::Stored(coded) => coded,
        };
        let (bytes, limit) = (coded.bytes.len() as u64, self.plan.shard_bytes);
        let full = |shard: &ShardWriter| shard.position() + bytes > limit;
        if self.part(split).shard.as_ref().is_some_and(full) {
            self.finish_shard(split)?;
        }
        // The catalog's items are in the order of their splits; what comes before is complete.
        if number >= self.streamed.len() {
            for other in Split::ALL.into_iter().filter(|other| *other != split) {
                self.finish_shard(other)?;
            }
        }
        if self.part(split).shard.is_none() {
            let name = format!("{}-{:06}.tar", split.name(), self.part(split).shards);
            self.progress.on(&name);
            let shard = ShardWriter::create(&self.workplace.dir.join(&name))?;
            let part = self.part(split);
            part.shard = Some(shard);
            part.pending.name = name;
            part.shards += 1;
        }
        let oddity = coded.oddity.map(|reason| Rejected { name: self.name(number), reason });
        let part = self.part(split);
        let shard = part.shard.as_mut().expect("it was made above");
        let entry = shard.append(&key, coded.extension, &coded.bytes, label)?;
        part.pending.stored.push(Stored {
            item: number,
            offset: entry.offset,
            length: entry.length,
            width: coded.width,
            height: coded.height,
            png: coded.extension == "png",
        });
        part.pending.odd.extend(oddity);
        Ok(())
    }

    fn name(&self, number: usize) -> String {
        self.plan.catalog.name(self.item(number))
    }

    /// Ends the shard in work of a split, if there is one. It is synced on a thread of its own, so
    /// that the next one grows meanwhile.
    fn finish_shard(&mut self, split: Split) -> Result<(), Error> {
        let Some(part) = self.parts.get_mut(&split) else { return Ok(()) };
        let Some(shard) = part.shard.take() else { return Ok(()) };
        let pending = std::mem::replace(&mut part.pending, Finished::empty(split));
        self.join_closing()?;
        let finished = Finished { next: self.next, read: self.read, ..pending };
        self.closing = Some((std::thread::spawn(move || shard.finish()), finished));
        Ok(())
    }

    /// Waits for the shard that is being closed: file first, then journal.
    fn join_closing(&mut self) -> Result<(), Error> {
        let Some((thread, finished)) = self.closing.take() else { return Ok(()) };
        let written = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        let Written { bytes, xxh3 } = written?;
        let finished = Finished { bytes, xxh3, ..finished };
        self.workplace.record(&finished)?;
        self.enlist(finished);
        Ok(())
    }

    /// Counts a finished shard.
    fn enlist(&mut self, shard: Finished) {
        self.report.shards += 1;
        self.report.bytes += shard.bytes;
        self.part(shard.split).finished.push(shard);
    }

    fn count_rejected(&mut self, rejected: &[Rejected]) {
        let (count, first) = &mut self.rejected;
        *count += rejected.len() as u64;
        *first = first.take().or_else(|| rejected.first().cloned());
    }

    /// What was turned away by its header.
    fn turned_away(&self) -> impl Iterator<Item = &Rejected> {
        let stream = self.stream.iter().flat_map(Stream::rejected);
        self.plan.catalog.rejected.iter().chain(stream)
    }

    fn check_rejected(&self) -> Result<(), Error> {
        // A share of all files is not known before all have come.
        if !self.ended && matches!(self.run.max_rejected, MaxRejected::Share(..)) {
            return Ok(());
        }
        let streamed = self.stream.as_ref().map_or(&[][..], Stream::rejected);
        let turned_away = self.plan.catalog.rejected.len() + streamed.len();
        let files = self.plan.catalog.items.len() + self.streamed.len() + turned_away;
        let (count, first) = &self.rejected;
        let count = count + streamed.len() as u64;
        let allowed = self.run.max_rejected.of(files);
        match first.as_ref().or(streamed.first()) {
            Some(Rejected { name, reason }) if count > allowed => Err(Error::input(
                name,
                format!("{reason}; {count} of {files} files are unreadable, {allowed} allowed"),
                "raise --max-rejected, or mend the source",
            )),
            _ => Ok(()),
        }
    }
}

/// Reads one item, unless it came through the pipe, and re-codes it.
fn make(
    plan: &Plan,
    source: Source,
    budget: &Budget,
    recoder: &mut Recoder,
) -> Result<Outcome, Error> {
    let (raw, bytes) = match source {
        Source::Pipe(bytes) => (Raw::Encoded, bytes),
        Source::Catalog(place) => {
            let mut bytes = Vec::new();
            match plan.catalog.read(&plan.catalog.items[place], &mut bytes)? {
                Ok(raw) => (raw, bytes),
                Err(reason) => return Ok(Outcome::Rejected(reason)),
            }
        }
    };
    let _share = budget.take(weight(&bytes));
    Ok(match recoder.recode(raw, bytes)? {
        Ok(coded) => Outcome::Stored(coded),
        Err(reason) => Outcome::Rejected(reason),
    })
}

/// Pixels that may be decoded at once, over all threads: memory stays bounded whatever comes.
struct Budget {
    all: u64,
    left: Mutex<u64>,
    returned: Condvar,
}

/// A share of the [`Budget`], given back on drop.
struct Share<'a>(&'a Budget, u64);

impl Budget {
    fn new(all: u64) -> Self {
        Self { all, left: Mutex::new(all), returned: Condvar::new() }
    }

    /// Waits until `pixels` are free. What exceeds the whole budget waits for all of it.
    fn take(&self, pixels: u64) -> Share<'_> {
        let pixels = pixels.min(self.all);
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.returned.wait_while(left, |left| *left < pixels);
        *waited.unwrap_or_else(PoisonError::into_inner) -= pixels;
        Share(self, pixels)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.0.left.lock().unwrap_or_else(PoisonError::into_inner) += self.1;
        self.0.returned.notify_all();
    }
}
