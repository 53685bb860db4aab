//! Disks that take no more.

use std::process::Command;

use integration::{ONE_THREAD, data, program, tiny_run};

use super::{assert_same_end, finished, saved, tell, unattended, undisturbed};

/// A limit on the size of files, which any user may set: the event file outgrows it long before anything else
/// does, then statistics, then nothing can be written.
#[test]
fn a_sink_that_cannot_be_written_ends_no_training_and_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["train.steps=30", "images.every=1", "checkpoint.every=5"];
    let straight = undisturbed(folder.path(), data(), &keys);
    let run = folder.path().join("run");
    // In blocks of 512 bytes: above a checkpoint's largest file and below thirty grids of pictures.
    let limit = largest(&straight.join("checkpoints")).div_ceil(512) + 8;
    let output = Command::new("sh")
        .args(["-c", "ulimit -f $0; exec \"$@\"", &limit.to_string()])
        .arg(program("trainer"))
        .args(tiny_run(data(), &run, &keys))
        .envs(ONE_THREAD)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("WARNING: ") && said.contains("training goes on"), "{said}");
    assert!(said.contains("File too large"), "{said}");
    assert_eq!(saved(&run), Some(30));
    assert_same_end(&run, &straight);
    // With room again, what was not written is made up for.
    finished(&unattended(data(), &run, &keys));
    assert!(run.join("evaluated").exists());
    let what = "files that may grow no further (RLIMIT_FSIZE)";
    tell(
        what,
        1,
        "trains on with a warning, saves, exit code 1",
        "curves and pictures of that time",
    );
}

/// Bytes of the largest file under a folder.
fn largest(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let sizes = entries.map(|path| match path.is_dir() {
        true => largest(&path),
        false => path.metadata().unwrap().len(),
    });
    sizes.max().unwrap_or(0)
}
