//! Random numbers as arguments: every draw is keyed by what it is for, so nothing hidden has to be
//! saved, and neither ranks, micro-batches nor evaluation can move what training draws.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::memory::to_device_non_blocking;

/// What a stream of random numbers is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights.
    Init = 1,
    /// Latents z drawn from the prior during training.
    Prior = 2,
    /// Noise of the stochastic encoder during training.
    Posterior = 3,
    /// Latents of sample grids and of standing statistics.
    Sample = 4,
    /// Encoder noise in evaluation.
    Evaluate = 5,
    /// The order of samples in probes.
    Probe = 6,
    /// Other views of training images.
    Views = 7,
    /// How what D sees is augmented.
    Augment = 8,
}

/// The key of a family of streams, one stream a row.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// `train.seed`.
    pub seed: u64,
    /// What the numbers are for.
    pub purpose: Purpose,
    /// Training step (G/E updates done so far), or an index of the purpose's own.
    pub step: u64,
    /// Update within the step: 0 … d_steps-1 for D, d_steps for G and E.
    pub update: u32,
}

impl Key {
    /// The generator of row `row` (its position in the global batch). The 256-bit ChaCha key *is*
    /// the tuple, so two streams never coincide.
    #[must_use]
    pub fn stream(&self, row: u64) -> ChaCha8Rng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..12].copy_from_slice(&(self.purpose as u32).to_le_bytes());
        key[12..16].copy_from_slice(&self.update.to_le_bytes());
        key[16..24].copy_from_slice(&self.step.to_le_bytes());
        key[24..].copy_from_slice(&row.to_le_bytes());
        ChaCha8Rng::from_seed(key)
    }

    /// Standard normal numbers, shape (rows, width), for these rows of the global batch.
    pub fn normal(&self, rows: impl Iterator<Item = i64>, width: i64, device: Device) -> Tensor {
        to_device_non_blocking(&self.rows(rows, width, StandardNormal), device)
    }

    /// Latents of `prior`, shape (rows, width), for these rows of the global batch.
    ///
    /// # Panics
    /// Never.
    pub fn latents(
        &self,
        prior: Prior,
        rows: impl Iterator<Item = i64>,
        width: i64,
        device: Device,
    ) -> Tensor {
        match prior {
            Prior::Normal => self.normal(rows, width, device),
            Prior::Uniform => {
                let unit = Uniform::new(-1f32, 1f32).expect("-1 < 1");
                to_device_non_blocking(&self.rows(rows, width, unit), device)
            }
        }
    }

    /// Standard normal numbers no further than `most` from 0, shape (rows, width): those beyond are drawn
    /// again.
    ///
    /// # Panics
    /// If `most` is not above 0.
    ///
    /// # Source
    /// Brock et al. 2018, the truncation trick.
    pub fn truncated(
        &self,
        most: f64,
        rows: impl Iterator<Item = i64>,
        width: i64,
        device: Device,
    ) -> Tensor {
        assert!(most > 0.0, "a truncation above 0");
        to_device_non_blocking(&self.rows(rows, width, Truncated(most as f32)), device)
    }

    fn rows(
        &self,
        rows: impl Iterator<Item = i64>,
        width: i64,
        law: impl Distribution<f32>,
    ) -> Tensor {
        let (mut values, mut count) = (vec![], 0);
        for row in rows {
            count += 1;
            let mut stream = self.stream(row as u64);
            values.extend((0..width).map(|_| law.sample(&mut stream)));
        }
        Tensor::from_slice(&values).view([count, width]).to_kind(Kind::Float)
    }
}

struct Truncated(f32);

impl Distribution<f32> for Truncated {
    fn sample<R: rand::Rng + ?Sized>(&self, random: &mut R) -> f32 {
        loop {
            let value: f32 = StandardNormal.sample(random);
            if value.abs() <= self.0 {
                return value;
            }
        }
    }
}

/// The law of the latents z.
///
/// # Source
/// Paper §3.1: N(0, I); U(-1, 1) in one row of Table 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prior {
    /// N(0, I).
    Normal,
    /// U(-1, 1) in each dimension; the encoder then ends in tanh.
    Uniform,
}

impl Prior {
    /// Standard deviation of one dimension.
    #[must_use]
    pub fn deviation(self) -> f64 {
        match self {
            Self::Normal => 1.0,
            Self::Uniform => 1.0 / 3f64.sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { seed: 7, purpose: Purpose::Prior, step: 3, update: 1 };

    #[test]
    fn rows_do_not_depend_on_how_the_batch_is_split() {
        let whole = KEY.normal(0..6, 5, Device::Cpu);
        let parts = [KEY.normal(0..2, 5, Device::Cpu), KEY.normal(2..6, 5, Device::Cpu)];
        assert_eq!(whole, Tensor::cat(&parts, 0));
    }

    #[test]
    fn every_part_of_the_key_changes_the_draw() {
        let base = KEY.normal(0..1, 8, Device::Cpu);
        for other in [
            Key { seed: 8, ..KEY },
            Key { purpose: Purpose::Posterior, ..KEY },
            Key { step: 4, ..KEY },
            Key { update: 0, ..KEY },
        ] {
            assert_ne!(base, other.normal(0..1, 8, Device::Cpu));
        }
        assert_ne!(base, KEY.normal(1..2, 8, Device::Cpu));
    }

    #[test]
    fn truncated_numbers_are_normal_within_their_bound() {
        let z = KEY.truncated(1.0, 0..1000, 50, Device::Cpu);
        assert!(z.abs().max().double_value(&[]) <= 1.0);
        // Var = 1 - 2 φ(1) / (Φ(1) - Φ(-1)).
        assert!((z.var(false).double_value(&[]) - 0.2911).abs() < 5e-3);
        let parts =
            [KEY.truncated(1.0, 0..2, 50, Device::Cpu), KEY.truncated(1.0, 2..6, 50, Device::Cpu)];
        assert_eq!(z.narrow(0, 0, 6), Tensor::cat(&parts, 0));
        assert_eq!(KEY.truncated(9.0, 0..6, 5, Device::Cpu), KEY.normal(0..6, 5, Device::Cpu));
    }

    #[test]
    fn the_uniform_prior_has_variance_one_third() {
        let z = KEY.latents(Prior::Uniform, 0..1000, 100, Device::Cpu);
        assert!(z.abs().max().double_value(&[]) <= 1.0);
        assert!((z.var(false).double_value(&[]) - 1.0 / 3.0).abs() < 3e-3);
    }
}
