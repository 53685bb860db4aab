//! `trainer check-device` on the CPU: single precision against double, and the machinery around it.

use std::fs;
use std::path::Path;
use std::time::Instant;

use integration::{Background, borrowed, data, text, trainer};
use serde_json::Value;

fn args(out: &Path, more: &[&str]) -> Vec<String> {
    let mut all = vec!["check-device", "--device", "cpu", "--quick", "--time", "demo:4"];
    all.extend(more);
    let mut all: Vec<_> = all.into_iter().map(str::to_owned).collect();
    all.extend(["--data".into(), text(data()), "--out".into(), text(out)]);
    all
}

fn result(out: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(out).unwrap()).unwrap()
}

fn of_kind<'a>(result: &'a Value, kind: &str) -> Vec<&'a Value> {
    let records = result["records"].as_array().unwrap();
    records.iter().filter(|record| record["kind"] == kind).collect()
}

#[test]
fn a_cpu_agrees_with_itself_and_all_parts_leave_their_records() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("check.json");
    let said = trainer(&borrowed(&args(&out, &[])));
    assert_eq!(said.code, 0, "{}\n{}", said.out, said.err);
    let result = result(&out);
    assert_eq!(said.out.lines().last().unwrap().parse::<Value>().unwrap(), result);
    let rows = of_kind(&result, "row");
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    for name in ["f32", "bf16", "graphs", "deterministic", "evaluations"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(rows.iter().all(|row| row["agrees"] == true), "{}", said.out);
    // Rounding is there, and is told.
    let losses = &rows[0]["quantities"][0];
    assert!(losses["name"] == "losses" && losses["off"].as_f64().unwrap() > 0.0, "{losses}");
    assert_eq!(of_kind(&result, "device")[0]["device"], "cpu");
    let steps = of_kind(&result, "steps")[0];
    assert!(steps["step_s"].as_f64().unwrap() > 0.0 && steps["mfu"].is_null(), "{steps}");
    let profile = of_kind(&result, "profile")[0];
    assert_eq!(profile["clock"], "host");
    let operators = profile["operators"].as_array().unwrap();
    let named = |name: &str| operators.iter().any(|row| row["name"] == name);
    assert!(named("aten::convolution_backward") || named("aten::mkldnn_convolution"), "{profile}");
    assert!(of_kind(&result, "feed")[0]["wait_share"].as_f64().unwrap() < 1.0);
    assert!(of_kind(&result, "missing").is_empty(), "{}", said.out);
}

#[test]
fn a_signal_and_the_end_of_the_time_keep_what_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("check.json");
    let child = Background::start(&args(&out, &[]));
    let begun = Instant::now();
    let found = || fs::read_to_string(&out).is_ok_and(|text| text.contains("\"name\":\"f32\""));
    while !found() {
        assert!(begun.elapsed().as_secs() < 100, "no row comes");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (said, took) = child.terminate();
    assert_eq!(said.code, 75, "{}\n{}", said.out, said.err);
    assert!(took.as_secs() < 10, "{took:?}");
    let result = result(&out);
    assert_eq!(result["stopped"], true);
    assert!(!of_kind(&result, "row").is_empty() && !of_kind(&result, "missing").is_empty());

    let said = trainer(&borrowed(&args(&out, &["--minutes", "0.1"])));
    let result = self::result(&out);
    let why = |record: &&Value| record["why"].as_str().unwrap().contains("time");
    assert!(of_kind(&result, "missing").iter().any(why), "{}", said.out);
}

#[test]
fn what_cannot_be_checked_is_refused_with_the_way_out() {
    for (more, words) in [
        (&["--device", "cuda:77"][..], "cuda:77"),
        (&["--time", "demo"], "PRESET:N"),
        (&["--time", "dmo:4"], "did you mean"),
        (&["--minutes", "0"], "--minutes"),
        (&["--peer", "nowhere.py"], "no such file"),
    ] {
        let said = trainer(&[&["check-device"][..], more].concat());
        assert_eq!(said.code, 2, "{} {}", said.out, said.err);
        assert!(said.err.contains(words), "{more:?}: {}", said.err);
    }
}
