//! What an earlier version wrote opens, or is refused by its version with the way out.
//!
//! `tests/fixtures/COMMIT/` holds a data folder, shards with the index that a scan of them left, a run
//! and its export, as that commit's programs wrote them; `tests/fixtures/make` says how.

use std::fs;
use std::path::{Path, PathBuf};

use integration::{Said, copy_folder, repository, shard_imagenet, text, trainer};
use serde_json::Value;

/// A copy of a fixture of the first commit that has any.
fn copy_of(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    copy_folder(&repository().join("tests/fixtures/9d001b8").join(name), &path);
    (folder, path)
}

fn good(said: Said) -> Said {
    assert_eq!(said.code, 0, "{said:?}");
    said
}

fn trains_on(data: &Path, out: &Path) {
    let overrides = ["train.steps=1", "eval.probe_images=0", "images.every=0"];
    let args = integration::tiny_run(data, out, &overrides);
    good(trainer(&integration::borrowed(&args)));
}

#[test]
fn an_earlier_version_s_data_folder_is_sound_and_trains() {
    let (folder, data) = copy_of("data");
    good(shard_imagenet(&["verify", "--deep", &text(&data)]));
    trains_on(&data, &folder.path().join("run"));
}

#[test]
fn shards_that_an_earlier_version_scanned_open_though_a_copy_has_other_times() {
    let (folder, data) = copy_of("scanned");
    trains_on(&data, &folder.path().join("run"));
    let split = pipeline::Dataset::open(&data, "train").unwrap();
    let labels: Vec<_> = (0..split.len() as u64).map(|sample| split.label(sample)).collect();
    let expected: Vec<_> = (0..split.len() as i64).map(|n| Some(n % 4)).collect();
    assert_eq!(labels, expected);
}

#[test]
fn an_earlier_version_s_run_goes_on_where_it_was() {
    let (folder, run) = copy_of("run");
    let (_data, data) = copy_of("data");
    let args = [
        "run",
        "--resume",
        "--out",
        &text(&run),
        "--data",
        &text(&data),
        "--set",
        "train.steps=6",
        "--device",
        "cpu",
    ];
    good(trainer(&args));
    let stats = |path: &Path| -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let found = stats(&run.join("stats.jsonl"));
    // The same run, continued by the version that began it: the same images, latents and weights.
    let expected = stats(&run.join("continued.jsonl"));
    assert_eq!(found.len(), 6);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found["step"], expected["step"]);
        for loss in ["loss_d", "loss_g", "loss_e"] {
            let [found, expected] = [found, expected].map(|line| line[loss].as_f64().unwrap());
            assert!((found - expected).abs() < 1e-3 * expected.abs(), "{found} not {expected}");
        }
    }
    let picture = text(&folder.path().join("x.png"));
    good(trainer(&["sample", "--run", &text(&run), "--out", &picture]));
}

#[test]
fn an_earlier_version_s_export_serves() {
    let (folder, export) = copy_of("export");
    let (_data, data) = copy_of("data");
    let picture = text(&folder.path().join("x.png"));
    good(trainer(&["sample", "--run", &text(&export), "--out", &picture]));
    good(trainer(&["eval", "knn", "--run", &text(&export), "--data", &text(&data)]));
}
