//! Deep InfoMax's protocol, for its tables' sake: a linear support vector machine and an MLP of 200 units on
//! frozen features.
//!
//! # Source
//! Hjelm et al. 2019 (arXiv 1808.06670), §4.2, and their code's classifier. They name neither the SVM's loss nor its C,
//! nor what is scaled: here it is the primal L2-regularised squared hinge, one class against the rest, C = 1, as in
//! LIBLINEAR, on features scaled by mean and deviation of the training images (ours).

use std::fmt;
use std::sync::Arc;

use bigbigan_model::optim::{Adam, AdamConfig, StepSizes};
use bigbigan_model::random::{Key, Prior, Purpose};
use common::stop::Stop;
use pipeline::{Dataset, Mode};
use serde::Serialize;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::memory::to_device_non_blocking;

use super::features::{Feature, Features, labels};
use super::linear::Order;
use super::{Model, Subject};
use crate::error::Result;

/// What is classified by: the last map, what is pooled of it, and μ. Theirs are the last convolution's map, a layer
/// of 1,024 units and the code.
pub const FEATURES: [Feature; 3] = [Feature::Map, Feature::AvePool, Feature::Mu];

/// Added to the features' variance before its root divides.
const EPS: f64 = 1e-5;

/// How classifiers are trained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Protocol {
    /// C: what the SVM's errors weigh against ½‖w‖².
    pub c: f64,
    /// Hidden units of the MLP: linear, batch norm, dropout, ReLU, linear.
    pub units: i64,
    /// Share of hidden units that are dropped.
    pub dropout: f64,
    /// Adam's rate; a tenth of it after a third of the epochs, a hundredth after two.
    pub rate: f64,
    /// Images of a step.
    pub batch: i64,
    /// Passes over the training images.
    pub epochs: u64,
    /// Seed of the MLP's initial weights, of the order of images and of what is dropped.
    pub seed: u64,
}

impl Protocol {
    /// As in their code: 200 units, dropout 0.1, Adam at 1e-4 in batches of 64, a tenth of it from epoch 50 and a
    /// hundredth from epoch 100 on.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { c: 1.0, units: 200, dropout: 0.1, rate: 1e-4, batch: 64, epochs: 150, seed }
    }
}

/// Which classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Classifier {
    /// The linear support vector machine.
    Svm,
    /// The multilayer perceptron.
    Mlp,
}

impl fmt::Display for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Svm => "svm",
            Self::Mlp => "mlp",
        })
    }
}

/// A whole evaluation.
#[derive(Debug, Clone)]
pub struct Task {
    /// How classifiers are trained.
    pub protocol: Protocol,
    /// Training images, in the crop of `eval.mode`.
    pub train: Arc<Dataset>,
    /// How many of them.
    pub images: usize,
    /// Test images, all of them, in the same crop.
    pub test: Arc<Dataset>,
}

/// What a classifier scored, with all that is needed to find it again: a line of `evaluations.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// `infomax_CLASSIFIER_FEATURE`.
    pub metric: String,
    /// What was classified by.
    #[serde(flatten)]
    pub subject: Subject,
    /// Test split.
    pub split: String,
    /// How all images were cropped.
    pub crop: Mode,
    /// How it was trained.
    #[serde(flatten)]
    pub protocol: Protocol,
    /// The classifier.
    pub classifier: Classifier,
    /// The feature.
    pub feature: Feature,
    /// Its width.
    pub width: i64,
    /// Training images.
    pub train_images: usize,
    /// Test images.
    pub test_images: usize,
    /// Share of test images that are classified right, in percent.
    pub top1: f64,
    /// Of the SVM: the gradient's length where it ended, in units of that at the start; above 1e-4 it was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_left: Option<f64>,
}

impl Task {
    /// Classifies by each of [`FEATURES`]; `told` hears of every line.
    ///
    /// # Errors
    /// [`Error::Data`](crate::error::Error::Data); [`Error::Config`](crate::error::Error::Config) for images without
    /// labels, a model without encoder and features that memory does not hold; `stop` of the model.
    pub fn run(&self, model: &Model, mut told: impl FnMut(&Line)) -> Result<Vec<Line>> {
        let crop = model.config().eval.mode;
        let of = |data: &Arc<Dataset>, count| {
            Features::of(model, data, crop, count, &FEATURES)?.labelled(data.split())
        };
        let (train, test) = (of(&self.train, self.images)?, of(&self.test, usize::MAX)?);
        let classes = self.train.classes().len() as i64;
        let mut lines = vec![];
        for feature in FEATURES {
            let sets = Sets::new(&train, &test, feature, classes);
            for classifier in [Classifier::Svm, Classifier::Mlp] {
                let (top1, gradient_left) = match classifier {
                    Classifier::Svm => {
                        let (top1, left) = sets.svm(self.protocol.c, model.stop())?;
                        (top1, Some(left))
                    }
                    Classifier::Mlp => (sets.mlp(&self.protocol, model.stop())?, None),
                };
                let line = Line {
                    metric: format!("infomax_{classifier}_{feature}"),
                    subject: model.subject().clone(),
                    split: self.test.split().to_owned(),
                    crop,
                    protocol: self.protocol.clone(),
                    classifier,
                    feature,
                    width: train.get(feature).size()[1],
                    train_images: train.labels.len(),
                    test_images: test.labels.len(),
                    top1,
                    gradient_left,
                };
                told(&line);
                lines.push(line);
            }
        }
        Ok(lines)
    }
}

/// One feature of training and test images, (N, width) each, and their labels (N).
#[derive(Debug)]
struct Sets<'a> {
    train: (&'a Tensor, Tensor),
    test: (&'a Tensor, Tensor),
    /// Of the training rows, (1, width): scaled features are (x − mean) / deviation.
    mean: Tensor,
    deviation: Tensor,
    classes: i64,
}

impl<'a> Sets<'a> {
    fn new(train: &'a Features, test: &'a Features, feature: Feature, classes: i64) -> Self {
        let x = train.get(feature);
        let over = [0i64];
        Self {
            mean: x.mean_dim(over.as_slice(), true, Kind::Float),
            deviation: (x.var_dim(over.as_slice(), false, true) + EPS).sqrt(),
            train: (x, labels(train)),
            test: (test.get(feature), labels(test)),
            classes,
        }
    }

    /// Share of test rows whose class scores highest, in percent.
    fn accuracy(&self, score: impl Fn(&Tensor) -> Tensor) -> f64 {
        let (x, y) = &self.test;
        let mut right = 0.0;
        for (x, y) in x.split(8192, 0).iter().zip(y.split(8192, 0)) {
            let found = no_grad(|| score(x)).argmax(1, false);
            right += found.eq_tensor(&y).sum(Kind::Double).double_value(&[]);
        }
        100.0 * right / y.size()[0] as f64
    }

    /// The accuracy, and what was left of the gradient.
    fn svm(&self, c: f64, stop: &Stop) -> Result<(f64, f64)> {
        let Least { at: weight, left } = self.svm_weight(c, stop)?;
        Ok((self.accuracy(|x| self.margins(x, &weight)), left))
    }

    /// Scores of raw rows by weights (classes, width + 1) of the scaled ones, the last column being the bias: the
    /// features are not copied.
    fn margins(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        let width = x.size()[1];
        let folded = weight.narrow(1, 0, width) / &self.deviation;
        let bias = weight.select(1, width) - folded.matmul(&self.mean.tr()).squeeze_dim(1);
        x.matmul(&folded.tr()) + bias
    }

    /// Minimises ½‖w‖² + C Σ max(0, 1 ∓ w·x)² of every class against the rest; the bias counts as a weight.
    fn svm_weight(&self, c: f64, stop: &Stop) -> Result<Least> {
        let (x, y) = &self.train;
        let width = x.size()[1];
        let sign = y.one_hot(self.classes).to_kind(Kind::Float) * 2.0 - 1.0;
        let value = |flat: &Tensor| {
            let weight = flat.view([self.classes, width + 1]);
            let slack = (1f64 - self.margins(x, &weight) * &sign).relu();
            let value = c * slack.square().sum(Kind::Double).double_value(&[])
                + 0.5 * weight.square().sum(Kind::Double).double_value(&[]);
            // By w·x; that by a weight is its sum over scaled rows.
            let outer = slack * &sign * (-2.0 * c);
            let bias = outer.sum_dim_intlist([0i64].as_slice(), true, Kind::Float).tr();
            let by_weight = (outer.tr().matmul(x) - bias.matmul(&self.mean)) / &self.deviation;
            (value, (weight + Tensor::cat(&[by_weight, bias], 1)).view([-1]))
        };
        let start = Tensor::zeros([self.classes * (width + 1)], (Kind::Float, x.device()));
        let Least { at, left } = no_grad(|| minimise(start, value, stop))?;
        Ok(Least { at: at.view([self.classes, width + 1]), left })
    }

    fn mlp(&self, protocol: &Protocol, stop: &Stop) -> Result<f64> {
        let (x, y) = &self.train;
        let mut mlp = Mlp::new(x, self.classes, protocol);
        let rows = y.size()[0];
        let mut order = Order::new(rows as usize, protocol.batch, protocol.seed, x.device());
        let batches = (rows / protocol.batch.min(rows)) as u64;
        for step in 0..protocol.epochs * batches {
            stop.check()?;
            let third = 3 * (step / batches) / protocol.epochs;
            let picked = order.next_batch();
            let (x, y) = (x.index_select(0, &picked), y.index_select(0, &picked));
            mlp.learn(&x, &y, step, 10f64.powi(-(third as i32)));
        }
        Ok(self.accuracy(|x| mlp.scores(x, None)))
    }
}

/// Pairs of steps and changes of the gradient that L-BFGS remembers.
const MEMORY: usize = 10;
/// The gradient's length, in units of that at the start, at which it has arrived: LIBLINEAR ends at a thousandth for ten
/// even classes. A tenth of this moves an accuracy by some tenths of a point.
const ARRIVED: f64 = 1e-4;
/// Steps after which it ends wherever it is.
const MOST_STEPS: u32 = 3000;

/// Where a minimisation ended.
struct Least {
    at: Tensor,
    /// The gradient's length there, in units of that at the start.
    left: f64,
}

/// The least of a convex function from `x` on, by L-BFGS: Armijo's rule, steps halved from 1 on. `value` gives
/// the function and its gradient.
///
/// # Source
/// Nocedal & Wright, Numerical Optimization, algorithm 7.5.
fn minimise(mut x: Tensor, value: impl Fn(&Tensor) -> (f64, Tensor), stop: &Stop) -> Result<Least> {
    let dot = |a: &Tensor, b: &Tensor| (a * b).sum(Kind::Double).double_value(&[]);
    let (mut f, mut gradient) = value(&x);
    let at_start = dot(&gradient, &gradient).sqrt().max(f64::MIN_POSITIVE);
    let mut left = 1.0;
    // s, y and 1 / s·y of each pair, the oldest first.
    let mut pairs: Vec<(Tensor, Tensor, f64)> = vec![];
    for _ in 0..MOST_STEPS {
        stop.check()?;
        let length = dot(&gradient, &gradient).sqrt();
        left = length / at_start;
        if left <= ARRIVED {
            break;
        }
        let mut direction = gradient.neg();
        let mut shares = vec![];
        for (s, y, inverse) in pairs.iter().rev() {
            let share = inverse * dot(s, &direction);
            direction -= y * share;
            shares.push(share);
        }
        direction *=
            pairs.last().map_or(1.0 / length, |(_, y, inverse)| 1.0 / (inverse * dot(y, y)));
        for ((s, y, inverse), share) in pairs.iter().zip(shares.iter().rev()) {
            direction += s * (share - inverse * dot(y, &direction));
        }
        let slope = dot(&gradient, &direction);
        let mut step = 1.0;
        let (next, f_next, gradient_next) = loop {
            let next = &x + &direction * step;
            let (f_next, gradient_next) = value(&next);
            if f_next <= f + 1e-4 * step * slope {
                break (next, f_next, gradient_next);
            }
            step *= 0.5;
            if step < 1e-10 {
                // Rounding is all that is left to gain.
                return Ok(Least { at: x, left });
            }
        };
        let (s, y) = (&next - &x, &gradient_next - &gradient);
        let curvature = dot(&s, &y);
        if curvature > 0.0 {
            if pairs.len() == MEMORY {
                drop(pairs.remove(0));
            }
            pairs.push((s, y, 1.0 / curvature));
        }
        (x, f, gradient) = (next, f_next, gradient_next);
    }
    Ok(Least { at: x, left })
}

/// Linear, batch norm, dropout, ReLU, linear.
#[derive(Debug)]
struct Mlp {
    /// Weight (units, width), bias, gain, shift (units), weight (classes, units), bias, each with its optimiser.
    weights: Vec<(Tensor, Adam)>,
    /// Running mean and variance of batch norm.
    statistics: [Tensor; 2],
    dropout: f64,
    units: i64,
    seed: u64,
}

impl Mlp {
    /// For rows like `x`; weights and biases start as U(−1/√n, 1/√n) for n inputs, as PyTorch's linear layers do.
    fn new(x: &Tensor, classes: i64, protocol: &Protocol) -> Self {
        let (width, units, device) = (x.size()[1], protocol.units, x.device());
        let key = Key { seed: protocol.seed, purpose: Purpose::Probe, step: 0, update: 1 };
        let mut first = 0;
        let mut uniform = |rows: i64, columns: i64, inputs: i64| {
            let drawn = key.latents(Prior::Uniform, first..first + rows, columns, device);
            first += rows;
            drawn / (inputs as f64).sqrt()
        };
        let plain = (Kind::Float, device);
        let tensors = [
            uniform(units, width, width),
            uniform(1, units, width).view([-1]),
            Tensor::ones([units], plain),
            Tensor::zeros([units], plain),
            uniform(classes, units, units),
            uniform(1, classes, units).view([-1]),
        ];
        let config = AdamConfig { rate: protocol.rate, beta1: 0.9, beta2: 0.999, eps: 1e-8 };
        let trained = |weight: Tensor| {
            let adam = Adam::new(config, &weight);
            (weight.set_requires_grad(true), adam)
        };
        Self {
            weights: tensors.map(trained).into(),
            statistics: [Tensor::zeros([units], plain), Tensor::ones([units], plain)],
            dropout: protocol.dropout,
            units,
            seed: protocol.seed,
        }
    }

    /// Scores (N, classes); with the number of a step, as in training.
    fn scores(&self, x: &Tensor, step: Option<u64>) -> Tensor {
        let w = |i: usize| &self.weights[i].0;
        let [mean, variance] = &self.statistics;
        let (gain, shift) = (Some(w(2)), Some(w(3)));
        let h = x.linear(w(0), Some(w(1))).batch_norm(
            gain,
            shift,
            Some(mean),
            Some(variance),
            step.is_some(),
            0.1,
            1e-5,
            false,
        );
        let h = match step {
            Some(step) => h * self.mask(x, step),
            None => h,
        };
        h.relu().linear(w(4), Some(w(5)))
    }

    /// 0 for the units that are dropped, for the others what makes the mean 1.
    fn mask(&self, x: &Tensor, step: u64) -> Tensor {
        let key = Key { seed: self.seed, purpose: Purpose::Probe, step, update: 2 };
        let drawn = key.latents(Prior::Uniform, 0..1, x.size()[0] * self.units, Device::Cpu);
        let kept = drawn.ge(2.0 * self.dropout - 1.0).to_kind(Kind::Float) / (1.0 - self.dropout);
        to_device_non_blocking(&kept.view([-1, self.units]), x.device())
    }

    fn learn(&mut self, x: &Tensor, y: &Tensor, step: u64, factor: f64) {
        let loss = self.scores(x, Some(step)).cross_entropy_for_logits(y);
        let weights: Vec<_> = self.weights.iter().map(|(weight, _)| weight).collect();
        let gradients = Tensor::run_backward(&[loss], &weights, false, false);
        let pace = StepSizes::new(factor, 0.0, (Kind::Float, x.device()));
        for ((weight, adam), gradient) in self.weights.iter_mut().zip(gradients) {
            adam.step_unless(None, &weight.detach(), &gradient, &pace.factor);
        }
    }
}

#[cfg(test)]
mod tests;
