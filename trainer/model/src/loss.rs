//! The paper's losses. Formulas and nothing else.
//!
//! # Source
//! Paper §2. The sum over the enabled terms is used, as there; DeepMind's notebook takes the mean
//! over the three, a third of it.

use tch::{Kind, Tensor};

use crate::networks::Scores;
use crate::nn::single;

/// L_D = Σ over terms of mean(max(0, 1 − s)) on encoder pairs + mean(max(0, 1 + s)) on generator pairs.
/// Each term is clamped on its own. A scalar.
pub fn discriminator(encoder: &Scores, generator: &Scores) -> Tensor {
    let encoder = encoder.terms().map(|s| (1f64 - single(s)).relu());
    let generator = generator.terms().map(|s| (1f64 + single(s)).relu());
    total(encoder.chain(generator))
}

/// E's part of L_EG: Σ mean(s) on pairs (x, E(x)). A scalar.
pub fn encoder(scores: &Scores) -> Tensor {
    total(scores.terms().map(single))
}

/// G's part of L_EG: −Σ mean(s) on pairs (G(z), z). A scalar.
pub fn generator(scores: &Scores) -> Tensor {
    -encoder(scores)
}

fn total(terms: impl Iterator<Item = Tensor>) -> Tensor {
    let means = terms.map(|s| s.mean(None::<Kind>));
    means.reduce(|a, b| a + b).expect("a checked config enables at least one term")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(values: [f64; 3]) -> Scores {
        let one = |v: f64| Some(Tensor::from_slice(&[v]));
        Scores { sxz: one(values[0]), sx: one(values[1]), sz: one(values[2]) }
    }

    fn close(tensor: &Tensor, expected: f64) {
        let got = tensor.double_value(&[]);
        assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
    }

    #[test]
    fn the_three_terms_are_clamped_one_by_one() {
        let e = scores([0.5, -0.25, 2.0]);
        let g = scores([-0.5, 0.3, -3.0]);
        close(&discriminator(&e, &g), 3.55);
        close(&(encoder(&e) + generator(&g)), 5.45);
        // The hinge of the sum would be 0 here.
    }

    #[test]
    fn zero_scores_cost_two_a_term_and_nothing_to_e_and_g() {
        let (e, g) = (scores([0.0; 3]), scores([0.0; 3]));
        close(&discriminator(&e, &g), 6.0);
        close(&(encoder(&e) + generator(&g)), 0.0);
    }

    #[test]
    fn satisfied_margins_give_no_gradient_to_d_and_a_constant_one_to_e_and_g() {
        let leaf = |v: f64| Tensor::from_slice(&[v, v]).set_requires_grad(true);
        let (high, low) = (leaf(1.5), leaf(-1.5));
        let of = |s: &Tensor| Scores { sxz: Some(s.shallow_clone()), sx: None, sz: None };
        let d = discriminator(&of(&high), &of(&low));
        close(&d, 0.0);
        for g in Tensor::run_backward(&[d], &[&high, &low], false, false) {
            close(&g.abs().max(), 0.0);
        }
        let eg = encoder(&of(&high)) + generator(&of(&low));
        let grads = Tensor::run_backward(&[eg], &[&high, &low], false, false);
        close(&grads[0].min(), 0.5);
        close(&grads[1].max(), -0.5);
    }
}
