//! The linear probe: zero-initialised softmax regressions on frozen features, one for each feature
//! and learning rate, all trained in one pass over the same batches.

use std::fmt;
use std::sync::Arc;

use bigbigan_model::optim::{Adam, AdamConfig, AverageConfig};
use bigbigan_model::random::{Key, Purpose};
use common::stop::Stop;
use pipeline::{Dataset, Mode};
use rand::seq::SliceRandom;
use serde::Serialize;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::memory::to_device_non_blocking;

use super::features::{Feature, Features, labels};
use super::{Model, Subject};
use crate::error::Result;

/// Added to the variance in the parameter-free BN of the features.
pub const BN_EPS: f64 = 1e-5;

/// How a probe is trained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Protocol {
    /// Adam's learning rates, one classifier each.
    pub rates: Vec<f64>,
    /// Adam steps.
    pub steps: u64,
    /// Images of a step.
    pub batch: i64,
    /// Decay of the average of the classifier's weights, which is what is scored.
    pub decay: f64,
    /// Seed of the order of the images.
    pub seed: u64,
}

impl Protocol {
    /// The protocol of Table 1: 5,000 Adam steps at 0.01, weights averaged with 0.9999 (paper App.
    /// A); 2,048 images a step (not stated; the batch of training).
    #[must_use]
    pub fn table1(seed: u64) -> Self {
        Self { rates: vec![0.01], steps: 5000, batch: 2048, decay: 0.9999, seed }
    }

    /// The protocol of Table 2: longer, with a sweep of rates. The paper gives no numbers; 100,000
    /// steps and these rates are recalled, not confirmed.
    #[must_use]
    pub fn table2(seed: u64) -> Self {
        Self { rates: vec![1e-4, 3e-4, 1e-3, 3e-3, 1e-2], steps: 100_000, ..Self::table1(seed) }
    }
}

/// Where training batches come from.
pub enum Source<'a> {
    /// The same rows in each epoch, in another order.
    Cached(&'a Features),
    /// A new view of each image in each epoch; batch norm of the features uses `first`.
    Fresh {
        /// Rows whose mean and variance stand for those of the training features.
        first: &'a Features,
        /// Endless batches.
        batches: Box<dyn Iterator<Item = Result<Features>> + 'a>,
    },
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Cached(_)) { "Cached" } else { "Fresh" })
    }
}

impl Source<'_> {
    fn known(&self) -> &Features {
        match self {
            Self::Cached(features) | Self::Fresh { first: features, .. } => features,
        }
    }
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeResult {
    /// What it saw.
    pub feature: Feature,
    /// Width of what it saw.
    pub width: i64,
    /// Share of test images whose class has the highest score, in percent.
    pub top1: f64,
    /// Share of test images whose class is among the five highest, in percent.
    pub top5: f64,
    /// Rate of the classifier that was scored.
    pub rate: f64,
    /// Steps after which it was scored.
    pub stopped: u64,
    /// Best top-1 of each rate on the selection set, in percent; empty without one.
    pub selection: Vec<f64>,
    /// Training images.
    pub train_images: usize,
    /// Test images.
    pub test_images: usize,
}

/// Scores at which rate and length are chosen, over the whole of a probe.
const LOOKS: u64 = 20;

/// Trains a probe for each of `wanted` and scores it on `test`. With `select`, the rate and the number
/// of steps are those with the best top-1 there (looked at twenty times); without, the first rate and
/// all steps.
///
/// # Errors
/// What a fresh source meets, and `stop`.
///
/// # Panics
/// If a fresh source ends.
///
/// # Source
/// Paper §3.2, App. A; statistics of BN+CReLU's batch norm: those of the training features (ours).
pub fn probe(
    wanted: &[Feature],
    source: Source<'_>,
    select: Option<&Features>,
    test: &Features,
    classes: i64,
    protocol: &Protocol,
    stop: &Stop,
) -> Result<Vec<ProbeResult>> {
    let mut heads: Vec<_> =
        wanted.iter().map(|f| Head::new(*f, source.known(), classes, protocol)).collect();
    let train_images = source.known().labels.len();
    let select = select.map(|features| (features, labels(features)));
    let look = protocol.steps.div_ceil(LOOKS).max(1);
    // A batch: what each head reads, and the labels.
    let mut next: Box<dyn FnMut() -> Result<(Vec<Tensor>, Tensor)>> = match source {
        Source::Cached(features) => {
            let (rows, device) = (features.labels.len(), features.device());
            let mut order = Order::new(rows, protocol.batch, protocol.seed, device);
            let labels = labels(features);
            Box::new(move || {
                let rows = order.next_batch();
                let pick = |feature: &Feature| features.get(*feature).index_select(0, &rows);
                Ok((wanted.iter().map(pick).collect(), labels.index_select(0, &rows)))
            })
        }
        Source::Fresh { mut batches, .. } => Box::new(move || {
            let batch = batches.next().expect("fresh batches are endless")?.labelled("train")?;
            let pick = |feature: &Feature| batch.get(*feature).shallow_clone();
            Ok((wanted.iter().map(pick).collect(), labels(&batch)))
        }),
    };
    for step in 1..=protocol.steps {
        stop.check()?;
        let (read, labels) = next()?;
        for (head, x) in heads.iter_mut().zip(&read) {
            head.learn(x, &labels, step);
        }
        if let Some((select, labels)) = &select
            && (step.is_multiple_of(look) || step == protocol.steps)
        {
            for head in &mut heads {
                head.look(select, labels, step);
            }
        }
    }
    Ok(heads.into_iter().map(|head| head.score(test, train_images, protocol)).collect())
}

/// Where rate and length of a probe are chosen.
#[derive(Debug, Clone)]
pub enum Selection {
    /// Nowhere: one rate, all steps.
    None,
    /// On a split of its own (the paper: trainval).
    Split(Arc<Dataset>),
    /// On every tenth of the training images, which are then not trained on: for data without such a
    /// split.
    Tenth,
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Split(data) => f.write_str(data.split()),
            Self::Tenth => f.write_str("every tenth training image"),
        }
    }
}

/// A whole evaluation by linear probes.
#[derive(Debug, Clone)]
pub struct Task {
    /// One probe each.
    pub features: Vec<Feature>,
    /// How they are trained.
    pub protocol: Protocol,
    /// Training images.
    pub train: Arc<Dataset>,
    /// How many of them.
    pub images: usize,
    /// Whether each epoch sees new crops, as training does, or the same centre crops.
    pub fresh_crops: bool,
    /// Where rate and length are chosen.
    pub selection: Selection,
    /// Test images, all of them, in the crop of `eval.mode`.
    pub test: Arc<Dataset>,
}

/// What a probe found, with all that is needed to find it again: a line of `metrics.jsonl`, or of `evaluations.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// `linear_probe_FEATURE`.
    pub metric: String,
    /// What was probed.
    #[serde(flatten)]
    pub subject: Subject,
    /// Test split.
    pub split: String,
    /// How test images were cropped.
    pub crop: Mode,
    /// How training images were cropped.
    pub train_crop: Mode,
    /// Where rate and length were chosen.
    pub selected_on: String,
    /// How it was trained.
    #[serde(flatten)]
    pub protocol: Protocol,
    /// What came out.
    #[serde(flatten)]
    pub result: ProbeResult,
}

impl Task {
    /// Probes a model.
    ///
    /// # Errors
    /// [`Error::Data`](crate::error::Error::Data); [`Error::Config`](crate::error::Error::Config) for
    /// images without labels, and features that the model lacks.
    pub fn run(&self, model: &Model) -> Result<Vec<Line>> {
        let crop = model.config().eval.mode;
        let train_crop = if self.fresh_crops { model.config().data.mode } else { crop };
        let of = |data: &Arc<Dataset>, mode, count| {
            Features::of(model, data, mode, count, &self.features)?.labelled(data.split())
        };
        let mut train = of(&self.train, train_crop, self.images)?;
        let select = match &self.selection {
            Selection::None => None,
            Selection::Split(data) => Some(of(data, crop, usize::MAX)?),
            Selection::Tenth => {
                let (tenth, rest) = train.divide(|row| row % 10 == 0);
                train = rest;
                Some(tenth)
            }
        };
        let test = of(&self.test, crop, usize::MAX)?;
        let source = if self.fresh_crops {
            let batch = self.protocol.batch;
            let batches = Box::new(Features::stream(model, &self.train, batch, &self.features)?);
            Source::Fresh { first: &train, batches }
        } else {
            Source::Cached(&train)
        };
        let classes = self.train.classes().len() as i64;
        let (select, protocol) = (select.as_ref(), &self.protocol);
        let found = probe(&self.features, source, select, &test, classes, protocol, model.stop())?;
        let line = |result: ProbeResult| Line {
            metric: format!("linear_probe_{}", result.feature),
            subject: model.subject().clone(),
            split: self.test.split().to_owned(),
            crop,
            train_crop,
            selected_on: self.selection.to_string(),
            protocol: self.protocol.clone(),
            result,
        };
        Ok(found.into_iter().map(line).collect())
    }
}

/// The classifiers of one feature.
#[derive(Debug)]
struct Head {
    feature: Feature,
    /// Mean and root of the variance, (1, width), of BN+CReLU.
    norm: Option<(Tensor, Tensor)>,
    classes: i64,
    /// Rates · classes rows; the last column meets a feature of ones.
    weight: Tensor,
    average: Tensor,
    adams: Vec<Adam>,
    averaging: AverageConfig,
    /// For each rate the best top-1 so far.
    best: Vec<f64>,
    /// Of all rates: top-1, rate number, step, weights.
    chosen: Option<(f64, usize, u64, Tensor)>,
}

impl Head {
    fn new(feature: Feature, known: &Features, classes: i64, protocol: &Protocol) -> Self {
        let x = known.get(feature);
        let norm = (feature == Feature::BnCrelu).then(|| {
            let over = [0i64];
            let var = x.var_dim(over.as_slice(), false, true);
            (x.mean_dim(over.as_slice(), true, Kind::Float), (var + BN_EPS).sqrt())
        });
        let width = if norm.is_some() { 2 * x.size()[1] } else { x.size()[1] };
        let rates = protocol.rates.len() as i64;
        let weight = Tensor::zeros([rates * classes, width + 1], (Kind::Float, x.device()));
        let adam = |rate: &f64| {
            let config = AdamConfig { rate: *rate, beta1: 0.9, beta2: 0.999, eps: 1e-8 };
            Adam::new(config, &weight.narrow(0, 0, classes))
        };
        Self {
            feature,
            norm,
            classes,
            average: weight.copy(),
            adams: protocol.rates.iter().map(adam).collect(),
            weight,
            // From zero, without a ramp: the average is scaled down, which moves no rank.
            averaging: AverageConfig { decay: protocol.decay, ramp: false, start: 0 },
            best: vec![f64::NEG_INFINITY; protocol.rates.len()],
            chosen: None,
        }
    }

    /// h = BN(x) without gain and shift.
    fn normalise(&self, x: &Tensor) -> Option<Tensor> {
        self.norm.as_ref().map(|(mean, deviation)| (x - mean) / deviation)
    }

    /// What the classifiers see of stored features, (N, width + 1).
    fn expand(&self, x: &Tensor) -> Tensor {
        let ones = x.narrow(1, 0, 1).ones_like();
        match self.normalise(x) {
            Some(h) => Tensor::cat(&[h.relu(), h.neg().relu(), ones], 1),
            None => Tensor::cat(&[x, &ones], 1),
        }
    }

    /// The sum over rates of the mean cross-entropy: each classifier's gradient is its own.
    fn loss(&self, x: &Tensor, labels: &Tensor) -> Tensor {
        let rates = self.adams.len() as i64;
        let scores = self.expand(x).matmul(&self.weight.tr()).view([-1, self.classes]);
        let labels = labels.unsqueeze(1).expand([-1, rates], false).reshape([-1]);
        scores.cross_entropy_for_logits(&labels) * rates as f64
    }

    fn learn(&mut self, x: &Tensor, labels: &Tensor, step: u64) {
        self.weight = self.weight.set_requires_grad(true);
        let loss = self.loss(x, labels);
        let gradient = Tensor::run_backward(&[loss], &[&self.weight], false, false).remove(0);
        self.weight = self.weight.set_requires_grad(false);
        for (i, adam) in (0..).zip(&mut self.adams) {
            let own = |t: &Tensor| t.narrow(0, i * self.classes, self.classes);
            adam.step(&own(&self.weight), &own(&gradient));
        }
        let weight = 1.0 - self.averaging.decay_at(step);
        let _ = no_grad(|| self.average.lerp_(&self.weight, weight));
    }

    /// Shares of rows whose class is among the `k` best, in percent, for weights (classes, width + 1).
    fn within(&self, weight: &Tensor, features: &Features, labels: &Tensor, k: i64) -> f64 {
        let x = features.get(self.feature);
        let mut hits = Tensor::zeros([], (Kind::Int64, x.device()));
        for (x, y) in x.split(8192, 0).iter().zip(labels.split(8192, 0)) {
            let scores = no_grad(|| self.expand(x).matmul(&weight.tr()));
            let (_, best) = scores.topk(k.min(self.classes), 1, true, true);
            hits += best.eq_tensor(&y.unsqueeze(1)).any_dim(1, false).sum(Kind::Int64);
        }
        100.0 * hits.double_value(&[]) / features.labels.len() as f64
    }

    fn look(&mut self, select: &Features, labels: &Tensor, step: u64) {
        for rate in 0..self.adams.len() {
            let weight = self.average.narrow(0, rate as i64 * self.classes, self.classes);
            let top1 = self.within(&weight, select, labels, 1);
            self.best[rate] = self.best[rate].max(top1);
            if self.chosen.as_ref().is_none_or(|(best, ..)| top1 > *best) {
                self.chosen = Some((top1, rate, step, weight.copy()));
            }
        }
    }

    fn score(mut self, test: &Features, train_images: usize, protocol: &Protocol) -> ProbeResult {
        let selected = self.chosen.is_some();
        let last = || (0.0, 0, protocol.steps, self.average.narrow(0, 0, self.classes));
        let (_, rate, stopped, weight) = self.chosen.take().unwrap_or_else(last);
        let labels = labels(test);
        ProbeResult {
            feature: self.feature,
            width: self.weight.size()[1] - 1,
            top1: self.within(&weight, test, &labels, 1),
            top5: self.within(&weight, test, &labels, 5),
            rate: protocol.rates[rate],
            stopped,
            selection: if selected { self.best } else { vec![] },
            train_images,
            test_images: test.labels.len(),
        }
    }
}

/// Endless batches of row numbers, each epoch shuffled afresh.
#[derive(Debug)]
pub(super) struct Order {
    rows: Vec<i64>,
    batch: usize,
    at: usize,
    epoch: u64,
    seed: u64,
    /// The epoch's rows, where the features are.
    there: Tensor,
}

impl Order {
    /// Of so many rows; `device` is where the numbers are wanted. A batch is no larger than an epoch.
    pub(super) fn new(rows: usize, batch: i64, seed: u64, device: Device) -> Self {
        let batch = (batch as usize).min(rows);
        let there = Tensor::empty([0], (Kind::Int64, device));
        Self { at: rows, rows: (0..rows as i64).collect(), batch, epoch: 0, seed, there }
    }

    pub(super) fn next_batch(&mut self) -> Tensor {
        if self.at + self.batch > self.rows.len() {
            let key = Key { seed: self.seed, purpose: Purpose::Probe, step: self.epoch, update: 0 };
            self.rows.shuffle(&mut key.stream(0));
            self.there =
                to_device_non_blocking(&Tensor::from_slice(&self.rows), self.there.device());
            self.epoch += 1;
            self.at = 0;
        }
        let batch = self.there.narrow(0, self.at as i64, self.batch as i64);
        self.at += self.batch;
        batch
    }
}

#[cfg(test)]
mod tests;
