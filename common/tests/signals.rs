//! What signals do to a process that listens, as the kernel sends them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

const CHILD: &str = "COMMON_TEST_CHILD";
const REFUSED: i32 = 42;

/// This program, to run only `test`, as a child.
fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, "1");
    command
}

/// Not a test of its own: what the others start. It listens, says so, and then works for three seconds,
/// whatever comes, as if it saved.
#[test]
fn listening_child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let wish = Arc::new(AtomicBool::new(false));
    common::signals::set_on_signal(&wish).unwrap();
    println!("\nlistening");
    std::io::stdout().flush().unwrap();
    for _ in 0..300 {
        sleep(Duration::from_millis(10));
    }
    std::process::exit(if wish.load(Ordering::Relaxed) { 75 } else { 0 });
}

fn listening() -> Child {
    let mut child = child("listening_child").stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(said.any(|line| line.unwrap() == "listening"));
    child
}

fn send(child: &Child, signal: &str) {
    let kill = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
}

/// The exit code of a child that got these signals, so many milliseconds apart.
fn after(signals: &[&str], apart: u64) -> Option<i32> {
    let mut child = listening();
    for signal in signals {
        send(&child, signal);
        sleep(Duration::from_millis(apart));
    }
    child.wait().unwrap().code()
}

#[test]
fn however_many_signals_are_one_wish_and_only_a_second_interrupt_after_a_second_is_none() {
    let cases: [(&[&str], u64, i32); 9] = [
        (&[], 0, 0),
        (&["TERM"], 0, 75),
        (&["TERM", "TERM"], 20, 75),
        (&["TERM", "TERM"], 1200, 75),
        (&["USR1", "TERM", "HUP", "HUP"], 300, 75),
        (&["INT", "INT"], 20, 75),
        (&["INT", "TERM"], 1200, 75),
        (&["INT", "INT"], 1200, 130),
        (&["TERM", "INT", "INT", "INT"], 600, 130),
    ];
    let run = |(signals, apart, _): &(&'static [&'static str], u64, i32)| {
        let (signals, apart) = (*signals, *apart);
        std::thread::spawn(move || after(signals, apart))
    };
    let ended: Vec<_> = cases.iter().map(run).collect();
    for ((signals, apart, code), ended) in cases.iter().zip(ended) {
        assert_eq!(ended.join().unwrap(), Some(*code), "{signals:?} {apart} ms apart");
    }
}

/// Not a test of its own: its process may write no file beyond 4 KiB, so it writes none but one, and says what came of it
/// by its exit code.
#[test]
fn limited_child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let wish = Arc::new(AtomicBool::new(false));
    common::signals::set_on_signal(&wish).unwrap();
    let limit = rustix::process::Rlimit { current: Some(4096), maximum: None };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    let error = common::files::replace_file(&folder.path().join("a"), &[0; 8192]).unwrap_err();
    let none_left = std::fs::read_dir(folder.path()).unwrap().count() == 0;
    let refused = error.kind() == std::io::ErrorKind::FileTooLarge;
    std::process::exit(if refused && none_left { REFUSED } else { 1 });
}

/// The limit is the whole process's, so it is set in one of its own: the output of these tests may be such a file.
#[test]
fn a_file_beyond_its_limit_is_an_error_and_no_end() {
    assert_eq!(
        child("limited_child").stdout(Stdio::null()).status().unwrap().code(),
        Some(REFUSED)
    );
}
