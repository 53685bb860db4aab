//! Programs whose reader goes away before they have said all.

use std::process::{Command, Stdio};

use integration::{ONE_THREAD, data, program, text};

/// Exit code and standard error of a trainer that nobody reads.
fn unread(args: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(program("trainer"))
        .args(args)
        .envs(ONE_THREAD)
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_closed_pipe_is_quiet_and_no_failure() {
    let data = text(data());
    for args in [
        &["inspect", "--preset", "demo"][..],
        &["doctor", "--data", &data],
        &["bench-batch", "--preset", "demo", "--device", "cpu", "--most", "2"],
        &["launch", "-n", "2", "--", "inspect", "--preset", "demo"],
    ] {
        let (code, said) = unread(args);
        assert_eq!(code, Some(0), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{args:?}: {said}");
    }
}

#[test]
fn words_that_cannot_be_written_are_a_failure() {
    let full = std::fs::File::create("/dev/full").unwrap();
    let output = Command::new(program("trainer"))
        .args(["inspect", "--preset", "demo"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("standard output") && !said.contains("panicked"), "{said}");
}
