//! What all programs here ask of the system: signals, the wish to stop, lines for people, files that outlive a crash, the
//! time, exit codes.
//!
//! It is the lowest crate: `pipeline`, `tools` and `trainer` stand on it, and it knows none of them.

pub mod exit;
pub mod files;
pub mod say;
pub mod signals;
pub mod stop;

use std::any::Any;

/// The time as UTC, to the second, as RFC 3339 writes it: `2019-07-04T12:00:00Z`.
#[must_use]
pub fn now() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}

/// The name of this machine.
#[must_use]
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let owned = || panic.downcast_ref::<String>().map(String::as_str);
    panic.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("a panic")
}
