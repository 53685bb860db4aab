//! Why the members of an archive cannot be read to its end.

use std::io;
use std::path::Path;

use crate::error::Error;

/// Why the members of an archive cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The system refused.
    #[error("it cannot be read ({0})")]
    Io(#[from] io::Error),
    /// The bytes end before a member does.
    #[error("ends {place} {member} (at byte {offset})")]
    Cut {
        /// "inside", "in the header after", or "in" the first header.
        place: &'static str,
        /// The last member whose header could be read.
        member: String,
        /// Where the bytes run out.
        offset: u64,
    },
    /// A header makes no sense.
    #[error("{problem} (at byte {offset})")]
    Damaged {
        /// What is wrong.
        problem: String,
        /// Where.
        offset: u64,
    },
    /// The archive is compressed.
    #[error("is compressed with {0}")]
    Compressed(Compression),
}

impl Broken {
    /// The same as this crate's error, of an archive at a path or URL. `mend` says what to do.
    pub(crate) fn of(self, path: &Path, mend: &str) -> Error {
        match self {
            Self::Io(source) => Error::io("read", path)(source),
            Self::Cut { member, offset, .. } => {
                Error::ShardTruncated { shard: path.to_path_buf(), member, offset }
            }
            Self::Damaged { problem, offset } => {
                Error::format(path, offset, format!("{problem}; {mend}"))
            }
            Self::Compressed(_) => Error::format(path, 0, format!("{self}; {mend}")),
        }
    }
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

impl Compression {
    /// What the first bytes of a file say; six of them are enough.
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            // A frame, or one of the frames that decoders skip.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            _ => None,
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        })
    }
}
