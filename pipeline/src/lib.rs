//! Tar shards of JPEGs to batches of the same view at two resolutions.
//!
//! ```text
//!             ┌────────── decode threads, each from file to pixels ──────────┐
//!   index ──► │ sampler ──► read ──────────────► decode ───────────────────► │ ══batches══► Batch
//!  (where)    │ (which, in  (a file here; from   (crop, resize, 2x2 mean     │  (in order)    │
//!             │ what order) a URL: read ahead)   into a row of a slab)       │                │
//!             └──────────────────────────────────────────────────────────────┘                │
//!                ▲                                                                            │
//!                ╚════════════════════════════ empty slabs ═══════════════════════════════════╝
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

mod address;
mod augment;
mod batch;
#[cfg(feature = "remote")]
mod cache;
mod config;
pub mod container;
mod cursor;
mod dataset;
pub mod decode;
mod error;
mod folder;
mod handover;
pub mod index;
pub mod jpeg;
mod loader;
#[cfg(feature = "remote")]
mod read_ahead;
#[cfg(feature = "remote")]
mod remote;
#[cfg(not(feature = "remote"))]
#[path = "no_remote.rs"]
mod remote;
#[cfg(not(feature = "remote"))]
use remote::{ahead as read_ahead, store};
mod sampler;
pub mod seek;
pub mod shard;
mod slab;
mod stats;
#[cfg(feature = "remote")]
mod store;
mod worker;
mod writer;

/// What `handover` is made of; its test has loom's.
mod sync {
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, atomic};
}

pub use address::{RemoteOptions, Stored, Traffic, is_url, without_secrets};
pub use augment::{Crop, CropLaw, Mode, OwnView, RandomResizedCrop, Scene, View};
pub use batch::Batch;
pub use config::{BadSamples, LoaderConfig};
pub use cursor::{Cursor, Fingerprint};
pub use dataset::{Dataset, SampleMember};
pub use decode::{Filter, Orientation, Scaling};
pub use error::{Error, Fault, report};
pub use loader::Loader;
pub use sampler::{LastBatch, Shuffle, WINDOW};
pub use slab::{Heap, HostBlock, HostMemory};
pub use stats::{Quarantined, Stage, Stats};
pub use store::Store;
pub use writer::{FolderOptions, FolderWriter};

/// Position of a sample in its split, from 0.
pub type SampleId = u64;
