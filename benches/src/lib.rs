//! Shared parts of the benchmarks.

use std::path::{Path, PathBuf};

/// The middle value (the upper one of two), `None` of none.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_order_and_outliers() {
        assert_eq!(median(vec![9e9, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![]), None);
    }
}
