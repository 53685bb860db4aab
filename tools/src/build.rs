//! The one way from a catalog to a data folder.
//!
//! ```text
//! items ── tickets ──> N threads: read, re-code ── results ──> writer: in order, shards, journal
//!            bounded by count and bytes                 the caller's thread
//! ```
//! Items are numbered by their place in the output. Threads finish them in any order; the writer
//! puts them back, so the result does not depend on how many threads there are. Both channels hold
//! as many entries as tickets may be out, so no send ever waits and nothing can deadlock.
//!
//! What comes through a pipe is read by the writer's thread when it hands out tickets, and goes
//! with them. Such a source does not keep splits apart, so each split has a shard of its own in
//! work; the index, which does, is written at the end.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use common::files::replace_with;
use crossbeam::channel::{Receiver, Sender, bounded};
use pipeline::container::Skipped;
use pipeline::index::{Classes, Format, IndexWriter, Manifest};
use pipeline::shard::{Entry, ShardWriter, Written};
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use crate::Error;
use crate::catalog::{Catalog, Item, Place, Raw, Rejected, Split};
use crate::journal::{Existing, Finished, Found, Read, Stored, Workplace};
use crate::progress::Progress;
use crate::recode::{Coded, Coding, MAX_PIXELS, Recoder, weight};
use crate::source::Stream;

/// Source bytes that may be on their way at once.
const BYTES_IN_FLIGHT: u64 = 64 << 20;

/// Images that may be on their way at once, per thread.
const IMAGES_IN_FLIGHT: usize = 32;

/// Files that were left out, and images that were out of the ordinary: a line of [`Rejected`] each.
const REJECTED_FILE: &str = "rejected.jsonl";
const ODD_FILE: &str = "odd.jsonl";

/// How many files may be rejected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxRejected {
    /// That many.
    Count(u64),
    /// That share of all files, 0 to 1, but at least this many.
    Share(f64, u64),
}

impl Default for MaxRejected {
    /// One in a thousand, and ten of a small set.
    fn default() -> Self {
        Self::Share(0.001, 10)
    }
}

impl std::str::FromStr for MaxRejected {
    type Err = String;

    /// `N` is a count, `N%` a share.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%').map(str::parse::<f64>) {
            Some(Ok(percent)) if (0.0..=100.0).contains(&percent) => {
                Ok(Self::Share(percent / 100.0, 0))
            }
            Some(_) => Err("a share is 0% to 100%".to_owned()),
            None => text.parse().map(Self::Count).map_err(|_| "not a count or a share".to_owned()),
        }
    }
}

impl MaxRejected {
    fn of(self, files: usize) -> u64 {
        match self {
            Self::Count(count) => count,
            Self::Share(share, least) => ((share * files as f64).floor() as u64).max(least),
        }
    }
}

/// All that decides the bytes of the output.
#[derive(Debug)]
pub struct Plan {
    /// What to store, in the order of writing.
    pub catalog: Catalog,
    /// How to store it.
    pub coding: Coding,
    /// A shard that would grow beyond this is closed, in bytes.
    pub shard_bytes: u64,
    /// The seed that `catalog` was put in order by.
    pub seed: u64,
    /// Where the images came from, in words.
    pub source: String,
    /// Further options for the manifest.
    pub options: BTreeMap<String, Value>,
}

/// All that does not.
#[derive(Debug)]
pub struct Run<'a> {
    /// Where the data folder goes.
    pub output: &'a Path,
    /// What to do when there is one.
    pub existing: Existing,
    /// Threads that read and re-code, at least 1.
    pub threads: usize,
    /// When the build gives up.
    pub max_rejected: MaxRejected,
    /// Set from outside to stop between two images.
    pub interrupted: &'a AtomicBool,
}

/// What a build did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Images per split, in the order of writing.
    pub images: Vec<(&'static str, u64)>,
    /// Shards.
    pub shards: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were left out.
    pub rejected: u64,
    /// The first of them.
    pub first_rejected: Option<Rejected>,
    /// Images that were out of the ordinary.
    pub odd: u64,
    /// The first of them.
    pub first_odd: Option<Rejected>,
    /// What was passed over, by kind.
    pub skipped: Skipped,
    /// Images that an earlier, interrupted run had stored.
    pub resumed: u64,
}

/// Builds the data folder; it appears under its name when it is whole. The images of `stream` come
/// before those of the plan's catalog.
///
/// # Errors
/// The output is in the way, too many files are unreadable, or reading or writing fails. Whatever it
/// is, finished shards are kept ([`Error::Kept`]), and the same call goes on from them.
pub fn build(plan: &Plan, run: &Run, stream: Option<Stream>) -> Result<Report, Error> {
    let fingerprint = format!("{:016x}", fingerprint(plan)?);
    let (workplace, finished) = match Workplace::open(run.output, run.existing, &fingerprint)? {
        Found::Work(workplace, finished) => (workplace, finished),
        Found::Complete => return report_of(run.output),
    };
    let mut writer = Writer::new(plan, run, workplace, finished, stream);
    match writer.run_to_end() {
        Ok(()) => {
            let (dir, shards) = (writer.workplace.dir.clone(), writer.report.shards);
            writer.publish(fingerprint).map_err(|error| error.kept(shards, &dir))
        }
        // Nothing is lost: another try would begin anew.
        Err(error) if error.is_input() && writer.report.shards == 0 => {
            writer.workplace.discard()?;
            Err(error)
        }
        Err(error) => Err(error.kept(writer.report.shards, &writer.workplace.dir)),
    }
}

/// A hash of everything that decides the output.
fn fingerprint(plan: &Plan) -> Result<u64, Error> {
    let Plan { catalog, coding, shard_bytes, seed, source, options } = plan;
    let mut hash = Xxh3::new();
    let text = format!(
        "{} {coding:?} {shard_bytes} {seed} {source} {options:?} {:?} {:?}",
        env!("CARGO_PKG_VERSION"),
        catalog.classes,
        catalog.synth,
    );
    hash.update(text.as_bytes());
    // What comes through a pipe is checked as it is read; here only where it comes from counts.
    if catalog.pipe.is_some() {
        hash.update(b"pipe");
    }
    for path in &catalog.archives {
        let metadata = std::fs::metadata(path).map_err(Error::open(path))?;
        hash.update(format!("{} {:?}", metadata.len(), metadata.modified().ok()).as_bytes());
    }
    for batch in &catalog.batches {
        hash.update(&batch.pixels);
    }
    for Item { key, split, label, place, length } in &catalog.items {
        hash.update(key.as_bytes());
        let number = match place {
            Place::File { folder, name } => {
                // A file that is gone is for the build to tell of.
                let file = std::fs::metadata(catalog.folders[*folder as usize].join(&**name));
                let changed = file.and_then(|file| file.modified()).ok();
                hash.update(name.as_encoded_bytes());
                hash.update(format!("/{changed:?}").as_bytes());
                u64::from(*folder)
            }
            Place::Range { archive, offset } => u64::from(*archive) << 48 ^ offset,
            Place::Piped { offset } => *offset,
            Place::Row { batch, row } => u64::from(*batch) << 32 | u64::from(*row),
            Place::Drawn { picture } => *picture,
        };
        let label = label.map_or(u64::MAX, u64::from);
        for part in [*split as u64, label, number, u64::from(*length)] {
            hash.update(&part.to_le_bytes());
        }
    }
    Ok(hash.digest())
}

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
struct Lane {
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
struct Writer<'a> {
    plan: &'a Plan,
    run: &'a Run<'a>,
    workplace: Workplace,
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
    lanes: BTreeMap<Split, Lane>,
    /// The shard before, while it is synced to disk.
    closing: Option<(JoinHandle<Result<Written, pipeline::Error>>, Finished)>,
    /// How many files were rejected, and the first of them.
    rejected: (u64, Option<Rejected>),
    report: Report,
    progress: Progress,
}

impl<'a> Writer<'a> {
    /// A writer that goes on after the shards that are `finished`.
    fn new(
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
            lanes: BTreeMap::new(),
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
            let lane = writer.lane(shard.split);
            lane.shards += 1;
            lane.next = shard.next;
            writer.enlist(shard);
        }
        writer
    }

    /// Runs the threads until every item is written.
    fn run_to_end(&mut self) -> Result<(), Error> {
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
            let settled = self.settle();
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
            if number >= self.lane(split).next {
                let source = Source::Pipe(bytes);
                return Ok(Some(Ticket { number, length, read, source }));
            }
        }
        let read = self.has_read();
        while let Some(item) = self.plan.catalog.items.get(self.ticket - self.streamed.len()) {
            let number = self.ticket;
            self.ticket += 1;
            if number >= self.lane(item.split).next {
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

    fn lane(&mut self, split: Split) -> &mut Lane {
        self.lanes.entry(split).or_insert_with(|| Lane {
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
                self.lane(split).pending.rejected.push(rejected);
                return self.check_rejected();
            }
            Outcome::Stored(coded) => coded,
        };
        let (bytes, limit) = (coded.bytes.len() as u64, self.plan.shard_bytes);
        let full = |shard: &ShardWriter| shard.position() + bytes > limit;
        if self.lane(split).shard.as_ref().is_some_and(full) {
            self.finish_shard(split)?;
        }
        // The catalog's items are in the order of their splits; what comes before is complete.
        if number >= self.streamed.len() {
            for other in Split::ALL.into_iter().filter(|other| *other != split) {
                self.finish_shard(other)?;
            }
        }
        if self.lane(split).shard.is_none() {
            let name = format!("{}-{:06}.tar", split.name(), self.lane(split).shards);
            self.progress.on(&name);
            let shard = ShardWriter::create(&self.workplace.dir.join(&name))?;
            let lane = self.lane(split);
            lane.shard = Some(shard);
            lane.pending.name = name;
            lane.shards += 1;
        }
        let oddity = coded.oddity.map(|reason| Rejected { name: self.name(number), reason });
        let lane = self.lane(split);
        let shard = lane.shard.as_mut().expect("it was made above");
        let entry = shard.append(&key, coded.extension, &coded.bytes, label)?;
        lane.pending.stored.push(Stored {
            item: number,
            offset: entry.offset,
            length: entry.length,
            width: coded.width,
            height: coded.height,
            png: coded.extension == "png",
        });
        lane.pending.odd.extend(oddity);
        Ok(())
    }

    fn name(&self, number: usize) -> String {
        self.plan.catalog.name(self.item(number))
    }

    /// Ends the shard in work of a split, if there is one. It is synced on a thread of its own, so
    /// that the next one grows meanwhile.
    fn finish_shard(&mut self, split: Split) -> Result<(), Error> {
        let Some(lane) = self.lanes.get_mut(&split) else { return Ok(()) };
        let Some(shard) = lane.shard.take() else { return Ok(()) };
        let pending = std::mem::replace(&mut lane.pending, Finished::empty(split));
        self.settle()?;
        let finished = Finished { next: self.next, read: self.read, ..pending };
        self.closing = Some((std::thread::spawn(move || shard.finish()), finished));
        Ok(())
    }

    /// Waits for the shard that is being closed: file first, then journal.
    fn settle(&mut self) -> Result<(), Error> {
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
        self.lane(shard.split).finished.push(shard);
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

    /// Puts the shards into the index, by split; what was rejected, and what was odd.
    fn index(&mut self) -> Result<(IndexWriter, Vec<Rejected>, Vec<Rejected>), Error> {
        let mut index = IndexWriter::new();
        let mut rejected: Vec<Rejected> = self.turned_away().cloned().collect();
        rejected.sort_by(|a, b| a.name.cmp(&b.name));
        let mut odd = Vec::new();
        for (split, lane) in std::mem::take(&mut self.lanes) {
            let images: usize = lane.finished.iter().map(|shard| shard.stored.len()).sum();
            if images > 0 {
                index.begin_split(split.name())?;
                self.report.images.push((split.name(), images as u64));
            }
            for shard in lane.finished {
                for sample in &shard.stored {
                    let Stored { item, offset, length, width, height, png } = *sample;
                    let Item { key, label, .. } = self.item(item);
                    let format = if png { Format::Png } else { Format::Jpeg };
                    index.sample(key, Entry { offset, length }, *label, format, (width, height));
                }
                let Finished { name, bytes, xxh3, .. } = shard;
                index.end_shard(&name, Written { bytes, xxh3 })?;
                rejected.extend(shard.rejected);
                odd.extend(shard.odd);
            }
            rejected.extend(lane.pending.rejected);
        }
        Ok((index, rejected, odd))
    }

    /// Of a folder that has its index. A stop is one of the build: the same command goes on from here.
    fn seek_points(&self, dir: &Path) -> Result<(), Error> {
        let Run { threads, interrupted, .. } = *self.run;
        match crate::seek::seek_points(dir, threads, interrupted) {
            Ok(_) => Ok(()),
            Err(Error::Stopped) => Err(Error::Interrupted { shards: self.report.shards }),
            Err(error) => Err(error),
        }
    }

    /// Writes what describes the shards, and gives the folder its name.
    fn publish(mut self, fingerprint: String) -> Result<Report, Error> {
        let (index, rejected, odd) = self.index()?;
        self.report.skipped = self.plan.catalog.skipped.clone();
        if let Some(stream) = &self.stream {
            self.report.skipped.merge(stream.skipped().clone());
        }
        let Self { plan, workplace, .. } = &self;
        if index.is_empty() {
            let mut why: Vec<String> =
                rejected.first().map(|r| format!("{}: {}", r.name, r.reason)).into_iter().collect();
            if !self.report.skipped.is_empty() {
                why.push(format!("passed over: {}", self.report.skipped).replace('\n', ", "));
            }
            let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
            let problem = format!("no image could be stored from {}{why}", plan.source);
            let output = self.run.output.to_path_buf();
            self.workplace.discard()?;
            return Err(Error::input(output, problem, "check --layout and --input"));
        }
        let dir = &workplace.dir;
        let class = |(number, class): (usize, crate::catalog::Class)| pipeline::index::Class {
            class: number as u32,
            name: class.name,
            words: class.words,
        };
        let stream = self.stream.as_ref();
        let classes = stream.map_or_else(|| plan.catalog.classes.clone(), Stream::classes);
        let count = classes.len() as u64;
        Classes(classes.into_iter().enumerate().map(class).collect()).save(dir)?;
        write_lines(&dir.join(REJECTED_FILE), &rejected)?;
        write_lines(&dir.join(ODD_FILE), &odd)?;
        index.write(dir)?;
        self.seek_points(dir)?;
        let mut options = plan.options.clone();
        let coding = serde_json::to_value(&plan.coding).unwrap_or_default();
        options.extend(coding.as_object().cloned().unwrap_or_default());
        for (name, value) in [
            ("plan", Value::from(fingerprint)),
            ("shard_bytes", plan.shard_bytes.into()),
            ("skipped", serde_json::to_value(&self.report.skipped).unwrap_or_default()),
            ("rejected_files", rejected.len().into()),
            ("odd_images", odd.len().into()),
        ] {
            options.insert(name.to_owned(), value);
        }
        let manifest = Manifest {
            format: Manifest::FORMAT,
            tool: "shard-imagenet".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: plan.source.clone(),
            options,
            seed: plan.seed,
            classes: count,
            splits: index.manifest_splits(),
        };
        manifest.save(dir)?;
        self.report.rejected = rejected.len() as u64;
        self.report.first_rejected = rejected.into_iter().next();
        self.report.odd = odd.len() as u64;
        self.report.first_odd = odd.into_iter().next();
        self.workplace.publish()?;
        Ok(self.report)
    }
}

/// The report of a folder that was finished before.
fn report_of(output: &Path) -> Result<Report, Error> {
    let manifest = Manifest::load(output)?;
    let mut report = Report::default();
    for split in Split::ALL.map(Split::name) {
        let Some(written) = manifest.splits.get(split) else { continue };
        report.images.push((split, written.samples));
        report.resumed += written.samples;
        report.shards += written.shards.len();
        report.bytes += written.shards.iter().map(|shard| shard.bytes).sum::<u64>();
    }
    let count = |name| manifest.options.get(name).and_then(Value::as_u64).unwrap_or(0);
    report.rejected = count("rejected_files");
    report.odd = count("odd_images");
    let first = |name| {
        let file = std::fs::File::open(output.join(name)).ok()?;
        let line = BufReader::new(file).lines().next()?.ok()?;
        serde_json::from_str(&line).ok()
    };
    (report.first_rejected, report.first_odd) = (first(REJECTED_FILE), first(ODD_FILE));
    let skipped = manifest.options.get("skipped").cloned();
    report.skipped = skipped.and_then(|s| serde_json::from_value(s).ok()).unwrap_or_default();
    Ok(report)
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

/// Writes a JSON line for each; no file when there are none.
fn write_lines(path: &Path, lines: &[Rejected]) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let write = |file: &mut File| {
        let mut file = BufWriter::new(file);
        for line in lines {
            serde_json::to_writer(&mut file, line)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    replace_with(path, write).map_err(Error::io(path, "write it"))
}
