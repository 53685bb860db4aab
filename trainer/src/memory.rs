//! How much memory tensors take.

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;

use crate::shim::outcome;

unsafe extern "C" {
    fn bb_memory_start(meter: *mut *mut c_void) -> *mut c_char;
    fn bb_memory_stop(meter: *mut c_void, peak: *mut i64) -> *mut c_char;
}

/// Counts the bytes of CPU tensors that the current thread allocates and frees.
#[derive(Debug)]
pub struct Meter {
    handle: *mut c_void,
    /// It belongs to the thread that started it.
    _thread: PhantomData<*const ()>,
}

impl Meter {
    /// Counts from now on.
    ///
    /// # Panics
    /// If libtorch refuses.
    #[must_use]
    pub fn start() -> Self {
        let mut handle = null_mut();
        // SAFETY: the shim writes a handle of its own, which `stop` gives back.
        let error = unsafe { bb_memory_start(&raw mut handle) };
        outcome(error).expect("counting memory needs no more than memory");
        Self { handle, _thread: PhantomData }
    }

    /// The most bytes that were live at once, over what was live at the start.
    ///
    /// # Panics
    /// If libtorch refuses.
    #[must_use]
    pub fn stop(self) -> f64 {
        let mut peak = 0;
        // SAFETY: the handle is the one of `start`, given back once: `self` is consumed.
        let error = unsafe { bb_memory_stop(self.handle, &raw mut peak) };
        outcome(error).expect("counting memory needs no more than memory");
        peak as f64
    }
}
