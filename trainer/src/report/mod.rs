//! One HTML page about a run, made of what its folder holds. It names no other file: curves are inline
//! SVG, pictures are data URIs, and there is no script.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::files::replace_file;
use serde_json::{Map, Value};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::evaluations::{self, each_line};

mod series;

pub(crate) use series::{Curve, Series};

/// Earlier pictures of one kind shown beside the newest.
const EARLIER: usize = 3;
/// Incidents that are listed.
const INCIDENTS: usize = 200;
/// Curves of different colours; `STYLE` names them.
const COLOURS: usize = 5;

/// Curves: title, how to read it, keys of `stats.jsonl` with their names.
type Chart = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const TRAINING: [Chart; 2] = [
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
];

const HEALTH: [Chart; 7] = [
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

const SPEED: [Chart; 3] = [
    ("Images a second", "of train.batch, a whole step", &[("images_per_s", "images/s")]),
    ("GFLOP/s", "counted, not estimated", &[("gflop_per_s", "GFLOP/s")]),
    ("Waiting for data", "percent of the time", &[("data_wait_percent", "%")]),
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
    let charts = [&TRAINING[..], &HEALTH[..], &SPEED[..]];
    let curves = charts.iter().flat_map(|c| c.iter()).flat_map(|(_, _, keys)| keys.iter());
    let keys: Vec<_> = curves.map(|(key, _)| *key).chain(TILES.map(|(key, ..)| key)).collect();
    let stats = Series::read(&run.join("stats.jsonl"), &keys);
    let incidents = Incidents::read(&run.join("incidents.jsonl"));
    let name = run.canonicalize().unwrap_or_else(|_| run.to_owned());
    let name = name.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let mut body =
        format!("<header><h1>{}</h1>{}</header>\n", escaped(&name), state(&config, &stats.last));
    body.push_str(&tiles(&stats.last));
    body.push_str(&section("Incidents", &incident_list(&incidents)));
    for (title, charts) in ["Training", "Health", "Throughput"].into_iter().zip(charts) {
        let charts: String = charts.iter().map(|c| chart(c, &stats, &incidents)).collect();
        let charts = if charts.is_empty() { none("no statistics yet") } else { charts };
        body.push_str(&section(title, &format!("<div class=grid>{charts}</div>")));
    }
    body.push_str(&section("Pictures", &pictures(&run.join("images"))));
    body.push_str(&section("Metrics", &metrics(&evaluations::of(run))));
    let settings =
        format!("<details><summary>config.toml</summary><pre>{}</pre></details>", escaped(&config));
    body.push_str(&section("Settings", &settings));
    Ok(page(&name, &body))
}

/// A whole page around a body.
pub(crate) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\
         <meta name=color-scheme content=\"light dark\"><title>{}</title>\
         <style>{STYLE}</style></head><body>\n{body}</body></html>\n",
        escaped(title)
    )
}

pub(crate) fn number(line: &Map<String, Value>, key: &str) -> Option<f64> {
    line.get(key).and_then(Value::as_f64).filter(|value| value.is_finite())
}

pub(crate) fn section(title: &str, content: &str) -> String {
    format!("<section><h2>{title}</h2>\n{content}</section>\n")
}

fn none(text: &str) -> String {
    format!("<p class=muted>{text}</p>")
}

/// How far it has come.
fn state(config: &str, last: &Map<String, Value>) -> String {
    let steps = config.parse::<toml::Table>().ok();
    let steps = steps.as_ref().and_then(|c| c.get("train")?.get("steps")?.as_integer());
    let done = number(last, "step").unwrap_or(0.0);
    let of = steps.map_or(String::new(), |steps| format!(" of {}", compact(steps as f64)));
    let share = steps.filter(|s| *s > 0).map_or(0.0, |s| (100.0 * done / s as f64).min(100.0));
    format!(
        "<p>step {}{of}</p><div class=bar><div style=\"width:{share:.1}%\"></div></div>",
        compact(done)
    )
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

fn tiles(last: &Map<String, Value>) -> String {
    if last.is_empty() {
        return String::new();
    }
    let tile = |(key, name, unit): &(&str, &str, &str)| {
        number(last, key).map(|value| {
            let value = short((100.0 * value).round() / 100.0);
            format!("<div><b>{value}<small>{unit}</small></b><span>{name}</span></div>")
        })
    };
    let all: String = TILES.iter().filter_map(tile).collect();
    format!("<div class=tiles>{all}</div>\n")
}

/// What a report needs of `incidents.jsonl`: a fault each step is as many as steps.
#[derive(Default)]
struct Incidents {
    newest: VecDeque<Map<String, Value>>,
    /// Those before them.
    earlier: usize,
    steps: Vec<f64>,
}

impl Incidents {
    fn read(path: &Path) -> Self {
        let mut all = Self::default();
        each_line(path, |line| {
            let Ok(line) = serde_json::from_slice::<Map<String, Value>>(line) else { return };
            all.steps.extend(number(&line, "step"));
            if all.newest.len() == INCIDENTS {
                all.newest.pop_front();
                all.earlier += 1;
            }
            all.newest.push_back(line);
        });
        all
    }
}

fn incident_list(incidents: &Incidents) -> String {
    if incidents.newest.is_empty() {
        return none("none");
    }
    let item = |line: &Map<String, Value>| {
        let rest = others(line, &["step", "incident", "text"]);
        let text = |key| line.get(key).map_or(String::new(), |v| escaped(&plain(v)));
        format!(
            "<li><b>step {}</b> <code>{}</code> {} {rest}</li>",
            text("step"),
            text("incident"),
            text("text")
        )
    };
    let more = match incidents.earlier {
        0 => String::new(),
        earlier => format!("<p class=muted>and {earlier} before these, in incidents.jsonl</p>"),
    };
    let newest: String = incidents.newest.iter().map(item).collect();
    format!("<ul class=incidents>{newest}</ul>{more}")
}

fn metrics(lines: &[Map<String, Value>]) -> String {
    if lines.is_empty() {
        return none("none yet");
    }
    let row = |line: &Map<String, Value>| {
        let text = |key| line.get(key).map_or(String::new(), |v| escaped(&plain(v)));
        let rest = others(line, &["metric", "step"]);
        format!("<tr><td>{}</td><td>{}</td><td>{rest}</td></tr>", text("metric"), text("step"))
    };
    format!(
        "<div class=scroll><table><tr><th>metric</th><th>step</th><th>result and protocol</th></tr>\
         {}</table></div>",
        lines.iter().map(row).collect::<String>()
    )
}

/// The entries but these, as "key value".
fn others(line: &Map<String, Value>, but: &[&str]) -> String {
    let rest = line.iter().filter(|(key, _)| !but.contains(&key.as_str()));
    let entry = |(key, value): (&String, &Value)| {
        format!("<span class=entry>{} <b>{}</b></span> ", escaped(key), escaped(&plain(value)))
    };
    rest.map(entry).collect()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(n) if n.is_f64() => short(n.as_f64().unwrap_or(f64::NAN)),
        other => other.to_string(),
    }
}

/// The newest picture of every kind and a few earlier ones.
fn pictures(folder: &Path) -> String {
    let mut kinds: Vec<(String, Vec<(u64, PathBuf)>)> = vec![];
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths.into_iter().filter(|p| p.extension().is_some_and(|e| e == "png")) {
        let stem = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        // Without a number it is the one made at the end.
        let (kind, step) = stem
            .rsplit_once('-')
            .and_then(|(kind, step)| Some((kind.to_owned(), step.parse().ok()?)))
            .unwrap_or((stem, u64::MAX));
        match kinds.iter_mut().find(|(name, _)| *name == kind) {
            Some((_, all)) => all.push((step, path)),
            None => kinds.push((kind, vec![(step, path)])),
        }
    }
    if kinds.is_empty() {
        return none("none yet");
    }
    let mut out = String::new();
    for (kind, mut all) in kinds {
        all.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
        let named = |(step, path): &(u64, PathBuf)| match *step {
            u64::MAX => figure("newest", path),
            step => figure(&format!("step {step}"), path),
        };
        let shown: String = all.iter().take(1 + EARLIER).filter_map(named).collect();
        let _ = write!(out, "<h3>{}</h3><div class=pictures>{shown}</div>", escaped(&kind));
    }
    out
}

/// A picture with a name; none if there is no such file.
pub(crate) fn figure(name: &str, path: &Path) -> Option<String> {
    let bytes = STANDARD.encode(fs::read(path).ok()?);
    Some(format!(
        "<figure><img alt=\"{name}\" src=\"data:image/png;base64,{bytes}\">\
         <figcaption>{name}</figcaption></figure>"
    ))
}

/// Width and height of a curve's drawing, and the margins of its axes.
const SIZE: (f64, f64) = (480.0, 200.0);
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 22.0;

/// Nothing where no line has any of the keys.
fn chart((title, how, keys): &Chart, stats: &Series, incidents: &Incidents) -> String {
    let series: Vec<_> = keys.iter().map(|(key, name)| (*name, stats.points(key))).collect();
    curves(title, how, &series, &incidents.steps)
}

/// Curves in one drawing, with a legend; nothing if none has a point. `marks` are vertical lines.
pub(crate) fn curves(
    title: &str,
    how: &str,
    series: &[(&str, Vec<(f64, f64)>)],
    marks: &[f64],
) -> String {
    let series: Vec<_> = series.iter().filter(|(_, points)| !points.is_empty()).cloned().collect();
    if series.is_empty() {
        return String::new();
    }
    let mut legend = String::new();
    for (i, (name, points)) in series.iter().enumerate() {
        let last = points.last().map_or(f64::NAN, |p| p.1);
        let _ = write!(legend, "<span class=c{}>{name} <b>{}</b></span>", i % COLOURS, short(last));
    }
    format!(
        "<figure class=chart><figcaption><b>{title}</b><small>{how}</small></figcaption>{}\
         <div class=legend>{legend}</div></figure>",
        drawing(title, &series, marks)
    )
}

fn drawing(title: &str, series: &[(&str, Vec<(f64, f64)>)], marks: &[f64]) -> String {
    let all = || series.iter().flat_map(|(_, points)| points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let values = all().map(of);
        values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x, mut y) = (wide(range(|p| p.0)), range(|p| p.1));
    // Values over more than two magnitudes are told apart on a logarithmic axis alone.
    let log = y.0 > 0.0 && y.1 / y.0 > 100.0;
    let of_y = |v: f64| if log { v.log10() } else { v };
    y = wide((of_y(y.0), of_y(y.1)));
    let at_x = |v: f64| LEFT + (v - x.0) / (x.1 - x.0) * (SIZE.0 - LEFT - RIGHT);
    let at_y = |v: f64| SIZE.1 - BOTTOM - (v - y.0) / (y.1 - y.0) * (SIZE.1 - TOP - BOTTOM);
    let mut out =
        format!("<svg viewBox=\"0 0 {} {}\" role=img aria-label=\"{title}\">", SIZE.0, SIZE.1);
    for tick in ticks(y) {
        let (h, label) = (at_y(tick), short(if log { 10f64.powf(tick) } else { tick }));
        let _ = write!(
            out,
            "<path class=line d=\"M{LEFT} {h:.1}H{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=end>{label}</text>",
            SIZE.0 - RIGHT,
            LEFT - 5.0,
            h + 3.5
        );
    }
    for tick in ticks(x) {
        let (w, h) = (at_x(tick), SIZE.1 - 6.0);
        let label = compact(tick);
        let _ = write!(out, "<text x=\"{w:.1}\" y=\"{h:.1}\" text-anchor=middle>{label}</text>");
    }
    // Of those that are drawn in one place, one.
    let places = marks.iter().filter(|m| (x.0..=x.1).contains(m)).map(|m| at_x(*m).round() as i64);
    for place in places.collect::<BTreeSet<_>>() {
        let _ = write!(out, "<path class=mark d=\"M{place} {TOP}V{:.1}\"/>", SIZE.1 - BOTTOM);
    }
    for (i, (_, points)) in series.iter().enumerate() {
        let path: String =
            points.iter().map(|p| format!("{:.1},{:.1} ", at_x(p.0), at_y(of_y(p.1)))).collect();
        let colour = i % COLOURS;
        let _ = write!(out, "<polyline class=c{colour} points=\"{}\"/>", path.trim_end());
        // A single point has no line.
        if let [only] = points[..] {
            let (w, h) = (at_x(only.0), at_y(of_y(only.1)));
            let _ = write!(out, "<circle class=c{colour} cx=\"{w:.1}\" cy=\"{h:.1}\" r=\"3\"/>");
        }
    }
    out.push_str("</svg>");
    out
}

/// A range that is not empty.
fn wide((low, high): (f64, f64)) -> (f64, f64) {
    if high - low > 1e-9 * high.abs().max(1e-9) {
        (low, high)
    } else {
        let by = if low == 0.0 { 1.0 } else { 0.1 * low.abs() };
        (low - by, high + by)
    }
}

/// Three to six round numbers within a range.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let rough = (high - low) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let by = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power);
    let by = by.into_iter().find(|by| *by >= rough).unwrap_or(10.0 * power);
    let (first, last) = ((low / by).ceil() as i64, (high / by).floor() as i64);
    (first..=last).map(|i| i as f64 * by).collect()
}

/// Four significant digits.
fn short(value: f64) -> String {
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
fn compact(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", short(v / 1e6)),
        v if v >= 1e4 => format!("{}k", short(v / 1e3)),
        v => short(v),
    }
}

pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

const STYLE: &str = "
:root{--bg:#fbfbfa;--card:#fff;--text:#1c1d1f;--muted:#65686d;--line:#e4e4e0;--c0:#0b66c3;--c1:#c4570a;
--c2:#12805c;--c3:#7a3fb5;--c4:#8a6d00;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#141517;--card:#1d1f22;--text:#e9e9e6;--muted:#9b9fa6;
--line:#31343a;--c0:#6cb2ff;--c1:#ffa25c;--c2:#5fd3a8;--c3:#c79bff;--c4:#e0c34a;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;padding:24px 16px 48px;max-width:1240px;background:var(--bg);color:var(--text);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:26px;margin:0;overflow-wrap:anywhere}h2{font-size:18px;margin:36px 0 12px}
h3{font-size:14px;margin:18px 0 8px;color:var(--muted);font-weight:600}
header p{margin:4px 0 10px;color:var(--muted)}
.bar{height:6px;border-radius:3px;background:var(--line);overflow:hidden}
.bar div{height:100%;background:var(--c0)}
.muted{color:var(--muted)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px;margin-top:18px}
.tiles div,.chart{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tiles b{display:block;font-size:22px;font-weight:600;font-variant-numeric:tabular-nums}
.tiles small{font-size:14px;color:var(--muted);font-weight:400}
.tiles span{color:var(--muted);font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:14px}
figure{margin:0}
.chart{display:flex;flex-direction:column}
.chart figcaption b{display:block}
.chart figcaption small{color:var(--muted);display:block;min-height:1.5em;font-size:12.5px}
.chart svg{width:100%;height:auto;display:block;margin-top:auto}
svg text{fill:var(--muted);font-size:11px}
svg .line{stroke:var(--line);fill:none}
svg .mark{stroke:var(--bad);stroke-dasharray:3 3;fill:none}
svg polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}
polyline.c0{stroke:var(--c0)}polyline.c1{stroke:var(--c1)}polyline.c2{stroke:var(--c2)}
polyline.c3{stroke:var(--c3)}polyline.c4{stroke:var(--c4)}
circle.c0{fill:var(--c0)}circle.c1{fill:var(--c1)}circle.c2{fill:var(--c2)}
circle.c3{fill:var(--c3)}circle.c4{fill:var(--c4)}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;font-variant-numeric:tabular-nums}
.legend span::before{content:\"\";display:inline-block;width:10px;height:10px;border-radius:3px;
margin-right:6px;background:currentColor}
.legend span{color:var(--text)}
.legend .c0::before{background:var(--c0)}.legend .c1::before{background:var(--c1)}
.legend .c2::before{background:var(--c2)}.legend .c3::before{background:var(--c3)}
.legend .c4::before{background:var(--c4)}
.incidents{padding:0;list-style:none}
.incidents li{border-left:3px solid var(--bad);background:var(--card);padding:8px 12px;margin:8px 0}
code{color:var(--bad)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(280px,100%),1fr));gap:14px}
.pictures img{width:100%;height:auto;border-radius:6px;image-rendering:pixelated;display:block}
.pictures figcaption{color:var(--muted);font-size:13px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;background:var(--card)}
th,td{text-align:left;padding:7px 10px;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--muted);font-weight:600;font-size:13px}
.entry{display:inline-block;margin-right:10px;color:var(--muted);font-size:13px}
.entry b{color:var(--text);font-weight:600}
summary{cursor:pointer}
pre{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px;overflow-x:auto;
font-size:13px}
";

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        put("config.toml", "[train]\nsteps = 400\n[data]\ndir = \"a<b>&c\"\n");
        let line = |step: u64| {
            let loss = 6.0 / step as f64;
            format!(
                "{{\"step\":{step},\"loss_d\":{loss},\"loss_g\":null,\"images_per_s\":100,\
                 \"sigma_g\":1.5,\"data_wait_percent\":0.5}}\n"
            )
        };
        put("stats.jsonl", &((1..=200).map(line).collect::<String>() + "{\"step\":20"));
        let incident = "{\"step\":150,\"incident\":\"samples_alike\",\"text\":\"<script>1 & 2\"}\n";
        put("incidents.jsonl", incident);
        put("metrics.jsonl", "{\"metric\":\"fid\",\"step\":200,\"value\":12.34567}\n");
        put("evaluations.jsonl", "{\"metric\":\"knn\",\"step\":200,\"value\":65.4321}\n");
        fs::create_dir(folder.path().join("images")).unwrap();
        for name in ["samples", "samples-00000100", "samples-00000050", "reals"] {
            let path = folder.path().join("images").join(format!("{name}.png"));
            image::RgbImage::new(4, 4).save(path).unwrap();
        }
        folder
    }

    /// Every opened element is closed, in order.
    fn balanced(page: &str) {
        let mut open = vec![];
        for tag in page.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').expect("a tag ends");
            let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap_or_default();
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else if !tag.ends_with('/') && !["!doctype", "meta", "img"].contains(&name) {
                open.push(name);
            }
        }
        assert_eq!(open, Vec::<&str>::new());
    }

    #[test]
    fn there_is_no_report_of_a_folder_that_is_no_run() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(html(folder.path()), Err(Error::Output { .. })));
        // Of another program.
        fs::write(folder.path().join("config.toml"), "[server]\nport = 80\n").unwrap();
        assert!(matches!(html(folder.path()), Err(Error::Output { .. })));
        // Of a run, cut since.
        fs::write(folder.path().join("config.toml"), "[trai").unwrap();
        fs::write(folder.path().join("stats.jsonl"), "").unwrap();
        html(folder.path()).unwrap();
    }

    #[test]
    fn a_report_holds_everything_within_itself() {
        let folder = folder();
        let page = fs::read_to_string(write(folder.path()).unwrap()).unwrap();
        for section in
            ["Incidents", "Training", "Health", "Throughput", "Pictures", "Metrics", "Settings"]
        {
            assert!(page.contains(&format!("<h2>{section}</h2>")), "{section}");
        }
        assert!(!page.contains("://") && !page.contains("<script") && !page.contains("url("));
        for source in page.split("src=\"").skip(1) {
            assert!(source.starts_with("data:image/png;base64,"));
        }
        assert_eq!(page.matches("<img ").count(), 4);
        let at = |what: &str| page.find(what).unwrap_or_else(|| panic!("no {what}"));
        assert!(at("alt=\"newest\"") < at("step 100") && at("step 100") < at(">step 50<"));
        let escaped = ["a&lt;b&gt;&amp;c", "&lt;script&gt;1 &amp; 2"];
        for text in ["step 200 of 400", "12.35", "65.43"].into_iter().chain(escaped) {
            assert!(page.contains(text), "{text}");
        }
        // The incident is marked in every curve.
        assert_eq!(page.matches("class=mark").count(), page.matches("<svg").count());
        balanced(&page);
    }

    #[test]
    fn a_run_that_has_only_begun_has_a_report_and_another_folder_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let error = html(folder.path()).unwrap_err().to_string();
        assert!(error.contains("config.toml"), "{error}");
        fs::write(folder.path().join("config.toml"), "").unwrap();
        let page = html(folder.path()).unwrap();
        assert!(page.contains("no statistics yet") && page.contains("step 0"), "{page}");
        balanced(&page);
    }

    #[test]
    fn of_many_incidents_the_newest_are_listed() {
        let folder = folder();
        let line = |step| format!("{{\"step\":{step},\"incident\":\"not_finite\"}}\n");
        let text: String = (1..=1000).map(line).collect();
        fs::write(folder.path().join("incidents.jsonl"), text).unwrap();
        let page = html(folder.path()).unwrap();
        assert_eq!(page.matches("<li>").count(), INCIDENTS);
        assert!(page.contains("step 801<") && !page.contains("step 800<"), "{page}");
        assert!(page.contains("and 800 before these"), "{page}");
        balanced(&page);
    }

    #[test]
    fn curves_stay_within_their_drawing_whatever_the_values() {
        for values in [vec![0.0], vec![5.0; 9], vec![-1e9, 1e9], vec![1e-9, 1.0, 1e9]] {
            let points: Vec<_> = (0..).map(f64::from).zip(values).collect();
            let svg = drawing("t", &[("a", points)], &[]);
            let line = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
            for point in line.split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=SIZE.0 - RIGHT).contains(&x), "{svg}");
                assert!((TOP..=SIZE.1 - BOTTOM).contains(&y), "{svg}");
            }
        }
    }

    #[test]
    fn numbers_are_short_and_ticks_are_round() {
        let texts = [0.0, 0.05, 1.0, 12.345678, 999.96, 31415.9, 2.5e7, 1e-9].map(short);
        assert_eq!(texts, ["0", "0.05", "1", "12.35", "1000", "31416", "2.5e7", "1.0e-9"]);
        assert_eq!([500.0, 12_000.0, 1.5e6].map(compact), ["500", "12k", "1.5M"]);
        assert_eq!(ticks((0.0, 10.0)), [0.0, 2.5, 5.0, 7.5, 10.0]);
        assert_eq!(ticks((-0.3, 0.3)).len(), 3);
    }
}
