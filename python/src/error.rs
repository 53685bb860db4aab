//! What goes wrong, as Python's exceptions.

use pipeline::Error;
use pyo3::PyErr;
use pyo3::create_exception;
use pyo3::exceptions::{
    PyFileNotFoundError, PyMemoryError, PyOSError, PyRuntimeError, PyTimeoutError, PyValueError,
};

create_exception!(
    bigbigan,
    DataError,
    PyRuntimeError,
    "Data that cannot be read as they are: a shard, an index, an image. The message says where, and what to do."
);

/// A message with the names that options have in Python.
pub(crate) fn in_python(words: &str) -> String {
    let names = [
        ("large = ", "size = "),
        ("(large)", "(size)"),
        ("max_share = ", "bad = "),
        (" (data.max_bad_share of a training, BadSamples::Skip of a loader)", " (bad=)"),
        (" (data.max_bad_share of a training)", " (bad=)"),
        ("write it as resize-centre-crop,resize=PIXELS", "give resize="),
    ];
    names.iter().fold(words.to_owned(), |words, (there, here)| words.replace(there, here))
}

/// The exception that a Python programmer expects of it, with the whole message.
pub(crate) fn raised(error: &Error) -> PyErr {
    let words = in_python(&pipeline::report(error));
    match error {
        Error::Config { .. } | Error::Cursor { .. } | Error::TooFew { .. } => {
            PyValueError::new_err(words)
        }
        Error::NoFolder { .. } => PyFileNotFoundError::new_err(words),
        Error::Io { .. } | Error::Remote { .. } => PyOSError::new_err(words),
        Error::Memory { .. } => PyMemoryError::new_err(words),
        Error::TimedOut { .. } => PyTimeoutError::new_err(words),
        Error::Forked { .. } | Error::AllHeld { .. } | Error::Panic { .. } | Error::Stopped => {
            PyRuntimeError::new_err(words)
        }
        _ => DataError::new_err(words),
    }
}
