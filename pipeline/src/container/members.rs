//! The members of tar archives, one after the other: from a stream, or seeking past data.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::error::Error;

/// Bytes of a block: headers are of one, and data are padded to whole ones.
pub const BLOCK: u64 = 512;

/// The longest name or extended header that is read, in bytes.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// What stands for the member before the first one in messages.
const FIRST: &str = "its first header";

/// One entry of an archive; folders are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its path in the archive. Bytes that are not UTF-8 are written `\xNN`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Which archive of the file it is in, from 0, for archives may be joined end to end.
    pub archive: u32,
    /// First byte of its data, counted from the start of the file.
    pub offset: u64,
    /// Bytes of its data; 0 for what holds none, whatever its header claims.
    pub size: u64,
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A hard link.
    HardLink,
    /// A device.
    Device,
    /// A named pipe.
    Fifo,
    /// A sparse file, whose bytes are not in one piece.
    Sparse,
    /// Of a kind that is not known.
    Unknown,
}

impl Kind {
    fn of(kind: EntryType) -> Self {
        match kind {
            EntryType::Regular | EntryType::Continuous => Self::File,
            EntryType::Symlink => Self::Symlink,
            EntryType::Link => Self::HardLink,
            EntryType::Char | EntryType::Block => Self::Device,
            EntryType::Fifo => Self::Fifo,
            EntryType::GNUSparse => Self::Sparse,
            _ => Self::Unknown,
        }
    }

    /// Why a member of this kind is not read; none for a regular file.
    pub fn refused(self) -> Option<&'static str> {
        match self {
            Self::File => None,
            Self::Symlink => Some("is a symbolic link"),
            Self::HardLink => Some("is a hard link"),
            Self::Device => Some("is a device"),
            Self::Fifo => Some("is a pipe"),
            Self::Sparse => Some("is a sparse file"),
            Self::Unknown => Some("is of an unknown kind"),
        }
    }

    /// Members of this kind in words.
    pub fn plural(self) -> &'static str {
        match self {
            Self::File => "files",
            Self::Symlink => "symbolic links",
            Self::HardLink => "hard links",
            Self::Device => "devices",
            Self::Fifo => "pipes",
            Self::Sparse => "sparse files",
            Self::Unknown => "members of unknown kinds",
        }
    }
}

/// Why the members of an archive cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The system refused.
    #[error("it cannot be read ({0})")]
    Io(#[from] io::Error),
    /// The bytes end before a member does.
    #[error("ends {place} {member} (at byte {offset})")]
    Cut {
        /// "inside", "in the header after", or "in" the first header.
        place: &'static str,
        /// The last member whose header could be read.
        member: String,
        /// Where the bytes run out.
        offset: u64,
    },
    /// A header makes no sense.
    #[error("{problem} (at byte {offset})")]
    Damaged {
        /// What is wrong.
        problem: String,
        /// Where.
        offset: u64,
    },
    /// The archive is compressed.
    #[error("is compressed with {0}")]
    Compressed(Compression),
}

impl Broken {
    /// The same as this crate's error, of an archive at a path or URL. `mend` says what to do.
    pub(crate) fn of(self, path: &Path, mend: &str) -> Error {
        match self {
            Self::Io(source) => Error::io("read", path)(source),
            Self::Cut { member, offset, .. } => {
                Error::ShardTruncated { shard: path.to_path_buf(), member, offset }
            }
            Self::Damaged { problem, offset } => {
                Error::format(path, offset, format!("{problem}; {mend}"))
            }
            Self::Compressed(_) => Error::format(path, 0, format!("{self}; {mend}")),
        }
    }
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

impl Compression {
    /// What the first bytes of a file say; six of them are enough.
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            // A frame, or one of the frames that decoders skip.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            _ => None,
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        })
    }
}

/// Where an archive's bytes come from.
trait Source {
    /// Reads up to `buffer.len()` bytes; fewer only at the end.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Passes over so many bytes, and says how many there were.
    fn skip(&mut self, bytes: u64) -> io::Result<u64>;
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What can only be read.
struct Streamed<R>(BufReader<R>);

impl<R: Read> Source for Streamed<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        fill(&mut self.0, buffer)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut self.0.by_ref().take(bytes), &mut io::sink())
    }
}

/// What can be sought: data are never read.
struct Sought<R> {
    reader: BufReader<R>,
    at: u64,
    length: u64,
}

impl<R: Read + Seek> Source for Sought<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = fill(&mut self.reader, buffer)?;
        self.at += read as u64;
        Ok(read)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let bytes = bytes.min(self.length.saturating_sub(self.at));
        let by = i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.reader.seek_relative(by)?;
        self.at += bytes;
        Ok(bytes)
    }
}

/// The members of the tar archives in a file or stream, in order, up to its end: archives may be
/// joined end to end, as `cat a.tar b.tar` does, and are read to the last as GNU tar's `-i` does.
///
/// GNU long names, PAX headers and sizes in base 256 are understood. Folders are left out, links
/// and devices are listed without data. Nothing is unpacked, so no name can reach the disk, and no
/// memory is taken for what a header claims.
pub struct Members<'a> {
    source: Box<dyn Source + 'a>,
    /// Bytes that were read or passed over.
    at: u64,
    /// Where the data of the last member end, and with their padding, where the next header is.
    data_end: u64,
    next: u64,
    /// The last member, for messages.
    last: String,
    /// The archive inside this one whose members come next.
    inside: Option<Inside>,
    /// It was left, at the outer archive of this number.
    left: Option<u32>,
    archive: u32,
    end: End,
}

/// A member that is an archive itself.
#[derive(Clone, Copy)]
struct Inside {
    /// Where its data end.
    end: u64,
    /// Where the outer archive's next header is, and its number.
    next: u64,
    archive: u32,
}

/// How the bytes behind the last member were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct End {
    /// Whether a block of zeros stood there, as it should. A file without one was cut between two
    /// members, or written by a program that leaves it out.
    pub marked: bool,
    /// Bytes from here on that are no archive.
    pub junk: Option<u64>,
}

impl std::fmt::Debug for Members<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { at, last, .. } = self;
        f.debug_struct("Members").field("at", at).field("last", last).finish()
    }
}

impl<'a> Members<'a> {
    /// Reads a stream from its first byte to its last.
    pub fn stream(reader: impl Read + 'a) -> Self {
        Self::new(Box::new(Streamed(BufReader::with_capacity(1 << 16, reader))))
    }

    /// Reads headers and seeks past data.
    ///
    /// # Errors
    /// The length cannot be found.
    pub fn seek(mut reader: impl Read + Seek + 'a) -> io::Result<Self> {
        let length = reader.seek(io::SeekFrom::End(0))?;
        reader.rewind()?;
        Ok(Self::new(Box::new(Sought { reader: BufReader::new(reader), at: 0, length })))
    }

    /// Opens a file to [seek](Self::seek) in.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::seek(File::open(path)?)
    }

    fn new(source: Box<dyn Source + 'a>) -> Self {
        Self {
            source,
            at: 0,
            data_end: 0,
            next: 0,
            last: FIRST.to_owned(),
            inside: None,
            left: None,
            archive: 0,
            end: End::default(),
        }
    }

    /// The next member, none at the end. After [`enter`](Self::enter), the next one of the inner
    /// archive, and once none at its end.
    ///
    /// # Errors
    /// [`Broken`], after which nothing more can be read. A missing end marker is none: see
    /// [`Members::end`].
    pub fn next_member(&mut self) -> Result<Option<Member>, Broken> {
        if let Some(archive) = self.left.take() {
            (self.archive, self.end) = (archive, End::default());
        }
        let (mut long_name, mut pax) = (None, None);
        loop {
            let Some((block, start)) = self.block()? else {
                if let Some(Inside { end, next, archive }) = self.inside.take() {
                    (self.data_end, self.next) = (end, next);
                    self.left = Some(archive);
                }
                return Ok(None);
            };
            let Some(header) = self.header(&block, start)? else { continue };
            let kind = header.entry_type();
            let extension = kind.is_gnu_longname() || kind.is_pax_local_extensions();
            let ignored = kind.is_gnu_longlink() || kind.is_pax_global_extensions();
            let extensions = pax.as_deref().filter(|_| !extension && !ignored);
            let mut size = header.entry_size().map_err(|e| self.damaged(&e.to_string(), start))?;
            if let Some(text) = extensions.and_then(|pax| pax_value(pax, b"size")) {
                let digits = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                size = digits.ok_or_else(|| self.damaged("has a size that is no number", start))?;
            }
            if extension {
                let text = self.extension(size, start)?;
                *(if kind.is_gnu_longname() { &mut long_name } else { &mut pax }) = Some(text);
                continue;
            }
            let mut kind = Kind::of(kind);
            if kind == Kind::Sparse {
                self.skip_sparse_map(&header)?;
            }
            let value = |key: &[u8]| extensions.and_then(|pax| pax_value(pax, key));
            if value(b"GNU.sparse.major").is_some() || value(b"GNU.sparse.map").is_some() {
                kind = Kind::Sparse;
            }
            let name = long_name.as_deref().or_else(|| value(b"GNU.sparse.name"));
            let name = name.or_else(|| value(b"path"));
            let name = text(&name.map_or_else(|| header.path_bytes(), Into::into));
            // As the oldest tars write them.
            let folder =
                header.entry_type().is_dir() || header.as_bytes()[156] == 0 && name.ends_with('/');
            // These hold nothing, whatever size they claim: often that of what they point to.
            let bare = matches!(kind, Kind::Symlink | Kind::HardLink | Kind::Device | Kind::Fifo);
            let size = if folder || bare { 0 } else { size };
            self.put(&name, size)?;
            if ignored {
                continue;
            }
            name.clone_into(&mut self.last);
            if folder {
                (long_name, pax) = (None, None);
                continue;
            }
            let (archive, offset) = (self.archive, self.at);
            return Ok(Some(Member { name, kind, archive, offset, size }));
        }
    }

    /// Takes the last member for an archive itself: its members come next. Only one archive inside
    /// another is entered.
    pub fn enter(&mut self) {
        self.inside = Some(Inside { end: self.data_end, next: self.next, archive: self.archive });
        (self.data_end, self.next) = (self.at, self.at);
        (self.archive, self.end) = (0, End::default());
    }

    /// Whether the next member is one of an archive that was entered.
    pub fn is_inside(&self) -> bool {
        self.inside.is_some()
    }

    /// The data of the member that came last, at most `most` bytes of them. Memory grows with what
    /// arrives.
    ///
    /// # Errors
    /// [`Broken::Cut`] where fewer bytes are there, or [`Broken::Io`].
    pub fn data(&mut self, most: u64) -> Result<Vec<u8>, Broken> {
        let size = self.data_end.saturating_sub(self.at).min(most);
        let bytes = self.read(size)?;
        match bytes.len() as u64 == size {
            true => Ok(bytes),
            false => Err(self.cut("inside")),
        }
    }

    /// How the archive that was just read to its end ends.
    pub fn end(&self) -> End {
        self.end
    }

    /// Bytes up to here.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The name of the last member, for messages.
    pub fn last(&self) -> &str {
        &self.last
    }

    /// The next block that is not zeros, and where it starts. None at the end.
    fn block(&mut self) -> Result<Option<(Vec<u8>, u64)>, Broken> {
        if !self.pass_padding()? {
            return Ok(None);
        }
        loop {
            let start = self.at;
            let left = self.limit().map_or(BLOCK, |end| end.saturating_sub(self.at).min(BLOCK));
            let block = self.read(left)?;
            self.next = self.at;
            self.data_end = self.at;
            if block.is_empty() {
                if self.at == 0 {
                    return Err(self.cut("in"));
                }
                return Ok(None);
            }
            let whole = block.len() as u64 == BLOCK;
            if block.iter().any(|byte| *byte != 0) {
                if !whole && !self.end.marked {
                    return Err(self.compressed(&block).unwrap_or_else(|| {
                        self.cut(if self.last == FIRST { "in" } else { "in the header after" })
                    }));
                }
                return Ok(Some((block, start)));
            }
            self.end.marked |= whole;
        }
    }

    /// Passes over what is left of the last member. False where the bytes end in its padding, which
    /// loses nothing.
    fn pass_padding(&mut self) -> Result<bool, Broken> {
        let left = self.next - self.at;
        let skipped = self.source.skip(left)?;
        self.at += skipped;
        if self.at < self.data_end {
            return Err(self.cut("inside"));
        }
        Ok(skipped == left)
    }

    /// A header whose checksum is right; none for what follows an end marker and is no header, where
    /// the archive ends.
    fn header(&mut self, block: &[u8], start: u64) -> Result<Option<Header>, Broken> {
        let mut header = Header::new_old();
        let whole = block.len() as u64 == BLOCK;
        if whole {
            header.as_mut_bytes().copy_from_slice(block);
            let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
            // The sum is taken with spaces in its own place.
            let sum = sum(&block[..148]) + sum(&block[156..]) + 8 * u32::from(b' ');
            if header.cksum().ok() == Some(sum) {
                self.archive += u32::from(self.end.marked);
                self.end = End::default();
                return Ok(Some(header));
            }
        }
        if self.end.marked && !(whole && &block[257..262] == b"ustar") {
            self.end.junk.get_or_insert(start);
            let rest = self.limit().map_or(u64::MAX, |end| end - self.at);
            self.at += self.source.skip(rest)?;
            (self.next, self.data_end) = (self.at, self.at);
            return Ok(None);
        }
        if let Some(compressed) = self.compressed(block) {
            return Err(compressed);
        }
        Err(self.damaged(&format!("is no sound tar archive after {}", self.last), start))
    }

    fn compressed(&self, block: &[u8]) -> Option<Broken> {
        let first = self.at <= BLOCK;
        Compression::of_bytes(block).filter(|_| first).map(Broken::Compressed)
    }

    /// Notes that a member of so many bytes begins here.
    fn put(&mut self, name: &str, size: u64) -> Result<(), Broken> {
        let end = self.at.checked_add(size);
        let next = end.and_then(|end| end.checked_next_multiple_of(BLOCK));
        let inside = self.limit().is_none_or(|limit| end.is_some_and(|end| end <= limit));
        let (Some(end), Some(next), true) = (end, next, inside) else {
            return Err(self.damaged(&format!("ends inside {name}"), self.at));
        };
        (self.data_end, self.next) = (end, self.limit().map_or(next, |limit| next.min(limit)));
        Ok(())
    }

    /// A long name, or the records of an extended header.
    fn extension(&mut self, size: u64, start: u64) -> Result<Vec<u8>, Broken> {
        if size > MAX_HEADER_BYTES {
            let problem = format!("has a name of {size} bytes after {}", self.last);
            return Err(self.damaged(&problem, start));
        }
        self.data_end = self.at + size;
        self.next = self.data_end.next_multiple_of(BLOCK);
        let mut text = self.read(size)?;
        if (text.len() as u64) < size {
            return Err(self.cut("in the header after"));
        }
        while text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    /// Passes over the map of a sparse file, which may follow the header.
    fn skip_sparse_map(&mut self, header: &Header) -> Result<(), Broken> {
        let mut more = header.as_gnu().is_some_and(tar::GnuHeader::is_extended);
        while more {
            let block = self.read(BLOCK)?;
            let mut map = GnuExtSparseHeader::new();
            if block.len() != map.as_bytes().len() {
                return Err(self.cut("in the header after"));
            }
            map.as_mut_bytes().copy_from_slice(&block);
            more = map.is_extended();
        }
        Ok(())
    }

    /// Up to `size` bytes; fewer at the end. Memory grows with what arrives.
    fn read(&mut self, size: u64) -> Result<Vec<u8>, Broken> {
        const STEP: u64 = 1 << 16;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            let start = bytes.len();
            let step = (size - start as u64).min(STEP.max(start as u64)) as usize;
            bytes.resize(start + step, 0);
            let read = self.source.fill(&mut bytes[start..])?;
            self.at += read as u64;
            bytes.truncate(start + read);
            if read < step {
                break;
            }
        }
        Ok(bytes)
    }

    /// Where the bytes of the inner archive end.
    fn limit(&self) -> Option<u64> {
        self.inside.map(|inside| inside.end)
    }

    fn cut(&self, place: &'static str) -> Broken {
        Broken::Cut { place, member: self.last.clone(), offset: self.at }
    }

    fn damaged(&self, problem: &str, offset: u64) -> Broken {
        Broken::Damaged { problem: problem.to_owned(), offset }
    }
}

/// What an extended header says of `key`; the last word counts.
fn pax_value<'a>(mut records: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut found = None;
    while !records.is_empty() {
        match pax_record(records) {
            Some((known, value, rest)) => {
                found = if known == key { Some(value) } else { found };
                records = rest;
            }
            // What is no record is passed over by its line.
            None => match records.iter().position(|&byte| byte == b'\n') {
                Some(end) => records = &records[end + 1..],
                None => break,
            },
        }
    }
    found
}

/// Key and value of the record `LENGTH KEY=VALUE` and a newline that this begins with, and what is
/// behind it. The length tells where it ends: values may have newlines of their own.
fn pax_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let end = length.checked_sub(1)?;
    let record = records.get(space + 1..end)?;
    // The last newline may be missing.
    if records.get(end).is_some_and(|&byte| byte != b'\n') {
        return None;
    }
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let rest = records.get(length..).unwrap_or_default();
    Some((&record[..equals], &record[equals + 1..], rest))
}

/// A name as text that no other name has.
fn text(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text += chunk.valid();
        for byte in chunk.invalid() {
            text += &format!("\\x{byte:02x}");
        }
    }
    text.truncate(text.trim_end_matches('\0').len());
    text
}
