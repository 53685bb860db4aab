//! Tiny models trained on the device and, from the same weights, images and draws, in double precision on the
//! CPU.

use std::ops::Range;
use std::time::Instant;

use bigbigan_model::images::Images;
use bigbigan_model::nn::{Kinds, Params};
use bigbigan_model::optim::Adam;
use bigbigan_model::random::{Key, Purpose};
use bigbigan_model::state::TrainState;
use bigbigan_model::step::{prepare, train_step};
use common::stop::Stop;
use tch::{Device, Kind, Tensor, no_grad};

use super::Row;
use crate::config::{Config, Origin};
use crate::error::{Error, Result};

/// Steps of each case. With `train.graphs` the third update of D, and of G and E, is recorded: in the fourth
/// step all updates are replayed.
const STEPS: u64 = 4;

/// Most that the device may be off, by quantity.
///
/// Losses: |a − b| / max(1, |b|), the worst of all steps. Gradient norms: |a − b| / |b|, likewise. Weights, and
/// their averages: ‖a − b‖ over how far they moved, ‖b − start‖, the worst network. Statistics (batch norms'
/// mean and variance): ‖a − b‖ / ‖b‖, likewise. σ (of spectral norms): |a − b| / b, the worst layer.
///
/// Ours: some times what a CPU was seen to be off in the same precision.
#[derive(Debug, Clone, Copy)]
struct Tolerance {
    losses: f64,
    norms: f64,
    weights: f64,
    statistics: f64,
    sigma: f64,
}

const SINGLE: Tolerance =
    Tolerance { losses: 1e-4, norms: 2e-3, weights: 2e-2, statistics: 1e-5, sigma: 1e-5 };
/// Models in which a CPU in single precision, too, leaves double precision early.
const UNEVEN: Tolerance =
    Tolerance { losses: 2e-2, norms: 1e-2, weights: 5e-2, statistics: 1e-5, sigma: 1e-4 };
/// Batch norms of 50 layers over 8 values each take rounding far from where it began.
const DEEP: Tolerance =
    Tolerance { losses: 5e-2, norms: 1e-1, weights: 5e-1, statistics: 5e-3, sigma: 1e-3 };
const BF16: Tolerance =
    Tolerance { losses: 5e-1, norms: 3e-1, weights: 3e-1, statistics: 1e-2, sigma: 3e-3 };
/// Three bits more than bfloat16.
const TF32: Tolerance =
    Tolerance { losses: 6e-2, norms: 4e-2, weights: 5e-2, statistics: 1e-3, sigma: 4e-4 };

/// One model and its switches.
#[derive(Debug)]
struct Case {
    name: &'static str,
    /// Over [`TINY`].
    changes: &'static [&'static str],
    tolerance: Tolerance,
    /// Whether `--quick` has it.
    quick: bool,
}

/// The smallest model with every kind of layer. Adam's ε is as large as its rates want: at the presets' 1e-8 an
/// update is the gradient's sign, which rounding decides.
const TINY: [&str; 16] = [
    "g.ch=8",
    "g.attn_res=8",
    "f.ch=8",
    "f.attn_res=8",
    "h.width=16",
    "j.width=16",
    "e.depth=8",
    "e.mlp_width=16",
    "train.batch=8",
    "train.steps=100",
    "opt.eps=1.0",
    "opt.lr_d=0.002",
    "opt.lr_g=0.001",
    "opt.ema=0.9",
    "opt.ema_ramp=false",
    "opt.beta2=0.9",
];

const fn case(name: &'static str, changes: &'static [&'static str], quick: bool) -> Case {
    Case { name, changes, tolerance: SINGLE, quick }
}

const fn within(tolerance: Tolerance, case: Case) -> Case {
    Case { tolerance, ..case }
}

const RESNET: [&str; 3] = ["e.family=resnet_v2", "e.depth=50", "opt.e_lr_mult=0.01"];
const REVNET: [&str; 3] = ["e.family=revnet", "e.depth=50", "opt.e_lr_mult=0.01"];

const FURTHER: [&str; 3] = ["beyond.contrast=1", "beyond.codes=1", "beyond.reconstruct=1"];

const CASES: [Case; 20] = [
    case("f32", &[], true),
    within(TF32, case("tf32", &["train.precision=tf32"], false)),
    within(BF16, case("bf16", &["train.precision=bf16"], true)),
    case("micro-batches", &["train.micro_batch=4"], false),
    case("graphs", &["train.graphs=true"], true),
    case("graphs, micro-batches", &["train.graphs=true", "train.micro_batch=4"], false),
    within(BF16, case("graphs, bf16", &["train.graphs=true", "train.precision=bf16"], false)),
    case("recompute", &["g.recompute=true", "f.recompute=true", "e.recompute=true"], false),
    case("skip", &["health.on_fault=skip"], false),
    case(
        "warm-up, decay, β₁",
        &["opt.warmup_images=20", "opt.decay=cosine", "opt.beta1=0.5"],
        false,
    ),
    case("point encoder", &["e.stochastic=false"], false),
    within(UNEVEN, case("uniform prior", &["latent.prior=uniform", "e.stochastic=false"], false)),
    case("joint term alone", &["loss.sx=false", "loss.sz=false"], false),
    case("no encoder", &["loss.sxz=false", "loss.sz=false"], false),
    within(UNEVEN, case("further losses", &FURTHER, false)),
    within(UNEVEN, case("augmented", &["beyond.augment=colour,translation,cutout"], false)),
    within(DEEP, case("resnet", &RESNET, false)),
    within(DEEP, case("revnet", &REVNET, false)),
    within(
        UNEVEN,
        case(
            "128 px",
            &[
                "g.res=128",
                "f.res=128",
                "e.res=128",
                "latent.dim=120",
                "g.attn_res=64",
                "f.attn_res=64",
                "train.batch=2",
            ],
            false,
        ),
    ),
    case(
        "64 px",
        &["g.res=64", "f.res=64", "e.res=64", "latent.dim=100", "g.attn_res=32", "train.batch=4"],
        false,
    ),
];

/// The case that `train.deterministic` is tried with, twice.
const DETERMINISTIC: Case = case("deterministic", &["train.deterministic=true"], true);

/// The first case's configuration with more changes.
///
/// # Errors
/// [`Error::Config`].
pub(super) fn tiny(more: &[&str]) -> Result<Config> {
    CASES[0].config(more)
}

/// Numbers of the cases.
#[must_use]
pub(super) fn cases() -> Range<usize> {
    0..CASES.len()
}

/// The name of a case, where `--quick` or the whole check has it.
#[must_use]
pub(super) fn name(number: usize, quick: bool) -> Option<&'static str> {
    let case = CASES.get(number).filter(|case| !quick || case.quick);
    case.map(|case| case.name)
}

/// Compares case number `number`.
///
/// # Errors
/// [`Error::Config`] as [`prepare`], and `stop`.
///
/// # Panics
/// Where libtorch refuses, with its words.
pub(super) fn compare(number: usize, device: Device, stop: &Stop) -> Result<Row> {
    CASES[number].compare(&[], device, threads(device), stop)
}

/// Threads of the CPU's computation and of the device's. On the CPU they differ, so that sums do.
pub(super) fn threads(device: Device) -> [i32; 2] {
    let all = tch::get_num_threads();
    if device == Device::Cpu { [1, all.max(2)] } else { [all, all] }
}

/// As [`compare`], of `train.deterministic`; the device computes twice, and has to give the same bits.
///
/// # Errors
/// As [`compare`].
///
/// # Panics
/// As [`compare`].
pub(super) fn compare_deterministic(device: Device, stop: &Stop) -> Result<Row> {
    let mut row = DETERMINISTIC.compare(&[], device, threads(device), stop)?;
    let config = DETERMINISTIC.config(&[])?;
    let start = TrainState::new(&config.recipe(), Device::Cpu, true);
    let run = || -> Result<Vec<Tensor>> {
        let state = copied(&config, &start, (Kind::Float, device));
        Ok(train(&config, state, stop)?.0)
    };
    let (one, two) = (run()?, run()?);
    let most = one.iter().zip(&two).map(|(a, b)| (a - b).abs().max().double_value(&[]));
    row.add("again", most.fold(0.0, f64::max), 0.0);
    Ok(row)
}

impl Case {
    fn config(&self, more: &[&str]) -> Result<Config> {
        let all = TINY.iter().chain(self.changes).chain(more);
        let all: Vec<_> = all.map(|s| (*s).to_owned()).collect();
        Config::resolve(&Origin::Preset("demo"), &all)
    }

    /// With `more` changed on the device alone.
    fn compare(
        &self,
        more: &[&str],
        device: Device,
        [of_cpu, of_device]: [i32; 2],
        stop: &Stop,
    ) -> Result<Row> {
        let begun = Instant::now();
        let config = self.config(&[])?;
        let ours = self.config(more)?;
        // The plain way to compute the same.
        let plain = ["train.precision=f32", "train.graphs=false", "train.deterministic=false"];
        let plain = config.with(&plain.map(str::to_owned))?;
        let start = TrainState::new(&config.recipe(), Device::Cpu, true);
        let drawn = TrainState::new(&config.recipe(), device, true);
        tch::set_num_threads(of_cpu);
        prepare(&plain.recipe(), Device::Cpu)?;
        let kinds = (Kind::Double, Device::Cpu);
        let (expected, truth) = train(&plain, copied(&plain, &start, kinds), stop)?;
        tch::set_num_threads(of_device);
        prepare(&ours.recipe(), device)?;
        let (parts, state) = train(&ours, copied(&ours, &start, (Kind::Float, device)), stop)?;
        let mut row = Row::new(self.name);
        let t = self.tolerance;
        row.add("losses", worst(&parts[0], &expected[0], |b| b.abs().clamp_min(1.0)), t.losses);
        row.add("norms", worst(&parts[1], &expected[1], |b| b.abs().clamp_min(1e-6)), t.norms);
        let nets = || networks(&state).into_iter().zip(networks(&truth)).zip(networks(&start));
        let moved = |pick: fn(&Network<'_>) -> Tensor| {
            let off = |((a, b), start): ((Network<'_>, Network<'_>), Network<'_>)| {
                let [a, b, start] = [&a, &b, &start].map(|net| double(&pick(net)));
                ratio(&(a - &b).norm(), &(b - start).norm())
            };
            nets().map(off).fold(0.0, f64::max)
        };
        row.add("weights", moved(|net| net.params.flat().shallow_clone()), t.weights);
        row.add("averages", moved(|net| net.average.shallow_clone()), t.weights);
        let off = |(a, b): (Network<'_>, Network<'_>)| {
            let [a, b] = [a, b].map(|net| flat(net.params.buffers().iter().map(|(_, t)| t)));
            if b.numel() == 0 { 0.0 } else { ratio(&(a - &b).norm(), &b.norm()) }
        };
        let pairs = networks(&state).into_iter().zip(networks(&truth));
        row.add("statistics", pairs.map(off).fold(0.0, f64::max), t.statistics);
        let [a, b] = [&state, &truth].map(|state| {
            let nets = networks(state);
            flat(nets.iter().flat_map(|net| net.params.norms().map(|(_, norm)| &norm.sigma)))
        });
        row.add("sigma", worst(&a, &b, Tensor::abs), t.sigma);
        let drawn = networks(&drawn).into_iter().zip(networks(&start));
        let off = |(a, b): (Network<'_>, Network<'_>)| {
            (double(a.params.flat()) - double(b.params.flat())).abs().max().double_value(&[])
        };
        row.add("start", drawn.map(off).fold(0.0, f64::max), 0.0);
        row.seconds = begun.elapsed().as_secs_f64();
        Ok(row)
    }
}

/// Trains [`STEPS`] steps on keyed images. Gives losses, then norms of gradients, each one flat tensor, and the state.
pub(super) fn train(
    config: &Config,
    mut state: TrainState,
    stop: &Stop,
) -> Result<(Vec<Tensor>, TrainState)> {
    let (kind, device) = state.d.params.kinds();
    let (mut losses, mut norms) = (vec![], vec![]);
    for step in 0..STEPS {
        let mut update = 0;
        let next = || {
            stop.check()?;
            update += 1;
            Ok::<_, Error>(images(config, step, update, (kind, device)))
        };
        let said = train_step(&config.recipe(), &mut state, next)?;
        losses.extend([Some(said.d), Some(said.g), said.e, said.further].into_iter().flatten());
        norms.push(said.norms);
        if said.faults.sum(None::<Kind>).double_value(&[]) != 0.0 {
            return Err(Error::Diverged { network: "d", step: state.step });
        }
    }
    Ok((vec![flat(&losses), flat(&norms)], state))
}

/// Smooth images in [-1, 1] that depend on step and update alone.
pub(super) fn images(config: &Config, step: u64, update: u32, (kind, device): Kinds) -> Images {
    let (batch, side) = (config.train.batch, config.g.res);
    let key = Key { seed: 1, purpose: Purpose::Evaluate, step, update };
    let coarse = key.normal(0..batch, 3 * 16, Device::Cpu).view([batch, 3, 4, 4]) * 2.0;
    let large = if config.loss.encode() { config.e.res } else { side };
    let at = |side: i64| {
        let x = coarse.upsample_bilinear2d([side, side], false, None, None).tanh();
        // Channels last in memory, as batches come from the pipeline.
        let x = x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        x.to_kind(kind).to_device(device)
    };
    Images { large: at(large), small: at(side) }
}

/// A state of the same values elsewhere.
pub(super) fn copied(config: &Config, from: &TrainState, kinds: Kinds) -> TrainState {
    let mut state = TrainState::with_kinds(&config.recipe(), kinds, false);
    let copy = |to: &mut Params, from: &Params| {
        no_grad(|| {
            for ((_, mut to), (_, from)) in to.state().into_iter().zip(from.state()) {
                to.copy_(&from);
            }
        });
        to.rescale();
    };
    copy(&mut state.g.live.params, &from.g.live.params);
    moments(&mut state.g.live.adam, &from.g.live.adam);
    state.g.average.copy_(&from.g.average);
    if let (Some(to), Some(from)) = (&mut state.e, &from.e) {
        copy(&mut to.live.params, &from.live.params);
        moments(&mut to.live.adam, &from.live.adam);
        to.average.copy_(&from.average);
    }
    if let (Some(to), Some(from)) = (&mut state.further, &from.further) {
        copy(&mut to.params, &from.params);
        moments(&mut to.adam, &from.adam);
    }
    copy(&mut state.d.params, &from.d.params);
    moments(&mut state.d.adam, &from.d.adam);
    state.step = from.step;
    state
}

fn moments(to: &mut Adam, from: &Adam) {
    to.m.copy_(&from.m);
    to.v.copy_(&from.v);
    to.set_steps(from.steps());
}

struct Network<'a> {
    params: &'a Params,
    /// Of those that have none, the weights.
    average: &'a Tensor,
}

fn networks(state: &TrainState) -> Vec<Network<'_>> {
    let g = Network { params: &state.g.live.params, average: &state.g.average };
    let d = Network { params: &state.d.params, average: state.d.params.flat() };
    let e = state.e.as_ref().map(|e| Network { params: &e.live.params, average: &e.average });
    let further = state.further.as_ref();
    let further = further.map(|f| Network { params: &f.params, average: f.params.flat() });
    [g, d].into_iter().chain(e).chain(further).collect()
}

/// In double precision on the CPU.
pub(super) fn double(x: &Tensor) -> Tensor {
    x.detach().to_device(Device::Cpu).to_kind(Kind::Double)
}

fn flat<'a>(all: impl IntoIterator<Item = &'a Tensor>) -> Tensor {
    let all: Vec<_> = all.into_iter().map(|x| double(x).reshape([-1])).collect();
    if all.is_empty() { Tensor::zeros([0], tch::kind::DOUBLE_CPU) } else { Tensor::cat(&all, 0) }
}

/// The largest |a − b| over a scale of b; infinite where something is no number.
fn worst(a: &Tensor, b: &Tensor, scale: impl Fn(&Tensor) -> Tensor) -> f64 {
    number(((a - b).abs() / scale(b)).max().double_value(&[]))
}

fn ratio(off: &Tensor, size: &Tensor) -> f64 {
    number((off / size).double_value(&[]))
}

fn number(x: f64) -> f64 {
    if x.is_nan() { f64::INFINITY } else { x }
}

/// ‖a − b‖ / ‖b‖.
pub(super) fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (double(a), double(b));
    ratio(&(a - &b).norm(), &b.norm())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &Case, more: &[&str]) -> Row {
        case.compare(more, Device::Cpu, [1, 1], &Stop::default()).unwrap()
    }

    fn off(row: &Row) -> Vec<&str> {
        let beyond = row.quantities.iter().filter(|q| !q.agrees());
        beyond.map(|q| q.name.as_str()).collect()
    }

    /// A check that lets these pass is none. (That all cases agree where nothing is wrong is a story of
    /// `tests/tests/check_device.rs`.)
    #[test]
    fn what_a_wrong_device_would_do_is_told_apart() {
        let plain = &CASES[0];
        for (wrong, expected) in [
            ("opt.lr_g=0.00105", &["weights", "averages"][..]),
            ("opt.beta2=0.8", &["weights", "averages"]),
            ("opt.ema=0.95", &["averages"]),
            ("e.bn_momentum=0.011", &["statistics"]),
            ("g.bn_eps=2e-3", &["losses", "norms", "weights"]),
            ("train.precision=bf16", &["losses", "norms", "weights"]),
        ] {
            let row = row(plain, &[wrong]);
            let off = off(&row);
            assert!(expected.iter().all(|name| off.contains(name)), "{wrong}: {row}");
        }
    }
}
