//! The index of a data folder: where each sample's bytes lie, its label, size and key.
//!
//! A folder holds `SPLIT-000000.tar` ..., and beside them `index.bin`, `manifest.json` and
//! `classes.json`. The binary index is all that reading needs; the JSON files are for people and
//! for programs that fetch shards.
//!
//! # Layout of `index.bin`
//! Little-endian, no padding between the parts; all offsets follow from the counts in the header.
//! ```text
//! header     64 bytes  magic "BBGINDEX", version u32, splits u32, shards u32,
//!                      origin u32 (0 = written with the shards, 1 = made by scanning them),
//!                      samples u64, name bytes u64, key bytes u64, zero to the end
//! splits     40 each   name [16] zero-filled, first sample u64, samples u64,
//!                      first shard u32, shards u32
//! shards     40 each   bytes u64, XXH3-64 u64, first sample u64, samples u64,
//!                      end of its name in the name table u64
//! samples    32 each   offset u64, length u32, shard u32, label u32 (u32::MAX = none),
//!                      width u16, height u16 (0 = unknown or beyond), u64: end of its key in
//!                      the key table (low 40 bits), format in the top byte (0 unknown, 1 JPEG,
//!                      2 PNG)
//! names      UTF-8, shard file names one after the other
//! keys       UTF-8, sample keys one after the other
//! checksum   XXH3-64 of everything before
//! ```
//! The samples of a split and of a shard are contiguous, and shards follow in the order of
//! their splits.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::address::RemoteOptions;
use crate::error::Error;
use crate::folder::Folder;
use crate::shard::{Entry, Shard, Written, write_atomically};

const MAGIC: &[u8; 8] = b"BBGINDEX";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const SPLIT: usize = 40;
const SHARD: usize = 40;
const SAMPLE: usize = 32;
const CHECKSUM: usize = 8;
const NO_LABEL: u32 = u32::MAX;
const KEY_END: u64 = (1 << 40) - 1;

/// Name of the binary index in a data folder.
pub const INDEX_FILE: &str = "index.bin";
/// Name of the manifest in a data folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the class list in a data folder.
pub const CLASSES_FILE: &str = "classes.json";

/// The format of a sample's image, as far as the writer knew it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Not looked at.
    #[default]
    Unknown,
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
}

/// What the index says of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Its shard, a position in [`Index::shards`].
    pub shard: usize,
    /// Where the image lies in it.
    pub entry: Entry,
    /// Class number.
    pub label: Option<u32>,
    /// Width in pixels, 0 when unknown.
    pub width: u16,
    /// Height in pixels, 0 when unknown.
    pub height: u16,
    /// Format of the image.
    pub format: Format,
}

/// What the index says of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRecord {
    /// File name in the folder.
    pub name: String,
    /// Size of the file.
    pub bytes: u64,
    /// XXH3-64 of the file, 0 where it is not known.
    pub xxh3: u64,
    /// Its samples, as positions in the index.
    pub samples: std::ops::Range<usize>,
}

/// What the index says of one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitRecord {
    /// "train", "val", "trainval", "test", or a name of the user's.
    pub name: String,
    /// Its samples, as positions in the index.
    pub samples: std::ops::Range<usize>,
    /// Its shards, as positions in the index.
    pub shards: std::ops::Range<usize>,
}

/// The index of a data folder, read into memory.
#[derive(Debug)]
pub struct Index {
    folder: Folder,
    path: PathBuf,
    bytes: Vec<u8>,
    splits: Vec<SplitRecord>,
    shards: Vec<ShardRecord>,
    samples: usize, // first byte of the sample table
    count: usize,
    keys: usize, // first byte of the key table
    key_bytes: usize,
    fingerprint: u64,
}

impl Index {
    /// Opens `DIR/index.bin` and checks all of it: checksum, counts, and every record's bounds.
    /// `dir` may be a URL.
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::EmptyFolder`] (no index), [`Error::Io`], [`Error::Remote`], or
    /// [`Error::Format`] where the file breaks its layout.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_in(&Folder::open(dir, &RemoteOptions::default())?)
    }

    /// The same for a folder that is open.
    pub(crate) fn open_in(folder: &Folder) -> Result<Self, Error> {
        let file = folder.file(INDEX_FILE, false)?;
        let file = file.ok_or_else(|| Error::EmptyFolder { dir: folder.path().to_path_buf() })?;
        Self::parse(folder, folder.path().join(INDEX_FILE), file)
    }

    /// The same for an index that lies elsewhere than its shards.
    pub(crate) fn open_at(folder: &Folder, path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        Self::parse(folder, path.to_path_buf(), bytes)
    }

    fn parse(folder: &Folder, path: PathBuf, file: Vec<u8>) -> Result<Self, Error> {
        let bytes = &*file;
        let bad = |offset: usize, what: &str| {
            let what = format!("{what}; build the folder again");
            Error::format(&path, offset as u64, what)
        };
        if bytes.len() < HEADER + CHECKSUM || &bytes[..8] != MAGIC {
            return Err(bad(0, "not an index of shards"));
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            let what = format!("index version {version}, this program reads {VERSION}");
            return Err(bad(8, &what));
        }
        let body = bytes.len() - CHECKSUM;
        let fingerprint = u64_at(bytes, body);
        if xxh3_64(&bytes[..body]) != fingerprint {
            return Err(bad(body, "the checksum does not match: the index is damaged or cut"));
        }
        let (splits, shards) = (u32_at(bytes, 12) as usize, u32_at(bytes, 16) as usize);
        let [count, name_bytes, key_bytes] = [24, 32, 40].map(|at| size_at(bytes, at));
        let table = |start: usize, count: usize, size: usize| {
            count.checked_mul(size).and_then(|bytes| start.checked_add(bytes))
        };
        let tables = table(HEADER, splits, SPLIT).and_then(|shard_table| {
            let samples = table(shard_table, shards, SHARD)?;
            let names = table(samples, count, SAMPLE)?;
            let keys = table(names, name_bytes, 1)?;
            (table(keys, key_bytes, 1)? == body).then_some((shard_table, samples, names, keys))
        });
        let (shard_table, samples, names, keys) =
            tables.ok_or_else(|| bad(12, "the counts do not add up to the file's length"))?;

        let shards = read_shards(&bytes[shard_table..samples], &bytes[names..keys], count)
            .ok_or_else(|| bad(shard_table, "a shard record is out of bounds"))?;
        let splits = read_splits(&bytes[HEADER..shard_table], &shards, count)
            .ok_or_else(|| bad(HEADER, "a split record is out of bounds"))?;
        let folder = folder.clone();
        let index = Self {
            folder,
            path,
            splits,
            shards,
            samples,
            count,
            keys,
            key_bytes,
            fingerprint,
            bytes: file,
        };
        index.check_samples()?;
        Ok(index)
    }

    fn check_samples(&self) -> Result<(), Error> {
        let bytes = &*self.bytes;
        let mut key_start = 0;
        for (number, shard) in self.shards.iter().enumerate() {
            for sample in shard.samples.clone() {
                let at = self.samples + sample * SAMPLE;
                let end = u64_at(bytes, at).checked_add(u64::from(u32_at(bytes, at + 8)));
                let key_end = (u64_at(bytes, at + 24) & KEY_END) as usize;
                let fits = end.is_some_and(|end| end <= shard.bytes)
                    && u32_at(bytes, at + 12) as usize == number
                    && (key_start..=self.key_bytes).contains(&key_end);
                if !fits {
                    let what = format!("the record of sample {sample} is out of bounds");
                    return Err(Error::format(&self.path, at as u64, what));
                }
                key_start = key_end;
            }
        }
        Ok(())
    }

    /// Whether the index was made by scanning shards that came without one.
    pub(crate) fn is_scanned(&self) -> bool {
        u32_at(&self.bytes, 20) == 1
    }

    /// The folder's path or URL.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// Number of samples, all splits together.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True when there is no sample at all.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// XXH3-64 of the index: equal folders have equal fingerprints.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The splits, in the order they were written.
    pub fn splits(&self) -> &[SplitRecord] {
        &self.splits
    }

    /// The shards, in the order of their splits.
    pub fn shards(&self) -> &[ShardRecord] {
        &self.shards
    }

    /// One split by name.
    ///
    /// # Errors
    /// [`Error::NoSplit`], naming those that are there.
    pub fn split(&self, name: &str) -> Result<&SplitRecord, Error> {
        self.splits.iter().find(|split| split.name == name).ok_or_else(|| {
            let known: Vec<_> = self.splits.iter().map(|split| split.name.as_str()).collect();
            Error::NoSplit { dir: self.dir().into(), split: name.into(), known: known.join(", ") }
        })
    }

    /// Checks that the manifest beside this index names the same shards for a split: files that
    /// were copied one by one may come from two builds.
    pub(crate) fn agree(&self, manifest: &Manifest, split: &SplitRecord) -> Result<(), Error> {
        if manifest.splits.get(&split.name) == Some(&manifest_split(split, &self.shards)) {
            return Ok(());
        }
        let what = format!(
            "it and {INDEX_FILE} name other shards for the split {:?}: they come from two builds; \
             copy the whole data folder again",
            split.name
        );
        Err(Error::format(&self.dir().join(MANIFEST_FILE), 0, what))
    }

    /// The path or URL of one shard.
    ///
    /// # Panics
    /// When `shard` is not below the number of shards.
    pub fn shard_path(&self, shard: usize) -> PathBuf {
        self.dir().join(&self.shards[shard].name)
    }

    /// One shard, opened, or fetched as a whole where the folder is behind a URL.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Remote`].
    ///
    /// # Panics
    /// When `shard` is not below the number of shards.
    pub fn shard(&self, shard: usize) -> Result<Shard, Error> {
        let record = &self.shards[shard];
        self.folder.shard(&record.name, record.bytes)
    }

    /// The image file of one sample, alone; `sample` counts over all splits.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ShardTruncated`] or [`Error::Remote`].
    ///
    /// # Panics
    /// When `sample` is not below [`Index::len`].
    pub fn image(&self, sample: usize) -> Result<Bytes, Error> {
        let record = self.record(sample);
        let shard = &self.shards[record.shard];
        self.folder.member(&shard.name, shard.bytes, record.entry)
    }

    /// What is known of one sample; `sample` counts over all splits.
    ///
    /// # Panics
    /// When `sample` is not below [`Index::len`].
    pub fn record(&self, sample: usize) -> Record {
        assert!(sample < self.count, "sample {sample} of {}", self.count);
        let bytes = &*self.bytes;
        let at = self.samples + sample * SAMPLE;
        let label = u32_at(bytes, at + 16);
        Record {
            shard: u32_at(bytes, at + 12) as usize,
            entry: Entry { offset: u64_at(bytes, at), length: u32_at(bytes, at + 8) },
            label: (label != NO_LABEL).then_some(label),
            width: u16_at(bytes, at + 20),
            height: u16_at(bytes, at + 22),
            format: match bytes[at + 31] {
                1 => Format::Jpeg,
                2 => Format::Png,
                _ => Format::Unknown,
            },
        }
    }

    /// The key of one sample. Bytes that are not UTF-8 are shown as replacement characters.
    ///
    /// # Panics
    /// When `sample` is not below [`Index::len`].
    pub fn key(&self, sample: usize) -> std::borrow::Cow<'_, str> {
        assert!(sample < self.count, "sample {sample} of {}", self.count);
        let bytes = &*self.bytes;
        let end_of =
            |sample: usize| (u64_at(bytes, self.samples + sample * SAMPLE + 24) & KEY_END) as usize;
        let start = if sample == 0 { 0 } else { end_of(sample - 1) };
        String::from_utf8_lossy(&bytes[self.keys + start..self.keys + end_of(sample)])
    }

    /// The position of a key, searched from the first sample on.
    pub fn find(&self, key: &str) -> Option<usize> {
        (0..self.count).find(|&sample| self.key(sample) == key)
    }
}

fn read_shards(table: &[u8], names: &[u8], count: usize) -> Option<Vec<ShardRecord>> {
    let (mut name_start, mut first) = (0, 0);
    let read = |record: &[u8]| {
        let [start, samples, name_end] = [16, 24, 32].map(|at| size_at(record, at));
        let name = std::str::from_utf8(names.get(name_start..name_end)?).ok()?.to_string();
        let end = start.checked_add(samples).filter(|&end| end <= count && start == first)?;
        // A name is a file of this folder, never a way out of it.
        if name.is_empty() || name.contains(['/', '\\']) || name == ".." {
            return None;
        }
        (name_start, first) = (name_end, end);
        let (bytes, xxh3) = (u64_at(record, 0), u64_at(record, 8));
        Some(ShardRecord { name, bytes, xxh3, samples: start..end })
    };
    let shards: Option<Vec<_>> = table.chunks_exact(SHARD).map(read).collect();
    shards.filter(|shards| shards.last().map_or(0, |shard| shard.samples.end) == count)
}

fn read_splits(table: &[u8], shards: &[ShardRecord], count: usize) -> Option<Vec<SplitRecord>> {
    let (mut first_sample, mut first_shard) = (0, 0);
    let read = |record: &[u8]| {
        let name = record[..16].split(|&byte| byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).ok()?.to_string();
        let samples = size_at(record, 16)..size_at(record, 16).checked_add(size_at(record, 24))?;
        let (start, length) = (u32_at(record, 32) as usize, u32_at(record, 36) as usize);
        let split_shards = start..start.checked_add(length)?;
        let end = shards.get(split_shards.clone())?.last().map_or(first_sample, |s| s.samples.end);
        if samples != (first_sample..end) || start != first_shard {
            return None;
        }
        (first_sample, first_shard) = (end, split_shards.end);
        Some(SplitRecord { name, samples, shards: split_shards })
    };
    let splits: Option<Vec<_>> = table.chunks_exact(SPLIT).map(read).collect();
    splits.filter(|splits| {
        let last = splits.last();
        last.map_or(0, |split| split.samples.end) == count
            && last.map_or(0, |split| split.shards.end) == shards.len()
    })
}

/// Gathers an index while shards are written, split after split and shard after shard:
/// [`begin_split`](Self::begin_split), then for each shard its [`sample`](Self::sample)s and
/// [`end_shard`](Self::end_shard), and [`write`](Self::write) at the end.
#[derive(Debug, Default)]
pub struct IndexWriter {
    splits: Vec<SplitRecord>,
    shards: Vec<ShardRecord>,
    samples: Vec<u8>,
    keys: Vec<u8>,
    key_ends: Vec<usize>,
    origin: u32,
}

impl IndexWriter {
    /// An index of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a split; the shards that follow belong to it.
    ///
    /// # Errors
    /// [`Error::Config`] when the name is empty, longer than 16 bytes, or already there.
    pub fn begin_split(&mut self, name: &str) -> Result<(), Error> {
        let known = self.splits.iter().any(|split| split.name == name);
        if name.is_empty() || name.len() > 16 || name.contains(['\0', '/', '-', '.']) || known {
            let problem = format!(
                "split name {name:?}: 1 to 16 bytes without '-', '.' and '/', each name once"
            );
            return Err(Error::Config { problem });
        }
        let (sample, shard) = (self.key_ends.len(), self.shards.len());
        let name = name.to_string();
        self.splits.push(SplitRecord { name, samples: sample..sample, shards: shard..shard });
        Ok(())
    }

    /// Adds a sample to the shard in work. Sizes beyond `u16` are stored as unknown.
    pub fn sample(
        &mut self,
        key: &str,
        entry: Entry,
        label: Option<u32>,
        format: Format,
        (width, height): (u32, u32),
    ) {
        self.keys.extend_from_slice(key.as_bytes());
        self.key_ends.push(self.keys.len());
        let size = |side: u32| u16::try_from(side).unwrap_or(0).to_le_bytes();
        let tag = (format as u64) << 56 | self.keys.len() as u64 & KEY_END;
        self.samples.extend_from_slice(&entry.offset.to_le_bytes());
        self.samples.extend_from_slice(&entry.length.to_le_bytes());
        self.samples.extend_from_slice(&(self.shards.len() as u32).to_le_bytes());
        self.samples.extend_from_slice(&label.unwrap_or(NO_LABEL).to_le_bytes());
        self.samples.extend_from_slice(&size(width));
        self.samples.extend_from_slice(&size(height));
        self.samples.extend_from_slice(&tag.to_le_bytes());
    }

    /// Closes the shard in work: it holds the samples added since the last one.
    ///
    /// # Errors
    /// [`Error::Config`] when no split was begun or the name is not a plain file name.
    pub fn end_shard(&mut self, name: &str, written: Written) -> Result<(), Error> {
        let Some(split) = self.splits.last_mut() else {
            return Err(Error::Config { problem: format!("shard {name:?} belongs to no split") });
        };
        if name.is_empty() || name.contains(['/', '\\']) || name == ".." {
            return Err(Error::Config { problem: format!("{name:?} is not a plain file name") });
        }
        let first = self.shards.last().map_or(0, |shard| shard.samples.end);
        let samples = first..self.key_ends.len();
        split.samples.end = samples.end;
        split.shards.end = self.shards.len() + 1;
        let Written { bytes, xxh3 } = written;
        self.shards.push(ShardRecord { name: name.to_string(), bytes, xxh3, samples });
        Ok(())
    }

    /// Number of samples so far.
    pub fn len(&self) -> usize {
        self.key_ends.len()
    }

    /// True before the first sample.
    pub fn is_empty(&self) -> bool {
        self.key_ends.is_empty()
    }

    /// Writes `DIR/index.bin`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::DuplicateKey`] when a split holds a key twice, [`Error::Io`] when writing fails.
    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        self.check_keys(dir)?;
        write_atomically(&dir.join(INDEX_FILE), &self.to_bytes())
    }

    /// Marks the index as made from shards that came without one.
    pub(crate) fn scanned(self) -> Self {
        Self { origin: 1, ..self }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let names: Vec<u8> = self.shards.iter().flat_map(|s| s.name.bytes()).collect();
        let mut out = Vec::with_capacity(HEADER + self.samples.len() + self.keys.len() + 4096);
        out.extend_from_slice(MAGIC);
        for value in [VERSION, self.splits.len() as u32, self.shards.len() as u32, self.origin] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        for value in [self.key_ends.len(), names.len(), self.keys.len(), 0, 0] {
            out.extend_from_slice(&(value as u64).to_le_bytes());
        }
        for split in &self.splits {
            let mut name = [0; 16];
            name[..split.name.len()].copy_from_slice(split.name.as_bytes());
            out.extend_from_slice(&name);
            out.extend_from_slice(&(split.samples.start as u64).to_le_bytes());
            out.extend_from_slice(&(split.samples.len() as u64).to_le_bytes());
            out.extend_from_slice(&(split.shards.start as u32).to_le_bytes());
            out.extend_from_slice(&(split.shards.len() as u32).to_le_bytes());
        }
        let mut name_end = 0;
        for shard in &self.shards {
            name_end += shard.name.len();
            let (start, samples) = (shard.samples.start as u64, shard.samples.len() as u64);
            for value in [shard.bytes, shard.xxh3, start, samples, name_end as u64] {
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        out.extend_from_slice(&self.samples);
        out.extend_from_slice(&names);
        out.extend_from_slice(&self.keys);
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    pub(crate) fn check_keys(&self, dir: &Path) -> Result<(), Error> {
        let key = |sample: usize| {
            let start = if sample == 0 { 0 } else { self.key_ends[sample - 1] };
            &self.keys[start..self.key_ends[sample]]
        };
        let shard = |sample: usize| {
            let number = self.shards.partition_point(|shard| shard.samples.end <= sample);
            dir.join(&self.shards[number].name)
        };
        for split in &self.splits {
            let mut seen = HashMap::with_capacity(split.samples.len());
            for sample in split.samples.clone() {
                if let Some(first) = seen.insert(key(sample), sample) {
                    return Err(Error::DuplicateKey {
                        key: String::from_utf8_lossy(key(sample)).into_owned(),
                        first: shard(first),
                        second: shard(sample),
                    });
                }
            }
        }
        Ok(())
    }

    /// What a manifest says of the splits gathered here.
    pub fn manifest_splits(&self) -> BTreeMap<String, ManifestSplit> {
        let split = |split: &SplitRecord| manifest_split(split, &self.shards);
        self.splits.iter().map(|record| (record.name.clone(), split(record))).collect()
    }
}

/// What a manifest says of a split; `shards` are those of the whole folder.
fn manifest_split(split: &SplitRecord, shards: &[ShardRecord]) -> ManifestSplit {
    let shard = |shard: &ShardRecord| ManifestShard {
        name: shard.name.clone(),
        bytes: shard.bytes,
        samples: shard.samples.len() as u64,
        xxh3: format!("{:016x}", shard.xxh3),
    };
    ManifestSplit {
        samples: split.samples.len() as u64,
        shards: shards[split.shards.clone()].iter().map(shard).collect(),
    }
}

/// `manifest.json`: what a data folder holds and how it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this file's layout; 1.
    pub format: u32,
    /// The program that wrote the folder.
    pub tool: String,
    /// Its version.
    pub version: String,
    /// Where the images came from, in words.
    pub source: String,
    /// The options that shaped the folder.
    pub options: BTreeMap<String, serde_json::Value>,
    /// Seed of the order in which samples were laid down.
    pub seed: u64,
    /// Number of classes.
    pub classes: u64,
    /// The splits by name.
    pub splits: BTreeMap<String, ManifestSplit>,
}

/// One split in a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestSplit {
    /// Number of samples.
    pub samples: u64,
    /// Its shards, in order.
    pub shards: Vec<ManifestShard>,
}

/// One shard in a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestShard {
    /// File name.
    pub name: String,
    /// Size of the file.
    pub bytes: u64,
    /// Number of samples.
    pub samples: u64,
    /// XXH3-64 of the file, 16 hexadecimal digits.
    pub xxh3: String,
}

impl Manifest {
    /// Version of the layout that this program writes and reads.
    pub const FORMAT: u32 = 1;

    /// Reads `DIR/manifest.json`. `dir` may be a URL.
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::Io`], [`Error::Remote`], [`Error::Json`], or [`Error::Format`]
    /// for another version.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let folder = Folder::open(dir, &RemoteOptions::default())?;
        Self::load_from(&folder)?.ok_or_else(|| missing(&dir.join(MANIFEST_FILE)))
    }

    pub(crate) fn load_from(folder: &Folder) -> Result<Option<Self>, Error> {
        let path = folder.path().join(MANIFEST_FILE);
        let Some(manifest) = load_json::<Self>(folder, MANIFEST_FILE)? else { return Ok(None) };
        if manifest.format != Self::FORMAT {
            let what =
                format!("manifest format {}, this program reads {}", manifest.format, Self::FORMAT);
            return Err(Error::format(&path, 0, what));
        }
        Ok(Some(manifest))
    }

    /// Writes `DIR/manifest.json`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`].
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        save_json(&dir.join(MANIFEST_FILE), self)
    }
}

/// One class of a data folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// The number in the `.cls` members.
    pub class: u32,
    /// Its short name: a WordNet id, a folder, a word.
    pub name: String,
    /// What people call it, where known.
    pub words: Option<String>,
}

/// `classes.json`: the classes of a data folder, number n at position n.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Classes(pub Vec<Class>);

impl Classes {
    /// Reads `DIR/classes.json`. `dir` may be a URL.
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::Io`], [`Error::Remote`], [`Error::Json`], or [`Error::Format`]
    /// when a class is not at its number.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let folder = Folder::open(dir, &RemoteOptions::default())?;
        Self::load_from(&folder)?.ok_or_else(|| missing(&dir.join(CLASSES_FILE)))
    }

    pub(crate) fn load_from(folder: &Folder) -> Result<Option<Self>, Error> {
        let path = folder.path().join(CLASSES_FILE);
        let Some(classes) = load_json::<Self>(folder, CLASSES_FILE)? else { return Ok(None) };
        for (position, class) in classes.0.iter().enumerate() {
            if class.class as usize != position {
                let what = format!("class {} stands at position {position}", class.class);
                return Err(Error::format(&path, 0, what));
            }
        }
        Ok(Some(classes))
    }

    /// Writes `DIR/classes.json`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`].
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        save_json(&dir.join(CLASSES_FILE), self)
    }
}

fn load_json<T: serde::de::DeserializeOwned>(
    folder: &Folder,
    name: &str,
) -> Result<Option<T>, Error> {
    let Some(file) = folder.file(name, true)? else { return Ok(None) };
    let value = serde_json::from_slice(&file);
    value.map(Some).map_err(|source| Error::Json { path: folder.path().join(name), source })
}

fn missing(path: &Path) -> Error {
    Error::io("read", path)(std::io::ErrorKind::NotFound.into())
}

fn save_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    bytes.push(b'\n');
    write_atomically(path, &bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn size_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64_at(bytes, at)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
