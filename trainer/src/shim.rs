//! The C++ unit behind `shim/`: what tch does not offer, and how its errors come back.

use std::any::Any;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{NonNull, null_mut};

use tch::{Device, Tensor};

unsafe extern "C" {
    fn bb_autocast(enabled: c_int) -> *mut c_char;
    fn bb_tf32(enabled: c_int) -> *mut c_char;
    fn bb_deterministic(enabled: c_int) -> *mut c_char;
    fn bb_trials(enabled: c_int) -> *mut c_char;
    fn bb_upsample(x: *const c_void, out: *mut *mut c_void) -> *mut c_char;
    fn bb_pinned(tensor: *const c_void, copy: *mut *mut c_void) -> *mut c_char;
    fn bb_copy_later(to: *const c_void, from: *const c_void) -> *mut c_char;
}

thread_local! {
    static BF16: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread's operators compute in bfloat16 where that is safe.
pub(crate) fn in_bf16() -> bool {
    BF16.get()
}

/// Runs `body` with or without bfloat16: products and convolutions in it round their inputs, sums and
/// norms do not.
pub(crate) fn with_bf16<T>(enabled: bool, body: impl FnOnce() -> T) -> T {
    struct Back(bool);
    impl Back {
        fn switch(enabled: bool) -> bool {
            // SAFETY: no precondition.
            outcome(unsafe { bb_autocast(c_int::from(enabled)) }).expect("a switch of the thread");
            BF16.replace(enabled)
        }
    }
    impl Drop for Back {
        fn drop(&mut self) {
            Self::switch(self.0);
        }
    }
    if enabled == in_bf16() {
        return body();
    }
    let _back = Back(Back::switch(enabled));
    body()
}

/// (N, C, H, W) to (N, C, 2H, 2W), each value four times, in the kind that it has.
///
/// # Panics
/// If libtorch refuses, as for other shapes.
pub(crate) fn upsample(x: &Tensor) -> Tensor {
    let mut out = null_mut();
    // SAFETY: the tensor is alive; the shim writes one that is ours.
    must(outcome(unsafe { bb_upsample(x.as_ptr().cast(), &raw mut out) }));
    // SAFETY: as above; it is taken over once.
    unsafe { Tensor::from_ptr(out.cast()) }
}

/// Whether products and convolutions on CUDA may round their inputs to TF32, in the whole process.
pub(crate) fn allow_tf32(enabled: bool) {
    // SAFETY: no precondition.
    outcome(unsafe { bb_tf32(c_int::from(enabled)) }).expect("a switch of the process");
}

/// While it lives, cuDNN may choose an algorithm by trying all of them the first time it sees the shapes of a
/// convolution, in the whole process: for work whose shapes come again and again.
pub(crate) struct Trials;

impl Trials {
    /// Where `wanted`.
    pub(crate) fn allow(wanted: bool) -> Option<Self> {
        wanted.then(|| {
            Self::switch(true);
            Self
        })
    }

    fn switch(enabled: bool) {
        // SAFETY: no precondition.
        outcome(unsafe { bb_trials(c_int::from(enabled)) }).expect("a switch of the process");
    }
}

impl Drop for Trials {
    fn drop(&mut self) {
        Self::switch(false);
    }
}

/// Whether operators give the same bits again, or fail where they cannot, in the whole process.
pub(crate) fn want_determinism(enabled: bool) {
    // SAFETY: no precondition.
    outcome(unsafe { bb_deterministic(c_int::from(enabled)) }).expect("a switch of the process");
}

/// What a panic says.
pub(crate) fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic")
}

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

/// A copy of a tensor of host memory, in page-locked memory.
///
/// # Errors
/// Where there is no device, in words.
pub(crate) fn pinned(tensor: &Tensor) -> Result<Tensor, String> {
    let mut copy = null_mut();
    // SAFETY: the tensor is alive; the shim writes one that is ours.
    outcome(unsafe { bb_pinned(tensor.as_ptr().cast(), &raw mut copy) })?;
    // SAFETY: as above; it is taken over once.
    Ok(unsafe { Tensor::from_ptr(copy.cast()) })
}

/// A tensor of host memory on `device`, without waiting for what that is at. (libtorch keeps the page-locked copy
/// until the device has read it.)
pub(crate) fn sent(tensor: &Tensor, device: Device) -> Tensor {
    if !device.is_cuda() {
        return tensor.to_device(device);
    }
    must(pinned(tensor)).to_device_(device, tensor.kind(), true, false)
}

/// Copies `from` to `to`, of the same shape and type, without waiting for the copy where one of them is in page-locked
/// memory and the other on a device.
pub(crate) fn copy_later(to: &Tensor, from: &Tensor) {
    // SAFETY: both are alive; the copy writes to the first alone.
    must(outcome(unsafe { bb_copy_later(to.as_ptr().cast(), from.as_ptr().cast()) }));
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

/// What the shim gave. What libtorch refused is a panic in tch's words, which [`Error::caught`] knows.
///
/// [`Error::caught`]: crate::error::Error::caught
pub(crate) fn must<T>(ended: Result<T, String>) -> T {
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

/// Loads a shared object for good; all that is loaded later sees its symbols.
pub(crate) fn load_library(name: &CStr) -> std::result::Result<NonNull<c_void>, String> {
    // SAFETY: initialisers of libtorch's and the shim's objects only register things.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    NonNull::new(handle).ok_or_else(|| {
        // SAFETY: dlerror returns null or a string that lives until the next dl call of this thread.
        let reason = unsafe {
            let text = libc::dlerror();
            if text.is_null() { None } else { Some(CStr::from_ptr(text)) }
        };
        reason.map_or("unknown".into(), |text| text.to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::{is_out_of_memory, message, want_determinism};

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

    #[test]
    fn what_may_give_other_bits_is_refused_while_determinism_is_wanted() {
        // Which of two values lands in the same place is open.
        let put = || {
            let (places, values) =
                (Tensor::from_slice(&[0i64, 0]), Tensor::from_slice(&[1f32, 2.0]));
            Tensor::zeros([1], tch::kind::FLOAT_CPU).f_put_(&places, &values, false).is_ok()
        };
        let seen = [false, true, false].map(|wanted| {
            want_determinism(wanted);
            put()
        });
        assert_eq!(seen, [true, false, true]);
    }
}
