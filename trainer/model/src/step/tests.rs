mod further;

use std::time::Duration;

use common::stop::Stop;
use dist::{Limits, Place};
use tch::Device;
use torch_ext::measure::Work;

use super::*;
use crate::loss;
use crate::networks::Scores;
use crate::nn::SpectralNorm;
use crate::optim::Adam;

fn tiny(overrides: &[&str]) -> Recipe {
    let small = [
        "g.ch=4",
        "f.ch=4",
        "h.width=16",
        "j.width=16",
        "e.depth=8",
        "e.mlp_width=16",
        "train.batch=4",
    ];
    let all: Vec<_> = small.iter().chain(overrides).map(|s| (*s).to_owned()).collect();
    Recipe::preset("demo", &all).unwrap()
}

fn images(seed: u64) -> Images {
    let key = Key { seed, purpose: Purpose::Evaluate, step: 0, update: 0 };
    let large = key.normal(0..4, 3 * 32 * 32, Device::Cpu).view([4, 3, 32, 32]).tanh();
    let small = large.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
    Images { large, small }
}

fn new(config: &Recipe) -> TrainState {
    TrainState::new(config, Device::Cpu, true)
}

fn weights(state: &TrainState) -> [Tensor; 3] {
    let e = state.e.as_ref().unwrap();
    [&state.g.live.params, &e.live.params, &state.d.params].map(|p| p.flat().copy())
}

#[test]
fn the_constant_terms_leave_every_gradient_of_e_and_g_bit_equal() {
    let config = tiny(&[]);
    let state = new(&config);
    let e = state.e.as_ref().unwrap();
    let draws = Draws::new(&config, &state, 2);
    let images = images(1);
    state.d.params.use_weights(Weights::Freeze);
    for params in [&state.g.live.params, &e.live.params] {
        params.use_weights(Weights::Train);
    }
    let generated = state.g.live.net.forward(&draws.prior, Statistics::Batch);
    let whole = generator_loss(&state, &generated, &draws)
        + &encoder_losses(&state, e, &images, &generated, &draws)[0];

    let code = e.live.net.forward(&images.large, Statistics::Batch).code;
    let f = state.d.net.image_features(&images.small);
    let real = state.d.net.scores_of(&f, Some(&code.sample(&draws.noise)));
    let x = state.g.live.net.forward(&draws.prior, Statistics::Batch);
    let pair = Pair { image: x, latent: Some(draws.prior.shallow_clone()) };
    let fake = state.d.net.scores(&pair);
    let dropped =
        loss::encoder(&Scores { sx: None, ..real }) + loss::generator(&Scores { sz: None, ..fake });

    let gradients = |loss| {
        let mut gradients = Gradients::of([&state.g.live.params, &e.live.params]);
        gradients.add(loss, true);
        gradients.finish()
    };
    let one = gradients(&whole);
    assert_eq!(one, gradients(&dropped));
    assert!(one.iter().all(|g| g.abs().max().double_value(&[]) > 0.0));
}

#[test]
fn each_update_changes_its_own_networks_only() {
    let config = tiny(&[]);
    let mut state = new(&config);
    let before = weights(&state);
    let _ = discriminator_step(&config, &mut state, images(1), 0);
    let after_d = weights(&state);
    assert_eq!(before[..2], after_d[..2]);
    assert_ne!(before[2], after_d[2]);
    let u = |state: &TrainState| {
        state.d.params.norms().map(|(_, norm)| norm.u.copy()).collect::<Vec<_>>()
    };
    let d_vectors = u(&state);
    let _ = encoder_generator_step(&config, &mut state, images(2));
    let after_eg = weights(&state);
    assert_ne!(after_d[0], after_eg[0]);
    assert_ne!(after_d[1], after_eg[1]);
    assert_eq!(after_d[2], after_eg[2]);
    assert_eq!(d_vectors, u(&state));
}

#[test]
fn the_image_and_latent_parts_learn_through_the_joint_term_alone() {
    let config = tiny(&["loss.sx=false", "loss.sz=false"]);
    let mut state = new(&config);
    let _ = discriminator_step(&config, &mut state, images(1), 0);
    // β₁ = 0, so Adam's first moment is the gradient.
    let mut parts = std::collections::BTreeMap::new();
    for (name, gradient) in state.d.params.unflatten(&state.d.adam.m) {
        let part = name.split('.').next().unwrap().to_owned();
        let largest = gradient.abs().max().double_value(&[]);
        let entry = parts.entry(part).or_insert(0f64);
        *entry = entry.max(largest);
    }
    let names: Vec<_> = parts.keys().map(String::as_str).collect();
    assert_eq!(names, ["f", "h", "j", "theta_xz"]);
    assert!(parts.values().all(|largest| *largest > 0.0), "{parts:?}");
}

#[test]
fn after_n_steps_d_has_made_twice_as_many_updates_as_g_and_e() {
    let config = tiny(&[]);
    let mut state = new(&config);
    for _ in 0..3 {
        let losses = train_step(&config, &mut state, || Ok::<_, ()>(images(1))).unwrap();
        assert!(losses.d.double_value(&[]).is_finite());
    }
    let e = state.e.as_ref().unwrap();
    let updates = [&state.g.live.adam, &e.live.adam, &state.d.adam].map(Adam::steps);
    assert_eq!((updates, state.step), ([3, 3, 6], 3));
}

/// The first network that met a fault in a step from `state`.
fn fault(config: &Recipe, state: &mut TrainState, images: &Images) -> Option<&'static str> {
    let losses = train_step(config, state, || Ok::<_, ()>(images.rows(0, 4))).unwrap();
    let faults = Vec::<f32>::try_from(losses.faults).unwrap();
    NETWORKS.into_iter().zip(faults).find(|(_, fault)| *fault != 0.0).map(|(name, _)| name)
}

#[test]
fn a_number_that_is_none_is_found_in_the_step_it_appears_in() {
    let config = tiny(&[]);
    let poison = |t: &Tensor| {
        let _ = t.shallow_clone().view(-1).narrow(0, 3, 1).fill_(f64::NAN);
    };
    assert_eq!(fault(&config, &mut new(&config), &images(1)), None);
    let bad = images(1);
    poison(&bad.large.contiguous());
    assert_eq!(fault(&config, &mut new(&config), &bad), Some("d"));
    let places: [fn(&TrainState) -> &Tensor; 3] =
        [|s| s.d.params.flat(), |s| &s.d.adam.v, |s| &s.d.adam.m];
    for place in places {
        let mut state = new(&config);
        poison(place(&state));
        assert_eq!(fault(&config, &mut state, &images(1)), Some("d"));
    }
    let mut state = new(&config);
    poison(&state.e.as_ref().unwrap().live.adam.v);
    assert_eq!(fault(&config, &mut state, &images(1)), Some("e"));
    // A latent: not from the prior's generator, which gives none.
    let state = &mut new(&config);
    let inputs = Inputs::new(&config, state, images(1), 2);
    poison(&inputs.draws.prior);
    for (_, update) in update_encoder_generator(&config, state, &inputs) {
        assert_eq!(update.fault.double_value(&[]), 1.0);
    }
}

#[test]
fn a_skipped_update_leaves_no_trace_but_the_step_count() {
    let config = tiny(&["health.on_fault=skip"]);
    let mut state = new(&config);
    let all = |state: &TrainState| {
        let e = state.e.as_ref().unwrap();
        let mut all = vec![];
        for (params, adam) in [
            (&state.g.live.params, &state.g.live.adam),
            (&e.live.params, &e.live.adam),
            (&state.d.params, &state.d.adam),
        ] {
            all.extend(params.parameters().map(|(_, t)| t.copy()));
            all.extend(params.buffers().into_iter().map(|(_, t)| t.copy()));
            all.extend([adam.m.copy(), adam.v.copy()]);
        }
        all.extend([state.g.average.copy(), e.average.copy()]);
        (all, [&state.g.live.adam, &e.live.adam, &state.d.adam].map(Adam::steps))
    };
    assert_eq!(fault(&config, &mut state, &images(1)), None);
    let before = all(&state);
    let bad = images(2);
    let _ = bad.large.narrow(0, 1, 1).fill_(f64::NAN);
    assert_eq!(fault(&config, &mut state, &bad), Some("d"));
    let after = all(&state);
    assert_eq!((before.1, state.step), (after.1, 2));
    for (i, (a, b)) in before.0.iter().zip(&after.0).enumerate() {
        // The average moves towards the weights.
        let close = (a - b).abs().max().double_value(&[]) < 1e-3;
        assert!(if i + 2 < before.0.len() { a == b } else { close }, "tensor {i}");
    }
    assert_eq!(fault(&config, &mut state, &images(3)), None);
    assert_ne!(all(&state).1, before.1);
}

#[test]
fn bfloat16_gives_nearly_the_losses_of_single_precision_and_the_same_state_kinds() {
    let losses = |overrides: &[&str]| {
        let config = tiny(overrides);
        let mut state = new(&config);
        let losses = train_step(&config, &mut state, || Ok::<_, ()>(images(1))).unwrap();
        for params in [&state.g.live.params, &state.d.params] {
            assert!(params.state().iter().all(|(_, t)| t.kind() == Kind::Float));
        }
        assert_eq!(losses.d.kind(), Kind::Float);
        [losses.d, losses.g, losses.e.unwrap()].map(|loss| loss.double_value(&[]))
    };
    for family in ["e.family=small", "e.family=revnet", "e.family=resnet_v2"] {
        let depth = if family == "e.family=small" { "e.depth=8" } else { "e.depth=50" };
        // D all but stands still: Adam's first steps make of a gradient's rounded sign as much as of the gradient.
        let still = ["opt.lr_d=1e-9", family, depth];
        let single = losses(&still);
        let half = losses(&[&still[..], &["train.precision=bf16"]].concat());
        assert_ne!(single, half);
        for (a, b) in single.into_iter().zip(half) {
            assert!((a - b).abs() < 0.05 * (1.0 + a.abs()), "{family}: {single:?} {half:?}");
        }
    }
}

#[test]
fn a_plain_gan_trains_without_an_encoder() {
    let config = tiny(&["loss.sxz=false", "loss.sz=false"]);
    let mut state = new(&config);
    let before = state.g.live.params.flat().copy();
    let losses = train_step(&config, &mut state, || Ok::<_, ()>(images(1))).unwrap();
    assert!(losses.e.is_none() && state.e.is_none());
    assert_ne!(&before, state.g.live.params.flat());
}

#[test]
fn micro_batches_average_to_the_gradient_of_the_batch() {
    let config = tiny(&["train.micro_batch=2"]);
    let mut state = new(&config);
    let images = images(1);
    state.d.params.use_weights(Weights::Train);
    let half = |first| {
        let draws = Draws::new(&config, &state, 0).rows(first, 2);
        let pairs = no_grad(|| joint_pairs(&state, &images.rows(first, 2), &draws));
        let scores = state.d.net.scores(&pairs);
        let loss = loss::discriminator(&scores.rows(0, 2), &scores.rows(2, 2));
        (state.d.params.gradient(&loss), loss.detach())
    };
    let ((g1, l1), (g2, l2)) = (half(0), half(2));
    let (loss, _) = discriminator_step(&config, &mut state, images, 0);
    let close = |a: Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-5;
    assert!(close((l1 + l2) / 2.0, &loss));
    assert!(close((g1 + g2) / 2.0, &state.d.adam.m));
}

/// What a graph needs: it keeps every number that an update takes from the host but through its inputs.
#[test]
fn an_update_depends_on_its_inputs_and_the_state_s_tensors_alone() {
    let schedule = ["opt.warmup_images=20", "opt.decay=linear", "train.steps=9"];
    let config = tiny(&schedule);
    let run = |elsewhere: bool| {
        let mut state = new(&config);
        for step in 0..3 {
            let updates = [update_discriminator, update_encoder_generator];
            for (update, body) in updates.into_iter().enumerate() {
                let inputs = Inputs::new(&config, &state, images(step), update as u32);
                if elsewhere {
                    (state.step, state.rollbacks) = (7, 1);
                }
                let _ = body(&config, &mut state, &inputs);
                (state.step, state.rollbacks) = (step, 0);
            }
            state.step += 1;
        }
        (weights(&state), state.g.average)
    };
    assert_eq!(run(false), run(true));
}

#[test]
fn updates_over_inputs_in_one_place_are_those_over_inputs_of_their_own() {
    let schedule = ["opt.warmup_images=20", "opt.decay=linear", "train.steps=9"];
    for more in [&[][..], &["health.on_fault=skip", "train.micro_batch=2"]] {
        let run = |graphs: bool| {
            let graphs = format!("train.graphs={graphs}");
            let config = tiny(&[&schedule[..], more, &[&graphs]].concat());
            let mut state = new(&config);
            let mut said = vec![];
            for seed in 0..4 {
                let of_step = [images(3 * seed), images(3 * seed + 1), images(3 * seed + 2)];
                let mut rest = of_step.iter().map(|images| images.rows(0, 4));
                let next = || rest.next().ok_or(());
                let losses = train_step(&config, &mut state, next).unwrap();
                let all = [&losses.d, &losses.g, losses.e.as_ref().unwrap(), &losses.norms];
                said.extend(all.map(Tensor::copy));
                // What the caller holds stays as it was.
                assert_eq!(of_step[0].large, images(3 * seed).large);
            }
            (weights(&state), state.g.average, said)
        };
        assert_eq!(run(true), run(false));
    }
}

#[test]
fn the_same_state_and_images_give_the_same_step() {
    let config = tiny(&[]);
    let run = || {
        let mut state = new(&config);
        for seed in 0..2 {
            let _ = train_step(&config, &mut state, || Ok::<_, ()>(images(seed)));
        }
        weights(&state)
    };
    assert_eq!(run(), run());
}

/// Operators of the reference codes' spectral norm in one forward pass (and its backward) of a
/// network: an iteration, σ and W/σ for each layer.
fn per_forward_operators(params: &Params, backward: bool) -> i64 {
    let one = |norm: &SpectralNorm| {
        let weight = norm.scaled.copy().set_requires_grad(backward);
        let unit = |x: Tensor| &x / x.norm().clamp_min(1e-4);
        let pass = || {
            let matrix = weight.flatten(1, -1);
            let (u, v) = no_grad(|| {
                let v = unit(matrix.tr().mv(&norm.u));
                let u = unit(matrix.mv(&v));
                norm.u.copy().copy_(&u);
                (u, v)
            });
            let scaled = &weight / u.dot(&matrix.mv(&v));
            let loss = scaled.flatten(0, -1).dot(&scaled.detach().flatten(0, -1));
            backward.then(|| Tensor::run_backward(&[loss], &[&weight], false, false))
        };
        // The product that stands for the rest of the network, and the copy of u, do not count.
        Work::of(pass).1.operators - if backward { 4 } else { 2 }
    };
    params.norms().map(|(_, norm)| one(norm)).sum()
}

#[test]
fn shared_spectral_norms_take_less_than_half_of_a_step_s_operators() {
    let config = tiny(&[]);
    let mut state = new(&config);
    let (_, cached) =
        Work::of(|| train_step(&config, &mut state, || Ok::<_, ()>(images(1))).unwrap());
    let pulled = |params: &Params| {
        let layers = params.norms().map(|(_, norm)| norm.scaled.copy()).collect::<Vec<_>>();
        Work::of(|| params.pull_back_norms(&layers)).1.operators
    };
    let shared =
        |params: &mut Params| Work::of(|| params.advance_norms()).1.operators + pulled(params);
    let ours = 2 * shared(&mut state.d.params) + shared(&mut state.g.live.params);
    let (g, d) = (&state.g.live.params, &state.d.params);
    // G runs forward three times, once with a graph; D three times, twice with one.
    let theirs = 2 * per_forward_operators(g, false)
        + per_forward_operators(g, true)
        + 2 * per_forward_operators(d, true)
        + per_forward_operators(d, false);
    let whole = cached.operators - ours + theirs;
    let share = cached.operators as f64 / whole as f64;
    assert!(share <= 0.45, "{} of {whole} operators: {share:.2}", cached.operators);
}

#[test]
fn a_whole_step_agrees_with_pytorch() {
    use std::collections::BTreeMap;

    use golden::{close, hashed, sketch};

    use crate::parity::fill;

    #[derive(serde::Deserialize)]
    struct Golden {
        losses: BTreeMap<String, f64>,
        weights: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
    }
    let text = include_str!("../../../../tests/golden/step.json");
    let golden: Golden = serde_json::from_str(text).unwrap();
    let config = tiny(&["f.ch=8", "f.attn_res=8"]);
    for (kind, tolerance) in [(Kind::Double, 1e-10f64), (Kind::Float, 1e-4)] {
        let mut state = TrainState::with_kinds(&config, (kind, Device::Cpu), false);
        let e = state.e.as_mut().unwrap();
        for params in [&mut state.g.live.params, &mut e.live.params, &mut state.d.params] {
            fill(params);
        }
        let draw = |what: &str, update: u32, shape: &[i64]| {
            hashed(&format!("{what}.{update}"), shape).to_kind(kind)
        };
        let mut losses = BTreeMap::new();
        for update in 0..3 {
            let large = (draw("images", update, &[4, 3, 32, 32]) * 2.0).tanh();
            let small = large.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
            let images = Images { large, small };
            let prior = draw("prior", update, &[4, 60]);
            let (noise, none) = (draw("noise", update, &[4, 60]) * 2.0, || prior.narrow(1, 0, 0));
            let (further, augment) = (none(), none());
            let draws = Draws { prior, noise, further, augment };
            let sizes = Inputs::new(&config, &state, images.rows(0, 4), update).sizes;
            let inputs = Inputs { images, draws, sizes };
            if update < 2 {
                let done = update_discriminator(&config, &mut state, &inputs);
                let (loss, _) = done.into_iter().next().unwrap();
                losses.insert(format!("d{update}"), loss);
            } else {
                let done = update_encoder_generator(&config, &mut state, &inputs);
                let names = ["g", "e"].map(str::to_owned).into_iter();
                losses.extend(names.zip(done.into_iter().map(|(loss, _)| loss)));
            }
        }
        for (name, loss) in &losses {
            let what = format!("{kind:?} loss {name}");
            let expected = golden.losses[name];
            close(&what, &[loss.double_value(&[])], &[expected], tolerance.min(1e-5), 0.0);
        }
        let e = state.e.as_ref().unwrap();
        let nets = [("g", &state.g.live.params), ("e", &e.live.params), ("d", &state.d.params)];
        for (net, params) in nets {
            for (name, weight) in params.parameters() {
                if fed_into_batch_norm(net, name) {
                    continue;
                }
                let what = format!("{kind:?} {net} {name}");
                close(&what, &sketch(weight), &golden.weights[net][name], tolerance, 0.0);
            }
        }
    }
}

/// Losses of every step and the weights after the last, in double precision: rounding then flips no
/// ReLU, and what differs is a mistake.
fn ten_steps(config: &Recipe, world: &World) -> (Vec<f64>, Vec<(String, Tensor)>) {
    let kinds = (tch::Kind::Double, Device::Cpu);
    let mut state = TrainState::in_world(config, world, kinds, true);
    let (mut losses, mut seed) = (vec![], 0);
    let rows: Vec<i64> = (world.rank() as i64..8).step_by(world.size()).collect();
    let rows = Tensor::from_slice(&rows);
    for _ in 0..10 {
        let next = || {
            seed += 1;
            let key = Key { seed, purpose: Purpose::Evaluate, step: 0, update: 0 };
            let large = key.normal(0..8, 3 * 32 * 32, Device::Cpu).to_kind(kinds.0);
            let large = large.view([8, 3, 32, 32]).tanh().index_select(0, &rows);
            let small = large.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
            Ok::<_, ()>(Images { large, small })
        };
        let step = train_step(config, &mut state, next).unwrap();
        let all = [&step.d, &step.g, step.e.as_ref().unwrap()];
        losses.extend(all.map(|loss| loss.double_value(&[])));
    }
    let e = state.e.as_ref().unwrap();
    let nets = [("g", &state.g.live.params), ("e", &e.live.params), ("d", &state.d.params)];
    let named = nets.into_iter().flat_map(|(net, params)| {
        let all = params.state().into_iter();
        all.map(move |(name, value)| (format!("{net} {name}"), value.copy()))
    });
    (losses, named.collect())
}

#[test]
fn ranks_compute_in_double_precision_what_one_process_does() {
    let again = ["train.micro_batch=4", "g.recompute=true", "f.recompute=true", "e.recompute=true"];
    for (more, size) in [(&["train.micro_batch=0"][..], 2), (&again[..1], 4), (&again, 2)] {
        let config = tiny(&[&["train.batch=8"], more].concat());
        let (losses, weights) = ten_steps(&config, &World::alone());
        let ranks = Place::threads(size).into_iter().map(|place| {
            let minute = Duration::from_secs(60);
            let limits = Limits { join: minute, timeout: minute, silence: minute };
            std::thread::spawn(move || {
                let world =
                    World::join(place, Device::Cpu, limits, vec![], &Stop::default()).unwrap();
                let done = ten_steps(&config, &world);
                world.conclude(Ok::<_, dist::Error>(done)).unwrap()
            })
        });
        for rank in ranks.collect::<Vec<_>>() {
            let (their_losses, their_weights) = rank.join().unwrap();
            for (a, b) in losses.iter().zip(&their_losses) {
                assert!((a - b).abs() <= 1e-10 * a.abs().max(1.0), "{size} ranks: {a} {b}");
            }
            for ((name, a), (_, b)) in weights.iter().zip(&their_weights) {
                // The stored mean follows the bias before it.
                let noise = name.ends_with("bias") && name != "g last.bias";
                if name.starts_with("g ") && (noise || name.ends_with(".mean")) {
                    continue;
                }
                let off = ((a - b).norm() / a.norm().clamp_min(1e-2)).double_value(&[]);
                assert!(off <= 1e-10, "{size} ranks: {name} is off by {off:e}");
            }
        }
    }
}

/// A bias that feeds a batch norm has no true gradient: Adam steps on rounding noise.
fn fed_into_batch_norm(net: &str, name: &str) -> bool {
    net == "g" && name.ends_with("bias") && name != "last.bias"
}
