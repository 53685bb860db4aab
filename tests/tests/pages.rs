//! Pages in a browser: report, comparison, study and the watched one, used by real clicks and keys in Chromium.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use integration::{Background, borrowed, copy_folder, data, missing, text, tiny_run, trainer};
use serde_json::Value;

/// What the browser saw; nothing where there is none.
fn browse(what: &str, args: &[&str]) -> Option<Value> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let there = |command: &mut Command| command.output().is_ok_and(|said| said.status.success());
    if !there(Command::new(&python).args(["-c", "import playwright"]))
        || !there(Command::new("chromium").arg("--version"))
    {
        missing(&format!("{python} has no Playwright, or there is no chromium"));
        return None;
    }
    let mut command = Command::new(&python);
    command.args(["-c", include_str!("pages.py"), what]).args(args);
    let said = command.output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let found: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(found["complaints"], serde_json::json!([]), "the browser's console");
    Some(found)
}

/// A run with pictures, a probe and an incident, made once.
fn run() -> &'static Path {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, run) = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("first");
        let keys = ["images.every=2", "log.every=1", "eval.every=2", "eval.probe_images=8"];
        let said = trainer(&borrowed(&tiny_run(data(), &run, &keys)));
        assert_eq!(said.code, 0, "{}", said.err);
        let incident = "{\"step\":2,\"incident\":\"samples_alike\",\"text\":\"</script><b>x\"}\n";
        fs::write(run.join("incidents.jsonl"), incident).unwrap();
        let said = trainer(&["report", "--run", &text(&run)]);
        assert_eq!(said.code, 0, "{}", said.err);
        (folder, run)
    });
    run
}

fn list(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

#[test]
fn a_report_shows_values_where_it_is_pointed_at_and_asks_for_nothing() {
    let page = text(&run().join("report.html"));
    let Some(found) = browse("report", &[&page]) else { return };
    assert_eq!(list(&found["requests"]), [format!("file://{page}")]);
    assert_eq!(found["empty"], 0, "charts without a curve");
    let (first, of) = (&found["first"], |what: &str| &found[what]);
    let stats = fs::read_to_string(run().join("stats.jsonl")).unwrap();
    let losses: Vec<f64> = stats
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss_d"].as_f64().unwrap())
        .collect();
    // "D 4.432"
    let shows = |what: &str, value: f64| {
        let said = list(&of(what)["legend"])[0].strip_prefix("D ").unwrap().to_owned();
        let said: f64 = said.parse().unwrap();
        assert!((said - value).abs() < 1e-3 * value.abs(), "{what}: {said} is not {value}");
    };
    let last = losses[losses.len() - 1];
    for (what, value) in
        [("first", last), ("pointed", losses[0]), ("home", losses[0]), ("right", losses[1])]
    {
        shows(what, value);
    }
    shows("escaped", last);
    assert!(of("pointed")["where"].as_str().unwrap().starts_with("step 1,"));
    assert_eq!(first["where"], "");
    assert_eq!(list(&first["curves"]).len(), 3);
    assert_eq!(first["marks"], 1, "the incident");
    assert!(first["label"].as_str().unwrap().starts_with("Losses: D "));
    // Time, smoothing, and a curve off and on again.
    assert!(list(&first["texts"]).contains(&"step"));
    assert!(list(&of("time")["texts"]).contains(&"minutes of training"));
    assert_ne!(first["curves"], of("smooth")["curves"]);
    assert_eq!(list(&of("off")["curves"]).len(), 2);
    assert_eq!(first["curves"], of("on")["curves"]);
    // Two probes at two steps, the best of each marked.
    assert_eq!((list(&of("probes")["curves"]).len(), &of("probes")["best"]), (2, &2.into()));
    assert_eq!(of("newest"), &serde_json::json!([["newest", true]]));
    assert_eq!(of("oldest"), &serde_json::json!([["step 2", true]]));
    assert_eq!(of("said"), "step 2");
    assert_eq!(of("too_wide"), false, "it fits a telephone");
}

#[test]
fn runs_are_compared_in_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("second");
    let keys = ["images.every=0", "eval.probe_images=0", "train.seed=7"];
    let said = trainer(&borrowed(&tiny_run(data(), &other, &keys)));
    assert_eq!(said.code, 0, "{}", said.err);
    let page = folder.path().join("page.html");
    let (one, two, out) = (text(run()), text(&other), text(&page));
    let said = trainer(&["compare", &one, &two, "--out", &out]);
    assert_eq!((said.code, said.out.trim()), (0, &*out), "{}", said.err);
    let nowhere = trainer(&["compare", &one, &text(folder.path()), "--out", &out]);
    assert_eq!(nowhere.code, 2, "{}", nowhere.err);
    assert!(nowhere.err.contains("not the folder of a run"), "{}", nowhere.err);
    // The second run goes further than the first.
    let mut stats = fs::read_to_string(other.join("stats.jsonl")).unwrap();
    let mut last: Value = serde_json::from_str(stats.lines().last().unwrap()).unwrap();
    for step in 5..13 {
        last["step"] = step.into();
        last["loss_d"] = f64::from(100 + step).into();
        stats += &format!("{last}\n");
    }
    fs::write(other.join("stats.jsonl"), stats).unwrap();
    let said = trainer(&["compare", &one, &two, "--out", &out]);
    assert_eq!(said.code, 0, "{}", said.err);
    let Some(found) = browse("compare", &[&out]) else { return };
    assert_eq!(list(&found["requests"]), [format!("file://{out}")]);
    let losses = &found["losses"];
    assert_eq!(list(&losses["curves"]).len(), 2);
    let legend = list(&losses["legend"]);
    assert!(legend[0].starts_with("first ") && legend[1].starts_with("second "), "{legend:?}");
    let at_the_end = list(&found["end"]["legend"]);
    assert_eq!(at_the_end, ["first –", "second 112"]);
    assert_eq!(found["end"]["where"], "step 12", "runs differ in their pace");
    assert!(found["said"].as_str().unwrap().contains("step 11, first –, second 111"), "{found}");
    let rows = list(&found["differ"]);
    assert!(rows.contains(&"train.seed\t0\t7"), "{rows:?}");
    assert!(rows.iter().all(|row| !row.starts_with("g.ch")), "{rows:?}");
}

#[test]
fn a_watched_run_is_drawn_anew_when_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("runs");
    let copy = root.join("some/first");
    copy_folder(run(), &copy);
    let args = ["watch", "--out", &text(&root), "--port", "0"].map(str::to_owned);
    let mut watch = Background::start(&args);
    let begun = std::time::Instant::now();
    while watch.printed().is_empty() {
        assert!(begun.elapsed().as_secs() < 20, "it serves nothing");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let url = watch.printed().trim().to_owned();
    let address = url.strip_prefix("http://").unwrap().to_owned();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    TcpStream::connect(&address).unwrap();
    let taken =
        trainer(&["watch", "--out", &text(&root), "--port", address.rsplit(':').next().unwrap()]);
    assert!(taken.code == 2 && taken.err.contains("--port"), "{}", taken.err);
    if let Some(found) = browse("watch", &[&url, &text(&copy)]) {
        assert_eq!(list(&found["runs"]), ["some/first"]);
        assert_eq!(found["sparks"], 2);
        let ([before, after], of) = (["before", "after"].map(|what| &found[what]), |v: &Value| {
            list(&v["curves"])[0].split(' ').count()
        });
        assert_eq!(of(after), of(before) + 1);
        assert_eq!(found["focused"], "svg", "the focus stays where it was");
        assert_eq!(found["legend_focused"], "BUTTON");
        assert!(found["gone"].as_str().unwrap().contains("no longer here"), "{found}");
        for request in list(&found["requests"]) {
            assert!(request.starts_with(&url), "{request}");
        }
    }
    // Nothing is left of it, and it wrote nothing.
    watch.signal("TERM");
    let (said, _) = watch.wait();
    assert_eq!(said.code, 0, "{}", said.err);
}
