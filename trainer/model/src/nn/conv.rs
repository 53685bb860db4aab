use tch::Tensor;

use super::{Init, Scope};

/// Shape of a square convolution with "same" padding (kernel / 2).
#[derive(Debug, Clone, Copy)]
pub struct ConvShape {
    /// Input channels.
    pub cin: i64,
    /// Output channels.
    pub cout: i64,
    /// Side of the kernel.
    pub kernel: i64,
    /// Stride.
    pub stride: i64,
    /// Whether a bias (initially zero) is added.
    pub bias: bool,
    /// Spectral norm's epsilon, where the weight is normalised.
    pub sn_eps: Option<f64>,
}

/// A 2-D convolution with orthogonal initial weights.
///
/// # Shapes
/// (N, cin, H, W) to (N, cout, H / stride, W / stride), rounded up.
#[derive(Debug)]
pub struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
}

impl Conv {
    /// Parameters `weight` (cout, cin, k, k) and `bias` (cout).
    #[must_use]
    pub fn new(s: &Scope<'_>, c: ConvShape) -> Self {
        let shape = [c.cout, c.cin, c.kernel, c.kernel];
        let weight = match c.sn_eps {
            Some(eps) => s.normed("weight", &shape, Init::Orthogonal, eps),
            None => s.parameter("weight", &shape, Init::Orthogonal),
        };
        let bias = c.bias.then(|| s.parameter("bias", &[c.cout], Init::Constant(0.0)));
        Self { weight, bias, stride: c.stride, padding: c.kernel / 2 }
    }

    /// The tensors that `forward` reads.
    #[must_use]
    pub fn parameters(&self) -> Vec<Tensor> {
        [Some(&self.weight), self.bias.as_ref()]
            .into_iter()
            .flatten()
            .map(Tensor::shallow_clone)
            .collect()
    }

    /// x * W + b.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (s, p) = ([self.stride; 2], [self.padding; 2]);
        x.conv2d(&self.weight, self.bias.as_ref(), s, p, [1, 1], 1)
    }
}
