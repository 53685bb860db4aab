//! What batches hold does not change unless it is meant to: the reference figures of docs/results.md are of these
//! pixels. Images of 32 x 32, as CIFAR-10's, are not resized by `small` and `full` at 32.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

mod support;

use pipeline::{Cursor, LoaderConfig, Mode};
use support::{Sample, batches, config, open, write};

/// A PNG of 32 x 32 pixels, of slopes and noise.
fn small_image(number: u32) -> Sample {
    let mut state = number;
    let picture = image::RgbImage::from_fn(32, 32, |x, y| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let slope = ((x * (number % 7 + 1) + y * (number % 5 + 2)) % 200) as u8;
        image::Rgb([slope + (state >> 27) as u8, (state >> 24) as u8, 255 - slope])
    });
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let (extension, image, label) = ("png", png.into_inner(), Some(number % 7));
    Sample { key: format!("s{number:04}"), extension, image, label }
}

#[test]
fn batches_of_small_images_are_those_of_the_reference_figures() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &(0..40).map(small_image).collect::<Vec<_>>(), 10);
    let data = open(dir.path());
    let mut hashes = Vec::new();
    for mode in [Mode::Small, Mode::Full] {
        let config = LoaderConfig { mode, epochs: Some(2), ..config() };
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for batch in batches(&data, config, Cursor::default()) {
            hash.update(&batch.large);
            hash.update(&batch.small);
        }
        hashes.push(format!("{:016x}", hash.digest()));
    }
    assert_eq!(hashes, ["e493739d5f76abcf", "b879a4614212a6fc"]);
}
