//! What is trained, and how: the part of a run's configuration that moves its numbers.

mod beyond;

use serde::{Deserialize, Serialize};
use toml::Value;

pub use crate::networks::{
    DiscriminatorConfig, EncoderConfig, Family, GeneratorConfig, ImageConfig, LatentConfig,
    RootPad, Terms,
};
pub use crate::nn::MlpConfig;
pub use crate::optim::{AdamConfig, AverageConfig, Decay, Schedule};
use crate::presets::{Problems, one_line, overlay, preset, refuse};
pub use crate::random::Prior;
pub use beyond::{AugmentConfig, BeyondConfig};

/// Networks, losses, optimisers and the step. Every key has its meaning in `trainer/presets/base.toml`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
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
    /// The step.
    pub train: StepConfig,
    /// Whether an update that meets a loss, gradient or weight that is not finite is left out.
    pub skip_faults: bool,
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

/// The step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct StepConfig {
    pub batch: i64,
    pub micro_batch: i64,
    pub steps: u64,
    pub d_steps: u32,
    pub seed: u64,
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

impl Recipe {
    /// That of a preset with `key=value` overrides; what a preset says of the run around the step is left aside.
    ///
    /// # Errors
    /// [`Problems`], all of them: unknown names (with the nearest known one), wrong types, values that do not fit together.
    pub fn preset(name: &str, overrides: &[impl AsRef<str>]) -> Result<Self, Problems> {
        #[derive(Deserialize)]
        struct Tables {
            latent: LatentConfig,
            g: GeneratorConfig,
            f: ImageConfig,
            h: MlpConfig,
            j: MlpConfig,
            e: EncoderConfig,
            loss: Terms,
            beyond: BeyondConfig,
            opt: OptConfig,
            train: StepConfig,
            health: Health,
        }
        #[derive(Deserialize)]
        struct Health {
            on_fault: String,
        }
        let (mut table, mut problems) = (preset(name)?, vec![]);
        let overrides: Vec<_> = overrides.iter().map(|text| text.as_ref().to_owned()).collect();
        overlay(&mut table, &overrides, &mut problems);
        refuse(problems)?;
        let tables = Value::Table(table).try_into();
        let Tables { latent, g, f, h, j, e, loss, beyond, opt, train, health } =
            tables.map_err(|e| Problems(vec![one_line(&e.to_string())]))?;
        let skip_faults = match health.on_fault.as_str() {
            "skip" => true,
            "halt" | "rollback" => false,
            other => {
                let problem = format!("health.on_fault = {other:?} is not halt, skip or rollback");
                return Err(Problems(vec![problem]));
            }
        };
        let recipe = Self { latent, g, f, h, j, e, loss, beyond, opt, train, skip_faults };
        refuse(recipe.problems())?;
        Ok(recipe)
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

    /// Images of one forward and backward pass, over all ranks.
    #[must_use]
    pub fn micro_batch(&self) -> i64 {
        if self.train.micro_batch == 0 { self.train.batch } else { self.train.micro_batch }
    }

    /// What does not hold together: key, value and a way out.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.problems_of_shapes();
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
        require(t.d_steps > 0, "train.d_steps = 0, but D has to train".into());
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
        problems
    }

    fn problems_of_shapes(&self) -> Vec<String> {
        let mut problems = vec![];
        let mut require = |ok: bool, problem: String| {
            if !ok {
                problems.push(problem);
            }
        };
        let Self { latent, g, f, h, j, loss, .. } = self;
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
        if loss.encode() {
            problems.extend(self.problems_of_encoder());
        }
        problems
    }

    fn problems_of_encoder(&self) -> Vec<String> {
        let mut problems = vec![];
        let mut require = |ok: bool, problem: String| {
            if !ok {
                problems.push(problem);
            }
        };
        let Self { latent, g, e, .. } = self;
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
