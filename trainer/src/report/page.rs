use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::{Value, json};

use super::{Chart, Drawn, Mark};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What a browser may do for a page: nothing but what is in it.
const POLICY: &str =
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
/// And where it is watched, ask the watcher.
const WATCHED: &str = "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// A page: its parts from the top, and what its script draws.
#[derive(Debug)]
pub(crate) struct Page {
    title: String,
    /// What may change by itself, by name.
    parts: Vec<(String, Markup)>,
    /// The part before which the controls stand.
    controls: Option<usize>,
    drawn: Drawn,
}

impl Page {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), parts: vec![], controls: None, drawn: Drawn::default() }
    }

    #[must_use]
    pub(crate) fn titled(self, title: String) -> Self {
        Self { title, ..self }
    }

    pub(crate) fn part(&mut self, name: &str, content: &Markup) {
        self.parts.push((name.to_owned(), content.clone()));
    }

    pub(crate) fn section(&mut self, name: &str, title: &str, content: &Markup) {
        self.part(name, &html! { section { h2 { (title) } (content) } });
    }

    /// The choice of the axis and of smoothing stands here.
    pub(crate) fn controls(&mut self) {
        self.controls = Some(self.parts.len());
    }

    /// A section of charts: those that have a line. `none` is said where there is none.
    pub(crate) fn charts(&mut self, title: &str, charts: Vec<Chart>, none: &str) {
        let content = self.grid(charts);
        let content = content.unwrap_or_else(|| html! { p.muted { (none) } });
        self.section(title, title, &content);
    }

    /// Charts side by side: those that have a line; nothing where there is none.
    pub(crate) fn grid(&mut self, charts: Vec<Chart>) -> Option<Markup> {
        let charts: Vec<_> = charts.into_iter().filter(|chart| !chart.is_empty()).collect();
        let there = !charts.is_empty();
        let all: Vec<_> = charts.into_iter().map(|chart| self.chart(chart)).collect();
        there.then(|| html! { div.grid { @for chart in &all { (chart) } } })
    }

    fn chart(&mut self, chart: Chart) -> Markup {
        let number = self.drawn.charts.len();
        let content = html! {
            figure.chart data-chart=(number) {
                figcaption {
                    b { (chart.title()) } small { (chart.how()) " " span.log {} }
                }
                div.plot {}
                div.legend {}
                small.where {}
            }
        };
        self.drawn.charts.push(chart);
        content
    }

    /// A small chart without axes, for a line of a table.
    pub(crate) fn spark(&mut self, chart: Chart) -> Markup {
        let number = self.drawn.charts.len();
        self.drawn.charts.push(chart);
        html! { figure.spark data-chart=(number) { div.plot {} } }
    }

    /// What is marked in all charts.
    pub(crate) fn marks(&mut self, marks: Vec<Mark>) {
        self.drawn.marks = marks;
    }

    /// The parts and what is drawn, for a page that is watched.
    pub(crate) fn to_json(&self) -> Value {
        let parts: Vec<_> = self.parts.iter().map(|(name, html)| json!([name, html.0])).collect();
        json!({ "parts": parts, "data": self.drawn })
    }

    /// The whole page. `live` is the name of what it shows where it is watched; an empty one is everything.
    pub(crate) fn to_html(&self, live: Option<&str>) -> String {
        // JSON has "<" in strings alone.
        let data = json!(self.drawn).to_string().replace('<', "\\u003c");
        let policy = if live.is_some() { WATCHED } else { POLICY };
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    link rel="icon" href="data:,";
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) }
                }
                body data-live=[live] {
                    header {
                        h1 { (self.title) }
                        @if live.is_some_and(|name| !name.is_empty()) {
                            p { a href="/" { "all runs" } }
                        }
                        @if live.is_some() { p id="told" role="status" {} }
                    }
                    main {
                        noscript { p.muted { "The curves are drawn by a script within this page." } }
                        @for (number, (name, content)) in self.parts.iter().enumerate() {
                            @if self.controls == Some(number) { (controls()) }
                            div data-part=(name) { (content) }
                        }
                    }
                    p.unseen id="said" aria-live="polite" {}
                    script type="application/json" id="data" { (PreEscaped(data)) }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string()
    }
}

/// What all charts of a page have in common.
fn controls() -> Markup {
    html! {
        div.controls role="group" aria-label="Curves" {
            fieldset {
                label { input type="radio" name="axis" value="steps" checked; "steps" }
                label { input type="radio" name="axis" value="minutes"; "time" }
            }
            label {
                "smoothing"
                input type="range" name="smooth" min="0" max="0.98" step="0.02" value="0"
                    aria-label="smoothing of the curves";
                output { "0" }
            }
        }
    }
}
