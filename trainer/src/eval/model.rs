//! G and E as they are evaluated.

mod images;

use std::path::Path;
use std::sync::Arc;

use bigbigan_model::config::Precision;
use bigbigan_model::images::Images;
use bigbigan_model::networks::{Encoded, Encoder, Generator};
use bigbigan_model::nn::{Fill, Params, Statistics};
use bigbigan_model::random::{Key, Prior, Purpose};
use bigbigan_model::state::TrainState;
use common::stop::Stop;
use pipeline::{BadSamples, Dataset, LoaderConfig};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::context::allow_tf32;

use crate::checkpoint::{self, Manifest};
use crate::config::{Change, Config};
use crate::error::{Error, Result};

/// Which weights a model holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// The averages over training: what the paper evaluates.
    Average,
    /// Those that training goes on with.
    Live,
    /// Those before step 1: the baseline.
    Initial,
}

/// What was evaluated; part of every line of `metrics.jsonl` and `evaluations.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// G/E updates done.
    pub step: u64,
    /// Which weights.
    pub weights: Variant,
    /// SHA-256 of the checkpoint's manifest, which carries those of all its files, or of an exported
    /// generator's file; none inside a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Images behind batch norm's standing statistics.
    pub standing_images: i64,
    /// Bound of the latents that images are generated from; none for the whole prior.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncation: Option<f64>,
}

/// G and E for evaluation: batch norm uses standing statistics, collected for these very weights.
#[derive(Debug)]
pub struct Model {
    config: Config,
    device: Device,
    subject: Subject,
    g: Generator,
    g_params: Params,
    e: Option<(Encoder, Params)>,
    /// Ends whatever runs over images.
    stop: Stop,
}

/// The configuration of the checkpoint in `path`, with what may change between two sessions as `config` has it.
fn made_with(manifest: &Manifest, config: &Config, path: &Path) -> Result<Config> {
    let Some(made_with) = manifest.made_with(path)? else { return Ok(config.clone()) };
    let moved: Vec<_> =
        made_with.changes(config).iter().filter(|c| !c.is_free()).map(Change::shown).collect();
    if !moved.is_empty() {
        let (path, moved) = (path.display(), moved.join(", "));
        tracing::warn!(
            "{path}: config.toml differs from what it was made with, which is used ({moved})"
        );
    }
    made_with.with_free_of(config)
}

impl Model {
    /// The averages of a training state. `train` is the training split, whose images E's statistics
    /// are collected from; without it E keeps the live network's running statistics.
    ///
    /// # Errors
    /// [`Error::Data`] if images cannot be read.
    pub fn averaged(
        config: &Config,
        state: &TrainState,
        train: Option<&Arc<Dataset>>,
        stop: &Stop,
    ) -> Result<Self> {
        Self::of_state(config, state, Variant::Average, train, stop)
    }

    fn of_state(
        config: &Config,
        state: &TrainState,
        variant: Variant,
        train: Option<&Arc<Dataset>>,
        stop: &Stop,
    ) -> Result<Self> {
        let device = state.d.params.kinds().1;
        let mut model = Self::unset(config, device, state.step, variant);
        model.stop = stop.clone();
        model.g_params.adopt(&state.g.average, &state.g.live.params);
        if let (Some((_, params)), Some(e)) = (&mut model.e, &state.e) {
            params.adopt(&e.average, &e.live.params);
        }
        model.collect(train)?;
        Ok(model)
    }

    /// From a checkpoint folder. `stop` ends this, and later work on the model. What the networks are, and all else
    /// that a run computes, is as the checkpoint was made with, whatever `config` says of it: a run's `config.toml`
    /// may have been changed since. Where they differ that is said.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] or [`Error::Data`].
    pub fn load(
        path: &Path,
        config: &Config,
        device: Device,
        variant: Variant,
        train: Option<&Arc<Dataset>>,
        stop: &Stop,
    ) -> Result<Self> {
        let manifest = checkpoint::verify(path)?;
        let config = &made_with(&manifest, config, path)?;
        if variant == Variant::Initial {
            let state = TrainState::new(&config.recipe(), device, true);
            return Self::of_state(config, &state, variant, train, stop);
        }
        let mut model = Self::unset(config, device, manifest.step, variant);
        model.stop = stop.clone();
        let read = match variant {
            Variant::Live => checkpoint::load_live,
            _ => checkpoint::load_average,
        };
        read(path, "generator", &mut model.g_params)?;
        if let Some((_, params)) = &mut model.e {
            read(path, "encoder", params)?;
        }
        model.subject.checkpoint = Some(checkpoint::hash_of(&path.join("manifest.json"))?);
        model.collect(train)?;
        Ok(model)
    }

    /// The configuration of networks that `trainer export` wrote into a folder. It names no data.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], [`Error::Config`].
    pub fn exported_config(folder: &Path) -> Result<Config> {
        Config::parse(&entry(&folder.join(EXPORTED), "config")?)
    }

    /// Whether `trainer export` wrote into a folder.
    #[must_use]
    pub fn is_exported(folder: &Path) -> bool {
        folder.join(EXPORTED).exists() && !folder.join("config.toml").exists()
    }

    /// Networks that `trainer export` wrote: averages with spectral norms folded in and standing
    /// statistics, which are used as they are. `stop` ends later work on the model.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where a name, shape or type differs from what `config` builds.
    pub fn exported(folder: &Path, config: &Config, device: Device, stop: &Stop) -> Result<Self> {
        let path = folder.join(EXPORTED);
        let step = entry(&path, "step")?;
        let wrong = || format!("its step is {step:?}, not a number");
        let step =
            step.parse().map_err(|_| Error::Checkpoint { path: path.clone(), reason: wrong() })?;
        let mut model = Self::unset(config, device, step, Variant::Average);
        model.stop = stop.clone();
        let tensors = |params: &Params| {
            let folded = params.folded().map(|(name, t)| (name.to_owned(), t.shallow_clone()));
            folded.chain(params.buffers()).collect::<checkpoint::Named>()
        };
        checkpoint::read_tensors(&path, &mut tensors(&model.g_params))?;
        if let Some((e, params)) = &model.e {
            let mut all = tensors(params);
            let x = Tensor::zeros([1, 3, config.e.res, config.e.res], (Kind::Float, device));
            let a = no_grad(|| e.features(&x, Statistics::Stored)).squeeze_dim(0);
            // Probes make these themselves.
            all.extend(["mean", "var"].map(|n| (format!("feature_norm.{n}"), a.zeros_like())));
            let path = folder.join("encoder.safetensors");
            if entry(&path, "step")? != step.to_string() {
                let reason = format!("is not of step {step}, as its generator is: export it again");
                return Err(Error::Checkpoint { path, reason });
            }
            checkpoint::read_tensors(&path, &mut all)?;
        }
        model.subject.checkpoint = Some(checkpoint::hash_of(&path)?);
        Ok(model)
    }

    /// Networks as they were before step 1, the baseline of every probe.
    ///
    /// # Errors
    /// [`Error::Data`] if images cannot be read.
    pub fn untrained(
        config: &Config,
        device: Device,
        train: &Arc<Dataset>,
        stop: &Stop,
    ) -> Result<Self> {
        let state = TrainState::new(&config.recipe(), device, true);
        Self::of_state(config, &state, Variant::Initial, Some(train), stop)
    }

    fn unset(config: &Config, device: Device, step: u64, weights: Variant) -> Self {
        let kinds = (Kind::Float, device);
        allow_tf32(config.train.precision == Precision::Tf32);
        let (g, g_params) =
            Params::build(kinds, Fill::Unset, |s| Generator::new(s, config.g, config.latent));
        let e = config.loss.encode().then(|| {
            Params::build(kinds, Fill::Unset, |s| Encoder::new(s, config.e, config.latent))
        });
        let standing_images = standing_batches(config) * pass(config);
        let subject =
            Subject { step, weights, checkpoint: None, standing_images, truncation: None };
        let stop = Stop::default();
        Self { config: config.clone(), device, subject, g, g_params, e, stop }
    }

    /// Standing statistics: the mean over `images.standing_images` of per-batch statistics, G's from
    /// fixed latents, E's from training images as training sees them.
    ///
    /// # Source
    /// Brock et al. 2018; the released generator's `accumulated_mean`. For E ours.
    fn collect(&mut self, train: Option<&Arc<Dataset>>) -> Result<()> {
        self.collect_generator();
        self.stop.check()?;
        let (Some((e, _)), Some(train)) = (&self.e, train) else { return Ok(()) };
        let (mode, count) = (self.config.data.mode, self.subject.standing_images);
        for (seen, images) in (0..).zip(self.images(train, mode, count)?) {
            let images = images?;
            let _ = no_grad(|| e.features(&images.large, Statistics::Collect { seen }));
        }
        Ok(())
    }

    fn collect_generator(&self) {
        for seen in 0..standing_batches(&self.config) {
            // Latents of their own: sample grids use index 0.
            let z = self.latents(1 + seen as u64, pass(&self.config));
            let _ = no_grad(|| self.g.forward(&z, Statistics::Collect { seen }));
        }
    }

    /// Generates from latents within `truncation` of 0 from now on, with statistics collected from such
    /// latents.
    ///
    /// # Errors
    /// [`Error::Config`] for a prior that is not normal, or a bound below 0.01.
    pub fn truncate(&mut self, truncation: Option<f64>) -> Result<()> {
        if let Some(most) = truncation {
            let refuse = |problem: String| Err(Error::Config { problems: vec![problem] });
            if self.config.latent.prior != Prior::Normal {
                return refuse("truncation is for the normal prior; this run's is uniform".into());
            }
            if most.is_nan() || most < 0.01 {
                return refuse(format!("a truncation of {most}; give a bound of at least 0.01"));
            }
        }
        if self.subject.truncation != truncation {
            self.subject.truncation = truncation;
            self.collect_generator();
        }
        Ok(())
    }

    /// Latents number `index`, (count, Z), the same for every step of a run.
    pub fn latents(&self, index: u64, count: i64) -> Tensor {
        self.latents_from(index, 0, count)
    }

    /// Rows `first..first + count` of latents number `index`.
    pub fn latents_from(&self, index: u64, first: i64, count: i64) -> Tensor {
        let seed = self.config.train.seed;
        let key = Key { seed, purpose: Purpose::Sample, step: index, update: 0 };
        let dim = self.config.latent.dim;
        match self.subject.truncation {
            None => key.latents(self.config.latent.prior, first..first + count, dim, self.device),
            Some(most) => key.truncated(most, first..first + count, dim, self.device),
        }
    }

    /// G(z), (N, 3, R_G, R_G) in [-1, 1].
    pub fn generate(&self, z: &Tensor) -> Tensor {
        no_grad(|| self.g.forward(z, Statistics::Stored))
    }

    /// a of images (N, 3, R_E, R_E), (N, features).
    ///
    /// # Errors
    /// [`Error::Config`] if the model has no encoder.
    pub fn features(&self, images: &Images) -> Result<Tensor> {
        let e = self.encoder()?;
        Ok(no_grad(|| e.features(&images.large, Statistics::Stored)))
    }

    /// What E says of images, with the pooled output of each of its stages.
    ///
    /// # Errors
    /// [`Error::Config`] if the model has no encoder.
    pub fn encode(&self, images: &Images) -> Result<(Vec<Tensor>, Encoded)> {
        let e = self.encoder()?;
        Ok(no_grad(|| e.forward_stages(&images.large, Statistics::Stored)))
    }

    /// G(μ(x)): reconstructions from the mean of the code, (N, 3, R_G, R_G).
    ///
    /// # Errors
    /// [`Error::Config`] if the model has no encoder.
    pub fn reconstruct(&self, images: &Images) -> Result<Tensor> {
        Ok(self.generate(self.encode(images)?.1.code.mean()))
    }

    /// G(ẑ) for a draw ẑ ~ E(x), the same for every call.
    ///
    /// # Errors
    /// [`Error::Config`] if the model has no encoder.
    pub fn reconstruct_sampled(&self, images: &Images) -> Result<Tensor> {
        let seed = self.config.train.seed;
        let key = Key { seed, purpose: Purpose::Evaluate, step: 0, update: 0 };
        let noise = key.normal(0..images.len(), self.config.latent.dim, self.device);
        Ok(self.generate(&self.encode(images)?.1.code.sample(&noise)))
    }

    fn encoder(&self) -> Result<&Encoder> {
        let problem = || Error::Config {
            problems: vec!["this model has no encoder (loss.sxz and loss.sz are off)".into()],
        };
        self.e.as_ref().map(|(e, _)| e).ok_or_else(problem)
    }

    /// G and its tensors.
    #[must_use]
    pub fn generator(&self) -> (&Generator, &Params) {
        (&self.g, &self.g_params)
    }

    /// E and its tensors, where the model has one.
    #[must_use]
    pub fn encoder_and_params(&self) -> Option<(&Encoder, &Params)> {
        self.e.as_ref().map(|(e, params)| (e, params))
    }

    /// The configuration it was built from.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What it is, for the record.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// What ends work on it.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// The device it is on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }
}

/// The file that an exported model is known by.
const EXPORTED: &str = "generator.safetensors";

/// An entry of what an exported file says of itself.
fn entry(path: &Path, key: &str) -> Result<String> {
    let found = checkpoint::note_of(path)?.remove(key);
    let reason = || format!("it has no entry {key:?}: not a file of trainer export");
    found.ok_or_else(|| Error::Checkpoint { path: path.to_owned(), reason: reason() })
}

/// Images that go through a network at once: one device evaluates, whatever the number of ranks.
fn pass(config: &Config) -> i64 {
    config.recipe().micro_batch().min(256)
}

fn standing_batches(config: &Config) -> i64 {
    (config.images.standing_images / pass(config)).max(1)
}

/// The loader that a configuration's training needs.
#[must_use]
pub fn loader_config(config: &Config) -> LoaderConfig {
    let threads = match config.data.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    // Without an encoder only R_G is needed.
    let large = if config.loss.encode() { config.e.res } else { config.g.res };
    LoaderConfig {
        batch: config.train.batch as usize,
        large: large as usize,
        small: Some(config.g.res as usize),
        mode: config.data.mode,
        filter: config.data.filter,
        shuffle: config.data.shuffle,
        seed: config.train.seed,
        threads,
        depth: config.data.depth,
        bad: match config.data.max_bad_share {
            0.0 => BadSamples::Halt,
            max_share => BadSamples::Skip { max_share },
        },
        ..LoaderConfig::default()
    }
}

/// Pixels a side of a loader's large and small rows.
pub(crate) fn sides(config: &LoaderConfig) -> (i64, i64) {
    (config.large as i64, config.small.unwrap_or(0) as i64)
}
