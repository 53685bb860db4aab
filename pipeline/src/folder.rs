//! A data folder: on this machine, or behind a URL.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::address::{RemoteOptions, is_url};
use crate::error::Error;
use crate::remote::Remote;
use crate::shard::{Entry, Shard};

/// Where a data folder lies.
#[derive(Debug, Clone)]
pub(crate) enum Folder {
    Local(PathBuf),
    Remote(Arc<Remote>),
}

impl Folder {
    pub(crate) fn open(dir: &Path, options: &RemoteOptions) -> Result<Self, Error> {
        if is_url(dir) {
            return Ok(Self::Remote(Remote::open(dir, options)?));
        }
        if !dir.is_dir() {
            return Err(Error::NoFolder { dir: dir.to_path_buf() });
        }
        Ok(Self::Local(dir.to_path_buf()))
    }

    /// The folder's path or URL.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Local(dir) => dir,
            Self::Remote(remote) => remote.url(),
        }
    }

    /// One of its files as a whole; none where it has no such file. `optional` as in
    /// [`Remote::file`].
    pub(crate) fn file(&self, name: &str, optional: bool) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::Local(dir) => {
                let path = dir.join(name);
                match std::fs::read(&path) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(Error::io("read", &path)(error)),
                }
            }
            Self::Remote(remote) => remote.file(name, optional),
        }
    }

    /// One member of a shard of so many bytes.
    pub(crate) fn member(&self, name: &str, bytes: u64, entry: Entry) -> Result<Bytes, Error> {
        match self {
            Self::Local(dir) => Shard::open(&dir.join(name))?.read(entry),
            Self::Remote(remote) => {
                let range = entry.offset..entry.offset + u64::from(entry.length);
                Ok(remote.range(name, range, bytes)?.into())
            }
        }
    }

    /// A shard of so many bytes, opened or fetched.
    pub(crate) fn shard(&self, name: &str, bytes: u64) -> Result<Shard, Error> {
        let path = self.path().join(name);
        match self {
            Self::Local(_) => Shard::open(&path),
            Self::Remote(remote) => Ok(Shard::fetched(path, remote.large_file(name, bytes)?)),
        }
    }
}
