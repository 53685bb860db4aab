//! What a run says of itself: `stats.jsonl` and `metrics.jsonl` for programs, a bar or plain lines
//! for people.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::files::replace_file;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::evaluations;
use crate::health::Signals;
use crate::say::{self, note};

/// One line of `stats.jsonl`, written every `log.every` steps; means are over those steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatsLine {
    /// G/E updates done.
    pub step: u64,
    /// L_D of the step's last D update (sum over the enabled terms; each of both sides).
    pub loss_d: f64,
    /// G's part of L_EG.
    pub loss_g: f64,
    /// E's part of L_EG; absent without an encoder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_e: Option<f64>,
    /// The further loss of E (`[beyond]`); absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_further: Option<f64>,
    /// D's rate in this step. Absent in older logs, as the next ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_d: Option<f64>,
    /// G's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_g: Option<f64>,
    /// E's; absent without an encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_e: Option<f64>,
    /// That of the further loss's network; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_further: Option<f64>,
    /// `train.batch` over the seconds of a whole step.
    pub images_per_s: f64,
    /// Images read from the shards a second: (d_steps + 1) batches a step.
    pub images_read_per_s: f64,
    /// Share of the time in which the step waited for images.
    pub data_wait_percent: f64,
    /// Seconds of a whole step, without what pictures, probes and checkpoints take between two steps.
    pub step_seconds: f64,
    /// Seconds that these took since the line before; absent where there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aside_s: Option<f64>,
    /// Unreadable images that others stood in for, in this session.
    pub bad_images: u64,
    /// Epoch that the next image belongs to, from 0.
    pub epoch: u64,
    /// What reading the training images from a URL took since the start; absent for a folder of
    /// this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<pipeline::Traffic>,
    /// Billions of floating-point operations a second, of convolutions and products, as counted.
    pub gflop_per_s: f64,
    /// Their share of what the GPUs can do at most in `train.precision` ([`crate::peak`]); absent where
    /// that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu_percent: Option<f64>,
    /// Memory of the process; on CUDA, the most that tensors have taken on the device. In 10⁹ bytes.
    pub memory_gb: f64,
    /// Seconds that the newest checkpoint held training up, where one reached the disk since the line
    /// before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_held_s: Option<f64>,
    /// Seconds that it took to write after that, beside training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_write_s: Option<f64>,
    /// The step of the newest checkpoint in `checkpoint.mirror`, where that was brought up to date since the line before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirrored_step: Option<u64>,
    /// Times in this session that something beside checkpoints could not be written.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub write_errors: u64,
    /// Signs of a collapse.
    #[serde(flatten)]
    pub health: Signals,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a file holds; what is not text in it, such as half a letter at its end, as other signs.
fn read_if_there(path: &Path) -> Result<String> {
    match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        bytes => {
            let bytes = bytes.map_err(Error::io("read", path))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    }
}

/// Most lines that wait for a disk that does not take them.
const WAITING: usize = 10_000;

/// What is read of a line.
#[derive(Deserialize)]
struct Step {
    step: u64,
    /// Of a measure, not of the run's own.
    checkpoint: Option<serde_json::Value>,
    /// Of a measure.
    split: Option<String>,
}

/// A file of JSON objects, one a line, of which this process is the only writer. What the disk does not
/// take is kept and tried again with the next line.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: Option<File>,
    /// Length of the whole lines on the disk.
    whole: u64,
    waiting: VecDeque<String>,
    /// Lines given up because too many waited.
    lost: u64,
}

impl Lines {
    /// Opens `path` for appending after dropping every line whose `step` is beyond `step`: what a
    /// run wrote after the checkpoint it resumes from.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let mut lines = Self::of(path);
        lines.go_back(step)?;
        Ok(lines)
    }

    /// A log that is read alone: it stays as it is.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let (file, waiting) = (None, VecDeque::new());
        Self { path: path.to_owned(), file, whole: 0, waiting, lost: 0 }
    }

    /// Drops every line whose `step` is beyond `step`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn go_back(&mut self, step: u64) -> Result<()> {
        self.retain(|line| line.step <= step)
    }

    /// Drops what a run itself has measured of a step on a split: it is measured anew. Lines of commands stay.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn again(&mut self, step: u64, split: &str) -> Result<()> {
        self.retain(|line| {
            line.step != step || line.checkpoint.is_some() || line.split.as_deref() != Some(split)
        })
    }

    fn retain(&mut self, keep: impl Fn(&Step) -> bool) -> Result<()> {
        let keep =
            |line: &str| serde_json::from_str::<Step>(line).is_ok_and(|parsed| keep(&parsed));
        self.waiting.retain(|line| keep(line));
        let path = &self.path;
        if path.exists() {
            // A line that is not text is none of ours, and is dropped.
            let bytes = fs::read(path).map_err(Error::io("read", path))?;
            let text = String::from_utf8_lossy(&bytes);
            let kept: String =
                text.lines().filter(|line| keep(line)).map(|l| format!("{l}\n")).collect();
            // The last may be half a line, of a run that was killed.
            let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let unread = whole.filter(|l| serde_json::from_str::<Step>(l).is_err()).count();
            if unread > 0 {
                tracing::warn!("{}: {unread} lines that say no step are dropped", path.display());
            }
            if kept.as_bytes() != bytes {
                self.file = None; // of the old content
                replace_file(path, kept.as_bytes()).map_err(Error::io("write", path))?;
            }
        }
        self.opened().map(drop).map_err(Error::io("open", &self.path))
    }

    fn opened(&mut self) -> std::io::Result<&mut File> {
        if self.file.is_none() {
            let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            self.whole = file.metadata()?.len();
            self.file = Some(file);
        }
        Ok(self.file.as_mut().expect("it was just opened"))
    }

    /// All lines there are, those that wait too.
    fn text(&self) -> Result<String> {
        let mut text = read_if_there(&self.path)?;
        self.waiting.iter().for_each(|line| text.push_str(line));
        Ok(text)
    }

    /// The step of the best line of a `metrics.jsonl`, of those of averaged weights. `measure` is
    /// `METRIC.KEY`, with a `-` before it where lower is better. Lines of another split, or of a command
    /// where the run itself has written some, are no rivals. Of equals the first; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn best(&self, measure: &str) -> Result<Option<u64>> {
        let (sign, measure) = measure.strip_prefix('-').map_or((1.0, measure), |rest| (-1.0, rest));
        let Some((metric, key)) = measure.rsplit_once('.') else { return Ok(None) };
        let mut text = self.text()?;
        // Of commands, those of today in a file of their own.
        let of_commands = self.path.with_file_name(evaluations::FILE);
        text.push('\n');
        text.push_str(&read_if_there(&of_commands)?);
        let read = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let averaged = line.get("weights").is_none_or(|w| w == "average");
            let found = averaged && line.get("metric")? == metric;
            let (step, value) = (line.get("step")?.as_u64()?, sign * line.get(key)?.as_f64()?);
            // A run's own lines name no checkpoint.
            let kind = (line.get("checkpoint").is_some(), line.get("split").cloned());
            found.then_some((kind, step, value))
        };
        let lines: Vec<_> = text.lines().filter_map(read).collect();
        let of_run = lines.iter().find(|((by_command, _), ..)| !by_command);
        let Some((rivals, ..)) = of_run.or(lines.first()) else { return Ok(None) };
        let rivals = lines.iter().filter(|(kind, ..)| kind == rivals);
        let best = rivals.reduce(|a, b| if b.2 > a.2 { b } else { a });
        Ok(best.map(|(_, step, _)| *step))
    }

    /// Whether a line of this step is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn has(&self, step: u64) -> Result<bool> {
        let of = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).ok()?.get("step")?.as_u64()
        };
        Ok(self.text()?.lines().any(|line| of(line) == Some(step)))
    }

    /// Writes one object as a line, with the time in a field `time`, and those that wait before it.
    ///
    /// # Errors
    /// [`Error::Io`]; the line then waits, and the file ends with a whole line all the same.
    pub fn write(&mut self, value: &impl Serialize) -> Result<()> {
        let line = serde_json::to_value(value).map(|mut line| {
            if let Some(object) = line.as_object_mut() {
                object.entry("time").or_insert_with(|| common::now().into());
            }
            format!("{line}\n")
        });
        let line = line.map_err(|e| Error::io("write", &self.path)(std::io::Error::other(e)))?;
        if self.waiting.len() == WAITING {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(line);
        self.flush()
    }

    /// Tries again to write what waits.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn flush(&mut self) -> Result<()> {
        while let Some(line) = self.waiting.pop_front() {
            let written = self.opened().and_then(|file| file.write_all(line.as_bytes()));
            if let Err(e) = written {
                self.waiting.push_front(line);
                // Half a line would make the next one unreadable.
                if let Some(file) = self.file.take() {
                    let _ = file.set_len(self.whole);
                }
                return Err(Error::io("write", &self.path)(e));
            }
            self.whole += line.len() as u64;
        }
        Ok(())
    }

    /// Lines that are not on the disk: those that wait and those that were given up.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.waiting.len() as u64 + self.lost
    }

    /// Brings what was written to the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.check_place()?;
        let synced = self.opened().and_then(|file| file.sync_data());
        synced.map_err(Error::io("sync", &self.path))
    }
}

impl Lines {
    /// Whether the file that is written to is still the one of that name.
    fn check_place(&mut self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let identity = |of: fs::Metadata| (of.dev(), of.ino());
        let ours = file.metadata().map_err(Error::io("look at", &self.path))?;
        let ours = identity(ours);
        match fs::metadata(&self.path).map(identity) {
            Ok(there) if there == ours => return Ok(()),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("look at", &self.path)(e));
            }
            _ => {}
        }
        // Of its place the next line begins another, if the folder is there.
        self.file = None;
        let reason =
            "was removed or moved while the run wrote to it; a new one is begun".to_owned();
        Err(Error::Output { path: self.path.clone(), reason })
    }
}

/// Progress for people: a live bar on a terminal, else a plain line every few seconds.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    /// When `train.max_minutes` end it, if they do.
    end: Option<Instant>,
    said: Option<Instant>,
    /// When lines came, and of which step.
    pace: VecDeque<(Instant, u64)>,
    /// When the newest checkpoint was on the disk.
    saved: Option<Instant>,
}

/// Lines over which the time left is reckoned.
const PACE: usize = 30;

impl Progress {
    /// From step `from` of `steps`, in `limit` of time at most.
    #[must_use]
    pub fn new(from: u64, steps: u64, limit: Option<Duration>) -> Self {
        let template = "{wide_bar} {pos}/{len} steps\n{msg}";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let shown = std::io::stderr().is_terminal() && !say::is_quiet();
        let bar = shown.then(|| {
            let bar = ProgressBar::new(steps).with_style(style).with_position(from);
            bar.reset_eta();
            bar
        });
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        Self { bar, steps, end, said: None, pace: VecDeque::new(), saved: None }
    }

    /// Another step is done.
    pub fn step(&self, step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
    }

    /// Shows a statistics line.
    pub fn show(&mut self, s: &StatsLine) {
        let now = Instant::now();
        if s.checkpoint_held_s.is_some() {
            self.saved = Some(now);
        }
        self.pace.push_back((now, s.step));
        if self.pace.len() > PACE {
            self.pace.pop_front();
        }
        // With pictures, probes and checkpoints, which a step's seconds are without.
        let before = self.pace.front().filter(|(_, step)| *step < s.step);
        let each = before.map(|(time, step)| (now - *time).as_secs_f64() / (s.step - step) as f64);
        let saved = self.saved.map(|at| at.elapsed());
        let left = self.left(s.step, each.unwrap_or(s.step_seconds));
        let [speed, model] = progress(s, left, saved);
        match &self.bar {
            Some(bar) => bar.set_message(format!("{speed}\n{model}")),
            None if self.said.is_none_or(|t| t.elapsed() >= Duration::from_secs(10)) => {
                self.said = Some(Instant::now());
                note(format_args!("step {}/{}  {model}  {speed}", s.step, self.steps));
            }
            None => {}
        }
    }

    /// How long the run goes on after a step, where each takes so many seconds.
    fn left(&self, step: u64, each: f64) -> Duration {
        let seconds = each * self.steps.saturating_sub(step) as f64;
        let left = Duration::from_secs_f64(seconds.clamp(0.0, 1e9));
        let end = self.end.map(|end| end.saturating_duration_since(Instant::now()));
        end.map_or(left, |end| left.min(end))
    }

    /// Says a line without disturbing the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => note(text),
        }
    }

    /// Ends the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// How fast it goes and how long it will, and how the model does.
fn progress(s: &StatsLine, left: Duration, saved: Option<Duration>) -> [String; 2] {
    let left = HumanDuration(left);
    let mfu = s.mfu_percent.map_or_else(String::new, |percent| format!(" ({percent:.1} % MFU)"));
    let saved = saved.map_or_else(String::new, |ago| format!("  saved {} ago", HumanDuration(ago)));
    let unwritten = match s.write_errors {
        0 => String::new(),
        1 => "  1 write error".to_owned(),
        errors => format!("  {errors} write errors"),
    };
    let speed = format!(
        "{:.0} images/s  {:.0} GFLOP/s{mfu}  wait {:.1} %  {:.1} GB  {left} left{saved}{unwritten}",
        s.images_per_s, s.gflop_per_s, s.data_wait_percent, s.memory_gb
    );
    let h = &s.health;
    let of_e = h.grad_e.map_or_else(String::new, |norm| format!("/{norm:.0}"));
    let (e, again) = (s.loss_e.zip(h.reconstruction)).map_or_else(
        || (String::new(), String::new()),
        |(e, error)| (format!(" E {e:.2}"), format!("  reconstruction {error:.2}")),
    );
    let model = format!(
        "D {:.2} G {:.2}{e}  variety {:.2}{again}  saturated {:.0}/{:.0} %  gradients {:.0}/{:.0}{of_e}",
        s.loss_d,
        s.loss_g,
        h.nearest,
        100.0 * h.saturation_real,
        100.0 * h.saturation_fake,
        h.grad_d,
        h.grad_g
    );
    [speed, model]
}

#[cfg(test)]
mod tests;
