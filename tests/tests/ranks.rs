//! Several processes as one run: the same model whatever their number, and failures with names.

mod meeting;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::remote::server::{Faults, Server};
use integration::{
    ONE_THREAD, borrowed, copy_folder, data, program, repository, text, tiny_run, trainer,
};
use serde_json::Value;
use tch::Tensor;

fn launch(ranks: usize, args: &[String]) -> integration::Said {
    let mut all: Vec<String> = ["launch", "-n", &ranks.to_string(), "--"].map(str::to_owned).into();
    all.extend(args.iter().cloned());
    trainer(&borrowed(&all))
}

pub(crate) fn lines(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("stats.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Loss columns agree to 1e-5.
pub(crate) fn assert_same_losses(run: &Path, other: &Path) {
    let (ours, theirs) = (lines(run), lines(other));
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!((&a["step"], &a["epoch"]), (&b["step"], &b["epoch"]));
        for key in ["loss_d", "loss_g", "loss_e"] {
            let (a, b) = (a[key].as_f64().unwrap(), b[key].as_f64().unwrap());
            assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "{key}: {a} and {b}");
        }
    }
}

/// Probes of the first weights are equal, and later ones differ by one image at most.
fn assert_same_probes(one: &Path, other: &Path) {
    let probes = |run: &Path| -> Vec<Value> {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (ours, theirs) = (probes(one), probes(other));
    assert!(ours.len() == theirs.len() && !ours.is_empty());
    for (a, b) in ours.iter().zip(&theirs) {
        assert!(["metric", "step", "weights", "test_images"].iter().all(|key| a[key] == b[key]));
        let off = (a["top1"].as_f64().unwrap() - b["top1"].as_f64().unwrap()).abs();
        let images = a["test_images"].as_f64().unwrap();
        let most = if a["weights"] == "initial" { 0.0 } else { 1.0 / images };
        assert!(off <= most + 1e-9, "{a} {b}");
    }
}

/// Every tensor of two checkpoints agrees to 1e-4 of its norm, or of 1 if that is more.
fn assert_same_tensors(one: &Path, other: &Path) {
    for name in ["generator", "encoder", "discriminator"] {
        let file = format!("{name}.safetensors");
        let read = |folder: &Path| Tensor::read_safetensors(folder.join(&file)).unwrap();
        let (ours, theirs) = (read(one), read(other));
        assert_eq!(ours.len(), theirs.len());
        for (key, a) in &ours {
            // A bias that feeds a batch norm has no true gradient: Adam steps on rounding noise, and the
            // stored mean follows the bias. E's batch norms follow convolutions without bias.
            let noise = key.ends_with("bias") && key != "last.bias" || key.ends_with(".mean");
            if name == "generator" && noise {
                continue;
            }
            let (_, b) = theirs.iter().find(|(k, _)| k == key).unwrap();
            // A tensor that starts at 0 is as long as a few Adam steps, which rounding steers where the
            // gradient is near 0.
            let off = (a - b).norm().double_value(&[]) / a.norm().double_value(&[]).max(1.0);
            assert!(off <= 1e-4, "{name} {key}: {off:e}");
        }
    }
}

// In single precision a rounding error sooner or later flips a ReLU, after which runs part; double precision
// shows ten steps to be equal (trainer's unit tests). So these stories are short.
#[test]
fn one_two_and_four_ranks_train_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let run = |ranks: usize| {
        let out = folder.path().join(ranks.to_string());
        let args = tiny_run(data(), &out, &["train.steps=3", "dist.check_every=2"]);
        let said = if ranks == 1 { trainer(&borrowed(&args)) } else { launch(ranks, &args) };
        assert_eq!(said.code, 0, "{}", said.err);
        out
    };
    let one = run(1);
    let last = "checkpoints/step-00000003";
    let picture = |run: &Path| image::open(run.join("images/samples.png")).unwrap().to_rgb8();
    for ranks in [2, 4] {
        let many = run(ranks);
        assert_same_losses(&many, &one);
        assert_same_tensors(&many.join(last), &one.join(last));
        assert_same_probes(&many, &one);
        let (a, b) = (picture(&many), picture(&one));
        let off = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(off <= Some(1), "samples differ by {off:?} of 255");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let straight = folder.path().join("straight");
    let overrides = ["train.steps=3", "checkpoint.every=1", "checkpoint.keep=9"];
    let said = launch(2, &tiny_run(data(), &straight, &overrides));
    assert_eq!(said.code, 0, "{}", said.err);
    let moved = folder.path().join("moved");
    copy_folder(&straight, &moved);
    for (cut, ranks) in [(1, 1), (2, 4)] {
        for later in cut + 1..=3 {
            fs::remove_dir_all(moved.join(format!("checkpoints/step-{later:08}"))).unwrap();
        }
        let said = launch(ranks, &["run", "--resume", "--out", &text(&moved)].map(str::to_owned));
        assert_eq!(said.code, 0, "{}", said.err);
    }
    assert_same_losses(&moved, &straight);
    let last = "checkpoints/step-00000003";
    assert_same_tensors(&moved.join(last), &straight.join(last));
    let said = launch(2, &["run", "--resume", "--out", &text(&moved)].map(str::to_owned));
    assert!(said.code == 0 && said.out.contains("finished"), "{} {}", said.out, said.err);
}

/// An endless run of two ranks under way.
struct Running {
    launcher: Child,
    out: PathBuf,
    _folder: tempfile::TempDir,
}

impl Running {
    /// Through `command` (a launcher and its arguments), once `steps` are done.
    fn start(mut command: Command, overrides: &[&str], steps: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let mut all = vec!["train.steps=100000", "train.batch=4", "checkpoint.every=20"];
        all.extend(overrides);
        let launcher = command
            .args(tiny_run(data(), &out, &all))
            .envs(ONE_THREAD)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let running = Self { launcher, out, _folder: folder };
        let begun = Instant::now();
        while lines(&running.out).len() < steps {
            assert!(begun.elapsed().as_secs() < 60, "no {steps} steps in a minute");
            std::thread::sleep(Duration::from_millis(5));
        }
        running
    }

    fn launched(overrides: &[&str], steps: usize) -> Self {
        let mut command = Command::new(program("trainer"));
        command.args(["launch", "-n", "2", "--"]);
        Self::start(command, overrides, steps)
    }

    /// Process of a rank.
    fn rank(&self, rank: usize) -> u32 {
        let out = text(&self.out);
        let mine = |pid: &u32| {
            let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let parts = |bytes: Vec<u8>| {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                text.split('\0').map(str::to_owned).collect::<Vec<_>>()
            };
            parts(read("cmdline")).contains(&out)
                && parts(read("environ")).contains(&format!("RANK={rank}"))
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.find(mine).unwrap()
    }

    fn signal(pid: u32, signal: &str) {
        let status = Command::new("kill").args([signal, &pid.to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for the end. What was said, and how long it took.
    fn wait(self) -> (Output, Duration) {
        let begun = Instant::now();
        let output = self.launcher.wait_with_output().unwrap();
        let took = begun.elapsed();
        // Whatever happened, the newest checkpoint can be gone on from.
        let checkpoints = self.out.join("checkpoints");
        if !trainer::checkpoint::list(&checkpoints).unwrap().is_empty() {
            let newest = trainer::checkpoint::newest(&checkpoints).unwrap();
            trainer::checkpoint::verify(&newest).unwrap();
        }
        (output, took)
    }
}

pub(crate) fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// 2, or 50 with `BIGBIGAN_TESTS=long`.
pub(crate) fn moments() -> u64 {
    let long = std::env::var_os("BIGBIGAN_TESTS").is_some_and(|counts| counts == "long");
    if long { 50 } else { 2 }
}

/// Overrides that at every second moment let pictures, probes and checkpoints follow each step, so that they
/// are most of the time.
pub(crate) fn phases(moment: u64) -> &'static [&'static str] {
    match moment % 4 {
        0 | 3 => &[],
        _ => &["images.every=1", "eval.every=1", "checkpoint.every=1"],
    }
}

/// At full counts, ranks failed both within steps and within what follows them.
fn assert_phases(said: &[String]) {
    if moments() > 2 {
        for phase in ["compute", "pictures and probes"] {
            let words = format!("phase {phase}");
            assert!(said.iter().any(|said| said.contains(&words)), "no rank was seen in {phase}");
        }
    }
}

#[test]
fn a_killed_rank_is_named_and_the_others_leave_within_five_seconds() {
    let mut all = Vec::new();
    for moment in 0..moments() {
        let running = Running::launched(phases(moment), 2 + moment as usize % 10);
        std::thread::sleep(Duration::from_millis(moment * 37 % 100));
        let dead = moment as usize % 2;
        let pid = running.rank(dead);
        Running::signal(pid, "-KILL");
        let (output, took) = running.wait();
        let said = said(&output);
        assert!(took < Duration::from_secs(5), "{took:?}: {said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
        let other = format!("[{}] error: rank {dead} (host ", 1 - dead);
        for words in [&other, &format!("pid {pid}) was killed by signal 9; last seen in step ")] {
            assert!(said.contains(words), "{words} is not in {said}");
        }
        all.push(said);
    }
    assert_phases(&all);
}

#[test]
fn a_rank_that_falls_silent_is_named() {
    let mut all = Vec::new();
    for moment in 0..moments() {
        let overrides = [phases(moment), &["dist.silence=2"]].concat();
        let running = Running::launched(&overrides, 3);
        std::thread::sleep(Duration::from_millis(moment * 37 % 100));
        let (stopped, pid) = (moment as usize % 2, running.rank(moment as usize % 2));
        Running::signal(pid, "-STOP");
        let (output, took) = running.wait();
        let said = said(&output);
        assert!(took < Duration::from_secs(7), "{took:?}: {said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
        let words = format!("pid {pid}) died, stopped or was cut off: silent for ");
        assert!(said.contains(&words), "rank {stopped}: {words} is not in {said}");
        all.push(said);
    }
    assert_phases(&all);
}

#[test]
fn sigterm_to_one_rank_stops_all_on_the_same_step_with_a_checkpoint() {
    for moment in 0..moments() {
        let running = Running::launched(phases(moment), 2 + moment as usize % 3);
        std::thread::sleep(Duration::from_millis(moment * 37 % 100));
        Running::signal(running.rank(moment as usize % 2), "-TERM");
        let out = running.out.clone();
        let output = running.launcher.wait_with_output().unwrap();
        assert!(stopped(&output), "{}", said(&output));
        let step = lines(&out).last().unwrap()["step"].as_u64().unwrap();
        // Perhaps between the updates of the step that follows.
        let newest = trainer::checkpoint::newest(&out.join("checkpoints")).unwrap();
        let name = newest.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with(&format!("step-{step:08}")), "{name}");
        assert!(said(&output).contains("stopped by a signal"), "{}", said(&output));
    }
}

/// A program that a signal stopped says so to whoever queues it again.
pub(crate) fn stopped(output: &Output) -> bool {
    output.status.code() == Some(75)
}

/// The newest checkpoint of a run is whole.
fn assert_saved(out: &Path) {
    let newest = trainer::checkpoint::newest(&out.join("checkpoints")).unwrap();
    trainer::checkpoint::verify(&newest).unwrap();
}

#[test]
fn signals_to_the_launcher_stop_all_ranks_however_many_come() {
    for signals in [["-HUP", "-TERM"], ["-USR1", "-TERM"], ["-TERM", "-TERM"], ["-INT", "-INT"]] {
        let running = Running::launched(&[], 2);
        let (launcher, out) = (running.launcher.id(), running.out.clone());
        for signal in signals {
            Running::signal(launcher, signal);
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = running.launcher.wait_with_output().unwrap();
        assert!(stopped(&output), "{signals:?}: {}", said(&output));
        assert!(said(&output).contains("stopped by a signal"), "{signals:?}: {}", said(&output));
        assert_saved(&out);
    }
}

#[test]
fn a_second_ctrl_c_a_second_later_ends_ranks_that_have_not_saved() {
    let running = Running::launched(&["dist.silence=60"], 2);
    let launcher = running.launcher.id();
    // Rank 1 waits for a rank 0 that does nothing.
    Running::signal(running.rank(0), "-STOP");
    for _ in 0..2 {
        Running::signal(launcher, "-INT");
        std::thread::sleep(Duration::from_millis(1300));
    }
    let (output, took) = running.wait();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(took < Duration::from_secs(8), "{took:?}: {}", said(&output));
}

#[test]
fn ranks_wait_for_one_that_takes_ten_seconds_to_save() {
    let running = Running::launched(&["dist.silence=60"], 2);
    let (launcher, out, slow) = (running.launcher.id(), running.out.clone(), running.rank(0));
    Running::signal(launcher, "-TERM");
    Running::signal(slow, "-STOP");
    std::thread::sleep(Duration::from_secs(10));
    Running::signal(slow, "-CONT");
    let output = running.launcher.wait_with_output().unwrap();
    assert!(stopped(&output), "{}", said(&output));
    assert_saved(&out);
}

#[test]
fn a_wish_of_any_rank_ends_the_evaluation_of_rank_0() {
    let endless = ["eval.every=1", "eval.probe_steps=100000000", "checkpoint.every=1"];
    let running = Running::launched(&endless, 1);
    let (out, asked) = (running.out.clone(), running.rank(1));
    // In the evaluation of step 1, as no second step is done.
    std::thread::sleep(Duration::from_secs(4));
    Running::signal(asked, "-TERM");
    let begun = Instant::now();
    let output = running.launcher.wait_with_output().unwrap();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}: {}", said(&output));
    assert!(stopped(&output), "{}", said(&output));
    assert_eq!(lines(&out).len(), 1);
    assert_saved(&out);
}

#[test]
fn launched_ranks_and_their_store_listen_on_loopback_alone() {
    let running = Running::launched(&[], 2);
    let all = [running.launcher.id(), running.rank(0), running.rank(1)];
    let listening: Vec<_> = all.map(listening).into();
    assert!(listening.iter().all(|addresses| !addresses.is_empty()), "{listening:?}");
    // As /proc/net/tcp and tcp6 have 127.0.0.1 and ::1.
    let loopback =
        ["0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"];
    for address in listening.concat() {
        assert!(loopback.contains(&address.as_str()), "a socket listens at {address}");
    }
    Running::signal(running.launcher.id(), "-TERM");
    assert!(stopped(&running.wait().0));
}

/// Local addresses of a process's listening sockets, in hexadecimal.
fn listening(pid: u32) -> Vec<String> {
    let sockets = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let sockets: Vec<_> = sockets
        .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_str()?.to_owned()))
        .collect();
    let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/{pid}/net/{name}")));
    let mut found = vec![];
    for line in tables.iter().flatten().flat_map(|table| table.lines().skip(1)) {
        let fields: Vec<_> = line.split_whitespace().collect();
        // 0A is TCP_LISTEN.
        if fields[3] == "0A" && sockets.contains(&format!("socket:[{}]", fields[9])) {
            found.push(fields[1].split(':').next().unwrap().to_owned());
        }
    }
    found
}

#[test]
fn a_rank_that_is_asked_to_end_while_it_waits_for_the_others_leaves_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let rank = by_hand("0", &free_port(), &tiny_run(data(), &folder.path().join("run"), &[]));
    std::thread::sleep(Duration::from_secs(5));
    Running::signal(rank.id(), "-TERM");
    let begun = Instant::now();
    let output = rank.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{}", said(&output));
    assert!(stopped(&output), "{}", said(&output));
}

#[test]
fn torchrun_starts_ranks_as_it_is_and_reports_the_one_that_died() {
    // Beside the libtorch that `make setup` installs.
    let library =
        std::env::var_os("LIBTORCH").map_or(repository().join(".libtorch"), PathBuf::from);
    let folder = repository().join(library).canonicalize().unwrap();
    let Some(torchrun) = folder.ancestors().nth(4).map(|venv| venv.join("bin/torchrun")) else {
        return;
    };
    if !torchrun.exists() {
        integration::missing(&format!("there is no {}", torchrun.display()));
        return;
    }
    let mut command = Command::new(&torchrun);
    command.args(["--no-python", "--nproc-per-node", "2", "--master-port", &free_port(), "--"]);
    command.arg(program("trainer"));
    let running = Running::start(command, &[], 2);
    let pid = running.rank(1);
    Running::signal(pid, "-KILL");
    let (output, took) = running.wait();
    let said = said(&output);
    assert!(took < Duration::from_secs(15) && !output.status.success(), "{took:?}: {said}");
    for words in ["error: rank 1 (host ", &format!("pid {pid})"), "ChildFailedError"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// A rank started by hand.
fn by_hand(rank: &str, port: &str, args: &[String]) -> Child {
    Command::new(program("trainer"))
        .args(args)
        .envs(ONE_THREAD)
        .envs([("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")])
        .env("MASTER_PORT", port)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
