//! The interpreter's end.
//!
//! A daemon thread that comes back to CPython (before 3.14) when the interpreter is finalized is ended there and
//! then, by unwinding its stack, which no frame of Rust's survives: the process dies of SIGSEGV or SIGABRT after
//! all its work is done. So such threads are held back from Python's `atexit` on. What `atexit` calls later may
//! wait for one of them, so a thread that was held back once comes back after all, unless the interpreter is
//! being finalized by then. Nothing is to be done for a thread in Python that we call (`memory=`, handlers of logging)
//! for longer than the end waits.

use std::cell::Cell;
use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// Set once the interpreter ends.
static ENDS: AtomicBool = AtomicBool::new(false);
/// Threads that are on their way back to Python, or are in Python that we called.
static WITHIN: AtomicUsize = AtomicUsize::new(0);
/// The thread that ends the interpreter, and goes on using it.
static LAST: OnceLock<ThreadId> = OnceLock::new();
/// The longest that the end waits for those threads, and that a thread is held back.
const PATIENCE: Duration = Duration::from_secs(1);

/// Works without the interpreter's lock.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    let done = py.detach(|| {
        let done = work();
        WITHIN.fetch_add(1, SeqCst);
        if is_over() {
            WITHIN.fetch_sub(1, SeqCst);
            hold_back();
            WITHIN.fetch_add(1, SeqCst);
        }
        done
    });
    WITHIN.fetch_sub(1, SeqCst);
    done
}

/// Calls Python from where Rust's frames are below: the end waits for it, and none is called once it has begun.
pub(crate) fn within<T>(call: impl FnOnce() -> T) -> Option<T> {
    WITHIN.fetch_add(1, SeqCst);
    let done = (!is_over()).then(call);
    WITHIN.fetch_sub(1, SeqCst);
    done
}

/// Whether the interpreter ends, by another thread than this one.
fn is_over() -> bool {
    ENDS.load(SeqCst) && LAST.get() != Some(&std::thread::current().id())
}

/// Once for a while; for good as soon as the interpreter is finalized.
fn hold_back() {
    thread_local! {
        static HELD: Cell<bool> = const { Cell::new(false) };
    }
    let (begun, held) = (Instant::now(), HELD.replace(true));
    while !held && begun.elapsed() < PATIENCE || is_finalizing() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether nobody may come back any more. By either of its names, of which `abi3` has the new one since 3.13 alone.
fn is_finalizing() -> bool {
    static ASK: OnceLock<Option<unsafe extern "C" fn() -> c_int>> = OnceLock::new();
    let ask = ASK.get_or_init(|| {
        let names = [c"Py_IsFinalizing", c"_Py_IsFinalizing"];
        // SAFETY: the names end in zero; whichever is there is CPython's function of no arguments.
        names.iter().find_map(|name| unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
            std::mem::transmute::<*mut libc::c_void, Option<unsafe extern "C" fn() -> c_int>>(found)
        })
    });
    // SAFETY: it may be called by any thread, with the lock or without.
    ask.is_some_and(|ask| unsafe { ask() } != 0)
}

/// Called by Python's `atexit`, while threads may still come back.
#[pyfunction]
pub(crate) fn _ends(py: Python<'_>) {
    let _ = LAST.set(std::thread::current().id());
    ENDS.store(true, SeqCst);
    py.detach(|| {
        let begun = Instant::now();
        while WITHIN.load(SeqCst) > 0 && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Called by Python in a process that was forked off, where no other thread is.
#[pyfunction]
pub(crate) fn _forked() {
    WITHIN.store(0, SeqCst);
}

/// Has Python call [`_ends`] and [`_forked`].
pub(crate) fn listen(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    py.import("atexit")?.call_method1("register", (module.getattr("_ends")?,))?;
    let options = pyo3::types::PyDict::new(py);
    options.set_item("after_in_child", module.getattr("_forked")?)?;
    py.import("os")?.call_method("register_at_fork", (), Some(&options))?;
    Ok(())
}
