//! One picture as evaluation sees it.

use pipeline::decode::{DecodeOptions, Decoded, Decoder};
use pipeline::{Fault, Filter, Mode, Orientation};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::ending::detached;
use crate::error::DataError;
use crate::loader::{self, FILTERS, ORIENTATIONS, word};

/// What to look at.
enum Source {
    File(Vec<u8>),
    Pixels(Decoded),
}

impl Source {
    fn of(image: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(image)?;
        match *buffer.shape() {
            [_] => Ok(Self::File(buffer.to_vec(image.py())?)),
            [height, width, 3] => {
                let pixels = buffer.to_vec(image.py())?;
                Ok(Self::Pixels(Decoded { width, height, pixels }))
            }
            ref shape => {
                let problem =
                    format!("an image of shape {shape:?}: uint8 (H, W, 3), or a file's bytes");
                Err(PyValueError::new_err(problem))
            }
        }
    }
}

fn zeros(bytes: usize) -> PyResult<Vec<u8>> {
    let mut zeros = vec![];
    let none = |_| PyMemoryError::new_err(format!("no memory for {bytes} bytes of a view"));
    zeros.try_reserve_exact(bytes).map_err(none)?;
    zeros.resize(bytes, 0);
    Ok(zeros)
}

/// u8 (size, size, 3) of the bytes of a JPEG or PNG file, or of pixels.
#[pyfunction]
pub(crate) fn view<'py>(
    py: Python<'py>,
    image: &Bound<'py, PyAny>,
    size: usize,
    mode: &str,
    resize: Option<usize>,
    filter: &str,
    orientation: &str,
) -> PyResult<Bound<'py, PyByteArray>> {
    let mode: Mode = loader::mode(mode, [None; 2], (None, None, resize))?;
    let options = DecodeOptions {
        filter: word::<Filter>("filter", filter, FILTERS)?,
        orientation: word::<Orientation>("orientation", orientation, ORIENTATIONS)?,
        ..DecodeOptions::default()
    };
    if !(1..=1 << 14).contains(&size) {
        return Err(PyValueError::new_err(format!("size = {size}: 1 to 16384 pixels a side")));
    }
    mode.check(size).map_err(PyValueError::new_err)?;
    if mode.still((1, 1), size).is_none() {
        let problem = format!(
            "mode = {mode}: \"eval\", \"full\" or \"resize-centre-crop\", which chance has no part in"
        );
        return Err(PyValueError::new_err(problem));
    }
    let source = Source::of(image)?;
    let (mut row, mut small) = (zeros(size * size * 3)?, zeros(size * size * 3)?);
    let seen = detached(py, move || -> Result<Vec<u8>, Fault> {
        let mut decoder = Decoder::new(options)?;
        let choose = |width, height| mode.still((width, height), size).expect("a still mode");
        let rows = (&mut row[..], &mut small[..]);
        match &source {
            Source::File(bytes) => decoder.view(bytes, choose, size, rows)?,
            Source::Pixels(picture) => decoder.view_of_pixels(picture, choose, size, rows)?,
        }
        Ok(row)
    });
    let seen = seen.map_err(|fault| match fault {
        Fault::View(problem) => PyValueError::new_err(problem),
        fault => DataError::new_err(fault.to_string()),
    })?;
    Ok(PyByteArray::new(py, &seen))
}
