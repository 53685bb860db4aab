//! The programs as such: what they say they are, and how they start.

use std::process::Command;

use integration::{borrowed, data, program, repository, shard_imagenet, text, tiny_run, trainer};
use serde_json::Value;

#[test]
fn a_program_says_its_version_its_commit_and_its_libtorch() {
    let git = ["rev-parse", "HEAD"];
    let commit = Command::new("git").arg("-C").arg(repository()).args(git).output();
    let commit = match commit {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        _ => "unknown".to_owned(),
    };
    let version = env!("CARGO_PKG_VERSION");
    let [trainer, tools] =
        [trainer(&["--version"]), shard_imagenet(&["--version"])].map(|said| said.out);
    let both = format!("{version} (commit {}", commit.trim());
    assert!(trainer.starts_with(&format!("trainer {both}, libtorch 2.")), "{trainer}");
    assert_eq!(tools, format!("shard-imagenet {both})\n"));
}

/// What libgomp says that it goes by.
fn settings(set: &[(&str, &str)]) -> String {
    let mut command = Command::new(program("trainer"));
    for name in ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"] {
        command.env_remove(name);
    }
    command.env("OMP_DISPLAY_ENV", "verbose").envs(set.iter().copied());
    let output = command.arg("--version").output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn threads_that_wait_for_each_other_soon_sleep_unless_the_user_says_otherwise() {
    let spins = |set: &[(&str, &str)]| {
        let said = settings(set);
        let line = said.lines().find(|line| line.contains("GOMP_SPINCOUNT")).map(str::to_owned);
        let line = line.unwrap_or_else(|| panic!("libgomp says nothing of it: {said}"));
        line.split('\'').nth(1).unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(spins(&[]), 1_000);
    assert_eq!(spins(&[("GOMP_SPINCOUNT", "77")]), 77);
    assert!(spins(&[("OMP_WAIT_POLICY", "active")]) > 1_000_000);
    assert_eq!(spins(&[("OMP_WAIT_POLICY", "passive")]), 0);
}

#[test]
fn presets_configurations_and_checkpoints_are_listed_for_people_and_programs() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let keys = ["images.every=0", "eval.probe_images=0", "checkpoint.every=2"];
    let said = trainer(&borrowed(&tiny_run(data(), &run, &keys)));
    assert_eq!(said.code, 0, "{}", said.err);
    let lines = |args: &[&str]| -> Vec<Value> {
        let said = trainer(args);
        assert_eq!(said.code, 0, "{args:?}: {}", said.err);
        said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };

    let presets = lines(&["presets", "--json"]);
    let of = |name: &str| presets.iter().find(|preset| preset["name"] == name).unwrap();
    assert_eq!(of("r101")["extends"], "hi_e");
    assert!(of("base")["extends"].is_null());
    assert!(trainer(&["presets"]).out.contains("hi_e_g64         Table 1, Low Res G (64)"));

    let differ = lines(&["config", "diff", "--json", "hi_e", "r101"]);
    assert_eq!(differ, [serde_json::json!({"key": "e.depth", "from": "50", "to": "101"})]);
    let of_run = lines(&["config", "diff", "--json", "demo", &text(&run)]);
    assert!(of_run.iter().any(|change| change["key"] == "g.ch" && change["to"] == "4"));
    assert_eq!(trainer(&["config", "diff", "demo", "demo"]).out.trim(), "the same");
    let shown = trainer(&["config", "show", "demo", "--set", "train.batch=32"]).out;
    assert!(shown.contains("[train]\nbatch = 32\n"), "{shown}");
    let none = trainer(&["config", "diff", "demo", "no/such"]);
    assert!(none.code == 2 && none.err.starts_with("error: usage: no/such"), "{}", none.err);

    let saved = lines(&["checkpoints", &text(&run), "--json"]);
    let steps: Vec<_> = saved.iter().map(|checkpoint| checkpoint["step"].clone()).collect();
    assert_eq!(steps, [2, 4]);
    assert!(saved.iter().all(|checkpoint| checkpoint["state"] == "not read"));
    assert_eq!(lines(&["checkpoints", &text(&run), "--json", "--verify"])[0]["state"], "sound");
    let weights = run.join("checkpoints/step-00000002/encoder.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let damaged = trainer(&["checkpoints", &text(&run), "--verify"]);
    assert_eq!(damaged.code, 2, "{}", damaged.err);
    assert!(damaged.out.contains("sound") && damaged.out.contains("encoder.safetensors"));
    let said = trainer(&["checkpoints", &text(&run), "--verify", "--json"]).out;
    let damaged: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(damaged["state"], "damaged");
    assert!(damaged["bytes"].as_u64().unwrap() > 0 && damaged["problem"] != "", "{damaged}");
    let none = trainer(&["checkpoints", &text(folder.path())]);
    assert!(none.code == 2 && none.err.contains("not the folder of a run"), "{}", none.err);
}

#[test]
fn shells_and_man_know_the_commands_and_quiet_says_results_alone() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("trainer.bash");
    std::fs::write(&script, trainer(&["completions", "bash"]).out).unwrap();
    // A shell's own word for what comes behind "trainer ch".
    let ask = format!(
        "source {}; COMP_WORDS=(trainer ch); COMP_CWORD=1; _trainer trainer ch trainer; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let said = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    let mut words: Vec<_> = words.split_whitespace().collect();
    words.sort_unstable();
    assert_eq!(words, ["check-device", "checkpoints"], "{}", String::from_utf8_lossy(&said.stderr));
    let other = shard_imagenet(&["completions", "bash"]).out;
    assert!(other.contains("seek-points") && other.contains("complete -F"), "{other}");
    let pages = folder.path().join("man1");
    assert_eq!(shard_imagenet(&["man", "--out", &text(&pages)]).code, 0);
    let page = std::fs::read_to_string(pages.join("shard-imagenet-build.1")).unwrap();
    assert!(page.contains("\\-\\-holdout"), "{page}");
    assert_eq!(trainer(&["man", "--out", &text(&pages)]).code, 0);
    let page = std::fs::read_to_string(pages.join("trainer-eval-linear.1")).unwrap();
    assert!(page.contains("\\-\\-fresh\\-crops"), "{page}");
    assert!(pages.join("trainer.1").exists() && !pages.join("trainer-help.1").exists());

    let run = folder.path().join("run");
    let mut args = tiny_run(data(), &run, &["images.every=0", "eval.probe_images=0"]);
    args.push("--quiet".to_owned());
    let said = trainer(&borrowed(&args));
    assert_eq!((said.code, &*said.err), (0, ""));
    // An error is an error.
    let said = trainer(&borrowed(&args));
    assert!(said.code == 2 && said.err.starts_with("error: "), "{}", said.err);
}
