//! What is seen of a run while it trains: health, event files, pictures of the live networks. Nothing here changes what is trained.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bigbigan_model::nn::Params;
use bigbigan_model::state::TrainState;
use image::RgbImage;
use pipeline::Dataset;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Device;

use crate::config::Config;
use crate::error::Result;
use crate::eval::pictures;
use crate::evaluations;
use crate::health::{Alarm, Judge, Probe, Signals};
use crate::log::StatsLine;
use crate::tensorboard::Events;

/// Watches one run.
#[derive(Debug)]
pub struct Monitor {
    out: PathBuf,
    columns: u32,
    probe: Probe,
    judge: Judge,
    events: Events,
}

impl Monitor {
    /// For the run in `out` whose state has done `step` steps; `stats.jsonl` holds the lines up to
    /// there.
    ///
    /// # Errors
    /// [`Error::Data`](crate::error::Error::Data) or [`Error::Io`](crate::error::Error::Io).
    pub fn new(
        config: &Config,
        out: &Path,
        data: &Arc<Dataset>,
        device: Device,
        step: u64,
    ) -> Result<Self> {
        let probe = Probe::new(config, data, device)?;
        let columns = config.images.columns as u32;
        let mut events = Events::new(&out.join("events"), step);
        let text = format!("```toml\n{}\n```", config.shown());
        if let Err(e) = events.text(step, "config", &text) {
            tracing::warn!("{e}; it is tried again");
        }
        let judge = judged(&out.join("stats.jsonl"));
        Ok(Self { out: out.to_owned(), columns, probe, judge, events })
    }

    /// Saves the images that signals are measured on as `images/reals.png`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::error::Error::Io) or [`Error::Picture`](crate::error::Error::Picture).
    pub fn reals(&self) -> Result<()> {
        let reals = pictures::grid(&self.probe.images().small, self.columns);
        pictures::save(&reals, &self.out.join("images/reals.png"))
    }

    /// Training went back to `step`, and `stats.jsonl` with it.
    ///
    /// # Errors
    /// [`Error::Io`](crate::error::Error::Io).
    pub fn go_back(&mut self, step: u64) -> Result<()> {
        self.judge = judged(&self.out.join("stats.jsonl"));
        self.events.go_back(step)
    }

    /// Event records that are not on the disk.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.events.missing()
    }

    /// The signals of the live networks as they are.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::error::Error::Torch).
    pub fn signals(&self, state: &TrainState) -> Result<Signals> {
        self.probe.measure(state)
    }

    /// Writes the numbers of a line of statistics to the event file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::error::Error::Io).
    pub fn scalars(&mut self, line: &StatsLine) -> Result<()> {
        let entries = serde_json::to_value(line).unwrap_or_default();
        let entries = entries.as_object().into_iter().flatten();
        let scalars = entries.filter(|(key, _)| *key != "step");
        let scalars = scalars.filter_map(|(key, v)| Some((tag(key), v.as_f64()?)));
        let scalars: Vec<_> = scalars.collect();
        self.events.scalars(line.step, scalars.iter().map(|(tag, v)| (tag.as_str(), *v)))
    }

    /// Writes the results of a measure of averaged weights to the event file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::error::Error::Io).
    pub fn metric(&mut self, line: &impl Serialize) -> Result<()> {
        let line = serde_json::to_value(line).unwrap_or_default();
        let text = |key: &str| line.get(key).and_then(Value::as_str);
        let (Some(name), Some(step)) = (text("metric"), line.get("step").and_then(Value::as_u64))
        else {
            return Ok(());
        };
        if text("weights").is_some_and(|weights| weights != "average") {
            return Ok(());
        }
        let mut tags = vec![];
        for key in ["top1", "top5", "value"] {
            match line.get(key) {
                // Of neighbours, by how many vote.
                Some(Value::Object(each)) => {
                    let each = each.iter().filter_map(|(of, value)| Some((of, value.as_f64()?)));
                    tags.extend(each.map(|(of, v)| (format!("metric/{name}_{key}_{of}"), v)));
                }
                value => {
                    let value = value.and_then(Value::as_f64);
                    tags.extend(value.map(|value| (format!("metric/{name}_{key}"), value)));
                }
            }
        }
        self.events.scalars(step, tags.iter().map(|(tag, value)| (tag.as_str(), *value)))
    }

    /// What is alarming in a line of statistics.
    pub fn judge(&mut self, line: &StatsLine) -> Vec<Alarm> {
        self.judge.judge(line.step, &line.health)
    }

    /// Saves a picture as `images/NAME SUFFIX.png` and in the event file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::error::Error::Io) or [`Error::Picture`](crate::error::Error::Picture).
    pub fn picture(&mut self, step: u64, name: &str, suffix: &str, it: &RgbImage) -> Result<()> {
        let path = self.out.join("images").join(format!("{name}{suffix}.png"));
        let saved = pictures::save(it, &path);
        // Each whatever came of the other.
        let recorded = self.events.image(step, name, it);
        saved.and(recorded)
    }

    /// Samples of the live generator and histograms of all weights: after the other pictures of a step.
    ///
    /// # Errors
    /// As [`Monitor::picture`].
    pub fn live(&mut self, state: &TrainState, suffix: &str) -> Result<()> {
        let samples = pictures::grid(&self.probe.samples(state), self.columns);
        let e = state.e.as_ref().map(|e| ("e", &e.live.params));
        let further = state.further.as_ref().map(|further| ("further", &further.params));
        let nets = [("g", &state.g.live.params), ("d", &state.d.params)];
        let mut written = self.picture(state.step, "live", suffix, &samples);
        for (net, params) in nets.into_iter().chain(e).chain(further) {
            written = written.and(self.histograms(state.step, net, params));
        }
        written
    }

    fn histograms(&mut self, step: u64, net: &str, params: &Params) -> Result<()> {
        for (name, weight) in params.parameters() {
            self.events.histogram(step, &format!("{net}/{name}"), weight)?;
        }
        Ok(())
    }
}

/// Where TensorBoard shows a key of `stats.jsonl`: in its group.
fn tag(key: &str) -> String {
    const SPEED: [&str; 13] = [
        "images_per_s",
        "images_read_per_s",
        "data_wait_percent",
        "step_seconds",
        "aside_s",
        "bad_images",
        "epoch",
        "gflop_per_s",
        "mfu_percent",
        "memory_gb",
        "checkpoint_held_s",
        "checkpoint_write_s",
        "write_errors",
    ];
    let group = match key {
        key if key.starts_with("loss_") => "loss",
        key if key.starts_with("lr_") => "rate",
        key if SPEED.contains(&key) => "speed",
        _ => "health",
    };
    format!("{group}/{key}")
}

/// A judge that has seen the lines of a file. It said what it had to when they were written.
fn judged(stats: &Path) -> Judge {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
        #[serde(flatten)]
        health: Signals,
    }
    let mut judge = Judge::default();
    evaluations::each_line(stats, |line| {
        if let Ok(Line { step, health }) = serde_json::from_slice(line) {
            let _ = judge.judge(step, &health);
        }
    });
    judge
}
