//! A study's results, read from the folders of its runs: `results.json`, `results.md`, `index.html`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use common::files;
use maud::{Markup, html};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Job, Study};
use crate::error::{Error, Result};
use crate::evaluations;
use crate::report::{self, Chart, Page, Series};

/// What is read from a run's folder.
#[derive(Debug)]
struct Measure {
    /// Its name in tables.
    name: &'static str,
    /// Its name in JSON.
    key: &'static str,
    decimals: usize,
    from: From,
}

#[derive(Debug)]
enum From {
    /// Lines of [`evaluations::of`] of these metrics (by their beginning) and weights, and where in them.
    Metrics(&'static [&'static str], &'static str, fn(&Map<String, Value>) -> Option<f64>),
    /// A key of the last line of `stats.jsonl`.
    Stats(&'static str),
    /// Minutes of all steps by `stats.jsonl`: without pictures, probes and checkpoints, and without steps that a
    /// kill or a rollback undid.
    Minutes,
}

fn top1(line: &Map<String, Value>) -> Option<f64> {
    line.get("top1")?.as_f64()
}

/// Of the whole prior: lines of truncated latents are passed over.
fn whole(line: &Map<String, Value>) -> Option<&Map<String, Value>> {
    line.get("truncation").is_none().then_some(line)
}

const MEASURES: [Measure; 9] = [
    Measure {
        name: "probe BN+CReLU, %",
        key: "probe_bn_crelu",
        decimals: 1,
        from: From::Metrics(&["linear_probe_bn_crelu"], "average", top1),
    },
    Measure {
        name: "probe AvePool, %",
        key: "probe_avepool",
        decimals: 1,
        from: From::Metrics(&["linear_probe_avepool"], "average", top1),
    },
    Measure {
        name: "5-NN, %",
        key: "knn5_cosine",
        decimals: 1,
        from: From::Metrics(&["knn_cosine_avepool"], "average", |line| {
            line.get("top1")?.get("5")?.as_f64()
        }),
    },
    Measure {
        name: "Fréchet distance",
        key: "frechet",
        decimals: 2,
        from: From::Metrics(&["fid", "fd-"], "average", |line| whole(line)?.get("value")?.as_f64()),
    },
    Measure {
        name: "class score",
        key: "class_score",
        decimals: 3,
        from: From::Metrics(&["fid", "fd-"], "average", |line| {
            let scores = whole(line)?.get("scores")?.as_object()?;
            let score = |name: &str| name == "is" || name.starts_with("cs-");
            scores.iter().find(|(name, _)| score(name)).and_then(|(_, value)| value.as_f64())
        }),
    },
    Measure {
        name: "reconstruction error",
        key: "reconstruction",
        decimals: 3,
        from: From::Stats("reconstruction"),
    },
    Measure { name: "variety of G", key: "variety", decimals: 2, from: From::Stats("nearest") },
    Measure {
        name: "untrained probe, %",
        key: "probe_untrained",
        decimals: 1,
        from: From::Metrics(&["linear_probe_bn_crelu"], "initial", top1),
    },
    Measure { name: "minutes", key: "minutes", decimals: 2, from: From::Minutes },
];

/// Minutes of `steps` steps: each line says how long one took since the line before; those behind the last
/// line take as long as those before it. None where a line does not say, or steps do not rise.
fn minutes(stats: &[Map<String, Value>], steps: u64) -> Option<f64> {
    let number = |line: &Map<String, Value>, key| line.get(key)?.as_f64();
    let (mut before, mut seconds, mut each) = (0.0, 0.0, None);
    for line in stats {
        let (step, took) = (number(line, "step")?, number(line, "step_seconds")?);
        if step <= before {
            return None;
        }
        seconds += (step - before) * took;
        (before, each) = (step, Some(took));
    }
    Some((seconds + (steps as f64 - before).max(0.0) * each?) / 60.0)
}

/// A finished run's measures, by key.
type Values = BTreeMap<&'static str, f64>;

/// What came out of the runs of a row.
#[derive(Debug, Serialize)]
struct RowResults<'a> {
    /// Its place in the study.
    #[serde(skip)]
    row: usize,
    name: &'a str,
    note: &'a str,
    set: &'a [String],
    /// By seed.
    runs: BTreeMap<u64, Values>,
    mean: Values,
    /// Standard deviation over seeds, of two or more.
    deviation: Values,
    /// Mean and standard deviation of the differences from the study's first row, seed by seed.
    difference: Values,
    difference_deviation: Values,
}

#[derive(Debug, Serialize)]
struct Results<'a> {
    title: &'a str,
    preset: &'a str,
    set: &'a [String],
    rows: Vec<RowResults<'a>>,
}

/// Whether a run has a line of a metric at its last step.
pub(super) fn measured(run: &Path, steps: u64, metrics: &[&str], weights: &str) -> bool {
    lines_of(run, steps, metrics, weights).next_back().is_some()
}

fn lines_of(
    run: &Path,
    steps: u64,
    metrics: &[&str],
    weights: &str,
) -> impl DoubleEndedIterator<Item = Map<String, Value>> {
    let wanted = move |line: &Map<String, Value>| {
        let text = |key| line.get(key).and_then(Value::as_str).unwrap_or_default();
        // Initial weights are those of every step.
        (weights == "initial" || line.get("step").and_then(Value::as_u64) == Some(steps))
            && text("weights") == weights
            && metrics.iter().any(|name| text("metric").starts_with(name))
    };
    evaluations::of(run).into_iter().filter(wanted)
}

fn values(job: &Job, out: &Path) -> Values {
    let run = job.folder(out);
    let stats = evaluations::lines(&run.join("stats.jsonl"));
    let value = |measure: &Measure| match measure.from {
        From::Metrics(names, weights, of) => lines_of(&run, job.config.train.steps, names, weights)
            .filter_map(|l| of(&l))
            .next_back(),
        From::Stats(key) => stats.last().and_then(|line| line.get(key)?.as_f64()),
        From::Minutes => minutes(&stats, job.config.train.steps),
    };
    MEASURES.iter().filter_map(|m| Some((m.key, value(m)?))).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn deviation(values: &[f64]) -> Option<f64> {
    let (mean, n) = (mean(values), values.len());
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (n > 1).then(|| (squares / (n - 1) as f64).sqrt())
}

/// Mean and deviation of each measure.
fn summary(runs: &BTreeMap<u64, Values>) -> (Values, Values) {
    let (mut means, mut deviations) = (Values::new(), Values::new());
    for Measure { key, .. } in &MEASURES {
        let all: Vec<f64> = runs.values().filter_map(|values| values.get(key).copied()).collect();
        if !all.is_empty() {
            means.insert(key, mean(&all));
        }
        if let Some(deviation) = deviation(&all) {
            deviations.insert(key, deviation);
        }
    }
    (means, deviations)
}

/// Of the rows of a study that are `shown`, with their finished runs.
fn results<'a>(study: &'a Study, shown: &[bool], runs: &[BTreeMap<u64, Values>]) -> Results<'a> {
    let shown = || (0..study.rows.len()).filter(|row| shown[*row]);
    let rows = shown().map(|index| {
        let (row, own) = (&study.rows[index], &runs[index]);
        let (mean, deviation) = summary(own);
        let apart = |(seed, values): (&u64, &Values)| {
            let first = runs[shown().next()?].get(seed)?;
            let difference = |(key, value): (&&'static str, &f64)| {
                first.get(*key).map(|first| (*key, value - first))
            };
            Some((*seed, values.iter().filter_map(difference).collect()))
        };
        let differences: BTreeMap<u64, Values> = own.iter().filter_map(apart).collect();
        let (difference, difference_deviation) = summary(&differences);
        RowResults {
            row: index,
            name: &row.name,
            note: &row.note,
            set: &row.set,
            runs: own.clone(),
            mean,
            deviation,
            difference,
            difference_deviation,
        }
    });
    Results { title: &study.title, preset: &study.preset, set: &study.set, rows: rows.collect() }
}

/// Writes the results of all finished runs into the study's folder: of rows with chosen jobs and of all others that
/// have some. Returns those of `results.md`.
///
/// # Errors
/// [`Error::Io`].
pub fn write(study: &Study, jobs: &[Job], out: &Path) -> Result<String> {
    let mut runs = vec![BTreeMap::new(); study.rows.len()];
    let mut shown = vec![false; study.rows.len()];
    for job in jobs {
        let trained = super::work::trained(job, out);
        if trained {
            runs[job.row].insert(job.config.train.seed, values(job, out));
        }
        shown[job.row] |= job.chosen || trained;
    }
    let results = results(study, &shown, &runs);
    let json = serde_json::to_string_pretty(&results)
        .map_err(|e| Error::io("write", out.join("results.json"))(std::io::Error::other(e)))?;
    let text = markdown(&results);
    for (name, text) in [
        ("results.json", &(json + "\n")),
        ("results.md", &text),
        ("index.html", &page(&results, jobs, out)),
    ] {
        let path = out.join(name);
        files::replace_file(&path, text.as_bytes()).map_err(Error::io("write", &path))?;
    }
    Ok(text)
}

/// Heading, then a row for each of the study's: means ± deviations, and differences from the first.
fn tables(results: &Results<'_>) -> [(Vec<String>, Vec<Vec<String>>); 2] {
    let found = |m: &&Measure| results.rows.iter().any(|row| row.mean.contains_key(m.key));
    let measures: Vec<_> = MEASURES.iter().filter(found).collect();
    let cell = |m: &Measure, mean: &Values, deviation: &Values, sign: bool| {
        let Some(mean) = mean.get(m.key) else { return "–".to_owned() };
        let decimals = m.decimals;
        let mean = if sign { format!("{mean:+.decimals$}") } else { format!("{mean:.decimals$}") };
        let deviation = deviation.get(m.key).map(|d| format!(" ± {d:.decimals$}"));
        mean + &deviation.unwrap_or_default()
    };
    let heading = |first: &str| {
        let names = measures.iter().map(|m| m.name.to_owned());
        [first.to_owned(), "seeds".to_owned()].into_iter().chain(names).collect()
    };
    let line = |row: &RowResults<'_>, mean: &Values, deviation: &Values, sign: bool| {
        let cells = measures.iter().map(|m| cell(m, mean, deviation, sign));
        [row.name.to_owned(), row.runs.len().to_string()].into_iter().chain(cells).collect()
    };
    let all = results.rows.iter().map(|row| line(row, &row.mean, &row.deviation, false));
    let apart = results.rows.iter().skip(1);
    let apart = apart.map(|row| line(row, &row.difference, &row.difference_deviation, true));
    let against = format!("less {}", results.rows[0].name);
    [(heading("row"), all.collect()), (heading(&against), apart.collect())]
}

const HOW: &str = "Mean ± standard deviation over seeds; differences are taken seed by seed.";

fn markdown(results: &Results<'_>) -> String {
    let mut text = format!("# {}\n\nPreset `{}`", results.title, results.preset);
    let _ = match results.set {
        [] => writeln!(text, ". {HOW}"),
        set => writeln!(text, " with `{}`. {HOW}", set.join("`, `")),
    };
    for (heading, rows) in tables(results).iter().filter(|(_, rows)| !rows.is_empty()) {
        let dashes = vec!["---"; heading.len()].join(" | ");
        let _ = writeln!(text, "\n| {} |\n| {dashes} |", heading.join(" | "));
        for row in rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
    }
    text.push('\n');
    for row in &results.rows {
        let set = if row.set.is_empty() { "as the preset".into() } else { row.set.join("`, `") };
        let _ = writeln!(text, "- **{}** (`{set}`): {}", row.name, row.note);
    }
    text
}

/// Curves of a row: what, how to read it, and the key of `stats.jsonl`.
const CURVES: [(&str, &str, &str); 3] = [
    ("Reconstruction", "mean |x − G(E(x))| of fixed images", "reconstruction"),
    ("Variety of G(z)", "distance to the nearest, over that of real images", "nearest"),
    ("Loss of D", "scores of 0 cost two for each term", "loss_d"),
];

fn page(results: &Results<'_>, jobs: &[Job], out: &Path) -> String {
    let mut page = Page::new(results.title);
    let set = results.set.join(" ");
    page.part("study", &html! { p.muted { "preset " (results.preset) " " (set) } });
    page.controls();
    let tables = tables(results);
    let content = html! {
        @for (heading, rows) in tables.iter().filter(|(_, rows)| !rows.is_empty()) {
            div.scroll tabindex="0" {
                table {
                    thead { tr { @for cell in heading { th { (cell) } } } }
                    // A value and its deviation stay on one line.
                    tbody { @for row in rows { tr { @for cell in row { td { (cell.replace(' ', "\u{a0}")) } } } } }
                }
            }
            p {}
        }
        p.muted { (HOW) }
    };
    page.section("results", "Results", &content);
    for row in &results.rows {
        let runs: Vec<_> = jobs
            .iter()
            .filter(|job| job.row == row.row)
            .map(|job| (format!("seed {}", job.config.train.seed), job.folder(out)))
            .collect();
        let content = of_row(&mut page, row, &runs);
        page.section(row.name, row.name, &content);
    }
    page.to_html(None)
}

/// Curves and pictures of a row, by seed.
fn of_row(page: &mut Page, row: &RowResults<'_>, runs: &[(String, PathBuf)]) -> Markup {
    let keys = CURVES.map(|(.., key)| key);
    let mut probe = Chart::new("Probe", "BN+CReLU, % of test images, in training");
    let mut charts = CURVES.map(|(title, how, _)| Chart::new(title, how));
    for (name, run) in runs {
        let stats = Series::read(&run.join("stats.jsonl"), &keys);
        let found = evaluations::of(run);
        let points = report::of_metric(&found, "linear_probe_bn_crelu", &["top1"], |step| {
            stats.minutes_at(step)
        });
        probe = probe.measured(name, &points, true);
        for (chart, key) in charts.iter_mut().zip(keys) {
            *chart = std::mem::take(chart).line(name, &stats.points(key));
        }
    }
    let charts = page.grid([probe].into_iter().chain(charts).collect());
    let pictures = runs.iter().flat_map(|(name, run)| {
        ["samples", "reconstructions"].map(|kind| {
            let path = run.join("images").join(format!("{kind}.png"));
            report::picture(&format!("{kind}, {name}"), &path)
        })
    });
    let pictures: Vec<_> = pictures.flatten().collect();
    html! {
        p { (row.note) }
        p.muted { (row.set.join(" ")) }
        @if let Some(charts) = charts { (charts) }
        div.pictures { @for picture in &pictures { (picture) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(runs: &[(&str, u64, f64)]) -> String {
        let row = |name: &str| super::super::Row {
            name: name.into(),
            note: format!("why {name}"),
            set: vec![],
        };
        let study = Study {
            title: "A < B".into(),
            preset: "cifar10".into(),
            set: vec!["train.steps=7".into()],
            seeds: vec![0, 1],
            rows: vec![row("base"), row("det_e")],
        };
        let mut found = vec![BTreeMap::new(); 2];
        for (name, seed, value) in runs {
            let row = usize::from(*name == "det_e");
            found[row].insert(*seed, Values::from([("probe_bn_crelu", *value)]));
        }
        let results = results(&study, &[true; 2], &found);
        let html = page(&results, &[], Path::new("/nowhere"));
        assert!(html.contains("A &lt; B") && !html.contains("A < B"));
        markdown(&results)
    }

    #[test]
    fn a_table_has_means_deviations_and_paired_differences() {
        let text = finished(&[
            ("base", 0, 50.0),
            ("base", 1, 52.0),
            ("det_e", 0, 45.0),
            ("det_e", 1, 46.0),
        ]);
        assert!(text.contains("| base | 2 | 51.0 ± 1.4 |\n| det_e | 2 | 45.5 ± 0.7 |"), "{text}");
        // −5 and −6 by seed.
        assert!(text.contains("| det_e | 2 | -5.5 ± 0.7 |"), "{text}");
        assert!(text.contains("why det_e") && text.contains("`train.steps=7`"), "{text}");
    }

    #[test]
    fn minutes_are_those_of_all_steps_or_none() {
        let minutes = |text: &str, steps| {
            let lines: Vec<_> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            minutes(&lines, steps)
        };
        let two = "{\"step\":10,\"step_seconds\":3}\n{\"step\":40,\"step_seconds\":1.0}\n";
        assert_eq!(minutes(two, 40), Some(1.0));
        assert_eq!(minutes(two, 100), Some(2.0), "behind the last line");
        assert_eq!(minutes("", 40), None);
        for odd in [
            "{\"step\":41}\n",
            "{\"step\":41,\"step_seconds\":null}\n",
            "{\"step\":40,\"step_seconds\":1}\n",
        ] {
            assert_eq!(minutes(&format!("{two}{odd}"), 50), None, "{odd}");
        }
    }

    #[test]
    fn a_row_that_is_not_done_shows_no_number_and_one_seed_no_deviation() {
        let text = finished(&[("base", 0, 50.0)]);
        assert!(text.contains("| base | 1 | 50.0 |\n| det_e | 0 | – |"), "{text}");
        // Another seed's run is no pair.
        let text = finished(&[("base", 0, 50.0), ("det_e", 1, 40.0)]);
        assert!(text.contains("| less base | seeds | probe BN+CReLU, % |"), "{text}");
        assert!(text.ends_with("why det_e\n") && text.contains("| det_e | 1 | – |"), "{text}");
    }
}
