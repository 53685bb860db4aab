use tch::kind::FLOAT_CPU;
use tch::{Tensor, no_grad};

/// The singular vectors of one weight, and what divides it.
///
/// The weight W, shape (out, …), is read as a matrix (out, rest). `advance` and `scale` are two
/// verbs: the vectors move once after each update of the network, and every forward pass until the
/// next update reads the same W/σ. (The reference codes advance in each training forward pass; a
/// departure, see `docs/departures.md`.)
///
/// # Source
/// Miyato et al. 2018, algorithm 1; paper App. A (G and D, one power iteration).
#[derive(Debug)]
pub struct SpectralNorm {
    /// Left singular vector, (out).
    pub u: Tensor,
    /// Right singular vector, (rest).
    pub v: Tensor,
    sigma: Tensor,
    eps: f64,
}

impl SpectralNorm {
    /// Vectors that are still to be advanced; `u` is a unit vector or will be loaded.
    #[must_use]
    pub fn new(u: Tensor, v: Tensor, eps: f64) -> Self {
        let sigma = Tensor::ones([], FLOAT_CPU);
        Self { u, v, sigma, eps }
    }

    /// One power iteration: v ← Wᵀu/‖Wᵀu‖, then u ← Wv/‖Wv‖; norms are kept above `eps`.
    pub fn advance(&mut self, weight: &Tensor) {
        no_grad(|| {
            let w = matrix(weight);
            self.v.copy_(&self.unit(&w.tr().mv(&self.u)));
            self.u.copy_(&self.unit(&w.mv(&self.v)));
        });
    }

    /// W/σ with σ = uᵀWv, written into `out`, which has the weight's shape. σ is kept above `eps`, so
    /// that a zero weight stays zero.
    pub fn scale(&mut self, weight: &Tensor, out: &mut Tensor) {
        no_grad(|| {
            self.sigma = self.u.dot(&matrix(weight).mv(&self.v)).clamp_min(self.eps);
            out.copy_(&(weight / &self.sigma));
        });
    }

    /// σ, the largest singular value as far as the iteration has come; a scalar tensor.
    #[must_use]
    pub fn sigma(&self) -> &Tensor {
        &self.sigma
    }

    /// The gradient with respect to W, given `g`, the one with respect to W/σ. u and v are
    /// constants: (g − ⟨g, W/σ⟩ u vᵀ) / σ.
    #[must_use]
    pub fn pull_back(&self, g: &Tensor, scaled: &Tensor) -> Tensor {
        no_grad(|| {
            let along = (g * scaled).sum(g.kind());
            let outer = (self.u.unsqueeze(1) * &self.v).view_as(g);
            (g - along * outer) / &self.sigma
        })
    }

    fn unit(&self, x: &Tensor) -> Tensor {
        x / x.norm().clamp_min(self.eps)
    }
}

fn matrix(weight: &Tensor) -> Tensor {
    weight.detach().flatten(1, -1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Tensor, SpectralNorm) {
        let w = Tensor::from_slice(&[1f64, 2., 3., 4.]).view([2, 2]);
        let u = Tensor::from_slice(&[1f64, 0.]);
        (w.shallow_clone(), SpectralNorm::new(u, w.zeros_like().get(0), 1e-12))
    }

    fn sigma(norm: &mut SpectralNorm, w: &Tensor) -> f64 {
        norm.scale(w, &mut w.zeros_like());
        norm.sigma().double_value(&[])
    }

    #[test]
    fn sigma_converges_as_computed_by_hand() {
        let (w, mut norm) = example();
        for expected in [5.403702, 5.464984, 5.464986] {
            norm.advance(&w);
            assert!((sigma(&mut norm, &w) - expected).abs() < 1e-6);
        }
        let diagonal = Tensor::from_slice(&[3f64, 0., 0., 1.]).view([2, 2]);
        for _ in 0..60 {
            norm.advance(&diagonal);
        }
        assert!((sigma(&mut norm, &diagonal) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_gradient_treats_u_and_v_as_constants() {
        let (w, mut norm) = example();
        for _ in 0..50 {
            norm.advance(&w);
        }
        let mut scaled = w.zeros_like();
        norm.scale(&w, &mut scaled);
        let gradient = norm.pull_back(&w.ones_like(), &scaled);
        let expected = [0.104954, 0.072259, 0.006594, -0.067314];
        for (i, e) in expected.iter().enumerate() {
            let got = gradient.double_value(&[i as i64 / 2, i as i64 % 2]);
            assert!((got - e).abs() < 1e-6, "{got} is not {e}");
        }
        assert!((gradient * w).sum(tch::Kind::Double).double_value(&[]).abs() < 1e-9);
    }

    #[test]
    fn the_pulled_back_gradient_equals_autograd_through_the_division() {
        tch::manual_seed(3);
        let w = Tensor::randn([4, 3, 2, 2], (tch::Kind::Double, tch::Device::Cpu));
        let u = Tensor::randn([4], (tch::Kind::Double, tch::Device::Cpu));
        let mut norm = SpectralNorm::new(u, Tensor::zeros([12], tch::kind::DOUBLE_CPU), 1e-12);
        norm.advance(&w);
        let mut scaled = w.zeros_like();
        norm.scale(&w, &mut scaled);
        let direction = w.sin();
        let pulled = norm.pull_back(&direction, &scaled);

        let leaf = w.copy().set_requires_grad(true);
        let sigma = norm.u.dot(&leaf.flatten(1, -1).mv(&norm.v));
        let loss = (&leaf / sigma * direction).sum(tch::Kind::Double);
        let auto = Tensor::run_backward(&[loss], &[&leaf], false, false).remove(0);
        assert!((pulled - auto).abs().max().double_value(&[]) < 1e-12);
    }
}
