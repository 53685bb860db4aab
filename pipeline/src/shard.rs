//! Tar shards: write them, open them, read one member. [`crate::container`] lists members.
//!
//! A shard is a USTAR archive in the WebDataset convention: the members `KEY.jpg` (or `KEY.png`)
//! and `KEY.cls` stand side by side, the latter holding the class number in ASCII decimal.
//! Times, owners and modes are fixed, so equal samples give equal bytes.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::files;
use xxhash_rust::xxh3::Xxh3;

use crate::container::{BLOCK, KeyEnd, split_name};
use crate::error::Error;

/// Where a member's bytes lie in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u32,
}

/// What is known of a shard once it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Size of the file.
    pub bytes: u64,
    /// XXH3-64 of the whole file.
    pub xxh3: u64,
}

/// Writes one shard. The file appears under its name only when [`ShardWriter::finish`] succeeds;
/// a writer that is dropped before leaves nothing behind.
pub struct ShardWriter {
    path: PathBuf,
    temporary: PathBuf,
    out: Option<BufWriter<File>>,
    hash: Xxh3,
    position: u64,
}

impl ShardWriter {
    /// Starts the shard `path` in a temporary file beside it.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be created.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let temporary = temporary_beside(path);
        let file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        let out = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(Self { path: path.to_path_buf(), temporary, out, hash: Xxh3::new(), position: 0 })
    }

    /// Appends a sample: `KEY.EXT`, and `KEY.cls` when there is a label.
    /// Returns where the image lies.
    ///
    /// # Errors
    /// [`Error::Config`] when key and extension cannot be a USTAR name or the image is too big;
    /// [`Error::Io`] when writing fails.
    pub fn append(
        &mut self,
        key: &str,
        extension: &str,
        image: &[u8],
        label: Option<u32>,
    ) -> Result<Entry, Error> {
        let base = key.rsplit('/').next().unwrap_or(key);
        if base.is_empty()
            || base.contains('.')
            || key.split('/').any(|part| ["", ".", ".."].contains(&part))
        {
            let problem = format!(
                "key {key:?}: no part may be empty, '.' or '..', and the last must hold no dot, for readers end the key at the first one"
            );
            return Err(Error::Config { problem });
        }
        let length = u32::try_from(image.len()).map_err(|_| Error::Config {
            problem: format!("{key}: an image of {} bytes; at most 4 GiB fit", image.len()),
        })?;
        self.member(&format!("{key}.{extension}"), image)?;
        let entry = Entry { offset: self.position - padded(u64::from(length)), length };
        if let Some(label) = label {
            self.member(&format!("{key}.cls"), label.to_string().as_bytes())?;
        }
        Ok(entry)
    }

    /// Bytes written so far, the end marker not counted.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Writes the end marker and gives the file its name; it is on the disk then.
    ///
    /// # Errors
    /// [`Error::Io`] when any of it fails.
    pub fn finish(mut self) -> Result<Written, Error> {
        self.write(&[0; 2 * BLOCK as usize])?;
        if let Some(out) = self.out.take() {
            let file = out
                .into_inner()
                .map_err(|error| Error::io("write", &self.temporary)(error.into_error()))?;
            file.sync_all().map_err(Error::io("sync", &self.temporary))?;
        }
        files::rename(&self.temporary, &self.path).map_err(Error::io("rename", &self.path))?;
        Ok(Written { bytes: self.position, xxh3: self.hash.digest() })
    }

    fn member(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).map_err(|source| Error::Config {
            problem: format!("{name:?} cannot be a member of a tar shard: {source}"),
        })?;
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.write(header.as_bytes())?;
        self.write(data)?;
        let rest = padded(data.len() as u64) as usize - data.len();
        self.write(&[0; BLOCK as usize][..rest])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Some(out) = &mut self.out {
            out.write_all(bytes).map_err(Error::io("write", &self.temporary))?;
        }
        self.hash.update(bytes);
        self.position += bytes.len() as u64;
        Ok(())
    }
}

impl std::fmt::Debug for ShardWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, position, .. } = self;
        f.debug_struct("ShardWriter").field("path", path).field("position", position).finish()
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        // After `finish` the temporary file is gone and this finds nothing to do.
        if self.out.take().is_some() {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// A name beside `path` that no reader takes for a shard or an index.
pub(crate) fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

/// A shard, read-only: a file of this machine, or bytes that were fetched.
///
/// Nothing is mapped: each member is read into memory of the caller's, so a file that is cut while
/// it is open gives an error and no signal.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    content: Content,
    /// Bytes of the file when it was opened.
    length: u64,
}

#[derive(Debug)]
enum Content {
    File(File),
    Memory(Bytes),
}

impl Shard {
    /// Opens the file. Nothing is read yet.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("read the length of", path))?.len();
        Ok(Self { path: path.to_path_buf(), content: Content::File(file), length })
    }

    /// The whole shard `path` (a URL) as it was fetched.
    pub(crate) fn fetched(path: PathBuf, bytes: Vec<u8>) -> Self {
        Self { path, length: bytes.len() as u64, content: Content::Memory(bytes.into()) }
    }

    /// The file or URL.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file when it was opened.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// True for a file of no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes of one member, in memory of their own.
    ///
    /// # Errors
    /// As [`Shard::read_into`].
    pub fn read(&self, entry: Entry) -> Result<Bytes, Error> {
        if let Content::Memory(bytes) = &self.content {
            return Ok(bytes.slice(self.range(entry)?));
        }
        let mut bytes = Vec::new();
        self.read_into(entry, &mut bytes)?;
        Ok(bytes.into())
    }

    /// Fills `buffer` with the bytes of one member and nothing else. Its memory is kept.
    ///
    /// # Errors
    /// [`Error::ShardTruncated`] when the file is too short to hold them, also where it was cut
    /// after it was opened; [`Error::Io`] when the system cannot read it.
    pub fn read_into(&self, entry: Entry, buffer: &mut Vec<u8>) -> Result<(), Error> {
        let end = self.read_behind(entry, buffer, 0)?;
        buffer.truncate(end);
        Ok(())
    }

    /// Writes the bytes of one member into `buffer` from `start` on, which grows where it must, and
    /// gives their end. What lies behind is as before: so its memory is cleared once and not for
    /// each file.
    pub(crate) fn read_behind(
        &self,
        entry: Entry,
        buffer: &mut Vec<u8>,
        start: usize,
    ) -> Result<usize, Error> {
        let range = self.range(entry)?;
        let end = start + range.len();
        if buffer.len() < end {
            buffer.resize(end, 0);
        }
        let read = self.read_at(entry.offset, &mut buffer[start..end])?;
        if read < range.len() {
            return Err(self.cut(entry, entry.offset + read as u64));
        }
        Ok(end)
    }

    /// Reads the whole file from its first byte on, in order.
    pub fn reader(&self) -> impl Read + Seek {
        Reader { shard: self, position: 0 }
    }

    /// Where a member's bytes lie, inside of the file as it was when it was opened: so no more
    /// memory is taken than the file has bytes.
    fn range(&self, entry: Entry) -> Result<Range<usize>, Error> {
        let end = entry.offset.checked_add(u64::from(entry.length));
        match end.filter(|&end| end <= self.length) {
            Some(end) => Ok(entry.offset as usize..end as usize),
            None => Err(self.cut(entry, self.length)),
        }
    }

    fn cut(&self, entry: Entry, offset: u64) -> Error {
        let member = format!("the member at byte {}", entry.offset);
        Error::ShardTruncated { shard: self.path.clone(), member, offset }
    }

    /// Fills `buffer` from byte `offset` on, and says how much of it the file could.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let file = match &self.content {
            Content::File(file) => file,
            Content::Memory(bytes) => {
                let start = bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
                let count = buffer.len().min(bytes.len() - start);
                buffer[..count].copy_from_slice(&bytes[start..start + count]);
                return Ok(count);
            }
        };
        let mut read = 0;
        while read < buffer.len() {
            match file.read_at(&mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", &self.path)(error)),
            }
        }
        Ok(read)
    }

    /// The key of the member whose bytes are exactly `entry`, as its own header tells it.
    pub(crate) fn member_at(&self, entry: Entry) -> Result<Option<String>, Error> {
        let Some(offset) = entry.offset.checked_sub(HEADER) else { return Ok(None) };
        let header = self.read(Entry { offset, length: HEADER as u32 })?;
        Ok(member_key(&header, entry.length))
    }
}

/// A shard as a stream.
struct Reader<'a> {
    shard: &'a Shard,
    position: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.shard.read_at(self.position, buffer).map_err(std::io::Error::other)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.shard.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// Bytes of the header before each member.
pub(crate) const HEADER: u64 = BLOCK;

/// The key of a member of `length` bytes, as its header tells it; none where the header is another
/// member's.
///
/// # Panics
/// When `header` is not [`HEADER`] bytes long.
pub(crate) fn member_key(header: &[u8], length: u32) -> Option<String> {
    let header = tar::Header::from_byte_slice(header);
    let same = header.entry_size().is_ok_and(|size| size == u64::from(length));
    let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
    let key = split_name(&name, KeyEnd::FirstDot).map_or(&*name, |(key, _)| key);
    same.then(|| key.to_string())
}

pub(crate) fn padded(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{End, Member, Members};

    fn shard(samples: &[(&str, &[u8], Option<u32>)]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train-000000.tar");
        let mut writer = ShardWriter::create(&path).unwrap();
        for (key, image, label) in samples {
            writer.append(key, "jpg", image, *label).unwrap();
        }
        writer.finish().unwrap();
        (dir, path)
    }

    #[test]
    fn members_are_where_the_writer_says() {
        let samples: [(&str, &[u8], Option<u32>); 3] =
            [("a/one", b"11", Some(4)), ("two", b"", None), ("three", &[7; 512], Some(0))];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train-000000.tar");
        let mut writer = ShardWriter::create(&path).unwrap();
        let (mut expected, mut entries) = (Vec::new(), Vec::new());
        for (key, image, label) in samples {
            let entry = writer.append(key, "jpg", image, label).unwrap();
            entries.push((entry, image));
            let Entry { offset, length } = entry;
            expected.push((format!("{key}.jpg"), offset, u64::from(length)));
            let label = label.map(|label| label.to_string().len() as u64);
            let after = offset + padded(length.into()) + BLOCK;
            expected.extend(label.map(|length| (format!("{key}.cls"), after, length)));
        }
        writer.finish().unwrap();
        let shard = Shard::open(&path).unwrap();
        for (entry, image) in entries {
            assert_eq!(shard.read(entry).unwrap(), image);
        }
        let mut members = Members::seek(shard.reader()).unwrap();
        let mut found = Vec::new();
        while let Some(Member { name, offset, size, .. }) = members.next_member().unwrap() {
            found.push((name, offset, size));
        }
        assert_eq!(found, expected);
        assert_eq!(members.end(), End { marked: true, junk: None });
    }

    #[test]
    fn equal_samples_give_equal_bytes() {
        let (_first, one) = shard(&[("a", b"x", Some(1))]);
        let (_second, two) = shard(&[("a", b"x", Some(1))]);
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    }

    #[test]
    fn a_shard_that_is_cut_while_it_is_open_gives_an_error_and_no_signal() {
        let (_dir, path) = shard(&[("a", &[1; 600], None), ("b", &[2; 9000], None)]);
        let shard = Shard::open(&path).unwrap();
        let entry = Entry { offset: 512 + 1024 + 512, length: 9000 };
        let mut buffer = vec![9; 20_000];
        shard.read_into(entry, &mut buffer).unwrap();
        assert_eq!(buffer, [2; 9000]);
        File::options().write(true).open(&path).unwrap().set_len(entry.offset + 5000).unwrap();
        let cut = entry.offset + 5000;
        for error in
            [shard.read(entry).unwrap_err(), shard.read_into(entry, &mut buffer).unwrap_err()]
        {
            assert!(
                matches!(error, Error::ShardTruncated { offset, .. } if offset == cut),
                "{error}"
            );
            assert!(error.is_input());
        }
        let huge = Entry { offset: u64::MAX - 5, length: u32::MAX };
        assert!(matches!(shard.read(huge), Err(Error::ShardTruncated { .. })));
    }

    #[test]
    fn an_unfinished_writer_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(&dir.path().join("train-000000.tar")).unwrap();
        writer.append("a", "jpg", b"x", None).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn keys_that_readers_would_cut_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(&dir.path().join("train-000000.tar")).unwrap();
        for key in ["", "a.b", "a/", "../a", "./a", "/a", &"x".repeat(300)] {
            let error = writer.append(key, "jpg", b"x", None).unwrap_err();
            assert!(matches!(error, Error::Config { .. }), "{key}: {error}");
        }
    }
}
