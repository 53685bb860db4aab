//! Lines for whoever reads along. `println!` and `eprintln!` panic where the reader went away, as in
//! `trainer inspect … | head -1`; here that is no error, and stops no work.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Prints a line on standard output.
///
/// # Errors
/// If it cannot be written, as on a full disk.
pub fn print(text: impl Display) -> io::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e),
        _ => Ok(()),
    }
}

static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether [`note`] says nothing from now on.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether nothing is to be said but results and errors.
#[must_use]
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints a line on standard error, if that can be, and is wanted.
pub fn note(text: impl Display) {
    if !is_quiet() {
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Prints an error on standard error, if that can be.
pub fn error(text: impl Display) {
    always(format_args!("error: {text}"));
}

/// Prints a line on standard error, if that can be, however quiet.
pub fn always(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
