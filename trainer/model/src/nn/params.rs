use std::cell::RefCell;
use std::sync::Arc;

use dist::World;
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::measure::shape_only;

use super::gradients::Reducer;
use super::{Gradients, SpectralNorm, SpectralNorms};
use crate::random::{Key, Purpose};

/// Where the first values of a network come from.
#[derive(Debug, Clone, Copy)]
pub enum Fill {
    /// Drawn, keyed by this seed and by the number of the parameter within its network.
    Seed {
        /// `train.seed`.
        seed: u64,
        /// Tells the networks of one run apart.
        network: u32,
    },
    /// Memory as it comes, to be loaded over.
    Unset,
    /// No memory at all: for counting parameters.
    Shape,
}

impl Fill {
    fn empty(self, shape: &[i64], kinds: Kinds) -> Tensor {
        match self {
            Self::Shape => shape_only(shape),
            _ => Tensor::empty(shape, kinds),
        }
    }
}

/// How one parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All equal to this.
    Constant(f64),
    /// Rows or columns of the (out, rest) matrix orthonormal.
    Orthogonal,
    /// Normal with this standard deviation.
    Normal(f64),
}

/// Kind and device of a network's tensors.
pub type Kinds = (Kind, Device);

#[derive(Debug)]
struct Parameter {
    name: String,
    raw: Tensor,
    /// What layers read: `raw` itself, or W/σ of it.
    weight: Tensor,
    /// Number of its spectral norm.
    norm: Option<usize>,
}

/// All tensors of one network: parameters, singular vectors, batch-norm buffers, by name.
///
/// After [`Params::build`] the parameters are views of one flat tensor, so that Adam, averages and
/// all-reduce are a handful of operators whatever the number of layers.
#[derive(Debug)]
pub struct Params {
    parameters: Vec<Parameter>,
    norms: SpectralNorms,
    buffers: Vec<(String, Tensor)>,
    flat: Tensor,
    flat_scaled: Tensor,
    kinds: Kinds,
    world: World,
    reducer: Option<Arc<Reducer>>,
}

/// Which form of the weights a pass reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// Gradients with respect to the weights are wanted.
    Train,
    /// The weights are constants.
    Freeze,
}

impl Params {
    /// Builds a network: `build` asks the scope for its tensors, then they are laid out flat and the
    /// spectral norms run `POWER_ITERATIONS` times.
    pub fn build<N>(kinds: Kinds, fill: Fill, build: impl FnOnce(&Scope<'_>) -> N) -> (N, Self) {
        Self::build_in(&World::alone(), kinds, fill, build)
    }

    /// The same for one rank of several, with batch statistics over the batches of all.
    pub fn build_in<N>(
        world: &World,
        kinds: Kinds,
        fill: Fill,
        build: impl FnOnce(&Scope<'_>) -> N,
    ) -> (N, Self) {
        let cell = RefCell::new(Builder {
            world: world.clone(),
            fill,
            kinds,
            parameters: vec![],
            norms: SpectralNorms::default(),
            buffers: vec![],
        });
        let net = build(&Scope { builder: &cell, prefix: String::new(), deterministic: false });
        let Builder { parameters, norms, buffers, .. } = cell.into_inner();
        let empty = || Tensor::empty([0], kinds);
        let (flat, flat_scaled) = (empty(), empty());
        let world = world.clone();
        let reducer = None;
        let mut params =
            Self { parameters, norms, buffers, flat, flat_scaled, kinds, world, reducer };
        params.lay_flat(fill);
        if params.world.size() > 1 {
            params.reducer = Some(Reducer::new(&params.world, &params.weights()));
        }
        (net, params)
    }

    /// Power iterations before the first step. Ours: σ of orthogonal weights is 1 from the first on.
    pub const POWER_ITERATIONS: usize = 15;

    fn lay_flat(&mut self, fill: Fill) {
        let total = self.parameters.iter().map(|p| p.raw.numel() as i64).sum::<i64>();
        let scaled = self.normed().map(|p| p.raw.numel() as i64).sum::<i64>();
        self.flat = fill.empty(&[total], self.kinds);
        self.flat_scaled = fill.empty(&[scaled], self.kinds);
        let filled = matches!(fill, Fill::Seed { .. });
        let (mut at, mut at_scaled) = (0, 0);
        for p in &mut self.parameters {
            let length = p.raw.numel() as i64;
            let view = self.flat.narrow(0, at, length).view_as(&p.raw);
            at += length;
            if filled {
                no_grad(|| view.shallow_clone().copy_(&p.raw));
            }
            p.raw.set_data(&view);
            if p.norm.is_some() {
                let view = self.flat_scaled.narrow(0, at_scaled, length).view_as(&p.raw);
                at_scaled += length;
                p.weight.set_data(&view);
            }
        }
        if filled {
            self.norms.advance(Self::POWER_ITERATIONS);
        }
    }

    /// Finds the largest singular values of weights that came without vectors of their own, as averages do, and
    /// rescales.
    pub fn converge_norms(&mut self) {
        self.norms.converge();
    }

    /// One power iteration for every spectral norm, then W/σ afresh: to be called right after each
    /// update of this network, and at no other time.
    pub fn advance_norms(&mut self) {
        self.norms.advance(1);
    }

    /// Computes W/σ from the weights and vectors as they are: after a load.
    pub fn rescale(&mut self) {
        self.norms.advance(0);
    }

    /// Says whether the coming passes need gradients with respect to the weights.
    pub fn use_weights(&self, weights: Weights) {
        for p in &self.parameters {
            let _ = p.weight.set_requires_grad(weights == Weights::Train);
        }
    }

    /// The gradient of the scalar `loss` with respect to all parameters, of this rank alone: see
    /// [`Gradients::finish`].
    pub fn gradient(&self, loss: &Tensor) -> Tensor {
        let mut gradients = Gradients::of([self]);
        gradients.add(loss, false);
        gradients.finish().remove(0)
    }

    /// What layers read, in order of creation.
    pub(super) fn weights(&self) -> Vec<Tensor> {
        self.parameters.iter().map(|p| p.weight.shallow_clone()).collect()
    }

    /// The next gradients, one for each parameter, flat; zeros for what is undefined.
    pub(super) fn or_zeros(&self, gradients: &mut impl Iterator<Item = Tensor>) -> Vec<Tensor> {
        let flat = |(p, g): (&Parameter, Tensor)| {
            let g = if g.defined() { g } else { p.raw.zeros_like() };
            g.reshape([-1])
        };
        self.parameters.iter().zip(gradients).map(flat).collect()
    }

    /// Makes a flat gradient with respect to what layers read one with respect to the parameters, in place.
    pub(super) fn pull_back(&self, gradient: &Tensor) {
        let mut at = 0;
        let mut scaled = vec![];
        for p in &self.parameters {
            let length = p.raw.numel() as i64;
            if p.norm.is_some() {
                scaled.push(gradient.narrow(0, at, length).view_as(&p.raw));
            }
            at += length;
        }
        self.norms.pull_back(&scaled);
    }

    /// Where gradients wait for the other ranks, if there are any.
    pub(super) fn reducer(&self) -> Option<&Arc<Reducer>> {
        self.reducer.as_ref()
    }

    /// Parts of the flat gradient, (start, length), each summed over ranks by itself, in this order; none for
    /// a network of one rank.
    #[must_use]
    pub fn sums(&self) -> Vec<(i64, i64)> {
        self.reducer().map_or(vec![], |reducer| reducer.places())
    }

    /// All parameters, raw, as one tensor (total). Whoever writes to it calls
    /// [`Params::advance_norms`] or [`Params::rescale`] afterwards.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Number of trainable values.
    #[must_use]
    pub fn count(&self) -> usize {
        self.flat.numel()
    }

    /// Names and raw tensors of the parameters, in order of creation.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.parameters.iter().map(|p| (p.name.as_str(), &p.raw))
    }

    /// Names of the parameters and what layers read of them: W/σ where a spectral norm is held, else
    /// the parameter itself.
    pub fn folded(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.parameters.iter().map(|p| (p.name.as_str(), &p.weight))
    }

    /// Cuts a flat tensor laid out like [`Params::flat`] into named pieces (views).
    #[must_use]
    pub fn unflatten(&self, flat: &Tensor) -> Vec<(String, Tensor)> {
        let mut at = 0;
        let cut = |p: &Parameter| {
            let length = p.raw.numel() as i64;
            let piece = flat.narrow(0, at, length).view_as(&p.raw);
            at += length;
            (p.name.clone(), piece)
        };
        self.parameters.iter().map(cut).collect()
    }

    /// Every tensor that a step can change, by name: parameters, `NAME.u` and `NAME.v` of spectral
    /// norms, buffers. Writing to these tensors writes to the network.
    #[must_use]
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut all: Vec<_> =
            self.parameters.iter().map(|p| (p.name.clone(), p.raw.detach())).collect();
        for p in &self.parameters {
            let Some(number) = p.norm else { continue };
            let norm = &self.norms.layers()[number];
            all.push((format!("{}.u", p.name), norm.u.shallow_clone()));
            all.push((format!("{}.v", p.name), norm.v.shallow_clone()));
        }
        all.extend(self.buffers());
        all
    }

    /// Batch-norm statistics, by name.
    #[must_use]
    pub fn buffers(&self) -> Vec<(String, Tensor)> {
        self.buffers.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect()
    }

    /// Name and spectral norm of every normalised parameter.
    pub fn norms(&self) -> impl Iterator<Item = (&str, &SpectralNorm)> {
        let layers = self.norms.layers();
        self.parameters.iter().filter_map(move |p| Some((p.name.as_str(), &layers[p.norm?])))
    }

    #[cfg(test)]
    pub(crate) fn pull_back_norms(&self, gradients: &[Tensor]) {
        self.norms.pull_back(gradients);
    }

    fn normed(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().filter(|p| p.norm.is_some())
    }

    /// The ranks it is trained on.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Kind and device.
    #[must_use]
    pub fn kinds(&self) -> Kinds {
        self.kinds
    }

    /// Copies weights from `flat` and everything else from `live`, a network of the same shape, then
    /// lets the spectral norms converge: how an average becomes a network.
    pub fn adopt(&mut self, flat: &Tensor, live: &Params) {
        no_grad(|| {
            for ((_, mine), (_, theirs)) in self.state().iter_mut().zip(live.state()) {
                mine.copy_(&theirs);
            }
            self.flat.copy_(flat);
        });
        self.converge_norms();
    }
}

#[derive(Debug)]
struct Builder {
    world: World,
    fill: Fill,
    kinds: Kinds,
    parameters: Vec<Parameter>,
    norms: SpectralNorms,
    buffers: Vec<(String, Tensor)>,
}

/// A place in a network under construction: names follow the code.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    builder: &'a RefCell<Builder>,
    prefix: String,
    deterministic: bool,
}

impl Scope<'_> {
    /// The place `name` below this one.
    #[must_use]
    pub fn sub(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// The same place, for layers that give the same bits each time on CUDA too, or that need not.
    #[must_use]
    pub fn deterministic(&self, wanted: bool) -> Self {
        Self { deterministic: wanted, ..self.clone() }
    }

    /// Whether they are to.
    pub(super) fn is_deterministic(&self) -> bool {
        self.deterministic
    }

    /// A trainable tensor.
    pub fn parameter(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        self.add(name, shape, init, None)
    }

    /// A trainable tensor whose spectral norm is held at 1: layers get W/σ.
    pub fn normed(&self, name: &str, shape: &[i64], init: Init, eps: f64) -> Tensor {
        self.add(name, shape, init, Some(eps))
    }

    /// The ranks that train this network.
    pub(crate) fn world(&self) -> World {
        self.builder.borrow().world.clone()
    }

    /// A tensor that is saved but not trained.
    pub fn buffer(&self, name: &str, shape: &[i64], value: f64) -> Tensor {
        let mut builder = self.builder.borrow_mut();
        let tensor = match builder.fill {
            Fill::Shape => shape_only(shape),
            _ => Tensor::full(shape, value, builder.kinds),
        };
        builder.buffers.push((format!("{}{name}", self.prefix), tensor.shallow_clone()));
        tensor
    }

    fn add(&self, name: &str, shape: &[i64], init: Init, sn_eps: Option<f64>) -> Tensor {
        let mut builder = self.builder.borrow_mut();
        let number = builder.parameters.len() as u64;
        let raw = builder.fresh(shape, init, number);
        let weight = match sn_eps {
            Some(_) => builder.fill.empty(shape, builder.kinds),
            None => raw.shallow_clone(),
        };
        let norm = sn_eps.map(|eps| {
            let rest = shape[1..].iter().product::<i64>();
            let mut u = builder.fresh(&[shape[0]], Init::Normal(1.0), number | 1 << 32);
            if matches!(builder.fill, Fill::Seed { .. }) {
                let _ = u.divide_(&u.norm().clamp_min(eps));
            }
            let v = builder.fill.empty(&[rest], builder.kinds);
            builder.norms.add(&raw, u, v, weight.shallow_clone(), eps)
        });
        let handle = weight.shallow_clone();
        let name = format!("{}{name}", self.prefix);
        builder.parameters.push(Parameter { name, raw, weight, norm });
        handle
    }
}

impl Builder {
    fn fresh(&self, shape: &[i64], init: Init, number: u64) -> Tensor {
        match (init, self.fill) {
            (_, Fill::Unset | Fill::Shape) => self.fill.empty(shape, self.kinds),
            (Init::Constant(value), _) => Tensor::full(shape, value, self.kinds),
            (Init::Normal(std), Fill::Seed { seed, network }) => {
                let key = Key { seed, purpose: Purpose::Init, step: 0, update: network };
                (normal(shape, key, number) * std).to_device(self.kinds.1).to_kind(self.kinds.0)
            }
            (Init::Orthogonal, Fill::Seed { seed, network }) => {
                let key = Key { seed, purpose: Purpose::Init, step: 0, update: network };
                orthogonal(shape, key, number).to_device(self.kinds.1).to_kind(self.kinds.0)
            }
        }
    }
}

fn normal(shape: &[i64], key: Key, number: u64) -> Tensor {
    let mut stream = key.stream(number);
    let count = shape.iter().product::<i64>();
    let values: Vec<f32> = (0..count).map(|_| StandardNormal.sample(&mut stream)).collect();
    Tensor::from_slice(&values).view(shape)
}

/// Q of a normal matrix, signs fixed by R's diagonal, so that the law is uniform (Haar).
///
/// # Source
/// Saxe et al. 2013; Brock et al. 2018, appendix C.
fn orthogonal(shape: &[i64], key: Key, number: u64) -> Tensor {
    let out = shape[0];
    let rest = shape[1..].iter().product::<i64>();
    let (long, short) = (out.max(rest), out.min(rest));
    let (q, r) = Tensor::linalg_qr(&normal(&[long, short], key, number), "reduced");
    let q = q * r.diagonal(0, 0, 1).sign();
    let q = if out < rest { q.tr() } else { q };
    q.contiguous().view(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_weights_keep_their_shape_and_are_orthonormal() {
        let fill = Fill::Seed { seed: 1, network: 0 };
        for shape in [[4i64, 3, 3, 3], [40, 3, 3, 1]] {
            let ((), params) = Params::build((Kind::Float, Device::Cpu), fill, |s| {
                let _ = s.parameter("w", &shape, Init::Orthogonal);
            });
            let (_, w) = params.parameters().next().unwrap();
            assert_eq!(w.size(), shape);
            let m = w.flatten(1, -1);
            let gram = if shape[0] < 27 && m.size()[0] < m.size()[1] {
                m.matmul(&m.tr())
            } else {
                m.tr().matmul(&m)
            };
            let eye = Tensor::eye(gram.size()[0], (Kind::Float, Device::Cpu));
            assert!((gram - eye).abs().max().double_value(&[]) < 1e-5);
        }
    }

    #[test]
    fn layers_see_what_is_written_to_the_flat_tensor() {
        let fill = Fill::Seed { seed: 1, network: 0 };
        let (weight, mut params) = Params::build((Kind::Float, Device::Cpu), fill, |s| {
            let _ = s.parameter("b", &[3], Init::Constant(0.0));
            s.normed("w", &[2, 2], Init::Orthogonal, 1e-12)
        });
        no_grad(|| params.flat().narrow(0, 3, 4).copy_(&Tensor::from_slice(&[3f32, 0., 0., 1.])));
        params.converge_norms();
        assert!((weight.double_value(&[0, 0]) - 1.0).abs() < 1e-4);
        assert!((weight.double_value(&[1, 1]) - 1.0 / 3.0).abs() < 1e-4);
    }
}
