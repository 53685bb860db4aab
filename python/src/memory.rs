//! Batch memory that Python gives, such as page-locked memory of PyTorch.

use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use pipeline::{Error, HostBlock, HostMemory};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::ending::within;

/// A function of Python: number of bytes to an object with a writable buffer of at least as many bytes, which is
/// nobody else's. What it raises is kept, to be raised where batches are asked for.
#[derive(Debug)]
pub(crate) struct Given {
    function: Py<PyAny>,
    raised: Mutex<Option<PyErr>>,
}

impl Given {
    pub(crate) fn new(function: Py<PyAny>) -> Self {
        Self { function, raised: Mutex::default() }
    }

    /// What the function raised last.
    pub(crate) fn raised(&self) -> Option<PyErr> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl HostMemory for Given {
    fn allocate(&self, bytes: usize) -> Result<Box<dyn HostBlock>, Error> {
        let block = Python::try_attach(|py| -> PyResult<Block> {
            let given = within(|| self.function.call1(py, (bytes,)));
            let given = given.ok_or_else(|| PyRuntimeError::new_err("Python is ending"))??;
            let buffer = PyBuffer::<u8>::get(given.bind(py))?;
            if buffer.readonly() || !buffer.is_c_contiguous() {
                let problem = "memory= gave a buffer that is read-only or not contiguous";
                return Err(pyo3::exceptions::PyValueError::new_err(problem));
            }
            Ok(Block(buffer))
        });
        let refuse = |error: PyErr| {
            let reason = error.to_string();
            *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            Error::Memory { bytes, reason }
        };
        let Some(block) = block else {
            return Err(Error::Memory { bytes, reason: "Python is ending".into() });
        };
        Ok(Box::new(block.map_err(refuse)?))
    }
}

/// A buffer of Python's, kept until the loader's memory goes.
struct Block(PyBuffer<u8>);

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Block").field(&self.0.len_bytes()).finish()
    }
}

// SAFETY: an exported buffer stays where it is, with its length, until it is released. That nobody else uses
// the bytes is what `memory=` asks of its giver; they are initialised as Python gives no others.
unsafe impl HostBlock for Block {
    fn pointer(&self) -> NonNull<u8> {
        NonNull::new(self.0.buf_ptr().cast()).unwrap_or(NonNull::dangling())
    }

    fn len(&self) -> usize {
        self.0.len_bytes()
    }
}
