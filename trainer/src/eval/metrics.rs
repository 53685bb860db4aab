//! Scores of generated images as functions of features, all in double precision.
//!
//! Features are (N, D), one row an image; "real" rows come from the reference, "fake" rows from G.
//! Nothing here knows where features come from: see [`crate::eval::fid`].

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Rows of one side of a block of a distance matrix, which bounds the memory of [`prdc`].
const BLOCK: i64 = 1024;

/// Mean and covariance of features, gathered batch by batch.
#[derive(Debug)]
pub struct Moments {
    /// Rows seen.
    pub count: i64,
    sum: Tensor,   // (D)
    outer: Tensor, // (D, D)
}

impl Moments {
    /// Of no rows yet, of features `width` wide.
    #[must_use]
    pub fn new(width: i64) -> Self {
        let double = (Kind::Double, tch::Device::Cpu);
        Self {
            count: 0,
            sum: Tensor::zeros([width], double),
            outer: Tensor::zeros([width, width], double),
        }
    }

    /// Takes rows (N, D) in.
    pub fn add(&mut self, features: &Tensor) {
        let x = double(features);
        self.count += x.size()[0];
        self.sum += x.sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
        self.outer += x.tr().matmul(&x);
    }

    /// μ, (D).
    pub fn mean(&self) -> Tensor {
        &self.sum / self.count as f64
    }

    /// Σ over N − 1, (D, D).
    pub fn covariance(&self) -> Tensor {
        let mean = self.mean();
        (&self.outer - mean.outer(&mean) * self.count as f64) / (self.count - 1) as f64
    }
}

fn double(x: &Tensor) -> Tensor {
    x.to_device(tch::Device::Cpu).to_kind(Kind::Double)
}

/// The Fréchet distance of two Gaussians: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½).
///
/// # Shapes
/// Means (D), covariances (D, D), symmetric and positive semidefinite.
///
/// # Source
/// Heusel et al. 2017. The trace of the root is that of (Σ₁^½ Σ₂ Σ₁^½)^½, which is symmetric, so no
/// root of a general matrix is needed and nothing imaginary has to be dropped.
#[must_use]
pub fn frechet((mean1, cov1): (&Tensor, &Tensor), (mean2, cov2): (&Tensor, &Tensor)) -> f64 {
    let (values, vectors) = cov1.linalg_eigh("L");
    let root = (&vectors * values.clamp_min(0.0).sqrt()).matmul(&vectors.tr());
    let product = root.matmul(cov2).matmul(&root);
    let product = (&product + product.tr()) / 2.0; // rounding leaves it a little unsymmetric
    let roots = product.linalg_eigvalsh("L").clamp_min(0.0).sqrt();
    let sum = |x: &Tensor| x.sum(Kind::Double).double_value(&[]);
    sum(&(mean1 - mean2).square()) + sum(&cov1.trace()) + sum(&cov2.trace()) - 2.0 * sum(&roots)
}

/// A mean over parts, and the standard deviation between them (over their number, not less one).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation; 0 for one part.
    pub std: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        Self { mean, std: var.sqrt() }
    }
}

/// The Inception score exp E[KL(p(y|x) ‖ p(y))] over `splits` consecutive parts.
///
/// # Shapes
/// `probabilities` (N, K), rows that sum to 1, N ≥ `splits`.
///
/// # Source
/// Salimans et al. 2016.
#[must_use]
pub fn inception_score(probabilities: &Tensor, splits: i64) -> Spread {
    let p = double(probabilities);
    let n = p.size()[0];
    let score = |i: i64| {
        let (from, to) = (i * n / splits, (i + 1) * n / splits);
        let p = p.narrow(0, from, to - from);
        let marginal = p.mean_dim([0i64].as_slice(), true, Kind::Double);
        // p ln p with 0 ln 0 = 0.
        let kl = p.xlogy(&p) - p.xlogy(&marginal);
        (kl.sum(Kind::Double).double_value(&[]) / (to - from) as f64).exp()
    };
    Spread::of(&(0..splits).map(score).collect::<Vec<_>>())
}

/// The kernel distance: unbiased squared MMD with the kernel (x·y / D + 1)³, over consecutive parts
/// of `size` rows (all rows in one part where there are fewer).
///
/// # Source
/// Bińkowski et al. 2018. Disjoint parts of rows in random order instead of their overlapping random
/// subsets: unbiased either way, and repeatable (ours).
///
/// # Panics
/// If a side has fewer than two rows.
#[must_use]
pub fn kernel_distance(real: &Tensor, fake: &Tensor, size: i64) -> Spread {
    let (real, fake) = (double(real), double(fake));
    let rows = real.size()[0].min(fake.size()[0]);
    assert!(rows > 1, "an unbiased estimate needs two rows a side");
    let size = size.clamp(2, rows);
    let width = real.size()[1] as f64;
    let kernel = |x: &Tensor, y: &Tensor| (x.matmul(&y.tr()) / width + 1.0).pow_tensor_scalar(3);
    let sum = |k: &Tensor| k.sum(Kind::Double).double_value(&[]);
    let part = |i: i64| {
        let (x, y) = (real.narrow(0, i * size, size), fake.narrow(0, i * size, size));
        let within = |x: &Tensor| {
            let k = kernel(x, x);
            (sum(&k) - sum(&k.trace())) / (size * (size - 1)) as f64
        };
        within(&x) + within(&y) - 2.0 * sum(&kernel(&x, &y)) / (size * size) as f64
    };
    Spread::of(&(0..rows / size).map(part).collect::<Vec<_>>())
}

/// How well the manifolds of real and fake features, as unions of balls, cover each other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Prdc {
    /// Share of fakes within some real ball.
    pub precision: f64,
    /// Share of reals within some fake ball.
    pub recall: f64,
    /// Real balls a fake lies in, over k; can exceed 1.
    pub density: f64,
    /// Share of real balls that hold a fake.
    pub coverage: f64,
}

/// Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020). A ball
/// reaches to its centre's k-th nearest neighbour on its own side; its surface is outside.
///
/// # Shapes
/// `real` (N, D), `fake` (M, D), both sides with more than `k` rows.
#[must_use]
pub fn prdc(real: &Tensor, fake: &Tensor, k: i64) -> Prdc {
    let (real, fake) = (double(real), double(fake));
    let (n, m) = (real.size()[0], fake.size()[0]);
    let (real_radii, fake_radii) = (radii(&real, k), radii(&fake, k));
    let in_real_balls = Tensor::zeros([m], (Kind::Double, tch::Device::Cpu));
    let (mut recalled, mut covered) = (0.0, 0.0);
    for at in (0..n).step_by(BLOCK as usize) {
        let rows = BLOCK.min(n - at);
        let distance = squared_distances(&real.narrow(0, at, rows), &fake); // (rows, M)
        let inside = distance.lt_tensor(&real_radii.narrow(0, at, rows).unsqueeze(1));
        let _ = in_real_balls.shallow_clone().g_add_(&inside.sum_dim_intlist(
            [0i64].as_slice(),
            false,
            Kind::Double,
        ));
        covered += count(&inside.any_dim(1, false));
        recalled += count(&distance.lt_tensor(&fake_radii.unsqueeze(0)).any_dim(1, false));
    }
    Prdc {
        precision: count(&in_real_balls.gt(0.0)) / m as f64,
        recall: recalled / n as f64,
        density: in_real_balls.sum(Kind::Double).double_value(&[]) / (k * m) as f64,
        coverage: covered / n as f64,
    }
}

fn count(mask: &Tensor) -> f64 {
    mask.sum(Kind::Int64).double_value(&[])
}

/// ‖x − y‖², (N, M).
fn squared_distances(x: &Tensor, y: &Tensor) -> Tensor {
    let norms = |x: &Tensor| x.square().sum_dim_intlist([1i64].as_slice(), true, Kind::Double);
    (norms(x) + norms(y).tr() - x.matmul(&y.tr()) * 2.0).clamp_min(0.0)
}

/// Squared distance of each row to its k-th nearest other row, (N).
fn radii(x: &Tensor, k: i64) -> Tensor {
    let n = x.size()[0];
    let block = |at: usize| {
        let (at, rows) = (at as i64, BLOCK.min(n - at as i64));
        let distance = squared_distances(&x.narrow(0, at, rows), x);
        let _ = distance.diagonal(at, 0, 1).fill_(f64::INFINITY);
        distance.kthvalue(k, 1, false).0
    };
    Tensor::cat(&(0..n as usize).step_by(BLOCK as usize).map(block).collect::<Vec<_>>(), 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use golden::hashed;
    use tch::Device;

    use super::*;

    const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

    fn near(what: &str, got: f64, expected: f64, tolerance: f64) {
        assert!(
            (got - expected).abs() <= tolerance * expected.abs(),
            "{what}: {got}, not {expected}"
        );
    }

    fn moments(x: &Tensor) -> Moments {
        let mut moments = Moments::new(x.size()[1]);
        for part in x.split(100, 0) {
            moments.add(&part);
        }
        moments
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        let (a, b) = (moments(a), moments(b));
        frechet((&a.mean(), &a.covariance()), (&b.mean(), &b.covariance()))
    }

    /// bigbigan.md §7, item 24.
    #[test]
    fn fid_of_two_gaussians_is_ten_and_of_a_set_with_itself_nothing() {
        let (zero, one) = (Tensor::zeros([2], DOUBLE), Tensor::eye(2, DOUBLE));
        let mean = Tensor::from_slice(&[1f64, 2.0]);
        let cov = Tensor::diag(&Tensor::from_slice(&[4f64, 9.0]), 0);
        near("fid", frechet((&zero, &one), (&mean, &cov)), 10.0, 1e-12);
        let x = hashed("real", &[500, 32]) + 1000.0;
        assert!(distance(&x, &x).abs() < 1e-6, "{}", distance(&x, &x));
    }

    /// bigbigan.md §7, item 25.
    #[test]
    fn inception_score_of_uniform_one_hot_and_mixed_rows() {
        let uniform = Tensor::full([40, 5], 0.2, DOUBLE);
        near("uniform", inception_score(&uniform, 2).mean, 1.0, 1e-12);
        let one_hot = Tensor::eye(7, DOUBLE).repeat([4, 1]);
        near("one-hot", inception_score(&one_hot, 4).mean, 7.0, 1e-12);
        let mixed = Tensor::from_slice2(&[[0.9f64, 0.1], [0.1, 0.9]]);
        near("mixed", inception_score(&mixed, 1).mean, 1.444935, 1e-6);
    }

    /// NumPy, SciPy and scikit-learn, and torch-fidelity, on the same features: `tests/golden/metrics.py`.
    #[test]
    fn every_score_agrees_with_scipy_and_torch_fidelity() {
        let real = hashed("real", &[700, 24]).tanh() * 3.0;
        let fake = hashed("fake", &[600, 24]) * 2.6 + 0.25;
        let logits = hashed("logits", &[600, 10]) * 4.0;
        let is = inception_score(&logits.softmax(1, Kind::Double), 4);
        let kid = kernel_distance(&real, &fake, 150);
        let p = prdc(&real, &fake, 5);
        let got = BTreeMap::from([
            ("fid", distance(&real, &fake)),
            ("is_mean", is.mean),
            ("is_std", is.std),
            ("kid_mean", kid.mean),
            ("kid_std", kid.std),
            ("kid_whole", kernel_distance(&real, &fake, 1000).mean),
            ("precision", p.precision),
            ("recall", p.recall),
            ("density", p.density),
            ("coverage", p.coverage),
        ]);
        for (text, scores) in [
            (include_str!("../../../tests/golden/metrics.json"), got.len()),
            (include_str!("../../../tests/golden/fidelity.json"), 6),
        ] {
            let golden: BTreeMap<String, f64> = serde_json::from_str(text).unwrap();
            assert_eq!(golden.len(), scores);
            for (name, expected) in golden {
                near(&name, got[name.as_str()], expected, 1e-6);
            }
        }
    }

    #[test]
    fn blocks_of_a_distance_matrix_join_without_a_seam() {
        let (real, fake) = (hashed("real", &[2100, 3]), hashed("fake", &[1500, 3]) * 0.5);
        let near = |x: &Tensor, y: &Tensor| Tensor::cdist(x, y, 2.0, 2);
        let radius = |x: &Tensor| near(x, x).kthvalue(4, 1, false).0; // itself is the first
        let d = near(&real, &fake);
        let recall = count(&d.lt_tensor(&radius(&fake).unsqueeze(0)).any_dim(1, false)) / 2100.0;
        let inside = d.lt_tensor(&radius(&real).unsqueeze(1));
        let got = prdc(&real, &fake, 3);
        assert_eq!(got.recall, recall);
        assert_eq!(got.density, count(&inside) / 4500.0);
        assert_eq!(got.coverage, count(&inside.any_dim(1, false)) / 2100.0);
        assert_eq!(got.precision, count(&inside.any_dim(0, false)) / 1500.0);
    }
}
