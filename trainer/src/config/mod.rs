//! What a run is: one complete configuration, resolved from a preset or file, overrides and checks.

mod checks;
mod schema;
mod secrets;

use std::path::Path;

use bigbigan_model::config::Decay;
use bigbigan_model::presets::{extend, flatten, merge, one_line, overlay, parse, preset, refuse};
use toml::{Table, Value};

use crate::error::{Error, Result};
pub use schema::{
    CheckpointConfig, Config, DataConfig, DistConfig, EvalConfig, HealthConfig, ImagesConfig,
    LogConfig, OnFault, TrainConfig,
};
pub(crate) use secrets::text_without_secrets;
use secrets::without_secrets;

/// One key in which two configurations differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `table.key`.
    pub key: String,
    /// As TOML.
    pub from: String,
    /// As TOML.
    pub to: String,
}

/// Keys, or tables of keys, that may change between two sessions of a run: they say how long, where
/// and how closely watched it runs, not what it computes.
const FREE: [&str; 13] = [
    "train.steps",
    "train.max_minutes",
    "train.device",
    "data.dir",
    "data.cache",
    "data.threads",
    "data.depth",
    "checkpoint.",
    "log.",
    "images.",
    "eval.",
    "health.",
    "dist.",
];

/// What was computed before a key said it.
const BEFORE: [&str; 1] = ["e.root_pad=lowest"];

impl Change {
    /// Whether what the run computes stays the same.
    #[must_use]
    pub fn is_free(&self) -> bool {
        let under = |free: &&str| match free.strip_suffix('.') {
            Some(_) => self.key.starts_with(*free),
            None => self.key == **free,
        };
        FREE.iter().any(under)
    }
}

impl Change {
    /// In words; a URL's password is left out.
    #[must_use]
    pub fn shown(&self) -> String {
        match ["data.dir", "checkpoint.mirror"].contains(&self.key.as_str()) {
            true => {
                let [from, to] = [&self.from, &self.to].map(|dir| without_secrets(dir));
                format!("{} from {from} to {to}", self.key)
            }
            false => self.to_string(),
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} from {} to {}", self.key, self.from, self.to)
    }
}

/// Where a configuration comes from.
#[derive(Debug, Clone)]
pub enum Origin<'a> {
    /// A preset's name.
    Preset(&'a str),
    /// A TOML file; `extends = "NAME"` names the preset it starts from (`base` if absent).
    File(&'a Path),
}

impl Config {
    /// Resolves a preset or file plus `key=value` overrides, and checks the whole.
    ///
    /// # Errors
    /// [`Error::Config`] listing all problems: unknown names (with the nearest known one), wrong
    /// types, values that do not fit together. [`Error::Io`] if the file cannot be read.
    pub fn resolve(origin: &Origin<'_>, overrides: &[String]) -> Result<Self> {
        let mut problems = vec![];
        let mut table = match origin {
            Origin::Preset(name) => preset(name)?,
            Origin::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| Error::Config {
                    problems: vec![format!("cannot read {}: {source}", path.display())],
                })?;
                let name = path.display().to_string();
                extend(&text, &name, &mut problems)?
            }
        };
        overlay(&mut table, overrides, &mut problems);
        refuse(problems)?;
        Self::of(table)
    }

    /// This configuration with `key=value` overrides.
    ///
    /// # Errors
    /// As [`Config::resolve`].
    pub fn with(&self, overrides: &[String]) -> Result<Self> {
        let mut table = self.table();
        let mut problems = vec![];
        overlay(&mut table, overrides, &mut problems);
        refuse(problems)?;
        Self::of(table)
    }

    /// This configuration, but what may change between two sessions of a run as `later` has it.
    ///
    /// # Errors
    /// As [`Config::resolve`].
    pub fn with_free_of(&self, later: &Self) -> Result<Self> {
        let free = self.changes(later).into_iter().filter(Change::is_free);
        self.with(&free.map(|c| format!("{}={}", c.key, c.to)).collect::<Vec<_>>())
    }

    /// The keys in which `later` differs, in order.
    #[must_use]
    pub fn changes(&self, later: &Self) -> Vec<Change> {
        let (mut from, mut to) = (vec![], vec![]);
        flatten("", &self.table(), &mut from);
        flatten("", &later.table(), &mut to);
        let pairs = from.into_iter().zip(to);
        let differ = pairs.filter(|((_, from), (_, to))| from != to);
        differ.map(|((key, from), (_, to))| Change { key, from, to }).collect()
    }

    /// A hash of what a run computes: of all keys but those that may change between two sessions of a run, of what is
    /// done about faults, of the device, and of the last step where rates go down to it.
    #[must_use]
    pub fn computes_sha256(&self) -> String {
        let mut entries = vec![];
        flatten("", &self.table(), &mut entries);
        let mut text = String::new();
        for (key, value) in entries {
            let entry = Change { key, from: value, to: String::new() };
            let decays = entry.key == "train.steps" && self.opt.decay != Decay::None;
            let counts = ["health.", "train.device"].iter().any(|key| entry.key.starts_with(key));
            if !entry.is_free() || counts || decays {
                text += &format!("{} = {}\n", entry.key, entry.from);
            }
        }
        common::files::sha256(text.as_bytes())
    }

    fn table(&self) -> Table {
        match Value::try_from(self) {
            Ok(Value::Table(table)) => table,
            _ => unreachable!("a configuration is a table of TOML"),
        }
    }

    /// As TOML, to be read by people: a URL's password is left out.
    #[must_use]
    pub fn shown(&self) -> String {
        self.without_secrets().to_toml()
    }

    /// The same, but for a URL's password.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        let mut shown = self.clone();
        for url in [&mut shown.data.dir, &mut shown.checkpoint.mirror] {
            *url = without_secrets(url);
        }
        shown
    }

    /// The resolved configuration as TOML; [`Config::parse`] reads it back.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }

    /// Every key with its dots, and its value as TOML, in alphabetical order.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    #[must_use]
    pub fn flat(&self) -> Vec<(String, String)> {
        let table = Table::try_from(self).expect("every field has a TOML form");
        let mut keys: Vec<_> = table
            .into_iter()
            .filter_map(|(name, value)| value.as_table().cloned().map(|keys| (name, keys)))
            .flat_map(|(name, keys)| {
                keys.into_iter()
                    .map(move |(key, value)| (format!("{name}.{key}"), value.to_string()))
            })
            .collect();
        keys.sort();
        keys
    }

    /// Reads a resolved configuration (a run's `config.toml`). Keys that it lacks, because they came
    /// into use after it was written, have `base`'s values, or, where those compute something else, what was
    /// computed then.
    ///
    /// # Errors
    /// [`Error::Config`] where it is not one.
    pub fn parse(text: &str) -> Result<Self> {
        let mut problems = vec![];
        let mut table = preset("base")?;
        overlay(&mut table, &BEFORE.map(str::to_owned), &mut problems);
        merge(&mut table, parse(text, "config.toml")?, "", &mut problems);
        refuse(problems)?;
        Self::of(table)
    }

    fn of(table: Table) -> Result<Self> {
        let config: Self = Value::Table(table)
            .try_into()
            .map_err(|e| Error::Config { problems: vec![one_line(&e.to_string())] })?;
        config.check()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests;
