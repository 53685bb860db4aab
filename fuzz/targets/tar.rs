//! Any bytes as a shard without an index: an error or samples inside the file, never a panic.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pipeline::Dataset;

static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let dir = DIR.get_or_init(|| tempfile::tempdir().expect("a folder to work in"));
    let _ = std::fs::remove_file(dir.path().join("index.bin"));
    std::fs::write(dir.path().join("train-0.tar"), bytes).expect("room in the folder");
    if let Ok(data) = Dataset::open(dir.path(), "train") {
        for sample in 0..data.len() as u64 {
            data.bytes(sample).expect("an accepted sample lies inside its shard");
            data.key(sample);
        }
    }
});
