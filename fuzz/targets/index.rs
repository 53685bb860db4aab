//! Any bytes under a right checksum as an index: an error or records in bounds, never a panic.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pipeline::index::{INDEX_FILE, Index};
use xxhash_rust::xxh3::xxh3_64;

static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let dir = DIR.get_or_init(|| tempfile::tempdir().expect("a folder to work in"));
    let mut file = bytes.to_vec();
    file.extend_from_slice(&xxh3_64(bytes).to_le_bytes());
    std::fs::write(dir.path().join(INDEX_FILE), file).expect("room in the folder");
    if let Ok(index) = Index::open(dir.path()) {
        for sample in 0..index.len() {
            let record = index.record(sample);
            let end = record.entry.offset + u64::from(record.entry.length);
            assert!(end <= index.shards()[record.shard].bytes);
            index.key(sample);
        }
    }
});
