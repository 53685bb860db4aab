use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{LatentConfig, resnet::ResNet, revnet::RevNet, small::Small};
use crate::nn::{Linear, Mlp, MlpConfig, Scope, Statistics};
use crate::random::Prior;

/// The trunk's family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Pre-activation bottleneck ResNet, depth 50 or 101.
    ResnetV2,
    /// Reversible ResNet after Kolesnikov et al. 2019, depth 50.
    Revnet,
    /// A pre-activation ResNet of basic blocks for 32 px images, depth 6n + 2. Ours.
    Small,
}

/// What lies around the image that a ResNet's or RevNet's root max-pool reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootPad {
    /// Zeros, as in Kolesnikov et al.'s code: at the border no value is below them.
    Zero,
    /// Nothing: of what lies outside no value is taken. As runs before this key had it.
    Lowest,
}

/// Size of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Trunk.
    pub family: Family,
    /// Layers of the trunk.
    pub depth: i64,
    /// Width multiplier.
    pub width: i64,
    /// R_E: side of the images E sees.
    pub res: i64,
    /// Whether E ends in a Gaussian that is sampled, or in a point.
    pub stochastic: bool,
    /// Linear layers between the pooled feature and the head.
    pub mlp_layers: i64,
    /// Their width.
    pub mlp_width: i64,
    /// Padding of the root's max-pool; a small trunk has none.
    pub root_pad: RootPad,
    /// Epsilon of batch norm.
    pub bn_eps: f64,
    /// Momentum of the stored statistics, in torch's convention.
    pub bn_momentum: f64,
    /// Whether blocks are computed again in the backward pass instead of kept. A RevNet always is.
    pub recompute: bool,
}

impl EncoderConfig {
    /// Width of a, which is that of the trunk's last stage.
    #[must_use]
    pub fn features(&self) -> i64 {
        match self.family {
            Family::ResnetV2 | Family::Revnet => 2048 * self.width,
            Family::Small => Small::features(*self),
        }
    }
}

/// What E says of a batch of images.
#[derive(Debug)]
pub struct Encoded {
    /// The trunk's output after BN and ReLU, (N, features, R_E / 32, R_E / 32), of a small trunk R_E / 8.
    pub map: Tensor,
    /// a, its mean over positions ("AvePool"), (N, features).
    pub features: Tensor,
    /// The latent code.
    pub code: Code,
}

/// A latent code ẑ.
#[derive(Debug)]
pub enum Code {
    /// A Gaussian, both (N, Z).
    Gaussian {
        /// Mean μ.
        mean: Tensor,
        /// Standard deviation σ = softplus(ŝ) > 0.
        stdev: Tensor,
    },
    /// A point, (N, Z).
    Point(Tensor),
}

impl Code {
    /// ẑ = μ + ε σ for a standard normal ε (N, Z); a point is itself.
    pub fn sample(&self, noise: &Tensor) -> Tensor {
        match self {
            Self::Gaussian { mean, stdev } => mean.addcmul(noise, stdev),
            Self::Point(z) => z.shallow_clone(),
        }
    }

    /// The centre of the code, (N, Z).
    pub fn mean(&self) -> &Tensor {
        match self {
            Self::Gaussian { mean, .. } | Self::Point(mean) => mean,
        }
    }
}

#[derive(Debug)]
enum Trunk {
    ResNet(ResNet),
    RevNet(RevNet),
    Small(Small),
}

/// E: trunk, mean over positions, residual MLP, one linear head. No spectral norm.
///
/// # Shapes
/// x (N, 3, R_E, R_E) in [-1, 1] to features (N, 2048·width) and a code (N, Z).
///
/// # Source
/// Paper §3.1; App. A.
#[derive(Debug)]
pub struct Encoder {
    trunk: Trunk,
    mlp: Mlp,
    head: Linear,
    stochastic: bool,
    prior: Prior,
}

impl Encoder {
    /// All parameters of E; `config` has passed its checks.
    #[must_use]
    pub fn new(s: &Scope<'_>, c: EncoderConfig, latent: LatentConfig) -> Self {
        let t = &s.sub("trunk");
        let trunk = match c.family {
            Family::ResnetV2 => Trunk::ResNet(ResNet::new(t, c)),
            Family::Revnet => Trunk::RevNet(RevNet::new(t, c)),
            Family::Small => Trunk::Small(Small::new(t, c)),
        };
        let mlp = MlpConfig { layers: c.mlp_layers, width: c.mlp_width };
        let out = if c.stochastic { 2 * latent.dim } else { latent.dim };
        Self {
            trunk,
            mlp: Mlp::encoding(&s.sub("mlp"), c.features(), mlp),
            head: Linear::new(&s.sub("head"), c.mlp_width, out, None),
            stochastic: c.stochastic,
            prior: latent.prior,
        }
    }

    /// Features and code of images x.
    #[must_use]
    pub fn forward(&self, x: &Tensor, statistics: Statistics) -> Encoded {
        self.forward_stages(x, statistics).1
    }

    /// Also the mean over positions of what each stage of the trunk puts out, (N, channels) each.
    #[must_use]
    pub fn forward_stages(&self, x: &Tensor, statistics: Statistics) -> (Vec<Tensor>, Encoded) {
        let mut stages = vec![];
        let map = self.map(x, statistics, |map| stages.push(mean(map)));
        let features = mean(&map);
        let code = self.code(&features);
        (stages, Encoded { map, features, code })
    }

    /// a alone, (N, features).
    pub fn features(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        mean(&self.map(x, statistics, |_| {}))
    }

    fn map(&self, x: &Tensor, statistics: Statistics, seen: impl FnMut(&Tensor)) -> Tensor {
        match &self.trunk {
            Trunk::ResNet(trunk) => trunk.forward(x, statistics, seen),
            Trunk::RevNet(trunk) => trunk.forward(x, statistics, seen),
            Trunk::Small(trunk) => trunk.forward(x, statistics, seen),
        }
    }

    fn code(&self, features: &Tensor) -> Code {
        let out = self.head.forward(&self.mlp.forward(features));
        if self.stochastic {
            let halves = out.chunk(2, 1);
            Code::Gaussian { mean: halves[0].shallow_clone(), stdev: halves[1].softplus() }
        } else if self.prior == Prior::Uniform {
            Code::Point(out.tanh())
        } else {
            Code::Point(out)
        }
    }
}

/// Mean over positions.
fn mean(map: &Tensor) -> Tensor {
    map.mean_dim([2i64, 3].as_slice(), false, None::<Kind>)
}

/// What the tests of the trunks build.
#[cfg(test)]
pub(super) const TINY: EncoderConfig = EncoderConfig {
    family: Family::ResnetV2,
    depth: 50,
    width: 1,
    res: 64,
    stochastic: true,
    mlp_layers: 2,
    mlp_width: 16,
    root_pad: RootPad::Zero,
    bn_eps: 1e-3,
    bn_momentum: 0.01,
    recompute: false,
};

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::nn::{Fill, Params};

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
    const LATENT: LatentConfig = LatentConfig { dim: 12, chunk: 4, prior: Prior::Normal };

    fn encoder(family: Family, depth: i64, stochastic: bool, prior: Prior) -> (Encoder, Params) {
        let config = EncoderConfig { family, depth, stochastic, ..TINY };
        let fill = Fill::Seed { seed: 1, network: 1 };
        Params::build(FLOAT, fill, |s| Encoder::new(s, config, LatentConfig { prior, ..LATENT }))
    }

    #[test]
    fn features_do_not_depend_on_the_side_and_are_not_negative() {
        for (family, depth, width) in
            [(Family::ResnetV2, 50, 2048), (Family::Revnet, 50, 2048), (Family::Small, 8, 128)]
        {
            let (e, _params) = encoder(family, depth, true, Prior::Normal);
            for side in [64, 96] {
                let x = Tensor::randn([2, 3, side, side], FLOAT);
                let encoded = tch::no_grad(|| e.forward(&x, Statistics::Stored));
                assert_eq!(encoded.features.size(), [2, width]);
                assert!(encoded.features.min().double_value(&[]) >= 0.0);
                assert_eq!(encoded.code.mean().size(), [2, 12]);
            }
        }
    }

    #[test]
    fn sigma_is_softplus_and_samples_have_the_code_s_mean_and_spread() {
        for (raw, expected) in [(0f32, std::f64::consts::LN_2), (-2., 0.126928)] {
            let got = Tensor::from_slice(&[raw]).softplus().double_value(&[0]);
            assert!((got - expected).abs() < 1e-6);
        }
        let (mean, stdev) = (Tensor::full([100_000, 1], 2.0, FLOAT), 0.5);
        let code = Code::Gaussian { stdev: mean.full_like(stdev), mean: mean.shallow_clone() };
        let z = code.sample(&Tensor::randn([100_000, 1], FLOAT));
        assert!((z.mean(Kind::Double).double_value(&[]) - 2.0).abs() < 0.02);
        assert!((z.std(true).double_value(&[]) - stdev).abs() < 0.005);
    }

    #[test]
    fn a_point_code_ignores_the_noise_and_the_uniform_one_stays_below_one() {
        let x = Tensor::randn([4, 3, 32, 32], FLOAT) * 9.0;
        let (e, _params) = encoder(Family::Small, 8, false, Prior::Uniform);
        let code = e.forward(&x, Statistics::Batch).code;
        let noise = Tensor::randn([4, 12], FLOAT);
        assert_eq!(code.sample(&noise), code.sample(&(&noise + 1.0)));
        assert!(code.mean().abs().max().double_value(&[]) < 1.0);
    }
}
