//! The method on a plane: eight Gaussians on a ring, every network an MLP. Losses, routing, spectral
//! norms and Adam are those of the real model; a mistake in any of them shows here within seconds.

use tch::{Device, Kind, Tensor, no_grad};

use crate::loss;
use crate::networks::{Code, Scores};
use crate::nn::{Fill, Gradients, Linear, Mlp, MlpConfig, Params, Scope, Weights};
use crate::optim::{Adam, AdamConfig};
use crate::random::{Key, Purpose};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
const BATCH: i64 = 128;
const MODES: i64 = 8;
const RADIUS: f64 = 2.0;
const SPREAD: f64 = 0.1;
const SIZE: MlpConfig = MlpConfig { layers: 4, width: 64 };

/// An MLP with a linear end.
struct Net(Mlp, Linear);

impl Net {
    fn new(s: &Scope<'_>, output: i64) -> Self {
        let end = Linear::new(&s.sub("end"), SIZE.width, output, None);
        Self(Mlp::encoding(&s.sub("mlp"), 2, SIZE), end)
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.1.forward(&self.0.forward(x))
    }
}

/// F, H, J and the projections, on the plane.
struct Critic {
    parts: [Mlp; 3],
    thetas: [Linear; 3],
}

impl Critic {
    fn new(s: &Scope<'_>) -> Self {
        let part = |name, input| Mlp::discriminating(&s.sub(name), input, SIZE, 1e-4);
        let theta = |name| Linear::new(&s.sub(name), SIZE.width, 1, Some(1e-4));
        Self {
            parts: [part("f", 2), part("h", 2), part("j", 2 * SIZE.width)],
            thetas: [theta("theta_xz"), theta("theta_x"), theta("theta_z")],
        }
    }

    fn scores(&self, x: &Tensor, z: &Tensor) -> Scores {
        let (f, h) = (self.parts[0].forward(x), self.parts[1].forward(z));
        let j = self.parts[2].forward(&Tensor::cat(&[&f, &h], 1));
        let score = |theta: usize, x: &Tensor| Some(self.thetas[theta].forward(x).squeeze_dim(1));
        Scores { sxz: score(0, &j), sx: score(1, &f), sz: score(2, &h) }
    }
}

fn normal(purpose: Purpose, step: u64, update: u32) -> Tensor {
    Key { seed: 1, purpose, step, update }.normal(0..BATCH, 2, Device::Cpu)
}

/// Modes (N), then points (N, 2) around them.
fn ring(step: u64, update: u32) -> (Tensor, Tensor) {
    let mode = Tensor::arange(BATCH, (Kind::Int64, Device::Cpu)).remainder(MODES);
    let noise = normal(Purpose::Evaluate, step, update) * SPREAD;
    (mode.shallow_clone(), centres().index_select(0, &mode) + noise)
}

fn centres() -> Tensor {
    let angle = Tensor::arange(MODES, FLOAT) * (std::f64::consts::TAU / MODES as f64);
    Tensor::stack(&[angle.cos(), angle.sin()], 1) * RADIUS
}

/// The nearest mode of each point, and the distance to it.
fn nearest(x: &Tensor) -> (Tensor, Tensor) {
    let off = (x.unsqueeze(1) - centres()).square().sum_dim_intlist(
        [2i64].as_slice(),
        false,
        Kind::Float,
    );
    let (distance, mode) = off.sqrt().min_dim(1, false);
    (mode, distance)
}

fn encode(e: &Net, x: &Tensor, step: u64, update: u32) -> Tensor {
    let out = e.forward(x);
    let halves = out.chunk(2, 1);
    let code = Code::Gaussian { mean: halves[0].shallow_clone(), stdev: halves[1].softplus() };
    code.sample(&normal(Purpose::Posterior, step, update))
}

#[test]
fn the_generator_finds_every_mode_and_the_encoder_inverts_it() {
    tch::set_num_threads(1);
    let fill = |network| Fill::Seed { seed: 1, network };
    let (g, g_params) = Params::build(FLOAT, fill(0), |s| Net::new(s, 2));
    let (e, e_params) = Params::build(FLOAT, fill(1), |s| Net::new(s, 4));
    let (d, mut d_params) = Params::build(FLOAT, fill(2), Critic::new);
    let adam = |rate, params: &Params| {
        Adam::new(AdamConfig { rate, beta1: 0.0, beta2: 0.99, eps: 1e-8 }, params.flat())
    };
    let (mut of_g, mut of_e) = (adam(5e-4, &g_params), adam(5e-4, &e_params));
    let mut of_d = adam(2e-3, &d_params);
    for step in 0..3000 {
        for update in 0..3 {
            let ((_, x), z) = (ring(step, update), normal(Purpose::Prior, step, update));
            if update < 2 {
                d_params.use_weights(Weights::Train);
                let (code, fake) = no_grad(|| (encode(&e, &x, step, update), g.forward(&z)));
                let loss = loss::discriminator(&d.scores(&x, &code), &d.scores(&fake, &z));
                let gradient = d_params.gradient(&loss);
                of_d.step(d_params.flat(), &gradient);
                d_params.advance_norms();
            } else {
                d_params.use_weights(Weights::Freeze);
                g_params.use_weights(Weights::Train);
                e_params.use_weights(Weights::Train);
                let real = d.scores(&x, &encode(&e, &x, step, update));
                let fake = d.scores(&g.forward(&z), &z);
                let loss = loss::encoder(&real) + loss::generator(&fake);
                let mut gradients = Gradients::of([&g_params, &e_params]);
                gradients.add(&loss, true);
                let gradients = gradients.finish();
                of_g.step(g_params.flat(), &gradients[0]);
                of_e.step(e_params.flat(), &gradients[1]);
            }
        }
    }
    g_params.use_weights(Weights::Freeze);
    e_params.use_weights(Weights::Freeze);
    let (mut counts, mut near, mut inverted) = (vec![0i64; MODES as usize], 0.0, 0.0);
    const ROUNDS: u64 = 16;
    for round in 0..ROUNDS {
        let (mode, distance) = nearest(&g.forward(&normal(Purpose::Sample, round, 0)));
        near += distance.lt(0.5).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        for m in Vec::<i64>::try_from(mode).unwrap() {
            counts[m as usize] += 1;
        }
        let (truth, x) = ring(u64::MAX - round, 0);
        let mean = e.forward(&x).narrow(1, 0, 2);
        let (mode, _) = nearest(&g.forward(&mean));
        let same = mode.eq_tensor(&truth).to_kind(Kind::Double).mean(Kind::Double);
        inverted += same.double_value(&[]);
    }
    let (near, inverted) = (near / ROUNDS as f64, inverted / ROUNDS as f64);
    let report = format!("{counts:?}, {near:.2} near a mode, {inverted:.2} inverted");
    let total = ROUNDS as i64 * BATCH;
    assert!(counts.iter().all(|count| *count > total / 50), "{report}");
    assert!(near > 0.8 && inverted > 0.8, "{report}");
}
