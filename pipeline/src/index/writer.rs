//! An index in the making.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use common::files::replace_file;
use xxhash_rust::xxh3::xxh3_64;

use super::manifest::{ManifestSplit, manifest_split};
use super::scan::{Scan, Stamp};
use super::{
    Format, HEADER, INDEX_FILE, KEY_END, MAGIC, NO_LABEL, ShardRecord, SplitRecord, VERSION,
    VERSION_SCANNED,
};
use crate::error::Error;
use crate::shard::{Entry, Written};

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
    /// Of shards that came without an index.
    scan: Option<(Vec<Stamp>, Scan)>,
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
        let path = dir.join(INDEX_FILE);
        replace_file(&path, &self.to_bytes()).map_err(Error::io("write", &path))
    }

    /// Marks the index as made from shards that came without one.
    pub(super) fn scanned(self, stamps: Vec<Stamp>, scan: Scan) -> Self {
        Self { scan: Some((stamps, scan)), ..self }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let names: Vec<u8> = self.shards.iter().flat_map(|s| s.name.bytes()).collect();
        let mut out = Vec::with_capacity(HEADER + self.samples.len() + self.keys.len() + 4096);
        out.extend_from_slice(MAGIC);
        // A note is never empty, which tells the versions apart as well.
        let note = self.scan.as_ref().map(|(_, scan)| serde_json::to_vec(scan).unwrap_or_default());
        let note = note.unwrap_or_default();
        let (version, origin) =
            if self.scan.is_some() { (VERSION_SCANNED, 1) } else { (VERSION, 0) };
        for value in [version, self.splits.len() as u32, self.shards.len() as u32, origin] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        for value in [self.key_ends.len(), names.len(), self.keys.len(), note.len(), 0] {
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
        if let Some((stamps, _)) = &self.scan {
            write_stamps(&mut out, stamps);
        }
        out.extend_from_slice(&note);
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    pub(super) fn check_keys(&self, dir: &Path) -> Result<(), Error> {
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

pub(super) fn write_stamps(out: &mut Vec<u8>, stamps: &[Stamp]) {
    for Stamp { mtime, inode, hash } in stamps {
        out.extend_from_slice(&mtime.to_le_bytes());
        out.extend_from_slice(&inode.to_le_bytes());
        out.extend_from_slice(&hash.to_le_bytes());
    }
}
