use dist::World;
use tch::{Kind, Tensor, no_grad};
use torch_ext::autograd::with_backward;
use torch_ext::kernels::batch_norm_backward;

use super::{Init, Linear, Scope};

/// Which statistics a batch norm uses, and what becomes of the stored ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// The batch's own; the stored ones move towards them by the layer's momentum.
    Batch,
    /// The batch's own; the stored ones stay: a pass that repeats an earlier one.
    Repeat,
    /// The batch's own; the stored ones become the mean over batches 0 … `seen`.
    Collect {
        /// Batches collected before this one.
        seen: i64,
    },
    /// The stored ones.
    Stored,
}

impl Statistics {
    /// For a pass that repeats one of these.
    #[must_use]
    pub fn again(self) -> Self {
        match self {
            Self::Stored => Self::Stored,
            _ => Self::Repeat,
        }
    }
}

/// Batch normalisation over (N, H, W), with or without a gain and shift of its own. On several ranks N
/// runs over the batches of all, which must be of one size.
///
/// # Source
/// Paper App. A: statistics of the whole batch. The variance of a batch is biased, the stored one
/// unbiased (torch's convention).
#[derive(Debug)]
pub struct BatchNorm {
    affine: Option<(Tensor, Tensor)>,
    mean: Tensor,
    var: Tensor,
    eps: f64,
    momentum: f64,
    world: World,
}

impl BatchNorm {
    /// Gain 1 and shift 0, trainable.
    #[must_use]
    pub fn affine(s: &Scope<'_>, channels: i64, eps: f64, momentum: f64) -> Self {
        let gain = s.parameter("gain", &[channels], Init::Constant(1.0));
        let shift = s.parameter("shift", &[channels], Init::Constant(0.0));
        Self { affine: Some((gain, shift)), ..Self::plain(s, channels, eps, momentum) }
    }

    /// No parameters.
    #[must_use]
    pub fn plain(s: &Scope<'_>, channels: i64, eps: f64, momentum: f64) -> Self {
        let mean = s.buffer("mean", &[channels], 0.0);
        let var = s.buffer("var", &[channels], 1.0);
        Self { affine: None, mean, var, eps, momentum, world: s.world() }
    }

    /// Gain and shift, where there are any.
    #[must_use]
    pub fn parameters(&self) -> Vec<Tensor> {
        self.affine.iter().flat_map(|(g, s)| [g.shallow_clone(), s.shallow_clone()]).collect()
    }

    /// (N, C, …) to the same shape.
    pub fn forward(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        let (training, momentum) = match statistics {
            Statistics::Batch => (true, self.momentum),
            Statistics::Collect { seen } => (true, 1.0 / (seen + 1) as f64),
            Statistics::Repeat => (true, 0.0),
            Statistics::Stored => (false, 0.0),
        };
        let (gain, shift) = self.affine.as_ref().map(|(g, s)| (g, s)).unzip();
        if training && self.world.together() > 1 {
            return self.over_ranks(x, momentum);
        }
        let stored = statistics != Statistics::Repeat;
        let (mean, var) = (stored.then_some(&self.mean), stored.then_some(&self.var));
        x.batch_norm(gain, shift, mean, var, training, momentum, self.eps, true)
    }

    /// With the statistics of all ranks' batches: one small all-reduce forward and one backward, both in
    /// double precision. A pass whose input needs no gradient gives none to gain and shift either.
    fn over_ranks(&self, x: &Tensor, momentum: f64) -> Tensor {
        let kind = self.mean.kind();
        let channels = x.size()[1];
        let rows = (x.numel() as i64 / channels) as f64;
        let count = rows * self.world.size() as f64;
        let (gain, shift) = self.affine.as_ref().map(|(g, s)| (g, s)).unzip();
        let (mean, var, y) = no_grad(|| {
            let (mean, var) = x.to_kind(kind).batch_norm_update_stats(None::<Tensor>, None, 0.0);
            let (mean, var) = (mean.to_kind(Kind::Double), var.to_kind(Kind::Double));
            // Of the rank: Σx and Σx², without the cancellation that summing squares of x would bring.
            let sums = Tensor::stack(&[&mean * rows, (var + mean.square()) * rows], 0);
            self.world.sum(&sums);
            let (mean, squares) = (sums.get(0) / count, sums.get(1) / count);
            let var = (squares - mean.square()).clamp_min(0.0);
            let unbiased = &var * (count / (count - 1.0));
            let (mean, var) = (mean.to_kind(kind), var.to_kind(kind));
            for (stored, seen) in [(&self.mean, &mean), (&self.var, &unbiased.to_kind(kind))] {
                let _ = stored.shallow_clone().lerp_(seen, momentum);
            }
            let (m, v) = (Some(&mean), Some(&var));
            let y = x.batch_norm(gain, shift, m, v, false, 0.0, self.eps, true);
            (mean, var, y)
        });
        if !x.requires_grad() {
            return y;
        }
        let mut inputs = vec![x.shallow_clone()];
        let parameters = self.parameters().into_iter().filter(Tensor::requires_grad);
        inputs.extend(parameters);
        let trained = inputs.len() > 1;
        let (world, x, eps) = (self.world.clone(), x.detach(), self.eps);
        let gain = gain.map(Tensor::detach);
        with_backward(y, &inputs, move |gradient| {
            let x_wide = x.to_kind(kind);
            let statistics = (&mean, &var, eps);
            let [mut dx, along, total] =
                batch_norm_backward(&gradient.to_kind(kind), &x_wide, gain.as_ref(), statistics);
            let sums = Tensor::stack(&[&along, &total], 0).to_kind(Kind::Double);
            world.sum(&sums);
            let sums = (sums / count).to_kind(kind);
            let inverse = (&var + eps).rsqrt();
            let scale = gain.as_ref().map_or_else(|| inverse.shallow_clone(), |g| &inverse * g);
            // Beyond constant statistics: −scale (mean(g) + x̂ mean(g x̂)), gathered by channel.
            let by_x = -&scale * &inverse * sums.get(0);
            let constant = -&scale * sums.get(1) - &by_x * &mean;
            let _ = dx.addcmul_(&x_wide, &spread(&by_x, &x));
            let _ = dx.g_add_(&spread(&constant, &x));
            let mut all = vec![dx.to_kind(x.kind())];
            if trained {
                all.extend([along, total]);
            }
            all
        })
    }
}

/// A value of each channel, (C), to be broadcast over x.
fn spread(values: &Tensor, x: &Tensor) -> Tensor {
    let mut shape = vec![1; x.dim()];
    shape[1] = -1;
    values.view(shape.as_slice())
}

/// y = BN(x) · (1 + W_g c) + W_b c, with W_g and W_b spectrally normalised and without bias.
///
/// # Shapes
/// x (N, C, H, W), condition c (N, D).
///
/// # Source
/// Brock et al. 2018; the released generator's variables.
#[derive(Debug)]
pub struct ConditionalBatchNorm {
    norm: BatchNorm,
    gain: Linear,
    shift: Linear,
}

impl ConditionalBatchNorm {
    /// For `channels` channels and a condition of width `condition`.
    #[must_use]
    pub fn new(s: &Scope<'_>, channels: i64, condition: i64, eps: (f64, f64), mom: f64) -> Self {
        let (bn_eps, sn_eps) = eps;
        Self {
            norm: BatchNorm::plain(&s.sub("bn"), channels, bn_eps, mom),
            gain: Linear::without_bias(&s.sub("gain"), condition, channels, Some(sn_eps)),
            shift: Linear::without_bias(&s.sub("shift"), condition, channels, Some(sn_eps)),
        }
    }

    /// The weights.
    #[must_use]
    pub fn parameters(&self) -> Vec<Tensor> {
        [&self.gain, &self.shift].into_iter().flat_map(Linear::parameters).collect()
    }

    /// Normalises x and modulates it by c.
    pub fn forward(&self, x: &Tensor, c: &Tensor, statistics: Statistics) -> Tensor {
        let spread = |t: Tensor| t.unsqueeze(-1).unsqueeze(-1);
        let gain = spread(self.gain.forward(c) + 1.0);
        let shift = spread(self.shift.forward(c));
        shift.addcmul(&self.norm.forward(x, statistics), &gain)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, no_grad};

    use super::*;
    use crate::nn::{Fill, Params};

    const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

    #[test]
    fn without_gain_and_shift_the_conditional_norm_is_the_plain_one() {
        let fill = Fill::Seed { seed: 0, network: 0 };
        let ((plain, conditional), mut params) = Params::build(F64, fill, |s| {
            let plain = BatchNorm::plain(&s.sub("p"), 3, 1e-4, 0.1);
            (plain, ConditionalBatchNorm::new(&s.sub("c"), 3, 5, (1e-4, 1e-4), 0.1))
        });
        let _ = no_grad(|| params.flat().shallow_clone().zero_());
        params.rescale();
        let (x, c) = (Tensor::randn([4, 3, 2, 2], F64), Tensor::randn([4, 5], F64));
        let a = plain.forward(&x, Statistics::Batch);
        let b = conditional.forward(&x, &c, Statistics::Batch);
        assert!((a - b).abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn collecting_the_same_batch_gives_exactly_its_statistics() {
        let fill = Fill::Seed { seed: 0, network: 0 };
        let (bn, params) =
            Params::build(F64, fill, |s| BatchNorm::plain(&s.sub("p"), 3, 1e-4, 0.1));
        let x = Tensor::randn([8, 3, 4, 4], F64) * 3.0 + 1.0;
        for seen in 0..5 {
            let _ = bn.forward(&x, Statistics::Collect { seen });
        }
        let buffers = params.buffers();
        let flat = x.transpose(0, 1).flatten(1, -1);
        let mean = flat.mean_dim([1i64].as_slice(), false, Kind::Double);
        let var = flat.var_dim([1i64].as_slice(), true, false);
        assert!((&buffers[0].1 - mean).abs().max().double_value(&[]) < 1e-12);
        assert!((&buffers[1].1 - var).abs().max().double_value(&[]) < 1e-12);
    }
}
