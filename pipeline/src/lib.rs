//! Tar shards of JPEGs to batches of the same view at two resolutions.
//!
//! ```text
//!   index ──► sampler ──► fetch ═══draws═══► decode × N ═══batches═══► loader ──► Batch
//!  (where)   (which, in   (local: mapped;   (crop, resize, 2x2 mean    (puts them   │
//!             what order)  URL: read ahead)  into a row of a slab)      in order)   │
//!                           ▲                                                       │
//!                           ╚═══════════════════ empty slabs ═══════════════════════╝
//! ```
//! Open a [`Dataset`], start a [`Loader`] at a [`Cursor`], and iterate. Pixels and order follow
//! from shards, options, seed and cursor alone, never from the number of threads:
//! ```no_run
//! use std::{path::Path, sync::Arc};
//! use pipeline::{Cursor, Dataset, Heap, Loader, LoaderConfig};
//! # fn main() -> Result<(), pipeline::Error> {
//! let data = Arc::new(Dataset::open(Path::new("data"), "train")?);
//! let config = LoaderConfig { batch: 64, epochs: Some(1), ..LoaderConfig::default() };
//! for batch in Loader::start(data, config, Cursor::default(), Arc::new(Heap))? {
//!     let batch = batch?;
//!     assert_eq!(batch.large().len(), batch.rows() * 256 * 256 * 3);
//! }
//! # Ok(())
//! # }
//! ```

#[cfg(test)]
extern crate self as pipeline; // tests that are compiled in here and outside

mod augment;
mod batch;
mod cache;
mod collate;
mod cursor;
mod dataset;
pub mod decode;
mod error;
mod fetch;
mod folder;
pub mod index;
pub mod jpeg;
mod loader;
mod read_ahead;
mod remote;
mod sampler;
mod scan;
pub mod shard;
mod slab;
mod stats;

pub use augment::{Crop, Mode, View};
pub use batch::Batch;
pub use cursor::Cursor;
pub use dataset::Dataset;
pub use decode::{Filter, Orientation, Scaling};
pub use error::{Error, Fault};
pub use loader::{BadSamples, Loader, LoaderConfig};
pub use remote::{RemoteOptions, Traffic, is_url};
pub use sampler::{LastBatch, Shuffle, WINDOW};
pub use slab::{Heap, HostBlock, HostMemory};
pub use stats::{Quarantined, Stage, Stats};

/// Position of a sample in its split, from 0.
pub type SampleId = u64;
