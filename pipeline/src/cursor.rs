//! A position in the endless order of batches; all there is to checkpoint in the pipeline.

use serde::{Deserialize, Serialize};

/// The batch that comes next: batch number `batch` of epoch `epoch`, both from 0.
///
/// Batches are global: all ranks of a run share one cursor, and it means the same samples for
/// every number of ranks and threads, as long as rows times ranks stay the same.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Cursor {
    /// Passes over the data finished before.
    pub epoch: u64,
    /// Batches of this epoch finished before.
    pub batch: u64,
}
