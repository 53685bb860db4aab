//! A build that is interrupted goes on to the same bytes.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tempfile::tempdir;

use crate::support::{build, contents, jpeg, names, program, run, text, write};

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
    assert_eq!(ended.status.code(), Some(75));
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

/// A class of images whose names sort as they are numbered, and so are written in that order.
fn photos(dir: &Path, count: usize) {
    for at in 0..count {
        write(dir.join(format!("a/{at:04}.jpg")), jpeg(60, 60, at));
    }
}

/// Small shards in the source's order.
const SHARDS: [&str; 4] = ["--shard-bytes", "16K", "--order", "source"];

fn shards(dir: &Path) -> Vec<String> {
    names(dir).into_iter().filter(|name| name.ends_with(".tar")).collect()
}

#[test]
fn too_many_bad_files_near_the_end_cost_no_finished_shard() {
    let dir = tempdir().expect("a folder");
    let (source, output) = (dir.path().join("in"), dir.path().join("out"));
    let partial = dir.path().join(".out.partial");
    photos(&source, 60);
    for at in 0..4 {
        write(source.join(format!("a/z{at}.jpg")), "text");
    }
    let build = |output: &Path, more: &[&str]| {
        build("imagefolder", &source, output, &[&SHARDS[..], more].concat())
    };
    let ran =
        build(&output, &["--max-rejected", "2"]).refused("3 of 64 files are unreadable, 2 allowed");
    let kept = shards(&partial);
    assert!(kept.len() > 5, "{kept:?}");
    let said = format!(
        "raise --max-rejected, or mend the source; {} finished shard(s) are kept in {}, and the same \
         command goes on from them",
        kept.len(),
        text(&partial)
    );
    assert!(ran.err.contains(&said), "{}", ran.err);
    // Not even a bound that was passed before anything began costs them, nor do other options.
    build(&output, &["--max-rejected", "1"]).refused("are kept in");
    build(&output, &["--max-rejected", "9", "--seed", "1"])
        .refused("an unfinished build of another");
    assert_eq!(shards(&partial), kept);
    // Nor is a file that was changed since mixed with what was stored before.
    let photo = fs::File::options().write(true).open(source.join("a/0000.jpg")).expect("a file");
    let time = photo.metadata().and_then(|file| file.modified()).expect("a time");
    photo.set_modified(time + Duration::from_secs(1)).expect("touched");
    build(&output, &["--max-rejected", "9"]).refused("an unfinished build of another");
    photo.set_modified(time).expect("touched");
    assert_eq!(shards(&partial), kept);
    // A journal that is damaged in its middle is not read as if it ended there.
    let journal = partial.join("journal.jsonl");
    let sound = fs::read_to_string(&journal).expect("a journal");
    let lines: Vec<&str> = sound.lines().collect();
    let damaged = [&lines[..2], &["{\"name\": 7}"], &lines[3..], &[""]].concat().join("\n");
    write(journal.clone(), damaged);
    build(&output, &["--max-rejected", "9"]).refused("line 3 is damaged");
    assert_eq!(shards(&partial), kept);
    write(journal, sound);
    let out = build(&output, &["--max-rejected", "9"]).ok().out;
    assert!(out.contains("images were stored before"), "{out}");
    build(&dir.path().join("whole"), &["--max-rejected", "9"]).ok();
    assert_eq!(contents(&output), contents(&dir.path().join("whole")));
    assert!(!partial.exists());
}

#[test]
fn a_source_that_vanishes_in_the_middle_costs_no_finished_shard() {
    let dir = tempdir().expect("a folder");
    let (source, output) = (dir.path().join("in"), dir.path().join("out"));
    let (away, partial) = (dir.path().join("away"), dir.path().join(".out.partial"));
    photos(&source, 1500);
    let more = [&SHARDS[..], &["--threads", "1"]].concat();
    let args =
        ["build", "--layout", "imagefolder", "--input", text(&source), "--output", text(&output)];
    let mut child = program(&[&args[..], &more].concat())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    while !partial.exists() || shards(&partial).len() < 3 {
        assert!(child.try_wait().expect("a child").is_none(), "it ended before its third shard");
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::rename(&source, &away).expect("moved");
    let ended = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot read it: No such file") && said.contains("are kept in"),
        "{said}"
    );
    let kept = contents(&partial);
    assert!(kept.len() > 2);
    // An empty mount point is no reason to begin anew either.
    fs::create_dir(&source).expect("made");
    build("imagefolder", &source, &output, &more).refused("holds no folder of a class");
    fs::remove_dir(&source).expect("removed");
    build("imagefolder", &source, &output, &more).refused("does not exist");
    assert_eq!(contents(&partial), kept);
    fs::rename(&away, &source).expect("moved back");
    let out = build("imagefolder", &source, &output, &more).ok().out;
    assert!(out.contains("images were stored before"), "{out}");
    build("imagefolder", &source, &dir.path().join("whole"), &SHARDS).ok();
    assert_eq!(contents(&output), contents(&dir.path().join("whole")));
}

#[test]
fn a_disk_that_is_full_costs_no_finished_shard() {
    let dir = tempdir().expect("a folder");
    let (source, output) = (dir.path().join("in"), dir.path().join("out"));
    photos(&source, 40);
    // Larger than any file may become.
    write(source.join("a/zzz.jpg"), jpeg(700, 700, 1));
    let args =
        ["build", "--layout", "imagefolder", "--input", text(&source), "--output", text(&output)];
    let limited = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_shard-imagenet"))
        .args(args)
        .args(SHARDS)
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&limited.stderr).into_owned();
    assert_eq!(limited.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large") && said.contains("are kept in"), "{said}");
    let out = build("imagefolder", &source, &output, &SHARDS).ok().out;
    assert!(out.contains("images were stored before"), "{out}");
    build("imagefolder", &source, &dir.path().join("whole"), &SHARDS).ok();
    assert_eq!(contents(&output), contents(&dir.path().join("whole")));
}
