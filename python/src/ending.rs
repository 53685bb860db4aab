//! The interpreter's end.
//!
//! A daemon thread that comes back to CPython (before 3.14) when the interpreter has begun to end is ended
//! there and then, by unwinding its stack, which no frame of Rust's survives: the process dies of SIGSEGV or
//! SIGABRT after all its work is done. So such threads do not come back: they stay here until the process has
//! gone.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// Set once the interpreter ends.
static ENDS: AtomicBool = AtomicBool::new(false);
/// Threads that have looked and come back.
static RETURNING: AtomicUsize = AtomicUsize::new(0);
/// The thread that ends the interpreter, and goes on using it.
static LAST: OnceLock<ThreadId> = OnceLock::new();
/// The longest that its end waits for threads on their way back; one that was forked off has them not.
const PATIENCE: Duration = Duration::from_secs(1);

/// Works without the interpreter's lock.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    let done = py.detach(|| {
        let done = work();
        RETURNING.fetch_add(1, SeqCst);
        if ENDS.load(SeqCst) && LAST.get() != Some(&std::thread::current().id()) {
            RETURNING.fetch_sub(1, SeqCst);
            loop {
                std::thread::park();
            }
        }
        done
    });
    RETURNING.fetch_sub(1, SeqCst);
    done
}

/// Called by Python's `atexit`, while threads may still come back.
#[pyfunction]
pub(crate) fn _ends(py: Python<'_>) {
    let _ = LAST.set(std::thread::current().id());
    ENDS.store(true, SeqCst);
    py.detach(|| {
        let begun = Instant::now();
        while RETURNING.load(SeqCst) > 0 && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Has Python call [`_ends`].
pub(crate) fn listen(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let ends = module.getattr("_ends")?;
    module.py().import("atexit")?.call_method1("register", (ends,))?;
    Ok(())
}
