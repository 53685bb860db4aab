use tch::{Device, Tensor, no_grad};
use torch_ext::graph::{Graph, is_recording};
use torch_ext::{kernels, must};

/// The largest singular value of one weight W, shape (out, …), read as a matrix (out, rest).
#[derive(Debug)]
pub struct SpectralNorm {
    weight: Tensor,
    /// Left singular vector, (out).
    pub u: Tensor,
    /// Right singular vector, (rest).
    pub v: Tensor,
    /// σ = ‖Wv‖ as far as the iteration has come, a scalar.
    pub sigma: Tensor,
    /// W/σ, what layers read.
    pub scaled: Tensor,
}

/// The spectral norms of a whole network, worked on together.
///
/// Advancing and reading are two things: the vectors move once after each update of the network, and
/// every forward pass until the next update reads the same W/σ. (The reference codes advance in each
/// training forward pass; a departure, see `docs/departures.md`.)
///
/// # Source
/// Miyato et al. 2018, algorithm 1; paper App. A (G and D, one power iteration).
#[derive(Debug, Default)]
pub struct SpectralNorms {
    layers: Vec<SpectralNorm>,
    eps: f64,
    after_update: AfterUpdate,
}

/// How the one iteration after an update is made on a CUDA device: some five kernels a layer, short ones, whose
/// tensors never change place. So one call starts them all, from the third time on.
#[derive(Debug)]
enum AfterUpdate {
    /// One by one; so many times more before they are recorded.
    Plain(u32),
    /// From a recorded graph.
    Graph(Graph),
    /// One by one: CUDA recorded none.
    Always,
}

impl Default for AfterUpdate {
    fn default() -> Self {
        Self::Plain(2)
    }
}

impl SpectralNorms {
    /// Adds a weight with a first guess of u, a unit vector, and returns its number. `eps` bounds the
    /// norms that are divided by from below; it is one for the network.
    ///
    /// # Panics
    /// If another layer came with another `eps`.
    pub fn add(
        &mut self,
        weight: &Tensor,
        u: Tensor,
        v: Tensor,
        scaled: Tensor,
        eps: f64,
    ) -> usize {
        assert!(self.layers.is_empty() || self.eps == eps, "one epsilon a network");
        self.eps = eps;
        let (weight, sigma) = (weight.shallow_clone(), u.narrow(0, 0, 1).ones_like().squeeze());
        self.layers.push(SpectralNorm { weight, u, v, sigma, scaled });
        self.layers.len() - 1
    }

    /// `iterations` power iterations of every layer, v ← Wᵀu/‖Wᵀu‖, u ← Wv/‖Wv‖, then σ and W/σ
    /// afresh. With none, σ and W/σ alone: after a load.
    ///
    /// # Panics
    /// If libtorch refuses.
    pub fn advance(&mut self, iterations: usize) {
        let device = self.layers.first().map_or(Device::Cpu, |layer| layer.weight.device());
        let (Device::Cuda(index), 1, false) = (device, iterations, is_recording()) else {
            return must(self.one_by_one(iterations));
        };
        match &mut self.after_update {
            AfterUpdate::Plain(0) => {
                let made = Graph::record(index, None, || self.one_by_one(1));
                self.after_update = match made.and_then(|(graph, begun)| begun.map(|()| graph)) {
                    Ok(graph) => AfterUpdate::Graph(graph),
                    Err(reason) => {
                        tracing::warn!("CUDA records no advance of spectral norms: {reason}");
                        AfterUpdate::Always
                    }
                };
            }
            AfterUpdate::Plain(times) => *times -= 1,
            _ => (),
        }
        must(match &self.after_update {
            AfterUpdate::Graph(graph) => graph.replay(),
            _ => self.one_by_one(1),
        });
    }

    fn one_by_one(&self, iterations: usize) -> Result<(), String> {
        kernels::spectral_advance(&self.handles(), iterations, self.eps)
    }

    /// The largest singular value itself, to a thousandth whatever the gap to the next: 2¹⁴ power iterations, by
    /// squaring the smaller of WWᵀ and WᵀW, then some of [`SpectralNorms::advance`], then σ and W/σ afresh. (After
    /// t iterations σ is short by at most ln(n)/2t of itself, as a random vector of n numbers goes.)
    ///
    /// # Panics
    /// If libtorch refuses.
    pub fn converge(&mut self) {
        const SQUARINGS: usize = 14;
        const POLISH: usize = 4;
        no_grad(|| {
            for layer in &self.layers {
                let matrix = layer.weight.detach().flatten(1, -1);
                let wide = matrix.size()[0] <= matrix.size()[1];
                let x = if wide { matrix.shallow_clone() } else { matrix.tr() };
                let mut gram = x.matmul(&x.tr());
                for _ in 0..SQUARINGS {
                    gram = &gram / gram.norm().clamp_min(1e-30);
                    gram = gram.matmul(&gram);
                }
                gram = &gram / gram.norm().clamp_min(1e-30);
                let start = if wide { layer.u.shallow_clone() } else { matrix.tr().mv(&layer.u) };
                let u = if wide { gram.mv(&start) } else { matrix.mv(&gram.mv(&start)) };
                layer.u.shallow_clone().copy_(&(&u / u.norm().clamp_min(1e-30)));
            }
        });
        self.advance(POLISH);
    }

    /// Makes gradients with respect to W/σ, in the order of `add`, those with respect to the weights, in
    /// place. u and v are constants: (g − ⟨g, W/σ⟩ u vᵀ) / σ.
    ///
    /// # Panics
    /// If there is not one gradient a layer, contiguous and of the weight's shape.
    pub fn pull_back(&self, gradients: &[Tensor]) {
        kernels::spectral_pull_back(&self.handles(), gradients);
    }

    /// The layers, in the order of `add`.
    #[must_use]
    pub fn layers(&self) -> &[SpectralNorm] {
        &self.layers
    }

    fn handles(&self) -> Vec<kernels::SpectralNorm<'_>> {
        let layers = self.layers.iter();
        layers
            .map(|SpectralNorm { weight, u, v, sigma, scaled }| kernels::SpectralNorm {
                weight,
                u,
                v,
                sigma,
                scaled,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;
    use tch::kind::DOUBLE_CPU;

    use super::*;

    fn norms(weights: &[&Tensor], u: &[f64]) -> SpectralNorms {
        let mut norms = SpectralNorms::default();
        for w in weights {
            let rest = w.numel() as i64 / w.size()[0];
            let v = Tensor::zeros([rest], DOUBLE_CPU);
            let _ = norms.add(w, Tensor::from_slice(u), v, w.zeros_like(), 1e-12);
        }
        norms
    }

    fn sigma(norms: &SpectralNorms, layer: usize) -> f64 {
        norms.layers()[layer].sigma.double_value(&[])
    }

    fn example() -> Tensor {
        Tensor::from_slice(&[1f64, 2., 3., 4.]).view([2, 2])
    }

    #[test]
    fn sigma_converges_as_computed_by_hand() {
        let diagonal = Tensor::from_slice(&[3f64, 0., 0., 1.]).view([2, 2]);
        let mut both = norms(&[&example(), &diagonal], &[1.0, 0.0]);
        for expected in [5.403702, 5.464984, 5.464986] {
            both.advance(1);
            assert!((sigma(&both, 0) - expected).abs() < 1e-6);
            assert!((sigma(&both, 1) - 3.0).abs() < 1e-12);
        }
        both.advance(40);
        assert!((sigma(&both, 0) - 5.464_985_704_2).abs() < 1e-9);
    }

    #[test]
    fn rescaling_after_a_load_changes_no_bit() {
        let w = Tensor::randn([5, 3, 3, 3], DOUBLE_CPU);
        let mut one = norms(&[&w], &[1.0, 0.0, 0.0, 0.0, 0.0]);
        one.advance(2);
        let layer = &one.layers()[0];
        let before = [layer.u.copy(), layer.v.copy(), layer.sigma.copy(), layer.scaled.copy()];
        one.advance(0);
        let layer = &one.layers()[0];
        assert_eq!(before.each_ref(), [&layer.u, &layer.v, &layer.sigma, &layer.scaled]);
    }

    #[test]
    fn the_gradient_treats_u_and_v_as_constants() {
        let w = example();
        let mut one = norms(&[&w], &[1.0, 0.0]);
        one.advance(50);
        let gradient = w.ones_like();
        one.pull_back(&[gradient.shallow_clone()]);
        let expected = [0.104954, 0.072259, 0.006594, -0.067314];
        for (i, e) in expected.iter().enumerate() {
            let got = gradient.double_value(&[i as i64 / 2, i as i64 % 2]);
            assert!((got - e).abs() < 1e-6, "{got} is not {e}");
        }
        assert!((gradient * w).sum(Kind::Double).double_value(&[]).abs() < 1e-9);
    }

    #[test]
    fn a_zero_weight_stays_zero() {
        let w = Tensor::zeros([2, 3], DOUBLE_CPU);
        let mut one = norms(&[&w], &[1.0, 0.0]);
        one.advance(1);
        assert_eq!(one.layers()[0].scaled, w);
        one.converge();
        assert_eq!(one.layers()[0].scaled, w);
    }

    /// What an update makes of orthogonal weights: all singular values near 1, the largest hardly above them.
    #[test]
    fn convergence_needs_no_gap_between_singular_values() {
        let kinds = (Kind::Float, tch::Device::Cpu);
        tch::manual_seed(5);
        for [out, rest] in [[96, 400], [400, 96], [128, 128]] {
            let (orthogonal, _) =
                Tensor::linalg_qr(&Tensor::randn([out.max(rest), out.min(rest)], kinds), "reduced");
            let orthogonal = if out < rest { orthogonal.tr() } else { orthogonal };
            for step in [0.0, 1e-3, 1.7e-2] {
                let unit = |n: i64| {
                    let x = Tensor::randn([n], kinds);
                    &x / x.norm()
                };
                let w = (&orthogonal
                    + unit(out).outer(&unit(rest)) * step
                    + Tensor::randn([out, rest], kinds) * 1e-4)
                    .contiguous();
                let mut one = SpectralNorms::default();
                let v = Tensor::zeros([rest], kinds);
                let _ = one.add(&w, unit(out), v, w.zeros_like(), 1e-4);
                one.converge();
                let w64 = w.to_kind(Kind::Double);
                let squares = w64.matmul(&w64.tr()).linalg_eigvalsh("L");
                let expected = squares.max().double_value(&[]).sqrt();
                assert!(
                    (sigma(&one, 0) - expected).abs() < 1e-3 * expected,
                    "{out} x {rest}, {step}: {} {expected}",
                    sigma(&one, 0)
                );
                let off =
                    (one.layers()[0].scaled.shallow_clone() * sigma(&one, 0) - &w).abs().max();
                assert!(off.double_value(&[]) < 1e-6);
            }
        }
    }

    #[test]
    fn the_pulled_back_gradient_equals_autograd_through_the_division() {
        tch::manual_seed(3);
        let w = Tensor::randn([4, 3, 2, 2], DOUBLE_CPU);
        let mut one = norms(&[&w], &[0.5, 0.5, 0.5, 0.5]);
        one.advance(1);
        let direction = w.sin();
        let pulled = direction.copy();
        one.pull_back(&[pulled.shallow_clone()]);

        let layer = &one.layers()[0];
        let leaf = w.copy().set_requires_grad(true);
        let sigma = layer.u.dot(&leaf.flatten(1, -1).mv(&layer.v));
        let loss = (&leaf / sigma * direction).sum(Kind::Double);
        let auto = Tensor::run_backward(&[loss], &[&leaf], false, false).remove(0);
        assert!((pulled - auto).abs().max().double_value(&[]) < 1e-12);
    }

    /// The reference codes' form, which advances u in each training forward pass: an oracle.
    struct PerForward {
        weight: Tensor,
        u: Tensor,
    }

    impl PerForward {
        fn forward(&mut self) -> Tensor {
            let unit = |x: Tensor| &x / x.norm();
            let matrix = self.weight.flatten(1, -1);
            let (u, v) = tch::no_grad(|| {
                let v = unit(matrix.tr().mv(&self.u));
                (unit(matrix.mv(&v)), v)
            });
            self.u = u;
            &self.weight / self.u.dot(&matrix.mv(&v))
        }
    }

    #[test]
    fn with_one_pass_an_update_training_goes_as_in_the_form_that_advances_in_each_pass() {
        let (count, rate) = (30, 0.05);
        let start = Tensor::arange(4 * 18, DOUBLE_CPU).sin().view([4, 2, 3, 3]);
        let target = Tensor::arange(4 * 18, DOUBLE_CPU).cos().view([4, 2, 3, 3]);
        let (mine, first) = (start.copy(), [0.5, 0.5, 0.5, 0.5]);
        let mut ours = norms(&[&mine], &first);
        let mut oracle = PerForward { weight: start.copy(), u: Tensor::from_slice(&first) };
        for update in 0..count {
            ours.advance(1); // right after the update before, or at the start
            let scaled = ours.layers()[0].scaled.copy();
            let step = (&scaled - &target) * 2.0;
            ours.pull_back(&[step.shallow_clone()]);

            oracle.weight = oracle.weight.set_requires_grad(true);
            let theirs = oracle.forward();
            let loss = (&theirs - &target).square().sum(Kind::Double);
            let gradient = Tensor::run_backward(&[loss], &[&oracle.weight], false, false).remove(0);
            assert!((scaled - theirs.detach()).abs().max().double_value(&[]) < 1e-12, "{update}");
            tch::no_grad(|| {
                let _ = mine.shallow_clone().g_sub_(&(step * rate));
            });
            oracle.weight = oracle.weight.detach() - gradient * rate;
        }
        assert!((mine - start).abs().max().double_value(&[]) > 0.1);
    }
}
