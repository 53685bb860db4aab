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

mod writer;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use pipeline::container::Skipped;
use pipeline::index::Manifest;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use crate::Error;
use crate::catalog::{Catalog, Item, Place, Rejected, Split};
use crate::journal::{Existing, Found, Workplace};
use crate::recode::Coding;
use crate::source::Stream;
use writer::Writer;

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
