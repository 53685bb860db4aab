//! Shared parts of the benchmarks.

use std::path::{Path, PathBuf};

use trainer::config::{Config, Origin};
use trainer::error::Result;

/// What a benchmark of a model runs, as arguments.
#[derive(Debug, clap::Args)]
pub struct Subject {
    /// Preset to run
    #[arg(long, default_value = "demo")]
    pub preset: String,
    /// Images an update [default: the preset's]
    #[arg(long)]
    pub batch: Option<i64>,
    /// Change one key, such as --set train.precision=bf16 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "auto")]
    pub device: String,
}

impl Subject {
    /// The preset with the benchmark's own changes, then with those of `--set` and `--batch`.
    ///
    /// # Errors
    /// [`Error::Config`](trainer::error::Error::Config).
    pub fn config(&self, changes: Vec<String>) -> Result<Config> {
        let batch = self.batch.map(|batch| format!("train.batch={batch}"));
        let all: Vec<_> = changes.into_iter().chain(self.set.clone()).chain(batch).collect();
        Config::resolve(&Origin::Preset(&self.preset), &all)
    }
}

pub use trainer::timing::median;

/// The most memory this process ever had, from /proc.
#[must_use]
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Cargo runs benchmarks in their package's folder; the caller's is the shell's.
#[must_use]
pub fn from_callers_folder(dir: &Path) -> PathBuf {
    let shell = std::env::var_os("PWD").map(PathBuf::from);
    match shell {
        Some(shell) if dir.is_relative() && shell.join(dir).exists() => shell.join(dir),
        _ => dir.to_path_buf(),
    }
}
