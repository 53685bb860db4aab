//! What a run is: one complete configuration, resolved from a preset or file, overrides and checks.

mod beyond;
mod secrets;

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::dist::Limits;
use crate::error::{Error, Result};
use crate::model::{
    DiscriminatorConfig, EncoderConfig, Family, GeneratorConfig, ImageConfig, LatentConfig, Terms,
};
use crate::nn::MlpConfig;
use crate::optim::{AdamConfig, AverageConfig, Decay, Schedule};
use crate::random::Prior;
pub use beyond::{AugmentConfig, BeyondConfig};
pub(crate) use secrets::text_without_secrets;
use secrets::without_secrets;

/// Presets by name, compiled in. Each but `base` holds its differences only.
pub const PRESETS: &[(&str, &str)] = &[
    ("base", include_str!("../../presets/base.toml")),
    ("demo", include_str!("../../presets/demo.toml")),
    ("cifar10", include_str!("../../presets/cifar10.toml")),
    ("cifar10_beyond", include_str!("../../presets/cifar10_beyond.toml")),
    ("cifar10_32", include_str!("../../presets/cifar10_32.toml")),
    ("cifar10_gpu", include_str!("../../presets/cifar10_gpu.toml")),
    ("det_e", include_str!("../../presets/det_e.toml")),
    ("uniform_pz", include_str!("../../presets/uniform_pz.toml")),
    ("x_unary", include_str!("../../presets/x_unary.toml")),
    ("z_unary", include_str!("../../presets/z_unary.toml")),
    ("no_unary", include_str!("../../presets/no_unary.toml")),
    ("small_g32", include_str!("../../presets/small_g32.toml")),
    ("small_g64", include_str!("../../presets/small_g64.toml")),
    ("no_e", include_str!("../../presets/no_e.toml")),
    ("hi_e", include_str!("../../presets/hi_e.toml")),
    ("hi_e_g64", include_str!("../../presets/hi_e_g64.toml")),
    ("hi_e_g256", include_str!("../../presets/hi_e_g256.toml")),
    ("r101", include_str!("../../presets/r101.toml")),
    ("r50x2", include_str!("../../presets/r50x2.toml")),
    ("rev50", include_str!("../../presets/rev50.toml")),
    ("rev50x2", include_str!("../../presets/rev50x2.toml")),
    ("rev50x4", include_str!("../../presets/rev50x4.toml")),
    ("r50_elr", include_str!("../../presets/r50_elr.toml")),
    ("rev50x4_elr", include_str!("../../presets/rev50x4_elr.toml")),
    ("r50_elr_1m", include_str!("../../presets/r50_elr_1m.toml")),
    ("rev50x4_elr_1m", include_str!("../../presets/rev50x4_elr_1m.toml")),
    ("gen_base", include_str!("../../presets/gen_base.toml")),
    ("gen_hi_e", include_str!("../../presets/gen_hi_e.toml")),
    ("gen_hi_e_1m", include_str!("../../presets/gen_hi_e_1m.toml")),
];

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

/// Rates and averages.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct OptConfig {
    pub lr_d: f64,
    pub lr_g: f64,
    pub e_lr_mult: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub warmup_images: u64,
    pub decay: Decay,
    pub ema: f64,
    pub ema_ramp: bool,
    pub ema_start_images: u64,
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

/// In what precision G, E and D run forward and backward. Weights, moments, averages, spectral norms,
/// batch statistics and losses are in single precision always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    F32,
    /// Single precision; CUDA rounds the inputs of products and convolutions to 10 bits.
    Tf32,
    /// Products and convolutions in bfloat16.
    Bf16,
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

    /// D's parts.
    #[must_use]
    pub fn discriminator(&self) -> DiscriminatorConfig {
        DiscriminatorConfig { f: self.f, h: self.h, j: self.j, terms: self.loss }
    }

    /// Adam for a network with this rate.
    #[must_use]
    pub fn adam(&self, rate: f64) -> AdamConfig {
        let OptConfig { beta1, beta2, eps, .. } = self.opt;
        AdamConfig { rate, beta1, beta2, eps }
    }

    /// The average of G and E.
    #[must_use]
    pub fn average(&self) -> AverageConfig {
        let start = self.opt.ema_start_images / self.train.batch as u64;
        AverageConfig { decay: self.opt.ema, ramp: self.opt.ema_ramp, start }
    }

    /// Factor of every rate in step number `step` (from 0).
    #[must_use]
    pub fn rate_factor(&self, step: u64) -> f64 {
        let batch = self.train.batch as f64;
        let (warmup, decay) = (self.opt.warmup_images as f64, self.opt.decay);
        // The first step counts its own images, else a warm-up would waste it.
        let seen = if warmup > 0.0 { step + 1 } else { step };
        Schedule { warmup, decay, images: self.train.steps as f64 * batch }.at(seen as f64 * batch)
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
        let (batch, micro, ranks) = (self.train.batch, self.micro_batch(), ranks as i64);
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

    /// Images of one forward and backward pass, over all ranks.
    #[must_use]
    pub fn micro_batch(&self) -> i64 {
        if self.train.micro_batch == 0 { self.train.batch } else { self.train.micro_batch }
    }

    fn check(&self) -> Result<()> {
        let mut problems = self.check_shapes();
        problems.extend(self.beyond.problems(self.loss.encode()));
        let mut require = |ok: bool, problem: String| {
            if !ok {
                problems.push(problem);
            }
        };
        let t = &self.train;
        require(t.batch > 1, format!("train.batch = {} is not above 1", t.batch));
        require(
            t.micro_batch == 0 || (t.micro_batch > 1 && t.batch % t.micro_batch == 0),
            format!(
                "train.micro_batch = {} does not divide train.batch = {}, or is below 2",
                t.micro_batch, t.batch
            ),
        );
        let side = if self.loss.encode() { self.e.res } else { self.g.res };
        for (key, mode) in [("data.mode", self.data.mode), ("eval.mode", self.eval.mode)] {
            let fits = mode.check(side.max(1) as usize);
            require(fits.is_ok(), format!("{key}: {}", fits.err().unwrap_or_default()));
        }
        require(t.d_steps > 0, "train.d_steps = 0, but D has to train".into());
        require(t.max_minutes >= 0.0, format!("train.max_minutes = {} < 0", t.max_minutes));
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
        let o = &self.opt;
        for (key, value) in [
            ("opt.lr_d", o.lr_d),
            ("opt.lr_g", o.lr_g),
            ("opt.e_lr_mult", o.e_lr_mult),
            ("opt.eps", o.eps),
        ] {
            require(value > 0.0, format!("{key} = {value} is not above 0"));
        }
        for (key, value) in [("opt.beta1", o.beta1), ("opt.beta2", o.beta2), ("opt.ema", o.ema)] {
            require((0.0..1.0).contains(&value), format!("{key} = {value} is not in [0, 1)"));
        }
        refuse(problems)
    }

    fn check_shapes(&self) -> Vec<String> {
        let mut problems = vec![];
        let mut require = |ok: bool, problem: String| {
            if !ok {
                problems.push(problem);
            }
        };
        let Self { latent, g, f, h, j, e, loss, .. } = self;
        let sides = "16, 32, 64, 128 or 256";
        match g.multipliers() {
            None => require(false, format!("g.res = {} is not {sides}", g.res)),
            Some(m) => require(
                latent.dim == latent.chunk * m.len() as i64,
                format!(
                    "latent.dim = {} is not {} chunks of latent.chunk = {}, which {} px need",
                    latent.dim,
                    m.len(),
                    latent.chunk,
                    g.res
                ),
            ),
        }
        require(f.blocks().is_some(), format!("f.res = {} is not {sides}", f.res));
        require(f.res == g.res, format!("f.res = {} is not g.res = {}", f.res, g.res));
        require(
            g.ch > 0 && f.ch > 0,
            format!("g.ch = {} and f.ch = {} must be above 0", g.ch, f.ch),
        );
        for (key, ch, attends) in [("g", g.ch, g.attends()), ("f", f.ch, f.attends())] {
            let channels = attends.map_or(8, |(_, channels)| channels);
            require(
                channels >= 8,
                format!(
                    "{key}.ch = {ch}: attention at {key}.attn_res wants 8 channels there, not {channels} (raise \
                     {key}.ch, or {key}.attn_res = 0 for none)"
                ),
            );
        }
        for (key, mlp) in [("h", h), ("j", j)] {
            require(
                mlp.layers > 0 && mlp.layers % 2 == 0 && mlp.width > 0,
                format!("{key} needs an even number of layers and a width, not {mlp:?}"),
            );
        }
        require(loss.count() > 0, "loss switches every term off".into());
        if !loss.encode() {
            return problems;
        }
        require(
            e.res % g.res == 0 && [1, 2, 4].contains(&(e.res / g.res)),
            format!("e.res = {} is not 1, 2 or 4 times g.res = {}", e.res, g.res),
        );
        let depth = match e.family {
            Family::ResnetV2 | Family::Revnet => [50, 101].contains(&e.depth),
            Family::Small => e.depth > 2 && (e.depth - 2) % 6 == 0,
        };
        require(
            depth,
            format!("e.depth = {}: resnet_v2 and revnet have 50 or 101, small has 6n + 2", e.depth),
        );
        let least = if e.family == Family::Small { 8 } else { 32 };
        require(
            e.res % least == 0 && e.res > 0,
            format!("e.res = {} is not a multiple of {least}", e.res),
        );
        require(
            e.width > 0 && e.mlp_layers > 0 && e.mlp_layers % 2 == 0 && e.mlp_width > 0,
            "e.width, e.mlp_width must be above 0 and e.mlp_layers even".into(),
        );
        require(
            latent.prior == Prior::Normal || !e.stochastic,
            "latent.prior = \"uniform\" needs e.stochastic = false (a tanh head)".into(),
        );
        problems
    }
}

fn refuse(problems: Vec<String>) -> Result<()> {
    if problems.is_empty() { Ok(()) } else { Err(Error::Config { problems }) }
}

/// The complete table of a preset.
fn preset(name: &str) -> Result<Table> {
    let Some((_, text)) = PRESETS.iter().find(|(n, _)| *n == name) else {
        let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
        let problem = format!("no preset {name:?}{}", nearest(name, names.iter().copied()));
        return refuse(vec![format!("{problem} (there are {})", names.join(", "))])
            .map(|()| Table::new());
    };
    if name == "base" {
        return parse(text, name);
    }
    let mut problems = vec![];
    let table = extend(text, name, &mut problems)?;
    refuse(problems)?;
    Ok(table)
}

/// Lays the differences in `text` over the preset it extends.
fn extend(text: &str, name: &str, problems: &mut Vec<String>) -> Result<Table> {
    let mut change = parse(text, name)?;
    let parent = match change.remove("extends") {
        None => "base".to_owned(),
        Some(Value::String(parent)) => parent,
        Some(other) => {
            problems.push(format!("{name}: extends = {other} is not the name of a preset"));
            "base".to_owned()
        }
    };
    let mut table = preset(&parent)?;
    merge(&mut table, change, "", problems);
    Ok(table)
}

fn parse(text: &str, name: &str) -> Result<Table> {
    text.parse::<Table>().map_err(|e| Error::Config {
        problems: vec![format!("{name}: {}", one_line(&e.to_string()))],
    })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `a.b=c` as a table. c is TOML; what is not TOML is a string.
fn assignment(text: &str) -> std::result::Result<Table, String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("--set {text}: write it as key=value, such as train.batch=64"))?;
    let value = format!("v = {}", value.trim())
        .parse::<Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(value.trim().to_owned()));
    let wrap = |value, part: &str| {
        let mut table = Table::new();
        table.insert(part.trim().to_owned(), value);
        Value::Table(table)
    };
    match key.split('.').rev().fold(value, wrap) {
        Value::Table(table) => Ok(table),
        _ => Err(format!("--set {text}: no key")),
    }
}

/// Lays `key=value` overrides over `table`.
fn overlay(table: &mut Table, overrides: &[String], problems: &mut Vec<String>) {
    for text in overrides {
        match assignment(text) {
            Ok(change) => merge(table, change, "", problems),
            Err(problem) => problems.push(problem),
        }
    }
}

/// Lays `change` over `base`. A key that `base` lacks, or a value of another type, is a problem.
fn merge(base: &mut Table, change: Table, at: &str, problems: &mut Vec<String>) {
    for (key, value) in change {
        let path = format!("{at}{key}");
        let Some(old) = base.get_mut(&key) else {
            let hint = nearest(&key, base.keys().map(String::as_str));
            problems.push(format!("unknown key {path}{hint}"));
            continue;
        };
        match (old, value) {
            (Value::Table(old), Value::Table(new)) => {
                merge(old, new, &format!("{path}."), problems);
            }
            (old @ Value::Float(_), Value::Integer(i)) => *old = Value::Float(i as f64),
            (old, new) if old.same_type(&new) => *old = new,
            (old, new) => problems.push(format!(
                "{path} = {new} is of type {}, expected {}",
                new.type_str(),
                old.type_str()
            )),
        }
    }
}

/// `table.key` and value of every key, in order.
fn flatten(at: &str, table: &Table, into: &mut Vec<(String, String)>) {
    for (key, value) in table {
        match value {
            Value::Table(table) => flatten(&format!("{at}{key}."), table, into),
            value => into.push((format!("{at}{key}"), value.to_string())),
        }
    }
}

fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|k| (strsim::damerau_levenshtein(word, k), k))
        .min()
        .filter(|(distance, k)| *distance <= k.len().max(word.len()) / 2)
        .map(|(_, k)| format!("; did you mean {k:?}?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
