//! `bigbigan.Batch`, and the epochs that give them.

use std::sync::Arc;

use pipeline::{Cursor, Dataset, Error, Fingerprint};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::Loader;
use crate::array::{Array, Part};
use crate::ending::detached;
use crate::error::raised;

/// A position as a dict.
pub(super) fn state_of(py: Python<'_>, at: Cursor) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("epoch", at.epoch)?;
    dict.set_item("batch", at.batch)?;
    if let Some(Fingerprint { data, batch, seed, order, views }) = at.made_for {
        let made_for = PyDict::new(py);
        for (name, value) in
            [("data", data), ("batch", batch), ("seed", seed), ("order", order), ("views", views)]
        {
            made_for.set_item(name, value)?;
        }
        dict.set_item("made_for", made_for)?;
    }
    Ok(dict)
}

/// The rest of one epoch.
#[pyclass(module = "bigbigan", frozen)]
#[derive(Debug)]
pub(crate) struct Epoch {
    loader: Py<Loader>,
    epoch: u64,
}

impl Epoch {
    pub(super) fn new(loader: Py<Loader>, epoch: u64) -> Self {
        Self { loader, epoch }
    }
}

#[pymethods]
impl Epoch {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Batch>> {
        self.loader.get().next_of(py, self.epoch)
    }
}

/// One batch: N rows of H by W pixels.
///
/// The arrays are the loader's memory, not copies. They are yours to write to, and stay as they are for as long as
/// any array, view or tensor of them lives; the loader fills the memory again after that.
#[pyclass(module = "bigbigan", frozen)]
#[derive(Debug)]
pub(crate) struct Batch {
    batch: pipeline::Batch,
    /// What `ids` was: the array may be written to.
    ids: Vec<u64>,
    data: Arc<Dataset>,
}

impl Batch {
    pub(super) fn new(batch: pipeline::Batch, data: Arc<Dataset>) -> Self {
        let ids = batch.ids().to_vec();
        Self { batch, ids, data }
    }

    /// NumPy's array of a part.
    fn array<'py>(&self, py: Python<'py>, part: Part) -> PyResult<Bound<'py, PyAny>> {
        let array = Array::new(&self.batch, part);
        py.import("numpy")?.call_method1("asarray", (array,))
    }
}

#[pymethods]
impl Batch {
    /// u8 (N, H, W, 3), RGB.
    #[getter]
    fn images<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.array(py, Part::Large)
    }

    /// u8 (N, H, W, 3): the same views, smaller; None where the loader makes one size only.
    #[getter]
    fn small<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.batch.sides().1.map(|_| self.array(py, Part::Small)).transpose()
    }

    /// i64 (N): class numbers, -1 where there is none.
    #[getter]
    fn labels<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.array(py, Part::Labels)
    }

    /// u64 (N): positions of the samples in their split.
    #[getter]
    fn ids<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.array(py, Part::Ids)
    }

    /// N strings.
    #[getter]
    fn keys(&self) -> Vec<String> {
        self.ids.iter().map(|&id| self.data.key(id)).collect()
    }

    /// The members of the samples with this extension, such as "json" or ".txt": N of bytes or None.
    fn member<'py>(
        &self,
        py: Python<'py>,
        extension: &str,
    ) -> PyResult<Vec<Option<Bound<'py, PyBytes>>>> {
        let extension = extension.trim_start_matches('.');
        let all: Result<Vec<_>, Error> =
            detached(py, || self.ids.iter().map(|&id| self.data.member(id, extension)).collect());
        let all = all.map_err(|error| raised(&error))?;
        Ok(all.into_iter().map(|bytes| bytes.map(|bytes| PyBytes::new(py, &bytes))).collect())
    }

    /// The position after this batch, for `Loader.load_state_dict`.
    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        state_of(py, self.batch.cursor())
    }

    fn __len__(&self) -> usize {
        self.batch.rows()
    }

    fn __repr__(&self) -> String {
        let (large, small) = self.batch.sides();
        let small = small.map_or(String::new(), |small| format!(", small={small}"));
        format!("Batch({} rows, size={large}{small})", self.batch.rows())
    }
}
