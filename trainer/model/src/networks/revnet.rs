use tch::{Tensor, no_grad, with_grad};
use torch_ext::autograd::{grad, with_backward};

use super::encoder::{EncoderConfig, RootPad};
use super::resnet::{conv, max_pool, norm, stages};
use crate::nn::{BatchNorm, Conv, Scope, Shared, Statistics, single};

/// Reversible trunk, factor 4·width. Backward recomputes: a stage keeps its output alone, and each
/// unit's input is worked out from its output, so memory does not grow with units per stage.
///
/// # Shapes
/// (N, 3, R, R) to (N, 2048·width, R/32, R/32), after the last BN and ReLU.
///
/// # Source
/// Kolesnikov et al. 2019 with `last_relu`; paper §3.1 uses "their" RevNet. Recomputation: Gomez et
/// al. 2017.
#[derive(Debug)]
pub(super) struct RevNet {
    root: Conv,
    stages: Vec<Stage>,
    end: BatchNorm,
    pad: RootPad,
}

impl RevNet {
    pub(super) fn new(s: &Scope<'_>, c: EncoderConfig) -> Self {
        let counts = stages(c.depth).expect("a checked config has depth 50 or 101");
        Self::with_units(s, c, counts)
    }

    fn with_units(s: &Scope<'_>, c: EncoderConfig, counts: [i64; 4]) -> Self {
        let channels = |stage: usize| (256 * c.width) << stage;
        let stage = |(stage, count): (usize, i64)| {
            let s = s.sub(format!("stage{}", stage + 1));
            let unit = |i: i64| Unit::new(&s.sub(i), channels(stage), &c);
            Stage(Shared::new((0..count).map(unit).collect()))
        };
        Self {
            root: conv(&s.sub("root"), 3, channels(0), 7, 2),
            stages: counts.into_iter().enumerate().map(stage).collect(),
            end: norm(&s.sub("end"), channels(3), &c),
            pad: c.root_pad,
        }
    }

    pub(super) fn forward(
        &self,
        x: &Tensor,
        statistics: Statistics,
        mut seen: impl FnMut(&Tensor),
    ) -> Tensor {
        self.forward_by(x, statistics, |stage, x, statistics| {
            let y = stage.forward(x, statistics);
            seen(&y);
            y
        })
    }

    fn forward_by(
        &self,
        x: &Tensor,
        statistics: Statistics,
        mut stage_forward: impl FnMut(&Stage, &Tensor, Statistics) -> Tensor,
    ) -> Tensor {
        // The stream that units add to, and subtract from on the way back, is never in bfloat16.
        let mut x = single(&max_pool(&self.root.forward(x), self.pad));
        for (i, stage) in self.stages.iter().enumerate() {
            if i > 0 {
                x = widen(&x);
            }
            x = stage_forward(stage, &x, statistics);
        }
        self.end.forward(&x, statistics).relu()
    }
}

/// The units between two changes of width.
#[derive(Debug)]
struct Stage(Shared<Vec<Unit>>);

impl Stage {
    fn forward(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        if !x.requires_grad() {
            return self.plain(x, statistics);
        }
        let y = no_grad(|| self.plain(x, statistics));
        let mut inputs = vec![x.shallow_clone()];
        inputs.extend(self.0.lock().iter().flat_map(Unit::parameters));
        let (units, kept) = (self.0.clone(), y.shallow_clone());
        let again = statistics.again();
        with_backward(y, &inputs, move |gradient| backward(&units.lock(), &kept, gradient, again))
    }

    /// Plain autograd.
    fn plain(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        let first = x.shallow_clone();
        self.0.lock().iter().fold(first, |x, unit| unit.forward(&x, statistics))
    }
}

/// Gradients of a stage's input and parameters, given its output y and the gradient of it.
///
/// With y = (a, b) a unit's input is x₂ = a, x₁ = b − F(a); with (g_a, g_b) that of its output, the
/// gradient of its input is g₁ = g_b, g₂ = g_a + J_Fᵀ g_b.
fn backward(units: &[Unit], y: &Tensor, gradient: &Tensor, again: Statistics) -> Vec<Tensor> {
    let halves = |t: &Tensor| {
        let parts = t.chunk(2, 1);
        (parts[0].shallow_clone(), parts[1].shallow_clone())
    };
    let ((mut a, mut b), (mut ga, mut gb)) = (halves(y), halves(gradient));
    let mut of_units = Vec::with_capacity(units.len());
    for unit in units.iter().rev() {
        let x2 = a.detach().set_requires_grad(true);
        let residual = with_grad(|| unit.residual(&x2, again));
        let x1 = b - residual.detach();
        let mut inputs = vec![x2];
        inputs.extend(unit.parameters());
        let mut gradients = grad(&residual, &gb, &inputs);
        let of_x2 = gradients.remove(0);
        of_units.push(gradients);
        (a, b) = (x1, inputs.swap_remove(0).detach());
        (ga, gb) = (gb, ga + of_x2);
    }
    let mut all = vec![Tensor::cat(&[ga, gb], 1)];
    all.extend(of_units.into_iter().rev().flatten());
    all
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

    fn parameters(&self) -> Vec<Tensor> {
        let norms = self.norms.iter().flat_map(BatchNorm::parameters);
        norms.chain(self.convs.iter().flat_map(Conv::parameters)).collect()
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
    use crate::networks::encoder::TINY;
    use crate::nn::{Fill, Params, Weights};

    #[test]
    fn a_unit_is_inverted_from_its_outputs_and_two_units_change_both_halves() {
        let kinds = (Kind::Double, Device::Cpu);
        let fill = Fill::Seed { seed: 2, network: 0 };
        let (units, _params) = Params::build(kinds, fill, |s| {
            [Unit::new(&s.sub(0), 16, &TINY), Unit::new(&s.sub(1), 16, &TINY)]
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
        crate::parity::check(
            "reversible",
            &[("x", &[3, 16, 5, 5])],
            |s| Unit::new(s, 16, &TINY),
            |unit, x| unit.forward(&x[0], Statistics::Batch),
        );
    }

    fn trunk(kinds: (Kind, Device), units: [i64; 4]) -> (RevNet, Params) {
        let fill = Fill::Seed { seed: 3, network: 0 };
        let (net, params) = Params::build(kinds, fill, |s| RevNet::with_units(s, TINY, units));
        params.use_weights(Weights::Train);
        (net, params)
    }

    #[test]
    fn recomputing_gives_the_gradients_and_statistics_of_plain_autograd() {
        for (kind, tolerance) in [(Kind::Double, 1e-10), (Kind::Float, 1e-4)] {
            let mut off = [0, 1, 2].map(|n| {
                let x = golden::hashed(&format!("x{n}"), &[3, 3, 64, 64]).to_kind(kind);
                off_by_recomputing(&x.set_requires_grad(true))
            });
            off.sort_by(f64::total_cmp);
            // In single precision rounding alone may carry an activation over the kink of its ReLU, with
            // some inputs on some machines (7e-4 was seen). A fault would show with every input.
            let [least, _, most] = off;
            let kink = if kind == Kind::Float { 1e-2 } else { tolerance };
            assert!(least < tolerance && most < kink, "{kind:?}: {off:?}");
        }
    }

    /// The larger of the relative errors of the gradients of an input and of the weights.
    fn off_by_recomputing(x: &Tensor) -> f64 {
        let kind = x.kind();
        let run = |plain: bool| {
            let (net, mut params) = trunk((kind, Device::Cpu), [2, 2, 3, 1]);
            // Zero shifts would put the zero-padded channels on the kink of the ReLU.
            crate::parity::fill(&mut params);
            let y = if plain {
                net.forward_by(x, Statistics::Batch, Stage::plain)
            } else {
                net.forward(x, Statistics::Batch, |_| {})
            };
            let loss = (&y * golden::hashed("direction", &y.size())).sum(kind);
            let of_x = Tensor::run_backward(&[&loss], &[x], true, false).remove(0);
            // A second run over the same graph is refused, so the graph is built anew.
            let y = if plain { y } else { net.forward(x, Statistics::Repeat, |_| {}) };
            let loss = (&y * golden::hashed("direction", &y.size())).sum(kind);
            let buffers: Vec<_> = params.buffers().into_iter().map(|(_, b)| b).collect();
            (of_x, params.gradient(&loss), Tensor::cat(&buffers, 0))
        };
        let (plain, recomputed) = (run(true), run(false));
        assert_eq!(recomputed.2, plain.2);
        let off = |a: &Tensor, b: &Tensor| ((a - b).norm() / b.norm()).double_value(&[]);
        off(&recomputed.0, &plain.0).max(off(&recomputed.1, &plain.1))
    }

    #[test]
    fn memory_does_not_grow_with_units_per_stage() {
        let kinds = (Kind::Float, Device::Cpu);
        let x = Tensor::randn([16, 3, 64, 64], kinds);
        // Peak of forward and backward, less the gradients.
        let peak = |units: [i64; 4], plain: bool| {
            let (net, params) = trunk(kinds, units);
            let weights: Vec<_> = params.parameters().map(|(_, w)| w.shallow_clone()).collect();
            let meter = torch_ext::measure::Meter::start();
            let y = if plain {
                net.forward_by(&x, Statistics::Batch, Stage::plain)
            } else {
                net.forward(&x, Statistics::Batch, |_| {})
            };
            let loss = y.square().sum(Kind::Float);
            let gradients = Tensor::run_backward(&[loss], &weights, false, false);
            drop(gradients);
            meter.stop() - 4.0 * params.count() as f64
        };
        let (one, four) = (peak([3, 4, 6, 3], false), peak([12, 16, 24, 12], false));
        assert!((four / one - 1.0).abs() < 0.1, "{one} bytes, {four} with four times the units");
        assert!(peak([12, 16, 24, 12], true) > 2.0 * peak([3, 4, 6, 3], true));
    }
}
