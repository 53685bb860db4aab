//! `verify`, `inspect` and `cat` on sound and on damaged folders.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::{TempDir, tempdir};

use crate::support::{build, decode, jpeg, run, samples, text, write};

/// A small data folder with a duplicate in it.
fn folder() -> (TempDir, PathBuf) {
    let dir = tempdir().expect("a folder");
    for at in 0..6 {
        let path = dir.path().join(format!("in/{}/{at}.jpg", ["cat", "dog"][at % 2]));
        write(path, jpeg(150 + at, 140, at % 5));
    }
    let copy = fs::read(dir.path().join("in/cat/0.jpg")).expect("the original");
    write(dir.path().join("in/dog/copy.jpg"), copy);
    let output = dir.path().join("out");
    build("imagefolder", &dir.path().join("in"), &output, &[]).ok();
    (dir, output)
}

fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("a file");
    change(&mut bytes);
    fs::write(path, bytes).expect("written");
}

#[test]
fn a_sound_folder_is_called_sound_and_its_duplicates_are_named() {
    let (_dir, output) = folder();
    let ran = run(&["verify", "--deep", text(&output)]).ok();
    assert!(ran.out.contains("7 images in 1 shards are sound, all decoded"), "{}", ran.out);
    assert!(ran.out.contains("duplicate: dog_copy is cat_0"), "{}", ran.out);
}

#[test]
fn every_kind_of_damage_is_found() {
    let (_dir, output) = folder();
    let shard = output.join("train-000000.tar");
    let check = |change: &dyn Fn(), what: &str| {
        let files = ["train-000000.tar", "index.bin", "manifest.json", "classes.json"];
        let before = files.map(|name| fs::read(output.join(name)).expect("a file"));
        change();
        let ran = run(&["verify", text(&output)]).refused("");
        assert!(ran.err.contains(what), "{what:?} is not in {}", ran.err);
        for (name, bytes) in files.iter().zip(before) {
            fs::write(output.join(name), bytes).expect("mended");
        }
    };
    check(&|| damage(&shard, |bytes| bytes[2000] ^= 1), "has checksum");
    check(&|| damage(&shard, |bytes| bytes.truncate(5000)), "has 5000 bytes");
    check(&|| fs::remove_file(&shard).expect("removed"), "train-000000.tar");
    check(&|| damage(&output.join("index.bin"), |bytes| bytes[100] ^= 1), "checksum");
    check(&|| damage(&output.join("manifest.json"), |bytes| bytes.truncate(20)), "manifest.json");
    let fewer =
        |bytes: &mut Vec<u8>| *bytes = br#"[{"class":0,"name":"cat","words":null}]"#.to_vec();
    check(&|| damage(&output.join("classes.json"), fewer), "has label 1, but there are 1 classes");
    run(&["verify", text(&output)]).ok();
    run(&["verify", text(&output.join("nowhere"))]).refused("no such folder");
}

#[test]
fn inspect_counts_what_is_there() {
    let (dir, output) = folder();
    let grid = dir.path().join("grid.png");
    let ran = run(&["inspect", text(&output), "--json", "--grid", text(&grid)]).ok();
    let summary: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    let train = &summary["splits"][0];
    assert_eq!(train["name"], "train");
    assert_eq!(train["images"], 7);
    assert_eq!(train["per_class"], serde_json::json!([3, 4]));
    assert_eq!(train["smallest"], serde_json::json!([150, 140]));
    assert_eq!(train["largest"], serde_json::json!([155, 140]));
    let bytes: usize = samples(&output).iter().map(|sample| sample.image.len()).sum();
    assert_eq!(train["epoch_bytes"], bytes);
    let sheet = image::open(&grid).expect("a PNG").into_rgb8();
    assert!(sheet.pixels().any(|pixel| pixel.0 != [255; 3]), "the sheet is empty");
    run(&["inspect", text(&output), "--grid", text(&grid), "--views", "4"]).ok();
    let pairs = image::open(&grid).expect("a PNG");
    assert_eq!((pairs.width(), pairs.height()), (4 * (258 + 4) + 4, 128 + 8));
    let table = run(&["inspect", text(&output)]).ok().out;
    assert!(table.contains("3 to 4") && table.contains("155x140"), "{table}");
}

#[test]
fn cat_gives_the_image_as_it_is_stored_or_as_pixels() {
    let (dir, output) = folder();
    let all = samples(&output);
    let stored = &all.iter().find(|sample| sample.key == "dog_3").expect("the image").image;
    let ran = crate::support::program(&["cat", text(&output), "dog_3"]).output().expect("it runs");
    assert_eq!(&ran.stdout, stored);
    let file = dir.path().join("dog.png");
    run(&["cat", text(&output), "dog_3", "--png", text(&file)]).ok();
    let pixels = image::open(&file).expect("a PNG").into_rgb8().into_raw();
    assert_eq!(pixels, decode(stored));
    run(&["cat", text(&output), "dog_33"]).refused("no image with the key");
}
