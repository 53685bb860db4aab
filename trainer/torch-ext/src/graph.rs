//! CUDA graphs: what one call starts on a device, recorded once and started again as a whole.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::mem::transmute;
use std::ptr::null_mut;

use crate::cuda::entry;
use crate::shim::{Callback, outcome, through};

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside the body of [`Graph::record`], where no other graph can be recorded.
pub fn is_recording() -> bool {
    RECORDING.get()
}

type Record = unsafe extern "C" fn(
    c_int,
    *mut c_void,
    Callback,
    *mut c_void,
    *mut *mut c_void,
) -> *mut c_char;
type Replay = unsafe extern "C" fn(*mut c_void) -> *mut c_char;
type Discard = unsafe extern "C" fn(*mut c_void);

/// The work of one call on a CUDA device.
#[derive(Debug)]
pub struct Graph {
    handle: *mut c_void,
    replay: Replay,
    discard: Discard,
}

impl Graph {
    /// Records what `body` starts on CUDA device `index`. Nothing of it runs yet: what it returns, and
    /// what it writes to, has its values after each [`Graph::replay`]. Every address is recorded, and so
    /// is every number that `body` takes from the host: tensors of before that it reads or writes must live as
    /// long as the graph. A graph recorded `beside` another works in the
    /// same memory: its results are to be read before the other is replayed.
    ///
    /// # Errors
    /// In words: there is no device, or `body` did what cannot be recorded, as reading a value back.
    ///
    /// # Panics
    /// As `body`.
    pub fn record<T>(
        index: usize,
        beside: Option<&Self>,
        body: impl FnOnce() -> T,
    ) -> Result<(Self, T), String> {
        // SAFETY: the object declares the functions so, and is never unloaded.
        let (record, replay, discard) = unsafe {
            (
                transmute::<*mut c_void, Record>(entry(c"ext_graph_record")?.as_ptr()),
                transmute::<*mut c_void, Replay>(entry(c"ext_graph_replay")?.as_ptr()),
                transmute::<*mut c_void, Discard>(entry(c"ext_graph_drop")?.as_ptr()),
            )
        };
        let (beside, mut handle) = (beside.map_or(null_mut(), |graph| graph.handle), null_mut());
        let body = || {
            struct Outer(bool);
            impl Drop for Outer {
                fn drop(&mut self) {
                    RECORDING.set(self.0);
                }
            }
            let _outer = Outer(RECORDING.replace(true));
            body()
        };
        let value = through(body, |function, context| {
            // SAFETY: the other graph and the context are alive while the function runs; the shim writes a
            // handle of its own.
            unsafe { record(index as c_int, beside, function, context, &raw mut handle) }
        })?;
        Ok((Self { handle, replay, discard }, value))
    }

    /// Starts the work.
    ///
    /// # Errors
    /// In words, as CUDA has them.
    pub fn replay(&self) -> Result<(), String> {
        // SAFETY: the handle is alive.
        outcome(unsafe { (self.replay)(self.handle) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the handle of `record`, given back once.
        unsafe { (self.discard)(self.handle) }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::Graph;

    /// On a machine without a GPU too the functions are there and what they name is found.
    #[test]
    fn work_is_recorded_and_started_again_where_there_is_a_gpu_else_cuda_says_that_there_is_none() {
        if crate::cuda::device_count().is_err() {
            let reason =
                Graph::record(0, None, || unreachable!("nothing to record on")).unwrap_err();
            assert!(reason.contains("CUDA") || reason.contains("NVIDIA"), "{reason}");
            return;
        }
        let mut x = Tensor::zeros([3], (Kind::Float, Device::Cuda(0)));
        let (graph, y) = Graph::record(0, None, || x.g_add_scalar_(1.0) * 10.0).unwrap();
        for times in 1..=3 {
            graph.replay().unwrap();
            assert_eq!(y.sum(Kind::Double).double_value(&[]), 30.0 * f64::from(times));
        }
    }
}
