//! What happens to a run in the world: the real programs are started and hurt. After each fault the run has
//! ended or gone on as docs/reliability.md says, its message names the cause, its state loads, and nothing
//! beyond a checkpoint interval is lost.
//!
//! `BIGBIGAN_TESTS=long` tries each fault more often. With `BIGBIGAN_RELIABILITY=FILE`, every story appends a
//! row of the table to FILE (`scripts/reliability`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod calls;
mod data;
mod disk;
mod hands;
mod hostile;
mod limits;
mod mirror;
mod network;
mod ranks;
mod restarts;
#[path = "../../pipeline/tests/support/server.rs"]
mod server;
mod signals;
mod soak;
mod stores;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use integration::{Said, borrowed, repository, tiny_run, trainer};
use serde_json::Value;
use trainer::checkpoint;

/// `short`, or `long` where full counts are asked for.
fn times(short: usize, long: usize) -> usize {
    if std::env::var("BIGBIGAN_TESTS").is_ok_and(|value| value == "long") { long } else { short }
}

/// A row of the table: what was done, how often, how it ended, and what was lost.
fn tell(fault: &str, times: usize, outcome: &str, loss: &str) {
    let Some(path) = std::env::var_os("BIGBIGAN_RELIABILITY") else { return };
    let story = std::thread::current().name().unwrap_or_default().to_owned();
    assert!(story.contains("::"), "libtest gives each story a thread of its name");
    let row = serde_json::json!(
        {"story": story, "fault": fault, "times": times, "outcome": outcome, "loss": loss}
    );
    let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{row}\n").as_bytes()).unwrap();
}

#[test]
fn every_row_of_the_table_is_of_a_story_that_is_there() {
    let listed =
        std::process::Command::new(std::env::current_exe().unwrap()).arg("--list").output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let stories: Vec<_> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let rows = lines(&repository().join("docs/reliability.jsonl"));
    assert!(rows.len() > 40 && stories.len() > 40);
    for row in rows {
        let story = row["story"].as_str().unwrap();
        assert!(stories.contains(&story), "{story} has a row and is no story");
    }
}

/// The lines of a run's log; none where there is no log.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The last step of `stats.jsonl`.
fn steps(run: &Path) -> u64 {
    lines(&run.join("stats.jsonl")).last().map_or(0, |line| line["step"].as_u64().unwrap())
}

/// The newest checkpoint, which must be sound.
fn newest(run: &Path) -> PathBuf {
    let newest = checkpoint::list(&run.join("checkpoints")).unwrap().pop().unwrap().1;
    checkpoint::verify(&newest).unwrap();
    newest
}

/// The step of the newest checkpoint, which must be sound; none where there is none.
fn saved(run: &Path) -> Option<u64> {
    let folder = run.join("checkpoints");
    let any = checkpoint::list(&folder).is_ok_and(|all| !all.is_empty());
    any.then(|| checkpoint::read_manifest(&newest(run)).unwrap().step)
}

/// Arguments of a tiny run that starts or goes on.
fn unattended(data: &Path, run: &Path, overrides: &[&str]) -> Vec<String> {
    let mut args = tiny_run(data, run, overrides);
    args.push("--resume=auto".into());
    args
}

/// The step of the newest sound checkpoint, if there is one.
fn newest_sound(run: &Path) -> Option<u64> {
    let all = checkpoint::list(&run.join("checkpoints")).unwrap_or_default();
    all.iter().rev().find_map(|(_, path)| Some(checkpoint::verify(path).ok()?.step))
}

/// The steps from which sessions went on.
fn begins(run: &Path) -> Vec<u64> {
    let begins = |line: &&Value| line["event"] == "begin";
    let sessions = lines(&run.join("sessions.jsonl"));
    sessions.iter().filter(begins).map(|line| line["step"].as_u64().unwrap()).collect()
}

/// Lets a run go on to its end by the command that began it, from the newest sound checkpoint: nothing before it
/// is done again.
fn finished(args: &[String]) -> Said {
    let out = args.iter().position(|arg| arg == "--out").expect("a run has a folder");
    let run = Path::new(&args[out + 1]);
    let (had, before) = (newest_sound(run), begins(run).len());
    let said = trainer(&borrowed(args));
    assert_eq!(said.code, 0, "{}", said.err);
    if let [from] = begins(run)[before..] {
        assert_eq!(from, had.unwrap_or(0), "went on from another step: {}", said.err);
    }
    said
}

/// What the last checkpoint of a run holds, but for where and when it was made.
fn end(run: &Path) -> impl PartialEq + std::fmt::Debug + use<> {
    let manifest = checkpoint::read_manifest(&newest(run)).unwrap();
    (manifest.step, manifest.cursor, manifest.adam_steps, manifest.files)
}

/// Whether the last checkpoints of two runs hold the same, to the bit.
fn same_end(one: &Path, other: &Path) -> bool {
    end(one) == end(other)
}

fn assert_same_end(one: &Path, other: &Path) {
    assert_eq!(end(one), end(other), "{} and {}", one.display(), other.display());
}

/// A run that nothing disturbs, with these overrides.
fn undisturbed(folder: &Path, data: &Path, overrides: &[&str]) -> PathBuf {
    let run = folder.join("undisturbed");
    let said = trainer(&borrowed(&tiny_run(data, &run, overrides)));
    assert_eq!(said.code, 0, "{}", said.err);
    run
}

/// The bytes of `config.toml` and the names of all checkpoints.
fn face(run: &Path) -> (String, Vec<String>) {
    let names = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    (fs::read_to_string(run.join("config.toml")).unwrap(), names)
}
