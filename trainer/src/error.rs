//! What can go wrong, and whose fault it is.

use std::path::PathBuf;

use bigbigan_model::presets::Problems;
use common::exit;
use common::stop::Stopped;
use dist::Failure;

/// An error of the trainer: where, what, and how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration does not hold together; every problem is listed.
    #[error("wrong configuration: {}", problems.join("; "))]
    Config {
        /// One sentence each: key, value, way out.
        problems: Vec<String>,
    },
    /// The command says what cannot be done.
    #[error("usage: {problem}")]
    Usage {
        /// What, and what to say instead.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// "read", "create", …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The output folder cannot take a run.
    #[error("cannot use the output folder {}: {reason}", path.display())]
    Output {
        /// The folder.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Another process is at work in a folder.
    #[error("cannot use the folder {}: {reason}", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Who has it, and what to do.
        reason: String,
    },
    /// The images cannot be read.
    #[error(transparent)]
    Data(#[from] pipeline::Error),
    /// A checkpoint cannot be used.
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A network that scores are made of cannot be used.
    #[error("extractor {}: {reason}", path.display())]
    Extractor {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// An image file cannot be read.
    #[error("image {}: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The device asked for is not there.
    #[error("device {device} cannot be used: {reason}")]
    Device {
        /// As given.
        device: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Runs of a study failed.
    #[error("study {}: {reason}", path.display())]
    Study {
        /// The folder of the run, or of the study.
        path: PathBuf,
        /// Which, and their last words.
        reason: String,
    },
    /// A run is saved, but something else of it could not be written.
    #[error("{}: not all could be written: {reason}; when that is mended, go on by --resume", path.display())]
    Unwritten {
        /// The run folder.
        path: PathBuf,
        /// What, and why.
        reason: String,
    },
    /// There is no room for a checkpoint.
    #[error("{} is full: {reason}", path.display())]
    Full {
        /// The folder.
        path: PathBuf,
        /// What it would take, what there is, and what to do.
        reason: String,
    },
    /// A loss, gradient or weight is no longer a number.
    #[error(
        "loss_{network}, its gradient or a weight is not finite at step {step}: lower opt.lr_d and \
             opt.lr_g (for loss_further beyond.rate) and resume, or start with health.on_fault = \"skip\" or \"rollback\""
    )]
    Diverged {
        /// d, g or e.
        network: &'static str,
        /// The step it happened in.
        step: u64,
    },
    /// A run that diverged would be started again as it was.
    #[error(
        "this run diverged at step {step}, and with the same settings would again: change them and go on \
             (--resume --allow-change --set opt.lr_d=…), or begin with health.on_fault = \"skip\" or \
             \"rollback\""
    )]
    DivergedBefore {
        /// The step it happened in.
        step: u64,
    },
    /// Ranks do not come together, disagree, or lose each other.
    #[error(transparent)]
    Ranks(dist::Error),
    /// Ranks would not read together what one process reads.
    #[error(
        "batch {batch} dealt out to {ranks} ranks is not what one process reads: a fault of this program; \
             report it with the configuration"
    )]
    Split {
        /// Number of ranks.
        ranks: usize,
        /// Number of the batch, from 0.
        batch: u64,
    },
    /// libtorch refused.
    #[error("libtorch: {reason}")]
    Torch {
        /// What it says, without its stack.
        reason: String,
    },
    /// There was no room for a tensor.
    #[error(
        "out of memory: {reason}; take less at a time: train.micro_batch (trainer bench-batch finds the largest that \
             fits), recompute = true in [g], [f] and [e], train.precision = \"bf16\"; or free what other programs hold"
    )]
    Memory {
        /// What libtorch says, without its stack.
        reason: String,
    },
    /// A picture could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Picture {
        /// The PNG.
        path: PathBuf,
        /// The cause.
        source: image::ImageError,
    },
}

impl From<torch_ext::Error> for Error {
    fn from(error: torch_ext::Error) -> Self {
        match error {
            torch_ext::Error::Torch(reason) => Self::Torch { reason },
            torch_ext::Error::Memory(reason) => Self::Memory { reason },
        }
    }
}

impl From<Problems> for Error {
    fn from(Problems(problems): Problems) -> Self {
        Self::Config { problems }
    }
}

impl From<dist::Error> for Error {
    fn from(error: dist::Error) -> Self {
        match error {
            dist::Error::Torch(error) => error.into(),
            dist::Error::Stopped(stopped) => stopped.into(),
            error => Self::Ranks(error),
        }
    }
}

impl From<Stopped> for Error {
    fn from(Stopped: Stopped) -> Self {
        Self::Data(pipeline::Error::Stopped)
    }
}

impl Failure for Error {
    fn exit_code(&self) -> u8 {
        Self::exit_code(self)
    }

    fn is_stop(&self) -> bool {
        Self::is_stop(self)
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        torch_ext::Error::from(error).into()
    }
}

impl Error {
    /// For `map_err`: an I/O error with its file.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Whether there was no room: a full disk or a used-up quota.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } | Self::Data(pipeline::Error::Io { source, .. }) => {
                common::files::is_full(source)
            }
            _ => false,
        }
    }

    /// Whether the file system may not be written to.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self, Self::Io { source, .. } if [PermissionDenied, ReadOnlyFilesystem].contains(&source.kind()))
    }

    /// Whether it is no failure: work ended early because it was asked to.
    #[must_use]
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Data(pipeline::Error::Stopped))
    }

    /// What the program exits with, of [`common::exit`].
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Diverged { .. } | Self::DivergedBefore { .. } => exit::DIVERGED,
            error if error.is_stop() => exit::STOPPED,
            error if error.is_input() => exit::USAGE,
            _ => exit::FAILED,
        }
    }

    /// Whether the user's command, configuration or data is at fault, rather than the work itself.
    #[must_use]
    pub fn is_input(&self) -> bool {
        match self {
            Self::Config { .. } | Self::Usage { .. } => true,
            Self::Output { .. } | Self::Device { .. } => true,
            Self::Ranks(e) => e.is_input(),
            Self::Data(e) => e.is_input(),
            Self::Checkpoint { .. } | Self::Extractor { .. } | Self::Image { .. } => true,
            _ => false,
        }
    }
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;
