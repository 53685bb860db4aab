//! The C++ unit behind `shim/`: what tch does not offer, and how its errors come back.

use std::ffi::{CStr, c_char};

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
