//! One error type: where (file, shard, sample, offset), what, and how to mend it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::SampleId;

/// Everything that can go wrong between a folder of shards and a batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody waits for the next batch any more.
    #[error("stopped while waiting for images")]
    Stopped,
    /// The next batch did not come in time.
    #[error("no batch within {} s; it comes with a later call", patience.as_secs_f64())]
    TimedOut {
        /// How long it was waited for.
        patience: Duration,
    },
    /// The caller holds every batch that there is memory for.
    #[error(
        "all {slabs} batches that there is memory for have been held for {seconds} s, so no other can be made: drop each when it is used (do not collect them), copy what is to be kept, or raise depth"
    )]
    AllHeld {
        /// Batches that there is memory for.
        slabs: usize,
        /// How long the next one was waited for.
        seconds: u64,
    },
    /// A process uses what another one made before a fork.
    #[error(
        "this loader is of process {process}, and its threads are not in this one: start a loader after the fork (in Python: the start method \"spawn\", or no workers)"
    )]
    Forked {
        /// The process that started it.
        process: u32,
    },
    /// A cursor was made for another order.
    #[error(
        "the cursor was made for another order of batches; what differs: {differences}. Go on with what it was made with, or start anew"
    )]
    Cursor {
        /// What is not as it was.
        differences: String,
    },
    /// A system call on a file or folder failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "open", "write", "rename".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file behind a URL cannot be read, or written.
    #[error("cannot {action} {}: {problem}; {mend}", url.display())]
    Remote {
        /// What was tried, as a verb: "read", "write", "list".
        action: &'static str,
        /// The file or folder.
        url: PathBuf,
        /// What the server or the network answered.
        problem: String,
        /// What the user can do.
        mend: &'static str,
        /// Whether another try would fail the same way.
        input: bool,
    },
    /// The data folder is not there.
    #[error("{}: no such folder (expected one that `shard-imagenet build` wrote, or the folder of WebDataset shards, not a file or a pattern)", dir.display())]
    NoFolder {
        /// The folder asked for.
        dir: PathBuf,
    },
    /// The data folder has neither an index nor a shard.
    #[error("{}: no shards here (expected SPLIT-000000.tar files; of a folder of images `shard-imagenet build --layout imagefolder` makes them)", dir.display())]
    EmptyFolder {
        /// The folder asked for.
        dir: PathBuf,
    },
    /// The data folder lacks the split.
    #[error("{}: no split {split:?}, only: {known}", dir.display())]
    NoSplit {
        /// The folder asked for.
        dir: PathBuf,
        /// The split asked for.
        split: String,
        /// The splits that are there, in words.
        known: String,
    },
    /// A split holds too few samples for one batch on every rank.
    #[error(
        "split {split:?} has {samples} samples, fewer than one batch of {batch} over {world} ranks: lower the batch, or pad"
    )]
    TooFew {
        /// The split.
        split: String,
        /// Its samples.
        samples: usize,
        /// Rows of a batch on one rank.
        batch: usize,
        /// Number of ranks.
        world: usize,
    },
    /// A file breaks the rules of its own format.
    #[error("{}: {what} (at byte {offset})", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong and what was expected.
        what: String,
    },
    /// A JSON file cannot be read.
    #[error("{}: not the JSON expected here: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's complaint, with line and column.
        source: serde_json::Error,
    },
    /// A shard is not the file the index was made for.
    #[error(
        "{}: {found} bytes, but the index says {expected}: the shard was cut or replaced; copy it again or rebuild the folder",
        shard.display()
    )]
    ShardLength {
        /// The shard.
        shard: PathBuf,
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// A shard ends before its last member does.
    #[error("{}: the archive ends inside {member:?} (at byte {offset}): it was cut short", shard.display())]
    ShardTruncated {
        /// The shard.
        shard: PathBuf,
        /// The last member whose header could be read, or "its end marker".
        member: String,
        /// Where the bytes run out.
        offset: u64,
    },
    /// Shards that another program wrote cannot be read where they are.
    #[error("{}: {problem}; {mend}", dir.display())]
    Foreign {
        /// The folder, or one of its files.
        dir: PathBuf,
        /// Why not.
        problem: String,
        /// What the user can do.
        mend: String,
    },
    /// Two samples of a split carry the same key.
    #[error("duplicate key {key:?}: in {} and in {}", first.display(), second.display())]
    DuplicateKey {
        /// The key.
        key: String,
        /// Shard of the first.
        first: PathBuf,
        /// Shard of the second.
        second: PathBuf,
    },
    /// A sample that a data folder to be written cannot hold.
    #[error("{}: sample {key:?} of split {split:?}: {problem}", dir.display())]
    Refused {
        /// The folder.
        dir: PathBuf,
        /// The split.
        split: String,
        /// The sample's key.
        key: String,
        /// Why.
        problem: String,
    },
    /// One sample cannot be made into pixels.
    #[error(
        "{}: sample {sample} ({key}, {length} bytes at byte {offset}) cannot be decoded: {source}; mend or remove it and build the folder again, or allow some such samples, which are stood in for and counted (data.max_bad_share of a training, BadSamples::Skip of a loader)",
        shard.display()
    )]
    Sample {
        /// The shard.
        shard: PathBuf,
        /// Position in the split.
        sample: SampleId,
        /// Its key.
        key: String,
        /// First byte of the image in the shard.
        offset: u64,
        /// Bytes of the image.
        length: u32,
        /// Why.
        source: Fault,
    },
    /// More bad samples than the policy allows.
    #[error(
        "{bad} of {drawn} samples could not be decoded, more than the allowed share {max_share} (data.max_bad_share of a training); the last one: {source}"
    )]
    TooManyBad {
        /// Bad samples met so far.
        bad: u64,
        /// Samples of the epoch.
        drawn: u64,
        /// The allowed share.
        max_share: f64,
        /// The last bad sample.
        source: Box<Error>,
    },
    /// Options that make no sense, alone or together.
    #[error("{problem}")]
    Config {
        /// The option, its value, and what it may be.
        problem: String,
    },
    /// Batch memory could not be had.
    #[error("cannot get {bytes} bytes of batch memory: {reason}")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// Why not.
        reason: String,
    },
    /// A thread of the loader panicked. This is a bug of ours, or of a library below.
    #[error("the {stage} thread panicked: {message}")]
    Panic {
        /// The stage.
        stage: &'static str,
        /// The panic's message.
        message: String,
    },
}

/// Why one member of a shard cannot be made into pixels.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// There are no bytes.
    #[error("the file is empty")]
    Empty,
    /// The bytes end before the picture does.
    #[error("the file is cut short: {0}")]
    Truncated(String),
    /// The bytes are something else than JPEG or PNG.
    #[error("this is {0}, not JPEG or PNG")]
    Unsupported(&'static str),
    /// The header claims a picture beyond the limit, or one of no size.
    #[error("the header claims {width} x {height} pixels, outside 1 to {limit}")]
    Pixels {
        /// Claimed width, pixels.
        width: u64,
        /// Claimed height, pixels.
        height: u64,
        /// Most pixels allowed.
        limit: u64,
    },
    /// The JPEG decoder refused the data.
    #[error("the JPEG data are damaged: {0}")]
    Jpeg(String),
    /// Seek points that are not this picture's.
    #[error("its seek points do not fit: {0}")]
    SeekPoints(String),
    /// A view of one's own that cannot be shown.
    #[error("{0}")]
    View(String),
    /// The PNG decoder refused the data.
    #[error("the PNG data are damaged: {0}")]
    Png(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// True when the data or the options are at fault, so that asking again cannot help;
    /// false for failures of the machine or of this program while working.
    pub fn is_input(&self) -> bool {
        match self {
            Error::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
            ),
            Error::Remote { input, .. } => *input,
            Error::Memory { .. }
            | Error::Panic { .. }
            | Error::Stopped
            | Error::TimedOut { .. } => false,
            _ => true,
        }
    }

    /// Wraps an I/O error with what was tried on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    /// Says that `path` breaks its format at `offset`.
    pub(crate) fn format(path: &Path, offset: u64, what: impl Into<String>) -> Error {
        Error::Format { path: path.to_path_buf(), offset, what: what.into() }
    }
}

/// An error and its causes in one line, each said once: for messages to people.
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_each_cause_once() {
        let source = Fault::Truncated("the scan".into());
        let (shard, key) = ("a.tar".into(), "k".into());
        let error = Error::Sample { shard, sample: 5, key, offset: 512, length: 9, source };
        assert!(error.to_string().contains("cut short: the scan"), "{error}");
        assert!(error.to_string().contains("data.max_bad_share"), "{error}");
        assert_eq!(report(&error), error.to_string());
        #[derive(Debug, thiserror::Error)]
        #[error("no training")]
        struct Outer(#[source] Error);
        assert_eq!(report(&Outer(error)).matches("cut short").count(), 1);
    }
}
