use std::path::{Path, PathBuf};

use common::files::replace_file;
use maud::{Markup, html};

use super::{
    Chart, HEALTH, History, Page, SPEED, Series, Source, TRAINING, chart, configuration, name_of,
    pictures, statistics,
};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::evaluations;

/// One of several runs.
struct Run {
    name: String,
    folder: PathBuf,
    stats: Series,
    found: Vec<serde_json::Map<String, serde_json::Value>>,
    config: Option<Config>,
    history: History,
}

/// Writes a page that shows runs side by side: curves of each, the settings in which they differ, pictures.
///
/// # Errors
/// [`Error::Output`] if one is not the folder of a run; [`Error::Io`].
pub fn compare(runs: &[PathBuf], out: &Path) -> Result<()> {
    let page = page(runs)?.to_html(None);
    replace_file(out, page.as_bytes()).map_err(Error::io("write", out))
}

fn page(folders: &[PathBuf]) -> Result<Page> {
    let mut runs: Vec<Run> = vec![];
    for folder in folders {
        let (text, stats) = (configuration(folder)?, statistics(folder));
        // Runs of the same name are told apart by where they are.
        let short = name_of(folder);
        let again = folders.iter().filter(|other| name_of(other) == short).count() > 1;
        let name = if again { folder.display().to_string() } else { short };
        let history = History::read(folder, &text, &stats);
        let config = Config::parse(&text).ok().map(|config| config.without_secrets());
        let found = evaluations::of(folder);
        runs.push(Run { name, folder: folder.clone(), stats, found, config, history });
    }
    let names: Vec<_> = runs.iter().map(|run| run.name.as_str()).collect();
    let mut page = Page::new(names.join(", "));
    page.controls();
    page.section("runs", "Runs", &table(&runs));
    page.section("settings", "Settings that differ", &differences(&runs));
    page.charts("Metrics", metrics(&runs), "none yet");
    for (title, charts) in
        [("Training", &TRAINING[..]), ("Health", &HEALTH), ("Throughput", &SPEED)]
    {
        let charts = charts.iter().flat_map(|(title, how, keys)| {
            let runs = &runs;
            keys.iter().map(move |(key, name)| {
                let title =
                    if keys.len() == 1 { (*title).to_owned() } else { format!("{title}: {name}") };
                let chart = Chart::new(title, *how);
                runs.iter().fold(chart, |chart, run| chart.line(&*run.name, &run.stats.points(key)))
            })
        });
        page.charts(title, charts.collect(), "no statistics yet");
    }
    for run in &runs {
        let content = pictures::of(&run.folder.join("images"), &Source::Inline);
        let title = format!("Pictures of {}", run.name);
        page.section(&title, &title, &content);
    }
    Ok(page)
}

fn table(runs: &[Run]) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table {
                thead { tr { th { "run" } th { "step" } th { "state" } th { "trained" } th { "folder" } } }
                tbody {
                    @for run in runs {
                        tr {
                            th { (run.name) } td { (run.history.done) } td { (run.history.status()) }
                            td { (super::sessions::time(run.history.minutes)) }
                            td { (run.folder.display()) }
                        }
                    }
                }
            }
        }
    }
}

/// A row for each key in which they differ.
fn differences(runs: &[Run]) -> Markup {
    let all: Vec<_> = runs.iter().map(|run| run.config.as_ref().map(Config::flat)).collect();
    let keys = all
        .iter()
        .flatten()
        .next()
        .map_or(vec![], |keys| keys.iter().map(|(key, _)| key.clone()).collect());
    let value = |of: &Option<Vec<(String, String)>>, key: &String| {
        let found = of.as_ref().and_then(|all| all.iter().find(|(name, _)| name == key));
        found.map_or_else(|| "cannot be read".to_owned(), |(_, value)| value.clone())
    };
    let rows: Vec<(String, Vec<String>)> = keys
        .into_iter()
        .map(|key| {
            let values = all.iter().map(|of| value(of, &key)).collect();
            (key, values)
        })
        .filter(|(_, values): &(String, Vec<String>)| values.iter().any(|v| *v != values[0]))
        .collect();
    html! {
        @if rows.is_empty() { (super::none("none")) } @else {
            div.scroll tabindex="0" {
                table {
                    thead { tr { th { "key" } @for run in runs { th { (run.name) } } } }
                    tbody {
                        @for (key, values) in &rows {
                            tr { th { (key) } @for value in values { td { (value) } } }
                        }
                    }
                }
            }
        }
    }
}

/// One chart a metric, a line a run.
fn metrics(runs: &[Run]) -> Vec<Chart> {
    let metric = |(metric, path, high, title, name): &chart::Metric| {
        let chart = Chart::new(format!("{title}: {name}"), chart::how(title));
        runs.iter().fold(chart, |chart, run| {
            let points =
                chart::of_metric(&run.found, metric, path, |step| run.stats.minutes_at(step));
            chart.measured(&*run.name, &points, *high)
        })
    };
    chart::METRICS.iter().map(metric).collect()
}
