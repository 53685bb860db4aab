//! Checks a data folder: checksums, index against archives, labels against classes, and pixels.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use pipeline::decode::Decoder;
use pipeline::index::{Classes, Format, Index, Manifest};
use pipeline::jpeg::Header;
use pipeline::seek::{MAKE, SeekFile};
use pipeline::shard::Shard;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

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
    /// Images that have seek points.
    pub seek_points: usize,
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
                mend: match self.problems.iter().all(|problem| problem.contains(MAKE)) {
                    true => "", // they say it themselves
                    false => "; build the folder again",
                },
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
/// The folder has no readable index, manifest or class list (of these two, one with shards of another
/// program needs none). Anything wrong beyond that is in the verdict.
pub fn verify(dir: &Path, depth: Depth, threads: usize) -> Result<Verdict, Error> {
    let index = Index::open(dir)?;
    let mut verdict = Verdict { shards: index.shards().len(), ..Verdict::default() };
    verdict.images = index.len();
    // Shards of another program come without these two.
    let classes = match index.is_scanned() {
        true => index.classes()?.map(|classes| classes.0.len()),
        false => {
            let (manifest, classes) = (Manifest::load(dir)?, Classes::load(dir)?);
            compare(&index, &manifest, &classes, &mut verdict.problems);
            Some(classes.0.len())
        }
    };
    let seek = SeekFile::find(&index).unwrap_or_else(|problem| {
        verdict.problems.push(format!("{problem}; {MAKE}"));
        None
    });
    verdict.seek_points = seek.as_ref().map_or(0, SeekFile::pictures);
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
            let of = (&index, seek.as_ref(), number);
            done.push((number, check_shard(of, classes, decoder, &progress)));
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
    (index, seek, number): (&Index, Option<&SeekFile>, usize),
    classes: Option<usize>,
    mut decoder: Option<&mut Decoder>,
    progress: &Progress,
) -> Checked {
    let mut checked = Checked::default();
    let record = &index.shards()[number];
    let shard = match read_shard(index, number, &mut checked.problems) {
        Ok(shard) => shard,
        Err(problem) => {
            checked.problems.push(problem);
            return checked;
        }
    };
    let mut image = Vec::new();
    for sample in record.samples.clone() {
        let sound = check_sample(index, sample, classes, &shard, &mut image);
        let result = sound.and_then(|()| {
            if let Some(decoder) = &mut decoder {
                decoder.decode(&image).map_err(|fault| reason(&fault))?;
            }
            seek.map_or(Ok(()), |seek| seek.verify(sample, &image, decoder.as_deref_mut()))
        });
        match result {
            Ok(()) => checked.hashes.push((sample, xxh3_128(&image))),
            Err(problem) => {
                let key = index.key(sample);
                checked.problems.push(format!("{}: {key} {problem}", record.name));
            }
        }
        progress.advance(index.record(sample).entry.length.into());
    }
    checked
}

/// Opens a shard whose length and checksum are the index's, and compares its members with it.
fn read_shard(index: &Index, number: usize, problems: &mut Vec<String>) -> Result<Shard, String> {
    let record = &index.shards()[number];
    let name = &record.name;
    let shard = index.shard(number).map_err(|error| reason(&error))?;
    let length = shard.len();
    if length != record.bytes {
        return Err(format!("{name}: has {length} bytes, not {}", record.bytes));
    }
    // Of a shard of another program no checksum is known.
    if !index.is_scanned() {
        let hash = checksum(&shard).map_err(|error| format!("{name}: {}", reason(&error)))?;
        if hash != record.xxh3 {
            return Err(format!("{name}: has checksum {hash:016x}, not {:016x}", record.xxh3));
        }
    }
    problems.extend(index.differences(number, &shard).map_err(|error| reason(&error))?);
    Ok(shard)
}

/// XXH3-64 of the whole file.
fn checksum(shard: &Shard) -> std::io::Result<u64> {
    let (mut reader, mut hash, mut buffer) = (shard.reader(), Xxh3::new(), vec![0; 1 << 20]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hash.digest()),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// One sample: its image, read into `image`, and what the index says of both.
fn check_sample(
    index: &Index,
    sample: usize,
    classes: Option<usize>,
    shard: &Shard,
    image: &mut Vec<u8>,
) -> Result<(), String> {
    let record = index.record(sample);
    shard.read_into(record.entry, image).map_err(|error| reason(&error))?;
    if let (Some(label), Some(classes)) = (record.label, classes)
        && label as usize >= classes
    {
        return Err(format!("has label {label}, but there are {classes} classes"));
    }
    if record.format == Format::Jpeg && (record.width, record.height) != (0, 0) {
        let header = Header::read(image).map_err(|fault| reason(&fault))?;
        if (header.width, header.height) != (record.width.into(), record.height.into()) {
            return Err("has another size than the index says".to_owned());
        }
    }
    Ok(())
}
