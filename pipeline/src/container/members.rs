//! The members of tar archives, one after the other: from a stream, or seeking past data.

mod broken;
mod pax;
mod source;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use tar::{EntryType, GnuExtSparseHeader, Header};

pub use self::broken::{Broken, Compression};
use self::pax::{text, value_of};
use self::source::{Sought, Source, Streamed};

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
            if let Some(text) = extensions.and_then(|pax| value_of(pax, b"size")) {
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
            let value = |key: &[u8]| extensions.and_then(|pax| value_of(pax, key));
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
