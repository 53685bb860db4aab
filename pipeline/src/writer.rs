//! Data folders from a program's own samples.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use common::files::sync_folder_of;

use crate::container::MAX_CLASSES;
use crate::decode::{DecodeOptions, Decoder};
use crate::error::{Error, Fault};
use crate::index::{Class, Classes, Format, IndexWriter, Manifest};
use crate::shard::{Entry, ShardWriter};

/// What a [`FolderWriter`] writes besides its samples.
#[derive(Debug, Clone)]
pub struct FolderOptions {
    /// Names of the classes, number n at position n; labels must be below their number. Where there
    /// are none, classes are named by their numbers, up to the largest label.
    pub classes: Vec<String>,
    /// A shard that would grow beyond this is closed, in bytes.
    pub shard_bytes: u64,
    /// Where the images come from, in words, for the manifest.
    pub source: String,
    /// Whether each image is decoded before it is stored, which takes about a millisecond for a
    /// photograph. Where not, its header alone is looked at, and damage shows when it is read.
    pub check: bool,
}

impl Default for FolderOptions {
    /// Classes by number, shards of 256 MiB, every image checked.
    fn default() -> Self {
        let (classes, source) = (Vec::new(), "a program".to_owned());
        Self { classes, shard_bytes: 256 << 20, source, check: true }
    }
}

/// Writes a data folder (shards, `index.bin`, `manifest.json`, `classes.json`) of samples that are
/// handed in one by one, split after split.
///
/// The folder appears when [`finish`](Self::finish) returns, whole. Until then it is called
/// `.NAME.writing-…` beside its place; a writer that is dropped removes it.
///
/// Refused is what a reader would refuse or miss: a key that a split has already, labels beside
/// none in a split, labels without a class, and what is neither JPEG nor PNG. A sample that is
/// refused is not written, and the writer can go on with the next.
///
/// ```
/// use pipeline::{Dataset, FolderOptions, FolderWriter};
/// # fn png(level: u8) -> Vec<u8> {
/// #     let mut out = std::io::Cursor::new(Vec::new());
/// #     let image = image::RgbImage::from_pixel(4, 4, image::Rgb([level; 3]));
/// #     image.write_to(&mut out, image::ImageFormat::Png).unwrap();
/// #     out.into_inner()
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("pets");
/// let classes = vec!["cat".to_owned(), "dog".to_owned()];
/// let options = FolderOptions { classes, ..FolderOptions::default() };
/// let mut writer = FolderWriter::create(&path, options)?;
/// writer.split("train")?;
/// writer.append("a01", &png(10), Some(0))?;
/// writer.append("a02", &png(20), Some(1))?;
/// writer.split("val")?;
/// writer.append("a01", &png(30), Some(1))?;
/// writer.finish()?;
///
/// let data = Dataset::open(&path, "train")?;
/// assert_eq!((data.len(), data.label(1)), (2, Some(1)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FolderWriter {
    dir: PathBuf,
    temporary: PathBuf,
    options: FolderOptions,
    decoder: Decoder,
    index: IndexWriter,
    /// The split in work.
    split: Option<Split>,
    shard: Option<(String, ShardWriter)>,
    /// The largest label.
    most: Option<u32>,
    /// Why nothing more can be written.
    broken: bool,
    /// Whole, but without its name: it stays where it is.
    kept: bool,
}

#[derive(Debug)]
struct Split {
    name: String,
    shards: usize,
    keys: HashSet<Box<str>>,
    labelled: Option<bool>,
}

impl FolderWriter {
    /// Starts the data folder `dir`, which must not be there yet, or be empty.
    ///
    /// # Errors
    /// [`Error::Config`] when there is something at `dir` or the options cannot be, [`Error::Io`]
    /// when nothing can be written beside it.
    pub fn create(dir: &Path, options: FolderOptions) -> Result<Self, Error> {
        static WRITERS: AtomicU64 = AtomicU64::new(0);
        let dir = &std::path::absolute(dir).map_err(Error::io("find", dir))?;
        let Some(name) = dir.file_name() else {
            let problem = format!("{}: a data folder needs a name", dir.display());
            return Err(Error::Config { problem });
        };
        check_free(dir)?;
        check_place(dir)?;
        if options.shard_bytes == 0 {
            return Err(Error::Config { problem: "shard_bytes = 0: at least 1".into() });
        }
        if options.classes.len() > MAX_CLASSES as usize {
            let problem = format!("{} classes: at most {MAX_CLASSES}", options.classes.len());
            return Err(Error::Config { problem });
        }
        let decoder = Decoder::new(DecodeOptions::default()).map_err(|fault| Error::Config {
            problem: format!("images cannot be checked: {fault}"),
        })?;
        // A writer that was killed leaves its folder, and another one may have its process number.
        let temporary = loop {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            let number = WRITERS.fetch_add(1, Ordering::Relaxed);
            hidden.push(format!(".writing-{}-{number}", std::process::id()));
            let temporary = dir.with_file_name(hidden);
            match std::fs::create_dir(&temporary) {
                Ok(()) => break temporary,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", &temporary)(error)),
            }
        };
        Ok(Self {
            dir: dir.to_path_buf(),
            temporary,
            options,
            decoder,
            index: IndexWriter::new(),
            split: None,
            shard: None,
            most: None,
            broken: false,
            kept: false,
        })
    }

    /// Starts a split; the samples that follow belong to it.
    ///
    /// # Errors
    /// [`Error::Config`] when the name is empty, longer than 16 bytes, or already there, or the
    /// split before it has no sample; [`Error::Io`] when the last shard cannot be closed.
    pub fn split(&mut self, name: &str) -> Result<(), Error> {
        self.check_broken()?;
        self.end_split()?;
        self.index.begin_split(name)?;
        let (name, keys) = (name.to_owned(), HashSet::new());
        self.split = Some(Split { name, shards: 0, keys, labelled: None });
        Ok(())
    }

    /// Adds a sample to the split in work: the bytes of a JPEG or PNG file, as they are, and its
    /// class.
    ///
    /// # Errors
    /// [`Error::Refused`] for a sample that cannot be stored, which leaves the writer as it was;
    /// [`Error::Config`] before the first split; [`Error::Io`] when writing fails, after which
    /// nothing but dropping the writer is left.
    pub fn append(&mut self, key: &str, image: &[u8], label: Option<u32>) -> Result<(), Error> {
        self.check_broken()?;
        let Some(split) = &self.split else {
            let problem = format!("sample {key:?} before the first split: call split(NAME) first");
            return Err(Error::Config { problem });
        };
        if split.keys.contains(key) {
            return Err(self.refuse(key, "the split has a sample of this key already"));
        }
        if split.labelled.is_some_and(|labelled| labelled != label.is_some()) {
            let problem = match label {
                Some(_) => "it has a label and the samples before it have none",
                None => "it has no label and the samples before it have one",
            };
            return Err(self.refuse(key, problem));
        }
        let classes = match self.options.classes.len() as u32 {
            0 => MAX_CLASSES,
            classes => classes,
        };
        if let Some(label) = label.filter(|&label| label >= classes) {
            let problem = format!("label {label}: there are {classes} classes, from 0");
            return Err(self.refuse(key, problem));
        }
        let (format, size) = look(&mut self.decoder, image, self.options.check)
            .map_err(|fault| self.refuse(key, fault.to_string()))?;
        let extension = if format == Format::Png { "png" } else { "jpg" };
        let entry = match self.write(key, extension, image, label) {
            Ok(entry) => entry,
            // Said before anything is written.
            Err(Error::Config { problem }) => return Err(self.refuse(key, problem)),
            Err(error) => {
                self.broken = true;
                return Err(error);
            }
        };
        self.index.sample(key, entry, label, format, size);
        self.most = self.most.max(label);
        if let Some(split) = &mut self.split {
            split.keys.insert(key.into());
            split.labelled = Some(label.is_some());
        }
        Ok(())
    }

    /// Writes what describes the shards, and gives the folder its name; it is on the disk then.
    ///
    /// # Errors
    /// [`Error::Config`] when a split has no sample, there is none, or something came to stand at
    /// the folder's place; [`Error::Io`] when writing fails. Nothing is left then, but a
    /// whole folder whose place was taken meanwhile: the error says where it is.
    pub fn finish(mut self) -> Result<Manifest, Error> {
        self.check_broken()?;
        self.end_split()?;
        if self.index.is_empty() {
            let problem = format!("{}: no sample was added", self.dir.display());
            return Err(Error::Config { problem });
        }
        let count = match self.options.classes.len() {
            0 => self.most.map_or(0, |most| most + 1),
            count => count as u32,
        };
        let name = |class: u32| self.options.classes.get(class as usize).cloned();
        let class = |class| Class {
            class,
            name: name(class).unwrap_or_else(|| class.to_string()),
            words: None,
        };
        Classes((0..count).map(class).collect()).save(&self.temporary)?;
        let manifest = Manifest {
            format: Manifest::FORMAT,
            tool: "pipeline::FolderWriter".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            source: self.options.source.clone(),
            options: BTreeMap::from([("shard_bytes".into(), self.options.shard_bytes.into())]),
            seed: 0,
            classes: count.into(),
            splits: self.index.manifest_splits(),
        };
        manifest.save(&self.temporary)?;
        self.index.write(&self.temporary)?;
        let named = check_free(&self.dir).and_then(|()| {
            std::fs::rename(&self.temporary, &self.dir).map_err(Error::io("rename", &self.dir))
        });
        if let Err(error) = named {
            self.kept = true;
            let problem =
                format!("{error}; the folder is whole and stays in {}", self.temporary.display());
            return Err(Error::Config { problem });
        }
        sync_folder_of(&self.dir).map_err(Error::io("sync the folder of", &self.dir))?;
        Ok(manifest)
    }

    fn refuse(&self, key: &str, problem: impl Into<String>) -> Error {
        let split = self.split.as_ref().map_or_else(String::new, |split| split.name.clone());
        let (dir, key, problem) = (self.dir.clone(), key.to_owned(), problem.into());
        Error::Refused { dir, split, key, problem }
    }

    fn check_broken(&self) -> Result<(), Error> {
        match self.broken {
            false => Ok(()),
            true => Err(Error::Config {
                problem: format!(
                    "{}: writing failed before, so the folder cannot be finished: start again",
                    self.dir.display()
                ),
            }),
        }
    }

    fn write(
        &mut self,
        key: &str,
        extension: &str,
        image: &[u8],
        label: Option<u32>,
    ) -> Result<Entry, Error> {
        let full = |shard: &ShardWriter| {
            shard.position() > 0 && shard.position() + image.len() as u64 > self.options.shard_bytes
        };
        if self.shard.as_ref().is_some_and(|(_, shard)| full(shard)) {
            self.end_shard()?;
        }
        let (_, shard) = match &mut self.shard {
            Some(shard) => shard,
            none => {
                let (split, number) = self
                    .split
                    .as_mut()
                    .map_or(("", 0), |split| (split.name.as_str(), split.shards));
                let name = format!("{split}-{number:06}.tar");
                let shard = ShardWriter::create(&self.temporary.join(&name))?;
                none.insert((name, shard))
            }
        };
        shard.append(key, extension, image, label)
    }

    fn end_shard(&mut self) -> Result<(), Error> {
        let Some((name, shard)) = self.shard.take() else { return Ok(()) };
        let written = shard.finish().inspect_err(|_| self.broken = true)?;
        self.index.end_shard(&name, written)?;
        if let Some(split) = &mut self.split {
            split.shards += 1;
        }
        Ok(())
    }

    fn end_split(&mut self) -> Result<(), Error> {
        match &self.split {
            Some(split) if split.keys.is_empty() => {
                let problem = format!("{}: split {:?} is empty", self.dir.display(), split.name);
                Err(Error::Config { problem })
            }
            _ => self.end_shard(),
        }
    }
}

/// Format and size of an image that a loader can read.
fn look(decoder: &mut Decoder, image: &[u8], check: bool) -> Result<(Format, (u32, u32)), Fault> {
    let (width, height) = decoder.size(image)?;
    if check {
        decoder.decode(image)?;
    }
    let format = if image.starts_with(&[0xff, 0xd8]) { Format::Jpeg } else { Format::Png };
    Ok((format, (width as u32, height as u32)))
}

/// A link, or a disk that is mounted there, cannot be replaced by a folder at the end.
fn check_place(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    let Ok(found) = dir.symlink_metadata() else { return Ok(()) };
    let parent = dir.parent().and_then(|parent| parent.metadata().ok());
    let mounted = parent.is_some_and(|parent| parent.dev() != found.dev());
    if found.is_symlink() || mounted {
        let what = if mounted { "where a disk is mounted" } else { "a link" };
        let problem = format!("{} is {what}: give the name of a folder in it", dir.display());
        return Err(Error::Config { problem });
    }
    Ok(())
}

/// Says so when there is something at `dir`.
fn check_free(dir: &Path) -> Result<(), Error> {
    match std::fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let problem = format!(
                "{}: there is something already: remove it, or write to another folder",
                dir.display()
            );
            Err(Error::Config { problem })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("read", dir)(error)),
    }
}

impl Drop for FolderWriter {
    fn drop(&mut self) {
        self.shard = None;
        if self.kept {
            return;
        }
        // Where it has its name, this one is gone.
        let _ = std::fs::remove_dir_all(&self.temporary);
    }
}
