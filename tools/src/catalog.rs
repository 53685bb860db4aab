//! The catalog: every image of a source, with its key, split and label, and where its bytes are.
//!
//! A layout fills a catalog from headers and names alone; pixels are read later, in output order
//! and by several threads at once, through [`Catalog::read`].

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use pipeline::container::Split;
use pipeline::container::{Skipped, image_kind};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::Error;
use crate::source::Unpacked;
use crate::synth::Synth;

/// The largest file that is taken for an image, in bytes. ImageNet's largest is 15 MB.
pub const MAX_IMAGE_BYTES: u64 = 64 << 20;

/// A class; its number is its place in [`Catalog::classes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// The synset or folder name.
    pub name: String,
    /// A description in words, where a list gave one.
    pub words: Option<String>,
}

impl Class {
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), words: None }
    }
}

/// Where the bytes of an image are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A file of its own, in one of [`Catalog::folders`].
    File {
        /// Which folder.
        folder: u32,
        /// The file's name in it, of whatever bytes.
        name: Box<OsStr>,
    },
    /// A range of one of [`Catalog::archives`].
    Range {
        /// Which archive.
        archive: u32,
        /// First byte.
        offset: u64,
    },
    /// A range of [`Catalog::pipe`], which has passed.
    Piped {
        /// First byte.
        offset: u64,
    },
    /// A row of one of [`Catalog::batches`].
    Row {
        /// Which batch.
        batch: u32,
        /// Which image in it.
        row: u32,
    },
    /// Drawn from [`Catalog::synth`].
    Drawn {
        /// The picture's number.
        picture: u64,
    },
}

/// One image to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Unique in the data folder; the member is called `key.jpg`.
    pub key: Box<str>,
    /// Where it belongs.
    pub split: Split,
    /// Its class number.
    pub label: Option<u32>,
    /// Where its bytes are.
    pub place: Place,
    /// How many bytes there are at `place`.
    pub length: u32,
}

/// A file of the source that is not in the output, and why. One line of `rejected.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The file as the source names it.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Decoded images of one size, as CIFAR-10 comes.
#[derive(Debug)]
pub struct Batch {
    /// The file's name, for messages.
    pub name: String,
    /// Pixels a side.
    pub side: u32,
    /// (N, side, side, 3), RGB.
    pub pixels: Vec<u8>,
}

/// What [`Catalog::read`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw {
    /// An image file, of whatever format.
    Encoded,
    /// Pixels, (height, width, 3), RGB.
    Pixels {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
}

/// Every image of a source and what is needed to read it.
#[derive(Debug, Default)]
pub struct Catalog {
    /// The images; keys are unique once [`Catalog::seal`] has run.
    pub items: Vec<Item>,
    /// The classes by number; empty when nothing is labelled.
    pub classes: Vec<Class>,
    /// Files that were turned away while scanning.
    pub rejected: Vec<Rejected>,
    /// What was passed over while scanning, by kind; told at the end of a build.
    pub skipped: Skipped,
    /// Folders of [`Place::File`].
    pub folders: Vec<PathBuf>,
    /// Archives of [`Place::Range`].
    pub archives: Vec<PathBuf>,
    /// Those of them that were compressed.
    pub unpacked: Option<Unpacked>,
    /// The pipe of [`Place::Piped`]; its images are no items of the catalog.
    pub pipe: Option<PathBuf>,
    /// Batches of [`Place::Row`].
    pub batches: Vec<Batch>,
    /// The painter of [`Place::Drawn`].
    pub synth: Option<Synth>,
}

impl Catalog {
    /// Reads what `item` stands for into `bytes`, which is cleared first.
    ///
    /// # Errors
    /// The source could not be read any more, as when its disk is gone; `Ok(Err(reason))` says that only
    /// this item is at fault.
    ///
    /// # Panics
    /// The item is not of this catalog.
    pub fn read(&self, item: &Item, bytes: &mut Vec<u8>) -> Result<Result<Raw, String>, Error> {
        bytes.clear();
        match &item.place {
            Place::File { folder, name } => {
                let path = self.folders[*folder as usize].join(&**name);
                match File::open(&path)
                    .and_then(|file| file.take(MAX_IMAGE_BYTES).read_to_end(bytes))
                {
                    Ok(_) => Ok(Ok(Raw::Encoded)),
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        Ok(Err("may not be read".to_owned()))
                    }
                    // Only this file is at fault where its folder is still there.
                    Err(error) if is_alive(&self.folders[*folder as usize]) => {
                        Ok(Err(format!("cannot be read any more ({error})")))
                    }
                    Err(error) => Err(Error::io(&path, "read it")(error)),
                }
            }
            Place::Range { archive, offset } => {
                // Opened anew each time: a set may have more shards than a process may hold files.
                let path = &self.archives[*archive as usize];
                bytes.resize(item.length as usize, 0);
                let unpacked = self.unpacked.as_ref();
                let unpacked = unpacked.and_then(|all| all.read(*archive, bytes, *offset));
                unpacked
                    .unwrap_or_else(|| File::open(path)?.read_exact_at(bytes, *offset))
                    .map_err(Error::io(path, "read a member of it"))?;
                Ok(Ok(Raw::Encoded))
            }
            Place::Piped { .. } => panic!("what came through a pipe cannot be read again"),
            Place::Row { batch, row } => {
                let Batch { side, pixels, .. } = &self.batches[*batch as usize];
                let length = (side * side * 3) as usize;
                bytes.extend_from_slice(&pixels[*row as usize * length..][..length]);
                Ok(Ok(Raw::Pixels { width: *side, height: *side }))
            }
            Place::Drawn { picture } => {
                let synth = self.synth.as_ref().expect("drawn items come with their painter");
                synth.draw(*picture, bytes);
                Ok(Ok(Raw::Pixels { width: synth.side, height: synth.side }))
            }
        }
    }

    /// What the source calls `item`, for reports.
    pub fn name(&self, item: &Item) -> String {
        match &item.place {
            Place::File { folder, name } => {
                shown(self.folders[*folder as usize].join(&**name).as_os_str())
            }
            Place::Range { archive, offset } => {
                let path = self.archives[*archive as usize].display();
                format!("{path}: {} (byte {offset})", item.key)
            }
            Place::Piped { offset } => {
                let path = self.pipe.as_deref().unwrap_or("a pipe".as_ref()).display();
                format!("{path}: {} (byte {offset})", item.key)
            }
            Place::Row { batch, row } => {
                format!("{}: row {row}", self.batches[*batch as usize].name)
            }
            Place::Drawn { picture } => format!("picture {picture}"),
        }
    }

    /// Brings the items into their canonical order, by split and key, and makes keys unique: of
    /// several that are the same, the later ones get `-2`, `-3` and so on.
    pub fn seal(&mut self) {
        self.items.sort_by(|a, b| (a.split, &a.key, &a.place).cmp(&(b.split, &b.key, &b.place)));
        self.rejected.sort_by(|a, b| a.name.cmp(&b.name));
        let mut taken: HashSet<u64> = HashSet::with_capacity(self.items.len());
        for item in &mut self.items {
            item.key = unique(&mut taken, item.key.clone());
        }
    }
}

/// True when a folder can be listed and holds something: where a disk was mounted, an empty one stays.
fn is_alive(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| matches!(entries.next(), Some(Ok(_))))
}

/// A name or path for people and keys: bytes that are not UTF-8 become `\xe9`.
pub(crate) fn shown(name: &OsStr) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        text += chunk.valid();
        for byte in chunk.invalid() {
            text += &format!("\\x{byte:02x}");
        }
    }
    text
}

/// Makes `key` one that is not `taken` yet, by hash, and takes it.
pub(crate) fn unique(taken: &mut HashSet<u64>, key: Box<str>) -> Box<str> {
    let (mut copy, mut free) = (2, key.clone());
    while !taken.insert(xxh3_64(free.as_bytes())) {
        free = format!("{key}-{copy}").into();
        copy += 1;
    }
    free
}

/// The longest key: with its extension it fits the 100 bytes of a tar header's name.
const MAX_KEY_BYTES: usize = 88;

/// A key made of a source's name: letters and digits of any script, `_` and `-`. Anything else, and
/// dots above all (readers end a key at the first one), becomes `_`; a long name ends in its hash.
pub(crate) fn key(name: &str) -> Box<str> {
    let plain = |c: char| if c.is_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
    let mut key: String = name.chars().map(plain).collect();
    if key.len() > MAX_KEY_BYTES {
        let hash = format!("-{:016x}", xxh3_64(name.as_bytes()));
        let cut = (0..=MAX_KEY_BYTES - hash.len()).rev().find(|at| key.is_char_boundary(*at));
        key.truncate(cut.unwrap_or(0));
        key += &hash;
    }
    if key.is_empty() { "_".into() } else { key.into() }
}

/// True when a file of this name claims to be an image of a format that is read here. What it is
/// its first bytes say. torchvision's `IMG_EXTENSIONS` are among these.
pub(crate) fn claims_image(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, extension)| image_kind(extension).is_some())
}

/// A file name without its last extension.
pub(crate) fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| if stem.is_empty() { name } else { stem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, row: u32) -> Item {
        let place = Place::Row { batch: 0, row };
        Item { key: key.into(), split: Split::Train, label: None, place, length: 0 }
    }

    #[test]
    fn keys_hold_nothing_that_ends_a_key_or_leaves_the_folder() {
        assert_eq!(&*key("n01440764_10026"), "n01440764_10026");
        assert_eq!(&*key("../a b.c/d"), "___a_b_c_d");
        assert_eq!(&*key("猫-1"), "猫-1");
        assert_eq!(&*key(""), "_");
        let long = key(&"猫".repeat(60));
        assert!(long.len() <= MAX_KEY_BYTES && long != key(&"猫".repeat(61)));
    }

    #[test]
    fn a_file_that_is_gone_is_rejected_and_a_folder_that_is_gone_ends_the_build() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("class");
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(folder.join("a.jpg"), "bytes").expect("written");
        let catalog = Catalog { folders: vec![folder.clone()], ..Catalog::default() };
        let of = |name: &str| {
            let place = Place::File { folder: 0, name: OsStr::new(name).into() };
            let item = Item { place, ..item("a", 0) };
            catalog.read(&item, &mut Vec::new())
        };
        assert_eq!(of("a.jpg").expect("it is there"), Ok(Raw::Encoded));
        let reason = of("gone.jpg").expect("its folder is there").expect_err("it is gone");
        assert!(reason.starts_with("cannot be read any more"), "{reason}");
        // As where a disk was mounted.
        std::fs::remove_file(folder.join("a.jpg")).expect("removed");
        assert!(of("gone.jpg").is_err());
        std::fs::remove_dir(&folder).expect("removed");
        assert!(of("gone.jpg").is_err());
    }

    #[test]
    fn sealing_makes_every_key_unique_whatever_the_order_of_arrival() {
        let keys = |rows: &[(&str, u32)]| {
            let items = rows.iter().map(|(key, row)| item(key, *row)).collect();
            let mut catalog = Catalog { items, ..Catalog::default() };
            catalog.seal();
            catalog.items.iter().map(|item| item.key.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(keys(&[("a", 0), ("b", 1), ("a", 2)]), ["a", "a-2", "b"]);
        assert_eq!(keys(&[("a", 2), ("a-2", 1), ("a", 0)]), ["a", "a-2", "a-2-2"]);
    }
}
