//! Lines for whoever reads along. `println!` and `eprintln!` panic where the reader went away, as in
//! `trainer inspect … | head -1`; here that is no error, and stops no work.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use crate::error::{Error, Result};

/// Prints a line on standard output.
///
/// # Errors
/// [`Error::Io`] if it cannot be written, as on a full disk.
pub fn print(text: impl Display) -> Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::io("write to", "standard output")(e))
        }
        _ => Ok(()),
    }
}

/// Prints a line on standard error, if that can be.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
