use bigbigan_model::step::train_step;

use super::*;
use crate::config::Origin;

const KINDS: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Smooth pictures, each a plane wave of its own in each channel.
fn pictures(seed: u64, rows: i64) -> Images {
    let key = Key { seed, purpose: Purpose::Evaluate, step: 9, update: 0 };
    let draws = key.normal(0..rows, 12, Device::Cpu).view([rows, 3, 4, 1, 1]);
    let of = |i| draws.select(2, i);
    let grid = Tensor::linspace(-1.0, 1.0, 32, KINDS);
    let waves = of(0) * grid.view([32, 1]) * 2.0 + of(1) * grid.view([1, 32]) * 2.0 + of(2);
    let large = (waves.sin() + of(3) * 0.3).tanh();
    let small = large.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
    Images { large, small }
}

fn config(seed: u64) -> Config {
    let keys = ["g.ch=4", "f.ch=4", "h.width=16", "j.width=16", "e.depth=8", "e.mlp_width=16"];
    let mut all: Vec<String> = keys.iter().map(|s| (*s).to_owned()).collect();
    all.extend(["train.batch=16".into(), format!("train.seed={seed}")]);
    Config::resolve(&Origin::Preset("demo"), &all).unwrap()
}

const HEALTHY: Signals = Signals {
    saturation_real: 0.6,
    saturation_fake: 0.6,
    score_common: Some(0.2),
    score_gap: Some(2.0),
    pixel_spread: 0.8,
    feature_spread: 0.5,
    nearest: 0.6,
    roughness: 1.4,
    latent_spread: Some(0.4),
    reconstruction: Some(0.6),
    sigma_g: 1.1,
    sigma_d: 1.5,
    grad_g: 12.0,
    grad_e: Some(2.0),
    grad_d: 15.0,
};

/// Names of the alarms of a run of `signals`, one line every ten steps, and when they came.
fn alarms(signals: impl IntoIterator<Item = Signals>) -> Vec<(&'static str, u64)> {
    let mut judge = Judge::default();
    let steps = (1..).map(|line| 10 * line);
    let all = steps.zip(signals).flat_map(|(step, s)| judge.judge(step, &s));
    all.map(|alarm| (alarm.incident, alarm.step)).collect()
}

#[test]
fn a_generator_of_one_image_of_two_or_of_noise_is_noticed_within_200_steps() {
    tch::manual_seed(4);
    let real = pictures(1, 64).small;
    let modes = |count: i64| {
        let which = Tensor::arange(64, (Kind::Int64, Device::Cpu)).remainder(count);
        pictures(2, count).small.index_select(0, &which)
    };
    let noise = Tensor::rand([64, 3, 16, 16], KINDS) * 2.0 - 1.0;
    for (fake, name) in
        [(modes(1), "samples_alike"), (modes(2), "samples_alike"), (noise, "samples_noise")]
    {
        let over = |of: fn(&Tensor) -> Tensor| (of(&fake) / of(&real)).double_value(&[]);
        let (pixel_spread, nearest) = (over(spread), over(nearest));
        let collapsed = Signals { pixel_spread, nearest, roughness: over(roughness), ..HEALTHY };
        let found = alarms(std::iter::repeat_n(HEALTHY, 50).chain([collapsed; 20]));
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_eq!(found[0].0, name);
        assert!(found[0].1 <= 500 + 200, "{found:?}");
    }
    let sound = Signals { nearest: 1.0, roughness: 1.0, pixel_spread: 1.0, ..HEALTHY };
    assert_eq!(alarms([sound; 50]), []);
}

#[test]
fn every_other_sign_is_noticed_under_its_name() {
    for (name, sick) in [
        ("discriminator_won", Signals { saturation_real: 1.0, saturation_fake: 1.0, ..HEALTHY }),
        ("codes_alike", Signals { latent_spread: Some(0.01), ..HEALTHY }),
        ("sigma_grew", Signals { sigma_d: 4.0, ..HEALTHY }),
        ("gradient_grew", Signals { grad_e: Some(200.0), ..HEALTHY }),
    ] {
        let found = alarms(std::iter::repeat_n(HEALTHY, 20).chain([sick; 20]));
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_eq!(found[0], (name, 310));
    }
}

#[test]
fn an_alarm_needs_a_sign_that_lasts_and_comes_again_only_after_recovery() {
    let sick = Signals { nearest: 0.05, ..HEALTHY };
    let between = Signals { nearest: 0.15, ..HEALTHY };
    let flicker = (0..100).map(|i| if i % 5 == 0 { HEALTHY } else { sick });
    assert_eq!(alarms(flicker), []);
    let lines = |parts: &[(Signals, usize)]| {
        parts.iter().flat_map(|(s, count)| std::iter::repeat_n(*s, *count)).collect::<Vec<_>>()
    };
    assert_eq!(alarms(lines(&[(sick, 20), (between, 20), (sick, 20)])).len(), 1);
    assert_eq!(alarms(lines(&[(sick, 20), (HEALTHY, 20), (sick, 20)])).len(), 2);
}

#[test]
fn healthy_seeds_raise_no_alarm() {
    let long = std::env::var_os("BIGBIGAN_TESTS").is_some_and(|counts| counts == "long");
    let (seeds, steps) = if long { (20, 400) } else { (1, 120) };
    for seed in 0..seeds {
        let config = config(seed);
        let mut state = TrainState::new(&config.recipe(), Device::Cpu, true);
        let images = pictures(1000 + seed, 16);
        let probe = Probe::of_images(&config, images, Device::Cpu);
        let (mut judge, mut batch) = (Judge::default(), 0);
        for step in 1..=steps {
            let _ = train_step(&config.recipe(), &mut state, || {
                batch += 1;
                Ok::<_, ()>(pictures(2000 + batch, 16))
            });
            if step % 10 == 0 {
                let signals = probe.measure(&state).unwrap();
                assert_eq!(judge.judge(step, &signals), [], "seed {seed}: {signals:?}");
            }
        }
    }
}

/// On the same pairs and without D's own step, G's and E's losses are the scores that D gives.
#[test]
fn common_mode_and_gap_are_those_of_the_losses() {
    for more in [&[][..], &["loss.sx=false", "loss.sz=false"], &["loss.sxz=false", "loss.sz=false"]]
    {
        let more: Vec<_> = more.iter().map(|s| (*s).to_owned()).collect();
        let config = config(5).with(&more).unwrap();
        let state = TrainState::new(&config.recipe(), Device::Cpu, true);
        let probe = Probe::of_images(&config, pictures(2, 16), Device::Cpu);
        let signals = probe.measure(&state).unwrap();
        let (common, gap) = (signals.score_common.unwrap(), signals.score_gap.unwrap());
        let of = |image: &Tensor, latent: Option<Tensor>| -> f64 {
            let pair = bigbigan_model::networks::Pair { image: image.shallow_clone(), latent };
            -loss::generator(&state.d.net.scores(&pair)).double_value(&[])
        };
        let (real, fake) = no_grad(|| {
            let code = state.e.as_ref().map(|e| {
                e.live
                    .net
                    .forward(&probe.images.large, Statistics::Repeat)
                    .code
                    .sample(&probe.noise)
            });
            let latent = state.e.as_ref().map(|_| probe.z.shallow_clone());
            (of(&probe.images.small, code), of(&probe.samples(&state), latent))
        });
        assert!((common - (real + fake) / 2.0).abs() < 1e-4, "{common}: {real}, {fake}");
        assert!((gap - (real - fake)).abs() < 1e-4, "{gap}: {real}, {fake}");
    }
}

#[test]
fn measuring_changes_nothing() {
    let config = config(3);
    let mut state = TrainState::new(&config.recipe(), Device::Cpu, true);
    let _ = train_step(&config.recipe(), &mut state, || Ok::<_, ()>(pictures(1, 16)));
    let all = |state: &TrainState| -> Vec<Tensor> {
        let e = state.e.as_ref().unwrap();
        let nets = [&state.g.live.params, &e.live.params, &state.d.params];
        nets.iter().flat_map(|p| p.state()).map(|(_, t)| t.copy()).collect()
    };
    let before = all(&state);
    let probe = Probe::of_images(&config, pictures(2, 16), Device::Cpu);
    let signals = probe.measure(&state).unwrap();
    assert_eq!(signals, probe.measure(&state).unwrap());
    assert_eq!(before, all(&state));
    // The first moment is the gradient, as beta1 is 0.
    let norm = state.d.adam.m.norm().double_value(&[]);
    assert!((signals.grad_d - norm).abs() < 1e-6 * norm && norm > 0.0);
}
