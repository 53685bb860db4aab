//! For tests: tensors that depend on a name alone, as `tests/golden/make.py` makes them too, and how close two results are.

#![forbid(unsafe_code)]

use tch::{Kind, Tensor};

const SKETCH: usize = 32;

fn splitmix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn fnv(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// Values in [-1, 1) that depend on name and position alone.
pub fn hashed(name: &str, shape: &[i64]) -> Tensor {
    let (seed, count) = (fnv(name), shape.iter().product::<i64>() as u64);
    let value = |i| (splitmix(seed ^ i) >> 11) as f64 * 2f64.powi(-52) - 1.0;
    Tensor::from_slice(&(0..count).map(value).collect::<Vec<_>>()).view(shape)
}

/// Signed sums into `SKETCH` buckets: the norm of a difference survives.
///
/// # Panics
/// If libtorch refuses.
#[must_use]
pub fn sketch(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().to_kind(Kind::Double).reshape([-1]);
    let values = Vec::<f64>::try_from(flat).expect("a flat tensor of doubles");
    if values.len() <= SKETCH {
        return values;
    }
    let mut out = vec![0.0; SKETCH];
    for (i, value) in values.into_iter().enumerate() {
        let r = splitmix(i as u64);
        out[(r % SKETCH as u64) as usize] += if r >> 63 == 1 { value } else { -value };
    }
    out
}

/// ‖values‖₂.
#[must_use]
pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// ‖got − expected‖ ≤ tolerance · (‖expected‖ + floor).
///
/// # Panics
/// If not.
pub fn close(what: &str, got: &[f64], expected: &[f64], tolerance: f64, floor: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let difference: Vec<_> = got.iter().zip(expected).map(|(a, b)| a - b).collect();
    let (off, size) = (norm(&difference), norm(expected));
    assert!(off <= tolerance * (size + floor), "{what}: off by {off:e} where {size:e} is expected");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sketch_keeps_the_size_of_a_difference() {
        let (a, b) = (hashed("a", &[1000]), hashed("b", &[1000]));
        let whole = (&a - &b).norm().double_value(&[]);
        let (a, b) = (sketch(&a), sketch(&b));
        let difference: Vec<_> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        assert!((0.5..2.0).contains(&(norm(&difference) / whole)));
    }
}
