//! How calls of the C++ unit in `shim/` end, and how it calls back.

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What libtorch says of an error: its lines, without where in its sources it was raised and the frames of the stack.
/// A panic of tch's has them between quotes, escaped.
pub(crate) fn message(text: &str) -> String {
    let quoted = text.split_once("Torch(\"").map(|(_, quoted)| quoted.trim_end_matches("\")"));
    let text = match quoted {
        Some(quoted) => quoted.replace("\\n", "\n").replace("\\\"", "\"").replace("\\'", "'"),
        None => text.to_owned(),
    };
    let mut lines = vec![];
    for line in text.lines().map(str::trim) {
        if ["Exception raised from", "frame #", "C++ CapturedTraceback"]
            .iter()
            .any(|at| line.starts_with(at))
        {
            break;
        }
        if !line.is_empty() {
            lines.push(line);
        }
    }
    lines.join("; ")
}

/// A function of the shim's that it is given to call, with the context that it is given beside it.
pub(crate) type Callback = extern "C" fn(*mut c_void);

/// Hands `body` to `call`, a function of the shim that calls it once, and gives what it returned. A panic
/// in it does not cross the shim: it goes on from here.
pub(crate) fn through<T>(
    body: impl FnOnce() -> T,
    call: impl FnOnce(Callback, *mut c_void) -> *mut c_char,
) -> Result<T, String> {
    struct Call<F, T> {
        body: Option<F>,
        value: Option<std::thread::Result<T>>,
    }
    extern "C" fn run<F: FnOnce() -> T, T>(context: *mut c_void) {
        // SAFETY: the context is the `Call` below, which nobody else uses meanwhile.
        let call = unsafe { &mut *context.cast::<Call<F, T>>() };
        if let Some(body) = call.body.take() {
            call.value = Some(catch_unwind(AssertUnwindSafe(body)));
        }
    }
    fn entry<F: FnOnce() -> T, T>(_: &Call<F, T>) -> Callback {
        run::<F, T>
    }
    let mut context = Call { body: Some(body), value: None };
    let function = entry(&context);
    let ended = outcome(call(function, (&raw mut context).cast()));
    match context.value {
        Some(Err(panic)) => resume_unwind(panic),
        Some(Ok(value)) => ended.map(|()| value),
        None => Err(ended.err().unwrap_or_else(|| "the function was not called".to_owned())),
    }
}

/// What a function of this crate gave. What libtorch refused is a panic in tch's words, of which [`caught`](crate::caught) makes
/// an error.
///
/// # Panics
/// Where libtorch refused.
pub fn must<T>(ended: Result<T, String>) -> T {
    ended.unwrap_or_else(|reason| panic!("an `Err` value: Torch({reason:?})"))
}

/// What an error of the shim says, or `Ok` where there is none.
pub(crate) fn outcome(error: *mut c_char) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns a zero-terminated text that the caller frees.
    unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        libc::free(error.cast());
        Err(message(&text))
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::message;
    use crate::error::is_out_of_memory;

    #[test]
    fn an_error_keeps_its_reason_and_loses_its_stack() {
        // As ProcessGroupNCCL throws it.
        let nccl = "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error \
            (run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9\nncclUnhandledCudaError: Call to CUDA \
            function failed.\nLast error:\nCuda failure 2 'out of memory'\nException raised from checkTimeout \
            at /pytorch/x.cpp:1 (most recent call first):\nframe #0: c10::Error::Error + 0x80 (0x7f in libc10.so)\n";
        let said = message(nccl);
        assert!(said.ends_with("Last error:; Cuda failure 2 'out of memory'"), "{said}");
        assert!(said.starts_with("NCCL error in") && is_out_of_memory(&said), "{said}");
        // As libtorch and tch have it.
        let x = Tensor::zeros([2, 3], tch::kind::FLOAT_CPU);
        let error = x.f_matmul(&x).unwrap_err().to_string();
        let panic = format!("{:?}", Err::<(), _>(x.f_matmul(&x).unwrap_err()));
        for text in [error, panic] {
            let said = message(&text);
            assert!(said.contains("cannot be multiplied (2x3 and 2x3)"), "{text}");
            assert!(!said.contains("frame") && !said.contains("\\n"), "{said}");
        }
    }
}
