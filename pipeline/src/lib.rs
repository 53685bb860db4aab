//! Tar shards of JPEGs to batches of the same view at two resolutions.

mod error;
pub mod index;
pub mod shard;

pub use error::{Error, Fault};

/// Position of a sample in its split, from 0.
pub type SampleId = u64;
