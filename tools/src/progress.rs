//! What a long job shows: a bar on a terminal, a plain line now and then anywhere else.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};

/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress through a number of images, known or not, on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    doing: &'static str,
    total: Option<u64>,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    images: u64,
    bytes: u64,
    at_start: u64,
    message: String,
    last_line: Instant,
}

impl Progress {
    /// Starts at `done` of `total` images.
    pub(crate) fn start(doing: &'static str, done: u64, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(match total {
                Some(_) => "{prefix} {wide_bar} {pos}/{len}  {per_sec}  {eta} left  {msg}",
                None => "{prefix} {spinner} {pos}  {per_sec}  {elapsed}  {msg}",
            });
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            let bar = bar.with_prefix(doing).with_position(done);
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        let state = State {
            images: done,
            bytes: 0,
            at_start: done,
            message: String::new(),
            last_line: now,
        };
        Self { bar, doing, total, started: now, state: Mutex::new(state) }
    }

    /// Counts one image of `bytes` bytes.
    pub(crate) fn advance(&self, bytes: u64) {
        let Ok(mut state) = self.state.lock() else { return };
        state.images += 1;
        state.bytes += bytes;
        if let Some(bar) = &self.bar {
            bar.inc(1);
        } else if state.last_line.elapsed() >= LINE_EVERY {
            state.last_line = Instant::now();
            let done = state.images - state.at_start;
            let rate = done as f64 / self.started.elapsed().as_secs_f64();
            let State { images, bytes, message, .. } = &*state;
            let (of, left) = match self.total {
                Some(total) => {
                    let left = total.saturating_sub(*images) as f64 / rate.max(1e-9);
                    let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
                    (format!("/{total}"), format!("  {} left", HumanDuration(left)))
                }
                None => Default::default(),
            };
            let (doing, bytes) = (self.doing, HumanBytes(*bytes));
            // A reader that went away stops no work.
            let _ = writeln!(
                std::io::stderr(),
                "{doing} {images}{of}  {rate:.0} images/s  {bytes}{left}  {message}"
            );
        }
    }

    /// Shows what is being worked on, such as the shard's name.
    pub(crate) fn on(&self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.to_owned());
        }
        if let Ok(mut state) = self.state.lock() {
            message.clone_into(&mut state.message);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
