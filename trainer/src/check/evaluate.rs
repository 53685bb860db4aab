//! Evaluations of one trained model on the device and on the CPU, both in single precision.

use std::time::Instant;

use bigbigan_model::state::TrainState;
use common::stop::Stop;
use tch::{Device, Kind, Tensor};

use super::Row;
use super::compare::{copied, double, images, relative, tiny, train};
use crate::config::Config;
use crate::error::Result;
use crate::eval::Model;
use crate::eval::features::{Feature, Features};
use crate::eval::knn::{DISTANCES, nearest};
use crate::eval::linear::{Protocol, Source, probe};
use crate::health::{Probe, Signals};

/// Batches of images that features are taken of.
const BATCHES: u64 = 32;
/// What a probe tells apart: whether the first two colours are above the middle.
const CLASSES: i64 = 4;
/// Neighbours that are compared.
const NEAREST: i64 = 5;

/// Compares them.
///
/// Samples, reconstructions, codes and features: ‖a − b‖ / ‖b‖. Signals (of [`crate::health`]): the worst
/// |a − b| / (|b| + 0.01). Neighbours: the share of the five nearest that are others, and the linear probe: the
/// difference of top-1 in percent; both are made from the CPU's features.
///
/// # Errors
/// `stop`.
///
/// # Panics
/// Where libtorch refuses, with its words.
pub(super) fn compare(device: Device, [of_cpu, of_device]: [i32; 2], stop: &Stop) -> Result<Row> {
    let begun = Instant::now();
    tch::set_num_threads(of_cpu);
    let config = tiny(&["images.standing_images=64"])?;
    let kinds = (Kind::Float, Device::Cpu);
    let start = copied(&config, &TrainState::new(&config.recipe(), Device::Cpu, true), kinds);
    let (_, state) = train(&config, start, stop)?;
    let expected = Side::of(&config, &state, None, stop)?;
    tch::set_num_threads(of_device);
    let ours =
        Side::of(&config, &copied(&config, &state, (Kind::Float, device)), Some(&expected), stop)?;
    let mut row = Row::new("evaluations");
    for (name, pick) in [
        ("samples", (|s| &s.samples) as fn(&Side) -> &Tensor),
        ("reconstructions", |s| &s.reconstructions),
        ("codes", |s| &s.codes),
        ("features", |s| s.features.get(Feature::AvePool)),
    ] {
        row.add(name, relative(pick(&ours), pick(&expected)), 1e-4);
    }
    let off = |(a, b): (&f64, &f64)| (a - b).abs() / (b.abs() + 0.01);
    let signals = ours.signals.iter().zip(&expected.signals).map(off).fold(0.0, f64::max);
    row.add("signals", signals, 1e-3);
    let others = (&ours.neighbours - &expected.neighbours).ne(0.0).to_kind(Kind::Double);
    row.add("neighbours", others.mean(Kind::Double).double_value(&[]), 0.01);
    row.add("probe", (ours.top1 - expected.top1).abs(), 2.0);
    row.seconds = begun.elapsed().as_secs_f64();
    Ok(row)
}

/// What is measured of a model on one device.
struct Side {
    samples: Tensor,
    reconstructions: Tensor,
    codes: Tensor,
    features: Features,
    signals: Vec<f64>,
    /// Numbers of rows, for each distance.
    neighbours: Tensor,
    top1: f64,
}

impl Side {
    /// Neighbours and probe are of the features of `other`, where that is given.
    fn of(config: &Config, state: &TrainState, other: Option<&Self>, stop: &Stop) -> Result<Self> {
        let kinds = state.d.params.kinds();
        let model = Model::averaged(config, state, None, stop)?;
        let fixed = images(config, 1000, 0, kinds);
        let codes = model.encode(&fixed)?.1.code.mean().shallow_clone();
        let (mut rows, mut labels) = (vec![], vec![]);
        for batch in 0..BATCHES {
            let images = images(config, 2000 + batch, 0, kinds);
            let features = Features::of_images(&model, &images, &[Feature::AvePool])?;
            rows.push(features.get(Feature::AvePool).shallow_clone());
            let bright =
                double(&images.small).mean_dim([2i64, 3].as_slice(), false, Kind::Double).gt(0.0);
            let class = bright.narrow(1, 0, 2).to_kind(Kind::Int64);
            let class = class.select(1, 0) * 2 + class.select(1, 1);
            labels.extend(Vec::<i64>::try_from(class)?);
        }
        let features = Features::from_rows(Feature::AvePool, Tensor::cat(&rows, 0), labels);
        let rows = other.map_or(&features, |other| &other.features).get(Feature::AvePool);
        let shared = rows.to_device(kinds.1);
        let shared = Features::from_rows(Feature::AvePool, shared, features.labels.clone());
        let (test, train) = shared.divide(|row| row % 4 == 0);
        let found = DISTANCES.map(|distance| {
            let of = |features: &Features| features.get(Feature::AvePool).shallow_clone();
            double(&nearest(&of(&train), None, &of(&test), distance, NEAREST).rows)
        });
        let protocol = Protocol { steps: 100, batch: 64, decay: 0.9, ..Protocol::table1(0) };
        let source = Source::Cached(&train);
        let found_by = probe(&[Feature::BnCrelu], source, None, &test, CLASSES, &protocol, stop)?;
        let signals = Probe::of_images(config, fixed, kinds.1).measure(state)?;
        let fixed = images(config, 1000, 0, kinds);
        Ok(Self {
            samples: model.generate(&model.latents(0, 16)),
            reconstructions: model.reconstruct(&fixed)?,
            codes,
            features,
            signals: numbers(&signals),
            neighbours: Tensor::stack(&found, 0),
            top1: found_by[0].top1,
        })
    }
}

fn numbers(signals: &Signals) -> Vec<f64> {
    let all = serde_json::to_value(signals).expect("signals are numbers with names");
    let all = all.as_object().expect("of a structure").values();
    all.map(|value| value.as_f64().unwrap_or(f64::NAN)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_agree_on_the_cpu_and_the_probe_learns() {
        let row = compare(Device::Cpu, [1, 1], &Stop::default()).unwrap();
        assert!(row.agrees, "{row}");
    }
}
