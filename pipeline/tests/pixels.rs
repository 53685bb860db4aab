//! What batches hold does not change unless it is meant to: the reference figures of docs/results.md are of these
//! pixels. Images of 32 x 32, as CIFAR-10's, are not resized by `small` and `full` at 32.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

mod support;

use pipeline::{Crop, Cursor, LoaderConfig, Mode, OwnView, View};
use support::{Sample, batches, config, folder, open, start, write};

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

#[test]
fn a_view_of_one_s_own_is_what_rows_show() {
    let dir = folder(24);
    let data = open(dir.path());
    let run = |own: Option<OwnView>, mode, threads| {
        let config = LoaderConfig { own_view: own, mode, threads, epochs: Some(2), ..config() };
        let shown = |batch: support::Copy| (batch.large, batch.small, batch.labels, batch.ids);
        batches(&data, config, Cursor::default()).into_iter().map(shown).collect::<Vec<_>>()
    };
    // By the mode's own hand it is the mode, whatever else the options name.
    let by_mode = OwnView::new("resnet", |scene| scene.by(Mode::Resnet));
    let wanted = run(None, Mode::Resnet, 1);
    assert_eq!(run(Some(by_mode), Mode::Full, 2), wanted);
    // Each sample has its place, its epoch and random numbers of its own.
    let corner = OwnView::new("corner", |scene| {
        let side = 8 + scene.below(20) as usize;
        let x = if scene.epoch == 0 { 0 } else { scene.width - side };
        let flip = scene.sample % 2 == 1;
        View { flip, ..View::of(Crop { x, y: 0, width: side, height: side }) }
    });
    let seen = run(Some(corner.clone()), Mode::Full, 1);
    assert_eq!(run(Some(corner.clone()), Mode::Full, 3), seen);
    assert!(seen != wanted);
    let config = LoaderConfig { own_view: Some(corner), ..config() };
    let view = |sample, epoch| config.view(sample, epoch, (60, 50));
    assert_eq!(view(3, 0), view(3, 0));
    assert!(view(3, 0).flip && view(3, 0).crop.x == 0 && view(3, 1).crop.x > 0);
    assert!((0..9).any(|sample| view(sample, 0).crop.width != view(3, 0).crop.width));
}

#[test]
fn a_view_that_does_not_fit_names_its_sample() {
    let dir = folder(24);
    let data = open(dir.path());
    let wide = |scene: &mut pipeline::Scene| {
        View::of(Crop { x: 0, y: 0, width: scene.width + 1, height: scene.height })
    };
    let config = LoaderConfig { own_view: Some(OwnView::new("wide", wide)), ..config() };
    let error = start(&data, config, Cursor::default()).next().unwrap().unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("is not within"), "{error}: {cause}");
}
