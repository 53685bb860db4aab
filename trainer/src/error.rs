//! What can go wrong, and whose fault it is.

use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::exit;

use crate::shim::{is_out_of_memory, message, words_of};

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
    /// The other ranks cannot be reached any more.
    #[error("lost the other ranks: {reason}")]
    Lost {
        /// What failed.
        reason: String,
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

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        let text = match error {
            tch::TchError::Torch(text) => text,
            other => other.to_string(),
        };
        Self::torch(&text)
    }
}

/// How many [`Error::caught`] are under way.
static CATCHING: AtomicUsize = AtomicUsize::new(0);

impl Error {
    /// What libtorch says.
    pub(crate) fn torch(text: &str) -> Self {
        let reason = message(text);
        match is_out_of_memory(&reason) {
            true => Self::Memory { reason },
            false => Self::Torch { reason },
        }
    }

    /// Runs `body`. Operators of tch panic where libtorch refuses them: here that is an error like others, and nothing
    /// of it is printed.
    ///
    /// # Errors
    /// [`Error::Memory`] and [`Error::Torch`], besides those of `body`.
    ///
    /// # Panics
    /// As `body`, of other causes.
    pub fn caught<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                // On any thread: the backward pass of a CUDA device has one of its own.
                let catching = CATCHING.load(Ordering::Relaxed) > 0;
                if !(catching && is_refusal(words_of(info.payload()))) {
                    before(info);
                }
            }));
        });
        CATCHING.fetch_add(1, Ordering::Relaxed);
        let ended = panic::catch_unwind(AssertUnwindSafe(body));
        CATCHING.fetch_sub(1, Ordering::Relaxed);
        ended.unwrap_or_else(|payload| match words_of(&*payload) {
            text if is_refusal(text) => Err(Self::torch(text)),
            _ => panic::resume_unwind(payload),
        })
    }

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
            Self::Disagree { .. } => true,
            Self::Data(e) => e.is_input(),
            Self::Checkpoint { .. } | Self::Extractor { .. } | Self::Image { .. } => true,
            _ => false,
        }
    }
}

/// Whether a panic is an operator's that libtorch refused.
fn is_refusal(words: &str) -> bool {
    words.contains("Err` value: Torch(") || words.contains("Err` value: Convert(")
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use tch::Tensor;
    use tch::kind::FLOAT_CPU;

    use super::{Error, Result};

    #[test]
    fn what_libtorch_refuses_is_an_error_and_another_panic_goes_on() {
        let x = Tensor::zeros([2, 3], FLOAT_CPU);
        let refused: Result<Tensor> = Error::caught(|| Ok(x.matmul(&x)));
        let Err(Error::Torch { reason }) = refused else { panic!("{refused:?}") };
        assert!(reason.contains("cannot be multiplied") && !reason.contains('\n'), "{reason}");
        let large: Result<Tensor> = Error::caught(|| Ok(Tensor::empty([1i64 << 58], FLOAT_CPU)));
        let Err(error @ Error::Memory { .. }) = large else { panic!("{large:?}") };
        assert!(error.to_string().contains("train.micro_batch"), "{error}");
        // In the shim, and within a backward pass, too.
        let map = Tensor::zeros([1], FLOAT_CPU).expand([1, 1 << 20, 1 << 15, 1 << 15], false);
        let ours: Result<Tensor> = Error::caught(|| Ok(crate::shim::upsample(&map)));
        assert!(matches!(ours, Err(Error::Memory { .. })), "{ours:?}");
        let weight = Tensor::zeros([3], FLOAT_CPU).set_requires_grad(true);
        let late: Result<()> = Error::caught(|| {
            let y = weight.sum(tch::Kind::Float) * Tensor::zeros([2], FLOAT_CPU);
            y.backward();
            Ok(())
        });
        assert!(matches!(late, Err(Error::Torch { .. })), "{late:?}");
        let ours = std::panic::catch_unwind(|| Error::caught::<()>(|| panic!("ours")));
        assert!(ours.is_err());
    }
}
