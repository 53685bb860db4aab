//! Losses past the paper, and what they leave alone.

use super::*;

const FURTHER: [&str; 2] = ["beyond.contrast=1", "beyond.codes=0.5"];

#[test]
fn a_further_loss_teaches_e_and_its_own_network_and_leaves_g_and_d_the_paper_s() {
    let step = |overrides: &[&str]| {
        let config = tiny(overrides);
        let mut state = new(&config);
        let own = state.further.as_ref().map(|further| further.params.flat().copy());
        let mut number = 0;
        let next = || {
            number += 1;
            Ok::<_, ()>(images(number))
        };
        let losses = train_step(&config, &mut state, next).unwrap();
        let moved = own.map(|own| own != *state.further.as_ref().unwrap().params.flat());
        let e = &state.e.as_ref().unwrap().live.params;
        let stored: Vec<_> = e.buffers().into_iter().map(|(_, t)| t.copy()).collect();
        (losses, weights(&state), moved, stored)
    };
    let (paper, before, none, of_x) = step(&[]);
    assert!(paper.further.is_none() && none.is_none());
    let (further, after, moved, stored) = step(&FURTHER);
    assert_eq!((&paper.g, &paper.e, &paper.d), (&further.g, &further.e, &further.d));
    assert_eq!((&before[0], &before[2]), (&after[0], &after[2]), "G and D");
    assert_ne!(before[1], after[1], "E");
    assert_eq!(moved, Some(true));
    assert!(!stored.is_empty());
    assert_eq!(stored, of_x, "statistics are those of x");
    // One of seven others; a code of zeros is off by the variance of z, 1.
    let loss = further.further.unwrap().double_value(&[]);
    let blind = 7f64.ln() + 0.5;
    assert!(loss > 0.3 * blind && loss < 3.0 * blind, "{loss}, {blind} blindly");
    assert_eq!((further.norms.size(), paper.norms.size()), (vec![4], vec![3]));
    assert!(further.norms.min().double_value(&[]) > 0.0);
}

#[test]
fn a_fault_of_the_further_loss_is_named_and_stops_all_that_share_its_backward_pass() {
    let config = tiny(&[&FURTHER[..], &["health.on_fault=skip"]].concat());
    let mut state = new(&config);
    let spoiled = &state.further.as_ref().unwrap().params;
    let _ = no_grad(|| spoiled.flat().shallow_clone().fill_(f64::INFINITY));
    let before = weights(&state);
    let losses = train_step(&config, &mut state, || Ok::<_, ()>(images(1))).unwrap();
    let faults = Vec::<f32>::try_from(&losses.faults).unwrap();
    assert_eq!(faulty(&faults), Some("further"), "{faults:?}");
    let after = weights(&state);
    assert_eq!(before[..2], after[..2], "G and E");
    assert_ne!(before[2], after[2], "D");
    for (faults, named) in [
        (vec![0.0, 0.0, 0.0], None),
        (vec![1.0], Some("d")),
        (vec![0.0, 1.0, 1.0], Some("g")),
        (vec![0.0, 0.0, 1.0, 0.0], Some("e")),
        (vec![1.0, 1.0, 1.0, 1.0], Some("d")),
    ] {
        assert_eq!(faulty(&faults), named);
    }
}

/// E and the projections see a pass as they would alone: a batch of two passes has the mean of their losses.
#[test]
fn a_further_loss_is_that_of_each_pass_and_its_views_are_keyed_by_row() {
    let (config, of_passes) =
        (tiny(&FURTHER), tiny(&[&FURTHER[..], &["train.micro_batch=2"]].concat()));
    let losses = |config: &Recipe| {
        let mut state = new(config);
        let done = encoder_generator_step(config, &mut state, images(1));
        done.into_iter().map(|(loss, _)| loss.double_value(&[])).collect::<Vec<_>>()
    };
    let both = losses(&of_passes);
    let state = new(&config);
    let e = state.e.as_ref().unwrap();
    let draws = Draws::new(&config, &state, config.train.d_steps);
    let of_rows = |first| {
        let (images, draws) = (images(1).rows(first, 2), draws.rows(first, 2));
        let generated = state.g.live.net.forward(&draws.prior, Statistics::Batch);
        encoder_losses(&state, e, &images, &generated, &draws)[1].double_value(&[])
    };
    let mean = 0.5 * (of_rows(0) + of_rows(2));
    assert!((both[2] - mean).abs() < 1e-5, "{both:?}, {mean}");
    assert_eq!(Draws::new(&config, &state, 0).further.size(), [4, 0], "updates of D draw no views");
}

#[test]
fn reconstruction_in_d_s_features_teaches_e_and_g_and_leaves_d_alone() {
    let step = |overrides: &[&str]| {
        let config = tiny(overrides);
        let mut state = new(&config);
        let done = encoder_generator_step(&config, &mut state, images(1));
        (done.into_iter().map(|(loss, _)| loss).collect::<Vec<_>>(), weights(&state))
    };
    let ((paper, before), (taught, after)) = (step(&[]), step(&["beyond.reconstruct=2"]));
    assert_eq!(paper[..2], taught[..2], "the paper's losses");
    assert!(before[0] != after[0] && before[1] != after[1], "G and E learn by it");
    assert_eq!(before[2], after[2], "D");
    let (config, images) = (tiny(&[]), images(1));
    let state = new(&config);
    let e = &state.e.as_ref().unwrap().live.net;
    let mean = e.forward(&normalised(&images.large), Statistics::Batch).code.mean().copy();
    let f = |x: &Tensor| state.d.net.image_features(x);
    let again = f(&state.g.live.net.forward(&mean, Statistics::Repeat));
    let f = f(&normalised(&images.small));
    let expected: Tensor = (again - &f).norm().square() / f.norm().square() * 2.0;
    let off = (&taught[2] - expected).abs().double_value(&[]);
    assert!(off < 1e-5, "{off}");
}

const AUGMENTED: &str = "beyond.augment=colour,translation,cutout";

/// Judged by the losses of pairs that are changed by hand.
#[test]
fn all_that_d_sees_is_augmented_in_its_own_updates_and_in_those_of_g_and_e() {
    let config = tiny(&[AUGMENTED]);
    let state = new(&config);
    let x = images(1);
    let draws = Draws::new(&config, &state, 0);
    let numbers = &draws.augment;
    assert_eq!(numbers.size(), [x.len(), 14]);
    let change = |images: &Tensor, first| {
        let augment = state.augment.as_ref().unwrap();
        augment.apply(images, &numbers.narrow(1, first, 7))
    };
    let real = change(&normalised(&x.small), 0);
    let generated = state.g.live.net.forward(&draws.prior, Statistics::Batch);
    let fake = change(&generated, 7);
    assert_ne!(real, normalised(&x.small));
    let e = state.e.as_ref().unwrap();
    let code = e.live.net.forward(&normalised(&x.large), Statistics::Batch).code;
    let score = |image: &Tensor, z: &Tensor| {
        state.d.net.scores(&Pair { image: image.shallow_clone(), latent: Some(z.shallow_clone()) })
    };
    let (of_e, of_g) = (score(&real, &code.sample(&draws.noise)), score(&fake, &draws.prior));
    let near = |found: &Tensor, expected: &Tensor, what: &str| {
        let off = (found - expected).abs().double_value(&[]);
        assert!(off < 1e-5, "{what}: off by {off}");
    };
    let (found, _) = discriminator_step(&config, &mut new(&config), images(1), 0);
    near(&found, &loss::discriminator(&of_e, &of_g), "D");
    near(&generator_loss(&state, &generated, &draws), &loss::generator(&of_g), "G");
    let found = encoder_losses(&state, e, &x, &generated, &draws);
    near(&found[0], &loss::encoder(&of_e), "E");
    // Nothing else of a step depends on it.
    let plain = Draws::new(&tiny(&[]), &new(&tiny(&[])), 0);
    assert_eq!((plain.prior, plain.noise), (draws.prior, draws.noise));
    assert_eq!(plain.augment.size(), [x.len(), 0]);
}
