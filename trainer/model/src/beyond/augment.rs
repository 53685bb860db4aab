use tch::{Kind, Tensor};
use torch_ext::context::autocast;

use crate::config::AugmentConfig;
use crate::networks::Augment;
use crate::nn::channels_last;

/// DiffAugment: what D sees, real or generated, in other colours, moved and with a square of zeros.
///
/// # Source
/// Zhao et al. 2020, appendix: brightness, saturation and contrast by ±0.5, 0 to 2 and 0.5 to 1.5; moved by up to an eighth
/// of the side, zeros coming in; a square of half the side, which may stick out, at zero.
#[derive(Debug)]
pub(super) struct DiffAugment(pub(super) AugmentConfig);

impl Augment for DiffAugment {
    fn uniforms(&self) -> i64 {
        7
    }

    fn apply(&self, x: &Tensor, uniforms: &Tensor) -> Tensor {
        // bfloat16 would round the pixels of real images and not those of G's.
        autocast(false, || {
            let AugmentConfig { colour, translation, cutout } = self.0;
            let mut x = x.shallow_clone();
            if colour {
                x = coloured(&x, uniforms);
            }
            if translation {
                x = moved(&x, uniforms);
            }
            if cutout {
                x = cut(&x, uniforms);
            }
            channels_last(&x)
        })
    }
}

/// Column `i` of the uniform numbers, (N, 1, 1, 1).
fn column(uniforms: &Tensor, i: i64) -> Tensor {
    uniforms.select(1, i).view([-1, 1, 1, 1])
}

/// A whole number of 0 … `count` − 1 by column `i`, (N, 1, 1, 1).
fn whole(uniforms: &Tensor, i: i64, count: i64) -> Tensor {
    let number = ((column(uniforms, i) + 1.0) * (0.5 * count as f64)).floor();
    number.clamp(0.0, count as f64 - 1.0).to_kind(Kind::Int64)
}

/// `share` of a side, to the nearest whole pixel.
fn part(side: i64, share: f64) -> i64 {
    (side as f64).mul_add(share, 0.5) as i64
}

/// Columns 0 to 2.
fn coloured(x: &Tensor, uniforms: &Tensor) -> Tensor {
    let each = |i: i64| column(uniforms, i);
    let x = x + each(0) * 0.5;
    let grey = x.mean_dim([1i64].as_slice(), true, None::<Kind>);
    let x = (x - &grey) * (each(1) + 1.0) + grey;
    let middle = x.mean_dim([1i64, 2, 3].as_slice(), true, None::<Kind>);
    (x - &middle) * (each(2) * 0.5 + 1.0) + middle
}

/// Columns 3 and 4.
fn moved(x: &Tensor, uniforms: &Tensor) -> Tensor {
    let size = x.size();
    [(3, 2), (4, 3)].into_iter().fold(x.shallow_clone(), |x, (i, dim)| {
        let (side, mut shape) = (size[dim], [1; 4]);
        shape[dim] = side;
        let most = part(side, 0.125);
        let own = Tensor::arange(side, (Kind::Int64, x.device())).view(shape);
        let from = own + whole(uniforms, i, 2 * most + 1) - most;
        let inside = from.ge(0).logical_and(&from.lt(side));
        // A gather has a deterministic gradient, which torch's grid sampler has not on CUDA.
        let from = from.clamp(0, side - 1).expand(&size, false);
        x.gather(dim as i64, &from, false) * inside
    })
}

/// Columns 5 and 6.
fn cut(x: &Tensor, uniforms: &Tensor) -> Tensor {
    let size = x.size();
    let [down, across] = [(5, 2), (6, 3)].map(|(i, dim)| {
        let (side, mut shape) = (size[dim], [1; 4]);
        shape[dim] = side;
        let cut = part(side, 0.5);
        let own = Tensor::arange(side, (Kind::Int64, x.device())).view(shape);
        let first = whole(uniforms, i, side + 1 - cut % 2) - cut / 2;
        own.ge_tensor(&first).logical_and(&own.lt_tensor(&(first + cut)))
    });
    x * down.logical_and(&across).logical_not()
}

#[cfg(test)]
mod tests {
    use golden::hashed;
    use tch::Device;

    use super::*;
    use crate::random::{Key, Prior, Purpose};

    const ALL: AugmentConfig = AugmentConfig { colour: true, translation: true, cutout: true };
    const NONE: AugmentConfig = AugmentConfig { colour: false, translation: false, cutout: false };

    fn uniforms(rows: i64) -> Tensor {
        let key = Key { seed: 5, purpose: Purpose::Augment, step: 0, update: 0 };
        key.latents(Prior::Uniform, 0..rows, 7, Device::Cpu)
    }

    /// By the numbers that a public DiffAugment drew.
    #[test]
    fn images_and_gradients_are_those_of_a_public_diffaugment() {
        let text = include_str!("../../../../tests/golden/augment.json");
        let golden: serde_json::Value = serde_json::from_str(text).unwrap();
        for case in golden.as_array().unwrap() {
            let (rows, side) = (4, case["side"].as_i64().unwrap());
            let read = |key: &str, shape: &[i64]| {
                let all: Vec<f32> = serde_json::from_value(case[key].clone()).unwrap();
                Tensor::from_slice(&all).view(shape)
            };
            let shape = [rows, 3, side, side];
            let x = hashed("x", &shape).to_kind(Kind::Float).set_requires_grad(true);
            let of = |name| case["policy"].as_str().unwrap().contains(name);
            let policy = AugmentConfig {
                colour: of("color"),
                translation: of("translation"),
                cutout: of("cutout"),
            };
            let found = DiffAugment(policy).apply(&x, &read("uniforms", &[rows, 7]));
            let off = |a: &Tensor, key| (a - read(key, &shape)).abs().max().double_value(&[]);
            assert!(off(&found, "images") < 2e-6, "{case}");
            let direction = hashed("direction", &shape).to_kind(Kind::Float);
            let along = (found * direction).sum(None::<Kind>);
            let gradient = Tensor::run_backward(&[along], &[&x], false, false).remove(0);
            assert!(off(&gradient, "gradient") < 2e-6, "{case}");
        }
    }

    #[test]
    fn an_image_is_changed_by_its_own_numbers_alone_and_not_at_all_without_a_policy() {
        let (x, u) = (Tensor::randn([6, 3, 16, 16], (Kind::Float, Device::Cpu)), uniforms(6));
        let whole = DiffAugment(ALL).apply(&x, &u);
        let rows = DiffAugment(ALL).apply(&x.narrow(0, 2, 3), &u.narrow(0, 2, 3));
        assert_eq!(whole.narrow(0, 2, 3), rows);
        let in_bf16 = autocast(true, || DiffAugment(ALL).apply(&x, &u));
        assert_eq!(in_bf16, whole, "in single precision always");
        assert_eq!(DiffAugment(NONE).apply(&x, &u), x);
    }

    #[test]
    fn every_place_is_as_likely_as_another() {
        let ones = Tensor::ones([4000, 1, 16, 16], (Kind::Float, Device::Cpu));
        let cutout = AugmentConfig { cutout: true, ..NONE };
        let kept = DiffAugment(cutout).apply(&ones, &uniforms(4000));
        // 8 of 16 rows go, from -4 … 12 on: an edge row in 4 or 5 of 17 places, a middle one in 8.
        let gone = 1f64 - kept.mean_dim([0i64, 1].as_slice(), false, Kind::Float);
        let at = |i: i64, j: i64| gone.double_value(&[i, j]);
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 0.03, "{found}");
        near(at(8, 8), (8f64 / 17.0).powi(2));
        near(at(0, 0), (5f64 / 17.0).powi(2));
        near(at(15, 8), 5.0 * 8.0 / 17f64.powi(2));
        let moved = AugmentConfig { translation: true, ..NONE };
        let kept = DiffAugment(moved).apply(&ones, &uniforms(4000));
        let kept = kept.mean_dim([0i64, 1].as_slice(), false, Kind::Float);
        // Two pixels each way: the edge row is gone in two of five.
        near(kept.double_value(&[0, 8]), 0.6);
        near(kept.double_value(&[8, 15]), 0.6);
        assert!((kept.double_value(&[8, 8]) - 1.0).abs() < 1e-6);
    }
}
