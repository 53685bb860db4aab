//! Pages about runs, made of what their folders hold. A page names no other file and asks for nothing: its curves are drawn
//! by one small script within it (`page.js`) from JSON within it, its pictures are data URIs. `trainer watch` serves the same
//! pages, which then ask for changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use common::files::replace_file;
use maud::{Markup, html};
use serde_json::{Map, Value};

use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::evaluations::{self, each_line};

mod chart;
mod compare;
mod page;
mod pictures;
mod series;
mod sessions;

pub(crate) use chart::{Chart, Drawn, Mark, of_metric};
pub use compare::compare;
pub(crate) use page::Page;
pub(crate) use pictures::{Source, bytes as picture_bytes, picture, plain as is_plain};
pub(crate) use series::{Point, Series};
pub(crate) use sessions::{History, time};

/// Incidents that are listed.
const INCIDENTS: usize = 200;

/// A chart: title, how to read it, keys of `stats.jsonl` with their names.
type Kept = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const TRAINING: [Kept; 3] = [
    (
        "Losses",
        "of the last update; scores of 0 cost D two for each term",
        &[("loss_d", "D"), ("loss_g", "G"), ("loss_e", "E"), ("loss_further", "E, further")],
    ),
    (
        "Reconstruction",
        "mean |x \u{2212} G(E(x))| of fixed images, 0 to 2",
        &[("reconstruction", "error")],
    ),
    (
        "Learning rates",
        "of the last step",
        &[("lr_d", "D"), ("lr_g", "G"), ("lr_e", "E"), ("lr_further", "E, further")],
    ),
];

const HEALTH: [Kept; 7] = [
    (
        "Spread of G(z)",
        "over that of real images: 1 is as varied as data, near 0 is a collapse",
        &[("pixel_spread", "pixels"), ("feature_spread", "features of F"), ("nearest", "nearest")],
    ),
    ("Spread of E(x)", "over that of the prior", &[("latent_spread", "codes")]),
    (
        "Saturated hinge terms",
        "share of D's terms at zero: near 1 on both sides, D has won",
        &[("saturation_real", "real"), ("saturation_fake", "generated")],
    ),
    (
        "Scores of D",
        "of real pairs less those of generated ones (gap), and the mean of the two (common mode)",
        &[("score_gap", "gap"), ("score_common", "common mode")],
    ),
    (
        "Roughness of G(z)",
        "over that of real images: noise is several times 1",
        &[("roughness", "G")],
    ),
    ("Largest singular value", "of the normalised weights", &[("sigma_g", "G"), ("sigma_d", "D")]),
    ("Gradient norms", "Adam's first moment", &[("grad_d", "D"), ("grad_g", "G"), ("grad_e", "E")]),
];

const SPEED: [Kept; 5] = [
    (
        "Images a second",
        "of train.batch; pictures, probes and checkpoints not counted",
        &[("images_per_s", "images/s")],
    ),
    ("GFLOP/s", "counted, not estimated", &[("gflop_per_s", "GFLOP/s")]),
    ("Waiting for data", "% of the time", &[("data_wait_percent", "%")]),
    ("Memory", "of the process, on CUDA of tensors at most; GB", &[("memory_gb", "GB")]),
    ("Beside the steps", "seconds for pictures, probes and checkpoints", &[("aside_s", "s")]),
];

/// Writes `report.html` into the folder of a run, whole or not at all.
///
/// # Errors
/// [`Error::Output`] if it is not the folder of a run; [`Error::Io`].
pub fn write(run: &Path) -> Result<PathBuf> {
    let page = html(run)?;
    let path = run.join("report.html");
    replace_file(&path, page.as_bytes()).map_err(Error::io("write", &path))?;
    Ok(path)
}

/// The page.
///
/// # Errors
/// As [`write()`].
pub fn html(run: &Path) -> Result<String> {
    Ok(of_run(run, &Source::Inline)?.to_html(None))
}

/// The text of the configuration of a run.
///
/// # Errors
/// [`Error::Output`] if the folder is none of a run.
pub(crate) fn configuration(run: &Path) -> Result<String> {
    let config = fs::read_to_string(run.join("config.toml")).map_err(|e| Error::Output {
        path: run.to_owned(),
        reason: match e.kind() {
            ErrorKind::NotFound => format!("no config.toml in it ({e}): not the folder of a run"),
            _ => format!("its config.toml cannot be read ({e})"),
        },
    })?;
    // Other programs call their settings so, too; a run's is a run's even where it was cut since.
    let anything = ["checkpoints", "stats.jsonl", "sessions.jsonl"];
    if !anything.iter().any(|name| run.join(name).exists()) && Config::parse(&config).is_err() {
        let reason = "its config.toml is not of a run, nor is anything else in it".to_owned();
        return Err(Error::Output { path: run.to_owned(), reason });
    }
    Ok(config)
}

/// A run's own name.
pub(crate) fn name_of(run: &Path) -> String {
    let name = run.canonicalize().unwrap_or_else(|_| run.to_owned());
    name.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

/// What is kept of `stats.jsonl`: every curve, and what the tiles and the clock say.
pub(crate) fn statistics(run: &Path) -> Series {
    let charts = [&TRAINING[..], &HEALTH[..], &SPEED[..]];
    let curves = charts.into_iter().flatten().flat_map(|(_, _, keys)| keys.iter());
    let tiles = TILES.map(|(key, ..)| key);
    let keys: BTreeSet<_> = curves.map(|(key, _)| *key).chain(tiles).chain(["time"]).collect();
    let keys: Vec<_> = keys.into_iter().collect();
    Series::read(&run.join("stats.jsonl"), &keys)
}

/// All that there is to see of a run.
///
/// # Errors
/// As [`configuration`].
pub(crate) fn of_run(run: &Path, source: &Source<'_>) -> Result<Page> {
    let config = configuration(run)?;
    let stats = statistics(run);
    let incidents = Incidents::read(&run.join("incidents.jsonl"));
    let found = evaluations::of(run);
    let history = History::read(run, &config, &stats);
    let mut page = Page::new(name_of(run));
    page.part("state", &state(&history));
    page.controls();
    page.part("tiles", &tiles(&stats.last));
    page.section("incidents", "Incidents", &incident_list(&incidents));
    for (title, charts) in
        [("Training", &TRAINING[..]), ("Health", &HEALTH), ("Throughput", &SPEED)]
    {
        let charts = charts.iter().map(|(title, how, keys)| {
            let chart = Chart::new(*title, *how);
            keys.iter().fold(chart, |chart, (key, name)| chart.line(*name, &stats.points(key)))
        });
        page.charts(title, charts.collect(), "no statistics yet");
        if title == "Training" {
            let metrics = chart::of_metrics(&found, |step| stats.minutes_at(step));
            page.charts("Metrics over training", metrics, "none yet");
        }
    }
    page.marks(incidents.marks(&stats));
    page.section("pictures", "Pictures", &pictures::of(&run.join("images"), source));
    page.section("metrics", "Metrics", &metrics(&found));
    page.section("provenance", "Where it comes from", &history.table());
    // A URL's password is of no concern to a page's readers.
    let shown = Config::parse(&config)
        .map_or_else(|_| config::text_without_secrets(&config), |config| config.shown());
    let settings = html! { details { summary { "config.toml" } pre { (shown) } } };
    page.section("settings", "Settings", &settings);
    Ok(page)
}

pub(crate) fn number(line: &Map<String, Value>, key: &str) -> Option<f64> {
    line.get(key).and_then(Value::as_f64).filter(|value| value.is_finite())
}

fn none(text: &str) -> Markup {
    html! { p.muted { (text) } }
}

/// How far it has come.
fn state(history: &History) -> Markup {
    let (done, steps) = (history.done, history.steps);
    let share = steps.filter(|s| *s > 0.0).map_or(0.0, |s| (100.0 * done / s).min(100.0));
    html! {
        p {
            "step " (compact(done)) @if let Some(steps) = steps { " of " (compact(steps)) }
            " · " (history.status())
        }
        div.bar { div style={ "width:" (format!("{share:.1}")) "%" } {} }
    }
}

/// Figures of the newest line: key, name, unit.
const TILES: [(&str, &str, &str); 8] = [
    ("loss_d", "loss D", ""),
    ("loss_g", "loss G", ""),
    ("loss_e", "loss E", ""),
    ("loss_further", "loss E, further", ""),
    ("images_per_s", "images a second", ""),
    ("step_seconds", "a step", " s"),
    ("data_wait_percent", "waiting for data", " %"),
    ("epoch", "epoch", ""),
];

fn tiles(last: &Map<String, Value>) -> Markup {
    let value = |key| number(last, key).map(|value| short((100.0 * value).round() / 100.0));
    let found = TILES.iter().filter_map(|(key, name, unit)| Some((value(key)?, name, unit)));
    html! {
        @if !last.is_empty() {
            div.tiles {
                @for (value, name, unit) in found {
                    div { b { (value) small { (unit) } } span { (name) } }
                }
            }
        }
    }
}

/// What a report needs of `incidents.jsonl`: a fault each step is as many as steps.
#[derive(Default)]
pub(crate) struct Incidents {
    newest: VecDeque<Map<String, Value>>,
    /// Those before them.
    earlier: usize,
    /// What happened by step, of what happens often the first and the newest at least.
    kinds: BTreeMap<u64, String>,
}

/// Incidents that are marked in curves.
const MARKS: usize = 400;

impl Incidents {
    pub(crate) fn read(path: &Path) -> Self {
        let mut all = Self::default();
        each_line(path, |line| {
            let Ok(line) = serde_json::from_slice::<Map<String, Value>>(line) else { return };
            if let Some(step) = number(&line, "step") {
                let kind = line.get("incident").map_or_else(String::new, plain);
                all.kinds.insert(step as u64, format!("step {step}: {kind}"));
                if all.kinds.len() > MARKS {
                    // Every other one, between the first and the newest.
                    let mut keep = false;
                    let newest = *all.kinds.keys().next_back().unwrap_or(&0);
                    all.kinds.retain(|step, _| {
                        keep = !keep;
                        keep || *step == newest
                    });
                }
            }
            if all.newest.len() == INCIDENTS {
                all.newest.pop_front();
                all.earlier += 1;
            }
            all.newest.push_back(line);
        });
        all
    }

    pub(crate) fn marks(&self, stats: &Series) -> Vec<Mark> {
        let mark = |(step, text): (&u64, &String)| {
            let step = *step as f64;
            Mark { step, minutes: stats.minutes_at(step), text: text.clone() }
        };
        self.kinds.iter().map(mark).collect()
    }
}

fn incident_list(incidents: &Incidents) -> Markup {
    let text = |line: &Map<String, Value>, key| line.get(key).map_or_else(String::new, plain);
    html! {
        @if incidents.newest.is_empty() { (none("none")) } @else {
            ul.incidents {
                @for line in &incidents.newest {
                    li {
                        b { "step " (text(line, "step")) } " " code { (text(line, "incident")) } " "
                        (text(line, "text")) " " (others(line, &["step", "incident", "text"]))
                    }
                }
            }
            @if incidents.earlier > 0 {
                (none(&format!("and {} before these, in incidents.jsonl", incidents.earlier)))
            }
        }
    }
}

fn metrics(lines: &[Map<String, Value>]) -> Markup {
    let text = |line: &Map<String, Value>, key| line.get(key).map_or_else(String::new, plain);
    html! {
        @if lines.is_empty() { (none("none yet")) } @else {
            div.scroll tabindex="0" {
                table {
                    thead { tr { th { "metric" } th { "step" } th { "result and protocol" } } }
                    tbody {
                        @for line in lines {
                            tr {
                                td { (text(line, "metric")) } td { (text(line, "step")) }
                                td { (others(line, &["metric", "step"])) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The entries but these, as "key value".
fn others(line: &Map<String, Value>, but: &[&str]) -> Markup {
    let rest = || line.iter().filter(|(key, _)| !but.contains(&key.as_str()));
    html! {
        @for (key, value) in rest() { span.entry { (key) " " b { (plain(value)) } } " " }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(n) if n.is_f64() => short(n.as_f64().unwrap_or(f64::NAN)),
        other => other.to_string(),
    }
}

/// Four significant digits.
pub(crate) fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(1e-3..1e6).contains(&size) {
        return format!("{value:.1e}");
    }
    let decimals = (3.0 - size.log10().floor()).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// 12000 as 12k.
pub(crate) fn compact(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", short(v / 1e6)),
        v if v >= 1e4 => format!("{}k", short(v / 1e3)),
        v => short(v),
    }
}

#[cfg(test)]
mod tests;
