//! Seed, epoch, rank and world to an endless order of draws: pure arithmetic, no I/O, and no
//! state but the cursor, so any position is reached at once.
//!
//! An epoch is a permutation of all samples of a split. Global batch `b` of `rows · world`
//! samples takes the positions from `b · rows · world` on; rank `r` takes those with remainder
//! `r`. The same global batches therefore come out for every world size that divides them.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::SampleId;
use crate::cursor::Cursor;
use crate::handover::Runs;

/// The order of samples in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shuffle {
    /// A permutation of all samples, another one each epoch.
    #[default]
    Global,
    /// Shards in random order, and samples permuted within windows of [`WINDOW`] positions: reads
    /// stay close together, as folders behind a URL and slow disks want it.
    Shards,
    /// The order of the shards.
    None,
}

/// What becomes of the samples that do not fill the last batch of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LastBatch {
    /// They are left out this epoch; another permutation leaves out others.
    #[default]
    Drop,
    /// The batch is filled up with the first samples of the epoch's order.
    Pad,
    /// The batch is short. The ranks' parts may differ by a row, and be of no rows at all where
    /// samples are fewer than ranks; the number of batches is the same. For evaluation.
    Keep,
}

/// Positions that [`Shuffle::Shards`] permutes among themselves: 0.45 GB of ImageNet's photographs,
/// two of its shards, whose order was shuffled already when they were built.
pub const WINDOW: usize = 4096;

/// Purposes of a key, so that no two uses of randomness share a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Order = 1,
    Shards = 2,
    Window = 3,
    View = 4,
    Substitute = 5,
}

/// A random stream that is a function of its four numbers alone: they are its ChaCha key.
#[derive(Debug)]
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    pub(crate) fn new(seed: u64, epoch: u64, item: u64, purpose: Purpose) -> Self {
        let mut key = [0; 32];
        for (bytes, value) in key.chunks_exact_mut(8).zip([seed, epoch, item, purpose as u64]) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [0, 1), 53 bits.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub(crate) fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0..n, n > 0. The bias is below n / 2^64.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }
}

/// A keyed permutation of 0..n in constant memory: a Feistel network on a grid of at least n
/// cells, walked until it lands below n.
///
/// # Source
/// Black and Rogaway 2002, "Ciphers with arbitrary finite domains": the generalised Feistel
/// cipher with cycle walking. The round function is ours: a 64-bit finaliser, fit for shuffling
/// and not for secrets.
#[derive(Debug, Clone)]
pub(crate) struct Permutation {
    n: u64,
    rows: u64,
    columns: u64,
    keys: [u64; 8],
}

impl Permutation {
    pub(crate) fn new(n: usize, mut stream: Stream) -> Self {
        let n = n as u64;
        let mut rows = n.isqrt().max(1);
        if rows * rows < n {
            rows += 1;
        }
        Self { n, rows, columns: n.div_ceil(rows).max(1), keys: [(); 8].map(|()| stream.bits()) }
    }

    /// Where `position` below n goes.
    pub(crate) fn at(&self, position: usize) -> usize {
        let mut x = position as u64;
        debug_assert!(x < self.n);
        loop {
            x = self.once(x);
            if x < self.n {
                return x as usize;
            }
        }
    }

    fn once(&self, x: u64) -> u64 {
        let (mut a, mut b) = (x % self.rows, x / self.rows);
        for pair in self.keys.chunks_exact(2) {
            a = (a + mix(pair[0] ^ b) % self.rows) % self.rows;
            b = (b + mix(pair[1] ^ a) % self.columns) % self.columns;
        }
        b * self.rows + a
    }
}

fn mix(x: u64) -> u64 {
    // The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// How the samples of a split are dealt out.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Samples of each shard of the split.
    pub(crate) shards: Vec<usize>,
    /// Their sum, at least 1 where a batch is asked for.
    pub(crate) samples: usize,
    pub(crate) rows: usize,
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) seed: u64,
    pub(crate) shuffle: Shuffle,
    pub(crate) last: LastBatch,
}

impl Plan {
    /// Batches in an epoch, equal for all ranks.
    pub(crate) fn batches(&self) -> u64 {
        let (samples, global) = (self.samples, self.rows * self.world);
        match self.last {
            LastBatch::Drop => (samples / global) as u64,
            LastBatch::Pad | LastBatch::Keep => samples.div_ceil(global) as u64,
        }
    }

    /// Samples this rank draws in an epoch.
    pub(crate) fn epoch_rows(&self) -> u64 {
        let last = self.batches().saturating_sub(1);
        last * self.rows as u64 + self.rows_of(last) as u64
    }

    /// Rows of this rank's part of a batch of an epoch; none only in the last one.
    pub(crate) fn rows_of(&self, batch: u64) -> usize {
        let first = self.first(batch);
        match self.last {
            LastBatch::Drop | LastBatch::Pad => self.rows,
            LastBatch::Keep => {
                self.samples.saturating_sub(first).div_ceil(self.world).min(self.rows)
            }
        }
    }

    /// The position of the first row of a batch in the epoch's order. The next row's is `world` on;
    /// past the end it goes on from the start.
    fn first(&self, batch: u64) -> usize {
        batch as usize * self.rows * self.world + self.rank
    }

    /// This rank's rows from a cursor up to the epoch `end`, in runs of `run` rows.
    pub(crate) fn deal(&self, from: Cursor, end: u64, run: usize) -> Deal {
        let all = self.batches();
        let last = self.rows_of(all.saturating_sub(1));
        // Only the last batch can have no rows.
        let batches = all - u64::from(all > 0 && last == 0);
        let last = if last == 0 { self.rows } else { last };
        let from = match from.batch >= batches {
            true => Cursor { epoch: from.epoch + 1, batch: 0, ..from },
            false => from,
        };
        let left = end.saturating_sub(from.epoch).saturating_mul(batches);
        let runs = Runs { rows: self.rows, last, batches: batches.max(1), first: from.batch, run };
        Deal { runs, end: left.saturating_sub(from.batch), epoch: from.epoch }
    }

    /// The order of one epoch.
    pub(crate) fn epoch(self: &Arc<Self>, epoch: u64) -> Epoch {
        let order = match self.shuffle {
            Shuffle::None => Order::Plain,
            Shuffle::Global => {
                let stream = Stream::new(self.seed, epoch, 0, Purpose::Order);
                Order::Global(Permutation::new(self.samples, stream))
            }
            Shuffle::Shards => self.shard_order(epoch),
        };
        Epoch { plan: Arc::clone(self), order, epoch, window: None }
    }

    fn shard_order(&self, epoch: u64) -> Order {
        let mut firsts = Vec::with_capacity(self.shards.len());
        let mut first = 0;
        for samples in &self.shards {
            firsts.push(first);
            first += samples;
        }
        let stream = Stream::new(self.seed, epoch, 0, Purpose::Shards);
        let shuffled = Permutation::new(self.shards.len(), stream);
        let mut end = 0;
        let spans = (0..self.shards.len()).map(|position| {
            let shard = shuffled.at(position);
            end += self.shards[shard];
            (end, firsts[shard] + self.shards[shard])
        });
        Order::Shards { spans: spans.collect() }
    }

    /// The samples that this rank draws from a cursor up to the epoch `end`, in order.
    #[cfg(any(test, feature = "remote"))]
    pub(crate) fn draws(
        self: &Arc<Self>,
        from: Cursor,
        end: u64,
    ) -> impl Iterator<Item = SampleId> {
        let plan = Arc::clone(self);
        let (mut cursor, mut row) = (from, 0);
        let mut order = None;
        std::iter::from_fn(move || {
            if plan.epoch_rows() == 0 {
                return None;
            }
            while row == plan.rows_of(cursor.batch) {
                (cursor, row) = (plan.after(cursor), 0);
            }
            if cursor.epoch >= end {
                return None;
            }
            let sample = Epoch::of(&mut order, &plan, cursor.epoch).sample(cursor.batch, row);
            row += 1;
            Some(sample)
        })
    }

    /// The cursor that follows a batch.
    pub(crate) fn after(&self, cursor: Cursor) -> Cursor {
        if cursor.batch + 1 >= self.batches() {
            Cursor { epoch: cursor.epoch + 1, batch: 0, ..cursor }
        } else {
            Cursor { batch: cursor.batch + 1, ..cursor }
        }
    }
}

/// What one rank draws: batches of no rows are left out, the others are numbered from 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deal {
    pub(crate) runs: Runs,
    /// Batches in all.
    pub(crate) end: u64,
    /// Epoch of the first batch.
    epoch: u64,
}

impl Deal {
    /// Epoch and batch of the batch with this number.
    pub(crate) fn place(&self, number: u64) -> (u64, u64) {
        let Runs { first, batches, .. } = self.runs;
        (self.epoch + (number + first) / batches, (number + first) % batches)
    }
}

#[derive(Debug)]
enum Order {
    Plain,
    Global(Permutation),
    /// Shards in their new order: (end in the new order, end in the split).
    Shards {
        spans: Vec<(usize, usize)>,
    },
}

/// One epoch's order of samples.
#[derive(Debug)]
pub(crate) struct Epoch {
    plan: Arc<Plan>,
    order: Order,
    epoch: u64,
    /// The window of [`Shuffle::Shards`] that was last looked into: neighbours come together.
    window: Option<(usize, Permutation)>,
}

impl Epoch {
    /// The epoch in `kept`, put there where it is another one.
    pub(crate) fn of<'a>(kept: &'a mut Option<Self>, plan: &Arc<Plan>, epoch: u64) -> &'a mut Self {
        kept.take_if(|kept| kept.epoch != epoch);
        kept.get_or_insert_with(|| plan.epoch(epoch))
    }

    /// The sample of a row of this rank's part of a batch.
    pub(crate) fn sample(&mut self, batch: u64, row: usize) -> SampleId {
        let samples = self.plan.samples;
        self.at((self.plan.first(batch) + row * self.plan.world) % samples) as SampleId
    }

    /// The samples of this rank's part of a batch, row by row.
    pub(crate) fn samples(&mut self, batch: u64) -> Vec<SampleId> {
        (0..self.plan.rows_of(batch)).map(|row| self.sample(batch, row)).collect()
    }

    fn at(&mut self, position: usize) -> usize {
        match &self.order {
            Order::Plain => position,
            Order::Global(permutation) => permutation.at(position),
            Order::Shards { spans } => {
                let number = position / WINDOW;
                let first = number * WINDOW;
                self.window.take_if(|window| window.0 != number);
                let (_, permutation) = self.window.get_or_insert_with(|| {
                    let length = WINDOW.min(self.plan.samples - first);
                    let (seed, item) = (self.plan.seed, number as u64);
                    let stream = Stream::new(seed, self.epoch, item, Purpose::Window);
                    (number, Permutation::new(length, stream))
                });
                let position = first + permutation.at(position - first);
                let (end, split_end) = spans[spans.partition_point(|span| span.0 <= position)];
                split_end - (end - position)
            }
        }
    }
}

#[cfg(test)]
mod tests;
