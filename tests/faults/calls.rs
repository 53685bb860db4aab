//! A run is killed before any of its writes, syncs and renames, and any of them fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use integration::faults::{self, Call, Failing, Fault};
use integration::{ONE_THREAD, data, program};
use std::os::unix::process::ExitStatusExt;

use super::{assert_same_end, finished, saved, tell, times, unattended, undisturbed};

const KEYS: [&str; 5] = [
    "train.steps=2",
    "checkpoint.every=1",
    "checkpoint.keep=1",
    "images.every=1",
    "eval.probe_images=0",
];

fn run(out: &Path) -> Command {
    let mut command = Command::new(program("trainer"));
    command.args(unattended(data(), out, &KEYS)).envs(ONE_THREAD);
    command
}

/// How many calls of a kind a run makes in its folder; of [`Call::Any`], at least.
fn count(call: Call, folder: &Path) -> u64 {
    let (out, log) = (folder.join("counted"), folder.join("log"));
    let _ = (fs::remove_dir_all(&out), fs::remove_file(&log));
    let mut command = run(&out);
    faults::watch(&mut command, &log);
    assert!(command.output().unwrap().status.success());
    let words: &[&str] = match call {
        Call::Open => &["open\t", "create\t"],
        Call::Write => &["write\t"],
        Call::Fsync => &["fsync\t"],
        Call::Rename => &["rename\t"],
        Call::Any => &["open\t", "create\t", "write\t", "fsync\t", "rename\t"],
    };
    let text = fs::read_to_string(log).unwrap();
    let here = out.display().to_string();
    let is = |line: &&str| line.contains(&here) && words.iter().any(|word| line.starts_with(word));
    text.lines().filter(is).count() as u64
}

/// Numbers from 1 to `all`: `some` of them, spread.
fn numbers(all: u64, some: usize) -> Vec<u64> {
    let some = some.min(all as usize) as u64;
    (0..some).map(|n| 1 + n * (all - 1) / (some - 1).max(1)).collect()
}

fn hurt(out: &Path, call: Call, at: u64, onwards: bool, fault: Fault) -> Output {
    let mut command = run(out);
    let path = format!("{}/*", out.display());
    faults::hurt(&mut command, &Failing { call, path: &path, at, onwards, fault });
    command.output().unwrap()
}

#[test]
fn a_run_killed_before_any_call_goes_on_to_the_same_end() {
    let folder = tempfile::tempdir().unwrap();
    let straight = undisturbed(folder.path(), data(), &KEYS);
    for (call, some) in [(Call::Rename, 5), (Call::Fsync, 4), (Call::Write, 4), (Call::Open, 2)] {
        let mut killed = 0;
        let all = numbers(count(call, folder.path()), times(some, usize::MAX));
        for &at in &all {
            let out = folder.path().join(format!("{call:?}-{at}"));
            let output = hurt(&out, call, at, false, Fault::Kill);
            // The last ones may come in another order, and not at all.
            killed += usize::from(output.status.signal() == Some(9));
            if out.join("checkpoints").exists() {
                saved(&out); // what has a name is sound
            }
            finished(&unattended(data(), &out, &KEYS));
            assert_same_end(&out, &straight);
            fs::remove_dir_all(out).unwrap();
        }
        // How often a log is synced depends on how long the run takes.
        assert!(killed + 1 + all.len() / 10 >= all.len(), "{killed} of {} {call:?}", all.len());
        let what = format!("kill -9 before the n-th {call:?} of a run, n from first to last");
        tell(
            &what.to_lowercase(),
            killed,
            "the same command goes on",
            "one interval; the end is bit-equal",
        );
    }
}

#[test]
fn a_call_that_fails_costs_no_more_than_an_interval() {
    let folder = tempfile::tempdir().unwrap();
    let straight = undisturbed(folder.path(), data(), &KEYS);
    for (fault, onwards, what) in [
        (Fault::Eio, false, "one write, sync or rename fails (EIO)"),
        (Fault::Enospc, false, "one write, sync or rename finds the disk full (ENOSPC)"),
        (Fault::Enospc, true, "the disk is full from the n-th call on (ENOSPC)"),
        (Fault::Erofs, true, "the disk is read-only from the n-th call on (EROFS)"),
    ] {
        let mut tried = 0;
        let calls: &[_] = match fault {
            // As the kernel leaves a file system in which it found a fault.
            Fault::Erofs => &[(Call::Any, 5)],
            _ => &[(Call::Write, 3), (Call::Fsync, 2), (Call::Rename, 2)],
        };
        for &(call, some) in calls {
            for at in numbers(count(call, folder.path()), times(some, 30)) {
                let out = folder.path().join(format!("{call:?}-{at}"));
                let output = hurt(&out, call, at, onwards, fault);
                let said = String::from_utf8_lossy(&output.stderr);
                let code = output.status.code();
                assert!(matches!(code, Some(0 | 1)), "{fault:?} {call:?} {at}: {code:?} {said}");
                assert!(!said.contains("panicked"), "{fault:?} {call:?} {at}: {said}");
                // The last calls may come in another order, and not at all.
                if code == Some(1) {
                    let cause = match fault {
                        Fault::Eio => "os error 5",
                        Fault::Erofs => "os error 30",
                        _ => "os error 28",
                    };
                    assert!(said.contains(cause), "{fault:?} {call:?} {at}: {said}");
                }
                finished(&unattended(data(), &out, &KEYS));
                assert_same_end(&out, &straight);
                assert!(out.join("evaluated").exists());
                fs::remove_dir_all(out).unwrap();
                tried += 1;
            }
        }
        let outcome =
            "trains on with a warning, or ends with exit code 1; then the same command goes on";
        tell(what, tried, outcome, "one interval at most; the end is bit-equal");
    }
}

/// A `shard-imagenet` that makes some shards of procedural images.
fn synth(output: &Path) -> Command {
    let mut command = Command::new(program("shard-imagenet"));
    let size = ["--images", "40", "--classes", "4", "--size", "32", "--shard-bytes", "20K"];
    command.args(["synth", "--output"]).arg(output).args(size);
    command
}

#[test]
fn a_build_killed_before_any_call_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let contents = |folder: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let file = |path: PathBuf| (path.file_name().unwrap().into(), fs::read(&path).unwrap());
        entries.map(file).collect()
    };
    let whole = folder.path().join("whole");
    assert!(synth(&whole).status().unwrap().success());
    let whole = contents(&whole);
    let pattern = format!("{}/*", folder.path().display());
    for call in [Call::Rename, Call::Fsync, Call::Write] {
        let mut killed = 0;
        for at in 1.. {
            let output = folder.path().join(format!("out-{call:?}-{at}"));
            let mut build = synth(&output);
            let fault = Fault::Kill;
            faults::hurt(&mut build, &Failing { call, path: &pattern, at, onwards: false, fault });
            let ended = build.output().unwrap();
            if ended.status.success() {
                break;
            }
            assert_eq!(ended.status.signal(), Some(9), "{call:?} {at}");
            killed += 1;
            let again = synth(&output).output().unwrap();
            let said = String::from_utf8_lossy(&again.stderr);
            assert!(again.status.success(), "killed before {call:?} {at}: {said}");
            assert!(contents(&output) == whole, "killed before {call:?} {at}");
            fs::remove_dir_all(output).unwrap();
        }
        assert!(killed > 5, "{killed} kills before a {call:?}");
        let what = format!("kill -9 before the n-th {call:?} of a build of shards, every n");
        tell(&what.to_lowercase(), killed, "the same command goes on", "nothing; the same bytes");
    }
}
