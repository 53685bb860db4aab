//! Folders of images, the output's manners, and the command line.

use std::fs;
use std::path::Path;

use tempfile::tempdir;

use crate::support::{build, contents, jpeg, json, names, png, report, run, samples, text, write};

/// Two classes with training and validation images, in a tree.
fn tree(dir: &Path) {
    for (split, count) in [("train", 6), ("val", 2)] {
        for (number, class) in ["cat", "dog"].iter().enumerate() {
            for at in 0..count {
                let path = dir.join(format!("{split}/{class}/{at}.jpg"));
                write(path, jpeg(140, 130, number * 100 + at));
            }
        }
    }
}

#[test]
fn a_tree_of_classes_gives_the_same_bytes_on_any_number_of_threads() {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    tree(&source);
    write(source.join("train/cat/notes.txt"), "no image");
    write(source.join("train/dog/fake.jpg"), "no image either");
    let output = |name: &str, more: &[&str]| {
        let output = dir.path().join(name);
        let small = ["--shard-bytes", "16K"];
        build("imagefolder", &source, &output, &[&small[..], more].concat()).ok();
        contents(&output)
    };
    let one = output("one", &["--threads", "1"]);
    assert!(one.keys().filter(|name| name.ends_with(".tar")).count() > 3);
    assert_eq!(one, output("many", &["--threads", "7"]));
    assert_ne!(one, output("other", &["--seed", "1"]));

    let one = dir.path().join("one");
    let all = samples(&one);
    assert_eq!(all.len(), 16);
    for sample in &all {
        assert_eq!(sample.label, Some(u32::from(sample.key.starts_with("dog"))), "{}", sample.key);
    }
    assert_eq!(json(&one, "manifest.json")["options"]["skipped"]["files .txt"][0], 1);
    let rejected = report(&one, "rejected.jsonl");
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].0.ends_with("fake.jpg") && rejected[0].1.contains("text"));
    // Labels come mixed, not class after class.
    let labels: Vec<_> = all[..12].iter().map(|sample| sample.label).collect();
    assert!(labels.windows(2).filter(|pair| pair[0] != pair[1]).count() > 1, "{labels:?}");
    // The source's order on request.
    build("imagefolder", &source, &dir.path().join("plain"), &["--order", "source"]).ok();
    let plain = samples(&dir.path().join("plain"));
    let labels: Vec<_> = plain[..12].iter().filter_map(|sample| sample.label).collect();
    assert!(labels.is_sorted(), "{labels:?}");
}

#[test]
fn a_flat_folder_has_no_labels_and_keeps_equal_names_apart() {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    write(source.join("a.jpg"), jpeg(40, 40, 1));
    write(source.join("a.png"), png(40, 40, 2));
    write(source.join("deep/er/a.b.jpg"), jpeg(40, 40, 3));
    let output = dir.path().join("out");
    build("flat", &source, &output, &[]).ok();
    let mut keys: Vec<_> = samples(&output).into_iter().map(|s| (s.key, s.label)).collect();
    keys.sort();
    let expected = ["a", "a-2", "deep_er_a_b"].map(|key| (key.to_owned(), None));
    assert_eq!(keys, expected);
    assert_eq!(json(&output, "classes.json"), serde_json::json!([]));
    run(&["verify", "--deep", text(&output)]).ok();
}

#[test]
fn two_class_folders_that_are_shown_alike_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    for (n, name) in [&b"a\\xe9"[..], b"a\xe9", b"b"].into_iter().enumerate() {
        write(source.join(std::ffi::OsStr::from_bytes(name)).join("0.jpg"), jpeg(64, 64, n));
    }
    let output = dir.path().join("out");
    let both = r#"the folders "a\\xe9" and "a\xE9" would be one class"#;
    build("imagefolder", &source, &output, &[]).refused(both);
}

#[test]
fn splits_must_have_the_same_classes() {
    let dir = tempdir().expect("a folder");
    tree(&dir.path().join("in"));
    let output = dir.path().join("out");
    write(dir.path().join("in/val/fox/0.jpg"), jpeg(40, 40, 1));
    build("imagefolder", &dir.path().join("in"), &output, &[]).refused("class fox");
    fs::remove_dir_all(dir.path().join("in/val/fox")).expect("removed");
    fs::remove_dir_all(dir.path().join("in/val/dog")).expect("removed");
    build("imagefolder", &dir.path().join("in"), &output, &[]).refused("class dog");
    assert_eq!(names(dir.path()), ["in"]);
}

#[test]
fn wrong_inputs_are_refused_in_one_line_and_leave_nothing_behind() {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    let output = dir.path().join("out");
    for layout in ["imagenet", "imagefolder", "cifar10", "webdataset", "flat"] {
        build(layout, &source, &output, &[]).refused("does not exist");
    }
    fs::create_dir(&source).expect("a folder");
    build("imagenet", &source, &output, &[]).refused("holds no ILSVRC2012_img_train.tar");
    build("imagefolder", &source, &output, &[]).refused("holds no folder of a class");
    build("cifar10", &source, &output, &[]).refused("holds no");
    build("webdataset", &source, &output, &[]).refused("holds no .tar file");
    build("flat", &source, &output, &[]).refused("no image could be stored");
    write(source.join("a.jpg"), "text");
    build("flat", &source, &output, &[]).refused("no image could be stored");
    write(source.join("b.jpg"), jpeg(40, 40, 1));
    build("flat", &source, &output, &["--max-rejected", "0"]).refused("raise --max-rejected");
    build("flat", &source, &output, &["--holdout", "2"]).refused("--holdout 2");
    build("flat", &source, &source.join("b.jpg"), &[]).refused("is a file");
    build("flat", &source, &source.join("b.jpg/out"), &[]).refused("cannot be created");
    let labels = ["--val-labels", "labels.txt"];
    build("flat", &source, &output, &labels).refused("are for --layout imagenet");
    let (link, place) = (dir.path().join("link"), tempdir().expect("a folder"));
    std::os::unix::fs::symlink(place.path(), &link).expect("a link");
    build("flat", &source, &link, &[]).refused("cannot be replaced by the finished folder");
    fs::remove_file(&link).expect("it is still there");
    assert_eq!(names(dir.path()), ["in"]);
    build("flat", &source, &output, &["--max-rejected", "50%"]).ok();
}

#[test]
fn an_output_that_is_there_is_refused_resumed_or_replaced() {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    tree(&source);
    let output = dir.path().join("out");
    fs::create_dir(&output).expect("an empty folder is no obstacle");
    build("imagefolder", &source, &output, &[]).ok();
    let first = contents(&output);
    build("imagefolder", &source, &output, &[]).refused("not empty");
    let again = build("imagefolder", &source, &output, &["--resume"]).ok();
    assert!(again.out.contains("16 images were stored before"), "{}", again.out);
    build("imagefolder", &source, &output, &["--resume", "--seed", "1"]).refused("other options");
    assert_eq!(contents(&output), first);
    build("imagefolder", &source, &output, &["--overwrite", "--seed", "1"]).ok();
    assert_ne!(contents(&output), first);
    assert_eq!(names(dir.path()), ["in", "out"]);
}

#[test]
fn unknown_values_are_refused_with_the_nearest_name_and_help_fits_a_screen() {
    let ran = run(&["build", "--layout", "imagenett", "--input", "a", "--output", "b"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("'imagenet'"), "{}", ran.err);
    let ran = run(&["synth", "--output", "x", "--imagess", "9"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("'--images'"), "{}", ran.err);
    for job in ["build", "synth", "index", "verify", "inspect", "cat"] {
        let help = run(&[job, "--help"]).ok().out;
        assert!(help.lines().count() <= 48, "{job}: {} lines", help.lines().count());
        assert!(help.contains(&format!("shard-imagenet {job} ")), "{job} shows no example");
    }
}
