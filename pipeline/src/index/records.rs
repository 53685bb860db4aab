//! What an index says of samples, shards and splits.

use serde::{Deserialize, Serialize};

use crate::shard::Entry;

/// The format of a sample's image, as far as the writer knew it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Not looked at.
    #[default]
    Unknown,
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
}

/// What the index says of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Its shard, a position in [`Index::shards`](super::Index::shards).
    pub shard: usize,
    /// Where the image lies in it.
    pub entry: Entry,
    /// Class number.
    pub label: Option<u32>,
    /// Width in pixels, 0 when unknown.
    pub width: u16,
    /// Height in pixels, 0 when unknown.
    pub height: u16,
    /// Format of the image.
    pub format: Format,
}

/// What the index says of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRecord {
    /// File name in the folder.
    pub name: String,
    /// Size of the file.
    pub bytes: u64,
    /// XXH3-64 of the file, 0 where it is not known.
    pub xxh3: u64,
    /// Its samples, as positions in the index.
    pub samples: std::ops::Range<usize>,
}

/// What the index says of one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitRecord {
    /// "train", "val", "trainval", "test", or a name of the user's.
    pub name: String,
    /// Its samples, as positions in the index.
    pub samples: std::ops::Range<usize>,
    /// Its shards, as positions in the index.
    pub shards: std::ops::Range<usize>,
}
