use std::fmt::Debug;

use tch::Tensor;

use super::Encoder;

/// What an update of E has seen of a pass.
#[derive(Debug)]
pub struct Seen<'a> {
    /// E, in training.
    pub e: &'a Encoder,
    /// x as E sees it, (N, 3, R_E, R_E).
    pub x: &'a Tensor,
    /// a of E(x), (N, features).
    pub features: &'a Tensor,
    /// G(z), (N, 3, R_G, R_G).
    pub generated: &'a Tensor,
    /// z, (N, Z).
    pub prior: &'a Tensor,
    /// Uniform numbers in [-1, 1], (N, [`Further::uniforms`]).
    pub uniforms: &'a Tensor,
}

/// A loss of E beside the paper's, with a network of its own.
pub trait Further: Debug {
    /// Uniform numbers that it wants for each image.
    fn uniforms(&self) -> i64;

    /// A scalar that E and its own network are to make small: the mean over the images. G is not to learn by it.
    fn loss(&self, seen: &Seen<'_>) -> Tensor;
}
