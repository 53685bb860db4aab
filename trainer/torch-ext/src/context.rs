//! Switches of a thread and of the process, under PyTorch's names.

use std::cell::Cell;
use std::ffi::{c_char, c_int};

use crate::shim::outcome;

unsafe extern "C" {
    fn ext_autocast(enabled: c_int) -> *mut c_char;
    fn ext_tf32(enabled: c_int) -> *mut c_char;
    fn ext_deterministic(enabled: c_int) -> *mut c_char;
    fn ext_trials(enabled: c_int) -> *mut c_char;
}

thread_local! {
    static BF16: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread's operators compute in bfloat16 where that is safe.
pub fn is_autocast() -> bool {
    BF16.get()
}

/// Runs `body` with or without bfloat16: products and convolutions in it round their inputs, sums and
/// norms do not.
pub fn autocast<T>(enabled: bool, body: impl FnOnce() -> T) -> T {
    struct Back(bool);
    impl Back {
        fn switch(enabled: bool) -> bool {
            // SAFETY: no precondition.
            outcome(unsafe { ext_autocast(c_int::from(enabled)) }).expect("a switch of the thread");
            BF16.replace(enabled)
        }
    }
    impl Drop for Back {
        fn drop(&mut self) {
            Self::switch(self.0);
        }
    }
    if enabled == is_autocast() {
        return body();
    }
    let _back = Back(Back::switch(enabled));
    body()
}

/// Whether products and convolutions on CUDA may round their inputs to TF32, in the whole process.
///
/// # Panics
/// Never: it is a switch.
pub fn allow_tf32(enabled: bool) {
    // SAFETY: no precondition.
    outcome(unsafe { ext_tf32(c_int::from(enabled)) }).expect("a switch of the process");
}

/// While it lives, cuDNN may choose an algorithm by trying all of them the first time it sees the shapes of a
/// convolution, in the whole process: for work whose shapes come again and again.
#[derive(Debug)]
pub struct CudnnBenchmark;

impl CudnnBenchmark {
    /// Where `wanted`.
    pub fn allow(wanted: bool) -> Option<Self> {
        wanted.then(|| {
            Self::switch(true);
            Self
        })
    }

    fn switch(enabled: bool) {
        // SAFETY: no precondition.
        outcome(unsafe { ext_trials(c_int::from(enabled)) }).expect("a switch of the process");
    }
}

impl Drop for CudnnBenchmark {
    fn drop(&mut self) {
        Self::switch(false);
    }
}

/// Whether operators give the same bits again, or fail where they cannot, in the whole process.
///
/// # Panics
/// Never: it is a switch.
pub fn use_deterministic_algorithms(enabled: bool) {
    // SAFETY: no precondition.
    outcome(unsafe { ext_deterministic(c_int::from(enabled)) }).expect("a switch of the process");
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::use_deterministic_algorithms;

    #[test]
    fn what_may_give_other_bits_is_refused_while_determinism_is_wanted() {
        // Which of two values lands in the same place is open.
        let put = || {
            let (places, values) =
                (Tensor::from_slice(&[0i64, 0]), Tensor::from_slice(&[1f32, 2.0]));
            Tensor::zeros([1], tch::kind::FLOAT_CPU).f_put_(&places, &values, false).is_ok()
        };
        let seen = [false, true, false].map(|wanted| {
            use_deterministic_algorithms(wanted);
            put()
        });
        assert_eq!(seen, [true, false, true]);
    }
}
