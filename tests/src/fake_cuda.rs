//! Programs on a CUDA device without a GPU: `tests/fake_cuda/`. What runs on it is a test of the path through
//! CUDA, not of CUDA.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::{Background, ONE_THREAD, Said, missing, program};

/// The folder with the device as `libtorch_cuda.so`, for `LD_LIBRARY_PATH`; `None`, and said, where this was
/// built without the headers of CUDA.
///
/// # Panics
/// Then, where all judges are wanted (`BIGBIGAN_JUDGES`).
#[must_use]
pub fn folder() -> Option<&'static Path> {
    let folder = env!("FAKE_CUDA");
    if folder.is_empty() {
        missing(
            "no headers of CUDA beside libtorch, so no fake CUDA device (make setup installs them)",
        );
    }
    (!folder.is_empty()).then(|| Path::new(folder))
}

/// Fake devices, and what they wrote down of the programs that used them.
#[derive(Debug)]
pub struct Devices {
    folder: &'static Path,
    log: TempDir,
    variables: Vec<(String, String)>,
}

impl Devices {
    /// Two of them; `None` as [`folder()`].
    ///
    /// # Panics
    /// If there can be no temporary folder.
    #[must_use]
    pub fn new() -> Option<Self> {
        let folder = folder()?;
        let log = tempfile::tempdir().expect("a temporary folder");
        let mut devices = Self { folder, log, variables: vec![] };
        let path = crate::text(&devices.log.path().join("log"));
        devices = devices.with("FAKE_CUDA_LOG", &path);
        // Without it `train.deterministic` is refused, as it is on CUDA.
        Some(devices.with("CUBLAS_WORKSPACE_CONFIG", ":4096:8"))
    }

    /// With an environment variable, as `FAKE_CUDA_BYTES`.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A program that finds them.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", self.folder).envs(ONE_THREAD);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// A trainer that finds them, with these arguments.
    ///
    /// # Panics
    /// As [`Background::wait`].
    #[must_use]
    pub fn trainer(&self, args: &[&str]) -> Said {
        self.background(args).wait().0
    }

    /// As [`Devices::trainer`], at work in the background.
    #[must_use]
    pub fn background(&self, args: &[&str]) -> Background {
        let mut command = self.command(&program("trainer"));
        command.args(args);
        Background::of(command)
    }

    /// What was written down since the last call of this.
    ///
    /// # Panics
    /// If no program used them.
    #[must_use]
    pub fn log(&self) -> Log {
        let path = self.log.path().join("log");
        let text = fs::read_to_string(&path).expect("a program that loads the device writes a log");
        fs::remove_file(&path).expect("the log is ours");
        Log::read(&text)
    }
}

/// What fake devices wrote down.
#[derive(Debug, Default)]
pub struct Log {
    /// What must not be, such as work that meets memory that other work may still use.
    pub faults: Vec<String>,
    /// How often each thing was done.
    counts: BTreeMap<String, u64>,
}

impl Log {
    fn read(text: &str) -> Self {
        let mut log = Self::default();
        for line in text.lines() {
            if let Some(fault) = line.strip_prefix("FAULT ") {
                log.faults.push(fault.to_owned());
            }
            let count = line.strip_prefix("COUNT ").and_then(|rest| rest.split_once(' '));
            if let Some((Ok(count), what)) = count.map(|(n, what)| (n.parse::<u64>(), what)) {
                *log.counts.entry(what.to_owned()).or_default() += count;
            }
        }
        log
    }

    /// How often what begins with these words was done.
    #[must_use]
    pub fn count(&self, words: &str) -> u64 {
        self.with(words).values().sum()
    }

    /// What begins with these words, and how often it was done.
    #[must_use]
    pub fn with(&self, words: &str) -> BTreeMap<&str, u64> {
        let all = self.counts.iter().filter(|(what, _)| what.starts_with(words));
        all.map(|(what, count)| (what.as_str(), *count)).collect()
    }
}
