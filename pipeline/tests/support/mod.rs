//! Data folders and pictures made on the spot.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

use std::path::Path;
use std::sync::Arc;

use pipeline::index::{Class, Classes, Format, IndexWriter};
use pipeline::shard::ShardWriter;
use pipeline::{Cursor, Dataset, Error, Heap, Loader, LoaderConfig};

/// A picture with structure at all scales, different for each `seed`: RGB.
pub fn picture(width: usize, height: usize, seed: u64) -> Vec<u8> {
    let mut noise = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            let (x, y, s) = (x as f64, y as f64, seed as f64);
            for channel in 0..3 {
                let phase = s + f64::from(channel) * 2.0;
                let wave =
                    (x / 9.0 + phase).sin() + (y / 7.0 - phase).cos() + (x * y / 900.0).sin();
                let grain = (noise >> (8 * channel) & 31) as f64;
                pixels.push((110.0 + 35.0 * wave + grain).clamp(0.0, 255.0) as u8);
            }
        }
    }
    pixels
}

pub fn jpeg(width: usize, height: usize, seed: u64, subsamp: turbojpeg::Subsamp) -> Vec<u8> {
    let pixels = picture(width, height, seed);
    let format = turbojpeg::PixelFormat::RGB;
    let image = turbojpeg::Image { pixels: &pixels[..], width, pitch: width * 3, height, format };
    turbojpeg::compress(image, 90, subsamp).unwrap().to_vec()
}

pub fn png(width: usize, height: usize, seed: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut out);
    let pixels = picture(width, height, seed);
    let (width, height) = (width as u32, height as u32);
    image::ImageEncoder::write_image(
        encoder,
        &pixels,
        width,
        height,
        image::ColorType::Rgb8.into(),
    )
    .unwrap();
    out
}

/// One sample of a folder to make.
pub struct Sample {
    pub key: String,
    pub extension: &'static str,
    pub image: Vec<u8>,
    pub label: Option<u32>,
}

/// `count` ordinary samples of various sizes and subsamplings, every fifth one a PNG.
pub fn samples(count: usize) -> Vec<Sample> {
    use turbojpeg::Subsamp;
    let sample = |number: usize| {
        let (width, height) = (40 + number * 7 % 60, 36 + number * 11 % 50);
        let seed = number as u64;
        let subsamp = [Subsamp::None, Subsamp::Sub2x2, Subsamp::Sub2x1][number % 3];
        let (extension, image) = match number % 5 {
            4 => ("png", png(width, height, seed)),
            _ => ("jpg", jpeg(width, height, seed, subsamp)),
        };
        let label = (number % 7 != 6).then_some(number as u32 % 7);
        Sample { key: format!("s{number:04}"), extension, image, label }
    };
    (0..count).map(sample).collect()
}

/// Writes `samples` as the split "train", `per_shard` in each shard.
pub fn write(dir: &Path, samples: &[Sample], per_shard: usize) {
    let mut index = IndexWriter::new();
    index.begin_split("train").unwrap();
    for (number, samples) in samples.chunks(per_shard).enumerate() {
        let name = format!("train-{number:06}.tar");
        let mut shard = ShardWriter::create(&dir.join(&name)).unwrap();
        for Sample { key, extension, image, label } in samples {
            let entry = shard.append(key, extension, image, *label).unwrap();
            index.sample(key, entry, *label, Format::Unknown, (0, 0));
        }
        index.end_shard(&name, shard.finish().unwrap()).unwrap();
    }
    index.write(dir).unwrap();
    let class = |class: u32| Class { class, name: format!("c{class}"), words: None };
    Classes((0..7).map(class).collect()).save(dir).unwrap();
}

/// A folder of `count` ordinary samples, 10 a shard.
pub fn folder(count: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &samples(count), 10);
    dir
}

pub fn open(dir: &Path) -> Arc<Dataset> {
    Arc::new(Dataset::open(dir, "train").unwrap())
}

/// Small and quick: 32 and 16 pixels, 8 rows, 2 threads.
pub fn config() -> LoaderConfig {
    let seed = 11;
    LoaderConfig {
        batch: 8,
        large: 32,
        small: Some(16),
        threads: 2,
        seed,
        ..LoaderConfig::default()
    }
}

pub fn start(data: &Arc<Dataset>, config: LoaderConfig, cursor: Cursor) -> Loader {
    Loader::start(Arc::clone(data), config, cursor, Arc::new(Heap)).unwrap()
}

/// All of a batch, to compare.
#[derive(Debug, PartialEq, Clone)]
pub struct Copy {
    pub large: Vec<u8>,
    pub small: Vec<u8>,
    pub labels: Vec<i64>,
    pub ids: Vec<u64>,
    pub cursor: Cursor,
}

pub fn copy(batch: &pipeline::Batch) -> Copy {
    Copy {
        large: batch.large().to_vec(),
        small: batch.small().to_vec(),
        labels: batch.labels().to_vec(),
        ids: batch.ids().to_vec(),
        cursor: batch.cursor(),
    }
}

pub fn batches(data: &Arc<Dataset>, config: LoaderConfig, cursor: Cursor) -> Vec<Copy> {
    let loader = start(data, config, cursor);
    loader.map(|batch| copy(&batch.unwrap())).collect()
}

/// The first error a loader gives, and the batches before it.
pub fn first_error(data: &Arc<Dataset>, config: LoaderConfig) -> (usize, Error) {
    let mut good = 0;
    for batch in start(data, config, Cursor::default()) {
        match batch {
            Ok(_) => good += 1,
            Err(error) => return (good, error),
        }
    }
    panic!("no error in {good} batches");
}

/// An error with all its causes.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
