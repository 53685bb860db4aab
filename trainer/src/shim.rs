//! The C++ unit behind `shim/`: what tch does not offer, and how its errors come back.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;

unsafe extern "C" {
    fn bb_autocast(enabled: c_int) -> *mut c_char;
    fn bb_tf32(enabled: c_int) -> *mut c_char;
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

/// Whether products and convolutions on CUDA may round their inputs to TF32, in the whole process.
pub(crate) fn allow_tf32(enabled: bool) {
    // SAFETY: no precondition.
    outcome(unsafe { bb_tf32(c_int::from(enabled)) }).expect("a switch of the process");
}

/// An error text of the shim, or `Ok` where there is none.
pub(crate) fn outcome(error: *mut c_char) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns a zero-terminated text that the caller frees.
    unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        libc::free(error.cast());
        Err(text)
    }
}

/// Loads libtorch's CUDA half.
pub(crate) fn load_cuda() -> std::result::Result<(), String> {
    load_library(c"libtorch_cuda.so")
        .map(|_| ())
        .map_err(|reason| format!("libtorch's CUDA half does not load ({reason})"))
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
