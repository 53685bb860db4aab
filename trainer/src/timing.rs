//! Steps with a clock: on images that are there, and on batches from a loader.

use std::sync::Arc;
use std::time::Instant;

use bigbigan_model::images::Images;
use bigbigan_model::nn::Params;
use bigbigan_model::state::TrainState;
use bigbigan_model::step::{faulty, prepare, train_step};
use common::stop::Stop;
use dist::World;
use pipeline::{Cursor, Dataset};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::measure::Meter;
use torch_ext::stream::Deferred;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::feed::Feed;

/// Steps on the same random images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OnImages {
    /// Steps that were timed.
    pub steps: usize,
    /// Seconds of the first step, in which libraries set themselves up and choose algorithms.
    pub first_s: f64,
    /// Seconds of a step, the median.
    pub step_s: f64,
    /// Of them, those until the host had given the device all its work, the median.
    pub given_s: f64,
    /// The most bytes that tensors took, on the device or on the CPU.
    pub peak_bytes: f64,
}

/// Trains `steps` steps after the first three (with `train.graphs` all is recorded by then), until `stop`,
/// which ends it without an error where a step was timed. Gives what they took, and the state.
///
/// # Errors
/// Those of [`prepare`], [`Error::Torch`], [`Error::Diverged`], and `stop`.
///
/// # Panics
/// As [`train_step`], as for lack of memory.
pub fn on_images(
    config: &Config,
    device: Device,
    steps: usize,
    stop: &Stop,
) -> Result<(OnImages, TrainState)> {
    const WARM_UP: usize = 3;
    prepare(&config.recipe(), device)?;
    let meter = (device == Device::Cpu).then(Meter::start);
    let mut state = drawn(config, device);
    let images = random_images(config, device);
    let (mut first_s, mut whole, mut given) = (0.0, vec![], vec![]);
    for step in 0..WARM_UP + steps {
        if stop.wanted() && !whole.is_empty() {
            break;
        }
        stop.check()?;
        let begun = Instant::now();
        let losses = train_step(&config.recipe(), &mut state, || {
            Ok::<_, Error>(images.rows(0, images.len()))
        })?;
        let all_given = begun.elapsed().as_secs_f64();
        check_faults(&losses.faults, state.step)?; // waits for the device
        let seconds = begun.elapsed().as_secs_f64();
        match step {
            0 => first_s = seconds,
            _ if step < WARM_UP => {}
            _ => {
                whole.push(seconds);
                given.push(all_given);
            }
        }
    }
    let counted = meter.map_or(0.0, Meter::stop);
    let peak_bytes =
        torch_ext::cuda::max_memory_allocated(device)?.map_or(counted, |bytes| bytes as f64);
    let steps = whole.len();
    let [step_s, given_s] = [whole, given].map(|seconds| median(seconds).unwrap_or(f64::NAN));
    Ok((OnImages { steps, first_s, step_s, given_s, peak_bytes }, state))
}

/// One more step of `state` on random images, of which the device has finished all when this returns.
///
/// # Errors
/// [`Error::Diverged`].
///
/// # Panics
/// As [`train_step`].
pub fn one_step(config: &Config, state: &mut TrainState) -> Result<()> {
    let images = random_images(config, state.d.params.kinds().1);
    let losses =
        train_step(&config.recipe(), state, || Ok::<_, Error>(images.rows(0, images.len())))?;
    check_faults(&losses.faults, state.step)
}

/// The middle value (the upper one of two), `None` of none.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A batch of pixels, u8 as batches come from the pipeline.
#[must_use]
pub fn random_images(config: &Config, device: Device) -> Images {
    let draw =
        |side| Tensor::randint(256, [config.train.batch, side, side, 3], (Kind::Uint8, device));
    let large = if config.loss.encode() { config.e.res } else { config.g.res };
    Images { large: draw(large), small: draw(config.g.res) }
}

/// A state whose weights are drawn on the device: what the right start takes for a large model, orthogonal
/// matrices made on the CPU, is minutes.
fn drawn(config: &Config, device: Device) -> TrainState {
    let mut state = TrainState::new(&config.recipe(), device, false);
    let fill = |params: &mut Params| {
        no_grad(|| {
            for (name, mut tensor) in params.state() {
                let _ = match tensor.dim() {
                    // Gains, variances and what is divided by: not zero.
                    1 if name.ends_with("gain") || name.ends_with("var") => tensor.fill_(1.0),
                    0 | 1 if !name.ends_with(".u") && !name.ends_with(".v") => tensor.zero_(),
                    _ => tensor.normal_(0.0, 0.02),
                };
            }
        });
        params.advance_norms();
    };
    fill(&mut state.g.live.params);
    fill(&mut state.d.params);
    state.g.average.copy_(state.g.live.params.flat());
    if let Some(e) = &mut state.e {
        fill(&mut e.live.params);
        e.average.copy_(e.live.params.flat());
    }
    if let Some(further) = &mut state.further {
        fill(&mut further.params);
    }
    state
}

fn check_faults(faults: &Tensor, step: u64) -> Result<()> {
    let faults = Vec::<f32>::try_from(faults.to_device(Device::Cpu))?;
    match faulty(&faults) {
        Some(network) => Err(Error::Diverged { network, step }),
        None => Ok(()),
    }
}

/// Steps on batches of a loader: as a run makes them, without its chores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OnFeed {
    /// Steps that were timed.
    pub steps: u64,
    /// From `begun` to the end of the first step.
    pub first_step_s: f64,
    /// Seconds of a step, the mean.
    pub step_s: f64,
    /// A step's wait: for the loader, and for what of the upload the training thread does.
    pub wait_s: f64,
    /// Its share of the time.
    pub wait_share: f64,
    /// Of the time, what went by waiting for the loader alone.
    pub loading_share: f64,
    /// Images that the loader gave.
    pub images_read_per_s: f64,
}

/// Trains `steps` steps after the first and a tenth more; `begun` is when the caller began.
///
/// # Errors
/// Those of [`prepare`] and of the data, [`Error::Diverged`], and `stop`.
///
/// # Panics
/// As [`train_step`].
pub fn on_feed(
    config: &Config,
    data: &Arc<Dataset>,
    device: Device,
    (steps, begun): (u64, Instant),
    stop: &Stop,
) -> Result<OnFeed> {
    prepare(&config.recipe(), device)?;
    let mut feed = Feed::start(config, data, Cursor::default(), device, &World::alone())?;
    feed.prime(stop)?;
    let mut state = drawn(config, device);
    let mut unread: Option<Deferred> = None;
    let mut step = |feed: &mut Feed| -> Result<()> {
        let losses = train_step(&config.recipe(), &mut state, || feed.next(stop))?;
        // Read one step late, as the run does.
        let before = unread.replace(Deferred::of(&losses.faults)?).map(Deferred::read);
        before.map_or(Ok(()), |faults| check_faults(&faults, state.step - 1))
    };
    step(&mut feed)?;
    wait_for(device);
    let first_step_s = begun.elapsed().as_secs_f64();
    for _ in 0..steps.div_ceil(10) {
        step(&mut feed)?;
    }
    let (from, waited, loading) = (Instant::now(), feed.waited, feed.loading);
    for _ in 0..steps {
        step(&mut feed)?;
    }
    wait_for(device);
    let seconds = from.elapsed().as_secs_f64();
    let waited = (feed.waited - waited).as_secs_f64();
    let (step_s, reads) = (seconds / steps as f64, f64::from(config.train.d_steps + 1));
    Ok(OnFeed {
        steps,
        first_step_s,
        step_s,
        wait_s: waited / steps as f64,
        wait_share: waited / seconds,
        loading_share: (feed.loading - loading).as_secs_f64() / seconds,
        images_read_per_s: reads * config.train.batch as f64 / step_s,
    })
}

/// Waits until the device has done all its work.
fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;

    fn tiny() -> Config {
        let keys = ["g.ch=4", "f.ch=4", "h.width=16", "j.width=16", "e.depth=8", "e.mlp_width=16"];
        let keys: Vec<_> = keys.iter().chain(&["train.batch=4"]).map(|s| (*s).to_owned()).collect();
        Config::resolve(&Origin::Preset("demo"), &keys).unwrap()
    }

    #[test]
    fn steps_are_timed_and_a_stop_keeps_what_was() {
        let config = tiny();
        let (found, state) = on_images(&config, Device::Cpu, 2, &Stop::default()).unwrap();
        assert_eq!((found.steps, state.step), (2, 5));
        let sane = [found.first_s, found.given_s, found.step_s - found.given_s, found.peak_bytes];
        assert!(sane.iter().all(|x| *x >= 0.0), "{found:?}");
        assert!(found.step_s > 0.0 && found.peak_bytes > 1e5, "{found:?}");
        let stop = Stop::default();
        stop.flag().store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(on_images(&config, Device::Cpu, 2, &stop).unwrap_err().is_stop());
    }

    #[test]
    fn the_median_ignores_order_and_outliers() {
        assert_eq!(median(vec![9e9, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![]), None);
    }
}
