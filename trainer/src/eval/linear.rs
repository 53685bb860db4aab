//! The linear probe: a zero-initialised softmax regression on frozen features.

use std::sync::Arc;

use pipeline::Dataset;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use super::Model;
use crate::error::{Error, Result};
use crate::optim::{Adam, AdamConfig, AverageConfig};
use crate::random::{Key, Purpose};

/// Images of one probe step.
const BATCH: i64 = 1024;
/// Paper App. A.
const RATE: f64 = 0.01;
/// Added to the variance in the parameter-free BN of the features.
pub const BN_EPS: f64 = 1e-5;

/// What a probe found, with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// Share of images whose class has the highest score, in percent.
    pub top1: f64,
    /// Share of images whose class is among the five highest, in percent.
    pub top5: f64,
    /// Training images.
    pub train_images: usize,
    /// Test images.
    pub test_images: usize,
    /// Adam steps of the classifier.
    pub steps: u64,
    /// Width of the features it saw.
    pub features: i64,
}

/// Features (N, width) and labels (N) of one split.
#[derive(Debug)]
pub struct Features {
    /// (N, width).
    pub x: Tensor,
    /// (N), class numbers.
    pub y: Tensor,
}

impl Features {
    /// AvePool features of the first `count` labelled images of a split in a fixed random order.
    ///
    /// # Errors
    /// [`Error::Data`]; [`Error::Config`] if the split has no labels.
    pub fn of(model: &Model, data: &Arc<Dataset>, count: usize) -> Result<Self> {
        let (mut x, mut y) = (vec![], vec![]);
        let count = count.min(data.len());
        for batch in model.labelled(data, model.config().eval.mode, count as i64)? {
            let (images, labels) = batch?;
            if labels.iter().any(|label| *label < 0) {
                let problem = "the probe needs labels; set eval.probe_images=0 for unlabelled data";
                return Err(Error::Config { problems: vec![problem.into()] });
            }
            x.push(model.features(&images)?);
            y.extend(labels);
        }
        let y = Tensor::from_slice(&y).to_device(model.device());
        Ok(Self { x: Tensor::cat(&x, 0), y })
    }
}

/// Trains the probe on `train` and scores it on `test`, on BN+CReLU features.
///
/// # Source
/// Paper §3.2, App. A: h = BN(a) without gain and shift (statistics of the training features, ours),
/// feature [ReLU(h), ReLU(−h)], zero initial classifier, Adam at 0.01, averaged classifier weights
/// (decay 0.9999 there, here ramped up to 0.999 for short probes).
#[must_use]
pub fn probe(
    train: &Features,
    test: &Features,
    classes: i64,
    steps: u64,
    seed: u64,
) -> ProbeResult {
    let dims = [0i64];
    let mean = train.x.mean_dim(dims.as_slice(), true, Kind::Float);
    let var = train.x.var_dim(dims.as_slice(), false, true);
    let expand = |x: &Tensor| {
        let h = (x - &mean) / (&var + BN_EPS).sqrt();
        Tensor::cat(&[h.relu(), (-&h).relu(), h.narrow(1, 0, 1).ones_like()], 1)
    };
    let (x, test_x) = (expand(&train.x), expand(&test.x));
    let width = x.size()[1];
    let mut weight = Tensor::zeros([classes, width], (Kind::Float, x.device()));
    let mut average = weight.copy();
    let config = AdamConfig { rate: RATE, beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    let mut adam = Adam::new(config, &weight);
    let averaging = AverageConfig { decay: 0.999, ramp: true, start: 0 };
    let mut order = Order::new(x.size()[0], seed);
    for step in 0..steps {
        let rows = order.next_batch().to_device(x.device());
        let (x, y) = (x.index_select(0, &rows), train.y.index_select(0, &rows));
        weight = weight.set_requires_grad(true);
        let loss = x.matmul(&weight.tr()).cross_entropy_for_logits(&y);
        let gradient = Tensor::run_backward(&[loss], &[&weight], false, false).remove(0);
        weight = weight.set_requires_grad(false);
        adam.step(&weight, &gradient);
        averaging.update(&mut average, &weight, step);
    }
    let scores = no_grad(|| test_x.matmul(&average.tr()));
    let within = |k: i64| {
        let (_, best) = scores.topk(k.min(classes), 1, true, true);
        let hit = best.eq_tensor(&test.y.unsqueeze(1)).any_dim(1, false);
        100.0 * hit.to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
    };
    ProbeResult {
        top1: within(1),
        top5: within(5),
        train_images: x.size()[0] as usize,
        test_images: test_x.size()[0] as usize,
        steps,
        features: width - 1,
    }
}

/// Endless batches of row numbers, each epoch shuffled afresh.
#[derive(Debug)]
struct Order {
    rows: Vec<i64>,
    at: usize,
    epoch: u64,
    seed: u64,
}

impl Order {
    fn new(rows: i64, seed: u64) -> Self {
        let rows: Vec<i64> = (0..rows).collect();
        Self { at: rows.len(), rows, epoch: 0, seed }
    }

    fn next_batch(&mut self) -> Tensor {
        let size = (BATCH as usize).min(self.rows.len());
        if self.at + size > self.rows.len() {
            let key = Key { seed: self.seed, purpose: Purpose::Probe, step: self.epoch, update: 0 };
            self.rows.shuffle(&mut key.stream(0));
            self.epoch += 1;
            self.at = 0;
        }
        let batch = &self.rows[self.at..self.at + size];
        self.at += size;
        Tensor::from_slice(batch)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn features(rows: i64, shift: f64) -> Features {
        let y = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(3);
        let centres = Tensor::eye(3, (Kind::Float, Device::Cpu)) * shift;
        let noise = Tensor::randn([rows, 3], (Kind::Float, Device::Cpu));
        Features { x: centres.index_select(0, &y) + noise, y }
    }

    #[test]
    fn separable_classes_are_found_and_noise_is_not() {
        tch::manual_seed(1);
        let sharp = probe(&features(1200, 9.0), &features(300, 9.0), 3, 200, 0);
        assert!(sharp.top1 > 99.0, "{sharp:?}");
        assert_eq!(sharp.top5, 100.0);
        let noise = probe(&features(1200, 0.0), &features(300, 0.0), 3, 200, 0);
        assert!((15.0..55.0).contains(&noise.top1), "{noise:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_digits() {
        tch::manual_seed(2);
        let (train, test) = (features(1500, 1.0), features(300, 1.0));
        assert_eq!(probe(&train, &test, 3, 50, 4), probe(&train, &test, 3, 50, 4));
    }
}
