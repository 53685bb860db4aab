//! What a reader passed over, by kind.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most kinds that are told apart; further ones are counted together, as a source may have any
/// number of extensions.
const KINDS: usize = 64;

/// The kind of all further ones.
const OTHERS: &str = "files of further kinds";

/// What a reader passed over: how many things of each kind, and an example of each. Nothing of a
/// source is left out without a word, so whoever reads one says this at its end.
///
/// A kind is a plural in words, such as "AppleDouble files (._*)"; an example is the name of the
/// first one, in full, so that it can be looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Skipped {
    kinds: BTreeMap<Cow<'static, str>, (u64, String)>,
}

impl Skipped {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one more of a kind. `example` is asked for the name of the first one only.
    pub fn add(&mut self, kind: impl Into<Cow<'static, str>>, example: impl FnOnce() -> String) {
        self.add_many(kind, 1, example);
    }

    /// Counts `count` more of a kind.
    pub fn add_many(
        &mut self,
        kind: impl Into<Cow<'static, str>>,
        count: u64,
        example: impl FnOnce() -> String,
    ) {
        let mut kind = kind.into();
        if self.kinds.len() >= KINDS && !self.kinds.contains_key(&kind) {
            kind = OTHERS.into();
        }
        self.kinds.entry(kind).or_insert_with(|| (0, example())).0 += count;
    }

    /// Counts what another reader passed over as well. Examples that are there already stay.
    pub fn merge(&mut self, other: Skipped) {
        for (kind, (count, example)) in other.kinds {
            self.add_many(kind, count, || example);
        }
    }

    /// True when nothing was passed over.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// How many things were passed over, all kinds together.
    pub fn total(&self) -> u64 {
        self.kinds.values().map(|(count, _)| count).sum()
    }

    /// Kind, count and example, in the order of the kinds.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64, &str)> {
        self.kinds.iter().map(|(kind, (count, example))| (&**kind, *count, &**example))
    }
}

/// A line for each kind, without an end of line after the last: `2 AppleDouble files (._*), such as
/// train-0.tar: ._1.jpg`.
impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, (kind, count, example)) in self.iter().enumerate() {
            let line = if number == 0 { "" } else { "\n" };
            write!(f, "{line}{count} {kind}, such as {example}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_with_the_first_of_each_as_an_example() {
        let mut skipped = Skipped::new();
        assert!(skipped.is_empty());
        for name in ["a.txt", "b.txt"] {
            skipped.add("files .txt", || name.into());
        }
        let mut more = Skipped::new();
        more.add("files .txt", || "c.txt".into());
        more.add("AppleDouble files (._*)", || "._a.jpg".into());
        skipped.merge(more);
        assert_eq!(
            skipped.to_string(),
            "1 AppleDouble files (._*), such as ._a.jpg\n3 files .txt, such as a.txt"
        );
        assert_eq!(skipped.total(), 4);
        let text = serde_json::to_string(&skipped).unwrap();
        assert_eq!(serde_json::from_str::<Skipped>(&text).unwrap(), skipped);
    }

    #[test]
    fn however_many_kinds_there_are_all_things_are_counted() {
        let mut skipped = Skipped::new();
        for kind in 0..1000 {
            skipped.add(format!("files .{kind}"), || kind.to_string());
        }
        assert_eq!(skipped.total(), 1000);
        assert_eq!(skipped.iter().count(), KINDS + 1);
    }
}
