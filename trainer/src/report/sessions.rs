use std::path::Path;

use maud::{Markup, html};
use serde_json::{Map, Value};

use super::{Series, number, short};
use crate::evaluations;
use crate::lock::{self, Held};

/// How a run came to where it is: by `sessions.jsonl`, its lock and its statistics.
#[derive(Debug)]
pub(crate) struct History {
    /// Steps done and wanted.
    pub(crate) done: f64,
    pub(crate) steps: Option<f64>,
    /// Minutes of training.
    pub(crate) minutes: f64,
    /// Until the last step, at the newest line's pace.
    left: Option<f64>,
    /// When the newest line was written.
    newest: Option<String>,
    /// Lines of sessions that began.
    begun: Vec<Map<String, Value>>,
    /// How the newest session ended; nothing where it did not end by itself.
    ended: Option<String>,
    held: Held,
}

impl History {
    pub(crate) fn read(run: &Path, config: &str, stats: &Series) -> Self {
        let steps = config.parse::<toml::Table>().ok();
        let steps = steps.as_ref().and_then(|c| c.get("train")?.get("steps")?.as_integer());
        let steps = steps.map(|steps| steps as f64);
        let done = number(&stats.last, "step").unwrap_or(0.0);
        let each = number(&stats.last, "step_seconds");
        let left = steps.zip(each).map(|(steps, each)| (steps - done).max(0.0) * each / 60.0);
        let lines = evaluations::lines(&run.join("sessions.jsonl"));
        let text = |line: &Map<String, Value>, key: &str| {
            line.get(key).and_then(Value::as_str).map(str::to_owned)
        };
        let begins = |line: &Map<String, Value>| text(line, "event").as_deref() == Some("begin");
        let last = lines.iter().rposition(begins).map_or(0, |at| at + 1);
        let ended = lines[last..].iter().rev().find_map(|line| text(line, "ended"));
        let begun = lines.iter().filter(|line| begins(line)).cloned().collect();
        let newest = text(&stats.last, "time");
        let held = lock::held(run);
        Self { done, steps, minutes: stats.minutes, left, newest, begun, ended, held }
    }

    /// Whether all steps are done.
    pub(crate) fn is_finished(&self) -> bool {
        self.steps.is_some_and(|steps| self.done >= steps)
    }

    /// Running, stopped or finished.
    pub(crate) fn status(&self) -> String {
        let when = self.newest.as_ref().map_or_else(String::new, |time| format!(" (at {time})"));
        match (&self.held, self.ended.as_deref()) {
            _ if self.is_finished() => "finished".to_owned(),
            (Held::Here, _) => {
                let left = self.left.map(|left| format!(", {} left", time(left)));
                format!("running{}{when}", left.unwrap_or_default())
            }
            (Held::Elsewhere(host), None) => format!("last heard of on {host}{when}"),
            (_, Some("signal")) => format!("stopped by a signal{when}"),
            (_, Some("time")) => format!("stopped: train.max_minutes are over{when}"),
            (_, Some("diverged")) => format!("halted: values that are not finite{when}"),
            (_, Some("failed")) => format!("ended by an error{when}"),
            _ if self.begun.is_empty() => format!("not running{when}"),
            _ => format!("not running: its last session did not end by itself{when}"),
        }
    }

    /// Which program, where, when and for how long.
    pub(super) fn table(&self) -> Markup {
        let of = |line: Option<&Map<String, Value>>, key: &str| {
            line.and_then(|line| line.get(key)).map(super::plain)
        };
        let (first, last) = (self.begun.first(), self.begun.last());
        let place =
            [("host", "host"), ("device", "device"), ("ranks", "ranks"), ("threads", "threads")];
        let program = [("version", "version"), ("commit", "commit"), ("libtorch", "libtorch")];
        let rows = place
            .iter()
            .chain(&program)
            .filter_map(|(name, key)| Some(((*name).to_owned(), of(last, key)?)));
        let started = of(first, "time").map(|time| ("started".to_owned(), time));
        let sessions = ("sessions".to_owned(), self.begun.len().to_string());
        let elapsed = (
            "trained".to_owned(),
            format!("{}, without the time between sessions", time(self.minutes)),
        );
        let newest = self.newest.clone().map(|time| ("newest statistics".to_owned(), time));
        let state = ("state".to_owned(), self.status());
        let rows = rows.chain(started).chain([sessions, elapsed]).chain(newest).chain([state]);
        html! {
            div.scroll tabindex="0" {
                table { tbody { @for (name, value) in rows { tr { th { (name) } td { (value) } } } } }
            }
        }
    }
}

/// Minutes in words.
pub(crate) fn time(minutes: f64) -> String {
    match minutes {
        m if m >= 2.0 * 24.0 * 60.0 => format!("{} days", short(m / 1440.0)),
        m if m >= 120.0 => format!("{} hours", short(m / 60.0)),
        m if m >= 1.0 => format!("{} minutes", short((10.0 * m).round() / 10.0)),
        m => format!("{} seconds", short((60.0 * m).round())),
    }
}
