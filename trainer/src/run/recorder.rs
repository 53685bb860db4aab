//! Rank 0's record of a run: statistics, metrics, incidents, sessions, event files, pictures, the report,
//! and what people are told. None of it ends training: what cannot be written is said once, tried again,
//! and counted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bigbigan_model::state::TrainState;
use image::RgbImage;
use pipeline::Dataset;
use serde::Serialize;
use tch::Device;

use super::CHECKPOINT;
use super::faults::Incident;
use super::sessions::SESSIONS;
use crate::config::Config;
use crate::error::Result;
use crate::health::Signals;
use crate::inspect::{self, Cost, Counts};
use crate::lock::Lock;
use crate::log::{Lines, Progress, StatsLine};
use crate::monitor::Monitor;
use crate::peak;
use crate::report;

/// What rank 0 records, and measures a run with.
#[derive(Debug)]
pub(super) struct Recorder {
    out: PathBuf,
    lock: Arc<Lock>,
    stats: Lines,
    metrics: Lines,
    incidents: Lines,
    sessions: Lines,
    monitor: Monitor,
    progress: Progress,
    troubles: BTreeMap<String, Trouble>,
    /// Floating-point operations of a step for each image of `train.batch`.
    pub(super) step_flop: f64,
    /// Those that all ranks' devices do a second at most, where that is known.
    pub(super) peak: Option<f64>,
}

/// What could not be written.
#[derive(Debug, Default)]
struct Trouble {
    times: u64,
    /// Whether the last try failed.
    now: bool,
    last: String,
}

impl Recorder {
    /// For a run of which `step` steps are done.
    ///
    /// # Errors
    /// [`Error::Io`](crate::error::Error::Io) where the folder cannot be written to from the start;
    /// [`Error::Data`](crate::error::Error::Data).
    pub(super) fn open(
        out: &Path,
        lock: Arc<Lock>,
        config: &Config,
        data: &Arc<Dataset>,
        device: Device,
        (step, ranks): (u64, usize),
    ) -> Result<Self> {
        let lines = |name: &str, step| Lines::open(&out.join(name), step);
        let (stats, metrics) = (lines("stats.jsonl", step)?, lines("metrics.jsonl", step)?);
        // What happened stays on record, whatever is done again.
        let (incidents, sessions) =
            (lines("incidents.jsonl", u64::MAX)?, lines(SESSIONS, u64::MAX)?);
        let progress = Progress::new(step, config.train.steps, config.time_limit());
        let counts = Counts::of(config);
        let cost = Cost::of(config, &counts);
        progress.say(&format!("{}\n{}", config.shown(), inspect::table(&counts, &cost)));
        let monitor = Monitor::new(config, out, data, device, step)?;
        let peak = peak::of(device, config.train.precision).map(|flops| flops * ranks as f64);
        let mut recorder = Self {
            out: out.to_owned(),
            lock,
            stats,
            metrics,
            incidents,
            sessions,
            monitor,
            progress,
            troubles: BTreeMap::new(),
            step_flop: cost.step_flop,
            peak,
        };
        let saved = recorder.monitor.reals();
        recorder.tried("picture reals", saved);
        Ok(recorder)
    }

    /// Whether the folder is still the one that this process holds.
    pub(super) fn ours(&self) -> Result<()> {
        self.lock.check()
    }

    /// Tells people a line.
    pub(super) fn say(&self, text: &str) {
        self.progress.say(text);
    }

    /// Another step is done.
    pub(super) fn step(&self, step: u64) {
        self.progress.step(step);
    }

    /// Ends the bar.
    pub(super) fn finish(&self) {
        self.progress.finish();
    }

    /// What came of writing `what`; a failure is said the first time, that of a checkpoint every time, and counted.
    pub(super) fn tried<T>(&mut self, what: &str, done: Result<T>) -> Option<T> {
        match done {
            Ok(value) => {
                if let Some(trouble) = self.troubles.get_mut(what)
                    && trouble.now
                {
                    trouble.now = false;
                    self.progress.say(&format!("{what}: written again"));
                }
                Some(value)
            }
            Err(e) => {
                let trouble = self.troubles.entry(what.to_owned()).or_default();
                trouble.times += 1;
                trouble.last = e.to_string();
                if !trouble.now || what == CHECKPOINT {
                    trouble.now = true;
                    self.progress.say(&format!(
                        "WARNING: {what} not written: {e}; training goes on, and it is tried again"
                    ));
                }
                None
            }
        }
    }

    /// Times that something could not be written.
    fn errors(&self) -> u64 {
        self.troubles.values().map(|trouble| trouble.times).sum()
    }

    /// What could not be written, for the last words: what, how often, why, and whether it is still missing.
    pub(super) fn troubles(&self) -> Vec<String> {
        let missing = self.missing();
        let told = |(what, trouble): (&String, &Trouble)| {
            let lines = missing.iter().find(|(name, _)| name == what).map_or(0, |(_, n)| *n);
            let state = match (lines, trouble.now) {
                (0, false) => "written in the end".to_owned(),
                (0, true) => "not written".to_owned(),
                (lines, _) => format!("{lines} missing"),
            };
            let times =
                if trouble.times == 1 { "once" } else { &format!("{} times", trouble.times) };
            format!("{what}: failed {times}, {state} ({})", trouble.last)
        };
        self.troubles.iter().map(told).collect()
    }

    /// Lines and records that are not on the disk.
    fn missing(&self) -> [(&'static str, u64); 4] {
        [
            ("statistics", self.stats.missing()),
            ("metrics", self.metrics.missing()),
            ("incidents", self.incidents.missing()),
            ("event files", self.monitor.missing()),
        ]
    }

    /// Whether something is still not written.
    pub(super) fn incomplete(&self) -> bool {
        let missing = self.missing().into_iter().any(|(_, lines)| lines > 0);
        missing || self.troubles.values().any(|trouble| trouble.now)
    }

    /// Takes a line of statistics down, shows it, and says what is alarming in it.
    pub(super) fn statistics(&mut self, mut line: StatsLine) {
        line.write_errors = self.errors();
        let written = self.stats.write(&line);
        self.tried("statistics", written);
        self.progress.show(&line);
        let written = self.monitor.scalars(&line);
        self.tried("event files", written);
        for alarm in self.monitor.judge(&line) {
            self.progress.say(&format!("step {}: {}", alarm.step, alarm.text));
            let written = self.incidents.write(&alarm);
            self.tried("incidents", written);
        }
    }

    pub(super) fn incident(&mut self, incident: &Incident<'_>) {
        let written = self.incidents.write(incident);
        self.tried("incidents", written);
    }

    pub(super) fn metric(&mut self, line: &impl Serialize) {
        let written = self.metrics.write(line);
        self.tried("metrics", written);
        let written = self.monitor.metric(line);
        self.tried("event files", written);
    }

    pub(super) fn session(&mut self, line: &impl Serialize) {
        let written = self.sessions.write(line);
        self.tried("sessions", written);
    }

    /// What the run has measured of a step on a split will be measured anew.
    pub(super) fn metrics_again(&mut self, step: u64, split: &str) {
        let dropped = self.metrics.again(step, split);
        self.tried("metrics", dropped);
    }

    /// Whether all that was written of sessions is in the file.
    pub(super) fn told_of_session(&self) -> bool {
        self.sessions.missing() == 0
    }

    /// Whether the run's own probes have said something of this step.
    pub(super) fn has_metrics(&mut self, step: u64) -> bool {
        let read = self.metrics.has(step);
        self.tried("metrics", read).unwrap_or(false)
    }

    /// The step that is the best by `measure`, of [`Lines::best`], if there is one, and there is none where
    /// `measure` is empty. Nothing where it cannot be told now.
    pub(super) fn best(&mut self, measure: &str) -> Option<Option<u64>> {
        if measure.is_empty() {
            return Some(None);
        }
        let read = self.metrics.best(measure);
        self.tried("metrics", read)
    }

    /// Brings the logs to the disk, before the checkpoint of a step that they tell of.
    pub(super) fn sync(&mut self) {
        // In another's folder none is opened.
        let ours = self.ours();
        if self.tried("logs of the folder", ours).is_none() {
            return;
        }
        let synced = [
            ("statistics", self.stats.sync()),
            ("metrics", self.metrics.sync()),
            ("incidents", self.incidents.sync()),
            ("sessions", self.sessions.sync()),
        ];
        for (what, synced) in synced {
            self.tried(what, synced);
        }
    }

    /// Training went back to `step`.
    pub(super) fn go_back(&mut self, step: u64) {
        let dropped = self.stats.go_back(step);
        self.tried("statistics", dropped);
        let dropped = self.metrics.go_back(step);
        self.tried("metrics", dropped);
        let voided = self.monitor.go_back(step);
        self.tried("event files", voided);
        self.progress.step(step);
    }

    /// The signals of the live networks.
    pub(super) fn signals(&self, state: &TrainState) -> Result<Signals> {
        self.monitor.signals(state)
    }

    pub(super) fn picture(&mut self, step: u64, name: &str, suffix: &str, picture: &RgbImage) {
        let saved = self.ours().and_then(|()| self.monitor.picture(step, name, suffix, picture));
        // Each by itself: another that is written does not stand for it.
        self.tried(&format!("picture {name}{suffix}"), saved);
    }

    /// What the live networks look like, and the report of all.
    pub(super) fn live(&mut self, state: &TrainState, suffix: &str) {
        let written = self.ours().and_then(|()| self.monitor.live(state, suffix));
        self.tried(&format!("picture live{suffix}"), written);
        self.report();
    }

    pub(super) fn report(&mut self) {
        let written = self.ours().and_then(|()| report::write(&self.out));
        self.tried("the report", written);
    }
}
