use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Linear, Scope};

/// Depth and width of a residual MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// Linear layers; even, two make a block.
    pub layers: i64,
    /// Width of every layer.
    pub width: i64,
}

#[derive(Debug)]
struct Block {
    first: Linear,
    second: Linear,
    projection: Option<Linear>,
}

/// Residual blocks of two linear layers.
///
/// Block: r = x in the first block, else ReLU(x); u = L2(ReLU(L1(r))); out = u + (P x where the
/// widths differ, else x), P without bias.
///
/// # Shapes
/// (N, input) to (N, width).
///
/// # Source
/// Paper §3.1 gives depth and width; the inside of a block is unpublished and ours.
#[derive(Debug)]
pub struct Mlp {
    blocks: Vec<Block>,
    relu_at_end: bool,
}

impl Mlp {
    /// For D (H and J): spectrally normalised, with a ReLU after the last block.
    #[must_use]
    pub fn discriminating(s: &Scope<'_>, input: i64, c: MlpConfig, sn_eps: f64) -> Self {
        Self { blocks: blocks(s, input, c, Some(sn_eps)), relu_at_end: true }
    }

    /// For E: plain, ending in the last block's sum.
    #[must_use]
    pub fn encoding(s: &Scope<'_>, input: i64, c: MlpConfig) -> Self {
        Self { blocks: blocks(s, input, c, None), relu_at_end: false }
    }

    /// (N, input) to (N, width).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        for (i, block) in self.blocks.iter().enumerate() {
            let r = if i == 0 { x.shallow_clone() } else { x.relu() };
            let u = block.second.forward(&block.first.forward(&r).relu());
            x = match &block.projection {
                Some(p) => u + p.forward(&x),
                None => u + x,
            };
        }
        if self.relu_at_end { x.relu() } else { x }
    }
}

fn blocks(s: &Scope<'_>, input: i64, c: MlpConfig, sn: Option<f64>) -> Vec<Block> {
    let one = |i: i64| {
        let s = s.sub(i);
        let input = if i == 0 { input } else { c.width };
        let projection = (input != c.width)
            .then(|| Linear::without_bias(&s.sub("projection"), input, c.width, sn));
        Block {
            first: Linear::new(&s.sub("first"), input, c.width, sn),
            second: Linear::new(&s.sub("second"), c.width, c.width, sn),
            projection,
        }
    };
    (0..c.layers / 2).map(one).collect()
}
