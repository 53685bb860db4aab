//! Resizers of metrics, each under its own name: a score says nothing without it.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// How images reach an extractor's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resizer {
    /// Pillow's bicubic filter (a = −0.5), antialiased, to the bit.
    PilBicubic,
    /// Pillow's triangle filter, antialiased, to the bit.
    PilBilinear,
    /// TensorFlow 1's `resize_bilinear` with neither aligned corners nor pixel centres: what the scores of
    /// 2016 to 2020 used. Not antialiased; the result is not rounded to whole levels.
    Tf1Bilinear,
    /// Images stay as they are: the extractor resizes them itself.
    Extractor,
}

impl fmt::Display for Resizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PilBicubic => "pil-bicubic",
            Self::PilBilinear => "pil-bilinear",
            Self::Tf1Bilinear => "tf1-bilinear",
            Self::Extractor => "extractor",
        })
    }
}

impl Resizer {
    /// Square images (N, 3, S, S) in u8 to (N, 3, side, side), u8 from Pillow's filters and single
    /// precision (0 to 255) from TensorFlow's. (Pillow 13 resizes columns first where the height shrinks
    /// much more than the width, which moves roundings; of squares rows, as versions before it always do.)
    ///
    /// # Panics
    /// If the images have another shape or type.
    pub fn apply(self, images: &Tensor, side: i64) -> Tensor {
        let (n, c, h, w) = images.size4().expect("images (N, C, S, S)");
        assert_eq!(h, w, "square images");
        let filter = match self {
            Self::Extractor => return images.shallow_clone(),
            Self::Tf1Bilinear => return legacy(images, side),
            Self::PilBicubic => Filter { reach: 2.0, weigh: cubic },
            Self::PilBilinear => Filter { reach: 1.0, weigh: triangle },
        };
        let Some(taps) = filter.taps(w as usize, side as usize) else {
            return images.shallow_clone();
        };
        let pixels =
            Vec::<u8>::try_from(images.to_device(Device::Cpu).reshape([-1])).expect("images in u8");
        let (plane, out_plane) = ((h * w) as usize, (side * side) as usize);
        let mut out = vec![0; (n * c * side * side) as usize];
        let threads = tch::get_num_threads().max(1) as usize;
        let share = ((n * c) as usize).div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            for (from, to) in pixels.chunks(share * plane).zip(out.chunks_mut(share * out_plane)) {
                let taps = &taps;
                scope.spawn(move || {
                    for (from, to) in from.chunks(plane).zip(to.chunks_mut(out_plane)) {
                        resample(from, w as usize, taps, to);
                    }
                });
            }
        });
        Tensor::from_slice(&out).view([n, c, side, side]).to_device(images.device())
    }
}

#[derive(Debug, Clone, Copy)]
struct Filter {
    reach: f64,
    weigh: fn(f64) -> f64,
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Cubic convolution, a = −0.5, in the order of operations that Pillow rounds in.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Where an output pixel begins to read, and with which weights, in units of 2⁻²².
type Taps = (usize, Vec<i32>);

const BITS: u32 = 22;

impl Filter {
    /// The weights of each of `to` outputs over `from` inputs; nothing where no resizing is due.
    fn taps(self, from: usize, to: usize) -> Option<Vec<Taps>> {
        if from == to {
            return None;
        }
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let reach = self.reach * stretch;
        let tap = |i: usize| {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - reach + 0.5).max(0.0) as usize;
            let end = ((centre + reach + 0.5) as usize).min(from);
            let weigh = |at: usize| (self.weigh)((at as f64 - centre + 0.5) * (1.0 / stretch));
            let weights: Vec<f64> = (first..end).map(weigh).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |w: &f64| {
                let scaled = w / sum * f64::from(1 << BITS);
                (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i32
            };
            (first, weights.iter().map(fixed).collect())
        };
        Some((0..to).map(tap).collect())
    }
}

/// One square plane: along rows first, rounded to u8 between the passes as Pillow does.
fn resample(from: &[u8], width: usize, taps: &[Taps], to: &mut [u8]) {
    let level = |sum: i32| ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8;
    let mut rows = Vec::with_capacity(width * taps.len());
    for row in from.chunks(width) {
        rows.extend(taps.iter().map(|(first, weights)| {
            let pixels = &row[*first..][..weights.len()];
            level(pixels.iter().zip(weights).map(|(p, w)| i32::from(*p) * w).sum())
        }));
    }
    let mut sums = vec![0i32; taps.len()];
    for (out, (first, weights)) in to.chunks_mut(taps.len()).zip(taps) {
        sums.fill(0);
        for (row, w) in rows[first * taps.len()..].chunks(taps.len()).zip(weights) {
            for (sum, p) in sums.iter_mut().zip(row) {
                *sum += i32::from(*p) * w;
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = level(*sum);
        }
    }
}

/// The corner of output i is at input i · in / out, in single precision as there.
fn legacy(images: &Tensor, side: i64) -> Tensor {
    let x = images.to_kind(Kind::Float);
    let (_, _, h, w) = x.size4().expect("images (N, C, H, W)");
    let float = (Kind::Float, x.device());
    let corners = |length: i64| {
        let at = Tensor::arange(side, float) * f64::from(length as f32 / side as f32);
        let low = at.floor();
        let high = (&low + 1.0).clamp_max((length - 1) as f64);
        (low.to_kind(Kind::Int64), high.to_kind(Kind::Int64), at - low)
    };
    let between = |a: Tensor, b: Tensor, share: &Tensor| &a + (b - &a) * share;
    let (left, right, share) = corners(w);
    let rows = between(x.index_select(3, &left), x.index_select(3, &right), &share);
    let (top, bottom, share) = corners(h);
    between(rows.index_select(2, &top), rows.index_select(2, &bottom), &share.unsqueeze(1))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Case {
        size: i64,
        side: i64,
        bicubic: String,
        bilinear: String,
    }

    /// An image of hashed bytes, as `tests/golden/extractors.py` makes it.
    fn picture(number: usize, side: i64) -> Tensor {
        let unit = golden::hashed(&format!("picture{number}"), &[1, 3, side, side]);
        ((unit + 1.0) * 128.0).floor().to_kind(Kind::Uint8)
    }

    fn digest(image: &Tensor) -> String {
        let bytes = Vec::<u8>::try_from(image.reshape([-1])).unwrap();
        common::files::sha256(&bytes)[..12].to_owned()
    }

    #[test]
    fn two_hundred_images_equal_pillow_s_to_the_bit() {
        let text = include_str!("../../../tests/golden/resize.json");
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        assert_eq!(cases.len(), 200);
        for (number, case) in cases.iter().enumerate() {
            let image = picture(number, case.size);
            for (resizer, expected) in
                [(Resizer::PilBicubic, &case.bicubic), (Resizer::PilBilinear, &case.bilinear)]
            {
                assert_eq!(
                    &digest(&resizer.apply(&image, case.side)),
                    expected,
                    "{resizer} {case:?}"
                );
            }
        }
    }

    #[test]
    fn the_legacy_resizer_reads_from_corners_without_antialiasing() {
        let ramp = Tensor::arange(4, (Kind::Uint8, Device::Cpu)) * 10;
        let ramp = ramp.to_kind(Kind::Uint8).expand([1, 3, 4, 4], false).contiguous();
        let row = |side| {
            let out = Resizer::Tf1Bilinear.apply(&ramp, side);
            Vec::<f32>::try_from(out.get(0).get(2).get(side - 1)).unwrap()
        };
        assert_eq!(row(8), [0., 5., 10., 15., 20., 25., 30., 30.]);
        assert_eq!(row(2), [0., 20.]);
        assert_eq!(row(4), [0., 10., 20., 30.]);
    }
}
