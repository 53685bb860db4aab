//! A part of a batch as an object with a buffer, which NumPy makes an array of without a copy.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// One part of a batch: pixels, labels or ids. `numpy.asarray` and `memoryview` show it without a copy, and keep
/// it. Writable: a batch is its holder's own.
#[pyclass(module = "bigbigan", frozen)]
#[derive(Debug)]
pub(crate) struct Array {
    batch: pipeline::Batch,
    part: Part,
    // As the buffer protocol wants them: their addresses are handed out.
    shape: Box<[ffi::Py_ssize_t]>,
    strides: Box<[ffi::Py_ssize_t]>,
}

/// Which one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    /// u8 (N, H, W, 3).
    Large,
    /// u8 (N, H, W, 3).
    Small,
    /// i64 (N).
    Labels,
    /// u64 (N).
    Ids,
}

impl Part {
    /// Bytes of an element, and its format as `struct` has it.
    fn element(self) -> (usize, &'static CStr) {
        match self {
            Self::Large | Self::Small => (1, c"B"),
            // Of eight bytes where this is built, and what NumPy calls int64 and uint64.
            Self::Labels => (8, c"l"),
            Self::Ids => (8, c"L"),
        }
    }
}

impl Array {
    pub(crate) fn new(batch: &pipeline::Batch, part: Part) -> Self {
        let rows = batch.rows();
        let shape = match part {
            Part::Large => batch.large_array().1.to_vec(),
            Part::Small => batch.small_array().map_or(vec![0; 4], |(_, shape)| shape.to_vec()),
            Part::Labels | Part::Ids => vec![rows],
        };
        let mut strides = vec![part.element().0 as ffi::Py_ssize_t; shape.len()];
        for n in (1..shape.len()).rev() {
            strides[n - 1] = strides[n] * shape[n] as ffi::Py_ssize_t;
        }
        let shape = shape.into_iter().map(|length| length as ffi::Py_ssize_t).collect();
        Self { batch: batch.clone(), part, shape, strides: strides.into() }
    }

    fn start(&self) -> *mut c_void {
        let batch = &self.batch;
        match self.part {
            Part::Large => batch.large_array().0.as_ptr().cast(),
            Part::Small => {
                batch.small_array().map_or(ptr::null_mut(), |(start, _)| start.as_ptr().cast())
            }
            Part::Labels => batch.labels_array().0.as_ptr().cast(),
            Part::Ids => batch.ids_array().0.as_ptr().cast(),
        }
    }
}

#[pymethods]
impl Array {
    // SAFETY: Python calls it with a view to be filled, which is given back to `__releasebuffer__`.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("there is no view to fill"));
        }
        let this = slf.get();
        let (size, format) = this.part.element();
        let wants = |flag: c_int| flags & flag == flag;
        if wants(ffi::PyBUF_F_CONTIGUOUS) && this.shape.len() > 1 {
            return Err(PyBufferError::new_err("the rows come one after the other (C order)"));
        }
        let elements: ffi::Py_ssize_t = this.shape.iter().product();
        // SAFETY: shape and strides lie in boxes of an object that the view owns a reference to, and so does
        // the memory, which its batch keeps; none of them moves.
        unsafe {
            (*view).buf = this.start();
            (*view).len = elements * size as ffi::Py_ssize_t;
            (*view).readonly = 0;
            (*view).itemsize = size as ffi::Py_ssize_t;
            let format = format.as_ptr().cast_mut();
            (*view).format = if wants(ffi::PyBUF_FORMAT) { format } else { ptr::null_mut() };
            (*view).ndim = this.shape.len() as c_int;
            let shape = this.shape.as_ptr().cast_mut();
            (*view).shape = if wants(ffi::PyBUF_ND) { shape } else { ptr::null_mut() };
            let strides = this.strides.as_ptr().cast_mut();
            (*view).strides = if wants(ffi::PyBUF_STRIDES) { strides } else { ptr::null_mut() };
            (*view).suboffsets = ptr::null_mut();
            (*view).internal = ptr::null_mut();
            (*view).obj = slf.into_any().into_ptr();
        }
        Ok(())
    }

    // SAFETY: nothing was made for the view but a reference, which Python drops.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {}
}
