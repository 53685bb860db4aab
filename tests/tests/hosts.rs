//! Two network namespaces as two hosts: ranks that share a disk and a wire. It takes a right to make
//! namespaces, which root has; without it the stories say so and are not tried.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::ranks::{assert_same_losses, lines, moments, phases, said, stopped};
use integration::{ONE_THREAD, borrowed, data, program, text, tiny_run, trainer};

/// Where rank 0 serves the store; the port is of a host nobody else is on.
const STORE: [(&str, &str); 2] = [("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500")];

/// More than `dist.join` and `dist.silence` of these runs, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Two hosts, 10.0.0.1 and 10.0.0.2, and the wire between them.
struct Hosts {
    names: [String; 2],
}

impl Hosts {
    fn new(story: &str) -> Option<Self> {
        let hosts =
            Self { names: ["a", "b"].map(|h| format!("{story}-{h}-{}", std::process::id())) };
        let [a, b] = hosts.names.each_ref().map(String::as_str);
        if let Err(reason) = ip(&["netns", "add", a]) {
            integration::missing(&format!("there are no network namespaces ({reason})"));
            return None;
        }
        ip(&["netns", "add", b]).unwrap();
        let wire = ["link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b];
        ip(&[&["-n", a], wire.as_slice()].concat()).unwrap();
        for (host, address) in [(a, "10.0.0.1/24"), (b, "10.0.0.2/24")] {
            ip(&["-n", host, "address", "add", address, "dev", "wire"]).unwrap();
            for link in ["lo", "wire"] {
                ip(&["-n", host, "link", "set", link, "up"]).unwrap();
            }
        }
        Some(hosts)
    }

    /// Starts a rank on the host of its number, which goes by its own name.
    fn start(&self, rank: usize, args: &[String]) -> Child {
        let name = &self.names[rank];
        Command::new("ip")
            .args(["netns", "exec", name, "unshare", "--uts", "sh", "-c"])
            .args([r#"hostname "$0" && exec "$@""#, name])
            .arg(program("trainer"))
            .args(args)
            .envs(ONE_THREAD)
            .envs(STORE)
            .envs([("RANK", rank.to_string()), ("WORLD_SIZE", "2".to_owned())])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn wire(&self, state: &str) {
        ip(&["-n", &self.names[0], "link", "set", "wire", state]).unwrap();
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|e| format!("ip: {e}"))?;
    let said = || format!("ip {}: {}", args.join(" "), said(&output));
    output.status.success().then_some(()).ok_or_else(said)
}

/// An endless run of a rank on each host, rank 0 writing.
struct Running {
    ranks: [Child; 2],
    out: PathBuf,
}

impl Running {
    fn start(hosts: &Hosts, folder: &Path, overrides: &[&str]) -> Self {
        let out = folder.join("run");
        let all = ["train.steps=100000", "train.batch=4", "checkpoint.every=2"];
        let all = [all.as_slice(), overrides].concat();
        let ranks = [0, 1].map(|rank| hosts.start(rank, &tiny_run(data(), &out, &all)));
        Self { ranks, out }
    }

    fn resume(hosts: &Hosts, folder: &Path) -> Self {
        let out = folder.join("run");
        let args = ["run", "--resume", "--out", &text(&out)].map(str::to_owned);
        Self { ranks: [0, 1].map(|rank| hosts.start(rank, &args)), out }
    }

    /// Waits until so many steps are logged.
    fn until(&self, steps: usize) {
        let begun = Instant::now();
        while lines(&self.out).len() < steps {
            assert!(begun.elapsed().as_secs() < 60, "no {steps} steps in a minute");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, rank: usize, signal: &str) {
        let pid = self.ranks[rank].id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Both ranks have failed within `limit`, and the newest checkpoint, if there is one, can be gone on
    /// from. What they said.
    fn failed(self, limit: Duration) -> [String; 2] {
        let begun = Instant::now();
        let words = self.ranks.map(|rank| {
            let output: Output = rank.wait_with_output().unwrap();
            let words = said(&output);
            assert!(begun.elapsed() < limit, "{:?}: {words}", begun.elapsed());
            assert!(!output.status.success(), "{words}");
            words
        });
        let checkpoints = self.out.join("checkpoints");
        if trainer::checkpoint::list(&checkpoints).is_ok_and(|list| !list.is_empty()) {
            let newest = trainer::checkpoint::newest(&checkpoints).unwrap();
            trainer::checkpoint::verify(&newest).unwrap();
        }
        words
    }
}

#[test]
fn two_hosts_train_the_model_of_one_process() {
    let Some(hosts) = Hosts::new("train") else { return };
    let folder = tempfile::tempdir().unwrap();
    let [one, many, other] = ["one", "many", "other"].map(|name| folder.path().join(name));
    let overrides = ["train.steps=3"];
    let alone = trainer(&borrowed(&tiny_run(data(), &one, &overrides)));
    assert_eq!(alone.code, 0, "{}", alone.err);
    // Only rank 0 writes, so the second host need not know where to.
    let outs = [&many, &other];
    let ranks = [0, 1].map(|rank| hosts.start(rank, &tiny_run(data(), outs[rank], &overrides)));
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    assert_same_losses(&many, &one);
    assert!(!other.exists());
}

#[test]
fn hosts_cut_off_from_each_other_say_so_and_go_on_when_the_wire_is_back() {
    let Some(hosts) = Hosts::new("cut") else { return };
    for moment in 0..moments() {
        let folder = tempfile::tempdir().unwrap();
        // A tenth of the times while the ranks still come together.
        let steps = (moment as usize + 9) % 10;
        let overrides = [phases(moment), &["dist.silence=2", "dist.join=6"]].concat();
        let running = Running::start(&hosts, folder.path(), &overrides);
        running.until(steps);
        std::thread::sleep(Duration::from_millis(moment * 37 % 200));
        let pid = running.ranks[1].id();
        hosts.wire("down");
        let [first, second] = running.failed(PATIENCE);
        hosts.wire("up");
        if steps > 0 {
            let name = format!("rank 1 (host {}, pid {pid})", hosts.names[1]);
            let words = format!("{name} died, stopped or was cut off: silent for ");
            assert!(first.contains(&words), "{words} is not in {first}");
            let words = format!("{name} is cut off from it");
            assert!(second.contains(&words), "{words} is not in {second}");
        }
        if steps == 9 {
            let running = Running::resume(&hosts, folder.path());
            running.until(12);
            running.signal(1, "-TERM");
            for rank in running.ranks {
                let output = rank.wait_with_output().unwrap();
                assert!(stopped(&output), "{}", said(&output));
            }
        }
    }
}

#[test]
fn a_rank_killed_on_another_host_is_named() {
    let Some(hosts) = Hosts::new("kill") else { return };
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(&hosts, folder.path(), &[]);
    running.until(2);
    let pid = running.ranks[1].id();
    running.signal(1, "-KILL");
    let [first, _] = running.failed(PATIENCE);
    let words = format!("rank 1 (host {}, pid {pid}) died, stopped or was cut off", hosts.names[1]);
    assert!(first.contains(&words), "{words} is not in {first}");
}
