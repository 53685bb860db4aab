//! Layers. Building a layer (from a [`Scope`]) stands apart from running it; running changes nothing
//! but batch-norm statistics.

mod attention;
mod batch_norm;
mod conv;
mod gradients;
mod linear;
mod mlp;
mod params;
mod recompute;
mod spectral_norm;

pub use attention::Attention;
pub use batch_norm::{BatchNorm, ConditionalBatchNorm, Statistics};
pub use conv::{Conv, ConvShape};
pub use gradients::{Gradients, set_bucket_bytes};
pub use linear::Linear;
pub use mlp::{Mlp, MlpConfig};
pub use params::{Fill, Init, Kinds, Params, Scope, Weights};
pub use recompute::{Recompute, Shared, recomputed};
pub use spectral_norm::{SpectralNorm, SpectralNorms};

/// What was computed in bfloat16, in single precision; anything else as it is.
pub(crate) fn single(x: &tch::Tensor) -> tch::Tensor {
    match x.kind() {
        tch::Kind::BFloat16 => x.to_kind(tch::Kind::Float),
        _ => x.shallow_clone(),
    }
}

/// (N, C, H, W) with the channels of a pixel side by side in memory, as fast convolutions want it on
/// every device; layers keep the order they are given.
pub(crate) fn channels_last(x: &tch::Tensor) -> tch::Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}
