//! The thread that shows the others a rank is alive, watches them, and ends this process, with the name
//! of the rank to blame, when the run cannot go on.
//!
//! Every rank writes a beat to the store and reads its successor's: two small messages a tick and rank,
//! whatever their number. Who finds a rank silent or stuck posts a verdict, which all of them look for.
//! A rank whose collective failed looks at everyone, since then some rank has just died.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Limits;
use super::c10d::Store;

const TICK: Duration = Duration::from_millis(400);
/// A rank that does not move for this long after a collective failed is dead.
const DEAD: Duration = Duration::from_millis(2000);
/// Longest search for a dead rank.
const SEARCH: Duration = Duration::from_millis(3200);

/// What a rank shows of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Beat {
    beat: u64,
    step: u64,
    phase: String,
    /// Collectives begun and waited for.
    calls: u64,
    /// Whether the last of these calls has not ended.
    waiting: bool,
    finished: bool,
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
pub(super) fn last_words(store: &Store, rank: usize) -> (String, String) {
    let text = store.get(&beat_key(rank)).ok().flatten().unwrap_or_default();
    match serde_json::from_slice::<Beat>(&text) {
        Ok(beat) => (beat.name(rank), format!("last seen in {}", beat.whereabouts())),
        Err(_) => (format!("rank {rank}"), "before it met the others".to_owned()),
    }
}

/// Why a run cannot go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Verdict {
    pub(super) text: String,
    /// Exit code for every rank.
    pub(super) code: u8,
    /// Who says so.
    pub(super) by: Option<usize>,
}

pub(super) const VERDICT: &str = "verdict";

pub(super) fn beat_key(rank: usize) -> String {
    format!("beat/{rank}")
}

#[derive(Debug)]
struct Now {
    step: u64,
    phase: &'static str,
    calls: u64,
    waiting: Option<Instant>,
    finished: bool,
    ticked: Instant,
}

/// What the training thread tells the watching one.
#[derive(Debug)]
pub(super) struct Pulse {
    rank: usize,
    size: usize,
    /// Whether rank 0 serves the store, so that it goes when rank 0 does.
    served_by_rank_0: bool,
    host: String,
    limits: Limits,
    now: Mutex<Now>,
    /// Why a collective failed.
    failure: OnceLock<String>,
    stop: AtomicBool,
}

impl Pulse {
    pub(super) fn new(
        (rank, size): (usize, usize),
        served_by_rank_0: bool,
        limits: Limits,
    ) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let now = Now {
            step: 0,
            phase: "join",
            calls: 0,
            waiting: None,
            finished: false,
            ticked: Instant::now(),
        };
        let (failure, stop) = (OnceLock::new(), AtomicBool::new(false));
        Self { rank, size, served_by_rank_0, host, limits, now: now.into(), failure, stop }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn step(&self, step: u64) {
        self.now().step = step;
    }

    pub(super) fn enter(&self, phase: &'static str) {
        self.now().phase = phase;
    }

    /// Rank, host and process.
    pub(super) fn name(&self) -> String {
        self.beat(0).name(self.rank)
    }

    /// If this rank serves the store, gives the others time to read it before it goes.
    pub(super) fn linger(&self) {
        if self.rank == 0 && self.served_by_rank_0 {
            thread::sleep(3 * TICK);
        }
    }

    pub(super) fn has_finished(&self, store: &Store, rank: usize) -> bool {
        let text = store.get(&beat_key(rank)).ok().flatten().unwrap_or_default();
        serde_json::from_slice::<Beat>(&text).is_ok_and(|beat| beat.finished)
    }

    /// Runs a collective, begins one, or waits for one's end.
    pub(super) fn collective(&self, run: impl FnOnce() -> Result<(), String>) {
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
    pub(super) fn fail(&self, reason: String) {
        let _ = self.failure.set(reason);
    }

    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    pub(super) fn beat(&self, beat: u64) -> Beat {
        let now = self.now();
        Beat {
            beat,
            step: now.step,
            phase: now.phase.to_owned(),
            calls: now.calls,
            waiting: now.waiting.is_some(),
            finished: now.finished,
            host: self.host.clone(),
            pid: std::process::id(),
        }
    }
}

/// The running threads.
#[derive(Debug)]
pub(super) struct Watch {
    pulse: Arc<Pulse>,
    watcher: Option<thread::JoinHandle<()>>,
}

impl Watch {
    /// Starts beating, through a connection of its own: a call that waits must not hold the beat up.
    pub(super) fn start(pulse: Arc<Pulse>, store: Store) -> Result<Self, std::io::Error> {
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let shared = pulse.clone();
        let watcher = named("watch").spawn(move || Watcher::new(shared, store).run())?;
        let shared = pulse.clone();
        named("guard").spawn(move || guard(&shared))?;
        Ok(Self { pulse, watcher: Some(watcher) })
    }

    /// Shows the others that this rank leaves in good order, and stops watching.
    pub(super) fn finish(&mut self) {
        self.pulse.now().finished = true;
        self.stop();
    }

    /// Stops watching.
    pub(super) fn stop(&mut self) {
        self.pulse.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            watcher.thread().unpark();
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
            leave(1, &text);
        }
    }
}

/// Another rank as last seen.
#[derive(Debug)]
struct Seen {
    beat: Beat,
    /// When it last moved.
    moved: Instant,
}

#[derive(Debug)]
struct Watcher {
    pulse: Arc<Pulse>,
    store: Store,
    beats: u64,
    seen: BTreeMap<usize, Seen>,
    searching: Option<Instant>,
}

impl Watcher {
    fn new(pulse: Arc<Pulse>, store: Store) -> Self {
        Self { pulse, store, beats: 0, seen: BTreeMap::new(), searching: None }
    }

    fn run(mut self) {
        loop {
            let stop = self.pulse.stop.load(Ordering::Relaxed);
            match self.tick() {
                Ok(None) => {}
                Ok(Some(verdict)) => {
                    self.pulse.linger();
                    leave(verdict.code, &verdict.text)
                }
                Err(_) if stop => return,
                Err(reason) => leave(1, &self.store_gone(&reason)),
            }
            if stop {
                return;
            }
            thread::park_timeout(TICK);
        }
    }

    fn tick(&mut self) -> Result<Option<Verdict>, String> {
        self.beats += 1;
        let mine = self.pulse.beat(self.beats);
        let text = serde_json::to_vec(&mine).map_err(|e| e.to_string())?;
        self.store.set(&beat_key(self.pulse.rank), &text)?;
        let verdict = self.posted()?;
        let waiting = self.pulse.now().waiting.map_or(Duration::ZERO, |since| since.elapsed());
        let stuck = waiting > self.pulse.limits.timeout;
        if self.pulse.failure().is_some() || stuck {
            self.searching.get_or_insert_with(Instant::now);
            (0..self.pulse.size).try_for_each(|rank| self.look_at(rank))?;
        } else {
            self.look_at((self.pulse.rank + 1) % self.pulse.size)?;
            if self.pulse.served_by_rank_0 {
                self.look_at(0)?;
            }
        }
        self.pulse.now().ticked = Instant::now();
        if verdict.is_some() || mine.finished {
            return Ok(verdict);
        }
        let found = self
            .silent()
            .or_else(|| self.failed())
            .or_else(|| stuck.then(|| self.laggard(&mine, waiting)));
        let Some(text) = found else { return Ok(None) };
        let verdict = Verdict { text, code: 1, by: Some(self.pulse.rank) };
        self.store.set(VERDICT, &serde_json::to_vec(&verdict).map_err(|e| e.to_string())?)?;
        Ok(Some(verdict))
    }

    /// A verdict of somebody else's.
    fn posted(&self) -> Result<Option<Verdict>, String> {
        let Some(text) = self.store.get(VERDICT)? else { return Ok(None) };
        let verdict: Verdict = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        Ok((verdict.by != Some(self.pulse.rank)).then_some(verdict))
    }

    fn look_at(&mut self, rank: usize) -> Result<(), String> {
        let Some(text) = self.store.get(&beat_key(rank))? else { return Ok(()) };
        let beat: Beat = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        let now = Instant::now();
        let seen = self.seen.entry(rank).or_insert_with(|| Seen { beat: beat.clone(), moved: now });
        if seen.beat.beat != beat.beat {
            seen.moved = now;
        }
        seen.beat = beat;
        Ok(())
    }

    fn silent(&self) -> Option<String> {
        let longest = if self.searching.is_some() { DEAD } else { self.pulse.limits.silence };
        let silent =
            |(_, seen): &(&usize, &Seen)| !seen.beat.finished && seen.moved.elapsed() > longest;
        let (rank, seen) = self.seen.iter().find(silent)?;
        Some(format!(
            "{} died, stopped or was cut off: silent for {:.0} s; last seen in {}",
            seen.beat.name(*rank),
            seen.moved.elapsed().as_secs_f64(),
            seen.beat.whereabouts()
        ))
    }

    /// After a search that found every rank alive.
    fn failed(&self) -> Option<String> {
        let (since, reason) = (self.searching?, self.pulse.failure()?);
        let me = self.pulse.beat(0);
        (since.elapsed() > SEARCH).then(|| {
            format!(
                "ranks can no longer talk to each other: in {} of {}: {reason}",
                me.whereabouts(),
                me.name(self.pulse.rank)
            )
        })
    }

    /// Who keeps the others waiting.
    fn laggard(&self, mine: &Beat, waiting: Duration) -> String {
        let seconds = waiting.as_secs();
        let late = |(_, seen): &(&usize, &Seen)| {
            let beat = &seen.beat;
            beat.calls < mine.calls || (beat.calls == mine.calls && !beat.waiting)
        };
        match self.seen.iter().find(late) {
            Some((rank, seen)) => format!(
                "{} is alive, but the others have waited for it for {seconds} s (dist.timeout); it is \
                 in {}",
                seen.beat.name(*rank),
                seen.beat.whereabouts()
            ),
            None => format!(
                "all ranks have waited for each other for {seconds} s (dist.timeout) in {}: the \
                 network between them is blocked",
                mine.whereabouts()
            ),
        }
    }

    fn store_gone(&self, reason: &str) -> String {
        let me = self.pulse.beat(0);
        let server = match self.seen.get(&0) {
            Some(seen) if self.pulse.served_by_rank_0 => {
                let (name, place) = (seen.beat.name(0), seen.beat.whereabouts());
                format!("{name} died, last seen in {place}, and its store with it")
            }
            _ => "the launcher died, and its store with it".to_owned(),
        };
        format!("{server}; {} was in {} ({reason})", me.name(self.pulse.rank), me.whereabouts())
    }
}

/// Says why, on standard error and in the file that torchrun reads, and ends the process at once: other
/// threads may be stuck in a collective. Whoever comes first speaks.
pub(super) fn leave(code: u8, text: &str) -> ! {
    static LEAVING: Mutex<()> = Mutex::new(());
    let _first = LEAVING.lock().unwrap_or_else(PoisonError::into_inner);
    eprintln!("error: {text}");
    if let Some(path) = std::env::var_os("TORCHELASTIC_ERROR_FILE") {
        let time = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let extra = serde_json::json!({"py_callstack": "", "timestamp": time.to_string()});
        let note = serde_json::json!({"message": {"message": text, "extraInfo": extra}});
        let _ = std::fs::write(path, note.to_string());
    }
    // SAFETY: no handler or destructor runs, which is the point.
    unsafe { libc::_exit(i32::from(code)) }
}
