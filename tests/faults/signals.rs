//! Signals, single, doubled and mixed, at any moment.

use std::time::Duration;

use integration::{Background, data, tiny_run};

use super::{
    assert_same_end, finished, lines, newest, steps, tell, times, unattended, undisturbed,
};

/// What a batch system, a terminal or a parent sends.
const SENT: [&[&str]; 7] = [
    &["TERM"],
    &["TERM", "TERM"],
    &["USR1", "TERM"],
    &["HUP", "HUP"],
    &["INT", "INT"],
    &["USR1", "USR1", "TERM", "TERM", "INT"],
    &["INT", "TERM", "HUP"],
];

/// The same run is stopped again and again, each time somewhere else, and goes on by the same command.
#[test]
fn signals_however_many_save_and_the_same_command_goes_on_to_the_same_end() {
    let folder = tempfile::tempdir().unwrap();
    let long = times(0, 1) == 1;
    let rounds = times(SENT.len(), 200);
    let last = format!("train.steps={}", if long { 1500 } else { 60 });
    let keys = [last.as_str(), "checkpoint.every=2", "eval.every=9", "images.every=5"];
    let straight = undisturbed(folder.path(), data(), &keys);
    let run = folder.path().join("run");
    let args = unattended(data(), &run, &keys);
    let mut sent = 0;
    for round in 0..rounds {
        let before = steps(&run);
        let mut child = Background::start(&args);
        // From before the first step to some steps on.
        match round % 4 {
            0 => {
                child.until_it_listens();
                std::thread::sleep(Duration::from_millis(150 * (round as u64 / 4 % 5)));
            }
            1 => child.until(|said| said.contains("training on the CPU")),
            _ => child.until(|_| steps(&run) > before),
        }
        for (n, signal) in SENT[round % SENT.len()].iter().enumerate() {
            if n > 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            child.signal(signal);
            sent += 1;
        }
        let (said, took) = child.wait();
        assert!(said.code == 75, "round {round}: {} {}", said.code, said.err);
        assert!(took < Duration::from_secs(20), "round {round}: {took:?}");
        if run.join("checkpoints").exists() && steps(&run) > 0 {
            let name = newest(&run).file_name().unwrap().to_string_lossy().into_owned();
            // Perhaps between the updates of the step that follows.
            let step = steps(&run);
            assert!(name.starts_with(&format!("step-{step:08}")), "round {round}: {name}, {step}");
        }
    }
    finished(&args);
    assert_same_end(&run, &straight);
    let sessions = lines(&run.join("sessions.jsonl"));
    let stopped = sessions.iter().filter(|line| line["ended"] == "signal").count();
    assert!(stopped > 0 && sessions.last().unwrap()["ended"] == "steps", "{sessions:?}");
    let what = "SIGTERM, SIGHUP, SIGUSR1 and SIGINT, alone, doubled and mixed 20 ms apart";
    tell(
        what,
        sent,
        "saved, exit code 75; the same command goes on",
        "nothing; the end is bit-equal",
    );
}

#[test]
fn a_trainer_that_is_held_and_let_go_does_not_notice() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["train.steps=12"];
    let straight = undisturbed(folder.path(), data(), &keys);
    let run = folder.path().join("run");
    let mut child = Background::start(&tiny_run(data(), &run, &keys));
    let rounds = times(3, 20);
    for round in 0..rounds {
        child.until(|_| steps(&run) > round as u64 % 8);
        child.signal("STOP");
        std::thread::sleep(Duration::from_millis(300));
        child.signal("CONT");
    }
    let (said, _) = child.wait();
    assert_eq!(said.code, 0, "{}", said.err);
    assert_same_end(&run, &straight);
    tell("SIGSTOP and SIGCONT", rounds, "goes on, exit code 0", "nothing");
}
