use tch::{Kind, Tensor};

use super::{Conv, ConvShape, Init, Scope};

/// Non-local block: every position attends to the 2×2-max-pooled positions.
///
/// out = x + γ · o(Σ softmax(θᵀφ) g), γ a scalar that starts at 0; no 1/√d. The weights of the sum are
/// HW × HW/4 numbers an image; libtorch's fused kernel keeps none of them, and with `train.deterministic`,
/// which on CUDA it does not honour, they are worked out as a whole.
///
/// # Shapes
/// (N, C, H, W) to the same; θ, φ have C/8 channels, g has C/2.
///
/// # Source
/// Brock et al. 2018; Zhang et al. 2018.
#[derive(Debug)]
pub struct Attention {
    theta: Conv,
    phi: Conv,
    g: Conv,
    o: Conv,
    gamma: Tensor,
    whole: bool,
}

impl Attention {
    /// For `channels` channels, a multiple of 8.
    #[must_use]
    pub fn new(s: &Scope<'_>, channels: i64, sn_eps: f64) -> Self {
        let conv = |name, cin, cout| {
            let sn_eps = Some(sn_eps);
            let shape = ConvShape { cin, cout, kernel: 1, stride: 1, bias: false, sn_eps };
            Conv::new(&s.sub(name), shape)
        };
        Self {
            theta: conv("theta", channels, channels / 8),
            phi: conv("phi", channels, channels / 8),
            g: conv("g", channels, channels / 2),
            o: conv("o", channels / 2, channels),
            gamma: s.parameter("gamma", &[], Init::Constant(0.0)),
            whole: s.is_deterministic(),
        }
    }

    /// The weights.
    #[must_use]
    pub fn parameters(&self) -> Vec<Tensor> {
        let convs = [&self.theta, &self.phi, &self.g, &self.o];
        let gamma = self.gamma.shallow_clone();
        convs.into_iter().flat_map(Conv::parameters).chain([gamma]).collect()
    }

    /// x + γ · o(attention(x)).
    ///
    /// # Panics
    /// If x is not (N, C, H, W).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (_, c, h, w) = x.size4().expect("images are (N, C, H, W)");
        let values = rows(&pool(&self.g.forward(x))); // (N, HW/4, C/2)
        let mixed = if self.whole {
            self.weights(x).bmm(&values)
        } else {
            fused(&self.queries(x), &self.keys(x), &values)
        }; // (N, HW, C/2)
        let map = mixed.view([-1, h, w, c / 2]).permute([0, 3, 1, 2]);
        // x first: the sum takes its order in memory.
        x + self.o.forward(&map) * &self.gamma
    }

    /// The attention of every position (rows) to every pooled one: (N, HW, HW/4), rows sum to 1.
    pub fn weights(&self, x: &Tensor) -> Tensor {
        self.queries(x).bmm(&self.keys(x).transpose(1, 2)).softmax(-1, None::<Kind>)
    }

    /// (N, HW, C/8).
    fn queries(&self, x: &Tensor) -> Tensor {
        rows(&self.theta.forward(x))
    }

    /// (N, HW/4, C/8).
    fn keys(&self, x: &Tensor) -> Tensor {
        rows(&pool(&self.phi.forward(x)))
    }
}

/// (N, C, H, W) as (N, HW, C): the same memory where it is channels_last.
fn rows(map: &Tensor) -> Tensor {
    map.permute([0, 2, 3, 1]).flatten(1, 2)
}

fn pool(x: &Tensor) -> Tensor {
    x.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)
}

/// Σ softmax(q kᵀ) v of q (N, L, D), k (N, S, D) and v (N, S, E): (N, L, E). The fused kernels of every
/// device take heads of one width, CUDA's in multiples of 8: zeros fill them up, which changes no product.
fn fused(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let width = |t: &Tensor| t.size()[2];
    let wide = (width(v).max(width(q)) + 7) / 8 * 8;
    let head = |t: &Tensor| match wide - width(t) {
        0 => t.unsqueeze(1),
        missing => t.constant_pad_nd([0, missing]).unsqueeze(1),
    };
    let (q, k, padded) = (head(q), head(k), head(v));
    let scale = 1.0;
    let mixed = Tensor::scaled_dot_product_attention(
        &q,
        &k,
        &padded,
        None::<&Tensor>,
        0.0,
        false,
        scale,
        false,
    );
    mixed.squeeze_dim(1).narrow(2, 0, width(v))
}

#[cfg(test)]
mod tests {
    use tch::{Device, no_grad};

    use super::*;
    use crate::nn::{Fill, Params, Weights, channels_last};

    #[test]
    fn it_starts_as_the_identity_and_its_rows_sum_to_one() {
        let kinds = (Kind::Float, Device::Cpu);
        let fill = Fill::Seed { seed: 5, network: 0 };
        let (block, _params) = Params::build(kinds, fill, |s| Attention::new(s, 16, 1e-4));
        let x = Tensor::randn([2, 16, 64, 64], kinds);
        assert_eq!(no_grad(|| block.forward(&x)), x);
        let rows = block.weights(&x);
        assert_eq!(rows.size(), [2, 4096, 1024]);
        let off = (rows.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float) - 1.0).abs().max();
        assert!(off.double_value(&[]) < 1e-5);
    }

    /// Output and the gradients of input and weights.
    fn passed(channels: i64, kind: Kind, whole: bool) -> Vec<Tensor> {
        let fill = Fill::Seed { seed: 5, network: 0 };
        let (block, params) = Params::build((kind, Device::Cpu), fill, |s| {
            Attention::new(&s.deterministic(whole), channels, 1e-4)
        });
        let _ = no_grad(|| block.gamma.shallow_clone().fill_(0.7));
        params.use_weights(Weights::Train);
        let x = golden::hashed("x", &[3, channels, 12, 20]).to_kind(kind) * 2.0;
        let x = channels_last(&x).set_requires_grad(true);
        let y = block.forward(&x);
        assert!(channels_last(&y).stride() == y.stride(), "{:?}", y.stride());
        let loss = (&y * y.detach().cos()).sum(kind);
        let wanted: Vec<_> = block.parameters().into_iter().chain([x]).collect();
        let gradients = Tensor::run_backward(&[loss], &wanted, false, false);
        [y.detach()].into_iter().chain(gradients).collect()
    }

    #[test]
    fn the_fused_form_gives_what_the_weights_as_a_whole_give() {
        for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-5)] {
            for channels in [8, 16, 40] {
                let [fused, whole] = [false, true].map(|whole| passed(channels, kind, whole));
                for (i, (a, b)) in fused.iter().zip(&whole).enumerate() {
                    let off = ((a - b).norm() / b.norm()).double_value(&[]);
                    assert!(off < tolerance, "{kind:?}, {channels} channels, tensor {i}: {off:e}");
                }
            }
        }
    }

    #[test]
    fn only_the_deterministic_form_keeps_the_weights() {
        let peak = |whole: bool| {
            let fill = Fill::Seed { seed: 5, network: 0 };
            let (block, params) = Params::build((Kind::Float, Device::Cpu), fill, |s| {
                Attention::new(&s.deterministic(whole), 16, 1e-4)
            });
            params.use_weights(Weights::Train);
            let x = Tensor::randn([2, 16, 64, 64], (Kind::Float, Device::Cpu));
            let meter = torch_ext::measure::Meter::start();
            let y = block.forward(&channels_last(&x));
            let peak = meter.stop();
            drop(y);
            peak
        };
        let weights = f64::from(2 * 4096 * 1024 * 4);
        assert!(
            peak(true) > weights && peak(false) < 0.4 * weights,
            "{} {}",
            peak(true),
            peak(false)
        );
    }
}
