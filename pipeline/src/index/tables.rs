//! The tables of an index file, as numbers.

use xxhash_rust::xxh3::Xxh3;

use super::scan::Stamp;
use super::{HEADER, SAMPLE, SHARD, SPLIT, STAMP, ShardRecord, SplitRecord, VERSION};

/// First bytes of the tables of an index.
pub(super) struct Tables {
    pub(super) shards: usize,
    pub(super) samples: usize,
    pub(super) names: usize,
    pub(super) keys: usize,
    pub(super) stamps: usize,
    pub(super) note: usize,
}

impl Tables {
    /// As the counts in the header have them; none where they do not end at byte `end`.
    pub(super) fn of(bytes: &[u8], stamped: bool, end: usize) -> Option<Self> {
        let table = |start: usize, count: usize, size: usize| {
            count.checked_mul(size).and_then(|bytes| start.checked_add(bytes))
        };
        let (splits, of_shards) = (u32_at(bytes, 12) as usize, u32_at(bytes, 16) as usize);
        let shards = table(HEADER, splits, SPLIT)?;
        let samples = table(shards, of_shards, SHARD)?;
        let names = table(samples, size_at(bytes, 24), SAMPLE)?;
        let keys = table(names, size_at(bytes, 32), 1)?;
        let stamps = table(keys, size_at(bytes, 40), 1)?;
        let note = table(stamps, if stamped { of_shards } else { 0 }, STAMP)?;
        let last = table(note, size_at(bytes, 48), 1)?;
        (last == end).then_some(Self { shards, samples, names, keys, stamps, note })
    }
}

/// The checksum of an index of version 1 that says the same.
pub(super) fn fingerprint(tables: &[u8]) -> u64 {
    let mut header = [0; HEADER];
    header.copy_from_slice(&tables[..HEADER]);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[48..].fill(0);
    let mut hash = Xxh3::new();
    hash.update(&header);
    hash.update(&tables[HEADER..]);
    hash.digest()
}

pub(super) fn read_stamp(record: &[u8]) -> Stamp {
    let [mtime, inode, hash] = [0, 8, 16].map(|at| u64_at(record, at));
    Stamp { mtime: mtime.cast_signed(), inode, hash }
}

pub(super) fn read_shards(table: &[u8], names: &[u8], count: usize) -> Option<Vec<ShardRecord>> {
    let (mut name_start, mut first) = (0, 0);
    let read = |record: &[u8]| {
        let [start, samples, name_end] = [16, 24, 32].map(|at| size_at(record, at));
        let name = std::str::from_utf8(names.get(name_start..name_end)?).ok()?.to_string();
        let end = start.checked_add(samples).filter(|&end| end <= count && start == first)?;
        // A name is a file of this folder, never a way out of it.
        if name.is_empty() || name.contains(['/', '\\']) || name == ".." {
            return None;
        }
        (name_start, first) = (name_end, end);
        let (bytes, xxh3) = (u64_at(record, 0), u64_at(record, 8));
        Some(ShardRecord { name, bytes, xxh3, samples: start..end })
    };
    let shards: Option<Vec<_>> = table.chunks_exact(SHARD).map(read).collect();
    shards.filter(|shards| shards.last().map_or(0, |shard| shard.samples.end) == count)
}

pub(super) fn read_splits(
    table: &[u8],
    shards: &[ShardRecord],
    count: usize,
) -> Option<Vec<SplitRecord>> {
    let (mut first_sample, mut first_shard) = (0, 0);
    let read = |record: &[u8]| {
        let name = record[..16].split(|&byte| byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).ok()?.to_string();
        let samples = size_at(record, 16)..size_at(record, 16).checked_add(size_at(record, 24))?;
        let (start, length) = (u32_at(record, 32) as usize, u32_at(record, 36) as usize);
        let split_shards = start..start.checked_add(length)?;
        let end = shards.get(split_shards.clone())?.last().map_or(first_sample, |s| s.samples.end);
        if samples != (first_sample..end) || start != first_shard {
            return None;
        }
        (first_sample, first_shard) = (end, split_shards.end);
        Some(SplitRecord { name, samples, shards: split_shards })
    };
    let splits: Option<Vec<_>> = table.chunks_exact(SPLIT).map(read).collect();
    splits.filter(|splits| {
        let last = splits.last();
        last.map_or(0, |split| split.samples.end) == count
            && last.map_or(0, |split| split.shards.end) == shards.len()
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(super) fn size_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64_at(bytes, at)).unwrap_or(usize::MAX)
}
