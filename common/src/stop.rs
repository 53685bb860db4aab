//! Somebody's wish that work ends soon, looked at wherever work may take long.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Work that ended early because that was asked of it: no failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Stopped {}

/// A wish, shared by all its clones. A new one asks nothing.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether work is to end.
    #[must_use]
    pub fn wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What a signal handler sets.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Nothing, unless work is to end.
    ///
    /// # Errors
    /// [`Stopped`], if work is to end.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.wanted() { Err(Stopped) } else { Ok(()) }
    }
}
