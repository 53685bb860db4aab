//! Tar archives: ImageNet's own (a tar of class tars, and a flat one), and WebDataset shards.
//!
//! Headers are read by seeking from one to the next; the images stay where they are, and are read
//! later as ranges of the outermost file. Nothing is ever unpacked, so no name in an archive can
//! reach the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tar::EntryType;

use super::devkit::{self, Synset};
use crate::Error;
use crate::catalog::{Catalog, Class, Item, MAX_IMAGE_BYTES, Place, Rejected, Split, key, stem};

pub(super) const BLOCK: u64 = 512;

/// What names and numbers of the parts of ImageNet are called.
#[derive(Clone, Debug, Default)]
pub struct ImageNetLists {
    /// The validation archive.
    pub val: Option<PathBuf>,
    /// One line per validation image, in the order of their names.
    pub val_labels: Option<PathBuf>,
    /// One line per class: the synset, then its words.
    pub synsets: Option<PathBuf>,
    /// The devkit's `meta.mat`, or one synset a line in the order of the devkit's numbers. Only needed
    /// where labels are numbers; that order is not the sorted one, so no other list stands in for it.
    pub ids: Option<PathBuf>,
}

/// The training archive (or a folder with the files under their usual names), and the validation
/// archive with its labels.
///
/// # Errors
/// An archive is damaged; labels do not fit images or classes.
pub(super) fn imagenet(input: &Path, lists: &ImageNetLists) -> Result<Catalog, Error> {
    let (train, lists) = usual_names(input, lists)?;
    let mut catalog = Catalog::default();
    let archive = catalog.open(&train)?;
    let mut tars = Vec::new();
    members(&archive, 0..archive.length, &mut |member| {
        let class = member.name.strip_suffix(".tar");
        match (member.refused(), class) {
            (None, Some(class)) => {
                tars.push((file_name(class).to_owned(), member.offset, member.size))
            }
            (reason, _) => catalog.rejected.push(Rejected {
                name: archive.member(&member.name),
                reason: reason.unwrap_or("is no tar of a class").to_owned(),
            }),
        }
        Ok(())
    })?;
    tars.sort();
    if tars.is_empty() {
        let mend = "for other layouts see --layout";
        return Err(Error::input(train, "holds no tar of a class (n01440764.tar ...)", mend));
    }
    if let Some(pair) = tars.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let problem = format!("holds {}.tar twice", pair[0].0);
        return Err(Error::input(train, problem, "fetch the archive again"));
    }
    let words = match (&lists.synsets, &lists.ids) {
        (Some(path), _) => read_synsets(path)?,
        (None, Some(path)) => read_ids(path)?,
        (None, None) => Vec::new(),
    };
    for (label, (synset, offset, size)) in tars.iter().enumerate() {
        let of = words.iter().find(|(name, _)| name == synset).and_then(|(_, words)| words.clone());
        catalog.classes.push(Class { name: synset.clone(), words: of });
        members(&archive, *offset..offset + size, &mut |member| {
            catalog.add(&archive, &member, Split::Train, Some(label as u32));
            Ok(())
        })?;
    }
    if let Some(val) = &lists.val {
        catalog.add_val(val, &lists)?;
    }
    Ok(catalog)
}

/// A folder of shards, or one shard: `KEY.jpg` and `KEY.cls` side by side. The split is what the
/// shard's name begins with, else `train`.
///
/// # Errors
/// An archive is damaged; there is none.
pub(super) fn webdataset(input: &Path) -> Result<Catalog, Error> {
    let mut paths = vec![input.to_path_buf()];
    if input.is_dir() {
        let entries = std::fs::read_dir(input).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        paths = entries.map_err(Error::open(input))?.iter().map(std::fs::DirEntry::path).collect();
        paths.retain(|path| {
            let hidden = file_name(&path.to_string_lossy()).starts_with('.');
            path.extension().is_some_and(|extension| extension == "tar") && !hidden
        });
        paths.sort();
    }
    let mut catalog = Catalog::default();
    for path in &paths {
        let archive = catalog.open(path)?;
        catalog.add_shard(&archive)?;
    }
    if paths.is_empty() {
        return Err(Error::input(input, "holds no .tar file", "give the folder of the shards"));
    }
    let classes = input.join(pipeline::index::CLASSES_FILE);
    if classes.is_file() {
        let known = pipeline::index::Classes::load(input)?.0;
        catalog.classes =
            known.into_iter().map(|known| Class { name: known.name, words: known.words }).collect();
        if let Some(item) = catalog
            .items
            .iter()
            .find(|item| item.label.is_some_and(|label| label as usize >= catalog.classes.len()))
        {
            let (key, label) = (&item.key, item.label.unwrap_or_default());
            let problem =
                format!("has {} classes, but {key} has label {label}", catalog.classes.len());
            return Err(Error::input(classes, problem, "mend the list or remove it"));
        }
    } else if let Some(most) = catalog.items.iter().filter_map(|item| item.label).max() {
        catalog.classes = (0..=most).map(|class| Class::named(class.to_string())).collect();
    }
    Ok(catalog)
}

/// One regular sample of a shard, while its members are collected.
#[derive(Debug)]
pub(super) struct Sample<Image> {
    pub(super) image: Option<Image>,
    pub(super) label: Option<String>,
}

impl<Image> Default for Sample<Image> {
    fn default() -> Self {
        Self { image: None, label: None }
    }
}

impl<Image> Sample<Image> {
    /// The image and its label, or why there is none.
    pub(super) fn checked(self) -> Result<(Image, Option<u32>), String> {
        let label = self.label.as_deref().map(str::parse::<u32>);
        match (self.image, label) {
            (None, _) => Err("has a label but no image".to_owned()),
            (_, Some(Err(_))) => {
                Err(format!("has the label {:?}, no number", self.label.unwrap_or_default()))
            }
            (_, Some(Ok(label))) if label >= MAX_CLASSES => {
                Err(format!("has label {label}, out of range"))
            }
            (Some(image), label) => Ok((image, label.and_then(Result::ok))),
        }
    }
}

/// A member's name as WebDataset reads it: the key ends at the first dot of the last part.
pub(super) fn split_name(name: &str) -> (&str, &str) {
    let folder = name.len() - file_name(name).len();
    let dot = name[folder..].find('.').map_or(name.len(), |at| folder + at);
    name.split_at(dot)
}

/// The split that a shard's name begins with, else `train`.
pub(super) fn split_of(shard: &str) -> Split {
    let prefix = shard.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    Split::from_name(prefix).unwrap_or(Split::Train)
}

/// The most classes that a label may speak of. A larger number is a slip, and every class has a name.
const MAX_CLASSES: u32 = 1 << 20;

impl Catalog {
    fn open(&mut self, path: &Path) -> Result<Archive, Error> {
        let file = File::open(path).map_err(Error::open(path))?;
        let metadata = file.metadata().map_err(Error::open(path))?;
        if !metadata.is_file() {
            return Err(Error::input(path, "is no regular file", "give the .tar file"));
        }
        let mut magic = [0; 2];
        if file.read_exact_at(&mut magic, 0).is_ok() && magic == [0x1F, 0x8B] {
            let mend = "unpack it with gunzip: members are read where they are";
            return Err(Error::input(path, "is compressed", mend));
        }
        let number = self.archives.len() as u32;
        self.archives.push(path.to_path_buf());
        Ok(Archive { path: path.to_path_buf(), file, length: metadata.len(), number })
    }

    /// Adds a member as an image, or as a rejected file.
    fn add(&mut self, archive: &Archive, member: &Member, split: Split, label: Option<u32>) {
        match member.no_image() {
            None => self.items.push(Item {
                key: key(stem(file_name(&member.name))),
                split,
                label,
                place: Place::Range { archive: archive.number, offset: member.offset },
                length: member.size as u32,
            }),
            Some(reason) => {
                let name = archive.member(&member.name);
                self.rejected.push(Rejected { name, reason: reason.to_owned() });
            }
        }
    }

    /// Adds the validation images; the labels are by position among the images sorted by name.
    pub(super) fn add_val(&mut self, val: &Path, lists: &ImageNetLists) -> Result<(), Error> {
        let Some(list) = &lists.val_labels else {
            let mend = "give --val-labels (the devkit's ground truth, or a synset a line)";
            return Err(Error::input(val, "has no list of labels", mend));
        };
        let ids = lists.ids.as_deref().map_or(Ok(Vec::new()), read_ids)?;
        let labels = read_val_labels(list, &ids)?;
        let archive = self.open(val)?;
        let mut images = BTreeMap::new();
        members(&archive, 0..archive.length, &mut |member| {
            images.insert(stem(file_name(&member.name)).to_owned(), member);
            Ok(())
        })?;
        if images.len() != labels.len() {
            let problem = format!("has {} labels for {} images", labels.len(), images.len());
            return Err(Error::input(list, problem, "give the list of this archive"));
        }
        for ((name, member), (position, label)) in images.iter().zip(labels.iter().enumerate()) {
            let synset = match label {
                ValLabel::Next(synset) => synset,
                ValLabel::Of(image, synset) if image == name => synset,
                ValLabel::Of(image, _) => {
                    let problem =
                        format!("line {}: {image} is not in the archive, {name} is", position + 1);
                    return Err(Error::input(list, problem, "give the list of this archive"));
                }
            };
            let class = self.classes.binary_search_by(|class| class.name.cmp(synset));
            let class = class.map_err(|_| {
                let problem =
                    format!("line {}: {synset} is no class of the training images", position + 1);
                Error::input(list, problem, "training and validation must have the same classes")
            })?;
            self.add(&archive, member, Split::Val, Some(class as u32));
        }
        Ok(())
    }

    fn add_shard(&mut self, archive: &Archive) -> Result<(), Error> {
        let name = archive.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let split = split_of(&name);
        let mut samples: BTreeMap<String, Sample<(u64, u64)>> = BTreeMap::new();
        members(archive, 0..archive.length, &mut |member| {
            if let Some(reason) = member.no_image() {
                let name = archive.member(&member.name);
                self.rejected.push(Rejected { name, reason: reason.to_owned() });
                return Ok(());
            }
            let (stem, extension) = split_name(&member.name);
            match extension.to_ascii_lowercase().as_str() {
                ".jpg" | ".jpeg" | ".png" => {
                    let sample = samples.entry(stem.to_owned()).or_default();
                    if sample.image.replace((member.offset, member.size)).is_some() {
                        let (name, reason) =
                            (archive.member(&member.name), "is there twice".to_owned());
                        self.rejected.push(Rejected { name, reason });
                    }
                }
                ".cls" => {
                    let text = archive.read(member.offset, member.size.min(64))?;
                    samples.entry(stem.to_owned()).or_default().label =
                        Some(String::from_utf8_lossy(&text).trim().to_owned());
                }
                _ => self
                    .skipped
                    .add("members that are no image or label", || archive.member(&member.name)),
            }
            Ok(())
        })?;
        for (stem, sample) in samples {
            match sample.checked() {
                Ok(((offset, size), label)) => self.items.push(Item {
                    key: key(&stem),
                    split,
                    label,
                    place: Place::Range { archive: archive.number, offset },
                    length: size as u32,
                }),
                Err(reason) => {
                    self.rejected.push(Rejected { name: archive.member(&stem), reason });
                }
            }
        }
        Ok(())
    }
}

/// An archive that is being scanned.
struct Archive {
    path: PathBuf,
    file: File,
    length: u64,
    number: u32,
}

impl Archive {
    /// How a member is called in reports.
    fn member(&self, name: &str) -> String {
        format!("{}: {name}", self.path.display())
    }

    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, offset).map_err(Error::io(&self.path, "read it"))?;
        Ok(bytes)
    }
}

/// A header in an archive.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) kind: EntryType,
    /// First byte, counted from the start of the outermost file.
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Member {
    /// Why this member cannot be an image, if it cannot.
    pub(super) fn no_image(&self) -> Option<&'static str> {
        let large = self.size > MAX_IMAGE_BYTES;
        self.refused().or_else(|| large.then_some("is too large for an image"))
    }

    /// Why this member is not read, if it is not.
    pub(super) fn refused(&self) -> Option<&'static str> {
        match self.kind {
            EntryType::Regular | EntryType::Continuous => None,
            EntryType::Symlink => Some("is a symbolic link"),
            EntryType::Link => Some("is a hard link"),
            EntryType::Char | EntryType::Block => Some("is a device"),
            EntryType::Fifo => Some("is a pipe"),
            EntryType::GNUSparse => Some("is a sparse file"),
            _ => Some("is of an unknown kind"),
        }
    }
}

/// Calls `visit` for every member but folders of the archive that lies at `range` of a file.
fn members(
    archive: &Archive,
    range: std::ops::Range<u64>,
    visit: &mut dyn FnMut(Member) -> Result<(), Error>,
) -> Result<(), Error> {
    let damaged = |at: u64, problem: String| {
        let problem = format!("{problem} (at byte {at})");
        Error::input(&archive.path, problem, "fetch the archive again")
    };
    let section =
        Section { file: &archive.file, start: range.start, at: 0, length: range.end - range.start };
    let mut reader = tar::Archive::new(section);
    let mut end = 0;
    let mut last = "its first header".to_owned();
    for entry in reader.entries_with_seek().map_err(Error::io(&archive.path, "read it"))? {
        let entry = entry.map_err(|error| {
            damaged(range.start + end, format!("is no sound tar archive after {last} ({error})"))
        })?;
        let (offset, size, kind) =
            (entry.raw_file_position(), entry.size(), entry.header().entry_type());
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        // Links may claim the size of what they point to, but hold nothing.
        let held = match kind {
            EntryType::Regular | EntryType::Continuous => size,
            _ => 0,
        };
        end = offset.saturating_add(held);
        if end > range.end - range.start {
            return Err(damaged(range.end, format!("ends inside {name}")));
        }
        end = end.next_multiple_of(BLOCK);
        last.clone_from(&name);
        if !matches!(kind, EntryType::Directory | EntryType::XGlobalHeader) {
            visit(Member { name, kind, offset: range.start + offset, size: held })?;
        }
    }
    // A cut between two members shows in that no zero block follows the last.
    let mut block = [0; BLOCK as usize];
    let whole = range.start + end + BLOCK <= range.end
        && archive.file.read_exact_at(&mut block, range.start + end).is_ok();
    if !whole {
        return Err(damaged(range.end, format!("ends after {last}, without an end marker")));
    }
    Ok(())
}

/// A part of a file as a file of its own.
struct Section<'a> {
    file: &'a File,
    start: u64,
    at: u64,
    length: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.at).min(buffer.len() as u64) as usize;
        let read = self.file.read_at(&mut buffer[..left], self.start + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Section<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Fills in what was not named from the usual names, where `input` is a folder.
fn usual_names(input: &Path, lists: &ImageNetLists) -> Result<(PathBuf, ImageNetLists), Error> {
    if !input.is_dir() {
        return Ok((input.to_path_buf(), lists.clone()));
    }
    let find =
        |names: &[&str]| names.iter().map(|name| input.join(name)).find(|path| path.is_file());
    let train = find(&["ILSVRC2012_img_train.tar"]).ok_or_else(|| {
        let mend = "name the training archive, or use --layout imagefolder for an unpacked tree";
        Error::input(input, "holds no ILSVRC2012_img_train.tar", mend)
    })?;
    let or = |given: &Option<PathBuf>, names: &[&str]| given.clone().or_else(|| find(names));
    let found = ImageNetLists {
        val: or(&lists.val, &["ILSVRC2012_img_val.tar"]),
        val_labels: or(
            &lists.val_labels,
            &[
                "imagenet_2012_validation_synset_labels.txt",
                "LOC_val_solution.csv",
                "ILSVRC2012_validation_ground_truth.txt",
            ],
        ),
        ids: or(&lists.ids, &["meta.mat"]),
        synsets: or(&lists.synsets, &["synset_words.txt", "LOC_synset_mapping.txt", "synsets.txt"]),
    };
    Ok((train, found))
}

/// The label of a validation image.
enum ValLabel {
    /// Of the next image by name.
    Next(String),
    /// Of the image of this name.
    Of(String, String),
}

/// A line is a synset; or an image and a synset; or a number, which counts the lines of `ids` from 1. Comma or white space separate; a line that says more, as Kaggle's boxes, is cut.
fn read_val_labels(path: &Path, ids: &[Synset]) -> Result<Vec<ValLabel>, Error> {
    let wrong = |line: usize, problem: &str, mend: &str| {
        Err(Error::input(path, format!("line {}: {problem}", line + 1), mend))
    };
    let mut labels = Vec::new();
    for (number, line) in read_lines(path)?.iter().enumerate() {
        let mut words = line.split([',', ' ', '\t']).filter(|word| !word.is_empty());
        match (words.next(), words.next()) {
            (Some("ImageId"), _) | (None, _) => {}
            (Some(label), None) if label.bytes().all(|byte| byte.is_ascii_digit()) => {
                let at = label.parse::<usize>().unwrap_or(0);
                let Some((synset, _)) = at.checked_sub(1).and_then(|at| ids.get(at)) else {
                    let problem = format!("no synset has the number {label}");
                    let mend = "give --ids, the devkit's meta.mat";
                    return wrong(number, &problem, mend);
                };
                labels.push(ValLabel::Next(synset.clone()));
            }
            (Some(synset), None) => labels.push(ValLabel::Next(synset.to_owned())),
            (_, Some(synset)) if synset.bytes().all(|byte| byte.is_ascii_digit()) => {
                let mend = "give synsets: it cannot be told from where the numbers count";
                return wrong(number, "gives a number to a named image", mend);
            }
            (Some(image), Some(synset)) => {
                labels.push(ValLabel::Of(stem(image).to_owned(), synset.to_owned()));
            }
        }
    }
    if labels.iter().all(|label| matches!(label, ValLabel::Of(..))) {
        labels.sort_by(|a, b| match (a, b) {
            (ValLabel::Of(a, _), ValLabel::Of(b, _)) => a.cmp(b),
            _ => std::cmp::Ordering::Equal,
        });
    }
    Ok(labels)
}

/// The synsets by number: the devkit's own file, or a list of them.
fn read_ids(path: &Path) -> Result<Vec<Synset>, Error> {
    let bytes = std::fs::read(path).map_err(Error::open(path))?;
    match bytes.starts_with(devkit::MAGIC) {
        true => devkit::read(path, &bytes),
        false => read_synsets(path),
    }
}

/// A synset a line, with words after it or not.
pub(super) fn read_synsets(path: &Path) -> Result<Vec<Synset>, Error> {
    let mut seen = BTreeSet::new();
    let mut synsets = Vec::new();
    for (number, line) in read_lines(path)?.iter().enumerate() {
        let (synset, words) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        if synset.is_empty() {
            continue;
        }
        if !seen.insert(synset.to_owned()) {
            let problem = format!("line {}: {synset} is there twice", number + 1);
            return Err(Error::input(path, problem, "a synset is one class"));
        }
        let words = Some(words.trim().to_owned()).filter(|words| !words.is_empty());
        synsets.push((synset.to_owned(), words));
    }
    Ok(synsets)
}

fn read_lines(path: &Path) -> Result<Vec<String>, Error> {
    let bytes = std::fs::read(path).map_err(Error::open(path))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::input(path, "is not UTF-8 text", "give a list as text"))?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

pub(super) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
