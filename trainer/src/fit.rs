//! Which micro-batch fits a machine: whole steps of growing size, run and measured.

use std::time::Instant;

use bigbigan_model::config::Precision;
use bigbigan_model::images::Images;
use bigbigan_model::nn::Params;
use bigbigan_model::state::TrainState;
use bigbigan_model::step::train_step;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::context::allow_tf32;
use torch_ext::measure::Meter;

use crate::config::Config;
use crate::error::{Error, Result};

/// One size that was tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Images of one pass.
    pub micro_batch: i64,
    /// Whether a whole step of it fits.
    pub fits: bool,
    /// The most bytes that tensors took, weights, moments and averages included; on a CPU alone.
    pub peak_bytes: Option<f64>,
    /// Seconds of a pass of the step, the first of its size; `None` where it was not run, because the sizes
    /// before it say that it would not fit.
    pub seconds: Option<f64>,
    /// What libtorch said where memory ran out.
    pub ran_out: Option<String>,
}

/// The largest micro-batch up to `most` whose step fits, to a sixteenth; `None` if not even 2 images
/// do. On a CPU it is to stay within `limit` bytes of tensors; a GPU says itself when it is full. `told`
/// hears of every size. Weights and images are zeros: memory and work do not depend on values.
///
/// # Errors
/// [`Error::Torch`] and what a step reports.
pub fn largest(
    config: &Config,
    device: Device,
    limit: f64,
    most: i64,
    mut told: impl FnMut(&Trial),
) -> Result<Option<i64>> {
    let (mut fits, mut beyond) = (None, most + 1);
    let mut known: Vec<(i64, f64)> = vec![];
    let mut next = 2.min(most);
    loop {
        let expected = expected(&known, next).filter(|bytes| *bytes > limit);
        let trial = match expected {
            Some(_) => {
                let (seconds, ran_out) = (None, None);
                Trial { micro_batch: next, fits: false, peak_bytes: expected, seconds, ran_out }
            }
            None => attempt(config, device, limit, next)?,
        };
        told(&trial);
        if let (Some(peak), Some(_)) = (trial.peak_bytes, trial.seconds) {
            known.push((next, peak));
        }
        if trial.fits {
            fits = Some(next);
        } else {
            beyond = next;
        }
        let Some(low) = fits else { return Ok(None) };
        next = if beyond > most { (2 * low).min(most) } else { (low + beyond) / 2 };
        if next <= low || (beyond <= most && (beyond - low) * 16 <= low) {
            return Ok(fits);
        }
    }
}

/// Bytes of a size by the line through the last two that were measured.
fn expected(known: &[(i64, f64)], size: i64) -> Option<f64> {
    let [.., a, b] = known else { return None };
    (a.0 != b.0).then(|| b.1 + (b.1 - a.1) / (b.0 - a.0) as f64 * (size - b.0) as f64)
}

fn attempt(config: &Config, device: Device, limit: f64, size: i64) -> Result<Trial> {
    let whole = config.train.batch;
    let mut config = config.clone();
    // As a run has it: from the second pass on there are sums of gradients, and the whole batch is on the
    // device, on CUDA the next one too.
    let passes = if size < whole { 2 } else { 1 };
    (config.train.batch, config.train.micro_batch) = (passes * size, size);
    let ahead = if device.is_cuda() { whole } else { 0 };
    let step = || -> Result<f64> {
        allow_tf32(config.train.precision == Precision::Tf32);
        let mut state = TrainState::new(&config.recipe(), device, false);
        let of_e = state.e.as_ref().map(|e| &e.live.params);
        let of_further = state.further.as_ref().map(|further| &further.params);
        let networks = [&state.g.live.params, &state.d.params];
        networks.into_iter().chain(of_e).chain(of_further).for_each(clear);
        let images = |count: i64| {
            let pixels = |side: i64| Tensor::zeros([count, side, side, 3], (Kind::Uint8, device));
            let large = if config.loss.encode() { config.e.res } else { config.g.res };
            Images { large: pixels(large), small: pixels(config.g.res) }
        };
        let held = images((whole - passes * size).max(0) + ahead);
        let began = Instant::now();
        let losses =
            train_step(&config.recipe(), &mut state, || Ok::<_, Error>(images(passes * size)))?;
        // Reading a value back waits for the device.
        let _ = losses.g.double_value(&[]);
        drop(held);
        Ok(began.elapsed().as_secs_f64() / passes as f64)
    };
    let meter = Meter::start();
    let outcome = torch_ext::caught(step);
    let peak = meter.stop();
    let peak_bytes = (device == Device::Cpu).then_some(peak);
    let (seconds, ran_out) = match outcome {
        Ok(seconds) => (Some(seconds), None),
        Err(Error::Memory { reason }) => (None, Some(reason)),
        Err(error) => return Err(error),
    };
    let fits = seconds.is_some() && peak_bytes.is_none_or(|bytes| bytes <= limit);
    Ok(Trial { micro_batch: size, fits, peak_bytes, seconds, ran_out })
}

fn clear(params: &Params) {
    no_grad(|| params.state().into_iter().for_each(|(_, mut tensor)| drop(tensor.zero_())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;

    #[test]
    fn the_largest_size_within_a_limit_is_found_and_stays_within_it() {
        let keys = ["g.ch=4", "f.ch=4", "h.width=16", "j.width=16", "e.depth=8", "e.mlp_width=16"];
        let keys: Vec<_> = keys.iter().map(|s| (*s).to_owned()).collect();
        let config = Config::resolve(&Origin::Preset("demo"), &keys).unwrap();
        let try_all = |limit: f64, most: i64| {
            let mut all = vec![];
            let found = largest(&config, Device::Cpu, limit, most, |trial| all.push(trial.clone()))
                .unwrap();
            (found, all)
        };
        let (found, all) = try_all(f64::MAX, 8);
        assert_eq!((found, all.len()), (Some(8), 3));
        let peak = |i: usize| all[i].peak_bytes.unwrap();
        let by = (peak(2) - peak(1)) / 4.0;
        assert!(by > 1e4 && (peak(1) - peak(0)) / 2.0 > 0.5 * by, "{all:?}");

        let (found, all) = try_all(peak(2) + 12.5 * by, 64);
        assert!((18..=21).contains(&found.unwrap()), "{found:?} {all:?}");
        for trial in &all {
            assert_eq!(trial.fits, trial.micro_batch <= found.unwrap(), "{all:?}");
        }
        // What is known not to fit is not run.
        assert!(all.iter().any(|trial| trial.micro_batch == 32 && trial.seconds.is_none()));
        assert_eq!(try_all(1e3, 64).0, None);
    }
}
