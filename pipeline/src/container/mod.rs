//! What a WebDataset is: one rule for names, splits, keys, labels and groups, used by whatever reads
//! shards, in place ([`Index::open`](crate::index::Index::open)) or to build a data folder of them.
//!
//! A WebDataset is a set of [tar archives](Members), the shards. Members with the same key are a
//! [sample](Samples): a name's key is what stands before the first dot of its last part, the rest is
//! the extension, in lower case. An [image](image_kind) and a label ([`read_label`]) are among them;
//! a [`Choice`] names them where that is not plain. The words of a shard's name tell its
//! [split](splits). What is passed over is counted by kind ([`Skipped`]).
//!
//! # Source
//! The `webdataset` Python package 1.0 (`tariterators.py`): what it reads, this reads. Its verdicts
//! on odd archives are in `tests/golden/shards.json`; docs/formats.md has a table of both.
//! Archives: POSIX.1-1988 (ustar) and -2001 (pax), and GNU tar's manual, "Basic Tar Format".

mod label;
mod members;
mod name;
mod sample;
mod skipped;
mod split;
#[cfg(test)]
mod tests;

pub use label::{
    JSON_FIELDS, MAX_CLASSES, MAX_JSON_BYTES, MAX_NUMBER_BYTES, read_json_label, read_label,
};
pub use members::{BLOCK, Broken, Compression, End, Kind, Member, Members};
pub use name::{ImageKind, KeyEnd, ShardName, image_kind, no_data, split_name};
pub use sample::{Added, Choice, Chosen, InTurn, Label, Sample, Samples, passed_over};
pub use skipped::Skipped;
pub use split::{MixedSplits, Split, splits};
