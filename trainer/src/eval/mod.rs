//! What a trained model is worth: averaged networks with standing statistics, pictures, probes.

pub mod knn;
pub mod linear;
pub mod metrics;
mod model;
pub mod pictures;

pub use model::{Model, loader_config};
