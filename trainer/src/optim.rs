//! Adam with visible moments, and the running average of weights.

use tch::{Tensor, no_grad};

/// Settings of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Learning rate.
    pub rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// Adam over one flat tensor of parameters.
///
/// # Source
/// Kingma & Ba 2014; β₁ = 0 as in Brock et al. 2018.
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    /// First moment, flat.
    pub m: Tensor,
    /// Second moment, flat.
    pub v: Tensor,
    /// Updates done.
    pub steps: u64,
}

impl Adam {
    /// No update done yet.
    #[must_use]
    pub fn new(config: AdamConfig, parameters: &Tensor) -> Self {
        Self { config, m: parameters.zeros_like(), v: parameters.zeros_like(), steps: 0 }
    }

    /// One update of `parameters` by `gradient`, both flat.
    pub fn step(&mut self, parameters: &Tensor, gradient: &Tensor) {
        let AdamConfig { rate, beta1, beta2, eps } = self.config;
        self.steps += 1;
        let correct = |beta: f64| 1.0 - beta.powf(self.steps as f64);
        let (first, second) = (correct(beta1), correct(beta2));
        no_grad(|| {
            let _ = self.m.lerp_(gradient, 1.0 - beta1);
            let _ = self.v.lerp_(&gradient.square(), 1.0 - beta2);
            let mut root = self.v.sqrt();
            let _ = root.g_div_scalar_(second.sqrt()).g_add_scalar_(eps);
            let mut move_by = &self.m / root;
            let _ = move_by.g_mul_scalar_(rate / first);
            let _ = parameters.shallow_clone().g_sub_(&move_by);
        });
    }
}

/// The running average of a network's weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AverageConfig {
    /// Decay an update.
    pub decay: f64,
    /// Whether the decay rises as (1 + t) / (10 + t) before it reaches `decay`, so that the first
    /// averages are not the initial weights.
    pub ramp: bool,
}

impl AverageConfig {
    /// Decay of update number `updates` (from 0).
    #[must_use]
    pub fn decay_at(&self, updates: u64) -> f64 {
        let t = updates as f64;
        if self.ramp { self.decay.min((1.0 + t) / (10.0 + t)) } else { self.decay }
    }

    /// average ← decay · average + (1 − decay) · parameters.
    pub fn update(&self, average: &mut Tensor, parameters: &Tensor, updates: u64) {
        no_grad(|| {
            let _ = average.lerp_(parameters, 1.0 - self.decay_at(updates));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adam_without_first_moment_moves_as_computed_by_hand() {
        let p = Tensor::from_slice(&[0f64]);
        let mut adam =
            Adam::new(AdamConfig { rate: 2e-4, beta1: 0.0, beta2: 0.999, eps: 1e-8 }, &p);
        let mut before = 0.0;
        for (gradient, moved) in [(0.3, 2.0000e-4), (-0.1, -8.9461e-5)] {
            adam.step(&p, &Tensor::from_slice(&[gradient]));
            let now = p.double_value(&[0]);
            assert!((before - now - moved).abs() < 1e-8, "{} is not {moved}", before - now);
            before = now;
        }
    }

    #[test]
    fn the_average_of_a_constant_follows_its_closed_form() {
        let config = AverageConfig { decay: 0.9999, ramp: false };
        let (mut average, one) = (Tensor::from_slice(&[0f64]), Tensor::from_slice(&[1f64]));
        for t in 0..10_000 {
            if t == 1000 {
                assert!((average.double_value(&[0]) - 0.0951671).abs() < 1e-7);
            }
            config.update(&mut average, &one, t);
        }
        assert!((average.double_value(&[0]) - 0.6321390).abs() < 1e-7);
    }

    #[test]
    fn the_ramp_starts_low_and_ends_at_the_decay() {
        let config = AverageConfig { decay: 0.99, ramp: true };
        assert_eq!(config.decay_at(0), 0.1);
        assert_eq!(config.decay_at(100_000), 0.99);
    }
}
