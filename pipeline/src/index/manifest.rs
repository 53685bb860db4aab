//! The JSON files of a data folder, for people and for programs that fetch shards.

use std::collections::BTreeMap;
use std::path::Path;

use common::files::replace_file;
use serde::{Deserialize, Serialize};

use super::{ShardRecord, SplitRecord};
use crate::address::RemoteOptions;
use crate::error::Error;
use crate::folder::Folder;

/// Name of the manifest in a data folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the class list in a data folder.
pub const CLASSES_FILE: &str = "classes.json";

/// What a manifest says of a split; `shards` are those of the whole folder.
pub(super) fn manifest_split(split: &SplitRecord, shards: &[ShardRecord]) -> ManifestSplit {
    let shard = |shard: &ShardRecord| ManifestShard {
        name: shard.name.clone(),
        bytes: shard.bytes,
        samples: shard.samples.len() as u64,
        xxh3: format!("{:016x}", shard.xxh3),
    };
    ManifestSplit {
        samples: split.samples.len() as u64,
        shards: shards[split.shards.clone()].iter().map(shard).collect(),
    }
}

/// `manifest.json`: what a data folder holds and how it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this file's layout; 1.
    pub format: u32,
    /// The program that wrote the folder.
    pub tool: String,
    /// Its version.
    pub version: String,
    /// Where the images came from, in words.
    pub source: String,
    /// The options that shaped the folder.
    pub options: BTreeMap<String, serde_json::Value>,
    /// Seed of the order in which samples were laid down.
    pub seed: u64,
    /// Number of classes.
    pub classes: u64,
    /// The splits by name.
    pub splits: BTreeMap<String, ManifestSplit>,
}

/// One split in a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestSplit {
    /// Number of samples.
    pub samples: u64,
    /// Its shards, in order.
    pub shards: Vec<ManifestShard>,
}

/// One shard in a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestShard {
    /// File name.
    pub name: String,
    /// Size of the file.
    pub bytes: u64,
    /// Number of samples.
    pub samples: u64,
    /// XXH3-64 of the file, 16 hexadecimal digits.
    pub xxh3: String,
}

impl Manifest {
    /// Version of the layout that this program writes and reads.
    pub const FORMAT: u32 = 1;

    /// Reads `DIR/manifest.json`. `dir` may be a URL.
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::Io`], [`Error::Remote`], [`Error::Json`], or [`Error::Format`]
    /// for another version.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let folder = Folder::open(dir, &RemoteOptions::default())?;
        Self::load_from(&folder)?.ok_or_else(|| missing(&dir.join(MANIFEST_FILE)))
    }

    pub(crate) fn load_from(folder: &Folder) -> Result<Option<Self>, Error> {
        let path = folder.path().join(MANIFEST_FILE);
        let Some(manifest) = load_json::<Self>(folder, MANIFEST_FILE)? else { return Ok(None) };
        if manifest.format != Self::FORMAT {
            let what =
                format!("manifest format {}, this program reads {}", manifest.format, Self::FORMAT);
            return Err(Error::format(&path, 0, what));
        }
        Ok(Some(manifest))
    }

    /// Writes `DIR/manifest.json`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`].
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        save_json(&dir.join(MANIFEST_FILE), self)
    }
}

/// One class of a data folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// The number in the `.cls` members.
    pub class: u32,
    /// Its short name: a WordNet id, a folder, a word.
    pub name: String,
    /// What people call it, where known.
    pub words: Option<String>,
}

/// `classes.json`: the classes of a data folder, number n at position n.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Classes(pub Vec<Class>);

impl Classes {
    /// Reads `DIR/classes.json`. `dir` may be a URL.
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::Io`], [`Error::Remote`], [`Error::Json`], or [`Error::Format`]
    /// when a class is not at its number.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let folder = Folder::open(dir, &RemoteOptions::default())?;
        Self::load_from(&folder)?.ok_or_else(|| missing(&dir.join(CLASSES_FILE)))
    }

    pub(crate) fn load_from(folder: &Folder) -> Result<Option<Self>, Error> {
        let path = folder.path().join(CLASSES_FILE);
        let Some(classes) = load_json::<Self>(folder, CLASSES_FILE)? else { return Ok(None) };
        for (position, class) in classes.0.iter().enumerate() {
            if class.class as usize != position {
                let what = format!("class {} stands at position {position}", class.class);
                return Err(Error::format(&path, 0, what));
            }
        }
        Ok(Some(classes))
    }

    /// Writes `DIR/classes.json`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`].
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        save_json(&dir.join(CLASSES_FILE), self)
    }
}

fn load_json<T: serde::de::DeserializeOwned>(
    folder: &Folder,
    name: &str,
) -> Result<Option<T>, Error> {
    let Some(file) = folder.file(name, true)? else { return Ok(None) };
    let value = serde_json::from_slice(&file);
    value.map(Some).map_err(|source| Error::Json { path: folder.path().join(name), source })
}

fn missing(path: &Path) -> Error {
    Error::io("read", path)(std::io::ErrorKind::NotFound.into())
}

fn save_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    bytes.push(b'\n');
    replace_file(path, &bytes).map_err(Error::io("write", path))
}
