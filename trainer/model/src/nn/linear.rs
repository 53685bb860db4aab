use tch::Tensor;

use super::{Init, Scope};

/// x Wᵀ + b with orthogonal initial W.
///
/// # Shapes
/// (N, input) to (N, output).
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Parameters `weight` (output, input) and `bias` (output), zero at first. With `sn_eps` the
    /// weight is spectrally normalised.
    #[must_use]
    pub fn new(s: &Scope<'_>, input: i64, output: i64, sn_eps: Option<f64>) -> Self {
        let bias = Some(s.parameter("bias", &[output], Init::Constant(0.0)));
        Self { bias, ..Self::without_bias(s, input, output, sn_eps) }
    }

    /// The same without b.
    #[must_use]
    pub fn without_bias(s: &Scope<'_>, input: i64, output: i64, sn_eps: Option<f64>) -> Self {
        let shape = [output, input];
        let weight = match sn_eps {
            Some(eps) => s.normed("weight", &shape, Init::Orthogonal, eps),
            None => s.parameter("weight", &shape, Init::Orthogonal),
        };
        Self { weight, bias: None }
    }

    /// The weights.
    #[must_use]
    pub fn parameters(&self) -> Vec<Tensor> {
        let all = [Some(&self.weight), self.bias.as_ref()].into_iter().flatten();
        all.map(Tensor::shallow_clone).collect()
    }

    /// x Wᵀ + b.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}
