//! A loader gives the same batches however it is run, and ends well.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

mod support;

use pipeline::{Cursor, LastBatch, LoaderConfig, Mode, Shuffle};
use proptest::prelude::*;
use support::{batches, config, copy, folder, open, start};

#[test]
fn the_number_of_threads_changes_nothing() {
    let dir = folder(50);
    let data = open(dir.path());
    for mode in [Mode::Resnet, Mode::Distorted, Mode::Biggan, Mode::Eval, Mode::Full, Mode::Small] {
        let run = |threads| {
            let config = LoaderConfig { threads, mode, epochs: Some(3), ..config() };
            batches(&data, config, Cursor::default())
        };
        let one = run(1);
        assert_eq!(one.len(), 18);
        for threads in [2, 3, 8] {
            assert_eq!(run(threads), one, "{mode:?}, {threads} threads");
        }
    }
}

#[test]
fn the_small_view_is_the_mean_of_the_large_one() {
    let dir = folder(24);
    let data = open(dir.path());
    for (small, by) in [(32, 1), (16, 2), (8, 4)] {
        let config = LoaderConfig { small: Some(small), epochs: Some(1), ..config() };
        for batch in batches(&data, config, Cursor::default()) {
            for (at, &value) in batch.small.iter().enumerate() {
                let (row, rest) = (at / (small * small * 3), at % (small * small * 3));
                let (y, x, channel) = (rest / 3 / small, rest / 3 % small, rest % 3);
                let pixel = |dy, dx| {
                    let y = y * by + dy;
                    u32::from(batch.large[((row * 32 + y) * 32 + x * by + dx) * 3 + channel])
                };
                let sum: u32 = (0..by * by).map(|n| pixel(n / by, n % by)).sum();
                let count = (by * by) as u32;
                assert_eq!(u32::from(value), (2 * sum + count) / (2 * count));
            }
        }
    }
}

#[test]
fn labels_and_ids_belong_to_their_samples() {
    let dir = folder(30);
    let data = open(dir.path());
    let batches = batches(&data, LoaderConfig { epochs: Some(1), ..config() }, Cursor::default());
    for batch in &batches {
        for (&id, &label) in batch.ids.iter().zip(&batch.labels) {
            assert_eq!(label, if id % 7 == 6 { -1 } else { (id % 7) as i64 });
            assert_eq!(data.label(id).unwrap_or(-1), label);
        }
    }
}

#[test]
fn world_sizes_share_the_same_global_batches() {
    let dir = folder(50);
    let data = open(dir.path());
    let run = |rank, world| {
        let config = LoaderConfig { batch: 8 / world, rank, world, epochs: Some(3), ..config() };
        batches(&data, config, Cursor::default())
    };
    let whole = run(0, 1);
    for world in [2, 4] {
        let parts: Vec<_> = (0..world).map(|rank| run(rank, world)).collect();
        for (number, batch) in whole.iter().enumerate() {
            for row in 0..8 {
                let part = &parts[row % world][number];
                let (from, to) = (row / world * 3072, row * 3072);
                assert_eq!(part.ids[row / world], batch.ids[row]);
                assert_eq!(part.large[from..from + 3072], batch.large[to..to + 3072]);
                assert_eq!(part.cursor, batch.cursor);
            }
        }
    }
}

#[test]
fn last_batches_follow_the_policy() {
    let dir = folder(30);
    let data = open(dir.path());
    let ids = |last| {
        let config = LoaderConfig { last, epochs: Some(1), ..config() };
        let batches = batches(&data, config, Cursor::default());
        let end = batches.last().map(|batch| batch.cursor);
        assert_eq!(end.map(Cursor::unbound), Some(Cursor::new(1, 0)));
        batches.into_iter().map(|batch| batch.ids).collect::<Vec<_>>()
    };
    let [drop, pad, keep] = [LastBatch::Drop, LastBatch::Pad, LastBatch::Keep].map(ids);
    assert_eq!(drop, keep[..3]);
    assert_eq!(keep[3].len(), 6);
    assert_eq!(pad[3][..6], keep[3]);
    assert_eq!(pad[3][6..], pad[0][..2]);
    let mut all = keep.concat();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..30));
}

#[test]
fn orders_differ_as_asked() {
    let dir = folder(40);
    let data = open(dir.path());
    let ids = |shuffle| {
        let config = LoaderConfig { shuffle, epochs: Some(2), ..config() };
        let batches = batches(&data, config, Cursor::default());
        batches.into_iter().flat_map(|batch| batch.ids).collect::<Vec<_>>()
    };
    assert!(ids(Shuffle::None).into_iter().eq((0..40).chain(0..40)));
    for shuffle in [Shuffle::Global, Shuffle::Shards] {
        let ids = ids(shuffle);
        assert_ne!(ids[..40], ids[40..]);
        let mut first = ids[..40].to_vec();
        first.sort_unstable();
        assert!(first.into_iter().eq(0..40));
    }
}

#[test]
fn a_caller_that_leaves_early_leaves_no_thread() {
    let threads = || std::fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count());
    let dir = folder(30);
    let data = open(dir.path());
    let before = threads();
    for taken in 0..12 {
        let mut loader = start(&data, LoaderConfig { threads: 5, ..config() }, Cursor::default());
        let held: Vec<_> = loader.by_ref().take(taken % 3).collect();
        drop(loader);
        drop(held); // batches may outlive their loader
    }
    // Other tests of this process start and end threads of their own meanwhile.
    assert!(threads() < before + 30, "{} threads, {before} before", threads());
}

#[test]
fn a_finished_loader_stays_finished() {
    let dir = folder(20);
    let data = open(dir.path());
    let mut loader = start(&data, LoaderConfig { epochs: Some(1), ..config() }, Cursor::default());
    assert_eq!(loader.by_ref().count(), 2);
    assert!(loader.next().is_none());
    let stats = loader.stats();
    assert_eq!((stats.images, stats.batches, stats.bad), (16, 2, 0));
    assert!(stats.bytes > 1000 && stats.decode.busy > 0.0 && !stats.bottleneck.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    #[test]
    fn a_resumed_loader_goes_on_as_if_never_stopped(
        cut in 0..17usize, threads in 1..5usize, kind in 0..3usize,
    ) {
        use std::sync::OnceLock;
        static WHOLE: OnceLock<(tempfile::TempDir, [Vec<support::Copy>; 3])> = OnceLock::new();
        let shuffles = [Shuffle::Global, Shuffle::Shards, Shuffle::None];
        let three = |shuffle| LoaderConfig { shuffle, epochs: Some(3), ..config() };
        let (dir, whole) = WHOLE.get_or_init(|| {
            let dir = folder(50);
            let data = open(dir.path());
            let whole = shuffles.map(|shuffle| batches(&data, three(shuffle), Cursor::default()));
            (dir, whole)
        });
        let data = open(dir.path());
        let mut loader = start(&data, three(shuffles[kind]), Cursor::default());
        let mut drawn: Vec<_> = loader.by_ref().take(cut).map(|b| copy(&b.unwrap())).collect();
        drop(loader);
        let cursor = drawn.last().map_or(Cursor::default(), |batch| batch.cursor);
        let rest = LoaderConfig { threads, ..three(shuffles[kind]) };
        drawn.extend(batches(&data, rest, cursor));
        prop_assert!(drawn == whole[kind]);
    }
}
