//! Lines for whoever reads along: [`common::say`], with this crate's error.

use std::fmt::Display;

use crate::error::{Error, Result};
pub use common::say::{always, error, is_quiet, note, set_quiet};

/// Prints a line on standard output.
///
/// # Errors
/// [`Error::Io`] if it cannot be written, as on a full disk.
pub fn print(text: impl Display) -> Result<()> {
    common::say::print(text).map_err(Error::io("write to", "standard output"))
}
