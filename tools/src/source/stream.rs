//! An archive that arrives through a pipe: read once from end to end, never sought.
//!
//! What a file's headers tell beforehand is only known at the end here, so the options say it: the
//! classes are those of `--synsets`, and a hold-out is drawn among `--images` training images. Both
//! are checked against the stream when it has ended. Images keep the order of the stream. Of
//! WebDataset shards, the files of a sample have to be side by side, as that format asks; archives
//! may be joined end to end, and compressed.
//!
//! A pipe whose sender was stopped cannot be told from an archive that was cut: an early end keeps
//! the finished shards. The next run reads the stream again from its first byte, passes over what
//! is stored, and compares a hash of all images with the journal's.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Cursor, IsTerminal, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use pipeline::container::{
    Added, Broken, Choice, Compression, InTurn, Member, Members, Sample, Skipped, no_data,
    passed_over,
};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::archive::{damaged, file_name, no_image, note_junk, read_label, read_synsets, splits};
use super::unpack::{self, decoder};
use super::{Input, Layout};
use crate::Error;
use crate::catalog::{Catalog, Class, Item, Place, Rejected, Split, key, stem};
use crate::order::{HoldOut, draw};

/// What stands for standard input on the command line.
const STANDARD_INPUT: &str = "-";

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
    /// A tar of class tars; the label of the one that is being read.
    Classes { classes: Vec<Class>, seen: Vec<bool>, inside: Option<u32> },
    /// Samples whose files lie side by side.
    Samples { samples: InTurn<Part>, choice: Choice, classes: u32 },
}

/// A file of a sample: where it lies, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    offset: u64,
    bytes: Vec<u8>,
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
                let split = splits(&input.path, &[PathBuf::from(name)], &input.shards)?[0];
                let (samples, choice) = (InTurn::default(), input.shards.choice.clone());
                (Contents::Samples { samples, choice, classes: 0 }, split)
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

    /// How a file is called in reports.
    fn member(&self, name: &str) -> String {
        format!("{}: {name}", self.pipe.path.display())
    }

    fn reject(&mut self, name: &str, reason: impl Into<String>) {
        let name = self.member(name);
        self.rejected.push(Rejected { name, reason: reason.into() });
    }

    fn skip(&mut self, kind: String, name: &str) {
        let name = self.member(name);
        self.skipped.add(kind, || name);
    }

    /// The next member of a class tar.
    fn image_of_class(&mut self) -> Result<Option<Image>, Error> {
        loop {
            let Contents::Classes { inside, .. } = &mut self.contents else { return Ok(None) };
            let label = *inside;
            let Some(member) = self.pipe.member()? else {
                note_junk(&mut self.skipped, &self.pipe.path, self.pipe.members.end());
                let Contents::Classes { inside, .. } = &mut self.contents else { return Ok(None) };
                match inside.take() {
                    Some(_) => self.pipe.check_inner_end()?,
                    None => return Ok(None),
                }
                continue;
            };
            if let Some(kind) = no_data(&member.name) {
                self.skip(kind.to_owned(), &member.name);
                continue;
            }
            let Some(label) = label else {
                let entered = self.class_of(&member)?;
                if let Contents::Classes { inside, .. } = &mut self.contents {
                    *inside = entered;
                }
                continue;
            };
            if let Some(reason) = no_image(&member) {
                self.reject(&member.name, reason);
                continue;
            }
            let bytes = self.pipe.bytes()?;
            let key = key(stem(file_name(&member.name)));
            return Ok(Some(Image { key, label: Some(label), offset: member.offset, bytes }));
        }
    }

    /// Enters a class tar and gives its label. What is none is rejected.
    fn class_of(&mut self, member: &Member) -> Result<Option<u32>, Error> {
        let name = member.name.strip_suffix(".tar").map(file_name);
        let (None, Some(name)) = (member.kind.refused(), name) else {
            self.reject(&member.name, member.kind.refused().unwrap_or("is no tar of a class"));
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
        self.pipe.members.enter();
        Ok(Some(label as u32))
    }

    /// The next sample: all files in a row that have its name.
    fn sample(&mut self) -> Result<Option<Image>, Error> {
        loop {
            let Some(member) = self.pipe.member()? else {
                note_junk(&mut self.skipped, &self.pipe.path, self.pipe.members.end());
                let Contents::Samples { samples, .. } = &mut self.contents else { return Ok(None) };
                return Ok(samples.finish().and_then(|sample| self.image_of(&sample)));
            };
            let Contents::Samples { choice, .. } = &self.contents else { return Ok(None) };
            let (key, extension) = match choice.part(&member.name) {
                Ok(part) => part,
                Err(kind) => {
                    self.skip(kind, &member.name);
                    continue;
                }
            };
            if let Some(reason) = no_image(&member) {
                self.reject(&member.name, reason);
                continue;
            }
            let part = Part { offset: member.offset, bytes: self.pipe.bytes()? };
            let Contents::Samples { samples, .. } = &mut self.contents else { return Ok(None) };
            match samples.add(member.archive, key, extension, part) {
                Added::More | Added::Next(None) => {}
                Added::Next(Some(sample)) => {
                    if let Some(image) = self.image_of(&sample) {
                        return Ok(Some(image));
                    }
                }
                Added::Twice => self.reject(&member.name, "is there twice"),
                Added::Apart => {
                    let problem =
                        format!("{} stands apart from the files of its sample", member.name);
                    let mend = "give the archive as a file: there they may stand in any order";
                    return Err(Error::input(&self.pipe.path, problem, mend));
                }
            }
        }
    }

    /// The image of a whole sample; what is none is rejected.
    fn image_of(&mut self, sample: &Sample<Part>) -> Option<Image> {
        let Contents::Samples { choice, classes, .. } = &mut self.contents else { return None };
        let choice = choice.clone();
        let found = sample.choose(&choice).and_then(|chosen| {
            let Some(chosen) = chosen else { return Ok(None) };
            let Some(label) = chosen.label else { return Ok(Some((chosen, None))) };
            let part = label.part();
            let number = read_label(label, &part.bytes)?;
            Ok(Some((chosen, number)))
        });
        let (mut unused, mut image) = (Vec::new(), None);
        match found {
            Err(reason) => self.reject(&sample.key, reason),
            Ok(None) => unused.extend(sample.parts.iter().map(|(extension, _)| &**extension)),
            Ok(Some((chosen, label))) => {
                unused.clone_from(&chosen.unused);
                if let (None, Some(part)) = (label, chosen.label) {
                    unused.extend(sample.extension_of(part.part()));
                }
                *classes = label.map_or(*classes, |label| (*classes).max(label + 1));
                let Part { offset, bytes } = chosen.image.clone();
                image = Some(Image { key: key(&sample.key), label, offset, bytes });
            }
        }
        for extension in unused {
            self.skip(passed_over(extension), &format!("{}.{extension}", sample.key));
        }
        image
    }
}

/// A tar archive, or several in a row, read header by header.
#[derive(Debug)]
struct Pipe {
    path: PathBuf,
    members: Members<'static>,
}

impl Pipe {
    fn open(input: &Path) -> Result<Self, Error> {
        let (path, mut reader): (_, Box<dyn Read>) = if input == Path::new(STANDARD_INPUT) {
            if io::stdin().is_terminal() {
                let problem = "--input - reads a tar archive, and standard input is a terminal";
                let mend = "pipe the archive in: cat ARCHIVE | shard-imagenet ...";
                return Err(Error::Usage { problem: problem.to_owned(), mend });
            }
            (PathBuf::from("standard input"), Box::new(io::stdin().lock()))
        } else {
            (input.to_path_buf(), Box::new(File::open(input).map_err(Error::open(input))?))
        };
        let mut first = Vec::new();
        let read = reader.by_ref().take(6).read_to_end(&mut first);
        read.map_err(Error::io(&path, "read it"))?;
        let compression = Compression::of_bytes(&first);
        let whole = Cursor::new(first).chain(reader);
        let members = match compression {
            None => Members::stream(whole),
            Some(compression) => Members::stream(decoder(&path, compression, whole)?),
        };
        Ok(Self { path, members })
    }

    /// The next member, of a class tar where one was entered; none at the end of either.
    fn member(&mut self) -> Result<Option<Member>, Error> {
        let inside = self.members.is_inside();
        match self.members.next_member() {
            Ok(None) if !inside && !self.members.end().marked => {
                Err(self.cut(&format!("ends after {}", self.members.last())))
            }
            Ok(member) => Ok(member),
            Err(broken) => Err(self.broken(broken)),
        }
    }

    /// The bytes of the member whose header was read last.
    fn bytes(&mut self) -> Result<Vec<u8>, Error> {
        self.members.data(u64::MAX).map_err(|broken| self.broken(broken))
    }

    /// A class tar without an end marker was cut before it was put into the archive.
    fn check_inner_end(&self) -> Result<(), Error> {
        match self.members.end().marked {
            true => Ok(()),
            false => {
                let (last, at) = (self.members.last(), self.members.position());
                let problem = format!("ends after {last}, without an end marker (at byte {at})");
                Err(Error::input(&self.path, problem, "fetch the archive again"))
            }
        }
    }

    fn broken(&self, broken: Broken) -> Error {
        match broken {
            Broken::Cut { place, member, .. } => self.cut(&format!("ends {place} {member}")),
            // Of a decoder, not of the system.
            Broken::Io(error) if error.raw_os_error().is_none() => match error.kind() {
                io::ErrorKind::UnexpectedEof => self.cut("is compressed, and ends"),
                _ => unpack::failed(&self.path, error),
            },
            broken => damaged(&self.path, broken),
        }
    }

    /// The stream ended early, as one does whose sender was stopped: what is stored is kept.
    fn cut(&self, ends: &str) -> Error {
        let at = self.members.position();
        Error::Stream {
            path: self.path.clone(),
            problem: format!("{ends}, without an end marker (at byte {at})"),
            mend: "pipe the whole archive into the same command, which goes on from there",
        }
    }
}
