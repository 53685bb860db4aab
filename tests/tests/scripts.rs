//! The scripts take a stop for what it is. Programs are stood in for by shell scripts that write down how they were
//! called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use integration::repository;
use tempfile::TempDir;

/// A folder with copies of the scripts, a `cargo` that does nothing, and a `trainer`.
fn stage() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["scripts", "bin", "target/release", "demo/data-cifar10", "evidence"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    for name in ["demo", "evidence", "cifar10", "speedrun"] {
        fs::copy(repository().join("scripts").join(name), at("scripts").join(name)).unwrap();
    }
    for name in ["demo/data-cifar10/manifest.json", "evidence/efflite0.safetensors"] {
        fs::write(at(name), "").unwrap();
    }
    program(&at("bin/cargo"), "exit 0");
    // Every run has saved something.
    let trainer = "echo \"$@\" >>called\nmkdir -p demo/run/checkpoints/step-1\nexit $CODE";
    program(&at("target/release/trainer"), trainer);
    folder
}

fn program(path: &Path, body: &str) {
    fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a script whose `trainer` ends with this code.
fn script(stage: &TempDir, name: &str, code: u8) -> Output {
    script_with(stage, name, &[], code)
}

fn script_with(stage: &TempDir, name: &str, args: &[&str], code: u8) -> Output {
    let path = std::env::var("PATH").unwrap();
    let bin = stage.path().join("bin");
    Command::new(stage.path().join("scripts").join(name))
        .args(args)
        .env_remove("TRAINER")
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("CARGO_TARGET_DIR", stage.path().join("target"))
        .env("CODE", code.to_string())
        .output()
        .unwrap()
}

fn called(stage: &TempDir) -> Vec<String> {
    let text = fs::read_to_string(stage.path().join("called")).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_stopped_demo_goes_on_and_one_that_is_done_begins_anew() {
    let stage = stage();
    for (code, how) in [(75, "--preset"), (75, "--resume"), (0, "--resume"), (1, "--preset")] {
        let output = script(&stage, "demo", code);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code.into()), "{said}");
        assert_eq!(said.contains("the same command goes on"), code == 75, "{said}");
        let last = called(&stage).pop().unwrap();
        assert!(last.contains(how), "{how}: {last}");
    }
}

/// What `scripts/gpu-check` packs, with a `trainer` that takes down how it was called.
fn pack(stage: &TempDir) -> std::path::PathBuf {
    let at = |name: &str| stage.path().join(name);
    for name in ["benches/peers", "trainer/src/snapshots", "trainer/presets"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    let counts = "trainer/src/snapshots/x__the_parameters_of_every_preset_are_as_they_were.snap";
    for name in ["benches/peers/step_torch.py", "trainer/presets/base.toml", counts] {
        fs::write(at(name), "").unwrap();
    }
    program(&at("bin/strip"), "cp \"$3\" \"$2\"");
    let trainer =
        "echo \"$LD_LIBRARY_PATH $@\" >>\"$CALLED\"\necho all agree\necho '{}'\nexit $CODE";
    program(&at("target/release/trainer"), trainer);
    program(&at("target/release/shard-imagenet"), "mkdir -p \"$3\"\necho tar >\"$3/train-0.tar\"");
    fs::copy(repository().join("scripts/gpu-check"), at("scripts/gpu-check")).unwrap();
    let output = script(stage, "gpu-check", 0);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    at("target/gpu-check")
}

#[test]
fn what_gpu_check_packs_checks_twice_with_python_s_torch_and_no_other_version() {
    let stage = stage();
    let packed = pack(&stage);
    assert!(packed.join("shards/train-0.tar").exists());
    let run = |version: &str, code: u8| {
        let python = stage.path().join("bin/python");
        program(&python, &format!("echo {version} /torch/lib"));
        let called = stage.path().join("called-there");
        let _ = fs::remove_file(&called);
        let output = Command::new(packed.join("run"))
            .arg("--quick")
            .env("PYTHON", &python)
            .env("CALLED", &called)
            .env("CODE", code.to_string())
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), fs::read_to_string(&called).unwrap_or_default(), said)
    };
    let (code, called, said) = run("2.11.0+cu130", 0);
    assert_eq!((code, called.lines().count()), (0, 2), "{called}{said}");
    let first = called.lines().next().unwrap();
    assert!(first.starts_with("/torch/lib check-device --device cuda"), "{first}");
    assert!(
        first.ends_with("results-1.json --quick") && first.contains("step_torch.py"),
        "{first}"
    );
    let page = fs::read_to_string(packed.join("results/page-2.txt")).unwrap();
    assert_eq!(page, "all agree\n");
    assert_eq!(run("2.11.0+cu130", 1).0, 1);
    let (code, called, _) = run("2.11.0+cu130", 75);
    assert_eq!((code, called.lines().count()), (75, 1));
    let (code, called, said) = run("2.10.0", 0);
    assert_eq!((code, called.as_str()), (2, ""));
    assert!(said.contains("2.11"), "{said}");
}

#[test]
fn a_speed_run_is_entered_with_test_images_and_chosen_without() {
    let stage = stage();
    let built = "echo \"$@\" >>built\nmkdir -p demo/data-cifar10-held-out\ntouch demo/data-cifar10-held-out/manifest.json";
    program(&stage.path().join("target/release/shard-imagenet"), built);
    program(&stage.path().join("bin/sha256sum"), "exit 0"); // the archive is there
    let study = stage.path().join("study.toml");
    fs::write(&study, "").unwrap();
    let study = study.to_str().unwrap();

    for code in [75, 0] {
        assert_eq!(script(&stage, "speedrun", code).status.code(), Some(code.into()));
        let wanted = "study studies/speedrun-cifar10.toml --data demo/data-cifar10 --out speedrun/entry --devices cpu";
        assert_eq!(called(&stage).pop().unwrap(), wanted);
    }
    assert!(script_with(&stage, "speedrun", &["beyond"], 0).status.success());
    let wanted = "study studies/speedrun-beyond-cifar10.toml --data demo/data-cifar10 --out speedrun/beyond --devices cpu";
    assert_eq!(called(&stage).pop().unwrap(), wanted);
    assert!(!stage.path().join("built").exists());
    for out in [&[][..], &["elsewhere"]] {
        let args = [&["choose", study], out].concat();
        let output = script_with(&stage, "speedrun", &args, 0);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let last = called(&stage).pop().unwrap();
        assert!(
            last.contains(&format!("study {study} --data demo/data-cifar10-held-out --out ")),
            "{last}"
        );
        assert!(last.contains(out.first().unwrap_or(&"/speedrun/choose/study ")), "{last}");
        assert!(last.ends_with(" --set eval.split=trainval"), "{last}");
    }
    let built = fs::read_to_string(stage.path().join("built")).unwrap();
    assert!(built.contains("--holdout 5000") && built.lines().count() == 1, "{built}");
    for args in
        [&["choose"][..], &["enter"], &["beyond", "more"], &[""], &["choose", study, "out", "more"]]
    {
        let output = script_with(&stage, "speedrun", args, 0);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("scripts/speedrun choose STUDY"));
    }
}

#[test]
fn evidence_ends_with_the_first_command_that_is_stopped() {
    let stage = stage();
    let output = script(&stage, "evidence", 75);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains("the same command goes on"), "{said}");
    assert_eq!(called(&stage).len(), 1);
}
