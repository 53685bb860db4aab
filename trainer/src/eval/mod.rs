//! What a trained model is worth: averaged networks with standing statistics, pictures, probes.

pub mod linear;
mod model;
pub mod pictures;

pub use model::{Model, loader_config};
