//! Studies: several runs and one table, whatever interrupts them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use integration::{
    Background, TINY, borrowed, data, program, repository, shard_imagenet, text, tiny_run, trainer,
};
use serde_json::Value;

/// A study of two rows, whose first row has these changes.
fn write(path: &Path, first: &str) {
    let all: Vec<_> = TINY.iter().map(|change| format!("{change:?}")).collect();
    let study = format!(
        "title = \"Tiny\"\npreset = \"cifar10\"\nseeds = [0, 1]\nset = [{}]\n\
         [[row]]\nname = \"base\"\nset = [{first}]\n\
         [[row]]\nname = \"no_e\"\nnote = \"no encoder\"\nset = [\"loss.sxz=false\", \"loss.sz=false\"]\n",
        all.join(", ")
    );
    fs::write(path, study).unwrap();
}

fn args(file: &Path, out: &Path) -> Vec<String> {
    let extractor = text(&repository().join("tests/golden/extractor.pt"));
    let (file, out, data) = (text(file), text(out), text(data()));
    let all = ["study", &file, "--data", &data, "--out", &out, "--devices", "cpu,cpu"];
    let fid = ["--extractor", &extractor, "--trust-extractor", "--images", "12"];
    all.into_iter().chain(fid).map(str::to_owned).collect()
}

/// The results of a study, but for what a clock says.
fn without_minutes(out: &Path) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(all) => {
                all.remove("minutes");
                all.values_mut().for_each(strip);
            }
            Value::Array(all) => all.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let text = fs::read_to_string(out.join("results.json")).unwrap();
    let mut results = serde_json::from_str(&text).unwrap();
    strip(&mut results);
    results
}

/// `scripts/speedrun choose` with a study that takes seconds, from another folder.
#[test]
fn a_speed_run_chooses_by_minutes_and_held_out_images_and_looks_at_no_test_image() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(&at("study.toml"), "");
    let built = shard_imagenet(&[
        "build",
        "--layout",
        "webdataset",
        "--input",
        &text(data()),
        "--holdout",
        "12",
        "--output",
        &text(&at("data")),
    ]);
    assert_eq!(built.code, 0, "{}", built.err);
    let mut command = Command::new(repository().join("scripts/speedrun"));
    command.current_dir(&folder).args(["choose", "study.toml", "out"]);
    command.env("TRAINER", program("trainer")).env("SPEEDRUN_DATA", "data");
    let (said, _) = Background::of(command).wait();
    assert_eq!(said.code, 0, "{}", said.err);
    let results = fs::read_to_string(at("out/results.json")).unwrap();
    let found: Value = serde_json::from_str(&results).unwrap();
    for row in 0..2 {
        let minutes = found["rows"][row]["mean"]["minutes"].as_f64().unwrap();
        assert!(0.0 < minutes && minutes < 2.0, "{minutes}");
    }
    assert!(found["rows"][0]["mean"]["probe_bn_crelu"].is_f64());
    assert!(said.out.contains("| minutes |"), "{}", said.out);
    let mut measured = 0;
    for name in ["metrics.jsonl", "evaluations.jsonl"] {
        let lines = fs::read_to_string(at("out/runs/base-0").join(name)).unwrap();
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["split"], "trainval", "{line}");
            measured += 1;
        }
    }
    assert!(measured > 2, "{measured} lines");
}

#[test]
fn an_interrupted_study_ends_with_the_results_of_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("study.toml");
    write(&file, "");
    let results = |out: &Path| without_minutes(out);

    let straight = folder.path().join("straight");
    let said = trainer(&borrowed(&args(&file, &straight)));
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("4 of 4 runs done"), "{}", said.out);
    let found = results(&straight);
    let [base, no_e] = [0, 1].map(|row| &found["rows"][row]);
    for key in ["probe_bn_crelu", "probe_avepool", "probe_untrained", "knn5_cosine", "frechet"] {
        assert!(base["mean"][key].is_f64() && base["deviation"][key].is_f64(), "{key}: {base}");
    }
    assert!(no_e["mean"]["frechet"].is_f64() && no_e["mean"]["probe_bn_crelu"].is_null());
    let by_seed = ["0", "1"].map(|seed| {
        let of = |row: &Value| row["runs"][seed]["frechet"].as_f64().unwrap();
        of(no_e) - of(base)
    });
    let mean = no_e["difference"]["frechet"].as_f64().unwrap();
    assert!((mean - (by_seed[0] + by_seed[1]) / 2.0).abs() < 1e-9 * mean.abs().max(1.0));
    let page = fs::read_to_string(straight.join("index.html")).unwrap();
    assert_eq!(page.matches("<img ").count(), 2 * 2 + 2, "samples, and reconstructions of base");
    assert!(page.contains("no encoder") && !page.contains("://"));
    let table = fs::read_to_string(straight.join("results.md")).unwrap();
    assert!(said.out.contains(&table) && table.contains("| no_e | 2 | –"), "{table}");

    let broken = folder.path().join("broken");
    let mut study = Background::start(&args(&file, &broken));
    study.until(|_| broken.join("runs/base-0/stats.jsonl").exists());
    let (said, _) = study.terminate();
    assert_eq!(said.code, 75, "{}", said.err);
    assert!(said.out.contains("stopped by a signal"), "{}", said.out);
    // Once more, in a run whose seed is not the default of any command.
    let mut study = Background::start(&args(&file, &broken));
    study.until(|_| broken.join("runs/base-1/stats.jsonl").exists());
    let (said, _) = study.terminate();
    assert_eq!(said.code, 75, "{}", said.err);
    let said = trainer(&borrowed(&args(&file, &broken)));
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(results(&broken), results(&straight));

    // Nothing is left to do, and nothing is done.
    let log = fs::read_to_string(broken.join("runs/base-0.log")).unwrap();
    let said = trainer(&borrowed(&args(&file, &broken)));
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(fs::read_to_string(broken.join("runs/base-0.log")).unwrap(), log);

    // Nothing is measured otherwise than what it is compared with.
    let mut fewer = args(&file, &broken);
    *fewer.last_mut().unwrap() = "11".to_owned();
    let said = trainer(&borrowed(&fewer));
    assert_eq!(said.code, 2, "{}", said.err);
    assert!(said.err.contains("--images"), "{}", said.err);

    // A run made with other settings is not taken for one of the study's.
    write(&file, "\"opt.lr_d=1e-5\"");
    let said = trainer(&borrowed(&args(&file, &broken)));
    assert_eq!(said.code, 2, "{}", said.err);
    assert!(said.err.contains("base-0") && said.err.contains("opt.lr_d"), "{}", said.err);
    assert_eq!(results(&broken), results(&straight));
}

#[test]
fn a_run_that_fails_stops_no_other_and_is_named_with_its_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("study.toml"), folder.path().join("out"));
    // No weight survives such rates.
    write(&file, "\"opt.lr_d=1e38\", \"opt.lr_g=1e38\"");
    let said = trainer(&borrowed(&args(&file, &out)));
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(said.err.contains("base-0, base-1 failed"), "{}", said.err);
    assert!(said.err.contains("not finite"), "{}", said.err);
    assert!(said.out.contains("2 of 4 runs done"), "{}", said.out);
}

/// Arguments of a study without the Fréchet distance.
fn short(file: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let (file, out, data) = (text(file), text(out), text(data()));
    let all = ["study", &file, "--data", &data, "--out", &out];
    all.into_iter().chain(more.iter().copied()).map(str::to_owned).collect()
}

#[test]
fn a_device_that_is_gone_fails_no_run_where_another_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("study.toml"), folder.path().join("out"));
    write(&file, "");
    let gone = "cuda:4096";
    let said = trainer(&borrowed(&short(&file, &out, &["--devices", &format!("{gone},cpu")])));
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("4 of 4 runs done"), "{}", said.out);

    let out = folder.path().join("none");
    let said = trainer(&borrowed(&short(&file, &out, &["--devices", gone])));
    assert_eq!(said.code, 1, "{}", said.err);
    for words in ["no device is left", "2 runs were not tried", gone] {
        assert!(said.err.contains(words), "{words} is not in {}", said.err);
    }
    assert_eq!(fs::read_dir(out.join("runs")).unwrap().count(), 2, "logs of runs that were tried");
}

#[test]
fn results_of_rows_that_are_not_chosen_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("study.toml"), folder.path().join("out"));
    write(&file, "");
    for row in ["base", "no_e"] {
        let said = trainer(&borrowed(&short(&file, &out, &["--rows", row, "--devices", "cpu"])));
        assert_eq!(said.code, 0, "{}", said.err);
        assert!(said.out.contains("2 of 2 runs done"), "{}", said.out);
    }
    let found = fs::read_to_string(out.join("results.json")).unwrap();
    let found: Value = serde_json::from_str(&found).unwrap();
    let rows: Vec<_> = found["rows"].as_array().unwrap().iter().collect();
    assert_eq!(rows.len(), 2, "{found}");
    for (row, name) in rows.iter().zip(["base", "no_e"]) {
        assert_eq!(row["name"], name);
        assert_eq!(row["runs"].as_object().unwrap().len(), 2, "{row}");
    }
    let all = short(&file, &out, &["--devices", "cpu", "--json"]);
    let said = trainer(&borrowed(&all));
    assert_eq!((said.code, serde_json::from_str::<Value>(&said.out).unwrap()), (0, found));
    assert!(said.err.contains("runs done"), "{}", said.err);
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    assert!(page.contains("no encoder") && page.matches("<img ").count() >= 4);
}

#[test]
fn a_run_that_fails_while_the_study_stops_is_no_clean_stop() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("study.toml"), folder.path().join("out"));
    write(&file, "\"train.steps=100000\"");
    let mut study = Background::start(&short(&file, &out, &["--devices", "cpu"]));
    let run = out.join("runs/base-0");
    study.until(|_| run.join("stats.jsonl").exists());
    let pid = process_with(&text(&run));
    let signal = |signal: &str| {
        let status = Command::new("kill").args([signal, &pid.to_string()]).status();
        assert!(status.unwrap().success());
    };
    // It has no time to save.
    signal("-STOP");
    let killer = std::thread::spawn({
        let pid = pid.to_string();
        move || {
            std::thread::sleep(Duration::from_secs(1));
            Command::new("kill").args(["-KILL", &pid]).status().unwrap()
        }
    });
    let (said, _) = study.terminate();
    assert!(killer.join().unwrap().success());
    assert_eq!(said.code, 1, "{}", said.err);
    for words in ["base-0 failed", "was killed by signal 9"] {
        assert!(said.err.contains(words), "{words} is not in {}", said.err);
    }
    assert!(said.out.contains("stopped by a signal"), "{}", said.out);
}

#[test]
fn an_evaluation_that_is_asked_to_end_says_so_to_whoever_started_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let said = trainer(&borrowed(&tiny_run(data(), &run, &["train.steps=1"])));
    assert_eq!(said.code, 0, "{}", said.err);
    let run = text(&run);
    let args = ["eval", "linear", "--run", &run, "--steps", "100000000"].map(str::to_owned);
    let evaluation = Background::start(&args);
    // It has loaded the model by then, or has come to listen at least.
    std::thread::sleep(Duration::from_secs(5));
    let (said, took) = evaluation.terminate();
    assert_eq!(said.code, 75, "{}", said.err);
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// The process that has this word on its command line.
fn process_with(word: &str) -> u32 {
    let has = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|other| other == word)
    };
    let mut pids = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.find(has).unwrap()
}
