//! A procedural labelled set: shapes, textures and colours, for trying things without a data set.
//!
//! The decimal digits of a class decide what its pictures show; position, size, angle,
//! light and background vary within it. Ten classes already differ in shape, texture and hue at once.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::Error;
use crate::catalog::{Catalog, Class, Item, Place, Split};

const SHAPES: [&str; 10] =
    ["disc", "square", "triangle", "ring", "cross", "star", "hexagon", "crescent", "bar", "frame"];
const HUES: [&str; 10] =
    ["red", "orange", "yellow", "lime", "green", "teal", "azure", "blue", "violet", "pink"];
const TEXTURES: [&str; 10] = [
    "plain", "striped", "checked", "dotted", "ringed", "shaded", "waved", "gridded", "spoked",
    "speckled",
];

/// The most classes that differ: ten shapes in ten hues with ten textures.
pub const MAX_CLASSES: u32 = 1000;

/// What a synthetic set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synth {
    /// Training images; pictures from this number on belong to `val`.
    pub images: u64,
    /// Validation images.
    pub val_images: u64,
    /// Classes, 1 to [`MAX_CLASSES`]; picture `i` has class `i % classes`.
    pub classes: u32,
    /// Pixels a side, 1 to 4096.
    pub side: u32,
    /// Another seed, other pictures.
    pub seed: u64,
}

/// What all pictures of a class share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    shape: usize,
    hue: usize,
    texture: usize,
}

impl Look {
    /// Digits a, b, c of the class (a the units) give shape a, hue a + b, texture a + b + c, modulo
    /// ten: one look per class below 1,000, and neighbours that differ in all three.
    fn of(class: u32) -> Self {
        let [a, b, c] = [class % 10, class / 10 % 10, class / 100 % 10].map(|digit| digit as usize);
        Self { shape: a, hue: (a + b) % 10, texture: (a + b + c) % 10 }
    }

    fn name(self) -> String {
        format!("{}-{}-{}", TEXTURES[self.texture], HUES[self.hue], SHAPES[self.shape])
    }
}

impl Synth {
    /// The catalog of the set: every picture by number.
    ///
    /// # Errors
    /// Sizes or counts outside their ranges.
    pub fn catalog(self) -> Result<Catalog, Error> {
        let refuse = |problem| Error::Usage { problem, mend: "see `shard-imagenet synth --help`" };
        if !(1..=MAX_CLASSES).contains(&self.classes) {
            let problem = format!("--classes {} is not within 1 to {MAX_CLASSES}", self.classes);
            return Err(refuse(problem));
        }
        if !(1..=4096).contains(&self.side) {
            return Err(refuse(format!("--size {} is not within 1 to 4096 pixels", self.side)));
        }
        if self.images < u64::from(self.classes) {
            let Self { images, classes, .. } = self;
            return Err(refuse(format!(
                "--images {images} gives {classes} classes less than one each"
            )));
        }
        let item = |picture| {
            let (split, number) = match picture < self.images {
                true => (Split::Train, picture),
                false => (Split::Val, picture - self.images),
            };
            Item {
                key: format!("{}_{number:08}", split.name()).into(),
                split,
                label: Some((picture % u64::from(self.classes)) as u32),
                place: Place::Drawn { picture },
                length: self.side * self.side * 3,
            }
        };
        Ok(Catalog {
            items: (0..self.images + self.val_images).map(item).collect(),
            classes: (0..self.classes).map(|class| Class::named(Look::of(class).name())).collect(),
            synth: Some(self),
            ..Catalog::default()
        })
    }

    /// Appends picture number `picture` to `pixels`: (side, side, 3), RGB.
    pub fn draw(&self, picture: u64, pixels: &mut Vec<u8>) {
        let seed = xxh3_64_with_seed(&picture.to_le_bytes(), self.seed);
        let scene = Scene::new(Look::of((picture % u64::from(self.classes)) as u32), seed);
        pixels.reserve((self.side * self.side * 3) as usize);
        // Coordinates run from -1 to 1 whatever the size; one pixel is `step` wide.
        let step = 2.0 / self.side as f32;
        for row in 0..self.side {
            for column in 0..self.side {
                let at = [column, row].map(|i| (i as f32 + 0.5) * step - 1.0);
                pixels.extend(
                    scene.colour(at, step).map(|v| (v.clamp(0.0, 1.0) * 255.0 + 0.5) as u8),
                );
            }
        }
    }
}

/// One picture: a look and everything that varies within its class.
struct Scene {
    look: Look,
    centre: [f32; 2],
    radius: f32,
    turn: [f32; 2],
    paint: [f32; 3],
    shade: [f32; 3],
    background: [[f32; 3]; 2],
    grain: f32,
    seed: u64,
}

impl Scene {
    fn new(look: Look, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut uniform = |low: f32, high: f32| {
            low + (high - low) * (random.next_u32() >> 8) as f32 / (1 << 24) as f32
        };
        let angle = uniform(-0.6, 0.6);
        let hue = look.hue as f32 / 10.0 + uniform(-0.03, 0.03);
        let light = uniform(0.75, 1.0);
        let (ground, tilt) = (uniform(0.0, 1.0), uniform(0.1, 0.3));
        let depth = uniform(0.2, 0.7);
        Self {
            look,
            centre: [uniform(-0.3, 0.3), uniform(-0.3, 0.3)],
            radius: uniform(0.4, 0.65),
            turn: [angle.cos(), angle.sin()],
            paint: hsv(hue, 0.85, light),
            shade: hsv(hue, 0.7, light * 0.45),
            background: [hsv(ground, 0.15, depth), hsv(ground + 0.1, tilt, depth + 0.25)],
            grain: uniform(0.01, 0.05),
            seed,
        }
    }

    /// The colour at a point, with edges as soft as one pixel (`step`).
    fn colour(&self, at: [f32; 2], step: f32) -> [f32; 3] {
        let [x, y] = [at[0] - self.centre[0], at[1] - self.centre[1]].map(|v| v / self.radius);
        let [cos, sin] = self.turn;
        let local = [cos * x + sin * y, cos * y - sin * x];
        let inside = soft(-distance(self.look.shape, local) * self.radius, step);
        let texture = texture(self.look.texture, local, step / self.radius);
        let noise = (hash(self.seed, at) - 0.5) * self.grain;
        let height = at[1] * 0.5 + 0.5;
        std::array::from_fn(|c| {
            let ground = mix(self.background[0][c], self.background[1][c], height);
            mix(ground, mix(self.paint[c], self.shade[c], texture), inside) + noise
        })
    }
}

fn mix(a: f32, b: f32, share: f32) -> f32 {
    a + (b - a) * share
}

/// 0 below -step/2, 1 above step/2, a ramp between: one pixel of antialiasing.
fn soft(v: f32, step: f32) -> f32 {
    (v / step + 0.5).clamp(0.0, 1.0)
}

/// Hue in turns, saturation and value to RGB.
fn hsv(hue: f32, saturation: f32, value: f32) -> [f32; 3] {
    [5.0, 3.0, 1.0].map(|n: f32| {
        let k = (n + hue * 6.0).rem_euclid(6.0);
        value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}

/// A signed distance to the edge of the shape, negative inside; the shape reaches about 1 from 0.
fn distance(shape: usize, [x, y]: [f32; 2]) -> f32 {
    let radius = x.hypot(y);
    let angle = y.atan2(x);
    let polygon = |sides: f32| {
        let sector = std::f32::consts::TAU / sides;
        let folded = (angle + std::f32::consts::FRAC_PI_2).rem_euclid(sector) - sector / 2.0;
        radius * folded.cos() - (sector / 2.0).cos()
    };
    match SHAPES[shape] {
        "disc" => radius - 0.9,
        "square" => x.abs().max(y.abs()) - 0.75,
        "triangle" => polygon(3.0),
        "ring" => (radius - 0.7).abs() - 0.22,
        "cross" => (x.abs().max(y.abs()) - 0.9).max(x.abs().min(y.abs()) - 0.28),
        "star" => radius - 0.65 - 0.3 * (angle * 5.0 + std::f32::consts::FRAC_PI_2).cos(),
        "hexagon" => polygon(6.0),
        "crescent" => (radius - 0.9).max(0.75 - (x - 0.4).hypot(y)),
        "bar" => (x.abs() - 0.95).max(y.abs() - 0.35),
        _ => (x.abs().max(y.abs()) - 0.6).abs() - 0.2,
    }
}

/// How much of the shade shows at a point of the shape, 0 to 1.
fn texture(texture: usize, [x, y]: [f32; 2], step: f32) -> f32 {
    let wave = |v: f32| soft((v * 12.0).sin() / 12.0, step);
    match TEXTURES[texture] {
        "plain" => 0.0,
        "striped" => wave(y),
        "checked" => {
            let (a, b) = (wave(x), wave(y));
            a + b - 2.0 * a * b
        }
        "dotted" => {
            let [u, v] = [x, y].map(|v| (v * 3.0).rem_euclid(1.0) - 0.5);
            soft((0.3 - u.hypot(v)) / 3.0, step)
        }
        "ringed" => wave(x.hypot(y) * 1.2),
        "shaded" => (0.5 + 0.6 * y).clamp(0.0, 1.0),
        "waved" => wave(x + 0.12 * (y * 8.0).sin()),
        "gridded" => {
            let lines = [x, y].map(|v| (v * 3.0).rem_euclid(1.0) - 0.5).map(f32::abs);
            soft((lines[0].max(lines[1]) - 0.36) / 3.0, step)
        }
        "spoked" => soft((y.atan2(x) * 6.0).sin() * 0.1, step),
        _ => hash(1, [x, y].map(|v| (v * 9.0).floor())).powi(2),
    }
}

/// White noise in 0 to 1 from a point.
fn hash(seed: u64, at: [f32; 2]) -> f32 {
    let bits = u64::from(at[0].to_bits()) << 32 | u64::from(at[1].to_bits());
    // The finisher of SplitMix64.
    let mut z = bits ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const SET: Synth = Synth { images: 40, val_images: 4, classes: 10, side: 16, seed: 5 };

    #[test]
    fn a_thousand_classes_have_a_thousand_looks() {
        let names: HashSet<String> = (0..MAX_CLASSES).map(|class| Look::of(class).name()).collect();
        assert_eq!(names.len(), 1000);
    }

    #[test]
    fn a_picture_follows_from_seed_and_number_and_differs_from_every_other() {
        let draw = |synth: Synth, picture| {
            let mut pixels = Vec::new();
            synth.draw(picture, &mut pixels);
            pixels
        };
        let all: HashSet<Vec<u8>> = (0..44).map(|picture| draw(SET, picture)).collect();
        assert_eq!(all.len(), 44);
        assert_eq!(draw(SET, 3), draw(SET, 3));
        assert_ne!(draw(SET, 3), draw(Synth { seed: 6, ..SET }, 3));
        assert_eq!(draw(SET, 0).len(), 16 * 16 * 3);
    }

    #[test]
    fn pure_hues_come_out_as_named() {
        assert_eq!(hsv(0.0, 1.0, 1.0), [1.0, 0.0, 0.0]);
        assert_eq!(hsv(1.0 / 3.0, 1.0, 1.0), [0.0, 1.0, 0.0]);
        assert_eq!(hsv(2.0 / 3.0, 1.0, 1.0), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn more_classes_than_images_or_looks_are_refused() {
        for wrong in [
            Synth { classes: 0, ..SET },
            Synth { classes: 1001, images: 2000, ..SET },
            Synth { images: 9, ..SET },
            Synth { side: 0, ..SET },
        ] {
            let error = wrong.catalog().expect_err("out of range");
            assert!(error.is_input(), "{error}");
        }
    }
}
