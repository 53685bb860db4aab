//! A folder as it is on disk: what it holds of images, and what is passed over on the way.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pipeline::container::{Skipped, no_data, passed_over};

use crate::Error;
use crate::catalog::{MAX_IMAGE_BYTES, claims_image, shown};

/// How often one folder may be read by way of links. More is a knot that has no end in practice.
const MOST_VISITS: u32 = 100;

/// What the names of lists of labels end with, as Tiny ImageNet has them.
const LIST: &str = "_annotations.txt";

/// A folder and all below it.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) path: PathBuf,
    /// Files that claim to be images, in the order of their names.
    pub(super) images: Vec<Image>,
    /// Files `*_annotations.txt`.
    pub(super) lists: Vec<PathBuf>,
    /// In the order in which Python sorts their names, and so torchvision numbers classes.
    pub(super) folders: Vec<Tree>,
    /// Images in it and in all folders below.
    pub(super) count: u64,
}

/// A file whose name claims an image.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) name: OsString,
    /// Its bytes, or why it cannot be read.
    pub(super) length: Result<u32, String>,
}

impl Tree {
    /// Reads a folder and all below it. Links to folders are followed if `follow` says so.
    ///
    /// # Errors
    /// It is no folder, or it or one below cannot be listed.
    pub(super) fn read(input: &Path, follow: bool, skipped: &mut Skipped) -> Result<Self, Error> {
        match fs::metadata(input) {
            Ok(metadata) if metadata.is_dir() => {
                let mut walk = Walk { follow, skipped, above: Vec::new(), visits: HashMap::new() };
                walk.folder(input.to_path_buf(), &metadata)
            }
            Ok(_) => Err(Error::input(input, "is no folder", "check --input and --layout")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::input(input, "does not exist", "check --input and --layout"))
            }
            Err(error) => Err(Error::open(input)(error)),
        }
    }

    /// The folder's own name; what is not UTF-8 in it is escaped.
    pub(super) fn name(&self) -> String {
        shown(self.path.file_name().unwrap_or_default())
    }

    /// Folders that hold images, right in them or below.
    pub(super) fn filled(&self) -> impl Iterator<Item = &Tree> {
        self.folders.iter().filter(|folder| folder.count > 0)
    }

    /// The path of the first image, for messages.
    pub(super) fn example(&self) -> String {
        let own = self.images.first().map(|image| shown(self.path.join(&image.name).as_os_str()));
        let below = || self.filled().next().map_or_else(String::new, Tree::example);
        own.unwrap_or_else(below)
    }
}

/// A walk through a folder.
struct Walk<'a> {
    follow: bool,
    skipped: &'a mut Skipped,
    /// Device and inode of the folders that the walk is in.
    above: Vec<(u64, u64)>,
    /// How often each folder was read.
    visits: HashMap<(u64, u64), u32>,
}

impl Walk<'_> {
    fn folder(&mut self, path: PathBuf, metadata: &Metadata) -> Result<Tree, Error> {
        let own = (metadata.dev(), metadata.ino());
        let visits = self.visits.entry(own).or_default();
        *visits += 1;
        if *visits > MOST_VISITS {
            let problem = format!("is reached by more than {MOST_VISITS} links");
            return Err(Error::input(path, problem, "remove the links"));
        }
        self.above.push(own);
        let mut names = fs::read_dir(&path)
            .map_err(Error::open(&path))?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(Error::io(&path, "list it"))?;
        names.sort_by(|a, b| python_order(a, b));
        let (images, lists, folders) = (Vec::new(), Vec::new(), Vec::new());
        let mut tree = Tree { path, images, lists, folders, count: 0 };
        for name in names {
            self.entry(&mut tree, name)?;
        }
        self.above.pop();
        let below: u64 = tree.folders.iter().map(|folder| folder.count).sum();
        tree.count = below + tree.images.len() as u64;
        Ok(tree)
    }

    fn entry(&mut self, tree: &mut Tree, name: OsString) -> Result<(), Error> {
        let path = tree.path.join(&name);
        let metadata = fs::metadata(&path);
        let example = || shown(path.as_os_str());
        let text = name.to_string_lossy();
        let gone = metadata.is_err();
        match &metadata {
            Ok(metadata) if metadata.is_dir() => {
                if let Some(kind) = idle_folder(&text) {
                    self.skipped.add(kind, example);
                } else if !self.follow && path.is_symlink() {
                    self.skipped.add("links to folders", example);
                } else if self.above.contains(&(metadata.dev(), metadata.ino())) {
                    self.skipped.add("links to a folder that they are in", example);
                } else {
                    let folder = self.folder(path, metadata)?;
                    tree.folders.push(folder);
                }
            }
            _ if claims_image(&text) && no_data(&text).is_none() => {
                let length = match metadata {
                    Ok(metadata) if !metadata.is_file() => Err("is no regular file".to_owned()),
                    Ok(metadata) if metadata.len() > MAX_IMAGE_BYTES => {
                        Err(format!("has {} bytes, too many for an image", metadata.len()))
                    }
                    Ok(metadata) => Ok(metadata.len() as u32),
                    // A link to nothing, or a file that went away.
                    Err(error) => Err(error.to_string()),
                };
                tree.images.push(Image { name, length });
            }
            _ if text.ends_with(LIST) && !text.starts_with('.') => tree.lists.push(path),
            _ => match no_data(&text) {
                Some(kind) => self.skipped.add(kind, example),
                // It may have been a class.
                None if gone && path.is_symlink() => self.skipped.add("links to nothing", example),
                None => self.skipped.add(kind_of(&text), example),
            },
        }
        Ok(())
    }
}

/// Why a folder is passed over, if it is.
fn idle_folder(name: &str) -> Option<&'static str> {
    const SYSTEMS: [&str; 4] =
        ["lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir"];
    match name {
        "__MACOSX" => Some("folders of macOS's own files (__MACOSX)"),
        _ if SYSTEMS.contains(&name) => Some("folders of the system's own files"),
        _ if name.starts_with('.') => Some("hidden folders"),
        _ => None,
    }
}

/// What a file is called that does not claim to be an image which is read here.
fn kind_of(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((_, extension)) => passed_over(extension),
        None => "files without an extension".to_owned(),
    }
}

/// The order of Python's strings, by which torchvision numbers classes: by code point, where a byte
/// that is not UTF-8 is one of U+DC80 to U+DCFF (PEP 383).
fn python_order(a: &OsStr, b: &OsStr) -> Ordering {
    let points = |name: &'_ OsStr| -> Vec<u32> {
        let chunks = name.as_bytes().utf8_chunks();
        chunks
            .flat_map(|chunk| {
                let bytes = chunk.invalid().iter().map(|byte| 0xDC00 + u32::from(*byte));
                chunk.valid().chars().map(u32::from).chain(bytes)
            })
            .collect()
    };
    match (a.to_str(), b.to_str()) {
        (Some(a), Some(b)) => a.cmp(b),
        _ => points(a).cmp(&points(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_python_sorts_them() {
        // sorted(os.fsdecode(n) for n in ...) of Python 3.11.
        let sorted: [&[u8]; 7] =
            [b"B", b"a", b"a\xE9", "a\u{E000}".as_bytes(), b"b", "é".as_bytes(), b"\xE9"];
        let mut names: Vec<&OsStr> =
            sorted.iter().rev().map(|name| OsStr::from_bytes(name)).collect();
        names.sort_by(|a, b| python_order(a, b));
        assert_eq!(names, sorted.map(OsStr::from_bytes));
    }

    #[test]
    fn what_is_passed_over_has_a_kind_by_its_name() {
        for (name, kind) in [
            ("notes.TXT", "files .txt"),
            ("photo.heic", "images .heic, which are not read"),
            ("README", "files without an extension"),
            ("a.b c", "files of unusual extensions"),
            ("a.", "files of unusual extensions"),
        ] {
            assert_eq!(kind_of(name), kind, "{name}");
        }
    }
}
