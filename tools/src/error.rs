//! What can go wrong while shards are made, read back or checked.

use std::io;
use std::path::{Path, PathBuf};

use common::exit;

/// A failure of the tools: where it happened, what it was and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that was given is not what its layout promises.
    #[error("{}: {problem}; {mend}", path.display())]
    Input {
        /// The file or folder at fault.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What the user can do.
        mend: String,
    },
    /// A pipe that ended early, or is another than before; what is stored so far stays.
    #[error("{}: {problem}; {mend}", path.display())]
    Stream {
        /// The pipe.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What the user can do.
        mend: &'static str,
    },
    /// Options that contradict each other or cannot be met.
    #[error("{problem}; {mend}")]
    Usage {
        /// The options at fault.
        problem: String,
        /// What the user can do.
        mend: &'static str,
    },
    /// A finished data folder that is not sound.
    #[error("{}: {problems} problem(s) found, the first: {first}{mend}", dir.display())]
    Unsound {
        /// The data folder.
        dir: PathBuf,
        /// How many problems there are.
        problems: usize,
        /// The first of them.
        first: String,
        /// What the user can do, where the problems do not say it.
        mend: &'static str,
    },
    /// The operating system refused something.
    #[error("{}: cannot {doing}", path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What was attempted, an infinitive.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// libjpeg-turbo could not be set up or could not encode.
    #[error("libjpeg-turbo failed")]
    Turbo(#[from] turbojpeg::Error),
    /// No decoder could be set up.
    #[error("no decoder could be set up")]
    Decoder(#[source] pipeline::Fault),
    /// Pixels that could not be written as PNG.
    #[error("cannot encode a PNG")]
    Png(#[from] image::ImageError),
    /// The data folder's own format reported a failure.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// A build that stopped with shards finished, which stay for the same command to go on from.
    #[error("{}; {shards} finished shard(s) are kept in {}, and the same command goes on from them",
        crate::recode::reason(error), dir.display())]
    Kept {
        /// Why it stopped.
        error: Box<Error>,
        /// Shards that are complete and recorded.
        shards: usize,
        /// The folder in which they are.
        dir: PathBuf,
    },
    /// A signal arrived; what is finished stays for the same command to go on from.
    #[error("interrupted; the same command goes on from the {shards} shard(s) that are finished")]
    Interrupted {
        /// Shards that are complete and recorded.
        shards: usize,
    },
    /// A signal arrived, and nothing is left of what was made.
    #[error("interrupted; nothing was changed, and the same command begins again")]
    Stopped,
}

impl Error {
    /// What the program exits with, of [`common::exit`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted { .. } | Self::Stopped => exit::STOPPED,
            error if error.is_input() => exit::USAGE,
            _ => exit::FAILED,
        }
    }

    /// True when the arguments or the input are at fault.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Input { .. }
            | Self::Stream { .. }
            | Self::Usage { .. }
            | Self::Unsound { .. } => true,
            Self::Pipeline(error) => error.is_input(),
            Self::Kept { error, .. } => error.is_input(),
            Self::Io { .. }
            | Self::Turbo(_)
            | Self::Decoder(_)
            | Self::Png(_)
            | Self::Interrupted { .. }
            | Self::Stopped => false,
        }
    }

    /// The error of a build that leaves that many finished shards in its work folder.
    pub(crate) fn kept(self, shards: usize, dir: &Path) -> Self {
        match self {
            Self::Interrupted { .. } => self,
            _ if shards == 0 || !dir.exists() => self,
            _ => Self::Kept { error: Box::new(self), shards, dir: dir.to_path_buf() },
        }
    }

    pub(crate) fn input(
        path: impl Into<PathBuf>,
        problem: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self::Input { path: path.into(), problem: problem.into(), mend: mend.into() }
    }

    /// For `map_err`: an I/O failure at `path` while `doing`.
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, doing, source }
    }

    /// For `map_err` on files the user named: one that is not there or not readable is wrong input.
    pub(crate) fn open(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::input(path, "does not exist", "check the path"),
            io::ErrorKind::PermissionDenied => {
                Self::input(path, "may not be read", "check its permissions")
            }
            _ => Self::Io { path, doing: "open it", source },
        }
    }
}
