//! A machine that gives less than it should: a small disk, few descriptors, little memory, a clock that
//! goes back, folders that become read-only or vanish.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use integration::{Background, ONE_THREAD, data, program, text, tiny_run};

use super::{assert_same_end, face, finished, saved, steps, tell, times, unattended, undisturbed};

/// `trainer`, by a shell that first does something to itself.
fn after(script: &str, args: &[String]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{script}; exec \"$@\""), "sh"]).arg(program("trainer"));
    command.args(args).envs(ONE_THREAD).output().unwrap()
}

/// It ended by itself, with one of these codes, and not by a panic.
fn ended(output: &Output, codes: &[i32], story: &str) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    assert!(code.is_some_and(|code| codes.contains(&code)), "{story}: {:?} {said}", output.status);
    assert!(!said.contains("panicked"), "{story}: {said}");
    said
}

/// Whether this machine lets a program have file systems of its own.
fn mounts() -> bool {
    let test = Command::new("unshare").args(["-rm", "true"]).output();
    let may = test.is_ok_and(|output| output.status.success());
    if !may {
        integration::missing("there are no mount namespaces (unshare -rm)");
    }
    may
}

/// A real file system with this much room, which the kernel fills up, is made larger, and goes on.
#[test]
fn a_small_disk_fills_up_and_a_larger_one_goes_on() {
    if !mounts() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let keys = ["train.steps=6", "checkpoint.every=2", "images.every=1", "eval.probe_images=0"];
    let straight = undisturbed(folder.path(), data(), &keys);
    let all = {
        let output = Command::new("du").args(["-sk", &text(&straight)]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        said.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let rounds = times(3, 20) as u64;
    let (disk, out) = (folder.path().join("disk"), folder.path().join("out"));
    fs::create_dir(&disk).unwrap();
    let run = disk.join("run");
    let args = unattended(data(), &run, &keys);
    let mut filled = 0;
    for round in 0..rounds {
        // From room for hardly anything to nearly enough.
        let size = 8 + all * round / rounds;
        // What was written is copied out, as the file system goes with its last process.
        let script = "mount -t tmpfs -o size=$0k tmpfs $1; disk=$1; out=$2; shift 2; \
            \"$@\" 2> $out.first; echo $? > $out.code; \
            mount -o remount,size=1g $disk && \"$@\" && cp -r $disk/run $out";
        let output = Command::new("unshare")
            .args(["-rm", "sh", "-c", script, &size.to_string(), &text(&disk), &text(&out)])
            .arg(program("trainer"))
            .args(&args)
            .envs(ONE_THREAD)
            .output()
            .unwrap();
        let first = fs::read_to_string(out.with_extension("first")).unwrap();
        let code = fs::read_to_string(out.with_extension("code")).unwrap();
        let story = format!("{size} KiB of {all}: {code} {first}");
        ended(&output, &[0], &story);
        assert!(!first.contains("panicked") && matches!(code.trim(), "0" | "1"), "{story}");
        if code.trim() == "1" {
            // The kernel's words, or ours where it was looked up before.
            let full = ["No space left on device", "checkpoints is full"];
            assert!(full.iter().any(|words| first.contains(words)), "{story}");
            filled += 1;
        }
        assert_same_end(&out, &straight);
        fs::remove_dir_all(&out).unwrap();
    }
    assert!(filled > 0, "{all} KiB never filled a disk");
    let what = "a disk (tmpfs) that fills up somewhere";
    let outcome =
        "trains on with a warning, or ends with exit code 1; with room the same command goes on";
    tell(what, rounds as usize, outcome, "one interval at most; the end is bit-equal");
}

#[test]
fn a_read_only_folder_is_refused_in_words_and_changed_in_nothing() {
    if !mounts() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let keys = ["train.steps=12", "checkpoint.every=3", "eval.probe_images=0"];
    let straight = undisturbed(folder.path(), data(), &keys);
    let run = folder.path().join("run");
    let args = unattended(data(), &run, &keys);
    let mut child = Background::start(&args);
    child.until(|_| steps(&run) > 3);
    assert_eq!(child.terminate().0.code, 75);
    let before = face(&run);
    // As Linux makes a disk that has faults.
    let script = "mount --bind $0 $0 && mount -o remount,ro,bind $0 && cd / && exec \"$@\"";
    let read_only = |command: &[String]| {
        Command::new("unshare")
            .args(["-rm", "sh", "-c", script, &text(&run)])
            .arg(program("trainer"))
            .args(command)
            .envs(ONE_THREAD)
            .output()
            .unwrap()
    };
    let resume = ["run", "--resume", "--out", &text(&run)].map(str::to_owned).to_vec();
    for command in [&args, &resume] {
        let output = read_only(command);
        let said = ended(&output, &[1, 2], "read-only");
        assert!(said.contains("Read-only file system") && said.contains(&text(&run)), "{said}");
        assert_eq!(face(&run), before);
    }
    finished(&args);
    assert_same_end(&run, &straight);
    // Nothing of it is to be written any more.
    for command in [&args, &resume] {
        let output = read_only(command);
        ended(&output, &[0], "read-only and finished");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("is finished"), "{said}");
    }
    let outcome = "refused, naming it; writable again, the same command goes on";
    tell("the run's folder is read-only", 2, outcome, "nothing; the end is bit-equal");
}

#[test]
fn a_run_folder_that_vanishes_is_told_of_and_the_last_word() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["train.steps=12", "checkpoint.every=3", "eval.probe_images=0"];
    let rounds = times(1, 10);
    for round in 0..rounds {
        let (run, gone) = (folder.path().join("run"), folder.path().join(format!("gone-{round}")));
        let mut child = Background::start(&tiny_run(data(), &run, &keys));
        child.until(|_| steps(&run) > round as u64 % 5);
        fs::rename(&run, &gone).unwrap();
        let (said, _) = child.wait();
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.err.contains("a checkpoint not written"), "{}", said.err);
        assert!(said.err.contains(&text(&run)) && !said.err.contains("panicked"), "{}", said.err);
        saved(&gone).unwrap();
        let _ = fs::remove_dir_all(&run);
        // Where it is now, it goes on.
        finished(&["run", "--resume", "--out", &text(&gone)].map(str::to_owned));
        assert_eq!(saved(&gone), Some(12));
    }
    let outcome = "trains on with warnings, as it may come back; exit code 1, naming it";
    tell("the run's folder is moved away under it", rounds, outcome, "one interval");
}

#[test]
fn few_descriptors_and_little_memory_end_a_run_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["train.steps=4", "checkpoint.every=2"];
    let straight = undisturbed(folder.path(), data(), &keys);
    let descriptors: Vec<u64> =
        (0..times(3, 30) as u64).map(|n| 4 + 31 * n / times(3, 30) as u64).collect();
    let mut short = 0;
    for (n, most) in descriptors.iter().enumerate() {
        let run = folder.path().join(format!("descriptors-{n}"));
        let args = unattended(data(), &run, &keys);
        let output = after(&format!("ulimit -n {most}"), &args);
        // The dynamic linker says 127 where it cannot open a library.
        let said = ended(&output, &[0, 1, 2, 127], &format!("{most} descriptors"));
        if output.status.code() != Some(0) {
            let cause = ["Too many open files", "os error 24", "cannot open shared object"];
            assert!(cause.iter().any(|cause| said.contains(cause)), "{most} descriptors: {said}");
            short += 1;
        }
        finished(&args);
        assert_same_end(&run, &straight);
    }
    assert!(short > 0, "enough descriptors each time: {descriptors:?}");
    let outcome = "exit code 1 or 2 with the cause; the same command goes on";
    tell("few descriptors (RLIMIT_NOFILE)", descriptors.len(), outcome, "one interval at most");
    // Addresses that the program alone takes.
    let (mut short, mut signalled) = (0, 0);
    let rounds = times(3, 30) as u64;
    for n in 0..rounds {
        let run = folder.path().join(format!("memory-{n}"));
        let args = unattended(data(), &run, &keys);
        let most = 300_000 + 1_500_000 * n / rounds;
        let output = after(&format!("ulimit -v {most}"), &args);
        // Whoever allocates and does not ask ends a program by a signal: libtorch's own start, before `main`, and
        // Rust for what is small abort it; oneDNN calls kernels that it had no memory to make.
        let story = format!("{most} KiB of addresses");
        match output.status.signal() {
            Some(6 | 11) => signalled += 1,
            _ => {
                let said = ended(&output, &[0, 1, 2, 127], &story);
                if output.status.code() != Some(0) {
                    let cause = ["memory", "shared object"];
                    assert!(cause.iter().any(|cause| said.contains(cause)), "{story}: {said}");
                    short += 1;
                }
            }
        }
        finished(&args);
        assert_same_end(&run, &straight);
    }
    assert!(short > 0, "never in words; {signalled} by a signal");
    let outcome = "exit code 1 or 2 with the cause, or libtorch's libraries end it by SIGABRT or SIGSEGV; the same \
        command goes on";
    tell("little memory (RLIMIT_AS)", rounds as usize, outcome, "one interval at most");
}

#[test]
fn a_clock_that_goes_back_changes_nothing_but_times() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["train.steps=12", "checkpoint.every=3", "images.every=4", "eval.every=5"];
    let straight = undisturbed(folder.path(), data(), &keys);
    let rounds = times(2, 20) as u64;
    for round in 0..rounds {
        let run = folder.path().join(format!("run-{round}"));
        let args = unattended(data(), &run, &keys);
        let mut command = Command::new(program("trainer"));
        command.args(&args).envs(ONE_THREAD);
        // An hour back, and as far forth again, every so many readings.
        let every = 3 + 7 * round;
        integration::faults::turn_back(&mut command, every);
        ended(&command.output().unwrap(), &[0], &format!("every {every} readings"));
        assert_same_end(&run, &straight);
        let listed = |run: &Path| super::lines(&run.join("stats.jsonl")).len();
        assert_eq!(listed(&run), listed(&straight));
        let said = finished(&args);
        assert!(said.out.contains("is finished"), "{}", said.out);
    }
    tell("the clock goes back an hour, and forth again", rounds as usize, "goes on", "nothing");
}
