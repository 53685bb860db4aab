//! An archive that arrives through a pipe: read once from end to end, never sought.
//!
//! What a file's headers tell beforehand is only known at the end here, so the options say it: the
//! classes are those of `--synsets`, and a hold-out is drawn among `--images` training images. Both
//! are checked against the stream when it has ended. Images keep the order of the stream. Of
//! WebDataset shards, the files of a sample have to be side by side, as that format asks; archives
//! may be joined end to end.
//!
//! A pipe whose sender was stopped cannot be told from an archive that was cut: an early end keeps
//! the finished shards. The next run reads the stream again from its first byte, passes over what
//! is stored, and compares a hash of all images with the journal's.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use pipeline::container::Skipped;
use tar::{EntryType, GnuExtSparseHeader, Header, PaxExtensions};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::archive::{BLOCK, Member, Sample, file_name, read_synsets, split_name, split_of};
use super::{Input, Layout};
use crate::Error;
use crate::catalog::{Catalog, Class, Item, Place, Rejected, Split, key, stem};
use crate::order::{HoldOut, draw};

/// What stands for standard input on the command line.
const STANDARD_INPUT: &str = "-";

/// The longest name or extended header that is read, in bytes.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// True when `input` cannot be sought: `-`, which is standard input, or a named pipe.
pub fn is_stream(input: &Path) -> bool {
    let pipe = || std::fs::metadata(input).is_ok_and(|found| found.file_type().is_fifo());
    input == Path::new(STANDARD_INPUT) || pipe()
}

/// The images of an archive that arrives through a pipe.
#[derive(Debug)]
pub struct Stream {
    pipe: Pipe,
    contents: Contents,
    split: Split,
    /// Positions of the training images that are held out.
    held_out: HashSet<usize>,
    /// How many training images there should be, where that was said.
    promised: Option<usize>,
    /// Hashes of the keys that are in use.
    taken: HashSet<u64>,
    images: usize,
    digest: u64,
    rejected: Vec<Rejected>,
    skipped: Skipped,
}

#[derive(Debug)]
enum Contents {
    /// A tar of class tars.
    Classes { classes: Vec<Class>, seen: Vec<bool>, inside: Option<ClassTar> },
    /// Samples whose files lie side by side.
    Samples { pending: Option<(String, u64, Sample<Vec<u8>>)>, classes: u32 },
}

/// The class tar that is being read.
#[derive(Clone, Copy, Debug)]
struct ClassTar {
    label: u32,
    end: u64,
}

/// An image as the stream has it.
struct Image {
    key: Box<str>,
    label: Option<u32>,
    offset: u64,
    bytes: Vec<u8>,
}

impl Stream {
    /// Opens the pipe, and a catalog of what does not come through it: the classes, and the
    /// validation archive, which is a file.
    ///
    /// # Errors
    /// The layout does not come in one archive, or an option that a pipe needs is missing.
    pub fn open(input: &Input, hold_out: HoldOut, seed: u64) -> Result<(Catalog, Self), Error> {
        let usage = |problem: &str, mend| Err(Error::Usage { problem: problem.to_owned(), mend });
        let mut catalog = Catalog::default();
        let name = file_name(&input.path.to_string_lossy()).to_owned();
        let (contents, split) = match (input.layout, &input.lists.synsets) {
            (Layout::Imagenet, Some(list)) => {
                let mut synsets = read_synsets(list)?;
                synsets.sort();
                catalog.classes =
                    synsets.into_iter().map(|(name, words)| Class { name, words }).collect();
                let (classes, seen) = (catalog.classes.clone(), vec![false; catalog.classes.len()]);
                (Contents::Classes { classes, seen, inside: None }, Split::Train)
            }
            (Layout::Imagenet, None) => {
                let mend = "give --synsets, a line per class: they number the classes";
                return usage("the classes of a pipe are not known before its end", mend);
            }
            (Layout::Webdataset, _) => {
                (Contents::Samples { pending: None, classes: 0 }, split_of(&name))
            }
            _ => {
                let mend = "give a path, or --layout imagenet or webdataset";
                return usage("only a tar archive can come through a pipe", mend);
            }
        };
        let held_out = match (hold_out.count, hold_out.images) {
            (0, _) => HashSet::new(),
            (count, Some(images)) if split == Split::Train => draw(images, count, seed)?,
            (_, Some(_)) => return usage("--holdout takes training images", "leave it out"),
            (_, None) => {
                let mend = "give --images N, the number of training images (ILSVRC2012: 1281167)";
                return usage("--holdout cannot be drawn from a pipe of unknown length", mend);
            }
        };
        if let Some(val) = &input.lists.val {
            catalog.add_val(val, &input.lists)?;
        }
        catalog.seal();
        catalog.items.sort_by(|a, b| (a.split, &a.place).cmp(&(b.split, &b.place)));
        let pipe = Pipe::open(&input.path)?;
        catalog.pipe = Some(pipe.path.clone());
        let taken = catalog.items.iter().map(|item| xxh3_64(item.key.as_bytes())).collect();
        let stream = Self {
            pipe,
            contents,
            split,
            held_out,
            promised: hold_out.images,
            taken,
            images: 0,
            digest: 0,
            rejected: Vec::new(),
            skipped: Skipped::new(),
        };
        Ok((catalog, stream))
    }

    /// The next image. Its length is what was read, never what a header claims.
    ///
    /// # Errors
    /// The stream is damaged, ends too early, or is not what the options say.
    pub(crate) fn next(&mut self) -> Result<Option<(Item, Vec<u8>)>, Error> {
        let Some(Image { key, label, offset, bytes }) = self.image()? else {
            self.check_end()?;
            self.digest = xxh3_64(&[&self.digest.to_le_bytes()[..], b"end"].concat());
            return Ok(None);
        };
        if self.promised.is_some_and(|images| self.images >= images) {
            return Err(self.miscounted("more"));
        }
        let held_out = self.held_out.contains(&self.images);
        let split = if held_out { Split::Trainval } else { self.split };
        let key = crate::catalog::unique(&mut self.taken, key);
        let length = bytes.len() as u32;
        let item = Item { key, split, label, place: Place::Piped { offset }, length };
        self.images += 1;
        let mut hash = Xxh3::new();
        hash.update(&self.digest.to_le_bytes());
        hash.update(item.key.as_bytes());
        hash.update(&label.map_or(u64::MAX, u64::from).to_le_bytes());
        hash.update(&bytes);
        self.digest = hash.digest();
        Ok(Some((item, bytes)))
    }

    /// A hash of every image that was read so far, and of the end once it was reached.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// What was turned away by its header, in the order of arrival.
    pub(crate) fn rejected(&self) -> &[Rejected] {
        &self.rejected
    }

    /// What was passed over so far.
    pub(crate) fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The classes by number, known for certain at the end.
    pub(crate) fn classes(&self) -> Vec<Class> {
        match &self.contents {
            Contents::Classes { classes, .. } => classes.clone(),
            Contents::Samples { classes, .. } => {
                (0..*classes).map(|class| Class::named(class.to_string())).collect()
            }
        }
    }

    /// An error for a stream that is another than the one an interrupted build has read.
    pub(crate) fn changed(&self, images: usize) -> Error {
        Error::Stream {
            path: self.pipe.path.clone(),
            problem: format!(
                "is not what the interrupted build read (within the first {images} images)"
            ),
            mend: "pipe the same archive to go on with it, or remove the work folder beside --output \
                   (.NAME.partial) to begin anew",
        }
    }

    fn miscounted(&self, than: &str) -> Error {
        let promised = self.promised.unwrap_or_default();
        let problem = format!("holds {than} training images than --images {promised}");
        Error::input(&self.pipe.path, problem, "give their number, or neither it nor --holdout")
    }

    fn check_end(&self) -> Result<(), Error> {
        if self.promised.is_some_and(|images| self.images < images) {
            return Err(self.miscounted(&format!("{} images: fewer", self.images)));
        }
        let Contents::Classes { classes, seen, .. } = &self.contents else { return Ok(()) };
        match classes.iter().zip(seen).find(|(_, seen)| !**seen) {
            None => Ok(()),
            Some((class, _)) => {
                let problem = format!("holds no {}.tar, a class of --synsets", class.name);
                Err(Error::input(&self.pipe.path, problem, "list the classes that it holds"))
            }
        }
    }

    fn image(&mut self) -> Result<Option<Image>, Error> {
        match &self.contents {
            Contents::Classes { .. } => self.image_of_class(),
            Contents::Samples { .. } => self.sample(),
        }
    }

    fn reject(&mut self, name: &str, reason: impl Into<String>) {
        let name = format!("{}: {name}", self.pipe.path.display());
        self.rejected.push(Rejected { name, reason: reason.into() });
    }

    /// The next member of a class tar.
    fn image_of_class(&mut self) -> Result<Option<Image>, Error> {
        let Contents::Classes { inside, .. } = &mut self.contents else { return Ok(None) };
        let mut class = inside.take();
        loop {
            let Some(ClassTar { label, end }) = class else {
                let Some(member) = self.pipe.member(None)? else { return Ok(None) };
                class = self.class_of(&member)?;
                continue;
            };
            let Some(member) = self.pipe.member(Some(end))? else {
                // Whatever follows the end marker belongs to no class.
                self.pipe.next = end.next_multiple_of(BLOCK);
                class = None;
                continue;
            };
            if let Some(reason) = member.no_image() {
                self.reject(&member.name, reason);
                continue;
            }
            let bytes = self.pipe.bytes(&member)?;
            if let Contents::Classes { inside, .. } = &mut self.contents {
                *inside = class;
            }
            let key = key(stem(file_name(&member.name)));
            return Ok(Some(Image { key, label: Some(label), offset: member.offset, bytes }));
        }
    }

    /// Enters a class tar. What is none is rejected.
    fn class_of(&mut self, member: &Member) -> Result<Option<ClassTar>, Error> {
        let name = member.name.strip_suffix(".tar").map(file_name);
        let (None, Some(name)) = (member.refused(), name) else {
            self.reject(&member.name, member.refused().unwrap_or("is no tar of a class"));
            return Ok(None);
        };
        let Contents::Classes { classes, seen, .. } = &mut self.contents else { return Ok(None) };
        let path = &self.pipe.path;
        let Ok(label) = classes.binary_search_by(|class| class.name.as_str().cmp(name)) else {
            let problem = format!("holds {name}.tar, which is no class of --synsets");
            return Err(Error::input(path, problem, "list every class of the archive"));
        };
        if std::mem::replace(&mut seen[label], true) {
            let problem = format!("holds {name}.tar twice");
            return Err(Error::input(path, problem, "fetch the archive again"));
        }
        // Members are read in place: the class tar's first header is the next.
        self.pipe.next = member.offset;
        Ok(Some(ClassTar { label: label as u32, end: member.offset + member.size }))
    }

    /// The next sample: all files in a row that have its name.
    fn sample(&mut self) -> Result<Option<Image>, Error> {
        loop {
            let member = self.pipe.member(None)?;
            let Some(member) = member else {
                match self.finished_sample(None) {
                    Some(image) => return Ok(Some(image)),
                    None => return Ok(None),
                }
            };
            if let Some(reason) = member.no_image() {
                self.reject(&member.name, reason);
                continue;
            }
            let (stem, extension) = split_name(&member.name);
            let image = match extension.to_ascii_lowercase().as_str() {
                ".jpg" | ".jpeg" | ".png" => true,
                ".cls" => false,
                _ => {
                    let example = || format!("{}: {}", self.pipe.path.display(), member.name);
                    self.skipped.add("members that are no image or label", example);
                    continue;
                }
            };
            let bytes = self.pipe.bytes(&member)?;
            let Contents::Samples { pending, .. } = &mut self.contents else { return Ok(None) };
            let same = pending.as_ref().is_some_and(|(name, ..)| name == stem);
            let next = || (stem.to_owned(), member.offset, Sample::default());
            let done = if same { None } else { pending.replace(next()) };
            let (_, offset, sample) = pending.get_or_insert_with(next);
            let mut twice = false;
            if image {
                *offset = member.offset;
                twice = sample.image.replace(bytes).is_some();
            } else {
                let text = &bytes[..bytes.len().min(64)];
                sample.label = Some(String::from_utf8_lossy(text).trim().to_owned());
            }
            if twice {
                self.reject(&member.name, "is there twice");
            }
            if let Some(image) = done.and_then(|done| self.finished_sample(Some(done))) {
                return Ok(Some(image));
            }
        }
    }

    /// The image of a whole sample, by default the pending one; what is none is rejected.
    fn finished_sample(&mut self, done: Option<(String, u64, Sample<Vec<u8>>)>) -> Option<Image> {
        let Contents::Samples { pending, classes } = &mut self.contents else { return None };
        let (stem, offset, sample) = done.or_else(|| pending.take())?;
        match sample.checked() {
            Ok((bytes, label)) => {
                *classes = label.map_or(*classes, |label| (*classes).max(label + 1));
                Some(Image { key: key(&stem), label, offset, bytes })
            }
            Err(reason) => {
                self.reject(&stem, reason);
                None
            }
        }
    }
}

/// A tar archive, or several in a row, read header by header.
struct Pipe {
    path: PathBuf,
    reader: BufReader<Box<dyn Read>>,
    /// Bytes that were read.
    at: u64,
    /// Where the next header is.
    next: u64,
    /// The member before it, for messages.
    last: String,
    /// An end marker was the last thing read.
    marked: bool,
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipe").field("path", &self.path).field("at", &self.at).finish()
    }
}

impl Pipe {
    fn open(input: &Path) -> Result<Self, Error> {
        let (path, reader): (_, Box<dyn Read>) = if input == Path::new(STANDARD_INPUT) {
            if io::stdin().is_terminal() {
                let problem = "--input - reads a tar archive, and standard input is a terminal";
                let mend = "pipe the archive in: cat ARCHIVE | shard-imagenet ...";
                return Err(Error::Usage { problem: problem.to_owned(), mend });
            }
            (PathBuf::from("standard input"), Box::new(io::stdin().lock()))
        } else {
            (input.to_path_buf(), Box::new(File::open(input).map_err(Error::open(input))?))
        };
        let reader = BufReader::with_capacity(1 << 16, reader);
        Ok(Self {
            path,
            reader,
            at: 0,
            next: 0,
            last: "its first header".to_owned(),
            marked: false,
        })
    }

    /// The next member before `end`, or of the whole stream; none behind the end marker.
    fn member(&mut self, end: Option<u64>) -> Result<Option<Member>, Error> {
        let (mut long_name, mut pax) = (None, None);
        loop {
            self.skip_to_next()?;
            if end.is_some_and(|end| self.at + BLOCK > end) {
                return Err(
                    self.damaged(&format!("ends after {}, without an end marker", self.last))
                );
            }
            let block = self.read(BLOCK)?;
            if block.iter().all(|byte| *byte == 0) {
                let whole = block.len() as u64 == BLOCK;
                self.next = self.at;
                match end {
                    Some(_) if whole => return Ok(None),
                    // Archives that were joined end to end are read to the last.
                    None if whole => self.marked = true,
                    None if self.marked => return Ok(None),
                    _ => return Err(self.cut(&format!("after {}", self.last))),
                }
                continue;
            }
            let header = self.header(&block)?;
            let kind = header.entry_type();
            let extension = kind.is_gnu_longname() || kind.is_pax_local_extensions();
            let ignored = kind.is_gnu_longlink() || kind.is_pax_global_extensions();
            let extensions = pax.as_deref().filter(|_| !extension && !ignored);
            let mut size = header.entry_size().map_err(|error| self.damaged(&error.to_string()))?;
            if let Some(text) = extensions.and_then(|pax| pax_value(pax, b"size")) {
                let digits = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                size = digits.ok_or_else(|| self.damaged("has a size that is no number"))?;
            }
            if extension {
                let text = self.extension(size)?;
                *(if kind.is_gnu_longname() { &mut long_name } else { &mut pax }) = Some(text);
                continue;
            }
            if kind == EntryType::GNUSparse {
                self.skip_sparse_map(&header)?;
            }
            let name =
                long_name.as_deref().or_else(|| extensions.and_then(|pax| pax_value(pax, b"path")));
            let name = name.map_or_else(|| header.path_bytes().into_owned(), <[u8]>::to_vec);
            let name = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
            let offset = self.at;
            let after =
                offset.checked_add(size).and_then(|end| end.checked_next_multiple_of(BLOCK));
            let inside = end.is_none_or(|end| size <= end.saturating_sub(offset));
            let (Some(after), true) = (after, inside) else {
                return Err(self.damaged(&format!("ends inside {name}")));
            };
            self.next = after;
            self.last.clone_from(&name);
            if ignored {
                continue;
            }
            if kind.is_dir() {
                (long_name, pax) = (None, None);
                continue;
            }
            return Ok(Some(Member { name, kind, offset, size }));
        }
    }

    /// A header whose checksum is right.
    fn header(&mut self, block: &[u8]) -> Result<Header, Error> {
        if self.at <= BLOCK && block.starts_with(&[0x1F, 0x8B]) {
            let mend = "unpack it on its way: gunzip -c ARCHIVE | shard-imagenet ...";
            return Err(Error::input(&self.path, "is compressed", mend));
        }
        if (block.len() as u64) < BLOCK {
            return Err(self.cut(&format!("in the header after {}", self.last)));
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        // The sum is taken with spaces in its own place.
        let sum = sum(&block[..148]) + sum(&block[156..]) + 8 * u32::from(b' ');
        if header.cksum().ok() != Some(sum) {
            return Err(self.damaged(&format!("is no sound tar archive after {}", self.last)));
        }
        self.marked = false;
        Ok(header)
    }

    /// A long name, or the records of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > MAX_HEADER_BYTES {
            return Err(self.damaged(&format!("has a name of {size} bytes after {}", self.last)));
        }
        self.next = self.at + size.next_multiple_of(BLOCK);
        let mut text = self.read(size)?;
        if (text.len() as u64) < size {
            return Err(self.cut(&format!("in the header after {}", self.last)));
        }
        while text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    /// Passes over the map of a sparse file, which may follow the header.
    fn skip_sparse_map(&mut self, header: &Header) -> Result<(), Error> {
        let mut more = header.as_gnu().is_some_and(tar::GnuHeader::is_extended);
        while more {
            let block = self.read(BLOCK)?;
            let mut map = GnuExtSparseHeader::new();
            if block.len() != map.as_bytes().len() {
                return Err(self.cut(&format!("in the header after {}", self.last)));
            }
            map.as_mut_bytes().copy_from_slice(&block);
            more = map.is_extended();
        }
        Ok(())
    }

    /// The bytes of the member whose header was read last.
    fn bytes(&mut self, member: &Member) -> Result<Vec<u8>, Error> {
        let bytes = self.read(member.size)?;
        match bytes.len() as u64 == member.size {
            true => Ok(bytes),
            false => Err(self.cut(&format!("inside {}", member.name))),
        }
    }

    /// Up to `size` bytes; fewer when the stream ends. Memory grows with what arrives.
    fn read(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(size).read_to_end(&mut bytes);
        self.at += read.map_err(Error::io(&self.path, "read it"))? as u64;
        Ok(bytes)
    }

    fn skip_to_next(&mut self) -> Result<(), Error> {
        let left = self.next - self.at;
        let skipped = io::copy(&mut self.reader.by_ref().take(left), &mut io::sink());
        let skipped = skipped.map_err(Error::io(&self.path, "read it"))?;
        self.at += skipped;
        match skipped == left {
            true => Ok(()),
            false => Err(self.cut(&format!("inside {}", self.last))),
        }
    }

    fn damaged(&self, problem: &str) -> Error {
        let problem = format!("{problem} (at byte {})", self.at);
        Error::input(&self.path, problem, "fetch the archive again")
    }

    /// The stream ended early, as one does whose sender was stopped: what is stored is kept.
    fn cut(&self, at: &str) -> Error {
        Error::Stream {
            path: self.path.clone(),
            problem: format!("ends {at}, without an end marker (at byte {})", self.at),
            mend: "pipe the whole archive into the same command, which goes on from there",
        }
    }
}

/// What an extended header says of `key`; the last word counts.
fn pax_value<'a>(records: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let records = PaxExtensions::new(records).filter_map(Result::ok);
    records.filter(|record| record.key_bytes() == key).map(|record| record.value_bytes()).last()
}
