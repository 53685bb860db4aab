//! The signals that ask a program to end: SIGTERM, SIGHUP, SIGUSR1 and SIGINT.
//!
//! Batch systems send them doubled and mixed (SLURM: SIGUSR1, then SIGTERM; systemd and terminals: to the
//! whole group, which a parent then sends on). So however many come, they are one wish, and none of them
//! ends a save. Only a hand that presses Ctrl-C again, a second or more after the first, wants out at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

/// All that are listened to.
const ALL: [i32; 4] = [SIGTERM, SIGHUP, SIGUSR1, SIGINT];
/// A SIGINT that comes so much after the first is meant as a second one.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// What a shell says of a program that SIGINT ended.
const INTERRUPTED: i32 = 128 + SIGINT;

/// From here on a signal sets `wish`, and a second SIGINT, a second or more after the first, ends the
/// process at once with exit code 130. A file that grows beyond the process's limit is an error of the
/// write, like a full disk, and ends nothing (SIGXFSZ).
///
/// # Errors
/// Those of the system.
pub fn set_on_signal(wish: &Arc<AtomicBool>) -> io::Result<()> {
    for signal in ALL {
        signal_hook::flag::register(signal, Arc::clone(wish))?;
    }
    // SAFETY: the handler does nothing.
    unsafe { low_level::register(SIGXFSZ, || {}) }?;
    let begun = Instant::now();
    // Milliseconds from `begun` to the first SIGINT, plus one; 0 before it.
    let first = AtomicU64::new(0);
    let on_interrupt = move || {
        let now = begun.elapsed().as_millis() as u64 + 1;
        if let Err(first) = first.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
            && now - first >= IMPATIENCE.as_millis() as u64
        {
            low_level::exit(INTERRUPTED);
        }
    };
    // SAFETY: the handler reads the monotonic clock, compares an atomic and calls `_exit`, all of which
    // POSIX names async-signal-safe.
    unsafe { low_level::register(SIGINT, on_interrupt) }.map(drop)
}

/// What a program that passes signals on has been sent.
#[derive(Debug)]
pub struct Inbox(Signals);

impl Inbox {
    /// From here on signals end up here rather than end the process.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open() -> io::Result<Self> {
        Signals::new(ALL).map(Self)
    }

    /// The kinds that came since the last call. Waits for none.
    pub fn take(&mut self) -> impl Iterator<Item = Signal> {
        self.0.pending().filter_map(Signal::from_named_raw)
    }
}
