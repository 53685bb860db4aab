//! Layers. Building a layer (from a [`Scope`]) stands apart from running it; running changes nothing
//! but batch-norm statistics.

mod attention;
mod batch_norm;
mod conv;
mod linear;
mod mlp;
mod params;
mod recompute;
mod spectral_norm;

pub use attention::Attention;
pub use batch_norm::{BatchNorm, ConditionalBatchNorm, Statistics};
pub use conv::{Conv, ConvShape};
pub use linear::Linear;
pub use mlp::{Mlp, MlpConfig};
pub use params::{Fill, Init, Kinds, Params, Scope, Weights};
pub use recompute::attach;
pub use spectral_norm::{SpectralNorm, SpectralNorms};

/// What was computed in bfloat16, in single precision; anything else as it is.
pub(crate) fn single(x: &tch::Tensor) -> tch::Tensor {
    match x.kind() {
        tch::Kind::BFloat16 => x.to_kind(tch::Kind::Float),
        _ => x.shallow_clone(),
    }
}
