//! `sessions.jsonl`: a line where a session begins, where it knows that it has saved, and where it ends; none of the end
//! where it was killed.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::Config;

pub(super) const SESSIONS: &str = "sessions.jsonl";

/// The hash that tells one configuration from another.
pub(crate) fn hash_of(config: &Config) -> String {
    common::files::sha256(config.to_toml().as_bytes())
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ending {
    /// All steps are done.
    Steps,
    /// `train.max_minutes` are over.
    Time,
    /// A signal.
    Signal,
    /// Values that are not finite.
    Diverged,
    /// An error.
    Failed,
}

/// The line of a session that begins.
#[derive(Debug, Serialize)]
pub(super) struct Start<'a> {
    pub(super) event: &'static str,
    /// Steps done before it.
    pub(super) step: u64,
    pub(super) ranks: usize,
    pub(super) threads: i32,
    pub(super) pid: u32,
    pub(super) config_sha256: String,
    /// That of the checkpoint that it goes on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from_config_sha256: Option<String>,
    /// That of the `config.toml` that it found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) before_config_sha256: Option<String>,
    /// The name under which it writes to `checkpoint.mirror`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mirror: Option<String>,
    #[serde(flatten)]
    pub(super) provenance: &'a crate::provenance::Provenance,
}

/// The line of a session by which a checkpoint of a step after the first is on the disk.
#[derive(Debug, Serialize)]
pub(super) struct HasSaved {
    pub(super) event: &'static str,
    pub(super) step: u64,
}

/// The line of a session that ended by itself.
#[derive(Debug, Serialize)]
pub(super) struct End {
    pub(super) event: &'static str,
    pub(super) ended: Ending,
    pub(super) step: u64,
    pub(super) config_sha256: String,
    /// [`Config::computes_sha256`].
    pub(super) computes_sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// What is read of a line.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    /// Lines of before do not all say.
    #[serde(default)]
    pub(super) event: String,
    pub(super) step: u64,
    pub(super) ended: Option<Ending>,
    pub(super) config_sha256: Option<String>,
    from_config_sha256: Option<String>,
    pub(super) before_config_sha256: Option<String>,
    pub(super) computes_sha256: Option<String>,
}

/// What a run's folder says of its sessions; what cannot be read of it says nothing.
#[derive(Debug)]
pub(super) struct Sessions(Vec<Line>);

impl Sessions {
    pub(super) fn read(out: &Path) -> Self {
        let text = fs::read(out.join(SESSIONS)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        Self(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Whether one of them has saved a later state than the run's first: it began with one, says so, or ended as only one
    /// does that has.
    pub(super) fn have_saved(&self) -> bool {
        let failed = |line: &Line| matches!(line.ended, Some(Ending::Failed | Ending::Diverged));
        self.0.iter().any(|line| line.step > 0 && !failed(line))
    }

    /// Whether one of them had the configuration of this hash, or went on from a checkpoint of it. `None` where none says
    /// what it had, or the lines of those that came as far as `step` are gone.
    pub(super) fn know(&self, hash: &str, step: u64) -> Option<bool> {
        let mut said = self.0.iter().filter(|line| line.config_sha256.is_some()).peekable();
        if said.peek()?.step > step {
            return None;
        }
        let is = |of: &Option<String>| of.as_deref() == Some(hash);
        Some(said.any(|line| is(&line.config_sha256) || is(&line.from_config_sha256)))
    }

    /// The line of the newest that began.
    pub(super) fn newest(&self) -> Option<&Line> {
        self.0.iter().rev().find(|line| line.event == "begin" && line.config_sha256.is_some())
    }

    /// The line of the newest that ended by itself.
    pub(super) fn newest_end(&self) -> Option<&Line> {
        self.0.iter().rev().find(|line| line.ended.is_some())
    }
}
