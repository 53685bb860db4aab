//! Memory stays flat however long a loader runs. Alone in its process, for it reads the process's.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

mod support;

use pipeline::{Cursor, LoaderConfig};
use support::{config, open, start};

/// Bytes of memory that are this process's own: not pages of files.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn twenty_epochs_take_no_more_memory_than_two() {
    let dir = support::folder(120);
    let data = open(dir.path());
    let pinned = LoaderConfig { pin: true, epochs: Some(20), ..config() };
    let loader = start(&data, pinned, Cursor::default());
    let (mut early, mut most, mut rows) = (0, 0, 0);
    for batch in loader {
        let batch = batch.unwrap();
        rows += batch.rows();
        match batch.cursor() {
            Cursor { epoch: 0 | 1, .. } => early = early.max(anonymous()),
            _ => most = most.max(anonymous()),
        }
    }
    assert_eq!(rows, 20 * 120);
    assert!(most < early + (2 << 20), "{most} bytes later, {early} in the first two epochs");
    assert!(most < 60 << 20, "{most} bytes for batches of 31 kB");
}
