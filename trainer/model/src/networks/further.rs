use std::fmt::Debug;

use tch::Tensor;

use super::{Code, Discriminator, Encoder, Generator};

/// What a joint update of G and E has seen of a pass.
#[derive(Debug)]
pub struct Seen<'a> {
    /// E, in training.
    pub e: &'a Encoder,
    /// G, in training.
    pub g: &'a Generator,
    /// What D sees of images; its weights are constant.
    pub d: Sight<'a>,
    /// x as E sees it, (N, 3, R_E, R_E).
    pub x: &'a Tensor,
    /// a of E(x), (N, features).
    pub features: &'a Tensor,
    /// The code of E(x).
    pub code: &'a Code,
    /// f of x as D sees it, (N, F), a constant.
    pub f: &'a Tensor,
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

    /// A scalar that E, G where it is in it, and its own network are to make small: the mean over the images.
    fn loss(&self, seen: &Seen<'_>) -> Tensor;
}

/// A change of all images that D sees, real and generated, through which G learns.
pub trait Augment: Debug {
    /// Uniform numbers that it wants for each image.
    fn uniforms(&self) -> i64;

    /// Images (N, 3, R_G, R_G), by uniform numbers in [-1, 1], (N, [`Augment::uniforms`]).
    fn apply(&self, images: &Tensor, uniforms: &Tensor) -> Tensor;
}

/// D, and how the images of a pass are changed before it.
#[derive(Debug, Clone, Copy)]
pub struct Sight<'a> {
    /// D.
    pub net: &'a Discriminator,
    /// The change, and its numbers for as many images as are seen.
    pub augment: Option<(&'a dyn Augment, &'a Tensor)>,
}

impl Sight<'_> {
    /// The images as they reach D.
    pub fn images(&self, images: &Tensor) -> Tensor {
        self.augment.map_or_else(|| images.shallow_clone(), |(how, by)| how.apply(images, by))
    }

    /// f = F(images), (N, F).
    pub fn features(&self, images: &Tensor) -> Tensor {
        self.net.image_features(&self.images(images))
    }
}
