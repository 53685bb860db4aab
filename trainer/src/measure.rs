//! How much memory tensors take, and how much work operators do.

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;

use tch::Tensor;

use crate::shim::outcome;

unsafe extern "C" {
    fn bb_memory_start(meter: *mut *mut c_void) -> *mut c_char;
    fn bb_memory_stop(meter: *mut c_void, peak: *mut i64) -> *mut c_char;
    fn bb_meta(shape: *const i64, dims: usize, out: *mut *mut c_void) -> *mut c_char;
    fn bb_work_start(count: *mut *mut c_void) -> *mut c_char;
    fn bb_work_stop(count: *mut c_void, work: *mut Work) -> *mut c_char;
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

/// Bytes of memory that this process holds; NaN where the system does not say.
#[must_use]
pub fn resident_bytes() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<f64>().ok());
    pages.map_or(f64::NAN, |pages| pages * rustix::param::page_size() as f64)
}

/// A single-precision tensor that has a shape and no memory.
///
/// # Panics
/// If libtorch refuses, as for a negative side.
pub fn shape_only(shape: &[i64]) -> Tensor {
    let mut out = null_mut();
    // SAFETY: `shape` holds as many numbers as said; the shim writes a tensor that we own.
    let error = unsafe { bb_meta(shape.as_ptr(), shape.len(), &raw mut out) };
    outcome(error).expect("a shape of sides above zero");
    // SAFETY: see above.
    unsafe { Tensor::from_ptr(out.cast()) }
}

/// What operators amount to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
pub struct Work {
    /// Floating-point operations of convolutions and matrix products; a multiply-add counts as two.
    pub flop: f64,
    /// Bytes of all operators' results.
    pub written: f64,
    /// Operators called, views not counted.
    pub operators: i64,
}

impl Work {
    /// What `body` calls on this thread.
    ///
    /// # Panics
    /// If called within itself.
    pub fn of<T>(body: impl FnOnce() -> T) -> (T, Self) {
        struct Count(*mut c_void);
        impl Drop for Count {
            fn drop(&mut self) {
                if !self.0.is_null() {
                    let mut work = Work::default();
                    // SAFETY: the handle of `bb_work_start`, not given back yet.
                    let _ = unsafe { bb_work_stop(self.0, &raw mut work) };
                }
            }
        }
        let mut count = Count(null_mut());
        // SAFETY: the shim writes a handle of its own, which is given back below, or by `drop` where
        // `body` panics.
        outcome(unsafe { bb_work_start(&raw mut count.0) }).expect("counts do not nest");
        let value = body();
        let mut work = Self::default();
        let handle = std::mem::replace(&mut count.0, null_mut());
        // SAFETY: the handle of `bb_work_start`, given back once.
        outcome(unsafe { bb_work_stop(handle, &raw mut work) }).expect("the count is under way");
        (value, work)
    }
}

#[cfg(test)]
mod tests {
    use tch::kind::FLOAT_CPU;

    use super::*;

    #[test]
    fn a_convolution_and_a_product_count_as_computed_by_hand() {
        let (x, w) =
            (Tensor::zeros([2, 3, 9, 9], FLOAT_CPU), Tensor::zeros([4, 3, 3, 3], FLOAT_CPU));
        let m = Tensor::zeros([200, 5], FLOAT_CPU);
        let (y, work) = Work::of(|| {
            let y = x.conv2d(&w, None::<Tensor>, [2, 2], [1, 1], [1, 1], 1);
            y.view([1, 200]).matmul(&m)
        });
        assert_eq!(y.size(), [1, 5]);
        let expected = 2.0 * (2.0 * 25.0 * 108.0 + 200.0 * 5.0);
        assert_eq!((work.flop, work.operators), (expected, 2));
        assert_eq!(work.written, 4.0 * (200.0 + 5.0));
    }
}
