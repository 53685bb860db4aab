//! What E says of a split, as rows that probes, neighbours and other programs read.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bigbigan_model::images::Images;
use pipeline::{Dataset, Mode};
use serde::Serialize;
use tch::{Device, Kind, Tensor};
use torch_ext::measure;
use torch_ext::memory::to_device_non_blocking;

use super::Model;
use crate::error::{Error, Result};

/// Side that images are reduced to before their pixels serve as features.
const PIXELS: i64 = 32;

/// A feature of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// a, the trunk's output after BN and ReLU, pooled ("AvePool"; paper §3.2).
    AvePool,
    /// The trunk's output after BN and ReLU before it is pooled, one row an image.
    Map,
    /// [ReLU(h), ReLU(−h)] with h = BN(a), BN without gain and shift ("BN+CReLU"; paper §3.2).
    BnCrelu,
    /// μ, the centre of the code.
    Mu,
    /// The output of stage 1, 2, … of the trunk, pooled. Ours.
    Stage(usize),
    /// The pixels, averaged down to at most 32 × 32: a baseline without any network.
    Pixels,
}

impl Feature {
    /// The feature it is made from: BN+CReLU is a function of all rows of AvePool.
    #[must_use]
    pub fn stored(self) -> Self {
        if self == Self::BnCrelu { Self::AvePool } else { self }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AvePool => f.write_str("avepool"),
            Self::Map => f.write_str("map"),
            Self::BnCrelu => f.write_str("bn_crelu"),
            Self::Mu => f.write_str("mu"),
            Self::Stage(n) => write!(f, "stage{n}"),
            Self::Pixels => f.write_str("pixels"),
        }
    }
}

impl FromStr for Feature {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "avepool" => Ok(Self::AvePool),
            "map" => Ok(Self::Map),
            "bn_crelu" => Ok(Self::BnCrelu),
            "mu" => Ok(Self::Mu),
            "pixels" => Ok(Self::Pixels),
            _ => match text.strip_prefix("stage").and_then(|n| n.parse().ok()) {
                Some(n) if n > 0 => Ok(Self::Stage(n)),
                _ => Err("give avepool, bn_crelu, mu, map, pixels, or stage1, stage2, …".into()),
            },
        }
    }
}

impl Serialize for Feature {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Features and labels of the same images.
#[derive(Debug)]
pub struct Features {
    /// (N, width) each, in single precision, on the model's device.
    layers: Vec<(Feature, Tensor)>,
    /// Class numbers, −1 for none.
    pub labels: Vec<i64>,
}

impl Features {
    /// Of the first `count` images of a split in a fixed random order, seen in `mode`.
    ///
    /// # Errors
    /// [`Error::Data`]; [`Error::Config`] if the model lacks what is asked for.
    pub fn of(
        model: &Model,
        data: &Arc<Dataset>,
        mode: Mode,
        count: usize,
        wanted: &[Feature],
    ) -> Result<Self> {
        let count = count.min(data.len()) as i64;
        let mut all = Self { layers: vec![], labels: vec![] };
        for batch in model.labelled(data, mode, count)? {
            let (images, labels) = batch?;
            let part = Self::of_batch(model, &images, labels, wanted)?;
            part.check(count, all.layers.is_empty())?;
            let (first, rows) = (all.labels.len() as i64, part.labels.len() as i64);
            for (feature, x) in part.layers {
                let place = match all.layers.iter().position(|(layer, _)| *layer == feature) {
                    Some(place) => place,
                    None => {
                        // All rows in one place: of a large data set they take most of the memory.
                        let room = Tensor::empty([count, x.size()[1]], (x.kind(), x.device()));
                        all.layers.push((feature, room));
                        all.layers.len() - 1
                    }
                };
                all.layers[place].1.narrow(0, first, rows).copy_(&x);
            }
            all.labels.extend(part.labels);
        }
        Ok(all)
    }

    /// One feature of all images of a split in the order of its shards, seen in `eval.mode`.
    ///
    /// # Errors
    /// As [`Features::of`].
    pub fn in_order(model: &Model, data: &Arc<Dataset>, feature: Feature) -> Result<Self> {
        let (mut rows, mut labels) = (vec![], vec![]);
        for batch in model.in_order(data)? {
            let (images, batch_labels) = batch?;
            rows.push(Self::of_images(model, &images, &[feature])?.get(feature).shallow_clone());
            labels.extend(batch_labels);
        }
        Ok(Self::from_rows(feature.stored(), Tensor::cat(&rows, 0), labels))
    }

    /// Of images that are already there, without labels.
    ///
    /// # Errors
    /// [`Error::Config`] if the model lacks what is asked for.
    pub fn of_images(model: &Model, images: &Images, wanted: &[Feature]) -> Result<Self> {
        Self::of_batch(model, images, vec![-1; images.len() as usize], wanted)
    }

    /// An endless stream of batches of the split, each image seen afresh in the training's mode.
    ///
    /// # Errors
    /// As [`Features::of`], at the start or in the stream.
    pub fn stream<'a>(
        model: &'a Model,
        data: &Arc<Dataset>,
        batch: i64,
        wanted: &'a [Feature],
    ) -> Result<impl Iterator<Item = Result<Self>> + use<'a>> {
        let batches = model.endless(data, batch)?;
        Ok(batches
            .map(|b| b.and_then(|(images, labels)| Self::of_batch(model, &images, labels, wanted))))
    }

    /// Refuses features that are not finite, and with the `first` batch of `count` rows what memory does not hold.
    fn check(&self, count: i64, first: bool) -> Result<()> {
        for (feature, x) in &self.layers {
            if !bool::try_from(x.isfinite().all())? {
                let problem = format!(
                    "{feature} of an image is not finite: the encoder is damaged, or its weights have run away"
                );
                return Err(Error::Config { problems: vec![problem] });
            }
        }
        let width: i64 = self.layers.iter().map(|(_, x)| x.size()[1]).sum();
        let bytes = 4.0 * (count * width) as f64;
        let asks = first && self.layers.first().is_some_and(|(_, x)| x.device() == Device::Cpu);
        match measure::free_bytes().filter(|free| asks && bytes > *free) {
            None => Ok(()),
            Some(free) => {
                let problem = format!(
                    "features of {count} images, {width} numbers each, take {:.1} GB of memory, and {:.1} GB are \
                     free: give a smaller --images, or other features",
                    bytes / 1e9,
                    free / 1e9
                );
                Err(Error::Config { problems: vec![problem] })
            }
        }
    }

    fn of_batch(
        model: &Model,
        images: &Images,
        labels: Vec<i64>,
        wanted: &[Feature],
    ) -> Result<Self> {
        let encoded = if wanted.iter().any(|f| *f != Feature::Pixels) {
            Some(model.encode(images)?)
        } else {
            None
        };
        let mut layers: Vec<(Feature, Tensor)> = vec![];
        for feature in wanted {
            if layers.iter().any(|(layer, _)| *layer == feature.stored()) {
                continue;
            }
            let x = match (feature.stored(), &encoded) {
                (Feature::Pixels, _) | (_, None) => pixels(&images.large),
                (Feature::Map, Some((_, encoded))) => encoded.map.flatten(1, -1),
                (Feature::Mu, Some((_, encoded))) => encoded.code.mean().shallow_clone(),
                (Feature::Stage(n), Some((stages, _))) => match stages.get(n - 1) {
                    Some(stage) => stage.shallow_clone(),
                    None => {
                        let problem =
                            format!("no {feature}: the encoder has {} stages", stages.len());
                        return Err(Error::Config { problems: vec![problem] });
                    }
                },
                (_, Some((_, encoded))) => encoded.features.shallow_clone(),
            };
            layers.push((feature.stored(), x));
        }
        Ok(Self { layers, labels })
    }

    /// Of rows that are already there.
    #[must_use]
    pub fn from_rows(feature: Feature, rows: Tensor, labels: Vec<i64>) -> Self {
        Self { layers: vec![(feature, rows)], labels }
    }

    /// What a feature is made from, (N, width).
    ///
    /// # Panics
    /// If it was not asked for.
    pub fn get(&self, feature: Feature) -> &Tensor {
        let found = self.layers.iter().find(|(layer, _)| *layer == feature.stored());
        &found.expect("a feature that was asked for").1
    }

    /// Where they are.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn device(&self) -> Device {
        self.layers.first().expect("a feature at least").1.device()
    }

    /// Rows for which `keep` holds, by row number, and the others.
    #[must_use]
    pub fn divide(&self, keep: impl Fn(usize) -> bool) -> (Self, Self) {
        let part = |kept: bool| {
            let rows: Vec<usize> =
                (0..self.labels.len()).filter(|row| keep(*row) == kept).collect();
            let index = Tensor::from_slice(&rows.iter().map(|row| *row as i64).collect::<Vec<_>>());
            let pick = |x: &Tensor| x.index_select(0, &index.to_device(x.device()));
            Self {
                layers: self.layers.iter().map(|(feature, x)| (*feature, pick(x))).collect(),
                labels: rows.iter().map(|row| self.labels[*row]).collect(),
            }
        };
        (part(true), part(false))
    }

    /// Refuses images without labels.
    ///
    /// # Errors
    /// [`Error::Config`] naming the split.
    pub fn labelled(self, split: &str) -> Result<Self> {
        if self.labels.iter().all(|label| *label >= 0) {
            return Ok(self);
        }
        let problem = format!(
            "images of split {split:?} have no labels, which a probe needs; \
             build the data folder with labels (in training, eval.probe_images=0 switches it off)"
        );
        Err(Error::Config { problems: vec![problem] })
    }
}

/// Labels, where the features are.
pub(super) fn labels(features: &Features) -> Tensor {
    to_device_non_blocking(&Tensor::from_slice(&features.labels), features.device())
}

fn pixels(images: &Tensor) -> Tensor {
    let small = if images.size()[2] > PIXELS {
        images.adaptive_avg_pool2d([PIXELS, PIXELS])
    } else {
        images.shallow_clone()
    };
    small.flatten(1, -1).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_or_does_not_fit_is_refused_by_name() {
        let of = |rows: Tensor| Features::from_rows(Feature::Mu, rows, vec![0, 1]);
        let good = of(Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([2, 2]));
        good.check(2, true).unwrap();
        let text = |found: Result<()>| found.unwrap_err().to_string();
        let said = text(good.check(1 << 50, true));
        assert!(said.contains("2 numbers each") && said.contains("--images"), "{said}");
        good.check(1 << 50, false).unwrap();
        let bad = of(Tensor::from_slice(&[1f32, 2.0, f32::NAN, 4.0]).view([2, 2]));
        assert!(text(bad.check(2, false)).contains("mu of an image is not finite"));
    }
}
