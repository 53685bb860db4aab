//! Wrong input is one line that says what and where, exit code 2, and nothing half-written.

use std::fs;
use std::path::Path;

use integration::{Said, borrowed, copy_folder, data, shard_imagenet, text, tiny_run, trainer};

/// One line, exit code 2, these words in it, and no trace of `out`.
fn check(said: &Said, words: &[&str], out: &Path) {
    assert_eq!(said.code, 2, "{said:?}");
    assert_eq!(said.err.trim_end().lines().count(), 1, "{}", said.err);
    for word in words {
        assert!(said.err.contains(word), "{word:?} is not in {}", said.err);
    }
    assert!(!out.exists(), "{} was left behind", out.display());
}

fn train(data: &Path, out: &Path, overrides: &[&str]) -> Said {
    trainer(&borrowed(&tiny_run(data, out, overrides)))
}

#[test]
fn a_missing_an_empty_and_an_unnamed_data_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (out, empty) = (folder.path().join("run"), folder.path().join("empty"));
    let missing = folder.path().join("missing");
    check(&train(&missing, &out, &[]), &["missing"], &out);
    fs::create_dir(&empty).unwrap();
    check(&train(&empty, &out, &[]), &["empty"], &out);
    let said = trainer(&["run", "--preset", "demo", "--out", &text(&out)]);
    check(&said, &["--data"], &out);
}

#[test]
fn a_truncated_shard() {
    let folder = tempfile::tempdir().unwrap();
    let (copy, out) = (folder.path().join("data"), folder.path().join("run"));
    copy_folder(data(), &copy);
    let shard = copy.join("train-000000.tar");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    check(&train(&copy, &out, &[]), &["train-000000.tar"], &out);
    assert_eq!(shard_imagenet(&["verify", &text(&copy)]).code, 2);
}

#[test]
fn a_text_file_named_jpg() {
    let folder = tempfile::tempdir().unwrap();
    let (images, shards) = (folder.path().join("images"), folder.path().join("shards"));
    fs::create_dir_all(images.join("cat")).unwrap();
    fs::write(images.join("cat/note.jpg"), "this is not a picture\n").unwrap();
    let said = shard_imagenet(&[
        "build",
        "--layout",
        "imagefolder",
        "--input",
        &text(&images),
        "--output",
        &text(&shards),
    ]);
    check(&said, &["note.jpg"], &shards);

    // The same hidden in shards that are otherwise whole: the first member's bytes become text.
    let (copy, out) = (folder.path().join("data"), folder.path().join("run"));
    copy_folder(data(), &copy);
    let shard = copy.join("train-000000.tar");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[512..528].copy_from_slice(b"this is not JPEG");
    fs::write(&shard, &bytes).unwrap();
    check(&train(&copy, &out, &["train.batch=40"]), &["train-000000.tar"], &out);

    // Where the configuration allows it, another image stands in, and the statistics count it.
    let allowed =
        ["train.batch=40", "train.steps=1", "eval.probe_images=0", "data.max_bad_share=0.1"];
    let said = train(&copy, &out, &allowed);
    assert_eq!(said.code, 0, "{}", said.err);
    let stats = fs::read_to_string(out.join("stats.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(stats.trim()).unwrap();
    assert!(line["bad_images"].as_u64().unwrap() >= 1, "{stats}");
}

#[test]
fn an_unknown_preset_key_value_or_device() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let dir = text(data());
    let said = trainer(&["run", "--preset", "dmeo", "--data", &dir, "--out", &text(&out)]);
    check(&said, &["did you mean \"demo\"?"], &out);
    check(&train(data(), &out, &["train.stps=3"]), &["did you mean \"steps\"?"], &out);
    check(&train(data(), &out, &["data.mode=resnt"]), &["resnet"], &out);
    check(&train(data(), &out, &["train.batch=0"]), &["train.batch"], &out);
    let mut args = tiny_run(data(), &out, &[]);
    *args.iter_mut().find(|a| *a == "cpu").unwrap() = "gpu".into();
    check(&trainer(&borrowed(&args)), &["gpu", "cuda:N"], &out);
}

#[test]
fn an_output_folder_that_cannot_be_written_or_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let out = file.join("run");
    check(&train(data(), &out, &[]), &["output folder"], &out);
    let said = train(data(), folder.path(), &[]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("--resume"), "{}", said.err);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn commands_on_what_is_not_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.png");
    for command in ["sample", "reconstruct"] {
        let said = trainer(&[command, "--run", &text(folder.path()), "--out", &text(&out)]);
        check(&said, &["config.toml"], &out);
    }
    let said = trainer(&["run", "--resume", "--out", &text(folder.path())]);
    check(&said, &["config.toml"], &out);
}

#[test]
fn every_help_fits_a_screen_and_shows_an_example() {
    let check = |program: fn(&[&str]) -> Said, commands: &[&str]| {
        for command in commands {
            let words: Vec<_> = command.split(' ').chain(["--help"]).collect();
            let said = program(&words);
            assert_eq!(said.code, 0);
            assert!(said.out.lines().count() <= 48, "{command}: {}", said.out);
            assert!(said.out.contains("Example"), "{command}: {}", said.out);
        }
    };
    check(
        trainer,
        &["run", "sample", "reconstruct", "export", "report", "bench-batch", "inspect", "doctor"],
    );
    check(trainer, &["eval linear", "eval knn", "eval infomax", "eval fid"]);
    check(trainer, &["neighbors", "interpolate", "traverse", "filters", "embed", "search"]);
    check(shard_imagenet, &["build", "verify", "inspect", "synth"]);
}
