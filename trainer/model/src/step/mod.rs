//! One training step: `d_steps` updates of D, then one joint update of G and E.
//!
//! Gradients flow as the paper says: D's update sees x̂ = G(z) and ẑ = E(x) as constants; E learns
//! through s_z(ẑ) and s_xz(x, ẑ), G through s_x(x̂) and s_xz(x̂, z), with D's weights constant.
//!
//! # Source
//! Paper §2 and App. A.

use dist::World;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::context::{CudnnBenchmark, allow_tf32, autocast, use_deterministic_algorithms};
use torch_ext::graph::Graph;
use torch_ext::must;

use crate::config::{Precision, Recipe};
use crate::images::{Images, normalised};
use crate::loss;
use crate::networks::{Encoded, Encoder, Pair, Seen, Sight};
use crate::nn::{Gradients, Params, Statistics, Weights};
use crate::optim::StepSizes;
use crate::presets::Problems;
use crate::random::{Key, Prior, Purpose};
use crate::state::{
    Averaged, Done, PendingDiscriminator, Replayed, TrainState, Update, not_finite,
};

/// What a step says of itself; still on the device.
#[derive(Debug)]
pub struct Losses {
    /// L_D of the last update of D.
    pub d: Tensor,
    /// G's part of L_EG.
    pub g: Tensor,
    /// E's part of L_EG; absent without an encoder.
    pub e: Option<Tensor>,
    /// The further loss that E is given beside it; absent without one.
    pub further: Option<Tensor>,
    /// ‖gradient‖₂ of the last updates, for each of [`NETWORKS`] there is, (2 to 4).
    pub norms: Tensor,
    /// 1 where an update of the step met a loss, gradient or weight that is not finite, else 0; in
    /// the same order.
    pub faults: Tensor,
}

/// The networks as [`Losses`] orders them.
pub const NETWORKS: [&str; 4] = ["d", "g", "e", "further"];

/// The network to name for the faults of a step, those of [`Losses::faults`]: the first that met one; but what a further
/// loss spoils it spoils in G and E as well, whose backward pass it shares.
#[must_use]
pub fn faulty(faults: &[f32]) -> Option<&'static str> {
    let mut named = NETWORKS.into_iter().zip(faults).filter(|(_, fault)| **fault != 0.0);
    let first = named.next()?.0;
    let last = named.next_back().map_or(first, |(last, _)| last);
    Some(if first != "d" && last == "further" { last } else { first })
}

/// Latents and encoder noise of one update, each (rows, Z), for rows of the global batch; what a further loss draws,
/// (rows, as many as it wants); and how D's images are changed, (rows, twice as many as that wants: x, then G(z)).
#[derive(Debug)]
struct Draws {
    prior: Tensor,
    noise: Tensor,
    further: Tensor,
    augment: Tensor,
}

impl Draws {
    /// For update number `update` of the coming step, this rank's rows of the batch.
    fn new(config: &Recipe, state: &TrainState, update: u32) -> Self {
        let (kind, device) = state.d.params.kinds();
        // After a rollback the step numbers come again, and the draws must not.
        let seed = config.train.seed ^ (state.rollbacks << 48);
        let key = |purpose| Key { seed, purpose, step: state.step, update };
        let (z, batch) = (config.latent, config.train.batch);
        let world = state.d.params.world();
        // As the sampler deals images out.
        let rows = || (world.rank() as i64..batch).step_by(world.size());
        let prior = key(Purpose::Prior).latents(z.prior, rows(), z.dim, device);
        let noise = key(Purpose::Posterior).normal(rows(), z.dim, device);
        let prior = prior.to_kind(kind);
        let uniform = |purpose, wanted| match wanted {
            0 => prior.narrow(1, 0, 0),
            wanted => key(purpose).latents(Prior::Uniform, rows(), wanted, device).to_kind(kind),
        };
        // Updates of D draw no views.
        let further = state.further.as_ref().filter(|_| update == config.train.d_steps);
        let further = uniform(Purpose::Views, further.map_or(0, |further| further.net.uniforms()));
        let augment = state.augment.as_ref().map_or(0, |augment| 2 * augment.uniforms());
        let augment = uniform(Purpose::Augment, augment);
        Self { prior, noise: noise.to_kind(kind), further, augment }
    }

    fn rows(&self, first: i64, rows: i64) -> Self {
        let Self { prior, noise, further, augment } = self;
        let [prior, noise, further, augment] =
            [prior, noise, further, augment].map(|all| all.narrow(0, first, rows));
        Self { prior, noise, further, augment }
    }

    /// How D's images are changed: x's, and G's.
    fn changes(&self) -> [Tensor; 2] {
        let each = self.augment.size()[1] / 2;
        [0, each].map(|first| self.augment.narrow(1, first, each))
    }

    /// x's above G's.
    fn changes_of_pairs(&self) -> Tensor {
        match self.augment.size()[1] {
            0 => self.augment.shallow_clone(),
            _ => Tensor::cat(&self.changes(), 0),
        }
    }
}

/// All that an update reads besides the state's tensors, on the device.
#[derive(Debug)]
struct Inputs {
    images: Images,
    draws: Draws,
    sizes: StepSizes,
}

impl Inputs {
    /// For update number `update` of the coming step.
    fn new(config: &Recipe, state: &TrainState, images: Images, update: u32) -> Self {
        let decay = config.average().decay_at(state.step);
        let kinds = state.d.params.kinds();
        let sizes = StepSizes::new(config.rate_factor(state.step), decay, kinds);
        Self { images, draws: Draws::new(config, state, update), sizes }
    }

    fn tensors(&self) -> [&Tensor; 8] {
        let Self { images, draws, sizes } = self;
        let Images { large, small } = images;
        let Draws { prior, noise, further, augment } = draws;
        [large, small, prior, noise, further, augment, &sizes.factor, &sizes.weight]
    }

    /// These tensors as inputs, in the order of [`Inputs::tensors`].
    fn of(tensors: &[Tensor; 8]) -> Self {
        let [large, small, prior, noise, further, augment, factor, weight] =
            tensors.each_ref().map(Tensor::shallow_clone);
        let (images, draws) = (Images { large, small }, Draws { prior, noise, further, augment });
        Self { images, draws, sizes: StepSizes { factor, weight } }
    }
}

/// Updates of a kind before it is recorded: libraries set themselves up and choose algorithms in the first.
const PLAIN_UPDATES: u64 = 2;

/// Makes an update by `body`. With `train.graphs`, its inputs are put in one place, number `which` of
/// `state.replays`, and on a CUDA device it is made by a graph from the third time on.
fn update_by(
    which: usize,
    config: &Recipe,
    state: &mut TrainState,
    inputs: Inputs,
    body: fn(&Recipe, &mut TrainState, &Inputs) -> Vec<Done>,
) -> Vec<Done> {
    let _trials = CudnnBenchmark::allow(chooses_by_trial(config));
    if !config.train.graphs {
        return body(config, state, &inputs);
    }
    let new = || Replayed::new(inputs.tensors().map(Tensor::copy));
    let mut replayed = state.replays[which].take().unwrap_or_else(new);
    for (place, value) in replayed.inputs.iter().zip(inputs.tensors()) {
        place.shallow_clone().copy_(value);
    }
    let inputs = Inputs::of(&replayed.inputs);
    if let (Device::Cuda(index), PLAIN_UPDATES) = (inputs.sizes.factor.device(), replayed.updates) {
        let others = std::mem::take(&mut state.replays);
        let beside = others.iter().flatten().find_map(|other| other.graph.as_ref());
        let body = || body(config, state, &inputs);
        let made = Graph::record(index, beside.map(|(graph, _)| graph), body);
        let refuse = |reason| panic!("CUDA records no update ({reason}); say train.graphs=false");
        replayed.graph = Some(made.unwrap_or_else(refuse));
        state.replays = others;
    }
    replayed.updates += 1;
    let done = match &replayed.graph {
        Some((graph, done)) => {
            must(graph.replay());
            // The next one writes to the same place.
            done.iter().map(|(loss, update)| (loss.copy(), update.copy())).collect()
        }
        None => body(config, state, &inputs),
    };
    state.replays[which] = Some(replayed);
    done
}

/// Whether cuDNN chooses the algorithm of a convolution by trying all of them once: where every pass has the
/// same shapes and other bits each time are no fault.
fn chooses_by_trial(config: &Recipe) -> bool {
    !config.train.deterministic && config.train.batch % config.micro_batch() == 0
}

/// Sets the process's switches as steps need them: before the first.
///
/// # Errors
/// [`Problems`] where `train.deterministic` lacks what cuBLAS wants for it.
pub fn prepare(config: &Recipe, device: Device) -> Result<(), Problems> {
    const CUBLAS: &str = "CUBLAS_WORKSPACE_CONFIG";
    let wanted = config.train.deterministic;
    let fit = |value: String| [":4096:8", ":16:8"].contains(&value.as_str());
    if wanted && device.is_cuda() && !std::env::var(CUBLAS).is_ok_and(fit) {
        let problem = format!("train.deterministic on CUDA: set the variable {CUBLAS}=:4096:8");
        return Err(Problems(vec![problem]));
    }
    use_deterministic_algorithms(wanted);
    allow_tf32(config.train.precision == Precision::Tf32);
    Ok(())
}

/// One whole step. `next` gives a fresh batch for every update: this rank's part of `train.batch`
/// images. Losses, gradients and batch statistics are of the whole batch.
///
/// # Errors
/// Whatever `next` reports; the state is then as after the last update, and the next call goes on there.
///
/// # Panics
/// If the configuration is not a checked one; with `train.graphs`, if CUDA does not record an update.
pub fn train_step<E>(
    config: &Recipe,
    state: &mut TrainState,
    mut next: impl FnMut() -> Result<Images, E>,
) -> Result<Losses, E> {
    while state.pending_d.as_ref().map_or(0, |d| d.updates) < config.train.d_steps {
        let images = next()?;
        let updates = state.pending_d.as_ref().map_or(0, |d| d.updates);
        let (loss, mut update) = discriminator_step(config, state, images, updates);
        if let Some(earlier) = &state.pending_d {
            update.fault = update.fault.maximum(&earlier.update.fault);
        }
        state.pending_d = Some(PendingDiscriminator { updates: updates + 1, loss, update });
    }
    let joint = encoder_generator_step(config, state, next()?);
    state.step += 1;
    let d = state.pending_d.take().expect("a checked config has d_steps > 0");
    let d = (d.loss, d.update);
    let updates = [&d].into_iter().chain(&joint);
    let (norms, faults): (Vec<_>, Vec<_>) = updates.map(|(_, u)| (&u.norm, &u.fault)).unzip();
    let (norms, faults) = (Tensor::stack(&norms, 0), Tensor::stack(&faults, 0));
    let mut losses = joint.into_iter().map(|(loss, _)| loss);
    let g = losses.next().expect("an update of G");
    Ok(Losses { d: d.0, g, e: losses.next(), further: losses.next(), norms, faults })
}

/// One update of D, number `update` of the step. G and E are only read (their batch statistics
/// move). Returns L_D.
///
/// # Panics
/// As [`train_step`].
pub fn discriminator_step(
    config: &Recipe,
    state: &mut TrainState,
    images: Images,
    update: u32,
) -> Done {
    let inputs = Inputs::new(config, state, images, update);
    let done = update_by(0, config, state, inputs, update_discriminator);
    done.into_iter().next().expect("an update of D")
}

fn update_discriminator(config: &Recipe, state: &mut TrainState, inputs: &Inputs) -> Vec<Done> {
    let Inputs { images, draws, sizes } = inputs;
    let statistics = skips(config).then(|| Saved::of(state));
    state.d.params.use_weights(Weights::Train);
    let mut sum = Sum::of([&state.d.params]);
    for (first, rows) in micro_batches(config, state, images) {
        let last = first + rows == images.len();
        let (images, draws) = (images.rows(first, rows), draws.rows(first, rows));
        let part = autocast(bf16(config), || {
            let pairs = no_grad(|| joint_pairs(state, &images, &draws));
            let scores = state.d.net.scores(&pairs);
            loss::discriminator(&scores.rows(0, rows), &scores.rows(rows, rows))
        }) * share(config, rows);
        sum.add(&[part], last);
    }
    let (mut losses, gradients) = sum.over_ranks(state.d.params.world());
    let loss = losses.swap_remove(0);
    let update = state.d.update(&gradients[0], &loss, &sizes.factor, skips(config));
    if let Some(statistics) = statistics {
        statistics.restore_where(&update.fault);
    }
    vec![(loss, update)]
}

/// (x, E(x)) above (G(z), z), as one batch of 2N: D has no batch norm, so one pass over both gives
/// the same scores as two.
fn joint_pairs(state: &TrainState, images: &Images, draws: &Draws) -> Pair {
    let generated = state.g.live.net.forward(&draws.prior, Statistics::Batch);
    let latent = state.e.as_ref().map(|e| {
        let code = e.live.net.forward(&normalised(&images.large), Statistics::Batch).code;
        Tensor::cat(&[&code.sample(&draws.noise), &draws.prior], 0)
    });
    let image = Tensor::cat(&[&normalised(&images.small), &generated], 0);
    let changes = draws.changes_of_pairs();
    Pair { image: sight(state, &changes).images(&image), latent }
}

/// D, for images that are changed by these numbers.
fn sight<'a>(state: &'a TrainState, changes: &'a Tensor) -> Sight<'a> {
    let augment = state.augment.as_deref().map(|augment| (augment, changes));
    Sight { net: &state.d.net, augment }
}

/// One joint update of G and E, then of their averages. D is only read. Returns G's part of L_EG, E's where there
/// is one, and the further loss where there is one.
///
/// # Panics
/// As [`train_step`].
pub fn encoder_generator_step(
    config: &Recipe,
    state: &mut TrainState,
    images: Images,
) -> Vec<Done> {
    let inputs = Inputs::new(config, state, images, config.train.d_steps);
    update_by(1, config, state, inputs, update_encoder_generator)
}

/// Of G, of E where there is one, and of a further loss's network.
fn update_encoder_generator(config: &Recipe, state: &mut TrainState, inputs: &Inputs) -> Vec<Done> {
    let Inputs { images, draws, sizes } = inputs;
    let statistics = skips(config).then(|| Saved::of(state));
    state.d.params.use_weights(Weights::Freeze);
    state.g.live.params.use_weights(Weights::Train);
    if let Some(e) = &state.e {
        e.live.params.use_weights(Weights::Train);
    }
    if let Some(further) = &state.further {
        further.params.use_weights(Weights::Train);
    }
    let of_e = state.e.iter().map(|e| &e.live.params);
    let of_further = state.further.iter().map(|further| &further.params);
    let mut sum = Sum::of([&state.g.live.params].into_iter().chain(of_e).chain(of_further));
    for (first, rows) in micro_batches(config, state, images) {
        let last = first + rows == images.len();
        let (images, draws) = (images.rows(first, rows), draws.rows(first, rows));
        let losses = autocast(bf16(config), || {
            let generated = state.g.live.net.forward(&draws.prior, Statistics::Batch);
            let loss_g = generator_loss(state, &generated, &draws);
            let of_e = |e| encoder_losses(state, e, &images, &generated, &draws);
            let of_e = state.e.iter().flat_map(of_e);
            let losses = [loss_g].into_iter().chain(of_e);
            losses.map(|loss| loss * share(config, rows)).collect::<Vec<_>>()
        });
        sum.add(&losses, last);
    }
    let (losses, gradients) = sum.over_ranks(state.g.live.params.world());
    // One fault stops both: they share a backward pass.
    let loss = losses.iter().fold(Tensor::from(0f32), |sum, loss| sum + loss);
    let mut updates = vec![advance(config, sizes, &mut state.g, &gradients[0], &loss)];
    if let Some(e) = &mut state.e {
        updates.push(advance(config, sizes, e, &gradients[1], &loss));
    }
    if let Some(further) = &mut state.further {
        let update = further.update(&gradients[2], &loss, &sizes.factor, skips(config));
        // Where a fault is its own it is named before those that it makes of the others.
        let own = &losses[2] + &update.norm + further.params.flat().sum(None::<Kind>);
        updates.push(Update { fault: not_finite(&own), ..update });
    }
    if let Some(statistics) = statistics {
        for update in &updates {
            statistics.restore_where(&update.fault);
        }
    }
    losses.into_iter().zip(updates).collect()
}

fn generator_loss(state: &TrainState, generated: &Tensor, draws: &Draws) -> Tensor {
    let latent = state.e.as_ref().map(|_| draws.prior.detach());
    let [_, changes] = draws.changes();
    let image = sight(state, &changes).images(generated);
    loss::generator(&state.d.net.scores(&Pair { image, latent }))
}

/// The paper's, and a further one where there is one. f = F(x) does not depend on E, so it is computed without a graph
/// and nothing runs backward through F on the real side.
fn encoder_losses(
    state: &TrainState,
    e: &Averaged<Encoder>,
    images: &Images,
    generated: &Tensor,
    draws: &Draws,
) -> Vec<Tensor> {
    let [changes, _] = draws.changes();
    let d = sight(state, &changes);
    let f = &no_grad(|| d.features(&normalised(&images.small)));
    let (x, g, e) = (&normalised(&images.large), &state.g.live.net, &e.live.net);
    let Encoded { features, code, .. } = &e.forward(x, Statistics::Batch);
    let paper = loss::encoder(&d.net.scores_of(f, Some(&code.sample(&draws.noise))));
    let Draws { prior, further: uniforms, .. } = draws;
    let seen = Seen { e, g, d, x, features, code, f, generated, prior, uniforms };
    let further = state.further.iter().map(|further| further.net.loss(&seen));
    [paper].into_iter().chain(further).collect()
}

fn advance<N>(
    config: &Recipe,
    sizes: &StepSizes,
    player: &mut Averaged<N>,
    gradient: &Tensor,
    loss: &Tensor,
) -> Update {
    let update = player.live.update(gradient, loss, &sizes.factor, skips(config));
    sizes.average(&mut player.average, player.live.params.flat());
    update
}

fn bf16(config: &Recipe) -> bool {
    config.train.precision == Precision::Bf16
}

fn skips(config: &Recipe) -> bool {
    config.skip_faults
}

/// The batch statistics of G and E before an update: a forward pass has moved them before it is known
/// that the update is to be skipped.
struct Saved(Vec<(Tensor, Tensor)>);

impl Saved {
    fn of(state: &TrainState) -> Self {
        let e = state.e.iter().flat_map(|e| e.live.params.buffers());
        let all = state.g.live.params.buffers().into_iter().chain(e);
        Self(all.map(|(_, buffer)| (buffer.copy(), buffer)).collect())
    }

    fn restore_where(&self, fault: &Tensor) {
        let fault = fault.gt(0.0);
        no_grad(|| {
            for (saved, buffer) in &self.0 {
                let mut buffer = buffer.shallow_clone();
                buffer.copy_(&saved.where_self(&fault, &buffer));
            }
        });
    }
}

/// First row and number of rows of every micro-batch, of those that are this rank's.
fn micro_batches(
    config: &Recipe,
    state: &TrainState,
    images: &Images,
) -> impl Iterator<Item = (i64, i64)> + use<> {
    let ranks = state.d.params.world().size() as i64;
    let (batch, micro) = (images.len(), config.micro_batch() / ranks);
    (0..batch).step_by(micro as usize).map(move |first| (first, micro.min(batch - first)))
}

/// What a micro-batch's mean counts for in the batch's mean.
fn share(config: &Recipe, rows: i64) -> f64 {
    rows as f64 / config.train.batch as f64
}

/// Sums over an update's micro-batches and ranks.
#[derive(Debug)]
struct Sum<'a> {
    losses: Vec<Tensor>,
    gradients: Gradients<'a>,
}

impl<'a> Sum<'a> {
    /// Of the networks that are updated together.
    fn of(networks: impl IntoIterator<Item = &'a Params>) -> Self {
        Self { losses: vec![], gradients: Gradients::of(networks) }
    }

    /// A micro-batch's losses, and the gradients of their sum.
    fn add(&mut self, losses: &[Tensor], last: bool) {
        let whole = losses.iter().map(Tensor::shallow_clone).reduce(|sum, loss| sum + loss);
        self.gradients.add(&whole.expect("an update has a loss"), last);
        let losses = losses.iter().map(Tensor::detach);
        self.losses = match &self.losses[..] {
            [] => losses.collect(),
            sums => sums.iter().zip(losses).map(|(sum, loss)| sum + loss).collect(),
        };
    }

    /// The losses, scalars, and of each network the flat gradient.
    fn over_ranks(self, world: &World) -> (Vec<Tensor>, Vec<Tensor>) {
        if world.size() == 1 {
            return (self.losses, self.gradients.finish());
        }
        world.enter("all-reduce");
        let losses = Tensor::stack(&self.losses, 0);
        let under_way = world.sum_later(&losses);
        let gradients = self.gradients.finish();
        under_way.wait();
        world.enter("compute");
        (losses.unbind(0), gradients)
    }
}

#[cfg(test)]
mod audit;
#[cfg(test)]
mod tests;
