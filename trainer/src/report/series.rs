//! The curves of a file of JSON lines, in memory that its length has no part in: a month's statistics are
//! hundreds of megabytes, and the report is written by the process that trains.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::number;
use crate::evaluations::each_line;

/// Points of a curve: never more, and of many at least half as many.
pub(super) const POINTS: usize = 600;

/// A point of a curve, which stands for one value or for several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    /// Mean step.
    pub(crate) step: f64,
    /// Mean minute of training.
    pub(crate) minutes: f64,
    /// Mean value.
    pub(crate) mean: f64,
    /// Least value.
    pub(crate) low: f64,
    /// Greatest value.
    pub(crate) high: f64,
}

/// So many values: sums of steps, minutes and values, and the ends.
#[derive(Clone, Copy, Debug)]
struct Piece {
    sums: Point,
    count: usize,
}

impl Piece {
    fn join(self, other: Self) -> Self {
        let (a, b) = (self.sums, other.sums);
        let sums = Point {
            step: a.step + b.step,
            minutes: a.minutes + b.minutes,
            mean: a.mean + b.mean,
            low: a.low.min(b.low),
            high: a.high.max(b.high),
        };
        Self { sums, count: self.count + other.count }
    }

    fn point(&self) -> Point {
        let (sums, n) = (self.sums, self.count as f64);
        Point { step: sums.step / n, minutes: sums.minutes / n, mean: sums.mean / n, ..sums }
    }
}

/// A curve in pieces of so many values each; the last may have fewer.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    pieces: Vec<Piece>,
    of: usize,
}

impl Default for Curve {
    fn default() -> Self {
        Self { pieces: vec![], of: 1 }
    }
}

impl Curve {
    pub(crate) fn push(&mut self, step: f64, minutes: f64, value: f64) {
        let sums = Point { step, minutes, mean: value, low: value, high: value };
        let one = Piece { sums, count: 1 };
        match self.pieces.last_mut() {
            Some(last) if last.count < self.of => *last = last.join(one),
            _ => {
                if self.pieces.len() == POINTS {
                    let join = |pair: &[Piece]| pair.iter().copied().reduce(Piece::join);
                    self.pieces = self.pieces.chunks(2).filter_map(join).collect();
                    self.of *= 2;
                }
                self.pieces.push(one);
            }
        }
    }

    pub(crate) fn points(&self) -> Vec<Point> {
        self.pieces.iter().map(Piece::point).collect()
    }
}

/// What a report needs of `stats.jsonl`.
#[derive(Debug, Default)]
pub(crate) struct Series {
    curves: BTreeMap<&'static str, Curve>,
    /// Minutes by step.
    clock: Curve,
    /// Minutes of training until the newest line: of steps and of what lies between them, not of the time in which no
    /// session ran.
    pub(crate) minutes: f64,
    /// The newest line: those of its entries that were asked for, and its step.
    pub(crate) last: Map<String, Value>,
}

impl Series {
    /// The curves of these keys. A line being written, or no file, is none.
    pub(crate) fn read(path: &Path, keys: &[&'static str]) -> Self {
        let mut series = Self::default();
        let wanted: Vec<_> = keys.iter().copied().chain(["step_seconds", "aside_s"]).collect();
        let mut before = 0.0;
        each_line(path, |line| {
            let mut parser = serde_json::Deserializer::from_slice(line);
            let Ok(line) = Entries(&wanted).deserialize(&mut parser) else { return };
            if parser.end().is_err() {
                return;
            }
            if let Some(step) = number(&line, "step") {
                let each = number(&line, "step_seconds").unwrap_or(0.0);
                let seconds = (step - before).max(0.0) * each;
                series.minutes += (seconds + number(&line, "aside_s").unwrap_or(0.0)) / 60.0;
                before = step;
                series.clock.push(step, series.minutes, series.minutes);
                for key in keys {
                    if let Some(value) = number(&line, key) {
                        let curve = series.curves.entry(key).or_default();
                        curve.push(step, series.minutes, value);
                    }
                }
            }
            series.last = line;
        });
        series
    }

    /// Of a key that was asked for.
    pub(crate) fn points(&self, key: &str) -> Vec<Point> {
        self.curves.get(key).map(Curve::points).unwrap_or_default()
    }

    /// Minutes of training at a step, between the lines in proportion.
    pub(crate) fn minutes_at(&self, step: f64) -> f64 {
        let mut before = (0.0, 0.0);
        let last = (number(&self.last, "step").unwrap_or(0.0), self.minutes);
        let ends = self.clock.pieces.iter().map(|piece| {
            let point = piece.point();
            (point.step, point.minutes)
        });
        for (at, minutes) in ends.chain([last]) {
            if at >= step && at > before.0 {
                return before.1 + (minutes - before.1) * (step - before.0) / (at - before.0);
            }
            before = (at, minutes);
        }
        self.minutes
    }
}

/// Reads an object's `step` and the entries of these keys, and passes over the others.
struct Entries<'a>(&'a [&'static str]);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            if key == "step" || self.0.contains(&key.as_ref()) {
                entries.insert(key.into_owned(), map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_keeps_its_mean_and_its_ends_however_long_it_is() {
        for length in [0, 1, 2, POINTS - 1, POINTS, POINTS + 1, 3 * POINTS + 7, 100_000] {
            let mut curve = Curve::default();
            for i in 0..length {
                curve.push(i as f64, 2.0 * i as f64, (i * i) as f64);
            }
            let points = curve.points();
            assert!(points.len() <= POINTS && points.len() >= length.min(POINTS / 2), "{length}");
            if length <= POINTS {
                let all: Vec<_> = (0..length).map(|i| (i as f64, (i * i) as f64)).collect();
                assert_eq!(points.iter().map(|p| (p.step, p.mean)).collect::<Vec<_>>(), all);
                assert!(points.iter().all(|p| p.low == p.mean && p.high == p.mean));
            }
            let counted: usize = curve.pieces.iter().map(|piece| piece.count).sum();
            let sum = |of: fn(&Point) -> f64| {
                curve.pieces.iter().map(|piece| of(&piece.sums)).sum::<f64>()
            };
            let of_all = |of: fn(usize) -> usize| (0..length).map(of).sum::<usize>() as f64;
            assert_eq!(counted, length);
            assert!((sum(|p| p.step) - of_all(|i| i)).abs() < 1.0);
            assert!(
                (sum(|p| p.mean) / of_all(|i| i * i).max(1.0) - 1.0).abs() < 1e-9 || length < 2
            );
            assert!(points.is_sorted_by(|a, b| a.step < b.step));
            assert!(points.iter().all(|p| p.low <= p.mean && p.mean <= p.high));
            assert!(points.iter().all(|p| (p.minutes - 2.0 * p.step).abs() < 1e-6));
            let by = length.div_ceil(POINTS / 2) as f64;
            if let [first, .., last] = points[..] {
                assert!(first.step <= by && last.step >= length as f64 - 1.0 - by);
                assert_eq!((first.low, last.high), (0.0, ((length - 1) * (length - 1)) as f64));
            }
        }
    }

    #[test]
    fn the_wanted_entries_of_whole_lines_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.jsonl");
        assert!(Series::read(&path, &["a"]).last.is_empty());
        let text = "{\"step\":1,\"a\":2,\"b\":[1,{\"a\":9}],\"c\":\"x\"}\n\
                    {\"step\":2,\"a\":null,\"b\":7}\n{\"a\":5}\nnone\n[1]\n{\"step\":9} x\n\n\
                    {\"step\":3,\"a\":4,\"d\":{\"step\":1}}\n{\"step\":4,\"a\":";
        std::fs::write(&path, text).unwrap();
        let series = Series::read(&path, &["a", "b", "none"]);
        let of = |key| -> Vec<_> {
            series.points(key).iter().map(|point| (point.step, point.mean)).collect()
        };
        assert_eq!(of("a"), [(1.0, 2.0), (3.0, 4.0)]);
        assert_eq!(of("b"), [(2.0, 7.0)]);
        assert!(of("none").is_empty());
        assert_eq!(Value::Object(series.last), serde_json::json!({"step": 3, "a": 4}));
    }

    #[test]
    fn minutes_are_those_of_steps_and_of_what_lies_between_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.jsonl");
        let text =
            "{\"step\":10,\"step_seconds\":6}\n{\"step\":20,\"step_seconds\":12,\"aside_s\":60}\n";
        std::fs::write(&path, text).unwrap();
        let series = Series::read(&path, &[]);
        assert_eq!(series.minutes, 4.0);
        let at = [0.0, 5.0, 10.0, 15.0, 20.0, 30.0].map(|step| series.minutes_at(step));
        assert_eq!(at, [0.0, 0.5, 1.0, 2.5, 4.0, 4.0]);
        assert_eq!(Series::default().minutes_at(7.0), 0.0);
    }
}
