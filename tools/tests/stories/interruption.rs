//! A build that is interrupted goes on to the same bytes.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tempfile::tempdir;

use crate::support::{contents, names, program, run, text, write};

fn synth(output: &Path) -> Vec<&str> {
    let size = ["--images", "600", "--classes", "7", "--size", "48", "--shard-bytes", "40K"];
    [&["synth", "--output", text(output)], &size[..]].concat()
}

/// Kills at moments spread over a whole build. The long tests make it a hundred.
#[test]
fn a_build_that_is_killed_goes_on_to_the_same_bytes() {
    let kills = if std::env::var_os("BIGBIGAN_TESTS").is_some_and(|counts| counts == "long") {
        100
    } else {
        10
    };
    let dir = tempdir().expect("a folder");
    let whole = dir.path().join("whole");
    let started = std::time::Instant::now();
    run(&synth(&whole)).ok();
    let length = started.elapsed();
    let whole = contents(&whole);
    let mut resumed = 0;
    for kill in 0..kills {
        let output = dir.path().join(format!("out{kill}"));
        let mut child = program(&synth(&output))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        std::thread::sleep(length.mul_f64((kill as f64 + 0.5) / kills as f64));
        child.kill().expect("killed");
        child.wait().expect("ended");
        let partial = dir.path().join(format!(".out{kill}.partial"));
        assert!(!(output.exists() && partial.exists()), "half an output under its own name");
        if !output.exists() {
            let ran = run(&synth(&output)).ok();
            resumed += usize::from(ran.out.contains("stored before"));
        }
        assert_eq!(contents(&output), whole, "kill {kill}");
        assert!(!partial.exists());
        fs::remove_dir_all(&output).expect("removed");
    }
    assert!(resumed > 0, "no kill hit a build between its first and its last shard");
}

#[test]
fn an_interrupt_ends_with_whole_shards_and_a_journal() {
    let dir = tempdir().expect("a folder");
    let output = dir.path().join("out");
    let partial = dir.path().join(".out.partial");
    let mut args = synth(&output);
    args[4] = "20000";
    let mut child =
        program(&args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("started");
    let tars = || partial.exists() && names(&partial).iter().any(|name| name.ends_with(".tar"));
    while !tars() {
        assert!(child.try_wait().expect("a child").is_none(), "it ended before its first shard");
        std::thread::sleep(Duration::from_millis(2));
    }
    let id = child.id().to_string();
    std::process::Command::new("kill").args(["-INT", &id]).status().expect("a signal");
    let ended = child.wait_with_output().expect("ended");
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("error: interrupted"), "{said}");
    assert!(!output.exists());
    let left = names(&partial);
    assert!(left.iter().all(|name| name.ends_with(".tar") || name == "journal.jsonl"), "{left:?}");
    // Other options are not mixed into it.
    run(&synth(&output)).refused("unfinished build of another input or other options");
    run(&[&synth(&output)[..], &["--overwrite"]].concat()).ok();
    assert!(!partial.exists());
}

#[test]
fn what_the_journal_does_not_name_is_made_again() {
    let dir = tempdir().expect("a folder");
    run(&synth(&dir.path().join("whole"))).ok();
    let whole = contents(&dir.path().join("whole"));
    let output = dir.path().join("out");
    let partial = dir.path().join(".out.partial");
    let mut child = program(&synth(&output)).stderr(Stdio::null()).spawn().expect("started");
    let lines = |partial: &Path| {
        let journal = fs::read(partial.join("journal.jsonl")).unwrap_or_default();
        journal.iter().filter(|byte| **byte == b'\n').count()
    };
    while lines(&partial) < 3 && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(partial.exists(), "the build was too quick to be killed");
    // A shard without a line, and a line that was cut off.
    write(partial.join("train-000900.tar"), "half a shard");
    write(partial.join(".train-000901.tar.tmp"), "less");
    let mut journal =
        OpenOptions::new().append(true).open(partial.join("journal.jsonl")).expect("a journal");
    journal.write_all(b"{\"name\":\"train-000").expect("written");
    drop(journal);
    run(&synth(&output)).ok();
    assert_eq!(contents(&output), whole);
}
