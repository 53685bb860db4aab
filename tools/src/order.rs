//! The order in which items are written: a pure function of the items' keys and a seed.

use std::collections::{HashMap, HashSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::Error;
use crate::catalog::{Item, Split};

/// How items follow one another within a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    /// A seeded shuffle, so that reading shards from end to end is already mixed
    Shuffle,
    /// As the source has them, which reads archives on slow disks from end to end
    Source,
}

/// Moves `count` training items, drawn without replacement, to [`Split::Trainval`].
///
/// `items` must be in canonical order, see [`crate::catalog::Catalog::seal`].
///
/// # Errors
/// No training item would be left.
pub fn hold_out(items: &mut [Item], count: usize, seed: u64) -> Result<(), Error> {
    let train: Vec<usize> =
        (0..items.len()).filter(|at| items[*at].split == Split::Train).collect();
    for position in draw(train.len(), count, seed)? {
        items[train[position]].split = Split::Trainval;
    }
    Ok(())
}

/// The hold-out of a stream, which is drawn before its images are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldOut {
    /// How many images to hold out.
    pub count: usize,
    /// How many training images there will be, if that is known.
    pub images: Option<usize>,
}

/// Draws `count` of `images` positions without replacement.
///
/// # Errors
/// No image would be left.
pub(crate) fn draw(images: usize, count: usize, seed: u64) -> Result<HashSet<usize>, Error> {
    if count > 0 && count >= images {
        let problem = format!("--holdout {count} leaves none of {images} training images");
        return Err(Error::Usage { problem, mend: "hold out fewer" });
    }
    // The first `count` places of a shuffle (Fisher and Yates), of which only those that moved are kept.
    let mut random = generator(seed, "hold-out");
    let mut moved: HashMap<usize, usize> = HashMap::new();
    let mut drawn = HashSet::new();
    for at in 0..count {
        let from = at + below(&mut random, images - at);
        let here = moved.get(&at).copied().unwrap_or(at);
        drawn.insert(moved.insert(from, here).unwrap_or(from));
    }
    Ok(drawn)
}

/// Puts items into the order of writing: by split, and within a split as `order` says.
///
/// `items` must be in canonical order, so that the result depends on nothing but keys and `seed`.
pub fn arrange(items: &mut [Item], order: Order, seed: u64) {
    match order {
        Order::Source => items.sort_by(|a, b| (a.split, &a.place).cmp(&(b.split, &b.place))),
        Order::Shuffle => {
            items.sort_by_key(|item| item.split);
            for run in items.chunk_by_mut(|a, b| a.split == b.split) {
                let mut random = generator(seed, run[0].split.name());
                for at in (1..run.len()).rev() {
                    run.swap(at, below(&mut random, at + 1));
                }
            }
        }
    }
}

/// A generator for one purpose, so that no two purposes share a stream.
pub(crate) fn generator(seed: u64, purpose: &str) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(xxh3_64_with_seed(purpose.as_bytes(), seed))
}

/// A number below `bound`, by the high half of a product (Lemire 2019; the bias is below 2⁻³²).
/// Ours, so that a data folder stays the same when a library changes its mind about shuffling.
fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    ((u128::from(random.next_u64()) * bound as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Place;

    fn items(count: u32) -> Vec<Item> {
        let item = |row| Item {
            key: format!("k{row:03}").into(),
            split: if row < count - 10 { Split::Train } else { Split::Val },
            label: Some(row / 10),
            place: Place::Row { batch: 0, row },
            length: 1,
        };
        (0..count).map(item).collect()
    }

    fn keys(items: &[Item]) -> Vec<&str> {
        items.iter().map(|item| &*item.key).collect()
    }

    #[test]
    fn a_shuffle_keeps_every_item_in_its_split_and_follows_the_seed_alone() {
        let (mut a, mut b, mut c) = (items(100), items(100), items(100));
        arrange(&mut a, Order::Shuffle, 1);
        arrange(&mut b, Order::Shuffle, 1);
        arrange(&mut c, Order::Shuffle, 2);
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert!(a[..90].iter().all(|item| item.split == Split::Train));
        let mut sorted = keys(&a);
        sorted.sort_unstable();
        assert_eq!(sorted, keys(&items(100)));
        // Nine classes in a row of nine only happens by design.
        let labels: std::collections::HashSet<_> = a[..18].iter().map(|item| item.label).collect();
        assert!(labels.len() > 4, "neighbours come from {} classes", labels.len());
    }

    #[test]
    fn a_hold_out_takes_as_many_as_asked_from_training_only() {
        let mut held = items(100);
        hold_out(&mut held, 20, 7).expect("there are 90");
        assert!(hold_out(&mut items(100), 90, 7).is_err());
        let count = |split| held.iter().filter(|item| item.split == split).count();
        assert_eq!([count(Split::Train), count(Split::Trainval), count(Split::Val)], [70, 20, 10]);
    }

    #[test]
    fn source_order_reads_each_archive_from_end_to_end() {
        let mut items = items(30);
        items.reverse();
        arrange(&mut items, Order::Source, 0);
        assert_eq!(keys(&items), keys(&super::tests::items(30)));
    }
}
