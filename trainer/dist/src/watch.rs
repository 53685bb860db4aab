//! The thread that shows the others a rank is alive, watches them, and ends this process, with the name
//! of the rank to blame, when the run cannot go on.
//!
//! Every rank writes a beat to the store and reads its successor's and the verdict: two small calls a tick and
//! rank, whatever their number. Who finds a rank silent or stuck posts a verdict, which all of them look for.
//! A rank whose collective failed looks at everyone, since then some rank has just died. One that only waits
//! for rank 0's work ticks more slowly, and says so in its beat.

mod watcher;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::stop::Stop;
use common::{exit, say};
use serde::{Deserialize, Serialize};
use torch_ext::c10d::Store;
use watcher::Watcher;

/// How long ranks wait for each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// For all ranks to come together at the start.
    pub join: Duration,
    /// For a rank that is alive but does not come to a collective.
    pub timeout: Duration,
    /// For a sign of life.
    pub silence: Duration,
}

const TICK: Duration = Duration::from_millis(400);
/// The tick of a rank that waits for rank 0's work, at most: with its two calls less than one a second.
const IDLE_TICK: Duration = Duration::from_millis(2500);
/// Ticks in `dist.silence`, at least.
const TICKS_OF_SILENCE: u32 = 5;
/// A rank that does not move for this long after a collective failed is dead.
const DEAD: Duration = Duration::from_millis(2000);
/// Longest search for a dead rank.
const SEARCH: Duration = Duration::from_millis(3200);

/// What a rank shows of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Beat {
    beat: u64,
    step: u64,
    phase: String,
    /// Collectives begun and waited for.
    calls: u64,
    /// Whether the last of these calls has not ended.
    waiting: bool,
    finished: bool,
    /// How much later than after a [`TICK`] the next beat comes.
    late: Duration,
    host: String,
    pid: u32,
}

impl Beat {
    fn name(&self, rank: usize) -> String {
        format!("rank {rank} (host {}, pid {})", self.host, self.pid)
    }

    fn whereabouts(&self) -> String {
        format!("step {}, phase {}", self.step, self.phase)
    }
}

/// A rank's name, and where it was last seen.
#[must_use]
pub fn last_words(store: &Store, rank: usize) -> (String, String) {
    let text = store.get(&beat_key(rank)).ok().flatten().unwrap_or_default();
    match serde_json::from_slice::<Beat>(&text) {
        Ok(beat) => (beat.name(rank), format!("last seen in {}", beat.whereabouts())),
        Err(_) => (format!("rank {rank}"), "before it met the others".to_owned()),
    }
}

/// Why a run cannot go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// In words.
    pub text: String,
    /// Exit code for every rank.
    pub code: u8,
    /// Who says so.
    pub by: Option<usize>,
}

const VERDICT: &str = "verdict";
/// Set by a rank that waits for rank 0's work and is asked to end.
const WISH: &str = "wish";

impl Verdict {
    /// Gives the key a value that is no verdict, so that it can be read together with others. Of rank 0, before
    /// any rank watches.
    pub(crate) fn none_yet(store: &Store) -> Result<(), String> {
        store.set_first(VERDICT, b"null")
    }

    /// Lets all ranks know.
    ///
    /// # Errors
    /// c10d's.
    pub fn post(&self, store: &Store) -> Result<(), String> {
        store.set(VERDICT, &serde_json::to_vec(self).map_err(|e| e.to_string())?)
    }

    /// What was posted, if anything was.
    ///
    /// # Errors
    /// c10d's.
    pub fn posted(store: &Store) -> Result<Option<Self>, String> {
        store.get(VERDICT)?.map_or(Ok(None), |text| Self::read(&text))
    }

    fn read(text: &[u8]) -> Result<Option<Self>, String> {
        serde_json::from_slice(text).map_err(|e| e.to_string())
    }
}

pub(crate) fn beat_key(rank: usize) -> String {
    format!("beat/{rank}")
}

#[derive(Debug)]
struct Now {
    step: u64,
    phase: &'static str,
    calls: u64,
    waiting: Option<Instant>,
    /// Since when it has waited for rank 0's work.
    idle: Option<Instant>,
    finished: bool,
    ticked: Instant,
}

/// What the training thread tells the watching one.
#[derive(Debug)]
pub(crate) struct Pulse {
    rank: usize,
    size: usize,
    /// Whether rank 0 serves the store, so that it goes when rank 0 does.
    served_by_rank_0: bool,
    host: String,
    limits: Limits,
    /// The wish that this rank's work ends.
    stop_wanted: Stop,
    now: Mutex<Now>,
    /// Whether this rank works for all now.
    leading: AtomicBool,
    /// Whether the watcher pauses for longer than a [`TICK`].
    slow: AtomicBool,
    /// Why a collective failed.
    failure: OnceLock<String>,
    stop: AtomicBool,
}

impl Pulse {
    pub(crate) fn new(
        (rank, size): (usize, usize),
        served_by_rank_0: bool,
        limits: Limits,
        stop_wanted: &Stop,
    ) -> Self {
        let now = Now {
            step: 0,
            phase: "join",
            calls: 0,
            waiting: None,
            idle: None,
            finished: false,
            ticked: Instant::now(),
        };
        Self {
            rank,
            size,
            served_by_rank_0,
            host: common::host(),
            limits,
            stop_wanted: stop_wanted.clone(),
            now: now.into(),
            leading: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            failure: OnceLock::new(),
            stop: AtomicBool::new(false),
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn step(&self, step: u64) {
        self.now().step = step;
    }

    pub(crate) fn enter(&self, phase: &'static str) {
        self.now().phase = phase;
    }

    /// Whether this rank works for all now.
    pub(crate) fn is_leading(&self) -> bool {
        self.leading.load(Ordering::Relaxed)
    }

    /// Does work for all.
    pub(crate) fn lead<T>(&self, work: impl FnOnce() -> T) -> T {
        self.leading.store(true, Ordering::Relaxed);
        let value = work();
        self.leading.store(false, Ordering::Relaxed);
        value
    }

    /// Waits for rank 0's work.
    pub(crate) fn idle<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.now().idle = Some(Instant::now());
        let value = wait();
        self.now().idle = None;
        value
    }

    /// Pause between two ticks. Short waits for rank 0, which come at every step, are none.
    fn pause(&self) -> Duration {
        let idle = self.now().idle.is_some_and(|since| since.elapsed() > TICK);
        let most = self.limits.silence / TICKS_OF_SILENCE;
        if idle { IDLE_TICK.min(most).max(TICK) } else { TICK }
    }

    /// Rank, host and process.
    pub(crate) fn name(&self) -> String {
        self.beat(0).name(self.rank)
    }

    /// If this rank serves the store, gives the others time to read it before it goes.
    pub(crate) fn linger(&self) {
        if self.rank == 0 && self.served_by_rank_0 {
            thread::sleep(IDLE_TICK + TICK);
        }
    }

    /// Runs a collective, begins one, or waits for one's end.
    pub(crate) fn collective(&self, run: impl FnOnce() -> Result<(), String>) {
        if self.failure.get().is_some() {
            return;
        }
        {
            let mut now = self.now();
            now.calls += 1;
            now.waiting = Some(Instant::now());
        }
        let outcome = run();
        self.now().waiting = None;
        if let Err(reason) = outcome {
            self.fail(reason);
        }
    }

    /// No collective can be trusted from here on. The first reason counts.
    pub(crate) fn fail(&self, reason: String) {
        let _ = self.failure.set(reason);
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    pub(crate) fn beat(&self, beat: u64) -> Beat {
        let now = self.now();
        Beat {
            beat,
            step: now.step,
            phase: now.phase.to_owned(),
            calls: now.calls,
            waiting: now.waiting.is_some(),
            finished: now.finished,
            late: Duration::ZERO,
            host: self.host.clone(),
            pid: std::process::id(),
        }
    }
}

/// The running threads.
#[derive(Debug)]
pub(crate) struct Watch {
    pulse: Arc<Pulse>,
    store: Arc<Store>,
    watcher: Option<thread::JoinHandle<()>>,
}

impl Watch {
    /// Starts beating, through a connection of its own: a call that waits must not hold the beat up.
    pub(crate) fn start(pulse: Arc<Pulse>, store: Store) -> Result<Self, std::io::Error> {
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let (shared, store) = (pulse.clone(), Arc::new(store));
        let watcher = Watcher::new(shared, store.clone());
        let watcher = named("watch").spawn(move || watcher.run())?;
        let shared = pulse.clone();
        named("guard").spawn(move || guard(&shared))?;
        Ok(Self { pulse, store, watcher: Some(watcher) })
    }

    /// If the watcher has begun to tick slowly, has it tick now, as this rank no longer waits.
    pub(crate) fn hurry(&self) {
        if self.pulse.slow.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    fn wake(&self) {
        self.watcher.iter().for_each(|watcher| watcher.thread().unpark());
    }

    /// Its calls to the store so far.
    pub(crate) fn calls(&self) -> u64 {
        self.store.calls()
    }

    /// Shows the others that this rank leaves in good order, and stops watching.
    pub(crate) fn finish(&mut self) {
        self.pulse.now().finished = true;
        self.stop();
    }

    /// Stops watching.
    pub(crate) fn stop(&mut self) {
        self.pulse.stop.store(true, Ordering::Relaxed);
        self.wake();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// Ends the process when the watcher itself hangs: a store behind a network that is cut off does not
/// answer and does not fail either.
fn guard(pulse: &Pulse) {
    while !pulse.stop.load(Ordering::Relaxed) {
        thread::sleep(TICK);
        let silent = pulse.now().ticked.elapsed();
        if silent > pulse.limits.silence + 2 * TICK {
            let me = pulse.beat(0);
            let text = format!(
                "the store has not answered for {} s: {} is cut off from it; {}",
                silent.as_secs(),
                me.name(pulse.rank),
                me.whereabouts()
            );
            leave(exit::FAILED, &text);
        }
    }
}

/// Says why, on standard error and, of a failure, in the file that torchrun reads, and ends the process at once:
/// other threads may be stuck in a collective. Whoever comes first speaks.
pub(crate) fn leave(code: u8, text: &str) -> ! {
    static LEAVING: Mutex<()> = Mutex::new(());
    let _first = LEAVING.lock().unwrap_or_else(PoisonError::into_inner);
    let failed = code != exit::STOPPED;
    if failed {
        say::error(text);
    } else {
        say::note(text);
    }
    if let Some(path) = std::env::var_os("TORCHELASTIC_ERROR_FILE").filter(|_| failed) {
        let time = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let extra = serde_json::json!({"py_callstack": "", "timestamp": time.to_string()});
        let note = serde_json::json!({"message": {"message": text, "extraInfo": extra}});
        let _ = std::fs::write(path, note.to_string());
    }
    // SAFETY: no handler or destructor runs, which is the point.
    unsafe { libc::_exit(i32::from(code)) }
}
