//! One split of a data folder, ready to be read: its part of the index and its mapped shards.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::SampleId;
use crate::error::{Error, Fault};
use crate::index::{CLASSES_FILE, Classes, Index, Record, SplitRecord};
use crate::scan;
use crate::shard::Shard;

/// One split of a data folder.
#[derive(Debug)]
pub struct Dataset {
    index: Index,
    split: SplitRecord,
    shards: Vec<Shard>, // of this split, in order
    classes: Vec<String>,
}

impl Dataset {
    /// Opens the folder, checks its index (made now, where the shards came without one), and maps every shard of the split after checking that
    /// it is there and has the length the index was made for.
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::EmptyFolder`], [`Error::NoSplit`], [`Error::ShardLength`],
    /// [`Error::ShardTruncated`], [`Error::DuplicateKey`], [`Error::Format`], [`Error::Json`] or
    /// [`Error::Io`].
    pub fn open(dir: &Path, split: &str) -> Result<Self, Error> {
        let index = scan::open_or_scan(dir)?;
        let split = index.split(split)?.clone();
        let open = |number: usize| {
            let shard = Shard::map(&index.shard_path(number))?;
            let (found, expected) = (shard.as_bytes().len() as u64, index.shards()[number].bytes);
            if found != expected {
                let shard = shard.path().to_path_buf();
                return Err(Error::ShardLength { shard, found, expected });
            }
            Ok(shard)
        };
        let shards = split.shards.clone().map(open).collect::<Result<_, _>>()?;
        let mut data = Self { index, split, shards, classes: Vec::new() };
        data.check_ends()?;
        data.classes = if dir.join(CLASSES_FILE).exists() {
            Classes::load(dir)?.0.into_iter().map(|class| class.name).collect()
        } else {
            // Without a list, the classes are the numbers that occur.
            let labels = data.split.samples.clone().filter_map(|s| data.index.record(s).label);
            (0..labels.max().map_or(0, |most| u64::from(most) + 1)).map(|n| n.to_string()).collect()
        };
        Ok(data)
    }

    /// Checks that each shard's first and last sample lie where the index says: a shard of the right
    /// length may still be another one.
    fn check_ends(&self) -> Result<(), Error> {
        if self.index.is_scanned() {
            return Ok(()); // made from these very shards, whose names may need more than a header
        }
        for (shard, number) in self.shards.iter().zip(self.split.shards.clone()) {
            let samples = self.index.shards()[number].samples.clone();
            for sample in samples.clone().next().into_iter().chain(samples.last()) {
                let (key, entry) = (self.index.key(sample), self.index.record(sample).entry);
                match shard.member_at(entry)? {
                    Some(name) if name == key => {}
                    found => {
                        let found = found.unwrap_or_else(|| "none".into());
                        let what = format!(
                            "the index has sample {key:?} here, the shard {found:?}: one of them was \
                             replaced; build the folder again"
                        );
                        return Err(Error::format(shard.path(), entry.offset, what));
                    }
                }
            }
        }
        Ok(())
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.split.samples.len()
    }

    /// True when the split holds no sample.
    pub fn is_empty(&self) -> bool {
        self.split.samples.is_empty()
    }

    /// Name of the split.
    pub fn split(&self) -> &str {
        &self.split.name
    }

    /// The index of the whole folder.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Short names of the classes; class n at position n.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Class number of a sample.
    ///
    /// # Panics
    /// When `sample` is not below [`Dataset::len`].
    pub fn label(&self, sample: SampleId) -> Option<i64> {
        self.record(sample).label.map(i64::from)
    }

    /// What the index says of a sample.
    ///
    /// # Panics
    /// When `sample` is not below [`Dataset::len`].
    pub fn record(&self, sample: SampleId) -> Record {
        self.index.record(self.place(sample))
    }

    /// Key of a sample.
    ///
    /// # Panics
    /// When `sample` is not below [`Dataset::len`].
    pub fn key(&self, sample: SampleId) -> String {
        self.index.key(self.place(sample)).into_owned()
    }

    /// The sample with this key.
    pub fn find(&self, key: &str) -> Option<SampleId> {
        (0..self.len() as SampleId).find(|&sample| self.index.key(self.place(sample)) == key)
    }

    /// The image file of a sample, from the mapped shard.
    ///
    /// # Errors
    /// [`Error::ShardTruncated`].
    ///
    /// # Panics
    /// When `sample` is not below [`Dataset::len`].
    pub fn bytes(&self, sample: SampleId) -> Result<&[u8], Error> {
        let record = self.record(sample);
        self.shard(&record).bytes(record.entry)
    }

    /// A hash of the index and the split: data that would give other batches have another one.
    pub fn fingerprint(&self) -> u64 {
        xxh3_64_with_seed(self.split.name.as_bytes(), self.index.fingerprint())
    }

    /// The report on a sample that cannot be decoded.
    ///
    /// # Panics
    /// When `sample` is not below [`Dataset::len`].
    pub fn fault(&self, sample: SampleId, source: Fault) -> Error {
        let record = self.record(sample);
        Error::Sample {
            shard: self.shard(&record).path().to_path_buf(),
            sample,
            key: self.key(sample),
            offset: record.entry.offset,
            length: record.entry.length,
            source,
        }
    }

    /// Samples of each shard, in order.
    pub(crate) fn shard_sizes(&self) -> Vec<usize> {
        let shards = &self.index.shards()[self.split.shards.clone()];
        shards.iter().map(|shard| shard.samples.len()).collect()
    }

    /// Asks the system to read the sample's pages; returns at once.
    pub(crate) fn will_need(&self, sample: SampleId) {
        let record = self.record(sample);
        self.shard(&record).will_need(record.entry);
    }

    /// Gives the sample's pages back.
    pub(crate) fn release(&self, sample: SampleId) {
        let record = self.record(sample);
        self.shard(&record).release(record.entry);
    }

    fn shard(&self, record: &Record) -> &Shard {
        &self.shards[record.shard - self.split.shards.start]
    }

    fn place(&self, sample: SampleId) -> usize {
        assert!(sample < self.len() as u64, "sample {sample} of {}", self.len());
        self.split.samples.start + sample as usize
    }
}
