use tch::Tensor;

use super::EncoderConfig;
use super::resnet::{conv, max_pool, norm, stages};
use crate::nn::{BatchNorm, Conv, Scope, Statistics};

/// Reversible trunk, factor 4·width; backward is plain autograd so far.
///
/// # Shapes
/// (N, 3, R, R) to (N, 2048·width, R/32, R/32), after the last BN and ReLU.
///
/// # Source
/// Kolesnikov et al. 2019 with `last_relu`; paper §3.1 uses "their" RevNet.
#[derive(Debug)]
pub(super) struct RevNet {
    root: Conv,
    stages: Vec<Vec<Unit>>,
    end: BatchNorm,
}

impl RevNet {
    pub(super) fn new(s: &Scope<'_>, c: EncoderConfig) -> Self {
        let counts = stages(c.depth).expect("a checked config has depth 50 or 101");
        let channels = |stage: usize| (256 * c.width) << stage;
        let stage = |(stage, count): (usize, i64)| {
            let s = s.sub(format!("stage{}", stage + 1));
            (0..count).map(|i| Unit::new(&s.sub(i), channels(stage), &c)).collect()
        };
        Self {
            root: conv(&s.sub("root"), 3, channels(0), 7, 2),
            stages: counts.into_iter().enumerate().map(stage).collect(),
            end: norm(&s.sub("end"), channels(3), &c),
        }
    }

    pub(super) fn forward(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        let mut x = max_pool(&self.root.forward(x));
        for (i, stage) in self.stages.iter().enumerate() {
            if i > 0 {
                x = widen(&x);
            }
            for unit in stage {
                x = unit.forward(&x, statistics);
            }
        }
        self.end.forward(&x, statistics).relu()
    }
}

/// Between stages: halve the side, double the channels by zeros, C/2 of them on each side.
fn widen(x: &Tensor) -> Tensor {
    let pad = x.size()[1] / 2;
    let halved = x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
    halved.constant_pad_nd([0, 0, 0, 0, pad, pad])
}

/// (x1, x2) to (x2, x1 + F(x2)), the halves along the channels. The swap makes the next unit change
/// the other half.
#[derive(Debug)]
struct Unit {
    norms: [BatchNorm; 3],
    convs: [Conv; 3],
}

impl Unit {
    fn new(s: &Scope<'_>, channels: i64, c: &EncoderConfig) -> Self {
        let (half, mid) = (channels / 2, channels / 8);
        Self {
            norms: [
                norm(&s.sub("norm1"), half, c),
                norm(&s.sub("norm2"), mid, c),
                norm(&s.sub("norm3"), mid, c),
            ],
            convs: [
                conv(&s.sub("conv1"), half, mid, 1, 1),
                conv(&s.sub("conv2"), mid, mid, 3, 1),
                conv(&s.sub("conv3"), mid, half, 1, 1),
            ],
        }
    }

    fn forward(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        let halves = x.chunk(2, 1);
        let y = &halves[0] + self.residual(&halves[1], statistics);
        Tensor::cat(&[&halves[1], &y], 1)
    }

    fn residual(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        let mut x = x.shallow_clone();
        for (norm, conv) in self.norms.iter().zip(&self.convs) {
            x = conv.forward(&norm.forward(&x, statistics).relu());
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::model::Family;
    use crate::nn::{Fill, Params};

    const CONFIG: EncoderConfig = EncoderConfig {
        family: Family::Revnet,
        depth: 50,
        width: 1,
        res: 32,
        stochastic: true,
        mlp_layers: 2,
        mlp_width: 8,
        bn_eps: 1e-3,
        bn_momentum: 0.01,
    };

    #[test]
    fn a_unit_is_inverted_from_its_outputs_and_two_units_change_both_halves() {
        let kinds = (Kind::Double, Device::Cpu);
        let fill = Fill::Seed { seed: 2, network: 0 };
        let (units, _params) = Params::build(kinds, fill, |s| {
            [Unit::new(&s.sub(0), 16, &CONFIG), Unit::new(&s.sub(1), 16, &CONFIG)]
        });
        let x = Tensor::randn([4, 16, 6, 6], kinds);
        let y = units[0].forward(&x, Statistics::Batch);
        let halves = y.chunk(2, 1);
        let x1 = &halves[1] - units[0].residual(&halves[0], Statistics::Batch);
        let back = Tensor::cat(&[&x1, &halves[0]], 1);
        assert!((back - &x).abs().max().double_value(&[]) < 1e-12);

        let twice = units[1].forward(&y, Statistics::Batch);
        for (before, after) in x.chunk(2, 1).iter().zip(twice.chunk(2, 1)) {
            assert!((before - after).abs().max().double_value(&[]) > 1e-3);
        }
    }

    #[test]
    fn a_unit_agrees_with_pytorch() {
        crate::golden::check(
            "reversible",
            &[("x", &[3, 16, 5, 5])],
            |s| Unit::new(s, 16, &CONFIG),
            |unit, x| unit.forward(&x[0], Statistics::Batch),
        );
    }
}
