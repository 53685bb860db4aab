use tch::{Kind, Tensor};

use super::{Conv, ConvShape, Init, Scope};

/// Non-local block: every position attends to the 2×2-max-pooled positions.
///
/// out = x + γ · o(Σ softmax(θᵀφ) g), γ a scalar that starts at 0; no 1/√d.
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
        let values = pool(&self.g.forward(x)).flatten(2, 3); // (N, C/2, HW/4)
        let mixed = values.bmm(&self.weights(x).transpose(1, 2)); // (N, C/2, HW)
        self.o.forward(&mixed.view([-1, c / 2, h, w])) * &self.gamma + x
    }

    /// The attention of every position (rows) to every pooled one: (N, HW, HW/4), rows sum to 1.
    pub fn weights(&self, x: &Tensor) -> Tensor {
        let queries = self.theta.forward(x).flatten(2, 3); // (N, C/8, HW)
        let keys = pool(&self.phi.forward(x)).flatten(2, 3); // (N, C/8, HW/4)
        queries.transpose(1, 2).bmm(&keys).softmax(-1, None::<Kind>)
    }
}

fn pool(x: &Tensor) -> Tensor {
    x.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)
}

#[cfg(test)]
mod tests {
    use tch::{Device, no_grad};

    use super::*;
    use crate::nn::{Fill, Params};

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
}
