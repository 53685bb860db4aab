//! Tar archives: ImageNet's own (a tar of class tars, and a flat one), and WebDataset shards.
//!
//! Headers are read by seeking from one to the next; the images stay where they are, and are read
//! later as ranges of the outermost file. No name in an archive can reach the disk: only whole shards
//! that are compressed are unpacked, one behind the other into a file without a name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pipeline::container::{
    self, Broken, Choice, Compression, End, Label, MAX_JSON_BYTES, MAX_NUMBER_BYTES, Member,
    Members, Sample, Samples, ShardName, Skipped, image_kind, no_data, passed_over,
};
use pipeline::index::{CLASSES_FILE, INDEX_FILE, MANIFEST_FILE};

use super::devkit::{self, Synset};
use crate::Error;
use crate::catalog::{
    Catalog, Class, Item, MAX_IMAGE_BYTES, Place, Rejected, Split, key, shown, stem,
};

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
    // Class tars in the order of the archive, by which images are labelled for now.
    let mut synsets: Vec<String> = Vec::new();
    let mut members = archive.members()?;
    while let Some(member) = archive.next(&mut members)? {
        if let Some(kind) = no_data(&member.name) {
            catalog.skipped.add(kind, || archive.member(&member.name));
            continue;
        }
        let class = member.name.strip_suffix(".tar");
        let (None, Some(class)) = (member.kind.refused(), class) else {
            catalog.rejected.push(Rejected {
                name: archive.member(&member.name),
                reason: member.kind.refused().unwrap_or("is no tar of a class").to_owned(),
            });
            continue;
        };
        let label = synsets.len() as u32;
        synsets.push(file_name(class).to_owned());
        members.enter();
        while let Some(member) = archive.next(&mut members)? {
            match no_data(&member.name) {
                Some(kind) => catalog.skipped.add(kind, || archive.member(&member.name)),
                None => catalog.add(&archive, &member, Split::Train, Some(label)),
            }
        }
        archive.check_end(&members)?;
        note_junk(&mut catalog.skipped, &archive.path, members.end());
    }
    archive.check_end(&members)?;
    note_junk(&mut catalog.skipped, &archive.path, members.end());
    if synsets.is_empty() {
        let mend = "for other layouts see --layout";
        return Err(Error::input(train, "holds no tar of a class (n01440764.tar ...)", mend));
    }
    let mut sorted = synsets.clone();
    sorted.sort();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        let problem = format!("holds {}.tar twice", pair[0]);
        return Err(Error::input(train, problem, "fetch the archive again"));
    }
    let number = |synset: &String| sorted.partition_point(|other| other < synset) as u32;
    let numbers: Vec<u32> = synsets.iter().map(number).collect();
    for item in &mut catalog.items {
        item.label = item.label.map(|label| numbers[label as usize]);
    }
    let words = match (&lists.synsets, &lists.ids) {
        (Some(path), _) => read_synsets(path)?,
        (None, Some(path)) => read_ids(path)?,
        (None, None) => Vec::new(),
    };
    for synset in sorted {
        let of =
            words.iter().find(|(name, _)| *name == synset).and_then(|(_, words)| words.clone());
        catalog.classes.push(Class { name: synset, words: of });
    }
    if let Some(val) = &lists.val {
        catalog.add_val(val, &lists)?;
    }
    Ok(catalog)
}

/// How WebDataset shards are read where names and members do not tell.
#[derive(Clone, Debug, Default)]
pub struct ShardOptions {
    /// Which members are images and labels.
    pub choice: Choice,
    /// The split of all shards, whatever their names say.
    pub split: Option<Split>,
    /// Where shards that are compressed are unpacked, into a file that goes with the process: none
    /// for the system's folder of temporary files.
    pub scratch: Option<PathBuf>,
}

/// A folder of shards, or one shard, as [`pipeline::container`] says. Compressed ones are unpacked.
///
/// # Errors
/// An archive is damaged; there is none; their names do not tell their splits.
pub(super) fn webdataset(input: &Path, options: &ShardOptions) -> Result<Catalog, Error> {
    let mut catalog = Catalog::default();
    let paths = catalog.shards(input)?;
    if paths.is_empty() {
        return Err(Error::input(input, "holds no .tar file", "give the folder of the shards"));
    }
    let splits = splits(input, &paths, options)?;
    for (path, split) in paths.iter().zip(splits) {
        let archive = catalog.open_shard(path, options)?;
        catalog.add_shard(&archive, split, &options.choice)?;
    }
    let classes = input.join(CLASSES_FILE);
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

/// The split of each shard: the one that was named, or what the names tell.
pub(super) fn splits(
    input: &Path,
    paths: &[PathBuf],
    options: &ShardOptions,
) -> Result<Vec<Split>, Error> {
    if let Some(split) = options.split {
        return Ok(vec![split; paths.len()]);
    }
    let names: Vec<String> = paths
        .iter()
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            ShardName::of(&name).map_or(&*name, |shard| shard.stem).to_owned()
        })
        .collect();
    container::splits(&names.iter().map(String::as_str).collect::<Vec<_>>()).map_err(|mixed| {
        let mend = "rename it (train, val or test in the name), or build each split from a folder of \
                    its own with --split";
        Error::input(input, mixed.to_string(), mend)
    })
}

/// The label in a member's bytes, or why there is none. None where a JSON member holds none and none
/// was asked for.
pub(super) fn read_label<T>(label: Label<'_, T>, bytes: &[u8]) -> Result<Option<u32>, String> {
    match label {
        Label::Number(_) => container::read_label(bytes)
            .map(Some)
            .map_err(|problem| format!("has a label, but {problem}")),
        Label::Json(_, field) => container::read_json_label(bytes, field)
            .map_err(|problem| format!("has a .json that {problem}")),
    }
}

impl Catalog {
    fn open(&mut self, path: &Path) -> Result<Archive, Error> {
        // Of a pipe, the opening would wait for a writer.
        if !std::fs::metadata(path).map_err(Error::open(path))?.is_file() {
            return Err(Error::input(path, "is no regular file", "give the .tar file"));
        }
        let file = File::open(path).map_err(Error::open(path))?;
        let metadata = file.metadata().map_err(Error::open(path))?;
        let number = self.archives.len() as u32;
        self.archives.push(path.to_path_buf());
        Ok(Archive { path: path.to_path_buf(), file, start: 0, length: metadata.len(), number })
    }

    /// The same for a shard, which may be compressed.
    fn open_shard(&mut self, path: &Path, options: &ShardOptions) -> Result<Archive, Error> {
        let mut archive = self.open(path)?;
        let mut first = [0; 6];
        let read = archive.file.read_at(&mut first, 0).map_err(Error::io(path, "read it"))?;
        if let Some(compression) = Compression::of_bytes(&first[..read]) {
            let unpacked = self.unpacked.get_or_insert_with(Default::default);
            let scratch = options.scratch.clone().unwrap_or_else(std::env::temp_dir);
            let range = unpacked.add(archive.number, &archive.file, path, compression, &scratch)?;
            (archive.start, archive.length) = (range.start, range.end - range.start);
            archive.file = unpacked.file(path)?;
        }
        Ok(archive)
    }

    /// The shards of a folder in the order of their names, or the one that `input` is.
    fn shards(&mut self, input: &Path) -> Result<Vec<PathBuf>, Error> {
        if !input.is_dir() {
            return Ok(vec![input.to_path_buf()]);
        }
        let entries = std::fs::read_dir(input).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut paths: Vec<_> =
            entries.map_err(Error::open(input))?.iter().map(std::fs::DirEntry::path).collect();
        paths.sort();
        paths.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if ShardName::of(&name).is_some() && !path.is_dir() {
                return true;
            }
            let example = || path.display().to_string();
            let ours = [INDEX_FILE, MANIFEST_FILE, CLASSES_FILE, "rejected.jsonl", "odd.jsonl"];
            if let Some(kind) = no_data(&name) {
                self.skipped.add(kind, example);
            } else if path.is_dir() {
                self.skipped.add("folders beside the shards", example);
            } else if !ours.contains(&&*name) {
                let kind = match extension(&name) {
                    "" => "files without an extension".to_owned(),
                    extension => passed_over(extension),
                };
                self.skipped.add(kind, example);
            }
            false
        });
        let mut stems: BTreeMap<String, &Path> = BTreeMap::new();
        for path in &paths {
            let name = path.file_name().unwrap_or_default();
            // Of whatever bytes: other names are other shards.
            let stem = ShardName::of(&shown(name)).map_or_else(String::new, |n| n.stem.to_owned());
            if let Some(other) = stems.insert(stem, path) {
                let (one, two) = (other.file_name().unwrap_or_default(), name);
                let problem = format!("{} and {} are the same shard", shown(one), shown(two));
                return Err(Error::input(input, problem, "move one of them away"));
            }
        }
        Ok(paths)
    }

    /// Adds a member as an image, or as a rejected file.
    fn add(&mut self, archive: &Archive, member: &Member, split: Split, label: Option<u32>) {
        match no_image(member) {
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
        let mut members = archive.members()?;
        while let Some(member) = archive.next(&mut members)? {
            if let Some(kind) = no_data(&member.name) {
                self.skipped.add(kind, || archive.member(&member.name));
            } else if image_kind(extension(&member.name)).is_none() {
                let kind = passed_over(extension(&member.name));
                self.skipped.add(kind, || archive.member(&member.name));
            } else {
                images.insert(stem(file_name(&member.name)).to_owned(), member);
            }
        }
        archive.check_end(&members)?;
        note_junk(&mut self.skipped, &archive.path, members.end());
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

    fn add_shard(&mut self, archive: &Archive, split: Split, choice: &Choice) -> Result<(), Error> {
        let mut samples = Samples::default();
        let mut members = archive.members()?;
        while let Some(member) = archive.next(&mut members)? {
            let name = || archive.member(&member.name);
            let (key, extension) = match choice.part(&member.name) {
                Ok(part) => part,
                Err(kind) => {
                    self.skipped.add(kind, name);
                    continue;
                }
            };
            let twice = "is there twice";
            let reason = no_image(&member).or_else(|| {
                let range = (member.offset, member.size);
                let added = samples.add(member.archive, key, extension, range);
                (!added).then_some(twice)
            });
            if let Some(reason) = reason {
                self.rejected.push(Rejected { name: name(), reason: reason.to_owned() });
            }
        }
        let end = members.end();
        if !end.marked {
            self.skipped.add("missing end markers", || archive.path.display().to_string());
        }
        note_junk(&mut self.skipped, &archive.path, end);
        for sample in samples.finish() {
            if let Err(reason) = self.add_sample(archive, split, &sample, choice)? {
                let name = archive.member(&sample.key);
                self.rejected.push(Rejected { name, reason });
            }
        }
        Ok(())
    }

    /// Adds a sample's image; an inner error is why it cannot.
    fn add_sample(
        &mut self,
        archive: &Archive,
        split: Split,
        sample: &Sample<(u64, u64)>,
        choice: &Choice,
    ) -> Result<Result<(), String>, Error> {
        let chosen = match sample.choose(choice) {
            Ok(chosen) => chosen,
            Err(reason) => return Ok(Err(reason)),
        };
        let mut unused: Vec<&str> = match &chosen {
            Some(chosen) => chosen.unused.clone(),
            None => sample.parts.iter().map(|(extension, _)| &**extension).collect(),
        };
        if let Some(chosen) = chosen {
            let mut number = None;
            if let Some(label) = chosen.label {
                let ((offset, size), most) = match label {
                    Label::Number(place) => (*place, MAX_NUMBER_BYTES),
                    Label::Json(place, _) => (*place, MAX_JSON_BYTES),
                };
                // One that is too long is no number, and no JSON once it is cut.
                let bytes = archive.read(offset, size.min(most + 1))?;
                match read_label(label, &bytes) {
                    Ok(found) => number = found,
                    Err(reason) => return Ok(Err(reason)),
                }
                if number.is_none() {
                    unused.extend(sample.extension_of(&(offset, size)));
                }
            }
            let (offset, size) = *chosen.image;
            self.items.push(Item {
                key: key(&sample.key),
                split,
                label: number,
                place: Place::Range { archive: archive.number, offset },
                length: size as u32,
            });
        }
        for extension in unused {
            let example = || archive.member(&format!("{}.{extension}", sample.key));
            self.skipped.add(passed_over(extension), example);
        }
        Ok(Ok(()))
    }
}

/// An archive that is being scanned.
struct Archive {
    path: PathBuf,
    file: File,
    /// Where in the file it lies.
    start: u64,
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
        let read = self.file.read_exact_at(&mut bytes, self.start + offset);
        read.map_err(Error::io(&self.path, "read it"))?;
        Ok(bytes)
    }

    fn members(&self) -> Result<Members<'static>, Error> {
        let file = self.file.try_clone().map_err(Error::open(&self.path))?;
        let section = Section { file, start: self.start, at: 0, length: self.length };
        Members::seek(section).map_err(Error::io(&self.path, "read it"))
    }

    fn next(&self, members: &mut Members<'_>) -> Result<Option<Member>, Error> {
        members.next_member().map_err(|broken| damaged(&self.path, broken))
    }

    /// ImageNet's archives have end markers: one without was cut between two members.
    fn check_end(&self, members: &Members<'_>) -> Result<(), Error> {
        if members.end().marked {
            return Ok(());
        }
        let (last, at) = (members.last(), members.position());
        let problem = format!("ends after {last}, without an end marker (at byte {at})");
        Err(Error::input(&self.path, problem, "fetch the archive again"))
    }
}

/// An archive that cannot be read on.
pub(super) fn damaged(path: &Path, broken: Broken) -> Error {
    match broken {
        Broken::Io(source) => Error::io(path, "read it")(source),
        Broken::Compressed(_) => {
            Error::input(path, broken.to_string(), "unpack it: members are read where they are")
        }
        broken => Error::input(path, broken.to_string(), "fetch the archive again"),
    }
}

/// Counts what stands behind an end marker and is no archive.
pub(super) fn note_junk(skipped: &mut Skipped, path: &Path, end: End) {
    if let Some(junk) = end.junk {
        let kind = "archives with bytes after the end marker that are no archive";
        skipped.add(kind, || format!("{} from byte {junk} on", path.display()));
    }
}

/// Why a member cannot be an image, if it cannot.
pub(super) fn no_image(member: &Member) -> Option<&'static str> {
    let large = member.size > MAX_IMAGE_BYTES;
    member.kind.refused().or_else(|| large.then_some("is too large for an image"))
}

/// A part of a file as a file of its own.
struct Section {
    file: File,
    start: u64,
    at: u64,
    length: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.at).min(buffer.len() as u64) as usize;
        let read = self.file.read_at(&mut buffer[..left], self.start + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Section {
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

/// What stands behind the last dot of a path's last part, or nothing.
fn extension(path: &str) -> &str {
    file_name(path).rsplit_once('.').map_or("", |(_, extension)| extension)
}
