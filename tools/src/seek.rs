//! Seek points for a data folder, or for shards that another program wrote.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use pipeline::index::Index;
use pipeline::seek::{SeekFile, SeekReport};

use crate::Error;
use crate::progress::Progress;

/// Makes the seek points of the folder `dir` on `threads` threads, from all of its JPEGs.
///
/// # Errors
/// [`Error::Usage`] for a URL; those of [`SeekFile::make`]; [`Error::Stopped`] once `stop` is set.
pub fn seek_points(dir: &Path, threads: usize, stop: &AtomicBool) -> Result<SeekReport, Error> {
    if pipeline::is_url(dir) {
        return Err(Error::Usage {
            problem: "seek points are for folders of this machine".to_owned(),
            mend: "leave them out: a folder behind a URL is read without",
        });
    }
    let index = Index::open(dir)?;
    let progress = Progress::start("seek points", 0, Some(index.len() as u64));
    SeekFile::make(&index, threads, stop, &|bytes| progress.advance(bytes)).map_err(|error| {
        match error {
            pipeline::Error::Stopped => Error::Stopped,
            error => error.into(),
        }
    })
}
