//! Somebody's wish that work ends soon, looked at wherever work may take long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

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
    /// An error of which [`Error::is_stop`] holds, if work is to end.
    pub fn check(&self) -> Result<()> {
        if self.wanted() { Err(Error::Data(pipeline::Error::Stopped)) } else { Ok(()) }
    }
}
