//! What a trained model is worth: averaged networks with standing statistics, pictures, probes.

pub mod agreement;
pub mod embed;
pub mod extractor;
pub mod features;
pub mod fid;
pub mod infomax;
pub mod knn;
pub mod linear;
pub mod metrics;
mod model;
pub mod pictures;
pub mod resize;

pub(crate) use model::sides;
pub use model::{Model, Subject, Variant, loader_config};
