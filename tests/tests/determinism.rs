//! What training sees follows from the shards, the configuration and the seed.

use std::sync::Arc;

use integration::data;
use pipeline::{Cursor, Dataset, Heap, Loader, LoaderConfig, Mode};

type Seen = (Vec<u8>, Vec<u8>, Vec<i64>, Cursor);

fn batches(threads: usize, from: Cursor, count: usize) -> Vec<Seen> {
    batches_at(16, threads, from, count)
}

fn batches_at(small: usize, threads: usize, from: Cursor, count: usize) -> Vec<Seen> {
    let dataset = Arc::new(Dataset::open(data(), "train").unwrap());
    let config = LoaderConfig {
        batch: 6,
        large: 32,
        small: Some(small),
        mode: Mode::Small,
        seed: 3,
        threads,
        ..LoaderConfig::default()
    };
    let loader = Loader::start(dataset, config, from, Arc::new(Heap)).unwrap();
    loader
        .take(count)
        .map(|batch| {
            let b = batch.unwrap();
            (b.large().to_vec(), b.small().to_vec(), b.labels().to_vec(), b.cursor())
        })
        .collect()
}

#[test]
fn one_and_four_decode_threads_give_the_same_batches() {
    assert_eq!(batches(1, Cursor::default(), 20), batches(4, Cursor::default(), 20));
}

#[test]
fn the_cursor_of_a_batch_leads_to_the_next_one() {
    let all = batches(2, Cursor::default(), 15);
    for cut in [1, 5, 6, 7, 14] {
        assert_eq!(batches(1, all[cut - 1].3, 15 - cut), all[cut..]);
    }
}

#[test]
fn the_small_view_is_the_mean_of_the_large_one() {
    for by in [1, 2, 4] {
        let side = 32 / by;
        for (large, small, _, _) in batches_at(side, 2, Cursor::default(), 3) {
            let at = |n: usize, y: usize, x: usize, c: usize| {
                u32::from(large[((n * 32 + y) * 32 + x) * 3 + c])
            };
            for (i, value) in small.iter().enumerate() {
                let (c, x) = (i % 3, i / 3 % side);
                let (y, n) = (i / 3 / side % side, i / 3 / side / side);
                let square = (0..by).flat_map(|dy| (0..by).map(move |dx| (dy, dx)));
                let sum: u32 = square.map(|(dy, dx)| at(n, by * y + dy, by * x + dx, c)).sum();
                let area = (by * by) as u32;
                assert_eq!(u32::from(*value), (sum + area / 2) / area, "{by}x{by} at {i}");
            }
        }
    }
}
