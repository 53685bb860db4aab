//! What the words of `Loader` and `View` stand for.

use pipeline::{Mode, Shuffle};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// A word of a JSON-like enumeration.
pub(crate) fn word<T: serde::de::DeserializeOwned>(
    name: &str,
    value: &str,
    known: &str,
) -> PyResult<T> {
    let wrong = |_| PyValueError::new_err(format!("{name} = {value:?}: it may be {known}"));
    serde_json::from_value(value.into()).map_err(wrong)
}

/// What `shuffle` says. None is no shuffle elsewhere, and would be taken for it.
pub(super) struct Order(pub(super) Shuffle);

impl<'a, 'py> FromPyObject<'a, 'py> for Order {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let order = match value.extract::<bool>() {
            Ok(true) => Shuffle::Global,
            Ok(false) => Shuffle::None,
            Err(_) => {
                let known = "\"global\", \"shards\", \"none\", True or False";
                word("shuffle", &value.str()?.to_string(), known)?
            }
        };
        Ok(Self(order))
    }
}

/// What `filter` may be.
pub(crate) const FILTERS: &str = "\"bicubic\" or \"bilinear\"";
/// What `orientation` may be.
pub(crate) const ORIENTATIONS: &str = "\"ignore\" or \"apply\"";

/// The mode that these options are of.
pub(crate) fn mode(
    name: &str,
    [scale, ratio]: [Option<[f64; 2]>; 2],
    (law, flip, resize): (Option<&str>, Option<bool>, Option<usize>),
) -> PyResult<Mode> {
    let mut text = name.to_owned();
    for (key, range) in [("scale", scale), ("ratio", ratio)] {
        text += &range.map_or(String::new(), |[low, high]| format!(",{key}={low}..{high}"));
    }
    text += &law.map_or(String::new(), |law| format!(",law={law}"));
    text += &flip.map_or(String::new(), |flip| format!(",flip={flip}"));
    text += &resize.map_or(String::new(), |resize| format!(",resize={resize}"));
    text.parse().map_err(PyValueError::new_err)
}
