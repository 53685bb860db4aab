//! Whether reconstructions show the class of what they reconstruct, as judged by a classifier that has
//! nothing to do with the model: softmax regression on another network's features of real images.

use std::sync::Arc;

use pipeline::{Dataset, Mode};
use serde::Serialize;
use tch::{Device, Tensor};

use super::extractor::Extractor;
use super::features::{Feature, Features};
use super::linear::{Protocol, Source, probe};
use super::resize::Resizer;
use super::{Model, Subject};
use crate::device::to_u8;
use crate::error::Result;

/// Images the extractor sees at a time.
const BATCH: i64 = 64;

/// A whole evaluation. Ours: the paper shows reconstructions and counts nothing.
#[derive(Debug)]
pub struct Task {
    /// What the classifier sees images by.
    pub extractor: Extractor,
    /// How they reach it.
    pub resizer: Resizer,
    /// Images the classifier is trained on.
    pub train: Arc<Dataset>,
    /// How many of them.
    pub train_images: i64,
    /// Images that are reconstructed.
    pub test: Arc<Dataset>,
    /// How many of them.
    pub test_images: i64,
    /// Seed of the classifier's order of images.
    pub seed: u64,
}

/// What came out: a line of `evaluations.jsonl`. Shares are in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// `agreement-EXTRACTOR`.
    pub metric: String,
    /// Of reconstructions G(μ(x)), those classified as x's label says.
    pub reconstructions: f64,
    /// Of the images x themselves: the most that can be expected.
    pub images: f64,
    /// Of reconstructions, those classified as the label of another image says: what chance gives.
    pub chance: f64,
    /// Mean |x − G(μ(x))|, pixels in [-1, 1].
    pub error: f64,
    /// The same between G(μ(x)) and another image.
    pub error_chance: f64,
    /// What was evaluated.
    #[serde(flatten)]
    pub subject: Subject,
    /// Split of x.
    pub split: String,
    /// How all images were cropped.
    pub crop: Mode,
    /// How many images were reconstructed.
    pub test_images: usize,
    /// How many real images the classifier learned from.
    pub train_images: usize,
    /// How it was trained.
    pub protocol: Protocol,
    /// SHA-256 of the extractor's file.
    pub extractor: String,
    /// How images reached it.
    pub resizer: Resizer,
}

impl Task {
    /// Reconstructs, classifies and counts.
    ///
    /// # Errors
    /// [`Error::Data`](crate::error::Error::Data); [`Error::Torch`](crate::error::Error::Torch) from a
    /// script; [`Error::Config`](crate::error::Error::Config) for images without labels, and a model
    /// without encoder.
    pub fn run(&self, model: &Model) -> Result<Line> {
        let crop = model.config().eval.mode;
        let (mut rows, mut labels) = (vec![], vec![]);
        for batch in model.labelled(&self.train, crop, self.train_images)? {
            let (images, of_batch) = batch?;
            rows.push(self.see(&images.small)?);
            labels.extend(of_batch);
        }
        let train = features(&rows, labels).labelled(self.train.split())?;
        let (mut real, mut made, mut labels) = (vec![], vec![], vec![]);
        let (mut pixels, mut remade) = (vec![], vec![]);
        for batch in model.labelled(&self.test, crop, self.test_images)? {
            let (images, of_batch) = batch?;
            let reconstructed = model.reconstruct(&images)?;
            real.push(self.see(&images.small)?);
            made.push(self.see(&reconstructed)?);
            pixels.push(images.small);
            remade.push(reconstructed);
            labels.extend(of_batch);
        }
        // Another image's label, from far away in the random order.
        let mut others = labels.clone();
        others.rotate_left(labels.len() / 2);
        let (pixels, remade) = (Tensor::cat(&pixels, 0), Tensor::cat(&remade, 0));
        let apart = |x: &Tensor| (x - &remade).abs().mean(None).double_value(&[]);
        let others_pixels = pixels.roll([-(labels.len() as i64 / 2)], [0]);
        let real = features(&real, labels.clone()).labelled(self.test.split())?;
        let protocol = Protocol { steps: 1000, ..Protocol::table1(self.seed) };
        let classes = self.train.classes().len() as i64;
        let share = |test: &Features| -> Result<f64> {
            let wanted = [Feature::AvePool];
            let (source, stop) = (Source::Cached(&train), model.stop());
            let found = probe(&wanted, source, None, test, classes, &protocol, stop)?;
            Ok(found[0].top1)
        };
        Ok(Line {
            metric: format!("agreement-{}", self.extractor.name),
            reconstructions: share(&features(&made, labels))?,
            images: share(&real)?,
            chance: share(&features(&made, others))?,
            error: apart(&pixels),
            error_chance: apart(&others_pixels),
            subject: model.subject().clone(),
            split: self.test.split().to_owned(),
            crop,
            test_images: real.labels.len(),
            train_images: train.labels.len(),
            protocol,
            extractor: self.extractor.sha256.clone(),
            resizer: self.resizer,
        })
    }

    /// Features of images in [-1, 1], rounded to u8.
    fn see(&self, images: &Tensor) -> Result<Tensor> {
        let side = self.extractor.input().0;
        let seen = to_u8(images).split(BATCH, 0).into_iter().map(|part| {
            let found = self.extractor.extract(&self.resizer.apply(&part, side))?;
            Ok(found.features.to_device(Device::Cpu))
        });
        Ok(Tensor::cat(&seen.collect::<Result<Vec<_>>>()?, 0))
    }
}

/// The extractor's features take the place of pooled ones.
fn features(rows: &[Tensor], labels: Vec<i64>) -> Features {
    Features::from_rows(Feature::AvePool, Tensor::cat(rows, 0), labels)
}
