//! The one way from a catalog to a data folder.
//!
//! ```text
//! items ── tickets ──> N threads: read, re-code ── results ──> writer: in order, shards, journal
//!            bounded by count and bytes                 the caller's thread
//! ```
//! Items are numbered by their place in the output. Threads finish them in any order; the writer
//! puts them back, so the result does not depend on how many threads there are. Both channels hold
//! as many entries as tickets may be out, so no send ever waits and nothing can deadlock.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use pipeline::index::{Classes, Format, IndexWriter, Manifest};
use pipeline::shard::{Entry, ShardWriter, Written};
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use crate::Error;
use crate::catalog::{Catalog, Item, Place, Rejected, Split};
use crate::journal::{Existing, Finished, Found, Stored, Workplace};
use crate::progress::Progress;
use crate::recode::{Coded, Coding, MAX_PIXELS, Recoder, weight};

/// Source bytes that may be on their way at once.
const BYTES_IN_FLIGHT: u64 = 64 << 20;

/// Images that may be on their way at once, per thread.
const IMAGES_IN_FLIGHT: usize = 32;

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
    /// Images that were out of the ordinary.
    pub odd: u64,
    /// Images that an earlier, interrupted run had stored.
    pub resumed: u64,
}

/// Builds the data folder; it appears under its name when it is whole.
///
/// # Errors
/// The output is in the way, too many files are unreadable (then nothing is left behind), or
/// reading or writing fails (then the same call goes on from the last finished shard).
pub fn build(plan: &Plan, run: &Run) -> Result<Report, Error> {
    let fingerprint = format!("{:016x}", fingerprint(plan)?);
    let (workplace, finished) = match Workplace::open(run.output, run.existing, &fingerprint)? {
        Found::Work(workplace, finished) => (workplace, finished),
        Found::Complete => return report_of(run.output),
    };
    let mut writer = Writer::new(plan, run, workplace, finished)?;
    let result = writer.run_to_end();
    match result {
        Ok(()) => writer.publish(fingerprint),
        // Trying again would end the same way, so nothing is kept.
        Err(error) if error.is_input() => {
            writer.workplace.discard()?;
            Err(error)
        }
        Err(error) => Err(error),
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
            Place::File { folder, .. } => u64::from(*folder),
            Place::Range { archive, offset } => u64::from(*archive) << 48 ^ offset,
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

/// The writing end: takes results in order, and holds the shard in work.
struct Writer<'a> {
    plan: &'a Plan,
    run: &'a Run<'a>,
    workplace: Workplace,
    index: IndexWriter,
    /// The next item to be written.
    next: usize,
    /// The split that the index is in.
    split: Option<Split>,
    shards_in_split: u32,
    shard: Option<ShardWriter>,
    /// What the shard in work holds so far.
    pending: Finished,
    /// The shard before it, while it is synced to disk.
    closing: Option<(JoinHandle<Result<Written, pipeline::Error>>, Finished)>,
    rejected: Vec<Rejected>,
    odd: Vec<Rejected>,
    report: Report,
    progress: Progress,
}

impl<'a> Writer<'a> {
    /// A writer that goes on after the shards that are `finished`.
    fn new(
        plan: &'a Plan,
        run: &'a Run,
        workplace: Workplace,
        finished: Vec<Finished>,
    ) -> Result<Self, Error> {
        let items = plan.catalog.items.len();
        let next = finished.last().map_or(0, |shard| shard.next);
        let progress = Progress::start("building", next as u64, items as u64);
        let mut writer = Self {
            plan,
            run,
            workplace,
            index: IndexWriter::new(),
            next,
            split: None,
            shards_in_split: 0,
            shard: None,
            pending: Finished::empty(),
            closing: None,
            rejected: plan.catalog.rejected.clone(),
            odd: Vec::new(),
            report: Report::default(),
            progress,
        };
        for shard in finished {
            writer.report.resumed += shard.stored.len() as u64;
            writer.enter(plan.catalog.items[shard.stored[0].item].split)?;
            writer.shards_in_split += 1;
            writer.enlist(shard)?;
        }
        writer.check_rejected()?;
        Ok(writer)
    }

    /// Runs the threads until every item is written.
    fn run_to_end(&mut self) -> Result<(), Error> {
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
                    for ticket in tickets {
                        let item = &plan.catalog.items[ticket];
                        let outcome = make(plan, item, budget, &mut recoder);
                        if results.send((ticket, outcome)).is_err() {
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
        tickets: Sender<usize>,
        results: Receiver<(usize, Result<Outcome, Error>)>,
        window: usize,
    ) -> Result<(), Error> {
        let items = &self.plan.catalog.items;
        let mut early: BTreeMap<usize, Outcome> = BTreeMap::new();
        let (mut ticket, mut bytes) = (self.next, 0);
        while self.next < items.len() {
            while ticket < items.len() && ticket - self.next < window {
                let length = u64::from(items[ticket].length);
                if bytes + length > BYTES_IN_FLIGHT && ticket > self.next {
                    break;
                }
                tickets.send(ticket).expect("threads take tickets as long as the writer lives");
                bytes += length;
                ticket += 1;
            }
            let (done, outcome) =
                results.recv().expect("threads report every ticket that they take");
            early.insert(done, outcome?);
            while let Some(outcome) = early.remove(&self.next) {
                let item = &items[self.next];
                bytes -= u64::from(item.length);
                self.write(item, outcome)?;
                self.progress.advance(item.length.into());
            }
            if self.run.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { shards: self.report.shards });
            }
        }
        self.finish_shard()
    }

    /// Writes the item whose turn it is.
    fn write(&mut self, item: &Item, outcome: Outcome) -> Result<(), Error> {
        let coded = match outcome {
            Outcome::Rejected(reason) => {
                let rejected = Rejected { name: self.plan.catalog.name(item), reason };
                self.pending.rejected.push(rejected);
                self.next += 1;
                return self.check_rejected();
            }
            Outcome::Stored(coded) => coded,
        };
        let full = self.shard.as_ref().is_some_and(|shard| {
            shard.position() + coded.bytes.len() as u64 > self.plan.shard_bytes
        });
        if full || self.split != Some(item.split) {
            self.finish_shard()?;
            self.enter(item.split)?;
        }
        let shard = match &mut self.shard {
            Some(shard) => shard,
            None => {
                let name = format!("{}-{:06}.tar", item.split.name(), self.shards_in_split);
                self.progress.on(&name);
                let shard = ShardWriter::create(&self.workplace.dir.join(&name))?;
                self.pending.name = name;
                self.shards_in_split += 1;
                self.shard.insert(shard)
            }
        };
        let entry = shard.append(&item.key, coded.extension, &coded.bytes, item.label)?;
        self.pending.stored.push(Stored {
            item: self.next,
            offset: entry.offset,
            length: entry.length,
            width: coded.width,
            height: coded.height,
            png: coded.extension == "png",
        });
        if let Some(reason) = coded.oddity {
            self.pending.odd.push(Rejected { name: self.plan.catalog.name(item), reason });
        }
        self.next += 1;
        Ok(())
    }

    /// Ends the shard in work, if there is one. It is synced on a thread of its own, so that the next
    /// one grows meanwhile.
    fn finish_shard(&mut self) -> Result<(), Error> {
        let Some(shard) = self.shard.take() else { return Ok(()) };
        self.settle()?;
        let pending = std::mem::replace(&mut self.pending, Finished::empty());
        let finished = Finished { next: self.next, ..pending };
        self.closing = Some((std::thread::spawn(move || shard.finish()), finished));
        Ok(())
    }

    /// Waits for the shard that is being closed: file first, then journal, then index.
    fn settle(&mut self) -> Result<(), Error> {
        let Some((thread, finished)) = self.closing.take() else { return Ok(()) };
        let written = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let Written { bytes, xxh3 } = written?;
        let finished = Finished { bytes, xxh3, ..finished };
        self.workplace.record(&finished)?;
        self.enlist(finished)
    }

    /// Makes `split` the one that shards belong to.
    fn enter(&mut self, split: Split) -> Result<(), Error> {
        if self.split != Some(split) {
            self.settle()?;
            self.index.begin_split(split.name())?;
            self.report.images.push((split.name(), 0));
            self.split = Some(split);
            self.shards_in_split = 0;
        }
        Ok(())
    }

    /// Adds a finished shard to the index and the report.
    fn enlist(&mut self, shard: Finished) -> Result<(), Error> {
        let Finished { name, bytes, xxh3, stored, rejected, odd, .. } = shard;
        for sample in &stored {
            let Stored { item, offset, length, width, height, png } = *sample;
            let Item { key, label, .. } = &self.plan.catalog.items[item];
            let format = if png { Format::Png } else { Format::Jpeg };
            self.index.sample(key, Entry { offset, length }, *label, format, (width, height));
        }
        self.index.end_shard(&name, Written { bytes, xxh3 })?;
        self.report.shards += 1;
        self.report.bytes += bytes;
        if let Some((_, images)) = self.report.images.last_mut() {
            *images += stored.len() as u64;
        }
        self.rejected.extend(rejected);
        self.odd.extend(odd);
        Ok(())
    }

    /// What was rejected so far, in the order of writing.
    fn all_rejected(&self) -> impl Iterator<Item = &Rejected> {
        let closing = self.closing.iter().flat_map(|(_, finished)| &finished.rejected);
        self.rejected.iter().chain(closing).chain(&self.pending.rejected)
    }

    fn check_rejected(&self) -> Result<(), Error> {
        let files = self.plan.catalog.items.len() + self.plan.catalog.rejected.len();
        let (count, allowed) =
            (self.all_rejected().count() as u64, self.run.max_rejected.of(files));
        match self.all_rejected().next() {
            Some(Rejected { name, reason }) if count > allowed => Err(Error::input(
                name,
                format!("{reason}; {count} of {files} files are unreadable, {allowed} allowed"),
                "mend the source, or raise --max-rejected",
            )),
            _ => Ok(()),
        }
    }

    /// Writes what describes the shards, and gives the folder its name.
    fn publish(mut self, fingerprint: String) -> Result<Report, Error> {
        self.rejected.append(&mut self.pending.rejected);
        let Self { plan, workplace, .. } = &self;
        if self.index.is_empty() {
            let first = self.rejected.first().map(|r| format!(" ({}: {})", r.name, r.reason));
            let problem = format!(
                "no image could be stored from {}{}",
                plan.source,
                first.unwrap_or_default()
            );
            let output = self.run.output.to_path_buf();
            self.workplace.discard()?;
            return Err(Error::input(output, problem, "check --layout and --input"));
        }
        let dir = &workplace.dir;
        let class = |(number, class): (usize, &crate::catalog::Class)| pipeline::index::Class {
            class: number as u32,
            name: class.name.clone(),
            words: class.words.clone(),
        };
        let classes = &plan.catalog.classes;
        Classes(classes.iter().enumerate().map(class).collect()).save(dir)?;
        write_lines(&dir.join("rejected.jsonl"), &self.rejected)?;
        write_lines(&dir.join("odd.jsonl"), &self.odd)?;
        self.index.write(dir)?;
        let mut options = plan.options.clone();
        let coding = serde_json::to_value(&plan.coding).unwrap_or_default();
        options.extend(coding.as_object().cloned().unwrap_or_default());
        for (name, value) in [
            ("plan", Value::from(fingerprint)),
            ("shard_bytes", plan.shard_bytes.into()),
            ("ignored_files", plan.catalog.ignored.into()),
            ("rejected_files", self.rejected.len().into()),
            ("odd_images", self.odd.len().into()),
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
            classes: classes.len() as u64,
            splits: self.index.manifest_splits(),
        };
        manifest.save(dir)?;
        self.report.rejected = self.rejected.len() as u64;
        self.report.odd = self.odd.len() as u64;
        self.workplace.publish()?;
        Ok(self.report)
    }
}

impl Finished {
    fn empty() -> Self {
        let (stored, rejected, odd) = (Vec::new(), Vec::new(), Vec::new());
        Self { name: String::new(), bytes: 0, xxh3: 0, next: 0, stored, rejected, odd }
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
    Ok(report)
}

/// Reads one item and re-codes it.
fn make(
    plan: &Plan,
    item: &Item,
    budget: &Budget,
    recoder: &mut Recoder,
) -> Result<Outcome, Error> {
    let mut bytes = Vec::new();
    let raw = match plan.catalog.read(item, &mut bytes)? {
        Ok(raw) => raw,
        Err(reason) => return Ok(Outcome::Rejected(reason)),
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
fn write_lines(path: &PathBuf, lines: &[Rejected]) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let write = || {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        for line in lines {
            serde_json::to_writer(&mut file, line)?;
            file.write_all(b"\n")?;
        }
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(Error::io(path, "write it"))
}
