//! Adam with visible moments, the schedule of its rate, and the running average of weights.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::kernels::{AdamTensors, adam};

pub use torch_ext::kernels::AdamConfig;

/// ‖x‖₂ of a flat tensor, a scalar of its kind. A sum of millions of squares in single precision stands still
/// where the terms become small against it, so blocks are summed in it, and their squares in double.
pub fn norm(x: &Tensor) -> Tensor {
    const BLOCK: i64 = 1024;
    let (count, double) = (x.numel() as i64, Kind::Double);
    let even = count - count % BLOCK;
    let blocks = x.narrow(0, 0, even).view([even / BLOCK, BLOCK]);
    let blocks = blocks.norm_scalaropt_dim(2.0, [1i64].as_slice(), false);
    let rest = x.narrow(0, even, count - even);
    let all = Tensor::cat(&[blocks, rest], 0).to_kind(double);
    all.square().sum(double).sqrt().to_kind(x.kind())
}

/// Adam over one flat tensor of parameters, one kernel an update.
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
    /// Updates done, a float on the device: an update that is passed over there does not count.
    steps: Tensor,
}

impl Adam {
    /// No update done yet.
    #[must_use]
    pub fn new(config: AdamConfig, parameters: &Tensor) -> Self {
        let steps = Tensor::zeros([], (Kind::Float, parameters.device()));
        Self { config, m: parameters.zeros_like(), v: parameters.zeros_like(), steps }
    }

    /// Updates done. Waits for the device.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.double_value(&[]) as u64
    }

    /// Goes on from this many updates, at most 2²⁴.
    pub fn set_steps(&mut self, steps: u64) {
        let _ = self.steps.fill_(steps as i64);
    }

    /// One update of `parameters` by `gradient`, both flat.
    ///
    /// # Panics
    /// If the tensors do not fit together.
    pub fn step(&mut self, parameters: &Tensor, gradient: &Tensor) {
        let factor = StepSizes::number(1.0, parameters.device());
        self.step_unless(None, parameters, gradient, &factor);
    }

    /// As [`Adam::step`], at `factor` (of [`StepSizes`]) times the rate. Where `fault` (a float scalar) is not 0, nothing
    /// changes.
    ///
    /// # Panics
    /// If the tensors do not fit together.
    pub fn step_unless(
        &mut self,
        fault: Option<&Tensor>,
        parameters: &Tensor,
        gradient: &Tensor,
        factor: &Tensor,
    ) {
        let tensors = AdamTensors { parameters, m: &self.m, v: &self.v, steps: &self.steps };
        adam(tensors, self.config, gradient, factor, fault);
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
    /// Updates before it begins; until then it is the weights themselves.
    pub start: u64,
}

impl AverageConfig {
    /// Decay of update number `updates` (from 0).
    #[must_use]
    pub fn decay_at(&self, updates: u64) -> f64 {
        let Some(t) = updates.checked_sub(self.start) else { return 0.0 };
        let t = t as f64;
        if self.ramp { self.decay.min((1.0 + t) / (10.0 + t)) } else { self.decay }
    }
}

/// The numbers of one step's updates, on the device: an update that is recorded there reads them anew each
/// time.
#[derive(Debug)]
pub struct StepSizes {
    /// Factor of every rate, a scalar.
    pub factor: Tensor,
    /// What the weights count for in the averages, 1 − decay, a scalar.
    pub weight: Tensor,
}

impl StepSizes {
    /// For parameters of these kinds.
    #[must_use]
    pub fn new(factor: f64, decay: f64, (kind, device): (Kind, Device)) -> Self {
        let weight = Tensor::full([0; 0], 1.0 - decay, (kind, device));
        Self { factor: Self::number(factor, device), weight }
    }

    /// In the kind in which libtorch's Adam reads a rate.
    fn number(value: f64, device: Device) -> Tensor {
        let kind = if device.is_cuda() { Kind::Float } else { Kind::Double };
        Tensor::full([0; 0], value, (kind, device))
    }

    /// average ← average + weight · (parameters − average).
    pub fn average(&self, average: &mut Tensor, parameters: &Tensor) {
        no_grad(|| {
            let _ = average.lerp_tensor_(parameters, &self.weight);
        });
    }
}

/// How the rates go down over a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// They stay.
    None,
    /// In a straight line to 0 at the last image.
    Linear,
    /// Along half a cosine to 0 at the last image.
    Cosine,
}

/// Factor of every rate as a function of the images seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Images over which the factor rises in a straight line from 0.
    pub warmup: f64,
    /// What follows.
    pub decay: Decay,
    /// Images of the whole run.
    pub images: f64,
}

impl Schedule {
    /// The factor, in [0, 1], once `images` have been seen.
    #[must_use]
    pub fn at(&self, images: f64) -> f64 {
        if images < self.warmup {
            return images / self.warmup;
        }
        let done = ((images - self.warmup) / (self.images - self.warmup).max(1.0)).min(1.0);
        match self.decay {
            Decay::None => 1.0,
            Decay::Linear => 1.0 - done,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
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
    fn a_norm_is_as_in_double_precision_whatever_the_length() {
        for count in [0, 1, 4095, 4097, 30_000_001] {
            let x = Tensor::full([count], 0.01, (Kind::Float, Device::Cpu));
            let (got, expected) =
                (norm(&x).double_value(&[]), f64::from(0.01f32) * (count as f64).sqrt());
            assert!((got - expected).abs() <= 2e-6 * expected, "{count}: {got}, not {expected}");
        }
        let x = Tensor::randn([100_000], (Kind::Double, Device::Cpu));
        assert!((norm(&x) - x.norm()).abs().double_value(&[]) < 1e-10);
    }

    #[test]
    fn a_faulty_update_leaves_weights_moments_and_count_as_they_were() {
        let p = Tensor::from_slice(&[1f32, 2.0]);
        let config = AdamConfig { rate: 0.1, beta1: 0.5, beta2: 0.9, eps: 1e-8 };
        let mut adam = Adam::new(config, &p);
        let mut step = |fault: f32, gradient: [f32; 2]| {
            let fault = Tensor::from(fault);
            let factor = StepSizes::number(1.0, Device::Cpu);
            adam.step_unless(Some(&fault), &p, &Tensor::from_slice(&gradient), &factor);
            ([p.copy(), adam.m.copy(), adam.v.copy()], adam.steps())
        };
        let before = step(0.0, [0.5, -0.5]);
        assert_ne!(before.0[0], Tensor::from_slice(&[1f32, 2.0]));
        assert_eq!(before.1, 1);
        assert_eq!(step(1.0, [f32::NAN, 1.0]), before);
    }

    #[test]
    fn the_average_of_a_constant_follows_its_closed_form() {
        let config = AverageConfig { decay: 0.9999, ramp: false, start: 0 };
        let (mut average, one) = (Tensor::from_slice(&[0f64]), Tensor::from_slice(&[1f64]));
        for t in 0..10_000 {
            if t == 1000 {
                assert!((average.double_value(&[0]) - 0.0951671).abs() < 1e-7);
            }
            let sizes = StepSizes::new(1.0, config.decay_at(t), (Kind::Double, Device::Cpu));
            sizes.average(&mut average, &one);
        }
        assert!((average.double_value(&[0]) - 0.6321390).abs() < 1e-7);
    }

    #[test]
    fn the_ramp_starts_low_and_ends_at_the_decay() {
        let config = AverageConfig { decay: 0.99, ramp: true, start: 5 };
        assert_eq!((config.decay_at(4), config.decay_at(5)), (0.0, 0.1));
        assert_eq!(config.decay_at(100_000), 0.99);
    }

    #[test]
    fn rates_rise_then_fall_as_told() {
        let at = |decay, images| Schedule { warmup: 10.0, decay, images: 110.0 }.at(images);
        for decay in [Decay::None, Decay::Linear, Decay::Cosine] {
            assert_eq!((at(decay, 0.0), at(decay, 5.0), at(decay, 10.0)), (0.0, 0.5, 1.0));
        }
        assert_eq!([60.0, 110.0, 120.0].map(|x| at(Decay::None, x)), [1.0; 3]);
        assert_eq!([60.0, 110.0, 120.0].map(|x| at(Decay::Linear, x)), [0.5, 0.0, 0.0]);
        assert!((at(Decay::Cosine, 35.0) - 0.853_553_4).abs() < 1e-6);
        assert_eq!(at(Decay::Cosine, 110.0), 0.0);
    }
}
