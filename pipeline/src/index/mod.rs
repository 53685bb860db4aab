//! The index of a data folder: where each sample's bytes lie, its label, size and key.
//!
//! A folder holds `SPLIT-000000.tar` ..., and beside them `index.bin`, `manifest.json` and
//! `classes.json`. The binary index is all that reading needs; the JSON files are for people and
//! for programs that fetch shards.
//!
//! # Layout of `index.bin`
//! Little-endian, no padding between the parts; all offsets follow from the counts in the header.
//! ```text
//! header     64 bytes  magic "BBGINDEX", version u32 (1, or 2 = with stamps and notes), splits u32,
//!                      shards u32, origin u32 (0 = written with the shards, 1 = made by scanning
//!                      them), samples u64, name bytes u64, key bytes u64, note bytes u64, zero
//!                      to the end
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
//! stamps     24 each, one per shard: time of its last change i64 (nanoseconds since 1970, the least
//!            number = not known), inode u64, XXH3-64 of its samples u64; version 2 alone
//! note       JSON, how the shards were scanned and what was passed over; version 2 alone
//! checksum   XXH3-64 of everything before
//! ```
//! A folder that was built has version 1, one that was scanned version 2. Scanned indexes of version
//! 1 lack what tells whether a shard has changed, so they are made again.
//!
//! The samples of a split and of a shard are contiguous, and shards follow in the order of
//! their splits.

mod manifest;
mod records;
mod scan;
mod tables;
mod writer;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::address::RemoteOptions;
use crate::container::{Choice, MAX_CLASSES};
use crate::error::Error;
use crate::folder::Folder;
use crate::shard::{Entry, Shard};

pub use manifest::{
    CLASSES_FILE, Class, Classes, MANIFEST_FILE, Manifest, ManifestShard, ManifestSplit,
};
pub use records::{Format, Record, ShardRecord, SplitRecord};
pub use scan::Scan;
use scan::Stamp;
use tables::{Tables, fingerprint, read_shards, read_splits, read_stamp, size_at, u16_at};
pub(crate) use tables::{u32_at, u64_at};
pub use writer::IndexWriter;

const MAGIC: &[u8; 8] = b"BBGINDEX";
const VERSION: u32 = 1;
/// With stamps and notes.
const VERSION_SCANNED: u32 = 2;
const HEADER: usize = 64;
const SPLIT: usize = 40;
const SHARD: usize = 40;
const SAMPLE: usize = 32;
const STAMP: usize = 24;
const CHECKSUM: usize = 8;
const NO_LABEL: u32 = u32::MAX;
const KEY_END: u64 = (1 << 40) - 1;

/// Name of the binary index in a data folder.
pub const INDEX_FILE: &str = "index.bin";

/// The index of a data folder, in memory.
#[derive(Debug)]
pub struct Index {
    folder: Folder,
    path: PathBuf,
    file: Vec<u8>,
    splits: Vec<SplitRecord>,
    shards: Vec<ShardRecord>,
    samples: usize, // first byte of the sample table
    count: usize,
    keys: usize, // first byte of the key table
    key_bytes: usize,
    fingerprint: u64,
    /// Of the shards of a scanned folder; none in version 1.
    stamps: Vec<Stamp>,
    scan: Option<Scan>,
}

impl Index {
    /// Opens `DIR/index.bin` and checks all of it: checksum, counts, and every record's bounds.
    /// `dir` may be a URL.
    ///
    /// A folder of this machine that holds WebDataset shards of another program gets its index now,
    /// and again when its shards changed: headers and labels are read as [`crate::container`] says,
    /// and the index is kept beside the shards, or in the user's cache where that cannot be
    /// written. Keys that come again in a split get their shard's name in front. What was passed
    /// over is in [`Index::scan`].
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::EmptyFolder`] (neither index nor shards), [`Error::Io`],
    /// [`Error::Remote`], or [`Error::Format`] where a file breaks its layout; for shards of another
    /// program also [`Error::Foreign`] and [`Error::ShardTruncated`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_in(&Folder::open(dir, &RemoteOptions::default())?)
    }

    /// Makes the index of a folder of another program's shards anew, with other members chosen for
    /// images and labels; whatever opens the folder later keeps to them.
    ///
    /// # Errors
    /// As [`Index::open`]; and [`Error::Foreign`] for a folder that was built, or is behind a URL.
    pub fn make(dir: &Path, choice: &Choice) -> Result<Self, Error> {
        scan::make(&Folder::open(dir, &RemoteOptions::default())?, choice)
    }

    /// [`Index::open`] for a folder that is open.
    pub(crate) fn open_in(folder: &Folder) -> Result<Self, Error> {
        scan::open(folder)
    }

    /// The index file of a folder, as it is.
    fn read_in(folder: &Folder) -> Result<Self, Error> {
        let file = folder.file(INDEX_FILE, false)?;
        let file = file.ok_or_else(|| Error::EmptyFolder { dir: folder.path().to_path_buf() })?;
        Self::parse(folder, folder.path().join(INDEX_FILE), file)
    }

    /// The same for an index that lies elsewhere than its shards.
    fn read_at(folder: &Folder, path: &Path) -> Result<Self, Error> {
        let file = std::fs::read(path).map_err(Error::io("read", path))?;
        Self::parse(folder, path.to_path_buf(), file)
    }

    fn parse(folder: &Folder, path: PathBuf, bytes: Vec<u8>) -> Result<Self, Error> {
        let bad = |offset: usize, what: &str| {
            let what = format!("{what}; build the folder again");
            Error::format(&path, offset as u64, what)
        };
        if bytes.len() < HEADER + CHECKSUM || &bytes[..8] != MAGIC {
            return Err(bad(0, "not an index of shards"));
        }
        let (version, origin) = (u32_at(&bytes, 8), u32_at(&bytes, 20));
        if ![VERSION, VERSION_SCANNED].contains(&version) {
            let what = format!(
                "index version {version}, this program reads {VERSION} and {VERSION_SCANNED}"
            );
            return Err(bad(8, &what));
        }
        let body = bytes.len() - CHECKSUM;
        let checksum = u64_at(&bytes, body);
        if xxh3_64(&bytes[..body]) != checksum {
            return Err(bad(body, "the checksum does not match: the index is damaged or cut"));
        }
        let [count, key_bytes, note_bytes] = [24, 40, 48].map(|at| size_at(&bytes, at));
        let stamped = version == VERSION_SCANNED;
        if stamped != (note_bytes > 0) || stamped && origin != 1 {
            return Err(bad(8, "the version does not fit what follows"));
        }
        let Tables { shards: shard_table, samples, names, keys, stamps, note } =
            Tables::of(&bytes, stamped, body)
                .ok_or_else(|| bad(12, "the counts do not add up to the file's length"))?;

        let shards = read_shards(&bytes[shard_table..samples], &bytes[names..keys], count)
            .ok_or_else(|| bad(shard_table, "a shard record is out of bounds"))?;
        let splits = read_splits(&bytes[HEADER..shard_table], &shards, count)
            .ok_or_else(|| bad(HEADER, "a split record is out of bounds"))?;
        let scan = match &bytes[note..body] {
            [] => None,
            text => {
                Some(serde_json::from_slice(text).map_err(|_| bad(note, "the note is no JSON"))?)
            }
        };
        // Of what is the same wherever and whenever the shards were copied.
        let fingerprint = if stamped { fingerprint(&bytes[..stamps]) } else { checksum };
        let stamps = bytes[stamps..note].chunks_exact(STAMP).map(read_stamp).collect();
        let (folder, file) = (folder.clone(), bytes);
        let index = Self {
            folder,
            path,
            file,
            splits,
            shards,
            samples,
            count,
            keys,
            key_bytes,
            fingerprint,
            stamps,
            scan,
        };
        index.check_samples()?;
        Ok(index)
    }

    fn check_samples(&self) -> Result<(), Error> {
        let bytes = &self.file[..];
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
                let label = u32_at(bytes, at + 16);
                if label >= MAX_CLASSES && label != NO_LABEL {
                    let most = MAX_CLASSES - 1;
                    let what = format!(
                        "sample {sample} has label {label}, and {most} is the largest; build the folder again"
                    );
                    return Err(Error::format(&self.path, at as u64 + 16, what));
                }
                key_start = key_end;
            }
        }
        Ok(())
    }

    /// Where a file that goes with the index may lie: in the folder by this name, or in the user's cache by
    /// this extension. None behind a URL.
    pub(crate) fn places(&self, name: &str, extension: &str) -> Option<Vec<PathBuf>> {
        let Folder::Local(dir) = &self.folder else { return None };
        let cached = scan::cache_path(dir).map(|path| path.with_extension(extension));
        Some([dir.join(name)].into_iter().chain(cached).collect())
    }

    /// Whether the index was made by scanning shards that came without one.
    pub fn is_scanned(&self) -> bool {
        u32_at(&self.file, 20) == 1
    }

    /// How the index was made of shards that came without one; none where it was built with them, or
    /// by an older version.
    pub fn scan(&self) -> Option<&Scan> {
        self.scan.as_ref()
    }

    /// The classes that `classes.json` beside the index names; none where there is no such file.
    ///
    /// # Errors
    /// As [`Classes::load`], where the file is there.
    pub fn classes(&self) -> Result<Option<Classes>, Error> {
        Classes::load_from(&self.folder)
    }

    fn stamps(&self) -> &[Stamp] {
        &self.stamps
    }

    /// The bytes of this index, with other stamps.
    fn restamped(&self, stamps: &[Stamp]) -> Vec<u8> {
        let table = self.keys + self.key_bytes;
        let mut bytes = self.file[..table].to_vec();
        writer::write_stamps(&mut bytes, stamps);
        bytes.extend_from_slice(
            &self.file[table + self.stamps.len() * STAMP..self.file.len() - CHECKSUM],
        );
        let checksum = xxh3_64(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Checks that every label of a split is the number of a class.
    pub(crate) fn check_classes(
        &self,
        split: &SplitRecord,
        classes: &Classes,
    ) -> Result<(), Error> {
        let count = classes.0.len();
        let label = |sample| self.record(sample).label.map(|label| (sample, label));
        match split.samples.clone().filter_map(label).find(|&(_, label)| label as usize >= count) {
            None => Ok(()),
            Some((sample, label)) => {
                let key = self.key(sample);
                let what = format!(
                    "{count} classes, but sample {key:?} has label {label}: mend the list, or remove it \
                     and classes are called by their numbers"
                );
                Err(Error::format(&self.dir().join(CLASSES_FILE), 0, what))
            }
        }
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

    /// XXH3-64 of all that the index says of samples: equal folders have equal fingerprints.
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
        if manifest.splits.get(&split.name) == Some(&manifest::manifest_split(split, &self.shards))
        {
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

    /// One shard, mapped into memory, or fetched as a whole where the folder is behind a URL.
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
        let bytes = &self.file[..];
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
        let bytes = &self.file[..];
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

#[cfg(test)]
mod tests;
