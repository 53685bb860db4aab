use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::LatentConfig;
use crate::nn::{
    Attention, Conv, ConvShape, Linear, Mlp, MlpConfig, Recompute, Scope, Shared, Statistics,
    recomputed,
};

/// Size of F, the image part of D.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// Width multiplier.
    pub ch: i64,
    /// R_G: side of the images D sees.
    pub res: i64,
    /// Side of the feature map behind which the attention block sits; 0 for none.
    pub attn_res: i64,
    /// Epsilon of spectral norm, for the whole of D.
    pub sn_eps: f64,
    /// Whether blocks are computed again in the backward pass instead of kept.
    pub recompute: bool,
}

impl ImageConfig {
    /// Channels out of each block in units of `ch`, and how many blocks halve the side.
    ///
    /// # Source
    /// BigGAN-PyTorch for 32 to 256 px; 16 px is ours.
    #[must_use]
    pub fn blocks(&self) -> Option<(&'static [i64], usize)> {
        match self.res {
            16 => Some((&[1, 2, 4, 4], 2)),
            32 => Some((&[4, 4, 4, 4], 2)),
            64 => Some((&[1, 2, 4, 8, 16], 4)),
            128 => Some((&[1, 2, 4, 8, 16, 16], 5)),
            256 => Some((&[1, 2, 4, 8, 8, 16, 16], 6)),
            _ => None,
        }
    }

    /// Number of the block with attention behind it, and its channels.
    pub(crate) fn attends(&self) -> Option<(usize, i64)> {
        let (m, halvings) = self.blocks()?;
        let at = (0..halvings).find(|i| self.res >> (i + 1) == self.attn_res)?;
        Some((at, m[at] * self.ch))
    }

    /// Width of f.
    #[must_use]
    pub fn features(&self) -> Option<i64> {
        self.blocks().map(|(m, _)| m[m.len() - 1] * self.ch)
    }
}

/// Which of the three terms count. E and its parts of D exist where `sxz` or `sz` does.
///
/// # Source
/// Paper §3.1, Table 1 (No Unaries, x Unary Only, z Unary Only, No E).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// The joint term s_xz.
    pub sxz: bool,
    /// The image term s_x.
    pub sx: bool,
    /// The latent term s_z.
    pub sz: bool,
}

impl Terms {
    /// Whether the model has an encoder at all.
    #[must_use]
    pub fn encode(&self) -> bool {
        self.sxz || self.sz
    }

    /// Terms that count.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.sxz) + usize::from(self.sx) + usize::from(self.sz)
    }
}

/// Sizes of D's parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiscriminatorConfig {
    /// F.
    pub f: ImageConfig,
    /// H.
    pub h: MlpConfig,
    /// J.
    pub j: MlpConfig,
    /// Which terms exist.
    pub terms: Terms,
}

/// Scores, each (N), of the terms that count.
#[derive(Debug)]
pub struct Scores {
    /// θ_xz · J(F(x), H(z)).
    pub sxz: Option<Tensor>,
    /// θ_x · F(x).
    pub sx: Option<Tensor>,
    /// θ_z · H(z).
    pub sz: Option<Tensor>,
}

impl Scores {
    /// The terms that count, in the order xz, x, z.
    pub fn terms(&self) -> impl Iterator<Item = &Tensor> {
        [&self.sxz, &self.sx, &self.sz].into_iter().flatten()
    }

    /// Rows `start..start + length`.
    #[must_use]
    pub fn rows(&self, start: i64, length: i64) -> Self {
        let cut = |s: &Option<Tensor>| s.as_ref().map(|s| s.narrow(0, start, length));
        Self { sxz: cut(&self.sxz), sx: cut(&self.sx), sz: cut(&self.sz) }
    }
}

/// An image and a latent that are claimed to belong together: (x, E(x)) or (G(z), z).
#[derive(Debug)]
pub struct Pair {
    /// (N, 3, R_G, R_G).
    pub image: Tensor,
    /// (N, Z); absent in a model without encoder.
    pub latent: Option<Tensor>,
}

/// D = {F, H, J} and the three projections θ, all spectrally normalised, no batch norm.
///
/// # Source
/// Paper §2, §3.1. J sees f and h side by side (ours: the natural reading).
#[derive(Debug)]
pub struct Discriminator {
    terms: Terms,
    f: ImagePart,
    h: Option<Mlp>,
    j: Option<Mlp>,
    theta_x: Option<Linear>,
    theta_z: Option<Linear>,
    theta_xz: Option<Linear>,
}

impl Discriminator {
    /// All parameters of D; `config` has passed its checks.
    ///
    /// # Panics
    /// If `f.res` is not one of the supported sides.
    #[must_use]
    pub fn new(s: &Scope<'_>, c: DiscriminatorConfig, latent: LatentConfig) -> Self {
        let sn = c.f.sn_eps;
        let width = c.f.features().expect("a checked config has a supported side");
        let theta =
            |name, on: bool, width| on.then(|| Linear::new(&s.sub(name), width, 1, Some(sn)));
        Self {
            terms: c.terms,
            f: ImagePart::new(&s.sub("f"), c.f),
            h: c.terms.encode().then(|| Mlp::discriminating(&s.sub("h"), latent.dim, c.h, sn)),
            j: c.terms.sxz.then(|| Mlp::discriminating(&s.sub("j"), width + c.h.width, c.j, sn)),
            theta_x: theta("theta_x", c.terms.sx, width),
            theta_z: theta("theta_z", c.terms.sz, c.h.width),
            theta_xz: theta("theta_xz", c.terms.sxz, c.j.width),
        }
    }

    /// Scores of pairs.
    #[must_use]
    pub fn scores(&self, pair: &Pair) -> Scores {
        let f = self.image_features(&pair.image);
        self.scores_of(&f, pair.latent.as_ref())
    }

    /// f = F(x), (N, 16 ch) at 128 px: after ReLU and the *sum* over positions.
    pub fn image_features(&self, x: &Tensor) -> Tensor {
        self.f.forward(x)
    }

    /// h = H(z), (N, H's width), where this D has an H.
    #[must_use]
    pub fn latent_features(&self, z: &Tensor) -> Option<Tensor> {
        self.h.as_ref().map(|h| h.forward(z))
    }

    /// j = J(f, h), (N, J's width), where this D has a J.
    #[must_use]
    pub fn joint_features(&self, f: &Tensor, h: &Tensor) -> Option<Tensor> {
        self.j.as_ref().map(|j| j.forward(&Tensor::cat(&[f, h], 1)))
    }

    /// Scores from f (N, F) and z (N, Z).
    #[must_use]
    pub fn scores_of(&self, f: &Tensor, z: Option<&Tensor>) -> Scores {
        let h = z.and_then(|z| self.latent_features(z));
        let j = h.as_ref().and_then(|h| self.joint_features(f, h));
        let score = |theta: &Option<Linear>, x: Option<&Tensor>| {
            theta.as_ref().zip(x).map(|(theta, x)| theta.forward(x).squeeze_dim(1))
        };
        Scores {
            sxz: score(&self.theta_xz, j.as_ref()),
            sx: score(&self.theta_x, Some(f)),
            sz: score(&self.theta_z, h.as_ref()),
        }
    }

    /// Which terms this D has.
    #[must_use]
    pub fn terms(&self) -> Terms {
        self.terms
    }
}

/// F: BigGAN's discriminator trunk without class projection.
#[derive(Debug)]
struct ImagePart {
    blocks: Vec<Shared<(Block, Option<Attention>)>>,
    recompute: bool,
}

#[derive(Debug)]
struct Block {
    conv1: Conv,
    conv2: Conv,
    shortcut: Option<Conv>,
    first: bool,
    halves: bool,
}

impl ImagePart {
    fn new(s: &Scope<'_>, c: ImageConfig) -> Self {
        let (m, halvings) = c.blocks().expect("a checked config has a supported side");
        let block = |i: usize| {
            let s = s.sub(format!("block{i}"));
            let cin = if i == 0 { 3 } else { m[i - 1] * c.ch };
            let cout = m[i] * c.ch;
            let halves = i < halvings;
            let attention = (c.attends() == Some((i, cout)))
                .then(|| Attention::new(&s.sub("attention"), cout, c.sn_eps));
            Shared::new((Block::new(&s, cin, cout, (i == 0, halves), c.sn_eps), attention))
        };
        Self { blocks: (0..m.len()).map(block).collect(), recompute: c.recompute }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        for block in &self.blocks {
            // No batch norm: there are no statistics to be of one kind or another.
            let (inputs, statistics) = (vec![x], Statistics::Stored);
            x = if self.recompute {
                recomputed(block, inputs, statistics)
            } else {
                block.lock().run(&inputs, statistics)
            };
        }
        x.relu().sum_dim_intlist([2i64, 3].as_slice(), false, None::<Kind>)
    }
}

impl Recompute for (Block, Option<Attention>) {
    fn run(&self, inputs: &[Tensor], _: Statistics) -> Tensor {
        let x = self.0.forward(&inputs[0]);
        self.1.as_ref().map_or_else(|| x.shallow_clone(), |attention| attention.forward(&x))
    }

    fn parameters(&self) -> Vec<Tensor> {
        let block = &self.0;
        let convs = [Some(&block.conv1), Some(&block.conv2), block.shortcut.as_ref()];
        let own = convs.into_iter().flatten().flat_map(Conv::parameters);
        own.chain(self.1.iter().flat_map(Attention::parameters)).collect()
    }
}

impl Block {
    fn new(s: &Scope<'_>, cin: i64, cout: i64, (first, halves): (bool, bool), sn: f64) -> Self {
        let conv = |name, cin, kernel| {
            let shape = ConvShape { cin, cout, kernel, stride: 1, bias: true, sn_eps: Some(sn) };
            Conv::new(&s.sub(name), shape)
        };
        Self {
            conv1: conv("conv1", cin, 3),
            conv2: conv("conv2", cout, 3),
            shortcut: (cin != cout || halves).then(|| conv("shortcut", cin, 1)),
            first,
            halves,
        }
    }

    /// The 1×1 shortcut commutes with average pooling, so it always runs after it: the same result
    /// for a quarter of the work. The first block sees the image without a ReLU.
    fn forward(&self, x: &Tensor) -> Tensor {
        let h = if self.first { x.shallow_clone() } else { x.relu() };
        let h = self.pool(&self.conv2.forward(&self.conv1.forward(&h).relu()));
        match &self.shortcut {
            Some(shortcut) => h + shortcut.forward(&self.pool(x)),
            None => h + x,
        }
    }

    fn pool(&self, x: &Tensor) -> Tensor {
        if self.halves {
            x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>)
        } else {
            x.shallow_clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, no_grad};

    use super::*;
    use crate::nn::{Fill, Params};

    const F64: (Kind, Device) = (Kind::Double, Device::Cpu);
    const FILL: Fill = Fill::Seed { seed: 1, network: 0 };
    const CONFIG: ImageConfig =
        ImageConfig { ch: 8, res: 32, attn_res: 16, sn_eps: 1e-4, recompute: false };

    #[test]
    fn the_first_block_sees_negative_pixels_through_both_branches() {
        let (block, _params) =
            Params::build(F64, FILL, |s| Block::new(s, 3, 8, (true, true), 1e-4));
        let x = (Tensor::full([1, 3, 4, 4], -0.5, F64)).set_requires_grad(true);
        let h = block.pool(&block.conv2.forward(&block.conv1.forward(&x).relu()));
        let shortcut = block.shortcut.as_ref().unwrap().forward(&block.pool(&x));
        for branch in [h, shortcut] {
            let loss = branch.sum(Kind::Double);
            let g = Tensor::run_backward(&[loss], &[&x], false, false).remove(0);
            assert!(g.abs().max().double_value(&[]) > 0.0);
        }
    }

    #[test]
    fn features_are_sums_over_positions() {
        let (f, _params) = Params::build(F64, FILL, |s| ImagePart::new(s, CONFIG));
        let x = Tensor::randn([2, 3, 32, 32], F64);
        let mut map = x.shallow_clone();
        for block in &f.blocks {
            map = block.lock().run(&[map], Statistics::Stored);
        }
        assert_eq!(map.size(), [2, 32, 8, 8]);
        let mean = map.relu().mean_dim([2i64, 3].as_slice(), false, Kind::Double);
        let off = (f.forward(&x) - mean * 64.0).abs().max();
        assert!(off.double_value(&[]) < 1e-9);
    }

    #[test]
    fn one_pass_over_both_sides_gives_the_scores_of_two() {
        let latent = LatentConfig { dim: 12, chunk: 4, prior: crate::random::Prior::Normal };
        let mlp = MlpConfig { layers: 4, width: 16 };
        let terms = Terms { sxz: true, sx: true, sz: true };
        let config = DiscriminatorConfig { f: CONFIG, h: mlp, j: mlp, terms };
        let (d, _params) = Params::build(F64, FILL, |s| Discriminator::new(s, config, latent));
        let (x, z) = (Tensor::randn([4, 3, 32, 32], F64), Tensor::randn([4, 12], F64));
        let pair = |from, rows| Pair {
            image: x.narrow(0, from, rows),
            latent: Some(z.narrow(0, from, rows)),
        };
        no_grad(|| {
            let whole = d.scores(&pair(0, 4));
            for (from, part) in [(0, d.scores(&pair(0, 2))), (2, d.scores(&pair(2, 2)))] {
                for (a, b) in whole.rows(from, 2).terms().zip(part.terms()) {
                    assert!((a - b).abs().max().double_value(&[]) < 1e-12);
                }
            }
            assert_eq!(whole.terms().count(), 3);
            assert!(whole.terms().all(|s| s.size() == [4]));
        });
    }

    #[test]
    fn blocks_agree_with_pytorch() {
        for (case, shape, kind) in [
            ("d_block_first", [2, 3, 8, 8], (true, true)),
            ("d_block", [2, 4, 8, 8], (false, true)),
            ("d_block_last", [2, 8, 4, 4], (false, false)),
        ] {
            crate::parity::check(
                case,
                &[("x", &shape)],
                |s| Block::new(s, shape[1], 8, kind, 1e-4),
                |block, x| block.forward(&x[0]),
            );
        }
    }
}
