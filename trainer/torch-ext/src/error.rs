//! What libtorch refuses.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::panic_text;

use crate::shim::message;

/// What libtorch said, without its stack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It refused.
    #[error("libtorch: {0}")]
    Torch(String),
    /// There was no room for a tensor.
    #[error("out of memory: {0}")]
    Memory(String),
}

impl Error {
    /// Of a text as libtorch, CUDA or tch has it.
    #[must_use]
    pub fn said(text: &str) -> Self {
        let reason = message(text);
        if is_out_of_memory(&reason) { Self::Memory(reason) } else { Self::Torch(reason) }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        match error {
            tch::TchError::Torch(text) => Self::said(&text),
            other => Self::said(&other.to_string()),
        }
    }
}

/// Whether libtorch, CUDA, cuDNN, cuBLAS, NCCL or oneDNN says that there was no room for something.
pub(crate) fn is_out_of_memory(text: &str) -> bool {
    let words = [
        "out of memory",             // CUDA's, and PyTorch's allocator over it
        "can't allocate memory",     // PyTorch's on the CPU
        "not enough memory",         // the same, of some systems
        "CUDNN_STATUS_ALLOC_FAILED", // its work space
        "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUSOLVER_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
        "could not create a primitive", // oneDNN's, which names no cause: there is no room for the code it makes
    ];
    words.iter().any(|word| text.contains(word))
}

/// How many [`caught`] are under way.
static CATCHING: AtomicUsize = AtomicUsize::new(0);

/// Runs `body`. Operators of tch panic where libtorch refuses them: here that is an error like others, and nothing
/// of it is printed.
///
/// # Errors
/// [`Error`], besides those of `body`.
///
/// # Panics
/// As `body`, of other causes.
pub fn caught<T, E: From<Error>>(body: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // On any thread: the backward pass of a CUDA device has one of its own.
            let catching = CATCHING.load(Ordering::Relaxed) > 0;
            if !(catching && is_refusal(panic_text(info.payload()))) {
                before(info);
            }
        }));
    });
    CATCHING.fetch_add(1, Ordering::Relaxed);
    let ended = panic::catch_unwind(AssertUnwindSafe(body));
    CATCHING.fetch_sub(1, Ordering::Relaxed);
    ended.unwrap_or_else(|payload| match panic_text(&*payload) {
        text if is_refusal(text) => Err(Error::said(text).into()),
        _ => panic::resume_unwind(payload),
    })
}

/// Whether a panic is an operator's that libtorch refused.
fn is_refusal(words: &str) -> bool {
    words.contains("Err` value: Torch(") || words.contains("Err` value: Convert(")
}

#[cfg(test)]
mod tests {
    use tch::Tensor;
    use tch::kind::FLOAT_CPU;

    use super::{Error, caught};

    type Result<T> = std::result::Result<T, Error>;

    #[test]
    fn what_libtorch_refuses_is_an_error_and_another_panic_goes_on() {
        let x = Tensor::zeros([2, 3], FLOAT_CPU);
        let refused: Result<Tensor> = caught(|| Ok(x.matmul(&x)));
        let Err(Error::Torch(reason)) = refused else { panic!("{refused:?}") };
        assert!(reason.contains("cannot be multiplied") && !reason.contains('\n'), "{reason}");
        let large: Result<Tensor> = caught(|| Ok(Tensor::empty([1i64 << 58], FLOAT_CPU)));
        let Err(Error::Memory(_)) = large else { panic!("{large:?}") };
        // In the shim, and within a backward pass, too.
        let map = Tensor::zeros([1], FLOAT_CPU).expand([1, 1 << 20, 1 << 15, 1 << 15], false);
        let ours: Result<Tensor> = caught(|| Ok(crate::kernels::upsample(&map)));
        assert!(matches!(ours, Err(Error::Memory(_))), "{ours:?}");
        let weight = Tensor::zeros([3], FLOAT_CPU).set_requires_grad(true);
        let late: Result<()> = caught(|| {
            let y = weight.sum(tch::Kind::Float) * Tensor::zeros([2], FLOAT_CPU);
            y.backward();
            Ok(())
        });
        assert!(matches!(late, Err(Error::Torch(_))), "{late:?}");
        let ours = std::panic::catch_unwind(|| caught::<(), Error>(|| panic!("ours")));
        assert!(ours.is_err());
    }
}
