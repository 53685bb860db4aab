//! The package `bigbigan` of Python: [`pipeline`]'s loader and `shard-imagenet`.
//!
//! Python waits here and nowhere else: the interpreter's lock is released while a batch is waited for, and
//! signals are looked for twenty times a second. Batches are the loader's own memory: an array that Python holds
//! keeps its batch, and with the last of them the batch goes back.

mod array;
mod ending;
mod error;
mod loader;
mod memory;
mod view;
mod warnings;

use pyo3::prelude::*;

/// Compiled half of the package `bigbigan`.
#[pymodule]
mod _bigbigan {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::array::Array;
    #[pymodule_export]
    use super::ending::{_ends, _forked};
    #[pymodule_export]
    use super::error::DataError;
    #[pymodule_export]
    use super::loader::{Batch, Epoch, Loader};
    #[pymodule_export]
    use super::shard_imagenet;
    #[pymodule_export]
    use super::view::view;

    #[pymodule_init]
    fn begin(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::ending::listen(module)
    }
}

/// Runs `shard-imagenet` with these arguments, the program's name first; gives its exit code.
#[pyfunction]
fn shard_imagenet(py: Python<'_>, args: Vec<std::ffi::OsString>) -> u8 {
    ending::detached(py, || tools::cli::run(args))
}
