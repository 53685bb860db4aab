//! Signs of a collapse: measured at every log interval on fixed latents and images, judged in words.
//!
//! Ours: the paper says only that training was watched. The signals are those that people look at by
//! hand when a GAN fails; the thresholds are far from what healthy runs show.

use std::sync::Arc;

use bigbigan_model::images::Images;
use bigbigan_model::loss;
use bigbigan_model::networks::Scores;
use bigbigan_model::nn::{Params, Statistics};
use bigbigan_model::optim::norm;
use bigbigan_model::random::{Key, Prior, Purpose};
use bigbigan_model::state::TrainState;
use pipeline::{Cursor, Dataset, LastBatch, Loader};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use crate::config::Config;
use crate::device;
use crate::error::{Error, Result};
use crate::eval::loader_config;

/// Most rows that the signals are measured on.
const ROWS: i64 = 64;

/// What a log interval says of a run's health. Spreads are ratios to the same of real images, so that
/// 1 is what data look like.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Signals {
    /// Share of D's hinge terms on real pairs that are zero (score ≥ 1), over all enabled terms.
    pub saturation_real: f64,
    /// The same on generated pairs (score ≤ −1).
    pub saturation_fake: f64,
    /// Half the sum of D's mean scores of real and of generated pairs, each summed over the enabled terms.
    /// Where it swings more than the gap, D's hinges are shut on one side, then on the other. Absent in
    /// older logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_common: Option<f64>,
    /// D's mean score of real pairs less that of generated ones, each summed over the enabled terms. Absent
    /// in older logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_gap: Option<f64>,
    /// Standard deviation of a pixel over the images G(z), mean over pixels.
    pub pixel_spread: f64,
    /// Standard deviation of F(G(z)), mean over features.
    pub feature_spread: f64,
    /// Median distance of an image G(z) to its nearest fellow: near 0 for one image or a few.
    pub nearest: f64,
    /// Mean absolute difference of neighbouring pixels of G(z): large for noise.
    pub roughness: f64,
    /// Standard deviation of μ(x), mean over dimensions, over that of the prior; without an encoder
    /// absent, as the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent_spread: Option<f64>,
    /// Mean absolute difference of x and G(μ(x)), in [0, 2].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconstruction: Option<f64>,
    /// Largest singular value of G's weights.
    pub sigma_g: f64,
    /// Largest singular value of D's weights.
    pub sigma_d: f64,
    /// Norm of Adam's first moment of G: of the last gradient where opt.beta1 is 0.
    pub grad_g: f64,
    /// The same of E.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_e: Option<f64>,
    /// The same of D.
    pub grad_d: f64,
}

/// Fixed latents and images that the signals are measured on.
#[derive(Debug)]
pub struct Probe {
    images: Images,
    z: Tensor,
    noise: Tensor,
    prior: Prior,
}

impl Probe {
    /// Up to 64 images of the training split, as training sees them, and as many latents.
    ///
    /// # Errors
    /// [`Error::Data`] if an image cannot be read.
    pub fn new(config: &Config, data: &Arc<Dataset>, device: Device) -> Result<Self> {
        let rows = ROWS.min(config.recipe().micro_batch()).min(data.len() as i64);
        let loader = pipeline::LoaderConfig {
            batch: rows as usize,
            depth: 1,
            last: LastBatch::Keep,
            epochs: Some(1),
            ..loader_config(config)
        };
        let (large, small) = (loader.large as i64, config.g.res);
        let memory = device::memory(device);
        let mut loader = Loader::start(data.clone(), loader, Cursor::default(), memory)?;
        let batch = loader.next().ok_or_else(|| {
            let problem = "the training split is empty: build it from at least two images";
            Error::Config { problems: vec![problem.into()] }
        })??;
        Ok(Self::of_images(config, device::upload(&batch, large, small, device), device))
    }

    /// Over images that are there, and as many latents.
    #[must_use]
    pub fn of_images(config: &Config, images: Images, device: Device) -> Self {
        let (rows, latent) = (images.len(), config.latent);
        let key = |purpose| Key { seed: config.train.seed, purpose, step: 0, update: 0 };
        let z = key(Purpose::Sample).latents(latent.prior, 0..rows, latent.dim, device);
        let noise = key(Purpose::Evaluate).normal(0..rows, latent.dim, device);
        Self { images, z, noise, prior: latent.prior }
    }

    /// The fixed real images.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// G(z) of the live generator on the fixed latents; no stored statistics move.
    pub fn samples(&self, state: &TrainState) -> Tensor {
        no_grad(|| state.g.live.net.forward(&self.z, Statistics::Repeat))
    }

    /// The signals of the live networks. Changes nothing; reads one small tensor back.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn measure(&self, state: &TrainState) -> Result<Signals> {
        let rows = self.images.len();
        let (values, encodes) = no_grad(|| {
            let real = &self.images.small;
            let fake = self.samples(state);
            let codes = state.e.as_ref().map(|e| {
                let code = e.live.net.forward(&self.images.large, Statistics::Repeat).code;
                (code.sample(&self.noise), code.mean().shallow_clone())
            });
            let latent = codes.as_ref().map(|(sample, _)| Tensor::cat(&[sample, &self.z], 0));
            let image = Tensor::cat(&[real, &fake], 0);
            let f = state.d.net.image_features(&image);
            let scores = state.d.net.scores_of(&f, latent.as_ref());
            let (f_real, f_fake) = (f.narrow(0, 0, rows), f.narrow(0, rows, rows));
            let mut values = Vec::from(saturation(&scores, rows));
            values.push(spread(&fake) / spread(real));
            values.push(spread(&f_fake) / spread(&f_real));
            values.push(nearest(&fake) / nearest(real));
            values.push(roughness(&fake) / roughness(real));
            values.extend([largest(&state.g.live.params), largest(&state.d.params)]);
            values.extend([norm(&state.g.live.adam.m), norm(&state.d.adam.m)]);
            let of = |first| loss::encoder(&scores.rows(first, rows));
            let (of_real, of_fake) = (of(0), of(rows));
            values.extend([(&of_real + &of_fake) / 2.0, of_real - of_fake]);
            if let (Some(e), Some((_, mean))) = (&state.e, &codes) {
                let again = state.g.live.net.forward(mean, Statistics::Repeat);
                values.push(spread(mean) / self.prior.deviation());
                values.push((again - real).abs().mean(Kind::Float));
                values.push(norm(&e.live.adam.m));
            }
            (Tensor::stack(&values, 0), codes.is_some())
        });
        let v = Vec::<f64>::try_from(values.to_kind(Kind::Double))?;
        let of_encoder = |i: usize| encodes.then(|| v[i]);
        Ok(Signals {
            saturation_real: v[0],
            saturation_fake: v[1],
            pixel_spread: v[2],
            feature_spread: v[3],
            nearest: v[4],
            roughness: v[5],
            sigma_g: v[6],
            sigma_d: v[7],
            grad_g: v[8],
            grad_d: v[9],
            score_common: Some(v[10]),
            score_gap: Some(v[11]),
            latent_spread: of_encoder(12),
            reconstruction: of_encoder(13),
            grad_e: of_encoder(14),
        })
    }
}

/// Shares of zero hinge terms: of the first `rows` scores (real) and of the rest.
fn saturation(scores: &Scores, rows: i64) -> [Tensor; 2] {
    let all = |s: Scores| Tensor::cat(&s.terms().collect::<Vec<_>>(), 0);
    let share = |t: Tensor| t.to_kind(Kind::Float).mean(Kind::Float);
    [share(all(scores.rows(0, rows)).ge(1.0)), share(all(scores.rows(rows, rows)).le(-1.0))]
}

/// Standard deviation over rows, mean over the rest.
fn spread(x: &Tensor) -> Tensor {
    x.flatten(1, -1).std_dim([0i64].as_slice(), false, false).mean(Kind::Float)
}

/// Median over rows of the distance to the nearest other row.
fn nearest(x: &Tensor) -> Tensor {
    let flat = x.flatten(1, -1);
    // Exact: the faster way by products loses small distances to rounding.
    let distances = Tensor::cdist(&flat, &flat, 2.0, 2);
    let own = Tensor::eye(x.size()[0], (x.kind(), x.device())) * 1e9;
    (distances + own).amin([1i64].as_slice(), false).median()
}

/// Mean absolute difference of horizontal neighbours.
fn roughness(x: &Tensor) -> Tensor {
    let width = x.size()[3] - 1;
    (x.narrow(3, 1, width) - x.narrow(3, 0, width)).abs().mean(Kind::Float)
}

/// Largest singular value among the normalised weights.
fn largest(params: &Params) -> Tensor {
    let sigmas: Vec<_> = params.norms().map(|(_, norm)| norm.sigma.shallow_clone()).collect();
    Tensor::stack(&sigmas, 0).max()
}

/// An alarm: a line of `incidents.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alarm {
    /// Step at which it was raised.
    pub step: u64,
    /// Its name.
    pub incident: &'static str,
    /// What was seen, and since when.
    pub text: String,
}

/// Steps that a sign has to hold before it counts, and to be gone before it can count again.
const HOLD: u64 = 100;

/// One sign.
#[derive(Debug)]
struct Rule {
    name: &'static str,
    words: &'static str,
    value: fn(&Signals, &Usual) -> Option<f64>,
    bad: fn(f64) -> bool,
    /// Clear of it by a margin.
    well: fn(f64) -> bool,
}

const RULES: [Rule; 6] = [
    Rule {
        name: "samples_alike",
        words: "generated images hardly differ from each other (their nearest distance over that \
                of real images)",
        value: |s, _| Some(s.nearest),
        bad: |v| v < 0.1,
        well: |v| v > 0.2,
    },
    Rule {
        name: "samples_noise",
        words: "generated images look like noise (their roughness over that of real images)",
        value: |s, _| Some(s.roughness),
        bad: |v| v > 3.0,
        well: |v| v < 2.5,
    },
    Rule {
        name: "discriminator_won",
        words: "D tells real from generated pairs without effort (share of zero hinge terms)",
        value: |s, _| Some(s.saturation_real.min(s.saturation_fake)),
        bad: |v| v > 0.98,
        well: |v| v < 0.95,
    },
    Rule {
        name: "codes_alike",
        words: "E gives all images nearly the same code (spread of its mean over the prior's)",
        value: |s, _| s.latent_spread,
        bad: |v| v < 0.02,
        well: |v| v > 0.04,
    },
    Rule {
        name: "sigma_grew",
        words: "a largest singular value left its course (over its own running mean)",
        value: |s, usual| Some((s.sigma_g / usual.sigma_g).max(s.sigma_d / usual.sigma_d)),
        bad: |v| v > 2.0,
        well: |v| v < 1.5,
    },
    Rule {
        name: "gradient_grew",
        words: "a gradient left its course (its norm over its own running mean)",
        value: |s, usual| {
            let e = s.grad_e.zip(usual.grad_e).map_or(0.0, |(e, usual)| e / usual);
            Some((s.grad_g / usual.grad_g).max(s.grad_d / usual.grad_d).max(e))
        },
        bad: |v| v > 50.0,
        well: |v| v < 10.0,
    },
];

/// Running means that drift is told from.
#[derive(Debug, Clone, Copy)]
struct Usual {
    sigma_g: f64,
    sigma_d: f64,
    grad_g: f64,
    grad_d: f64,
    grad_e: Option<f64>,
}

impl Usual {
    fn of(s: &Signals) -> Self {
        let (sigma_g, sigma_d) = (s.sigma_g, s.sigma_d);
        Self { sigma_g, sigma_d, grad_g: s.grad_g, grad_d: s.grad_d, grad_e: s.grad_e }
    }

    /// Follows by a twentieth an interval. What is far off is not followed: a jump stays one.
    fn follow(&mut self, s: &Signals) {
        let follow = |usual: &mut f64, value: f64, limit: f64| {
            if value < limit * *usual {
                *usual += (value - *usual) / 20.0;
            }
        };
        follow(&mut self.sigma_g, s.sigma_g, 1.5);
        follow(&mut self.sigma_d, s.sigma_d, 1.5);
        follow(&mut self.grad_g, s.grad_g, 10.0);
        follow(&mut self.grad_d, s.grad_d, 10.0);
        if let (Some(usual), Some(value)) = (&mut self.grad_e, s.grad_e) {
            follow(usual, value, 10.0);
        }
    }
}

/// How one sign stands.
#[derive(Debug, Clone, Copy, Default)]
struct Watch {
    /// Since when it is bad (before it fired) or well (after).
    since: Option<u64>,
    fired: bool,
}

/// Turns signals into alarms. What it says depends on the signals it was shown alone, so that a
/// resumed run that shows it the earlier lines goes on as if it had not stopped.
#[derive(Debug, Default)]
pub struct Judge {
    usual: Option<Usual>,
    watches: [Watch; RULES.len()],
}

impl Judge {
    /// Shows it the signals of `step`; steps rise. Alarms are raised when a sign has held for 100
    /// steps and at least two intervals, and again only after it was as long gone.
    pub fn judge(&mut self, step: u64, signals: &Signals) -> Vec<Alarm> {
        let usual = *self.usual.get_or_insert_with(|| Usual::of(signals));
        let mut alarms = vec![];
        for (rule, watch) in RULES.iter().zip(&mut self.watches) {
            let Some(value) = (rule.value)(signals, &usual) else { continue };
            let turning = if watch.fired { (rule.well)(value) } else { (rule.bad)(value) };
            if !turning {
                watch.since = None;
                continue;
            }
            let since = *watch.since.get_or_insert(step);
            if step.saturating_sub(since) < HOLD {
                continue;
            }
            *watch = Watch { since: None, fired: !watch.fired };
            if watch.fired {
                let text = format!("{}: {value:.3} since step {since}", rule.words);
                alarms.push(Alarm { step, incident: rule.name, text });
            }
        }
        if let Some(usual) = &mut self.usual {
            usual.follow(signals);
        }
        alarms
    }
}

#[cfg(test)]
mod tests;
