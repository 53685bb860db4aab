use tch::Tensor;

use super::EncoderConfig;
use super::resnet::{conv, forward, norm};
use crate::nn::{BatchNorm, Conv, Recompute, Scope, Shared, Statistics};

/// Channels of the three stages, times `width`.
const CHANNELS: [i64; 3] = [32, 64, 128];

/// Trunk for 32 px images: a 3×3 root, then three stages of (depth − 2) / 6 basic pre-activation
/// blocks, each stage halving the side at its first block. Ours, sized for a CPU.
///
/// # Shapes
/// (N, 3, R, R) to (N, 128·width, R/8, R/8), after the last BN and ReLU.
#[derive(Debug)]
pub(super) struct Small {
    root: Conv,
    stages: Vec<Vec<Shared<Basic>>>,
    end: BatchNorm,
    recompute: bool,
}

impl Small {
    pub(super) fn features(c: EncoderConfig) -> i64 {
        CHANNELS[2] * c.width
    }

    pub(super) fn new(s: &Scope<'_>, c: EncoderConfig) -> Self {
        let mut stages = vec![];
        let mut cin = CHANNELS[0] * c.width;
        let root = conv(&s.sub("root"), 3, cin, 3, 1);
        for (stage, channels) in CHANNELS.into_iter().enumerate() {
            let mut blocks = vec![];
            for block in 0..(c.depth - 2) / 6 {
                let s = s.sub(format!("stage{}", stage + 1)).sub(block);
                let stride = if block == 0 { 2 } else { 1 };
                blocks.push(Shared::new(Basic::new(&s, (cin, channels * c.width), stride, &c)));
                cin = channels * c.width;
            }
            stages.push(blocks);
        }
        Self { root, stages, end: norm(&s.sub("end"), cin, &c), recompute: c.recompute }
    }

    pub(super) fn forward(
        &self,
        x: &Tensor,
        statistics: Statistics,
        mut seen: impl FnMut(&Tensor),
    ) -> Tensor {
        let mut x = self.root.forward(x);
        for stage in &self.stages {
            for block in stage {
                x = forward(block, x, statistics, self.recompute);
            }
            seen(&x);
        }
        self.end.forward(&x, statistics).relu()
    }
}

/// h = ReLU(BN(x)); 3×3 (strided), BN, ReLU, 3×3; the shortcut is x, or a projection of h.
#[derive(Debug)]
struct Basic {
    norms: [BatchNorm; 2],
    convs: [Conv; 2],
    projection: Option<Conv>,
}

impl Recompute for Basic {
    fn run(&self, inputs: &[Tensor], statistics: Statistics) -> Tensor {
        self.forward(&inputs[0], statistics)
    }

    fn parameters(&self) -> Vec<Tensor> {
        let norms = self.norms.iter().flat_map(BatchNorm::parameters);
        let convs = self.convs.iter().chain(&self.projection);
        norms.chain(convs.flat_map(Conv::parameters)).collect()
    }
}

impl Basic {
    fn new(s: &Scope<'_>, (cin, cout): (i64, i64), stride: i64, c: &EncoderConfig) -> Self {
        Self {
            norms: [norm(&s.sub("norm1"), cin, c), norm(&s.sub("norm2"), cout, c)],
            convs: [
                conv(&s.sub("conv1"), cin, cout, 3, stride),
                conv(&s.sub("conv2"), cout, cout, 3, 1),
            ],
            projection: (cin != cout || stride != 1)
                .then(|| conv(&s.sub("projection"), cin, cout, 1, stride)),
        }
    }

    fn forward(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        let h = self.norms[0].forward(x, statistics).relu();
        let shortcut = match &self.projection {
            Some(projection) => projection.forward(&h),
            None => x.shallow_clone(),
        };
        let body = self.norms[1].forward(&self.convs[0].forward(&h), statistics).relu();
        self.convs[1].forward(&body) + shortcut
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::encoder::TINY;

    #[test]
    fn a_basic_block_agrees_with_pytorch() {
        crate::parity::check(
            "basic",
            &[("x", &[3, 8, 6, 6])],
            |s| Basic::new(s, (8, 12), 2, &TINY),
            |block, x| block.forward(&x[0], Statistics::Batch),
        );
    }
}
