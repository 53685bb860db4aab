//! Checks a data folder: checksums, index against archives, labels against classes, and pixels.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use pipeline::decode::Decoder;
use pipeline::index::{Classes, Format, Index, Manifest};
use pipeline::jpeg::Header;
use pipeline::shard::{Member, Shard};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::Error;
use crate::progress::Progress;
use crate::recode::{decoder, reason};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Shards read.
    pub shards: usize,
    /// Images in them.
    pub images: usize,
    /// Keys of images that are the same to the byte, each with the key of the first one.
    pub duplicates: Vec<(String, String)>,
    /// Everything that is wrong, in the order of the shards.
    pub problems: Vec<String>,
}

impl Verdict {
    /// The error that the folder deserves, if it does.
    ///
    /// # Errors
    /// There is at least one problem.
    pub fn sound(&self, dir: &Path) -> Result<(), Error> {
        match self.problems.first() {
            None => Ok(()),
            Some(first) => Err(Error::Unsound {
                dir: dir.to_path_buf(),
                problems: self.problems.len(),
                first: first.clone(),
            }),
        }
    }
}

/// How far the check goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Bytes, names and labels.
    Bytes,
    /// Every image is decoded as well.
    Pixels,
}

/// Reads all of the data folder `dir` on `threads` threads.
///
/// # Errors
/// The folder has no readable index, manifest or class list. Anything wrong beyond that is in the
/// verdict.
pub fn verify(dir: &Path, depth: Depth, threads: usize) -> Result<Verdict, Error> {
    let index = Index::open(dir)?;
    let manifest = Manifest::load(dir)?;
    let classes = Classes::load(dir)?;
    let mut verdict = Verdict { shards: index.shards().len(), ..Verdict::default() };
    verdict.images = index.len();
    compare(&index, &manifest, &classes, &mut verdict.problems);
    let progress = Progress::start("verifying", 0, Some(index.len() as u64));
    let next = AtomicUsize::new(0);
    let check = || -> Result<Vec<(usize, Checked)>, Error> {
        let mut decoder = decoder()?;
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= index.shards().len() {
                return Ok(done);
            }
            progress.on(&index.shards()[number].name);
            let decoder = (depth == Depth::Pixels).then_some(&mut decoder);
            done.push((number, check_shard(&index, number, classes.0.len(), decoder, &progress)));
        }
    };
    let mut checked = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(check)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<_>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, Error>>()
    })?
    .concat();
    checked.sort_by_key(|(number, _)| *number);
    let mut first: HashMap<u128, usize> = HashMap::with_capacity(index.len());
    for (_, shard) in checked {
        verdict.problems.extend(shard.problems);
        for (sample, hash) in shard.hashes {
            let original = *first.entry(hash).or_insert(sample);
            if original != sample {
                let key = |sample| index.key(sample).into_owned();
                verdict.duplicates.push((key(sample), key(original)));
            }
        }
    }
    Ok(verdict)
}

/// What one shard's check found.
#[derive(Clone, Debug, Default)]
struct Checked {
    problems: Vec<String>,
    /// Hash of each image by sample.
    hashes: Vec<(usize, u128)>,
}

/// The index against manifest and classes.
fn compare(index: &Index, manifest: &Manifest, classes: &Classes, problems: &mut Vec<String>) {
    if manifest.classes != classes.0.len() as u64 {
        let (says, are) = (manifest.classes, classes.0.len());
        problems.push(format!("manifest.json says {says} classes, classes.json has {are}"));
    }
    for split in index.splits() {
        let shards = &index.shards()[split.shards.clone()];
        let same = manifest.splits.get(&split.name).is_some_and(|listed| {
            listed.samples == split.samples.len() as u64
                && listed.shards.len() == shards.len()
                && listed.shards.iter().zip(shards).all(|(a, b)| {
                    (&a.name, a.bytes, a.samples) == (&b.name, b.bytes, b.samples.len() as u64)
                        && a.xxh3 == format!("{:016x}", b.xxh3)
                })
        });
        if !same {
            problems.push(format!("manifest.json and index.bin differ on split {}", split.name));
        }
    }
}

fn check_shard(
    index: &Index,
    number: usize,
    classes: usize,
    mut decoder: Option<&mut Decoder>,
    progress: &Progress,
) -> Checked {
    let mut checked = Checked::default();
    let record = &index.shards()[number];
    let (shard, members) = match read_shard(index, number) {
        Ok(read) => read,
        Err(problem) => {
            checked.problems.push(problem);
            return checked;
        }
    };
    let mut members = members.iter();
    for sample in record.samples.clone() {
        let result = check_sample(index, sample, classes, &shard, &mut members).and_then(|image| {
            match &mut decoder {
                Some(decoder) => {
                    decoder.decode(image).map(|_| image).map_err(|fault| reason(&fault))
                }
                None => Ok(image),
            }
        });
        match result {
            Ok(image) => checked.hashes.push((sample, xxh3_128(image))),
            Err(problem) => {
                let key = index.key(sample);
                checked.problems.push(format!("{}: {key} {problem}", record.name));
            }
        }
        progress.advance(index.record(sample).entry.length.into());
    }
    if let Some(member) = members.next() {
        let problem = format!("{}: {} is not in the index", record.name, member.name);
        checked.problems.push(problem);
    }
    checked
}

/// Opens a shard whose length and checksum are the index's.
fn read_shard(index: &Index, number: usize) -> Result<(Shard, Vec<Member>), String> {
    let record = &index.shards()[number];
    let name = &record.name;
    let shard = index.shard(number).map_err(|error| reason(&error))?;
    let length = shard.as_bytes().len() as u64;
    if length != record.bytes {
        return Err(format!("{name}: has {length} bytes, not {}", record.bytes));
    }
    let hash = xxh3_64(shard.as_bytes());
    if hash != record.xxh3 {
        return Err(format!("{name}: has checksum {hash:016x}, not {:016x}", record.xxh3));
    }
    let members = shard.members().map_err(|error| reason(&error))?;
    Ok((shard, members))
}

/// One sample: the next member must be its image, and the one after that its label if it has one.
fn check_sample<'a>(
    index: &Index,
    sample: usize,
    classes: usize,
    shard: &'a Shard,
    members: &mut std::slice::Iter<'_, Member>,
) -> Result<&'a [u8], String> {
    let record = index.record(sample);
    let key = index.key(sample);
    let extension = if record.format == Format::Png { "png" } else { "jpg" };
    let mut member = |extension: &str| {
        let member = members.next().ok_or("is missing from the archive")?;
        if member.name != format!("{key}.{extension}") {
            return Err(format!("is {} in the archive", member.name));
        }
        Ok(member.entry)
    };
    let entry = member(extension)?;
    if entry != record.entry {
        return Err("is elsewhere than the index says".to_owned());
    }
    let image = shard.bytes(entry).map_err(|error| reason(&error))?;
    if let Some(label) = record.label {
        let written = shard.bytes(member("cls")?).map_err(|error| reason(&error))?;
        if written != label.to_string().as_bytes() {
            return Err("has another label in the archive than in the index".to_owned());
        }
        if label as usize >= classes {
            return Err(format!("has label {label}, but there are {classes} classes"));
        }
    }
    if record.format == Format::Jpeg {
        let header = Header::read(image).map_err(|fault| reason(&fault))?;
        if (header.width, header.height) != (record.width.into(), record.height.into()) {
            return Err("has another size than the index says".to_owned());
        }
    }
    Ok(image)
}
