//! What a run is: one complete configuration, resolved from a preset or file, overrides and checks.

mod secrets;

use std::path::Path;
use std::time::Duration;

use bigbigan_model::config::{
    BeyondConfig, Decay, EncoderConfig, GeneratorConfig, ImageConfig, LatentConfig, MlpConfig,
    OptConfig, Precision, Recipe, StepConfig, Terms,
};
use bigbigan_model::presets::{extend, flatten, merge, one_line, overlay, parse, preset, refuse};
use dist::Limits;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::error::{Error, Result};
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

/// The whole configuration of a run. Every key has its meaning in `presets/base.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// z.
    pub latent: LatentConfig,
    /// The generator.
    pub g: GeneratorConfig,
    /// D's image part.
    pub f: ImageConfig,
    /// D's latent part.
    pub h: MlpConfig,
    /// D's joint part.
    pub j: MlpConfig,
    /// The encoder.
    pub e: EncoderConfig,
    /// Which terms count.
    pub loss: Terms,
    /// Losses past the paper.
    pub beyond: BeyondConfig,
    /// Optimisers and averages.
    pub opt: OptConfig,
    /// The training loop.
    pub train: TrainConfig,
    /// The input pipeline.
    pub data: DataConfig,
    /// What to do when numbers go wrong.
    pub health: HealthConfig,
    /// Several processes.
    pub dist: DistConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
    /// Statistics.
    pub log: LogConfig,
    /// Pictures.
    pub images: ImagesConfig,
    /// Evaluation inside the run.
    pub eval: EvalConfig,
}

/// The loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct TrainConfig {
    pub batch: i64,
    pub micro_batch: i64,
    pub steps: u64,
    pub d_steps: u32,
    pub seed: u64,
    pub max_minutes: f64,
    pub device: String,
    pub precision: Precision,
    pub graphs: bool,
    pub deterministic: bool,
}

/// What becomes of a run whose numbers go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct HealthConfig {
    pub on_fault: OnFault,
    pub patience: u64,
}

/// What to do about a loss, gradient or weight that is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFault {
    /// End the run.
    Halt,
    /// Leave the update out.
    Skip,
    /// Go back to the newest checkpoint and on with other images and latents.
    Rollback,
}

/// The input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct DataConfig {
    pub dir: String,
    pub mode: pipeline::Mode,
    pub filter: pipeline::Filter,
    pub shuffle: pipeline::Shuffle,
    pub threads: usize,
    pub depth: usize,
    pub max_bad_share: f64,
    pub read_ahead_mb: u64,
    pub cache: String,
    pub cache_mb: u64,
}

/// Several processes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct DistConfig {
    pub join: f64,
    pub timeout: f64,
    pub silence: f64,
    pub check_every: u64,
}

/// Checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct CheckpointConfig {
    pub every: u64,
    pub keep: usize,
    pub keep_every: u64,
    pub best: String,
    pub mirror: String,
}

/// Statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct LogConfig {
    pub every: u64,
}

/// Pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct ImagesConfig {
    pub every: u64,
    pub columns: i64,
    pub rows: i64,
    pub standing_images: i64,
}

/// Evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct EvalConfig {
    #[serde(default)] // runs of before it have none
    pub every: u64,
    pub mode: pipeline::Mode,
    pub split: String,
    pub probe_images: usize,
    pub probe_steps: u64,
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

    /// What state and step need of it.
    #[must_use]
    pub fn recipe(&self) -> Recipe {
        let Self { latent, g, f, h, j, e, loss, beyond, opt, .. } = *self;
        let t = &self.train;
        let train = StepConfig {
            batch: t.batch,
            micro_batch: t.micro_batch,
            steps: t.steps,
            d_steps: t.d_steps,
            seed: t.seed,
            precision: t.precision,
            graphs: t.graphs,
            deterministic: t.deterministic,
        };
        let skip_faults = self.health.on_fault == OnFault::Skip;
        Recipe { latent, g, f, h, j, e, loss, beyond, opt, train, skip_faults }
    }

    /// How long ranks wait for each other.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let [join, timeout, silence] =
            [self.dist.join, self.dist.timeout, self.dist.silence].map(Duration::from_secs_f64);
        Limits { join, timeout, silence }
    }

    /// Images of a batch that each of `ranks` processes takes.
    ///
    /// # Errors
    /// [`Error::Config`] if they do not divide, or have graphs.
    pub fn rows(&self, ranks: usize) -> Result<usize> {
        let (batch, micro, ranks) = (self.train.batch, self.recipe().micro_batch(), ranks as i64);
        if self.train.graphs && ranks > 1 {
            let problem = "train.graphs = true is for a process alone; say false for several ranks";
            return Err(Error::Config { problems: vec![problem.to_owned()] });
        }
        if micro % ranks == 0 {
            return Ok((batch / ranks) as usize);
        }
        let problem = format!(
            "{ranks} ranks do not divide a pass of {micro} images (train.batch = {batch}, \
             train.micro_batch = {}); change one of them",
            self.train.micro_batch
        );
        Err(Error::Config { problems: vec![problem] })
    }

    fn check(&self) -> Result<()> {
        let mut problems = self.recipe().problems();
        let mut require = |ok: bool, problem: String| {
            if !ok {
                problems.push(problem);
            }
        };
        let side = if self.loss.encode() { self.e.res } else { self.g.res };
        for (key, mode) in [("data.mode", self.data.mode), ("eval.mode", self.eval.mode)] {
            let fits = mode.check(side.max(1) as usize);
            require(fits.is_ok(), format!("{key}: {}", fits.err().unwrap_or_default()));
        }
        require(
            self.train.max_minutes >= 0.0,
            format!("train.max_minutes = {} < 0", self.train.max_minutes),
        );
        require(self.health.patience > 0, "health.patience = 0; give a number of faults".into());
        require(self.log.every > 0, "log.every = 0; give a number of steps".into());
        require(self.checkpoint.keep > 0, "checkpoint.keep = 0 would keep none".into());
        let best = &self.checkpoint.best;
        require(
            best.is_empty() || best.contains('.'),
            format!(
                "checkpoint.best = {best:?} is not METRIC.KEY, such as \"linear_probe_bn_crelu.top1\""
            ),
        );
        let (mirror, kinds) = (&self.checkpoint.mirror, ["s3://", "gs://", "az://", "file:///"]);
        require(
            mirror.is_empty() || kinds.iter().any(|kind| mirror.starts_with(kind)),
            format!(
                "checkpoint.mirror = {:?} is not an s3://, gs://, az:// or file:/// URL",
                without_secrets(mirror)
            ),
        );
        require(self.images.columns > 0, "images.columns = 0".into());
        require(self.images.rows > 0, "images.rows = 0".into());
        let megabytes = 16..=1 << 30;
        for (key, value) in
            [("read_ahead_mb", self.data.read_ahead_mb), ("cache_mb", self.data.cache_mb)]
        {
            let problem = format!("data.{key} = {value} is not from 16 to 2^30");
            require(megabytes.contains(&value), problem);
        }
        require(self.data.depth > 0, "data.depth = 0; a batch ahead is the least".into());
        require(
            (0.0..1.0).contains(&self.data.max_bad_share),
            format!("data.max_bad_share = {} is not in [0, 1)", self.data.max_bad_share),
        );
        let d = &self.dist;
        for (key, value) in
            [("dist.join", d.join), ("dist.timeout", d.timeout), ("dist.silence", d.silence)]
        {
            let good = (1.0..=86_400.0).contains(&value);
            require(good, format!("{key} = {value} is not 1 to 86400 seconds"));
        }
        Ok(refuse(problems)?)
    }
}

#[cfg(test)]
mod tests;
