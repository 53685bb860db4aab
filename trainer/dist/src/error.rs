use std::fmt::Display;

use common::exit;
use common::stop::Stopped;

/// What can go wrong between ranks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The launcher's variables do not say which rank this is.
    #[error("wrong configuration: {0}")]
    Environment(String),
    /// The ranks of a run do not come together.
    #[error("cannot join the other ranks: {reason}")]
    Join {
        /// Why, and what to do.
        reason: String,
    },
    /// A rank was started with something else than rank 0.
    #[error(
        "rank {rank} has {name} = {ours}, rank 0 has {theirs}: start all ranks with the same program, \
             configuration and data"
    )]
    Disagree {
        /// What differs.
        name: String,
        /// The rank that noticed.
        rank: usize,
        /// Its value.
        ours: String,
        /// Rank 0's.
        theirs: String,
    },
    /// Ranks no longer hold the same values.
    #[error(
        "{tensor} is no longer the same on all ranks: a machine computes wrongly, or the machines \
             differ; resume from the last checkpoint on machines of one kind"
    )]
    Drift {
        /// The first such tensor.
        tensor: String,
    },
    /// The other ranks cannot be reached any more.
    #[error("lost the other ranks: {reason}")]
    Lost {
        /// What failed.
        reason: String,
    },
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] torch_ext::Error),
    /// This rank was asked to end.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;

/// What a rank that ends early tells the others.
pub trait Failure: Display {
    /// What the process exits with, of [`common::exit`].
    fn exit_code(&self) -> u8;

    /// Whether it is no failure: work ended because it was asked to.
    fn is_stop(&self) -> bool;
}

impl Error {
    /// Whether what was started is at fault, rather than the work itself.
    #[must_use]
    pub fn is_input(&self) -> bool {
        matches!(self, Self::Environment(_) | Self::Disagree { .. })
    }
}

impl Failure for Error {
    fn exit_code(&self) -> u8 {
        match self {
            error if error.is_stop() => exit::STOPPED,
            error if error.is_input() => exit::USAGE,
            _ => exit::FAILED,
        }
    }

    fn is_stop(&self) -> bool {
        matches!(self, Self::Stopped(_))
    }
}

pub(crate) fn join(reason: String) -> Error {
    Error::Join { reason }
}
