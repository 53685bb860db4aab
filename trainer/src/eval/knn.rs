//! Nearest neighbours among features, in blocks of bounded memory, and the vote of their classes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use pipeline::{Dataset, Mode};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::features::{Feature, Features};
use super::{Model, Subject};
use crate::error::Result;

/// Queries compared with the whole bank at a time.
const BLOCK: i64 = 64;
/// Queries ranked at a time: the allocator keeps blocks this small, and gives larger ones back.
const RANKED: i64 = 8;
/// Candidates beyond k that single precision finds and double precision ranks.
const MARGIN: i64 = 14;
/// DINO's temperature (Caron et al. 2021).
const TEMPERATURE: f64 = 0.07;
/// Bank rows that one pass over a thread's queries keeps in its core's cache, in bytes.
const CACHED: usize = 256 << 10;

/// How far apart two features are, both scaled to length 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distance {
    /// Σ|a − b|, the paper's better one.
    L1,
    /// √Σ(a − b)².
    L2,
    /// 1 − a·b; its neighbours are those of L2, its votes are weighted by exp(a·b / 0.07).
    Cosine,
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::Cosine => "cosine",
        })
    }
}

/// All of them.
pub const DISTANCES: [Distance; 3] = [Distance::L1, Distance::L2, Distance::Cosine];
/// Numbers of neighbours that vote (paper, App. C).
pub const VOTERS: [usize; 4] = [1, 5, 25, 50];

/// A whole evaluation by nearest neighbours.
#[derive(Debug, Clone)]
pub struct Task {
    /// What is compared.
    pub feature: Feature,
    /// Images whose labels vote, in the crop of `eval.mode`.
    pub train: Arc<Dataset>,
    /// How many of them.
    pub images: usize,
    /// Images that are classified, all of them, in the same crop.
    pub test: Arc<Dataset>,
}

/// What the neighbours said, with all that is needed to ask them again: a line of `evaluations.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// `knn_DISTANCE_FEATURE`.
    pub metric: String,
    /// What was evaluated.
    #[serde(flatten)]
    pub subject: Subject,
    /// Split of the queries.
    pub split: String,
    /// How all images were cropped.
    pub crop: Mode,
    /// Images that vote.
    pub train_images: usize,
    /// Images that were classified.
    pub test_images: usize,
    /// Width of the features.
    pub width: i64,
    /// Distance.
    pub distance: Distance,
    /// Accuracy in percent, by the number of neighbours that vote ([`VOTERS`]).
    pub top1: BTreeMap<usize, f64>,
}

impl Task {
    /// Accuracies of a model by each of [`DISTANCES`].
    ///
    /// # Errors
    /// [`Error::Data`](crate::error::Error::Data); [`Error::Config`](crate::error::Error::Config) for
    /// images without labels, and features that the model lacks.
    pub fn run(&self, model: &Model) -> Result<Vec<Line>> {
        let crop = model.config().eval.mode;
        let of = |data: &Arc<Dataset>, count| {
            Features::of(model, data, crop, count, &[self.feature])?.labelled(data.split())
        };
        let (bank, queries) = (of(&self.train, self.images)?, of(&self.test, usize::MAX)?);
        let (x, labels) = (bank.get(self.feature), Tensor::from_slice(&bank.labels));
        let line = |distance| {
            let most = VOTERS[VOTERS.len() - 1] as i64;
            let found = nearest(x, Some(&labels), queries.get(self.feature), distance, most);
            let accuracy = |k| {
                let predicted = vote(&found, &bank.labels, distance, k);
                let right = predicted.iter().zip(&queries.labels).filter(|(a, b)| a == b).count();
                (k, 100.0 * right as f64 / predicted.len() as f64)
            };
            Line {
                metric: format!("knn_{distance}_{}", self.feature),
                subject: model.subject().clone(),
                split: self.test.split().to_owned(),
                crop,
                train_images: bank.labels.len(),
                test_images: queries.labels.len(),
                width: x.size()[1],
                distance,
                top1: VOTERS.into_iter().map(accuracy).collect(),
            }
        };
        Ok(DISTANCES.into_iter().map(line).collect())
    }
}

/// The nearest rows of a bank, nearest first.
#[derive(Debug)]
pub struct Neighbours {
    /// Row numbers in the bank, (Q, k), i64.
    pub rows: Tensor,
    /// Their distances, (Q, k), double.
    pub distances: Tensor,
}

/// Rows scaled to length 1, in single precision; a row of zeros stays one.
pub fn normalised(x: &Tensor) -> Tensor {
    let (scaled, mut done) = (Tensor::empty(x.size(), (Kind::Float, x.device())), 0);
    for block in x.split(4096, 0) {
        let (rows, block) = (block.size()[0], block.to_kind(Kind::Double));
        let norm = block.square().sum_dim_intlist([1i64].as_slice(), true, Kind::Double).sqrt();
        scaled.narrow(0, done, rows).copy_(&(block / norm.clamp_min(1e-30)));
        done += rows;
    }
    scaled
}

/// The `k` nearest rows of `bank` (N, D) to each row of `queries` (Q, D).
///
/// Candidates are found in single precision and ranked in double. Equal distances are ordered by
/// label where `labels` (N) are given, so that the order of the bank changes no vote.
///
/// # Shapes
/// k is cut to N. Beside its arguments it holds them scaled, 64 rows of distances and 8·(k + 14) features in double.
#[must_use]
pub fn nearest(
    bank: &Tensor,
    labels: Option<&Tensor>,
    queries: &Tensor,
    distance: Distance,
    k: i64,
) -> Neighbours {
    let (bank, queries) = (normalised(bank).contiguous(), normalised(queries).contiguous());
    let n = bank.size()[0];
    let k = k.min(n);
    let labels = labels.map(|labels| labels.to_device(bank.device()));
    let flat = match (distance, bank.device()) {
        (Distance::L1, Device::Cpu) => values(&bank),
        _ => vec![],
    };
    // Made first: results that lived on between a block's large tensors would keep the allocator from
    // using their memory again.
    let empty = |kind| Tensor::empty([queries.size()[0], k], (kind, bank.device()));
    let (rows, distances, mut done) = (empty(Kind::Int64), empty(Kind::Double), 0);
    for block in queries.split(BLOCK, 0) {
        let coarse = match distance {
            Distance::L1 => manhattan(&block, &bank, &flat),
            Distance::L2 | Distance::Cosine => block.matmul(&bank.tr()).neg(),
        };
        let (_, candidates) = coarse.topk((k + MARGIN).min(n), 1, false, false);
        for (block, candidates) in block.split(RANKED, 0).iter().zip(candidates.split(RANKED, 0)) {
            let exact = exact(block, &bank, &candidates, distance);
            // Stable sorts, the last key first: by distance, then label, then row.
            let label = match &labels {
                Some(labels) => labels.take(&candidates),
                None => candidates.zeros_like(),
            };
            let tie = label * n + &candidates;
            let (_, order) = tie.sort_stable(true, 1, false);
            let (sorted, by_distance) = exact.gather(1, &order, false).sort_stable(true, 1, false);
            let order = order.gather(1, &by_distance, false).narrow(1, 0, k);
            let count = candidates.size()[0];
            rows.narrow(0, done, count).copy_(&candidates.gather(1, &order, false));
            distances.narrow(0, done, count).copy_(&sorted.narrow(1, 0, k));
            done += count;
        }
    }
    Neighbours { rows, distances }
}

/// Distances of queries (B, D) to their `candidates` (B, C) among the rows of `bank`, (B, C), double.
fn exact(queries: &Tensor, bank: &Tensor, candidates: &Tensor, distance: Distance) -> Tensor {
    let near = bank.index_select(0, &candidates.reshape([-1])).to_kind(Kind::Double);
    let y = near.view([candidates.size()[0], candidates.size()[1], bank.size()[1]]);
    let x = queries.to_kind(Kind::Double).unsqueeze(1);
    let sum = |x: Tensor| x.sum_dim_intlist([2i64].as_slice(), false, Kind::Double);
    match distance {
        Distance::L1 => sum((y - x).abs_()),
        Distance::L2 => sum((y - x).square_()).sqrt(),
        Distance::Cosine => sum(y * x).neg() + 1.0,
    }
}

/// Classes predicted by the first `k` neighbours, one a query: most votes win, the nearer first vote
/// where they are level. A vote counts 1, for [`Distance::Cosine`] exp((1 − distance) / 0.07).
/// `labels` are those of the bank, from 0.
///
/// # Source
/// Paper §3.2 for k and distances; the vote rule is not stated (ours). DINO for the weights.
///
/// # Panics
/// If `labels` does not cover the bank.
#[must_use]
pub fn vote(found: &Neighbours, labels: &[i64], distance: Distance, k: usize) -> Vec<i64> {
    let most = found.rows.size()[1] as usize;
    let classes = labels.iter().max().map_or(0, |most| *most as usize + 1);
    let rows: Vec<i64> = Vec::try_from(found.rows.reshape([-1])).expect("row numbers");
    let distances: Vec<f64> = Vec::try_from(found.distances.reshape([-1])).expect("distances");
    let queries = rows.chunks_exact(most).zip(distances.chunks_exact(most));
    let predict = |(rows, distances): (&[i64], &[f64])| {
        let mut votes = vec![(0.0, 0); classes]; // and how early the first came
        for (rank, (row, d)) in rows.iter().zip(distances).take(k).enumerate() {
            let (votes, early) = &mut votes[labels[*row as usize] as usize];
            *votes +=
                if distance == Distance::Cosine { ((1.0 - d) / TEMPERATURE).exp() } else { 1.0 };
            *early = (*early).max(most - rank);
        }
        let order = |a: &usize, b: &usize| {
            votes[*a].0.total_cmp(&votes[*b].0).then(votes[*a].1.cmp(&votes[*b].1))
        };
        let best = (0..classes).rev().max_by(order);
        best.map_or(-1, |class| class as i64)
    };
    queries.map(predict).collect()
}

/// Σ|a − b| of all pairs in single precision, (Q, N). On the CPU a loop of ours, for libtorch's
/// `cdist` reads the bank from memory for each query; `flat` is then the bank.
fn manhattan(queries: &Tensor, bank: &Tensor, flat: &[f32]) -> Tensor {
    if queries.device() != Device::Cpu {
        return Tensor::cdist(queries, bank, 1.0, None::<i64>);
    }
    let (q, n) = (queries.size()[0], bank.size()[0]);
    let width = bank.size()[1] as usize;
    let mut out = vec![0f32; (q * n) as usize];
    let queries = values(queries);
    let share = queries.len().div_ceil(width).div_ceil(tch::get_num_threads().max(1) as usize);
    std::thread::scope(|scope| {
        let shares = queries.chunks(share * width).zip(out.chunks_mut(share * n as usize));
        for (queries, out) in shares {
            scope.spawn(move || manhattan_rows(queries, flat, out, width));
        }
    });
    Tensor::from_slice(&out).view([q, n])
}

fn values(x: &Tensor) -> Vec<f32> {
    Vec::try_from(x.reshape([-1])).expect("a flat tensor in single precision")
}

/// One thread's queries against the bank, a part of the bank at a time that stays in the cache, in
/// the widest vectors that both the compiler and the machine know.
fn manhattan_rows(queries: &[f32], bank: &[f32], out: &mut [f32], width: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide(queries: &[f32], bank: &[f32], out: &mut [f32], width: usize) {
            manhattan_parts(queries, bank, out, width);
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has what the function was compiled for.
            return unsafe { wide(queries, bank, out, width) };
        }
    }
    manhattan_parts(queries, bank, out, width);
}

#[inline(always)] // so that it is compiled for each kind of vectors
fn manhattan_parts(queries: &[f32], bank: &[f32], out: &mut [f32], width: usize) {
    const ROWS: usize = 4;
    let n = bank.len() / width;
    let part = (CACHED / (4 * width)).next_multiple_of(ROWS);
    for (number, bank) in bank.chunks(part * width).enumerate() {
        for (query, out) in queries.chunks_exact(width).zip(out.chunks_exact_mut(n)) {
            let out = &mut out[number * part..];
            for (rows, out) in bank.chunks(ROWS * width).zip(out.chunks_mut(ROWS)) {
                if let [a, b, c, d] = out {
                    let (r0, rest) = rows.split_at(width);
                    let (r1, rest) = rest.split_at(width);
                    let (r2, r3) = rest.split_at(width);
                    [*a, *b, *c, *d] = manhattan_four(query, [r0, r1, r2, r3]);
                } else {
                    for (row, out) in rows.chunks_exact(width).zip(out) {
                        [*out, ..] = manhattan_four(query, [row; ROWS]);
                    }
                }
            }
        }
    }
}

/// One query against four rows, in lanes that the compiler turns into vectors.
#[inline(always)]
fn manhattan_four(query: &[f32], rows: [&[f32]; 4]) -> [f32; 4] {
    const LANES: usize = 8;
    let mut sums = [[0f32; LANES]; 4];
    let (query, rest) = query.as_chunks::<LANES>();
    for (at, q) in query.iter().enumerate() {
        for (sum, row) in sums.iter_mut().zip(rows) {
            let r: &[f32; LANES] = row[at * LANES..][..LANES].try_into().expect("LANES values");
            for lane in 0..LANES {
                sum[lane] += (q[lane] - r[lane]).abs();
            }
        }
    }
    let tail = |row: &[f32]| -> f32 {
        rest.iter().zip(&row[row.len() - rest.len()..]).map(|(q, r)| (q - r).abs()).sum()
    };
    [0, 1, 2, 3].map(|i| sums[i].iter().sum::<f32>() + tail(rows[i]))
}

#[cfg(test)]
mod tests {
    use golden::hashed;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Golden {
        rows: Vec<Vec<i64>>,
        votes: BTreeMap<usize, Vec<i64>>,
    }

    fn set() -> (Tensor, Tensor, Tensor) {
        let features = |name, rows| hashed(name, &[rows, 20]).to_kind(Kind::Float);
        let labels = (Tensor::arange(400, (Kind::Int64, Device::Cpu)) * 7).remainder(5);
        (features("knn.train", 400), labels, features("knn.test", 60))
    }

    fn numbers(x: &Tensor) -> Vec<i64> {
        Vec::try_from(x.reshape([-1])).unwrap()
    }

    #[test]
    fn neighbours_and_votes_are_scikit_learn_s() {
        let text = include_str!("../../../tests/golden/knn.json");
        let golden: BTreeMap<String, Golden> = serde_json::from_str(text).unwrap();
        let (bank, labels, queries) = set();
        for distance in DISTANCES {
            let name = distance.to_string();
            let found = nearest(&bank, Some(&labels), &queries, distance, 50);
            assert_eq!(numbers(&found.rows), golden[&name].rows.concat(), "{name}");
            for (k, expected) in &golden[&name].votes {
                let got = vote(&found, &numbers(&labels), distance, *k);
                assert_eq!(&got, expected, "{name} k = {k}");
            }
        }
    }

    /// bigbigan.md §7, item 27.
    #[test]
    fn a_training_image_finds_itself_and_the_order_of_the_bank_changes_nothing() {
        let (bank, labels, queries) = set();
        let twins = Tensor::cat(&[&bank, &bank.narrow(0, 0, 50)], 0); // equal features, other labels
        let twin_labels = Tensor::cat(&[&labels, &(labels.narrow(0, 0, 50) + 1).remainder(5)], 0);
        let order = Tensor::arange_start_step(449, -1, -1, (Kind::Int64, Device::Cpu));
        for distance in DISTANCES {
            let name = distance.to_string();
            let own = nearest(&bank, None, &bank, distance, 1);
            assert_eq!(numbers(&own.rows), (0..400).collect::<Vec<_>>(), "{name}");
            assert!(own.distances.abs().max().double_value(&[]) < 1e-6);
            let predict = |bank: &Tensor, labels: &Tensor, k| {
                let found = nearest(bank, Some(labels), &queries, distance, 50);
                vote(&found, &numbers(labels), distance, k)
            };
            let (moved, moved_labels) =
                (twins.index_select(0, &order), twin_labels.index_select(0, &order));
            for k in [1, 5, 25, 50] {
                let same = predict(&twins, &twin_labels, k) == predict(&moved, &moved_labels, k);
                assert!(same, "{name} k = {k}");
            }
        }
    }

    #[test]
    fn sums_of_differences_do_not_depend_on_blocks() {
        // 150 rows of 613 values: parts of the bank, rows of four and lanes of eight all have rests.
        let x = hashed("bank", &[431, 613]).to_kind(Kind::Float);
        let y = hashed("queries", &[7, 613]).to_kind(Kind::Float);
        let got = manhattan(&y, &x, &values(&x));
        let expected = Tensor::cdist(&y, &x, 1.0, None::<i64>);
        assert!((got - &expected).abs().max().double_value(&[]) < 1e-3);
    }
}
