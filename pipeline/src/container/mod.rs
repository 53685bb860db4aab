//! What a WebDataset is: one rule for names, splits, keys, labels and groups, used by whatever reads
//! shards, in place or to build a data folder of them.

mod skipped;
mod split;

pub use skipped::Skipped;
pub use split::{MixedSplits, Split, splits};
