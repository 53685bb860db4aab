//! What the script of a page draws: charts of curves over steps and minutes.

use serde::Serialize;
use serde_json::{Map, Value};

use super::number;
use super::series::Point;

/// Everything that a page's script draws.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Drawn {
    /// In the order of the page.
    pub(crate) charts: Vec<Chart>,
    /// What is marked in all of them.
    pub(crate) marks: Vec<Mark>,
}

/// Something that happened.
#[derive(Debug, Serialize)]
pub(crate) struct Mark {
    pub(crate) step: f64,
    pub(crate) minutes: f64,
    pub(crate) text: String,
}

/// A drawing with axes.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Chart {
    title: String,
    /// How it is to be read.
    how: String,
    /// Where lines have their points; several may share one.
    x: Vec<Axis>,
    lines: Vec<Line>,
    /// A small one without axes.
    spark: bool,
}

#[derive(Debug, Serialize, PartialEq)]
struct Axis {
    steps: Vec<f64>,
    minutes: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    /// Which of the chart's [`Axis`].
    x: usize,
    mean: Vec<f64>,
    /// Where points stand for several values.
    #[serde(skip_serializing_if = "Option::is_none")]
    low: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    high: Option<Vec<f64>>,
    /// Points are shown, the newest and the best of them by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    best: Option<usize>,
}

impl Chart {
    pub(crate) fn new(title: impl Into<String>, how: impl Into<String>) -> Self {
        Self { title: title.into(), how: how.into(), ..Self::default() }
    }

    pub(crate) fn spark(title: impl Into<String>) -> Self {
        Self { spark: true, ..Self::new(title, "") }
    }

    /// With a line more; no points are no line.
    #[must_use]
    pub(crate) fn line(self, name: impl Into<String>, points: &[Point]) -> Self {
        self.with(name.into(), points, None)
    }

    /// With a line of single values, of which the greatest, or the least, is the best.
    #[must_use]
    pub(crate) fn measured(self, name: impl Into<String>, points: &[Point], high: bool) -> Self {
        let sign = if high { 1.0 } else { -1.0 };
        // Of equals the first, as checkpoints are kept.
        let best = (0..points.len())
            .rev()
            .max_by(|a, b| (sign * points[*a].mean).total_cmp(&(sign * points[*b].mean)));
        self.with(name.into(), points, best)
    }

    fn with(mut self, name: String, points: &[Point], best: Option<usize>) -> Self {
        if points.is_empty() {
            return self;
        }
        let column = |of: fn(&Point) -> f64| points.iter().map(|p| rounded(of(p))).collect();
        let axis = Axis { steps: column(|p| p.step), minutes: column(|p| p.minutes) };
        let x = self.x.iter().position(|other| *other == axis).unwrap_or_else(|| {
            self.x.push(axis);
            self.x.len() - 1
        });
        let several = points.iter().any(|point| point.low < point.high);
        let end = |of: fn(&Point) -> f64| several.then(|| column(of));
        let (low, high) = (end(|p| p.low), end(|p| p.high));
        self.lines.push(Line { name, x, mean: column(|p| p.mean), low, high, best });
        self
    }

    /// Whether it has no line.
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    pub(crate) fn how(&self) -> &str {
        &self.how
    }
}

/// Six significant digits, which is more than a screen shows, and within what drawing can reckon with.
fn rounded(value: f64) -> f64 {
    let value = if value.abs() < 1e-300 { 0.0 } else { value.clamp(-1e300, 1e300) };
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// A metric that is drawn: what its lines begin with, where the value is in them, whether more is better, the chart and the
/// line's name.
pub(super) type Metric = (&'static str, &'static [&'static str], bool, &'static str, &'static str);

pub(super) const METRICS: [Metric; 9] = [
    ("linear_probe_bn_crelu", &["top1"], true, "Linear probes", "BN+CReLU"),
    ("linear_probe_avepool", &["top1"], true, "Linear probes", "AvePool"),
    ("knn_cosine_avepool", &["top1", "1"], true, "Nearest neighbours", "1, cosine"),
    ("knn_cosine_avepool", &["top1", "5"], true, "Nearest neighbours", "5, cosine"),
    ("fid", &["value"], false, "Fréchet distance", "FID"),
    ("fd-", &["value"], false, "Fréchet distance", "distance"),
    ("agreement-", &["reconstructions"], true, "Agreement of reconstructions", "G(E(x))"),
    ("infomax_svm_map", &["top1"], true, "Deep InfoMax's probes", "SVM, map"),
    ("infomax_mlp_map", &["top1"], true, "Deep InfoMax's probes", "MLP, map"),
];

/// How charts of metrics are to be read.
const HOW: [(&str, &str); 5] = [
    ("Linear probes", "of E's features, % of images"),
    ("Nearest neighbours", "of E's features, % of images"),
    ("Fréchet distance", "of generated images from real ones; 0 is best"),
    ("Agreement of reconstructions", "% of G(E(x)) that a classifier takes for the class of x"),
    ("Deep InfoMax's probes", "of E's features, % of images"),
];

/// How a chart of metrics is to be read.
pub(super) fn how(title: &str) -> &'static str {
    HOW.iter().find(|(of, _)| *of == title).map_or("", |(_, how)| how)
}

/// The charts of what was measured of averaged weights on the way and at the end, `minutes` by step.
pub(crate) fn of_metrics(lines: &[Map<String, Value>], minutes: impl Fn(f64) -> f64) -> Vec<Chart> {
    HOW.iter()
        .map(|(title, how)| {
            let metrics = METRICS.iter().filter(|metric| metric.3 == *title);
            metrics.fold(Chart::new(*title, *how), |chart, (metric, path, high, _, name)| {
                let points = of_metric(lines, metric, path, &minutes);
                chart.measured(*name, &points, *high)
            })
        })
        .filter(|chart| !chart.is_empty())
        .collect()
}

/// What lines must have in common for their values to be of one curve.
const PROTOCOL: [&str; 8] = [
    "metric",
    "split",
    "crop",
    "train_images",
    "test_images",
    "steps",
    "images",
    "reference_images",
];

/// Values of a metric by step, of averaged weights and the whole prior. Of several protocols the one that has most; of
/// several lines at a step the first, which is the run's own.
pub(crate) fn of_metric(
    lines: &[Map<String, Value>],
    metric: &str,
    path: &[&str],
    minutes: impl Fn(f64) -> f64,
) -> Vec<Point> {
    let mut curves: Vec<(Vec<Option<&Value>>, Vec<Point>)> = vec![];
    for line in lines {
        let text = |key| line.get(key).and_then(Value::as_str);
        let own = text("metric").is_some_and(|name| name.starts_with(metric));
        let usual = text("weights").is_none_or(|weights| weights == "average");
        if !own || !usual || line.contains_key("truncation") {
            continue;
        }
        let value = path.iter().skip(1).fold(line.get(path[0]), |value, key| value?.get(*key));
        let value = value.and_then(Value::as_f64).filter(|value| value.is_finite());
        let (Some(step), Some(mean)) = (number(line, "step"), value) else { continue };
        let protocol: Vec<_> = PROTOCOL.iter().map(|key| line.get(*key)).collect();
        let of = curves.iter().position(|(other, _)| *other == protocol).unwrap_or_else(|| {
            curves.push((protocol, vec![]));
            curves.len() - 1
        });
        let points = &mut curves[of].1;
        if points.iter().all(|point| point.step != step) {
            points.push(Point { step, minutes: minutes(step), mean, low: mean, high: mean });
        }
    }
    let most = curves.into_iter().rev().max_by_key(|(_, points)| points.len());
    let mut points = most.map(|(_, points)| points).unwrap_or_default();
    points.sort_by(|a, b| a.step.total_cmp(&b.step));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: &[f64]) -> Vec<Point> {
        let point = |(step, value): (usize, &f64)| {
            let (step, mean) = (step as f64, *value);
            Point { step, minutes: 2.0 * step, mean, low: mean, high: mean }
        };
        values.iter().enumerate().map(point).collect()
    }

    #[test]
    fn lines_of_the_same_steps_share_them_and_bands_are_there_where_points_stand_for_several() {
        let mut wide = points(&[1.0, 2.0]);
        wide[1].high = 9.0;
        let chart = Chart::new("t", "h").line("a", &points(&[0.123_456_789, 1e9]));
        let chart = chart.line("none", &[]).line("b", &wide).line("c", &points(&[1.0]));
        let json = serde_json::to_value(&chart).unwrap();
        let of = |i: usize, key: &str| json["lines"][i][key].clone();
        assert_eq!(json["x"].as_array().unwrap().len(), 2);
        assert_eq!([of(0, "x"), of(1, "x"), of(2, "x")], [0, 0, 1]);
        assert_eq!(of(0, "mean"), serde_json::json!([0.123_457, 1e9]));
        assert!(of(0, "low").is_null());
        assert_eq!(of(1, "high"), serde_json::json!([1.0, 9.0]));
        assert_eq!(json["x"][0]["minutes"], serde_json::json!([0.0, 2.0]));
        assert_eq!([5e-324, 1.7e308, f64::MIN].map(rounded), [0.0, 1e300, -1e300]);
    }

    #[test]
    fn the_best_is_the_first_of_the_greatest_or_of_the_least() {
        let best = |high| {
            let chart = Chart::new("t", "h").measured("a", &points(&[2.0, 3.0, 3.0, 2.0]), high);
            serde_json::to_value(&chart).unwrap()["lines"][0]["best"].clone()
        };
        assert_eq!((best(true), best(false)), (1.into(), 0.into()));
    }

    #[test]
    fn metrics_of_averaged_weights_are_drawn_once_a_step() {
        let lines: Vec<Map<String, Value>> = [
            r#"{"metric":"linear_probe_bn_crelu","step":20,"top1":50,"weights":"average"}"#,
            r#"{"metric":"linear_probe_bn_crelu","step":10,"top1":40,"weights":"average"}"#,
            r#"{"metric":"linear_probe_bn_crelu","step":20,"top1":51,"weights":"average"}"#,
            r#"{"metric":"linear_probe_bn_crelu","step":20,"top1":9,"weights":"initial"}"#,
            r#"{"metric":"knn_cosine_avepool","step":20,"top1":{"1":30,"5":35},"weights":"average"}"#,
            r#"{"metric":"fd-x","step":20,"value":7,"weights":"average","truncation":0.5}"#,
            r#"{"metric":"fd-x","step":20,"value":null,"weights":"average"}"#,
            r#"{"metric":"linear_probe_bn_crelu","step":30,"top1":60,"weights":"average","split":"other"}"#,
        ]
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
        let charts = of_metrics(&lines, |step| step / 10.0);
        let titles: Vec<_> = charts.iter().map(Chart::title).collect();
        assert_eq!(titles, ["Linear probes", "Nearest neighbours"]);
        let json = serde_json::to_value(&charts).unwrap();
        assert_eq!(json[0]["lines"][0]["mean"], serde_json::json!([40.0, 50.0]));
        assert_eq!(json[0]["x"][0]["minutes"], serde_json::json!([1.0, 2.0]));
        assert_eq!(json[0]["lines"][0]["best"], 1);
        assert_eq!(json[1]["lines"][1]["mean"], serde_json::json!([35.0]));
    }
}
