//! `manifest.json` of a checkpoint: what is in no tensor, and the size and hash of every file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bigbigan_model::state::{PendingDiscriminator, Update};
use common::files;
use pipeline::Cursor;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::{fault, unread};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::provenance::Provenance;

/// Version of the folder's format. Those before 2 have no hash of the manifest.
pub const FORMAT: u32 = 2;

/// What `manifest.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// SHA-256 of the text of this file without these digits; not there in format 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_sha256: Option<String>,
    /// [`FORMAT`].
    pub format: u32,
    /// G/E updates done.
    pub step: u64,
    /// Of the step that follows, what was done.
    #[serde(rename = "of_d", default, skip_serializing_if = "Option::is_none")]
    pub pending_d: Option<PendingRecord>,
    /// Where the next image comes from.
    pub cursor: Cursor,
    /// Updates done by each Adam.
    pub adam_steps: BTreeMap<String, u64>,
    /// Times that training went back to a checkpoint.
    #[serde(default)]
    pub rollbacks: u64,
    /// Hash of the data index.
    pub data_fingerprint: u64,
    /// CPU threads of libtorch: sums depend on it in the last bit.
    pub threads: i32,
    /// The run's configuration, as in `config.toml`; empty in checkpoints of before it was written here.
    #[serde(default)]
    pub config: String,
    /// Its SHA-256.
    #[serde(default)]
    pub config_sha256: String,
    /// By which program, where and when it was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
    /// Every other file.
    pub files: BTreeMap<String, FileRecord>,
}

/// [`PendingDiscriminator`] as numbers; those that are not finite are left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PendingRecord {
    /// Updates of D done.
    pub updates: u32,
    /// Loss of the last.
    pub loss: Option<f32>,
    /// ‖gradient‖₂ of the last.
    pub norm: Option<f32>,
    /// Whether one of them met a value that is not finite.
    pub fault: bool,
}

impl Manifest {
    /// The configuration that the checkpoint in `path` was made with; none where it does not say, as those of before.
    ///
    /// # Errors
    /// [`Error::Output`] where it is none of this trainer's.
    pub fn made_with(&self, path: &Path) -> Result<Option<Config>> {
        // Nothing at all is a configuration too: that of the defaults.
        if self.config.is_empty() {
            return Ok(None);
        }
        Config::parse(&self.config).map(Some).map_err(|e| Error::Output {
            path: path.to_owned(),
            reason: format!(
                "{e}: another trainer wrote it, a newer one perhaps; go on with that one"
            ),
        })
    }
}

impl PendingRecord {
    pub(super) fn of(d: &PendingDiscriminator) -> Self {
        let number =
            |t: &Tensor| Some(t.double_value(&[]) as f32).filter(|value| value.is_finite());
        let fault = d.update.fault.double_value(&[]) != 0.0;
        Self { updates: d.updates, loss: number(&d.loss), norm: number(&d.update.norm), fault }
    }

    pub(super) fn restored(&self, device: Device) -> PendingDiscriminator {
        let tensor = |value: f32| Tensor::from(value).to_device(device);
        let number = |value: Option<f32>| tensor(value.unwrap_or(f32::NAN));
        let fault = tensor(if self.fault { 1.0 } else { 0.0 });
        let update = Update { norm: number(self.norm), fault };
        PendingDiscriminator { updates: self.updates, loss: number(self.loss), update }
    }
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Length.
    pub bytes: u64,
    /// Hexadecimal SHA-256.
    pub sha256: String,
}

/// Reads `manifest.json` without checking the files it lists.
///
/// # Errors
/// [`Error::Checkpoint`] if it is missing, unreadable, or changed since it was written; [`Error::Output`] where a
/// newer trainer wrote it, which is no damage.
pub fn read_manifest(path: &Path) -> Result<Manifest> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
        own_sha256: Option<String>,
    }
    let file = path.join("manifest.json");
    let text = fs::read(&file).map_err(|e| unread(&file, e))?;
    let no_manifest = |e: serde_json::Error| fault(&file, format!("is no manifest ({e})"));
    let head: Head = serde_json::from_slice(&text).map_err(no_manifest)?;
    if let Some(own) = &head.own_sha256 {
        let text = String::from_utf8_lossy(&text);
        if files::sha256(text.replacen(own.as_str(), "", 1).as_bytes()) != *own {
            return Err(fault(&file, "its SHA-256 is not the one in it: the file was changed"));
        }
    } else if head.format != 1 {
        return Err(fault(&file, "has no SHA-256 of its own: the file was changed"));
    }
    let newer = |reason: String| {
        let reason = format!("{reason}: a newer trainer wrote it; go on with that one");
        Error::Output { path: file.clone(), reason }
    };
    if head.format > FORMAT {
        return Err(newer(format!("format {}, this trainer reads up to {FORMAT}", head.format)));
    }
    serde_json::from_slice(&text).map_err(|e| match head.own_sha256 {
        Some(_) => newer(e.to_string()),
        None => no_manifest(e),
    })
}

/// Writes `manifest.json` with its own hash, whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub fn write_manifest(path: &Path, manifest: &mut Manifest) -> Result<()> {
    let file = path.join("manifest.json");
    manifest.own_sha256 = Some(String::new());
    let text = serde_json::to_string_pretty(manifest).map_err(|e| fault(&file, e))?;
    let own = files::sha256(text.as_bytes());
    let text = text.replacen("\"own_sha256\": \"", &format!("\"own_sha256\": \"{own}"), 1);
    manifest.own_sha256 = Some(own);
    files::replace_file(&file, text.as_bytes()).map_err(Error::io("write", &file))
}
