//! Tar archives: ImageNet's own (a tar of class tars, and a flat one), and WebDataset shards.
//!
//! Headers are read by seeking from one to the next; the images stay where they are, and are read
//! later as ranges of the outermost file. No name in an archive can reach the disk: only whole shards
//! that are compressed are unpacked, one behind the other into a file without a name.

mod lists;
mod section;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pipeline::container::{
    self, Broken, Choice, Compression, End, Label, MAX_JSON_BYTES, MAX_NUMBER_BYTES, Member,
    Members, Sample, Samples, ShardName, Skipped, image_kind, no_data, passed_over,
};
use pipeline::index::{CLASSES_FILE, INDEX_FILE, MANIFEST_FILE};

pub(super) use self::lists::read_synsets;
use self::lists::{ValLabel, read_ids, read_val_labels, usual_names};
use self::section::Section;
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
    catalog.classes = classes(sorted, &lists)?;
    if let Some(val) = &lists.val {
        catalog.add_val(val, &lists)?;
    }
    Ok(catalog)
}

/// Classes of these names, with the words that a list has for them.
fn classes(names: Vec<String>, lists: &ImageNetLists) -> Result<Vec<Class>, Error> {
    let words = match (&lists.synsets, &lists.ids) {
        (Some(path), _) => read_synsets(path)?,
        (None, Some(path)) => read_ids(path)?,
        (None, None) => Vec::new(),
    };
    let of = |name: &String| words.iter().find(|(known, _)| known == name)?.1.clone();
    Ok(names.into_iter().map(|name| Class { words: of(&name), name }).collect())
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

pub(super) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What stands behind the last dot of a path's last part, or nothing.
fn extension(path: &str) -> &str {
    file_name(path).rsplit_once('.').map_or("", |(_, extension)| extension)
}
