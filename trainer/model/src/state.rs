//! Everything that training changes.

use dist::World;
use tch::{Device, Kind, Tensor};
use torch_ext::graph::Graph;

use crate::beyond;
use crate::config::Recipe;
use crate::networks::{Augment, Discriminator, Encoder, Further, Generator};
use crate::nn::{Fill, Kinds, Params, Scope};
use crate::optim::{Adam, norm};

/// A network, its tensors and its optimiser.
#[derive(Debug)]
pub struct Trainable<N> {
    /// The network; it holds handles to tensors of `params`.
    pub net: N,
    /// Its tensors.
    pub params: Params,
    /// Its optimiser.
    pub adam: Adam,
}

impl<N> Trainable<N> {
    fn new(
        config: &Recipe,
        rate: f64,
        world: &World,
        kinds: Kinds,
        fill: Fill,
        build: impl FnOnce(&Scope<'_>) -> N,
    ) -> Self {
        let (net, params) = Params::build_in(world, kinds, fill, build);
        let adam = Adam::new(config.adam(rate), params.flat());
        Self { net, params, adam }
    }

    /// One Adam update by the flat gradient of `loss`, at `factor` (of [`crate::optim::StepSizes`]) times the rate, after which the
    /// spectral norms advance once. With `skip`, a gradient or loss that is not finite changes no
    /// weight and no moment.
    pub fn update(
        &mut self,
        gradient: &Tensor,
        loss: &Tensor,
        factor: &Tensor,
        skip: bool,
    ) -> Update {
        let norm = norm(gradient);
        let refused = not_finite(&(&norm + loss));
        let fault = skip.then_some(&refused);
        self.adam.step_unless(fault, self.params.flat(), gradient, factor);
        self.params.advance_norms();
        let broken = not_finite(&self.params.flat().sum(None::<Kind>));
        Update { norm, fault: refused.maximum(&broken) }
    }
}

/// 1 where x, or a value of it, is not finite, else 0: a float scalar.
pub(crate) fn not_finite(x: &Tensor) -> Tensor {
    x.isfinite().logical_not().to_kind(Kind::Float)
}

/// What an update says of itself; float scalars, still on the device.
#[derive(Debug)]
pub struct Update {
    /// ‖gradient‖₂.
    pub norm: Tensor,
    /// 1 where the loss, the gradient or a weight is not finite, else 0.
    pub fault: Tensor,
}

impl Update {
    /// The same numbers in a place of their own.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self { norm: self.norm.copy(), fault: self.fault.copy() }
    }
}

/// An update's loss and what the update says of itself.
pub type Done = (Tensor, Update);

/// An update that is made again and again from inputs in one place ([`crate::step`]).
#[derive(Debug)]
pub struct Replayed {
    /// The place.
    pub inputs: [Tensor; 8],
    /// Updates made.
    pub updates: u64,
    /// The recorded update, once there is one, and what it leaves behind each time.
    pub graph: Option<(Graph, Vec<Done>)>,
}

impl Replayed {
    /// None made yet.
    #[must_use]
    pub fn new(inputs: [Tensor; 8]) -> Self {
        Self { inputs, updates: 0, graph: None }
    }
}

/// The updates of D of a step that is not done: a run may end between the updates of a step.
#[derive(Debug)]
pub struct PendingDiscriminator {
    /// How many there were.
    pub updates: u32,
    /// L_D of the last.
    pub loss: Tensor,
    /// Of the last, but the fault is that of any of them.
    pub update: Update,
}

/// A player whose weights are also averaged.
#[derive(Debug)]
pub struct Averaged<N> {
    /// The live network.
    pub live: Trainable<N>,
    /// The average of its weights, flat.
    pub average: Tensor,
}

impl<N> Averaged<N> {
    fn new(live: Trainable<N>) -> Self {
        let average = live.params.flat().copy();
        Self { live, average }
    }
}

/// All that a step changes; a checkpoint holds exactly this, but for the replays.
#[derive(Debug)]
pub struct TrainState {
    /// The generator.
    pub g: Averaged<Generator>,
    /// The encoder, where the loss has a term for it.
    pub e: Option<Averaged<Encoder>>,
    /// The discriminator.
    pub d: Trainable<Discriminator>,
    /// What losses of E beside the paper's have of their own, where `[beyond]` asks for any.
    pub further: Option<Trainable<Box<dyn Further>>>,
    /// How all images that D sees are changed, where `[beyond]` asks for it.
    pub augment: Option<Box<dyn Augment>>,
    /// G/E updates done.
    pub step: u64,
    /// What the updates of D say of themselves that belong to the step under way.
    pub pending_d: Option<PendingDiscriminator>,
    /// With `train.graphs`, the updates of D and the joint ones of G and E, over the tensors above.
    pub replays: [Option<Replayed>; 2],
    /// Times that training went back to a checkpoint because of a fault. Draws depend on it, or the
    /// fault would only come again.
    pub rollbacks: u64,
}

/// Numbers that tell the networks' initial weights apart.
const NETWORKS: [u32; 4] = [0, 1, 2, 3];

impl TrainState {
    /// The state before step 1. With `fresh` false the tensors are allocated but not filled: for
    /// counting, or for a checkpoint to fill.
    #[must_use]
    pub fn new(config: &Recipe, device: Device, fresh: bool) -> Self {
        Self::with_kinds(config, (Kind::Float, device), fresh)
    }

    /// As [`TrainState::new`] in another precision (parity tests use double).
    #[must_use]
    pub fn with_kinds(config: &Recipe, kinds: Kinds, fresh: bool) -> Self {
        Self::in_world(config, &World::alone(), kinds, fresh)
    }

    /// The same on one rank of several, whose batches together are one.
    #[must_use]
    pub fn in_world(config: &Recipe, world: &World, kinds: Kinds, fresh: bool) -> Self {
        let seed = config.train.seed;
        let fill = |network| if fresh { Fill::Seed { seed, network } } else { Fill::Unset };
        let o = &config.opt;
        let same = config.train.deterministic;
        let g = Trainable::new(config, o.lr_g, world, kinds, fill(NETWORKS[0]), |s| {
            Generator::new(&s.deterministic(same), config.g, config.latent)
        });
        let e = config.loss.encode().then(|| {
            let rate = o.lr_g * o.e_lr_mult;
            Averaged::new(Trainable::new(config, rate, world, kinds, fill(NETWORKS[1]), |s| {
                Encoder::new(s, config.e, config.latent)
            }))
        });
        let d = Trainable::new(config, o.lr_d, world, kinds, fill(NETWORKS[2]), |s| {
            Discriminator::new(&s.deterministic(same), config.discriminator(), config.latent)
        });
        let further = further(config, world, kinds, fill(NETWORKS[3]));
        let augment = beyond::augment(config);
        let (step, pending_d, rollbacks) = (0, None, 0);
        let replays = Default::default();
        let g = Averaged::new(g);
        Self { g, e, d, further, augment, step, pending_d, replays, rollbacks }
    }

    /// Begins the network of `[beyond]`, whatever it was.
    pub fn renew_further(&mut self, config: &Recipe, world: &World) {
        let fill = Fill::Seed { seed: config.train.seed, network: NETWORKS[3] };
        self.further = further(config, world, self.d.params.kinds(), fill);
    }
}

fn further(
    config: &Recipe,
    world: &World,
    kinds: Kinds,
    fill: Fill,
) -> Option<Trainable<Box<dyn Further>>> {
    config.beyond.any().then(|| {
        let rate = config.beyond.rate;
        Trainable::new(config, rate, world, kinds, fill, |s| beyond::network(s, config))
    })
}
