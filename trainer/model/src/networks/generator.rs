use serde::{Deserialize, Serialize};
use tch::Tensor;
use torch_ext::kernels::upsample;

use crate::nn::{
    Attention, BatchNorm, ConditionalBatchNorm, Conv, ConvShape, Init, Linear, Recompute, Scope,
    Shared, Statistics, channels_last, recomputed,
};
use crate::random::Prior;

/// The latent z: its width and how G cuts it up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentConfig {
    /// Z, the width of z: `chunk` × (blocks of G + 1).
    pub dim: i64,
    /// Width of one chunk.
    pub chunk: i64,
    /// Law of z.
    pub prior: Prior,
}

/// Size of the generator.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorConfig {
    /// Width multiplier.
    pub ch: i64,
    /// R_G: 16, 32, 64, 128 or 256.
    pub res: i64,
    /// Side at which the attention block sits; 0 for none.
    pub attn_res: i64,
    /// Width of the one learned embedding row that conditions every block.
    pub shared_dim: i64,
    /// Epsilon of batch norm.
    pub bn_eps: f64,
    /// Epsilon of spectral norm.
    pub sn_eps: f64,
    /// Whether blocks are computed again in the backward pass instead of kept.
    pub recompute: bool,
}

impl GeneratorConfig {
    /// Channels going into each block and out of the last, in units of `ch`.
    ///
    /// # Source
    /// BigGAN-PyTorch for 32 to 256 px; 16 px is ours.
    #[must_use]
    pub fn multipliers(&self) -> Option<&'static [i64]> {
        match self.res {
            16 => Some(&[4, 2, 1]),
            32 => Some(&[4, 4, 4, 4]),
            64 => Some(&[16, 16, 8, 4, 2]),
            128 => Some(&[16, 16, 8, 4, 2, 1]),
            256 => Some(&[16, 16, 8, 8, 4, 2, 1]),
            _ => None,
        }
    }

    /// Number of the block with attention behind it, and its channels.
    pub(crate) fn attends(&self) -> Option<(usize, i64)> {
        let m = self.multipliers()?;
        let at = (0..m.len() - 1).find(|i| BOTTOM << (i + 1) == self.attn_res)?;
        Some((at, m[at + 1] * self.ch))
    }
}

/// Momentum of G's stored statistics. They only serve before standing statistics are collected.
const MOMENTUM: f64 = 0.1;
/// Side of the first feature map.
const BOTTOM: i64 = 4;

/// The generator: unconditional BigGAN ("single label"), z cut into one chunk a block.
///
/// # Shapes
/// z (N, Z) to images (N, 3, R_G, R_G) in [-1, 1].
///
/// # Source
/// Paper §3.1; Brock et al. 2018; sizes and epsilons of the released checkpoint.
#[derive(Debug)]
pub struct Generator {
    chunk: i64,
    embedding: Tensor,
    first: Linear,
    width: i64,
    blocks: Vec<Shared<(Block, Option<Attention>)>>,
    recompute: bool,
    norm: BatchNorm,
    last: Conv,
}

#[derive(Debug)]
struct Block {
    norm1: ConditionalBatchNorm,
    conv1: Conv,
    norm2: ConditionalBatchNorm,
    conv2: Conv,
    shortcut: Conv,
}

impl Generator {
    /// All parameters of G; `config` has passed its checks.
    ///
    /// # Panics
    /// If `res` is not one of the supported sides.
    #[must_use]
    pub fn new(s: &Scope<'_>, config: GeneratorConfig, latent: LatentConfig) -> Self {
        let m = config.multipliers().expect("a checked config has a supported side");
        let sn = Some(config.sn_eps);
        let condition = latent.chunk + config.shared_dim;
        let width = m[0] * config.ch;
        let out = m[m.len() - 1] * config.ch;
        let block = |i: usize| {
            let s = s.sub(format!("block{i}"));
            let (cin, cout) = (m[i] * config.ch, m[i + 1] * config.ch);
            let attention = (config.attends() == Some((i, cout)))
                .then(|| Attention::new(&s.sub("attention"), cout, config.sn_eps));
            Shared::new((Block::new(&s, cin, cout, condition, &config), attention))
        };
        Self {
            chunk: latent.chunk,
            embedding: s.parameter("embedding", &[1, config.shared_dim], Init::Orthogonal),
            first: Linear::new(&s.sub("first"), latent.chunk, width * BOTTOM * BOTTOM, sn),
            width,
            blocks: (0..m.len() - 1).map(block).collect(),
            recompute: config.recompute,
            norm: BatchNorm::affine(&s.sub("norm"), out, config.bn_eps, MOMENTUM),
            last: Conv::new(
                &s.sub("last"),
                ConvShape { cin: out, cout: 3, kernel: 3, stride: 1, bias: true, sn_eps: sn },
            ),
        }
    }

    /// Images (N, 3, R_G, R_G) of latents z (N, Z).
    pub fn forward(&self, z: &Tensor, statistics: Statistics) -> Tensor {
        let chunks = z.split(self.chunk, 1);
        // One row for each z. Adding nothing, unlike naming N, holds for other batches in a trace.
        let e = z.narrow(1, 0, 1).zeros_like() + &self.embedding;
        let bottom = self.first.forward(&chunks[0]).view([-1, self.width, BOTTOM, BOTTOM]);
        let mut x = channels_last(&bottom);
        for (block, z) in self.blocks.iter().zip(&chunks[1..]) {
            let inputs = vec![x, Tensor::cat(&[z, &e], 1)];
            x = if self.recompute {
                recomputed(block, inputs, statistics)
            } else {
                block.lock().run(&inputs, statistics)
            };
        }
        self.last.forward(&self.norm.forward(&x, statistics).relu()).tanh()
    }
}

impl Recompute for (Block, Option<Attention>) {
    /// Of x and the condition.
    fn run(&self, inputs: &[Tensor], statistics: Statistics) -> Tensor {
        let x = self.0.forward(&inputs[0], &inputs[1], statistics);
        self.1.as_ref().map_or_else(|| x.shallow_clone(), |attention| attention.forward(&x))
    }

    fn parameters(&self) -> Vec<Tensor> {
        let block = &self.0;
        let norms = [&block.norm1, &block.norm2].into_iter();
        let convs = [&block.conv1, &block.conv2, &block.shortcut].into_iter();
        let own = norms.flat_map(ConditionalBatchNorm::parameters);
        own.chain(convs.flat_map(Conv::parameters))
            .chain(self.1.iter().flat_map(Attention::parameters))
            .collect()
    }
}

impl Block {
    fn new(s: &Scope<'_>, cin: i64, cout: i64, condition: i64, c: &GeneratorConfig) -> Self {
        let sn_eps = Some(c.sn_eps);
        let conv = |name, cin, kernel| {
            Conv::new(&s.sub(name), ConvShape { cin, cout, kernel, stride: 1, bias: true, sn_eps })
        };
        let norm = |name, channels| {
            let eps = (c.bn_eps, c.sn_eps);
            ConditionalBatchNorm::new(&s.sub(name), channels, condition, eps, MOMENTUM)
        };
        Self {
            norm1: norm("norm1", cin),
            conv1: conv("conv1", cin, 3),
            norm2: norm("norm2", cout),
            conv2: conv("conv2", cout, 3),
            shortcut: conv("shortcut", cin, 1),
        }
    }

    /// (N, cin, H, W) to (N, cout, 2H, 2W). The 1×1 shortcut commutes with nearest upsampling, so it
    /// runs at the low resolution: the same result for a quarter of the work.
    fn forward(&self, x: &Tensor, c: &Tensor, statistics: Statistics) -> Tensor {
        let h = upsample(&self.norm1.forward(x, c, statistics).relu());
        let h = self.norm2.forward(&self.conv1.forward(&h), c, statistics).relu();
        self.conv2.forward(&h) + upsample(&self.shortcut.forward(x))
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, no_grad};

    use super::*;
    use crate::nn::{Fill, Params};

    const LATENT: LatentConfig = LatentConfig { dim: 60, chunk: 20, prior: Prior::Normal };
    const CONFIG: GeneratorConfig = GeneratorConfig {
        ch: 8,
        res: 16,
        attn_res: 16,
        shared_dim: 8,
        bn_eps: 1e-4,
        sn_eps: 1e-4,
        recompute: false,
    };

    /// Activations entering each block, then the image.
    fn activations(g: &Generator, z: &Tensor) -> Vec<Tensor> {
        let chunks = z.split(g.chunk, 1);
        let e = g.embedding.expand([z.size()[0], -1], false);
        let mut all = vec![g.first.forward(&chunks[0]).view([-1, g.width, BOTTOM, BOTTOM])];
        for (block, z) in g.blocks.iter().zip(&chunks[1..]) {
            let c = Tensor::cat(&[z, &e], 1);
            all.push(block.lock().0.forward(all.last().unwrap(), &c, Statistics::Stored));
        }
        all.push(g.forward(z, Statistics::Stored));
        all
    }

    #[test]
    fn a_chunk_of_z_changes_only_the_blocks_from_its_own_on() {
        let kinds = (Kind::Float, Device::Cpu);
        let fill = Fill::Seed { seed: 1, network: 0 };
        let (g, _params) = Params::build(kinds, fill, |s| Generator::new(s, CONFIG, LATENT));
        let z = Tensor::randn([3, 60], kinds);
        let before = no_grad(|| activations(&g, &z));
        assert_eq!(before.last().unwrap().size(), [3, 3, 16, 16]);
        assert!(before.last().unwrap().abs().max().double_value(&[]) <= 1.0);
        for chunk in 0..3 {
            let moved = z.copy();
            let _ = moved.narrow(1, chunk * 20, 20).g_add_scalar_(1.0);
            let after = no_grad(|| activations(&g, &moved));
            let changed: Vec<_> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
            let expected: Vec<_> = (0..before.len()).map(|i| i >= chunk as usize).collect();
            assert_eq!(changed, expected, "chunk {chunk}");
        }
    }

    #[test]
    fn the_shortcut_at_low_resolution_equals_the_one_at_high_resolution() {
        let kinds = (Kind::Double, Device::Cpu);
        let fill = Fill::Seed { seed: 1, network: 0 };
        let (block, _params) = Params::build(kinds, fill, |s| Block::new(s, 6, 4, 5, &CONFIG));
        let x = Tensor::randn([2, 6, 5, 5], kinds);
        let low = upsample(&block.shortcut.forward(&x));
        let high = block.shortcut.forward(&upsample(&x));
        assert!((low - high).abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn blocks_and_the_whole_agree_with_pytorch() {
        crate::parity::check(
            "g_block",
            &[("x", &[3, 8, 4, 4]), ("c", &[3, 5])],
            |s| Block::new(s, 8, 4, 5, &CONFIG),
            |block, x| block.forward(&x[0], &x[1], Statistics::Batch),
        );
        let config = GeneratorConfig { shared_dim: 6, ..CONFIG };
        crate::parity::check(
            "generator",
            &[("z", &[3, 60])],
            |s| Generator::new(s, config, LATENT),
            |g, x| g.forward(&x[0], Statistics::Batch),
        );
    }
}
