//! CIFAR-10 in its three packings, at a size of our own.

use std::path::Path;

use tempfile::tempdir;

use crate::support::{build, json, pixels, png_of, samples, tar_of, write};

const TRAIN: [&str; 5] =
    ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"];

/// Image `row` of batch `batch`, 32x32 RGB; the test batch is number 5.
fn image(batch: usize, row: usize) -> Vec<u8> {
    pixels(32, 32, batch * 100 + row * 7)
}

fn label(batch: usize, row: usize) -> usize {
    (batch * 3 + row) % 10
}

/// Files by name.
type Files = Vec<(String, Vec<u8>)>;

/// The files of the npm package with two images a batch.
fn package() -> Files {
    let mut files = Vec::new();
    for (batch, name) in TRAIN.iter().chain(&["test_batch"]).enumerate() {
        let rows: Vec<u8> = (0..2).flat_map(|row| image(batch, row)).collect();
        files.push((format!("package/{name}.png"), png_of(&rows, 1024, 2)));
    }
    let train: Vec<usize> = (0..10).map(|at| label(at / 2, at % 2)).collect();
    let json = |labels: &[usize]| serde_json::to_vec(labels).expect("JSON");
    files.push(("package/train_lables.json".into(), json(&train)));
    files.push(("package/test_lables.json".into(), json(&[label(5, 0), label(5, 1)])));
    files
}

fn check(output: &Path) {
    let all = samples(output);
    assert_eq!(all.len(), 12);
    for sample in all {
        let number: usize = sample.key[sample.key.len() - 5..].parse().expect("a number");
        let (batch, row) = match sample.shard.starts_with("val-") {
            true => (5, number),
            false => (number / 2, number % 2),
        };
        assert_eq!(sample.label, Some(label(batch, row) as u32), "{}", sample.key);
        let decoded = image::load_from_memory(&sample.image).expect("a PNG").into_rgb8();
        assert_eq!(decoded.into_raw(), image(batch, row), "{}", sample.key);
    }
    assert_eq!(json(output, "classes.json")[9]["name"], "truck");
}

#[test]
fn folder_archive_and_binary_version_hold_the_same_images() {
    let dir = tempdir().expect("a folder");
    let files = package();
    for (name, bytes) in &files {
        write(dir.path().join("npm").join(name), bytes);
    }
    let listed: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut zipped, &tar_of(&listed)).expect("memory");
    let tgz = write(dir.path().join("cifar.tgz"), zipped.finish().expect("memory"));
    for (batch, name) in TRAIN.iter().chain(&["test_batch"]).enumerate() {
        let mut bytes = Vec::new();
        for row in 0..2 {
            let image = image(batch, row);
            bytes.push(label(batch, row) as u8);
            bytes.extend((0..3).flat_map(|plane| image[plane..].iter().step_by(3).copied()));
        }
        write(dir.path().join(format!("bin/{name}.bin")), bytes);
    }
    for (name, input) in [
        ("a", dir.path().join("npm/package")),
        ("b", dir.path().join("npm")),
        ("c", tgz),
        ("d", dir.path().join("bin")),
    ] {
        let output = dir.path().join(name);
        build("cifar10", &input, &output, &["--png"]).ok();
        check(&output);
    }
}

#[test]
fn a_package_that_is_not_whole_is_refused() {
    let dir = tempdir().expect("a folder");
    let output = dir.path().join("out");
    let build_without = |change: &dyn Fn(&mut Files), what: &str| {
        let mut files = package();
        change(&mut files);
        let input = tempdir().expect("a folder");
        for (name, bytes) in &files {
            write(input.path().join(name), bytes);
        }
        build("cifar10", input.path(), &output, &[]).refused(what);
    };
    build_without(&|files| drop(files.remove(2)), "holds no data_batch_3");
    build_without(&|files| drop(files.pop()), "holds no test_lables.json");
    build_without(&|files| files[7].1 = b"[1]".to_vec(), "1 labels for 2 images");
    build_without(&|files| files[7].1 = b"[1, 10]".to_vec(), "label above 9");
    build_without(&|files| files[0].1.truncate(300), "not a readable PNG");
    build_without(&|files| files[0].1 = png_of(&[0; 300], 10, 10), "not rows of 1,024 RGB pixels");
    let cut = write(dir.path().join("cut.tgz"), [0x1F, 0x8B, 8, 0, 0]);
    build("cifar10", &cut, &output, &[]).refused("not a readable .tgz");
    assert!(!output.exists());
}
