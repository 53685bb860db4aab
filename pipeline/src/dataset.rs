//! One split of a data folder, ready to be read: its part of the index, and its shards.

mod members;

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub use self::members::SampleMember;
use crate::SampleId;
use crate::address::{RemoteOptions, Traffic};
use crate::decode::SeekPoints;
use crate::error::{Error, Fault};
use crate::folder::Folder;
use crate::index::{Classes, Index, Manifest, Record, SplitRecord};
use crate::remote::Remote;
use crate::seek::SeekFile;
use crate::shard::{Entry, HEADER, Shard, member_key};

/// Bytes of a part: neighbouring samples of a shard that are read together where all are needed,
/// and that a cache folder keeps as one file. 4 MiB take longer to send than to ask for.
const PART: u64 = 4 << 20;

/// One split of a data folder.
#[derive(Debug)]
pub struct Dataset {
    index: Index,
    split: SplitRecord,
    source: Source,
    classes: Vec<String>,
}

/// Where the bytes of samples come from.
#[derive(Debug)]
enum Source {
    /// The split's shards in order, open, and the members of each, by key, once they were asked for.
    /// And the seek points of all samples, if there are any.
    Local { shards: Vec<Shard>, members: Vec<OnceLock<Vec<SampleMember>>>, seek: Option<SeekFile> },
    /// The server, and the first sample of each part in order.
    Remote { remote: Arc<Remote>, parts: Vec<SampleId> },
}

/// Bytes of a shard behind a URL that hold a sample, header included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its shard, a position in [`Index::shards`].
    pub(crate) shard: usize,
    /// The part of the shard it lies in.
    pub(crate) part: Range<u64>,
    /// Its own bytes.
    pub(crate) range: Range<u64>,
}

impl Dataset {
    /// Opens the folder at a path or URL with the default [`RemoteOptions`].
    ///
    /// # Errors
    /// As [`Dataset::open_with`].
    pub fn open(dir: &Path, split: &str) -> Result<Self, Error> {
        Self::open_with(dir, split, &RemoteOptions::default())
    }

    /// Opens the folder and checks its index (made now, where the shards of a folder of this
    /// machine came without one). Shards of this machine are opened, after a check that each is
    /// there and has the length the index was made for.
    ///
    /// `dir` may be a URL (`http://`, `https://`, `s3://`, `gs://`, `az://`), read as `options`
    /// say. Then `index.bin` must be there, for shards are not listed and names come from it; a
    /// `manifest.json` beside it must name the same ones. The length of a shard is checked with
    /// each answer, and each sample by the header before it.
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::EmptyFolder`], [`Error::NoSplit`], [`Error::ShardLength`],
    /// [`Error::ShardTruncated`], [`Error::DuplicateKey`], [`Error::Format`], [`Error::Json`],
    /// [`Error::Io`], [`Error::Remote`], or [`Error::Config`] for options out of range.
    pub fn open_with(dir: &Path, split: &str, options: &RemoteOptions) -> Result<Self, Error> {
        let folder = Folder::open(dir, options)?;
        let index = Index::open_in(&folder)?;
        let split = index.split(split)?.clone();
        let source = match &folder {
            Folder::Local(_) => {
                let shards = open_shards(&index, &split)?;
                let members = shards.iter().map(|_| OnceLock::new()).collect();
                Source::Local { shards, members, seek: SeekFile::open(&index) }
            }
            Folder::Remote(remote) => {
                if let Some(manifest) = Manifest::load_from(&folder)? {
                    index.agree(&manifest, &split)?;
                }
                Source::Remote { remote: Arc::clone(remote), parts: parts(&index, &split) }
            }
        };
        let mut data = Self { index, split, source, classes: Vec::new() };
        data.check_ends()?;
        data.classes = match Classes::load_from(&folder)? {
            Some(classes) => {
                data.index.check_classes(&data.split, &classes)?;
                classes.0.into_iter().map(|class| class.name).collect()
            }
            None => {
                // Without a list, the classes are the numbers that occur.
                let labels = data.split.samples.clone().filter_map(|s| data.index.record(s).label);
                let count = labels.max().map_or(0, |most| u64::from(most) + 1);
                (0..count).map(|n| n.to_string()).collect()
            }
        };
        Ok(data)
    }

    /// Checks that each shard's first and last sample lie where the index says: a shard of the right
    /// length may still be another one.
    fn check_ends(&self) -> Result<(), Error> {
        if self.index.is_scanned() {
            return Ok(()); // made from these very shards, whose names may need more than a header
        }
        let Source::Local { shards, .. } = &self.source else { return Ok(()) };
        for (shard, number) in shards.iter().zip(self.split.shards.clone()) {
            let samples = self.index.shards()[number].samples.clone();
            for sample in samples.clone().next().into_iter().chain(samples.last()) {
                let (key, entry) = (self.index.key(sample), self.index.record(sample).entry);
                let found = shard.member_at(entry)?;
                if found.as_deref() != Some(&*key) {
                    return Err(Error::format(shard.path(), entry.offset, replaced(&key, found)));
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
        self.index.record(self.position(sample))
    }

    /// Key of a sample.
    ///
    /// # Panics
    /// When `sample` is not below [`Dataset::len`].
    pub fn key(&self, sample: SampleId) -> String {
        self.index.key(self.position(sample)).into_owned()
    }

    /// The sample with this key.
    pub fn find(&self, key: &str) -> Option<SampleId> {
        (0..self.len() as SampleId).find(|&sample| self.index.key(self.position(sample)) == key)
    }

    /// The image file of a sample: read now, or, behind a URL, fetched.
    ///
    /// # Errors
    /// [`Error::ShardTruncated`], [`Error::Format`] or [`Error::Remote`].
    ///
    /// # Panics
    /// When `sample` is not below [`Dataset::len`].
    pub fn bytes(&self, sample: SampleId) -> Result<Bytes, Error> {
        match &self.source {
            Source::Local { shards, .. } => {
                let record = self.record(sample);
                shards[record.shard - self.split.shards.start].read(record.entry)
            }
            Source::Remote { .. } => self.bytes_unless(sample, std::future::pending()),
        }
    }

    /// The same behind a URL, but an error as soon as `stop` comes.
    ///
    /// # Panics
    /// When the data set is of this machine.
    pub(crate) fn bytes_unless(
        &self,
        sample: SampleId,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Bytes, Error> {
        let Source::Remote { remote, .. } = &self.source else {
            panic!("a folder of this machine")
        };
        let place = self.place(sample);
        let (name, length) = self.shard_file(&place);
        let bytes = remote.part_unless(name, (place.part, place.range), length, stop)?;
        self.open_sample(sample, bytes.into())
    }

    /// Writes the file of a sample of this machine into `buffer` from `start` on, and gives its end,
    /// as [`Shard::read_behind`] does.
    ///
    /// # Panics
    /// When the data set is behind a URL.
    pub(crate) fn read_behind(
        &self,
        sample: SampleId,
        buffer: &mut Vec<u8>,
        start: usize,
    ) -> Result<usize, Error> {
        let Source::Local { shards, .. } = &self.source else { panic!("a folder behind a URL") };
        let record = self.record(sample);
        shards[record.shard - self.split.shards.start].read_behind(record.entry, buffer, start)
    }

    /// The record of a sample's seek points, for [`Dataset::seek_points`]; nothing where there are none.
    ///
    /// # Panics
    /// When `sample` is not below [`Dataset::len`].
    pub fn seek_record(&self, sample: SampleId) -> Vec<u8> {
        let mut record = Vec::new();
        let end = self.read_points_behind(sample, &mut record, 0);
        record.truncate(end);
        record
    }

    /// Writes the record of a sample's seek points into `buffer` from `start` on, and gives its end. One that
    /// cannot be read is told of, and is none.
    pub(crate) fn read_points_behind(
        &self,
        sample: SampleId,
        buffer: &mut Vec<u8>,
        start: usize,
    ) -> usize {
        let Source::Local { seek: Some(seek), .. } = &self.source else { return start };
        seek.read_behind(self.position(sample), buffer, start).unwrap_or_else(|error| {
            seek.tell(&error);
            start
        })
    }

    /// The seek points to decode the image of a sample by, of the record that [`Dataset::seek_record`] gave.
    ///
    /// # Errors
    /// [`Error::Format`] where they are damaged, or of another image.
    ///
    /// # Panics
    /// When `sample` is not below [`Dataset::len`].
    pub fn seek_points<'a>(
        &self,
        sample: SampleId,
        record: &'a [u8],
        image: &[u8],
    ) -> Result<SeekPoints<'a>, Error> {
        match &self.source {
            Source::Local { seek: Some(seek), .. } => {
                seek.points(self.position(sample), record, image)
            }
            _ => Ok(SeekPoints::NONE),
        }
    }

    /// Tells of seek points by which an image could not be decoded that decodes without.
    pub(crate) fn unfit(&self, sample: SampleId, error: &Error) {
        let Source::Local { seek: Some(seek), .. } = &self.source else { return };
        match error {
            Error::Sample { source, .. } => seek.tell(&seek.unfit(self.position(sample), source)),
            error => seek.tell(error),
        }
    }

    /// Bytes of a shard behind a URL.
    fn fetch(
        &self,
        remote: &Arc<Remote>,
        shard: usize,
        range: Range<u64>,
    ) -> Result<Vec<u8>, Error> {
        let file = &self.index.shards()[shard];
        remote.range(&file.name, range, file.bytes)
    }

    /// The server behind this data set; none for a folder of this machine.
    pub(crate) fn remote(&self) -> Option<&Arc<Remote>> {
        match &self.source {
            Source::Local { .. } => None,
            Source::Remote { remote, .. } => Some(remote),
        }
    }

    /// What reading took so far; none for a folder of this machine.
    pub fn traffic(&self) -> Option<Traffic> {
        self.remote().map(|remote| remote.traffic())
    }

    /// Where a sample's bytes lie behind the URL.
    ///
    /// # Panics
    /// When the data set is of this machine.
    pub(crate) fn place(&self, sample: SampleId) -> Place {
        let Source::Remote { parts, .. } = &self.source else { panic!("a folder of this machine") };
        let next = parts.partition_point(|&first| first <= sample);
        let end = parts.get(next).copied().unwrap_or(self.len() as SampleId);
        let span = |sample: SampleId| span(&self.record(sample));
        let part = span(parts[next - 1]).start..span(end - 1).end;
        Place { shard: self.record(sample).shard, part, range: span(sample) }
    }

    /// Name and length of the shard that a place is in.
    pub(crate) fn shard_file(&self, place: &Place) -> (&str, u64) {
        let shard = &self.index.shards()[place.shard];
        (&shard.name, shard.bytes)
    }

    /// Cuts the header from a sample's bytes as [`Dataset::place`] bounds them, and checks that it
    /// is the sample's: a shard of the right length may still be another one.
    pub(crate) fn open_sample(&self, sample: SampleId, bytes: Bytes) -> Result<Bytes, Error> {
        let record = self.record(sample);
        let header = bytes.len() - record.entry.length as usize;
        // Names in shards of other programs may need more than one header.
        if header as u64 == HEADER && !self.index.is_scanned() {
            let key = self.key(sample);
            let found = member_key(&bytes[..header], record.entry.length);
            if found.as_deref() != Some(&*key) {
                let path = self.index.shard_path(record.shard);
                return Err(Error::format(&path, record.entry.offset, replaced(&key, found)));
            }
        }
        Ok(bytes.slice(header..))
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
            shard: self.index.shard_path(record.shard),
            sample,
            key: self.key(sample),
            offset: record.entry.offset,
            length: record.entry.length,
            source,
        }
    }

    /// Bytes of a sample's file in the mean, what lies between them counted in.
    pub(crate) fn mean_bytes(&self) -> u64 {
        let shards = &self.index.shards()[self.split.shards.clone()];
        let bytes: u64 = shards.iter().map(|shard| shard.bytes).sum();
        bytes / (self.len() as u64).max(1)
    }

    /// Samples of each shard, in order.
    pub(crate) fn shard_sizes(&self) -> Vec<usize> {
        let shards = &self.index.shards()[self.split.shards.clone()];
        shards.iter().map(|shard| shard.samples.len()).collect()
    }

    fn position(&self, sample: SampleId) -> usize {
        assert!(sample < self.len() as u64, "sample {sample} of {}", self.len());
        self.split.samples.start + sample as usize
    }
}

/// Opens the shards of a split.
fn open_shards(index: &Index, split: &SplitRecord) -> Result<Vec<Shard>, Error> {
    let open = |number: usize| {
        let shard = index.shard(number)?;
        let (found, expected) = (shard.len(), index.shards()[number].bytes);
        if found != expected {
            let shard = shard.path().to_path_buf();
            return Err(Error::ShardLength { shard, found, expected });
        }
        Ok(shard)
    };
    split.shards.clone().map(open).collect()
}

/// A sample's bytes with the header before them.
fn span(record: &Record) -> Range<u64> {
    let Entry { offset, length } = record.entry;
    offset.saturating_sub(HEADER)..offset + u64::from(length)
}

/// The first sample of each part of a split: a function of the index, so that every process cuts
/// the same files.
fn parts(index: &Index, split: &SplitRecord) -> Vec<SampleId> {
    let mut parts = Vec::new();
    for shard in &index.shards()[split.shards.clone()] {
        let mut part: Option<Range<u64>> = None;
        for sample in shard.samples.clone() {
            let range = span(&index.record(sample));
            match &mut part {
                Some(part) if range.start >= part.end && range.end - part.start <= PART => {
                    part.end = range.end;
                }
                part => {
                    *part = Some(range);
                    parts.push((sample - split.samples.start) as SampleId);
                }
            }
        }
    }
    parts
}

fn replaced(key: &str, found: Option<String>) -> String {
    let found = found.unwrap_or_else(|| "none".into());
    format!(
        "the index has sample {key:?} here, the shard {found:?}: one of them was replaced; build \
         the folder again"
    )
}
