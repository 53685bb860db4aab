//! The batches are what they were: order and pixels have the hashes of golden files, for every
//! number of threads and ranks, and from every position.
//!
//! `BIGBIGAN_GOLDEN=remake cargo test -p pipeline --test golden` writes the files anew; a change of
//! them is a change of numbers, and has a line under "Numerics" in CHANGELOG.md.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pipeline::{Cursor, Dataset, LastBatch, LoaderConfig, Mode, Shuffle};
use support::{config, folder, open, start};
use xxhash_rust::xxh3::Xxh3;

const SAMPLES: usize = 42;
const EPOCHS: u64 = 2;

/// Hashes of what a run from a position to the end gives: of order and pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hashes {
    order: u64,
    pixels: u64,
}

/// One process's part of a batch.
struct Part {
    ids: Vec<u64>,
    labels: Vec<i64>,
    large: Vec<u8>,
    small: Vec<u8>,
    after: Cursor,
}

fn parts(data: &Arc<Dataset>, config: LoaderConfig, at: Cursor) -> Vec<Part> {
    let part = |batch: pipeline::Batch| Part {
        ids: batch.ids().to_vec(),
        labels: batch.labels().to_vec(),
        large: batch.large().to_vec(),
        small: batch.small().to_vec(),
        after: batch.cursor(),
    };
    start(data, config, at).map(|batch| part(batch.unwrap())).collect()
}

/// The global batches of `world` processes from `at` on, row by row.
fn run(data: &Arc<Dataset>, config: &LoaderConfig, world: usize, at: Cursor) -> Hashes {
    let ranks: Vec<Vec<Part>> = (0..world)
        .map(|rank| LoaderConfig { rank, world, batch: config.batch / world, ..config.clone() })
        .map(|config| parts(data, config, at))
        .collect();
    let (mut order, mut pixels) = (Xxh3::new(), Xxh3::new());
    for (number, whole) in ranks[0].iter().enumerate() {
        let of = |rank: usize| &ranks[rank][number];
        let rows: usize = (0..world).map(|rank| of(rank).ids.len()).sum();
        for row in 0..rows {
            let (part, row) = (of(row % world), row / world);
            assert_eq!(part.after, whole.after);
            order.update(&part.ids[row].to_le_bytes());
            order.update(&part.labels[row].to_le_bytes());
            for views in [&part.large, &part.small] {
                let length = views.len() / part.ids.len();
                pixels.update(&views[row * length..][..length]);
            }
        }
        order.update(&whole.after.epoch.to_le_bytes());
        order.update(&whole.after.batch.to_le_bytes());
    }
    Hashes { order: order.digest(), pixels: pixels.digest() }
}

/// Runs from several positions, with all numbers of threads and ranks, have one hash each.
fn hashes(data: &Arc<Dataset>, config: &LoaderConfig) -> Vec<Hashes> {
    let from = |epoch, batch| Cursor { epoch, batch, ..Cursor::default() };
    let positions = [from(0, 0), from(0, 3), from(1, 0), from(1, 4)];
    let worlds = [1, 2, 4].into_iter().cycle();
    let mut all = Vec::new();
    for at in positions {
        let first = run(data, &LoaderConfig { threads: 1, ..config.clone() }, 1, at);
        for (threads, world) in [2, 3, 8, 1, 8, 3].into_iter().zip(worlds.clone()) {
            let config = LoaderConfig { threads, ..config.clone() };
            let hashes = run(data, &config, world, at);
            assert_eq!(hashes, first, "{threads} threads, {world} ranks, from {at:?}: {config:?}");
        }
        all.push(first);
    }
    all
}

/// Compares with the golden file, or writes it.
fn golden(name: &str, found: &BTreeMap<String, Vec<String>>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BIGBIGAN_GOLDEN").is_some_and(|word| word == "remake") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, serde_json::to_string_pretty(found).unwrap() + "\n").unwrap();
    }
    let expected: BTreeMap<String, Vec<String>> =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(*found, expected, "{} has other hashes", path.display());
}

fn hex(hashes: impl Iterator<Item = u64>) -> Vec<String> {
    hashes.map(|hash| format!("{hash:016x}")).collect()
}

fn base() -> LoaderConfig {
    LoaderConfig { epochs: Some(EPOCHS), ..config() }
}

#[test]
fn the_order_is_what_it_was() {
    let dir = folder(SAMPLES);
    let data = open(dir.path());
    let mut found = BTreeMap::new();
    for shuffle in [Shuffle::Global, Shuffle::Shards, Shuffle::None] {
        for last in [LastBatch::Drop, LastBatch::Pad, LastBatch::Keep] {
            let hashes = hashes(&data, &LoaderConfig { shuffle, last, ..base() });
            let name = format!("{shuffle:?}/{last:?}").to_lowercase();
            found.insert(name, hex(hashes.iter().map(|hashes| hashes.order)));
        }
    }
    golden("order.json", &found);
}

#[test]
fn the_pixels_are_what_they_were() {
    let dir = folder(SAMPLES);
    let data = open(dir.path());
    let mut found = BTreeMap::new();
    for mode in [Mode::Resnet, Mode::Distorted, Mode::Biggan, Mode::Eval, Mode::Full, Mode::Small] {
        let hashes = hashes(&data, &LoaderConfig { mode, ..base() });
        let name = format!("{mode:?}").to_lowercase();
        found.insert(name, hex(hashes.iter().map(|hashes| hashes.pixels)));
    }
    golden("pixels.json", &found);
}
