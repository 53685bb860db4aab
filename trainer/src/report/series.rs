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

/// A curve in pieces of so many values each; the last may have fewer.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// Of each piece the sums of steps and of values, and how many they are.
    pieces: Vec<(f64, f64, usize)>,
    of: usize,
}

impl Default for Curve {
    fn default() -> Self {
        Self { pieces: vec![], of: 1 }
    }
}

impl Curve {
    pub(crate) fn push(&mut self, step: f64, value: f64) {
        match self.pieces.last_mut() {
            Some(last) if last.2 < self.of => {
                *last = (last.0 + step, last.1 + value, last.2 + 1);
            }
            _ => {
                if self.pieces.len() == POINTS {
                    let join = |pair: &[(f64, f64, usize)]| {
                        pair.iter()
                            .fold((0.0, 0.0, 0), |sum, p| (sum.0 + p.0, sum.1 + p.1, sum.2 + p.2))
                    };
                    self.pieces = self.pieces.chunks(2).map(join).collect();
                    self.of *= 2;
                }
                self.pieces.push((step, value, 1));
            }
        }
    }

    /// (step, value): the means of the pieces.
    pub(crate) fn points(&self) -> Vec<(f64, f64)> {
        self.pieces.iter().map(|(step, value, n)| (step / *n as f64, value / *n as f64)).collect()
    }
}

/// What a report needs of `stats.jsonl`.
#[derive(Debug, Default)]
pub(crate) struct Series {
    curves: BTreeMap<&'static str, Curve>,
    /// The newest line: those of its entries that were asked for, and its step.
    pub(crate) last: Map<String, Value>,
}

impl Series {
    /// The curves of these keys. A line being written, or no file, is none.
    pub(crate) fn read(path: &Path, keys: &[&'static str]) -> Self {
        let mut series = Self::default();
        each_line(path, |line| {
            let mut parser = serde_json::Deserializer::from_slice(line);
            let Ok(line) = Entries(keys).deserialize(&mut parser) else { return };
            if parser.end().is_err() {
                return;
            }
            if let Some(step) = number(&line, "step") {
                for key in keys {
                    if let Some(value) = number(&line, key) {
                        series.curves.entry(key).or_default().push(step, value);
                    }
                }
            }
            series.last = line;
        });
        series
    }

    /// (step, value) of a key that was asked for.
    pub(crate) fn points(&self, key: &str) -> Vec<(f64, f64)> {
        self.curves.get(key).map(Curve::points).unwrap_or_default()
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
                curve.push(i as f64, (i * i) as f64);
            }
            let points = curve.points();
            assert!(points.len() <= POINTS && points.len() >= length.min(POINTS / 2), "{length}");
            if length <= POINTS {
                let all: Vec<_> = (0..length).map(|i| (i as f64, (i * i) as f64)).collect();
                assert_eq!(points, all);
            }
            let sums =
                curve.pieces.iter().fold((0.0, 0.0, 0), |s, p| (s.0 + p.0, s.1 + p.1, s.2 + p.2));
            let sum = |of: fn(usize) -> usize| (0..length).map(of).sum::<usize>() as f64;
            assert_eq!(sums.2, length);
            assert!((sums.0 - sum(|i| i)).abs() < 1.0);
            assert!((sums.1 / sum(|i| i * i).max(1.0) - 1.0).abs() < 1e-9 || length < 2);
            assert!(points.is_sorted_by(|a, b| a.0 < b.0));
            let by = length.div_ceil(POINTS / 2) as f64;
            assert!(
                length == 0
                    || points[0].0 <= by && points[points.len() - 1].0 >= length as f64 - 1.0 - by
            );
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
        assert_eq!(series.points("a"), [(1.0, 2.0), (3.0, 4.0)]);
        assert_eq!(series.points("b"), [(2.0, 7.0)]);
        assert!(series.points("none").is_empty());
        assert_eq!(Value::Object(series.last), serde_json::json!({"step": 3, "a": 4}));
    }
}
