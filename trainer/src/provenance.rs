//! What made a file: which program, on which machine, when.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tch::Device;

static COMMIT: OnceLock<&'static str> = OnceLock::new();

/// Says which commit the program was built from; of several calls the first holds. Only the program knows:
/// a library that did would be compiled anew with every commit.
pub fn set_commit(commit: &'static str) {
    // A second call says the same.
    let _ = COMMIT.set(commit);
}

/// What made a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of this program.
    pub version: String,
    /// Commit it was built from, or "unknown".
    pub commit: String,
    /// Version of the libtorch in use, or "unknown".
    pub libtorch: String,
    /// Name of the machine.
    pub host: String,
    /// Device that was computed on: `cpu`, or a GPU's number and name.
    pub device: String,
    /// When, in UTC, as RFC 3339 writes it.
    pub time: String,
}

impl Provenance {
    /// This program, on this machine, now.
    #[must_use]
    pub fn here(device: Device) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: commit().to_owned(),
            libtorch: libtorch().0,
            host: common::host(),
            device: describe(device),
            time: common::now(),
        }
    }

    /// The same, now.
    #[must_use]
    pub fn now(&self) -> Self {
        Self { time: common::now(), ..self.clone() }
    }
}

fn commit() -> &'static str {
    COMMIT.get().copied().unwrap_or("unknown")
}

fn describe(device: Device) -> String {
    let kind = match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(number) => format!("cuda:{number}"),
        other => format!("{other:?}").to_lowercase(),
    };
    match torch_ext::cuda::device_name(device) {
        Ok(Some(name)) => format!("{kind} ({name})"),
        _ => kind,
    }
}

/// Version, commit and libtorch in a line, for `--version`.
#[must_use]
pub fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let (version, commit, (libtorch, _)) = (env!("CARGO_PKG_VERSION"), commit(), libtorch());
        format!("{version} (commit {commit}, libtorch {libtorch})")
    })
}

/// Version of the libtorch in use, "unknown" where it says none, and its file.
pub(crate) fn libtorch() -> (String, String) {
    let unknown = || "unknown".to_owned();
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let used = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"));
    let used = used.and_then(|line| line.split_whitespace().last());
    let Some(used) = used else { return (unknown(), "not found in this process".to_owned()) };
    let root = Path::new(used).parent().and_then(Path::parent);
    let version = root.and_then(version_in).unwrap_or_else(unknown);
    (version, used.to_owned())
}

/// As Python's package says it, or the archive of libtorch alone.
fn version_in(root: &Path) -> Option<String> {
    let alone = || Some(fs::read_to_string(root.join("build-version")).ok()?.trim().to_owned());
    let Ok(text) = fs::read_to_string(root.join("version.py")) else { return alone() };
    let line = text.lines().find(|line| line.starts_with("__version__"))?;
    Some(line.split('\'').nth(1)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_made_a_file_is_told_whole_and_reads_back() {
        let here = Provenance::here(Device::Cpu);
        assert_eq!((here.device.as_str(), here.commit.as_str()), ("cpu", "unknown"));
        assert!(here.libtorch.starts_with("2."), "{here:?}");
        assert!(!here.host.is_empty() && here.time.ends_with('Z'), "{here:?}");
        let text = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Provenance>(&text).unwrap(), here);
    }
}
