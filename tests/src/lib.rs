//! Parts that the stories under `tests/` share: the built programs and small data folders.

pub mod fake_cuda;
pub mod faults;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Stories run side by side, so each trainer computes on one thread.
pub const ONE_THREAD: [(&str, &str); 1] = [("OMP_NUM_THREADS", "1")];

/// What a program printed and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs `trainer` with these arguments.
///
/// # Panics
/// If it cannot be started or is killed by a signal.
#[must_use]
pub fn trainer(args: &[&str]) -> Said {
    run("trainer", args)
}

/// Runs `shard-imagenet` with these arguments.
///
/// # Panics
/// As [`trainer()`].
#[must_use]
pub fn shard_imagenet(args: &[&str]) -> Said {
    run("shard-imagenet", args)
}

fn run(name: &str, args: &[&str]) -> Said {
    let Output { status, stdout, stderr } = Command::new(program(name))
        .args(args)
        .envs(ONE_THREAD)
        .output()
        .expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("programs print UTF-8");
    let code = status.code().expect("no program of ours dies of a signal");
    Said { code, out: text(stdout), err: text(stderr) }
}

/// A trainer at work in the background, whose words go to files.
#[derive(Debug)]
pub struct Background {
    child: Child,
    words: TempDir,
}

impl Background {
    /// Starts `trainer` with these arguments.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(args: &[String]) -> Self {
        let mut command = Command::new(program("trainer"));
        command.args(args).envs(ONE_THREAD);
        Self::of(command)
    }

    /// Starts this command.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn of(mut command: Command) -> Self {
        let words = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| File::create(words.path().join(name)).expect("a file");
        let child = command.stdout(file("out")).stderr(file("err")).spawn();
        Self { child: child.expect("the program starts"), words }
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        self.said("out")
    }

    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.words.path().join(name)).expect("programs print UTF-8")
    }

    /// Waits until something holds, given what it said on standard error.
    ///
    /// # Panics
    /// If that takes more than a minute, or the trainer ends first.
    pub fn until(&mut self, holds: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        while !holds(&self.said("err")) {
            let ended = self.child.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "it ended: {}", self.said("err"));
            assert!(begun.elapsed() < Duration::from_secs(60), "the moment does not come");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it listens to SIGTERM: before, a signal ends it as it ends any program.
    pub fn until_it_listens(&mut self) {
        let status = format!("/proc/{}/status", self.child.id());
        self.until(|_| {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
            // SIGTERM is 15, the lowest bit is that of 1.
            caught.is_some_and(|mask| mask >> 14 & 1 == 1)
        });
    }

    /// Sends a signal, such as `TERM`; one that has ended is left in peace.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn signal(&mut self, name: &str) {
        if self.child.try_wait().expect("a child can be asked").is_some() {
            return;
        }
        let mut kill = Command::new("kill");
        kill.args([&format!("-{name}"), &self.child.id().to_string()]);
        assert!(kill.status().is_ok_and(|status| status.success()), "no signal could be sent");
    }

    /// Kills it at once, as the kernel does where memory is short.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    /// Waits for its end; what it said, and how long it took.
    ///
    /// # Panics
    /// If it does not end within two minutes, or dies of a signal.
    #[must_use]
    pub fn wait(self) -> (Said, Duration) {
        self.wait_for(Duration::from_secs(120))
    }

    /// As [`Background::wait`], with another limit.
    ///
    /// # Panics
    /// If it does not end within it, or dies of a signal.
    #[must_use]
    pub fn wait_for(mut self, limit: Duration) -> (Said, Duration) {
        let asked = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                break status;
            }
            if asked.elapsed() > limit {
                let _ = self.child.kill();
                panic!("it hangs: {}", self.said("err"));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let code = status.code().expect("no program of ours dies of a signal");
        (Said { code, out: self.said("out"), err: self.said("err") }, asked.elapsed())
    }

    /// Sends SIGTERM and waits; what it said, and how long it took to leave.
    ///
    /// # Panics
    /// If it has ended before, or dies of the signal.
    #[must_use]
    pub fn terminate(mut self) -> (Said, Duration) {
        assert!(self.child.try_wait().expect("a child can be asked").is_none(), "it has ended");
        self.signal("TERM");
        self.wait()
    }
}

/// Says that a test does without a judge that is not here. Where all of them are wanted, as in `.ci/run`
/// (`BIGBIGAN_JUDGES`), that fails the test.
///
/// # Panics
/// Then.
pub fn missing(what: &str) {
    assert!(std::env::var_os("BIGBIGAN_JUDGES").is_none(), "{what}");
    eprintln!("not tried here: {what}");
}

/// Path of a program of this workspace, built in the profile of the running test.
///
/// # Panics
/// If cargo cannot build it.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        // As `make test` builds them: another choice of packages or targets is another choice of features.
        let mut cargo = cargo(&["build", "--quiet", "--workspace", "--bins", "--tests"]);
        assert!(cargo.status().expect("cargo starts").success(), "cargo build failed");
        built()
    });
    folder.join(name)
}

/// The folder of the profile of the running test.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its path");
    test.parent().and_then(Path::parent).expect("target/PROFILE/deps").to_owned()
}

/// Cargo, for the workspace and in the profile of the running test.
fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(args).current_dir(repository());
    if built().file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    // What cargo told this test of its own package would make it build some crates anew, now and then
    // again without.
    let of_package = |name: &str| {
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_", "OUT_DIR"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(of_package) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Path of the unit tests of a library of this workspace.
///
/// # Panics
/// If cargo cannot build them.
#[must_use]
pub fn unit_tests(library: &str) -> PathBuf {
    let args = ["test", "--quiet", "--workspace", "--lib", "--no-run", "--message-format=json"];
    let said = cargo(&args).output().expect("cargo starts");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let made = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let ours = message["target"]["name"] == library && message["profile"]["test"] == true;
        ours.then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    String::from_utf8_lossy(&said.stdout).lines().find_map(made).expect("a library of ours")
}

/// The repository's root.
///
/// # Panics
/// Never.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

/// A folder of 40 procedural training and a few validation images of 32 px in 4 classes, made once a
/// test process.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn data() -> &'static Path {
    static DATA: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = DATA.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("data");
        let said = shard_imagenet(&[
            "synth",
            "--output",
            &text(&path),
            "--images",
            "40",
            "--classes",
            "4",
            "--size",
            "32",
        ]);
        assert_eq!(said.code, 0, "{}", said.err);
        (folder, path)
    });
    path
}

/// Overrides that make the demo preset a matter of seconds.
pub const TINY: [&str; 12] = [
    "g.ch=4",
    "f.ch=4",
    "h.width=16",
    "j.width=16",
    "e.depth=8",
    "e.mlp_width=16",
    "train.batch=8",
    "train.steps=4",
    "log.every=1",
    "images.standing_images=16",
    "eval.probe_images=32",
    "eval.probe_steps=5",
];

/// Arguments of a tiny run of `data` into `out`, with more overrides.
#[must_use]
pub fn tiny_run(data: &Path, out: &Path, overrides: &[&str]) -> Vec<String> {
    let mut args: Vec<String> =
        ["run", "--preset", "demo", "--device", "cpu"].map(str::to_owned).into();
    args.extend(["--data".into(), text(data), "--out".into(), text(out)]);
    for change in TINY.iter().chain(overrides) {
        args.extend(["--set".into(), (*change).to_owned()]);
    }
    args
}

/// A path as text.
///
/// # Panics
/// If it is not UTF-8.
#[must_use]
pub fn text(path: &Path) -> String {
    path.to_str().expect("temporary folders have plain names").to_owned()
}

/// Borrows owned arguments.
#[must_use]
pub fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Copies a folder of plain files and folders.
///
/// # Panics
/// If a file cannot be copied.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder can be made");
    for entry in std::fs::read_dir(from).expect("a folder can be read") {
        let from = entry.expect("an entry can be read").path();
        let to = to.join(from.file_name().expect("an entry has a name"));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            std::fs::copy(&from, &to).expect("a file can be copied");
        }
    }
}
