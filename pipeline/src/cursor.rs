//! A position in the endless order of batches; all there is to checkpoint in the pipeline.

use serde::{Deserialize, Serialize};

/// The batch that comes next: batch number `batch` of epoch `epoch`, both from 0.
///
/// Batches are global: all ranks of a run share one cursor, and it means the same samples for
/// every number of ranks and threads, as long as rows times ranks stay the same. A cursor that a
/// batch gave knows of which order it is, and is refused where that is another one.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Cursor {
    /// Passes over the data finished before.
    pub epoch: u64,
    /// Batches of this epoch finished before.
    pub batch: u64,
    /// Of which order; none fits any. Cursors that were written before there was this, and those of
    /// [`Cursor::new`], have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_for: Option<Fingerprint>,
}

impl Cursor {
    /// A position in whatever order it is used with.
    pub const fn new(epoch: u64, batch: u64) -> Self {
        Self { epoch, batch, made_for: None }
    }

    /// The same position without [`Cursor::made_for`]: for a caller that changes data or options on
    /// purpose and goes on from there.
    #[must_use]
    pub const fn unbound(self) -> Self {
        Self { made_for: None, ..self }
    }
}

/// What decides which views a position means: equal ones, equal batches. Not in it: threads, rank,
/// world and depth, which change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Of the data: [`Dataset::fingerprint`](crate::Dataset::fingerprint).
    pub data: u64,
    /// Rows of a batch, all ranks together.
    pub batch: u64,
    /// Seed of order and views.
    pub seed: u64,
    /// A hash of `shuffle` and `last`.
    pub order: u64,
    /// A hash of all options that decide what a row shows: mode, sizes, filter, scaling, orientation.
    pub views: u64,
}

impl Fingerprint {
    /// What of `self`, the order at hand, a cursor was not made for, in words; empty if nothing.
    pub(crate) fn differences(&self, made_for: &Self) -> Vec<String> {
        let mut all = Vec::new();
        let mut compare = |ours: u64, theirs: u64, words: String| {
            if ours != theirs {
                all.push(words);
            }
        };
        let Self { data, batch, seed, order, views } = *self;
        compare(data, made_for.data, "the data: another folder, split or build".into());
        let rows = made_for.batch;
        compare(batch, rows, format!("the batch: {batch} rows over all ranks, not {rows}"));
        compare(seed, made_for.seed, format!("the seed: {seed}, not {}", made_for.seed));
        compare(order, made_for.order, "the order: shuffle or last".into());
        compare(
            views,
            made_for.views,
            "the views: mode, sizes, filter or another such option".into(),
        );
        all
    }
}
