//! Seek points of the JPEGs of a folder, in one file beside its index.
//!
//! # Layout of `seek-points.bin`
//! Little-endian, no padding between the parts.
//! ```text
//! header     32 bytes  magic "BBGSEEK\0", version u32 (1), MCUs from point to point u32, samples u64,
//!                      fingerprint of the index u64
//! records    of each sample: a checksum u32 and the points as `SeekPoints` has them; nothing for a
//!            sample without. The checksum is the lower half of XXH3-64 of the points; its seed is XXH3-64 of
//!            the image's last 64 bytes with its length as the seed
//! ends       u64 each, where the records of a sample end, from the first byte of all records
//! checksum   XXH3-64 of header and ends
//! ```

mod make;

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::decode::{Decoder, SeekPoints};
use crate::error::{Error, Fault};
use crate::index::{Index, u32_at, u64_at};

/// Name of the file in a data folder.
pub const SEEK_FILE: &str = "seek-points.bin";
/// What ends its name in the user's cache, where the folder cannot be written.
const CACHED: &str = "seek";
const MAGIC: &[u8; 8] = b"BBGSEEK\0";
const VERSION: u32 = 1;
const HEADER: usize = 32;
const CHECKSUM: usize = 4;
/// MCUs from one point to the next. Ours.
const EVERY: u16 = 8;
/// The way out where the file is of no use.
pub const MAKE: &str = "make it with `shard-imagenet seek-points DIR`, or remove it";

/// The seek points of a folder's samples, on disk.
#[derive(Debug)]
pub struct SeekFile {
    path: PathBuf,
    file: File,
    every: u16,
    ends: Vec<u64>,
    told: AtomicBool,
}

/// What [`SeekFile::make`] made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeekReport {
    /// Where it is; of no file where no image has points.
    pub path: PathBuf,
    /// JPEGs that have points.
    pub pictures: u64,
    /// Samples that have none because they are small, have restart markers that are near, or are no JPEGs of one
    /// scan of Huffman codes.
    pub without: u64,
    /// JPEGs that cannot be decoded.
    pub damaged: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

impl SeekFile {
    /// Opens the file of a folder of this machine; none where there is none. One that cannot be read, was
    /// made for another index, or is damaged, is as good as none: what is decoded is the same, and a warning
    /// says so.
    pub fn open(index: &Index) -> Option<Self> {
        Self::find(index).unwrap_or_else(|problem| {
            tracing::warn!("{problem}: not used; {MAKE}");
            None
        })
    }

    /// The same, but with an error of what cannot be used.
    ///
    /// # Errors
    /// The words for a person.
    pub fn find(index: &Index) -> Result<Option<Self>, String> {
        let mut refused = None;
        for (number, path) in index.places(SEEK_FILE, CACHED).unwrap_or_default().iter().enumerate()
        {
            let said = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
            // Of a pipe, the opening would wait for a writer.
            let file = match std::fs::metadata(path) {
                Ok(file) if !file.is_file() => Err("it is no regular file".to_owned()),
                Ok(_) => File::open(path).map_err(|error| error.to_string()),
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                // Many folders have nothing in a cache that cannot be asked.
                Err(_) if number > 0 => continue,
                Err(error) => Err(error.to_string()),
            };
            match file.and_then(|file| Self::read(index, path, file)) {
                Ok(found) => return Ok(Some(found)),
                Err(problem) => refused = refused.or(Some(said(&problem))),
            }
        }
        refused.map_or(Ok(None), Err)
    }

    fn read(index: &Index, path: &Path, file: File) -> Result<Self, String> {
        let words = |error: std::io::Error| error.to_string();
        let length = file.metadata().map_err(words)?.len();
        let table = index.len() as u64 * 8 + 8;
        let Some(table_at) = length.checked_sub(table).filter(|&at| at >= HEADER as u64) else {
            return Err("it is cut, or made for another index".into());
        };
        let mut head = [0; HEADER];
        let mut tail = vec![0; table as usize];
        file.read_exact_at(&mut head, 0).map_err(words)?;
        file.read_exact_at(&mut tail, table_at).map_err(words)?;
        if &head[..8] != MAGIC {
            return Err("it is no file of seek points".into());
        }
        if u32_at(&head, 8) != VERSION {
            return Err("it is of another version of this program".into());
        }
        if (u64_at(&head, 16), u64_at(&head, 24)) != (index.len() as u64, index.fingerprint()) {
            return Err("it was made for another index".into());
        }
        let (table, checksum) = tail.split_at(tail.len() - 8);
        if checksum_of(&head, table) != u64_at(checksum, 0) {
            return Err("its checksum does not match: it is damaged or cut".into());
        }
        let ends: Vec<u64> =
            table.as_chunks().0.iter().map(|end| u64::from_le_bytes(*end)).collect();
        // No record is longer than points at every MCU of as many as the image may have bytes for.
        let fits = |sample: usize| {
            let start = sample.checked_sub(1).map_or(0, |before| ends[before]);
            let length = index.record(sample).entry.length;
            ends[sample].wrapping_sub(start) <= CHECKSUM as u64 + 16 * u64::from(length)
        };
        let whole = ends.last().is_none_or(|&end| end == table_at - HEADER as u64);
        let sound = whole && ends.is_sorted() && (0..ends.len()).all(fits);
        match u16::try_from(u32_at(&head, 12)) {
            Ok(every) if every > 0 && sound => Ok(Self {
                path: path.to_path_buf(),
                file,
                every,
                ends,
                told: AtomicBool::new(false),
            }),
            _ => Err("it is damaged".into()),
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length, bytes.
    pub fn size(&self) -> u64 {
        HEADER as u64 + self.ends.last().copied().unwrap_or(0) + 8 * self.ends.len() as u64 + 8
    }

    /// How many samples have points; samples count over all splits.
    pub fn pictures(&self) -> usize {
        (0..self.ends.len()).filter(|&sample| self.bytes_of(sample).1 > 0).count()
    }

    fn bytes_of(&self, sample: usize) -> (u64, usize) {
        let start = sample.checked_sub(1).map_or(0, |before| self.ends[before]);
        (HEADER as u64 + start, (self.ends[sample] - start) as usize)
    }

    /// Writes the record of a sample into `buffer` from `start` on, which grows where it must, and gives its
    /// end.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] where the file was cut.
    pub(crate) fn read_behind(
        &self,
        sample: usize,
        buffer: &mut Vec<u8>,
        start: usize,
    ) -> Result<usize, Error> {
        let (at, length) = self.bytes_of(sample);
        if length == 0 {
            return Ok(start);
        }
        let end = start + length;
        if buffer.len() < end {
            buffer.resize(end, 0);
        }
        match self.file.read_exact_at(&mut buffer[start..end], at) {
            Ok(()) => Ok(end),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(self.damaged(sample)),
            Err(error) => Err(Error::io("read", &self.path)(error)),
        }
    }

    /// The points in a sample's record, of which `image` is the file.
    ///
    /// # Errors
    /// [`Error::Format`] where they are damaged, or of another file.
    pub(crate) fn points<'a>(
        &self,
        sample: usize,
        record: &'a [u8],
        image: &[u8],
    ) -> Result<SeekPoints<'a>, Error> {
        if record.is_empty() {
            return Ok(SeekPoints::NONE);
        }
        match record.split_at_checked(CHECKSUM) {
            Some((sum, points)) if sum == checksum_of_points(points, image) => {
                Ok(SeekPoints::new(self.every, points))
            }
            _ => Err(self.damaged(sample)),
        }
    }

    fn damaged(&self, sample: usize) -> Error {
        self.error(sample, "are damaged, or of another image")
    }

    /// The error of points that are sound and do not fit.
    pub(crate) fn unfit(&self, sample: usize, fault: &Fault) -> Error {
        self.error(sample, &format!("are of another image: {fault}"))
    }

    /// Warns, once, of points that are not used.
    pub(crate) fn tell(&self, error: &Error) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{error}; images are decoded without such points, of which no more is said"
            );
        }
    }

    fn error(&self, sample: usize, what: &str) -> Error {
        let what = format!("the points of sample {sample} {what}; {MAKE}");
        Error::format(&self.path, self.bytes_of(sample).0, what)
    }

    /// What is wrong with the points of a sample, of which `image` is the file: their checksum, or, with a
    /// decoder, that they are others than it makes.
    ///
    /// # Errors
    /// The words for a person.
    pub fn verify(
        &self,
        sample: usize,
        image: &[u8],
        decoder: Option<&mut Decoder>,
    ) -> Result<(), String> {
        let (mut found, mut wanted) = (Vec::new(), Vec::new());
        let end = self.read_behind(sample, &mut found, 0).map_err(|error| error.to_string())?;
        let points =
            self.points(sample, &found[..end], image).map_err(|error| error.to_string())?;
        let Some(decoder) = decoder else { return Ok(()) };
        if decoder.seek_points(image, self.every, &mut wanted).is_err() {
            wanted.clear();
        }
        match points.records() == wanted {
            true => Ok(()),
            false => Err(self.error(sample, "are others than its image has").to_string()),
        }
    }
}

fn checksum_of(head: &[u8], table: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(head);
    hash.update(table);
    hash.digest()
}

fn checksum_of_points(points: &[u8], image: &[u8]) -> [u8; CHECKSUM] {
    let tail = &image[image.len().saturating_sub(64)..];
    let seed = xxh3_64_with_seed(tail, image.len() as u64);
    (xxh3_64_with_seed(points, seed) as u32).to_le_bytes()
}
