use tch::Tensor;

use super::encoder::{EncoderConfig, RootPad};
use crate::nn::{BatchNorm, Conv, ConvShape, Recompute, Scope, Shared, Statistics, recomputed};

/// Bottlenecks of each stage, by depth.
pub(super) fn stages(depth: i64) -> Option<[i64; 4]> {
    match depth {
        50 => Some([3, 4, 6, 3]),
        101 => Some([3, 4, 23, 3]),
        _ => None,
    }
}

/// A convolution of E: no bias, no spectral norm.
pub(super) fn conv(s: &Scope<'_>, cin: i64, cout: i64, kernel: i64, stride: i64) -> Conv {
    Conv::new(s, ConvShape { cin, cout, kernel, stride, bias: false, sn_eps: None })
}

/// Batch norm with E's settings.
pub(super) fn norm(s: &Scope<'_>, channels: i64, c: &EncoderConfig) -> BatchNorm {
    BatchNorm::affine(s, channels, c.bn_eps, c.bn_momentum)
}

/// One block, whose inside is kept or not.
pub(super) fn forward<B: Recompute + Send + 'static>(
    block: &Shared<B>,
    x: Tensor,
    statistics: Statistics,
    recompute: bool,
) -> Tensor {
    match recompute {
        true => recomputed(block, vec![x], statistics),
        false => block.lock().run(&[x], statistics),
    }
}

/// 3×3/2 max-pool with symmetric padding 1 of the root's output, which no ReLU has made positive.
pub(super) fn max_pool(x: &Tensor, pad: RootPad) -> Tensor {
    match pad {
        RootPad::Lowest => x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false),
        RootPad::Zero => {
            let around = x.constant_pad_nd([1, 1, 1, 1]);
            around.max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false)
        }
    }
}

/// ResNet-v2 trunk of bottlenecks.
///
/// # Shapes
/// (N, 3, R, R) to (N, 2048·width, R/32, R/32), after the last BN and ReLU.
///
/// # Source
/// Paper §3.1 names it; strides and padding after Kolesnikov et al. 2019 (`fixed_padding` of their code).
#[derive(Debug)]
pub(super) struct ResNet {
    root: Conv,
    stages: Vec<Vec<Shared<Bottleneck>>>,
    end: BatchNorm,
    pad: RootPad,
    recompute: bool,
}

impl ResNet {
    pub(super) fn new(s: &Scope<'_>, c: EncoderConfig) -> Self {
        let stages = stages(c.depth).expect("a checked config has depth 50 or 101");
        let mut all = vec![];
        let mut cin = 64 * c.width;
        for (stage, count) in stages.into_iter().enumerate() {
            let mid = (64 * c.width) << stage;
            let mut units = vec![];
            for unit in 0..count {
                let stride = if stage > 0 && unit == 0 { 2 } else { 1 };
                let s = s.sub(format!("stage{}", stage + 1)).sub(unit);
                units.push(Shared::new(Bottleneck::new(&s, (cin, mid), stride, &c)));
                cin = 4 * mid;
            }
            all.push(units);
        }
        Self {
            root: conv(&s.sub("root"), 3, 64 * c.width, 7, 2),
            stages: all,
            end: norm(&s.sub("end"), cin, &c),
            pad: c.root_pad,
            recompute: c.recompute,
        }
    }

    pub(super) fn forward(
        &self,
        x: &Tensor,
        statistics: Statistics,
        mut seen: impl FnMut(&Tensor),
    ) -> Tensor {
        let mut x = max_pool(&self.root.forward(x), self.pad);
        for stage in &self.stages {
            for unit in stage {
                x = forward(unit, x, statistics, self.recompute);
            }
            seen(&x);
        }
        self.end.forward(&x, statistics).relu()
    }
}

/// h = ReLU(BN(x)); 1×1, BN, ReLU, 3×3 (strided), BN, ReLU, 1×1; the shortcut is x, or a projection
/// of h where channels or stride change.
#[derive(Debug)]
struct Bottleneck {
    norms: [BatchNorm; 3],
    convs: [Conv; 3],
    projection: Option<Conv>,
}

impl Recompute for Bottleneck {
    fn run(&self, inputs: &[Tensor], statistics: Statistics) -> Tensor {
        self.forward(&inputs[0], statistics)
    }

    fn parameters(&self) -> Vec<Tensor> {
        let norms = self.norms.iter().flat_map(BatchNorm::parameters);
        let convs = self.convs.iter().chain(&self.projection);
        norms.chain(convs.flat_map(Conv::parameters)).collect()
    }
}

impl Bottleneck {
    fn new(s: &Scope<'_>, (cin, mid): (i64, i64), stride: i64, c: &EncoderConfig) -> Self {
        let out = 4 * mid;
        Self {
            norms: [
                norm(&s.sub("norm1"), cin, c),
                norm(&s.sub("norm2"), mid, c),
                norm(&s.sub("norm3"), mid, c),
            ],
            convs: [
                conv(&s.sub("conv1"), cin, mid, 1, 1),
                conv(&s.sub("conv2"), mid, mid, 3, stride),
                conv(&s.sub("conv3"), mid, out, 1, 1),
            ],
            projection: (cin != out || stride != 1)
                .then(|| conv(&s.sub("projection"), cin, out, 1, stride)),
        }
    }

    fn forward(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        let h = self.norms[0].forward(x, statistics).relu();
        let shortcut = match &self.projection {
            Some(projection) => projection.forward(&h),
            None => x.shallow_clone(),
        };
        let mut body = self.convs[0].forward(&h);
        for (norm, conv) in self.norms[1..].iter().zip(&self.convs[1..]) {
            body = conv.forward(&norm.forward(&body, statistics).relu());
        }
        body + shortcut
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::encoder::TINY;

    /// As computed by hand.
    #[test]
    fn the_root_s_pool_takes_zeros_around_the_image_or_nothing() {
        let x = Tensor::arange_start(-16, 0, tch::kind::FLOAT_CPU).view([1, 1, 4, 4]);
        let pooled = |pad| Vec::<f32>::try_from(max_pool(&x, pad).view([-1])).unwrap();
        assert_eq!(pooled(RootPad::Zero), [0.0, 0.0, 0.0, -1.0]);
        assert_eq!(pooled(RootPad::Lowest), [-11.0, -9.0, -3.0, -1.0]);
    }

    #[test]
    fn bottlenecks_agree_with_pytorch() {
        for (case, mid, stride) in [("bottleneck", 4, 1), ("bottleneck_strided", 8, 2)] {
            crate::parity::check(
                case,
                &[("x", &[3, 16, 6, 6])],
                |s| Bottleneck::new(s, (16, mid), stride, &TINY),
                |unit, x| unit.forward(&x[0], Statistics::Batch),
            );
        }
    }
}
