//! A training state as a folder of safetensors and a manifest, written aside, synced and renamed.
//!
//! `checkpoints/step-00000012/` holds `NETWORK.safetensors` (weights, singular vectors, statistics),
//! `NETWORK.adam.safetensors` (moments `m.NAME`, `v.NAME`), `NETWORK.average.safetensors` (G and E)
//! and `manifest.json`, which is written last and carries the size and SHA-256 of every file. No
//! file but safetensors is ever read as weights.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use pipeline::Cursor;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::state::{Averaged, Player, TrainState};

/// Version of the folder's format.
pub const FORMAT: u32 = 1;

type Named = Vec<(String, Tensor)>;

/// What `manifest.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// G/E updates done.
    pub step: u64,
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
    /// Every other file.
    pub files: BTreeMap<String, FileRecord>,
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

/// Writes the state under `folder` (a run's `checkpoints`) and removes all but the newest `keep`.
/// Returns the checkpoint's folder.
///
/// # Errors
/// [`Error::Io`]. The earlier checkpoints are then untouched.
pub fn save(folder: &Path, state: &TrainState, data: u64, keep: usize) -> Result<PathBuf> {
    let name = format!("step-{:08}", state.step);
    let (path, aside) = (folder.join(&name), folder.join(format!(".{name}.partial")));
    if path.is_dir() && verify(&path).is_ok() {
        return Ok(path);
    }
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let _ = fs::remove_dir_all(&aside);
    fs::create_dir(&aside).map_err(Error::io("create", &aside))?;
    let mut files = BTreeMap::new();
    for (name, tensors) in contents(state) {
        files.insert(name.clone(), write_tensors(&aside.join(&name), &tensors)?);
    }
    let manifest = Manifest {
        format: FORMAT,
        step: state.step,
        cursor: state.cursor,
        adam_steps: adam_steps(state),
        rollbacks: state.rollbacks,
        data_fingerprint: data,
        threads: tch::get_num_threads(),
        files,
    };
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| fault(&aside, e))?;
    write_synced(&aside.join("manifest.json"), &text)?;
    sync_folder(&aside)?;
    let _ = fs::remove_dir_all(&path);
    fs::rename(&aside, &path).map_err(Error::io("rename", &aside))?;
    sync_folder(folder)?;
    for (_, old) in list(folder)?.into_iter().rev().skip(keep) {
        fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
    }
    Ok(path)
}

/// The checkpoints under `folder`, oldest first, whether sound or not.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        let step = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("step-"));
        if let Some(step) = step.and_then(|s| s.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest checkpoint under `folder` that verifies; those passed over are reported as warnings.
///
/// # Errors
/// [`Error::Checkpoint`] if there is none.
pub fn newest(folder: &Path) -> Result<PathBuf> {
    let found = if folder.is_dir() { list(folder)? } else { vec![] };
    for (_, path) in found.into_iter().rev() {
        match verify(&path) {
            Ok(_) => return Ok(path),
            Err(e) => tracing::warn!("{e}; going back to the one before"),
        }
    }
    Err(fault(folder, "no usable checkpoint here; start a new run, or name another --run"))
}

/// Reads the manifest and checks every file's length and hash.
///
/// # Errors
/// [`Error::Checkpoint`] naming the first file that is wrong.
pub fn verify(path: &Path) -> Result<Manifest> {
    let manifest = read_manifest(path)?;
    for (name, record) in &manifest.files {
        let file = path.join(name);
        let bytes = fs::read(&file).map_err(|e| fault(&file, e))?;
        if bytes.len() as u64 != record.bytes {
            let reason = format!("has {} bytes, the manifest says {}", bytes.len(), record.bytes);
            return Err(fault(&file, reason));
        }
        if hash(&bytes) != record.sha256 {
            return Err(fault(&file, "its SHA-256 is not the manifest's: the file was changed"));
        }
    }
    Ok(manifest)
}

/// Reads a whole training state.
///
/// # Errors
/// [`Error::Checkpoint`] where a name, shape or type differs from what `config` builds, or the
/// training data's index changed.
pub fn load(path: &Path, config: &Config, device: Device, data: u64) -> Result<TrainState> {
    let manifest = verify(path)?;
    if manifest.data_fingerprint != data {
        return Err(fault(path, "the data folder's index is not the one this run was trained on"));
    }
    if manifest.threads != tch::get_num_threads() {
        tracing::warn!(
            "{} threads, the checkpoint had {}: results may differ in the last bit",
            tch::get_num_threads(),
            manifest.threads
        );
    }
    let mut state = TrainState::new(config, device, false);
    for (name, mut tensors) in contents(&state) {
        read_tensors(&path.join(name), &mut tensors)?;
    }
    state.step = manifest.step;
    state.cursor = manifest.cursor;
    state.rollbacks = manifest.rollbacks;
    let steps = |name: &str| {
        let missing = || fault(path, format!("the manifest has no Adam steps of the {name}"));
        manifest.adam_steps.get(name).copied().ok_or_else(missing)
    };
    state.g.live.adam.set_steps(steps("generator")?);
    state.d.adam.set_steps(steps("discriminator")?);
    if let Some(e) = &mut state.e {
        e.live.adam.set_steps(steps("encoder")?);
        e.live.params.rescale();
    }
    state.g.live.params.rescale();
    state.d.params.rescale();
    Ok(state)
}

/// Reads one averaged network ("generator" or "encoder") into `params`, with freshly converged
/// spectral norms. Batch-norm statistics are those of the live network.
///
/// # Errors
/// [`Error::Checkpoint`], as [`load`].
pub fn load_average(path: &Path, network: &str, params: &mut Params) -> Result<()> {
    read_tensors(&path.join(format!("{network}.safetensors")), &mut params.state())?;
    let flat = params.flat().shallow_clone();
    let mut average = params.unflatten(&flat);
    read_tensors(&path.join(format!("{network}.average.safetensors")), &mut average)?;
    params.converge_norms();
    Ok(())
}

/// Reads one live network ("generator" or "encoder") into `params`.
///
/// # Errors
/// [`Error::Checkpoint`], as [`load`].
pub fn load_live(path: &Path, network: &str, params: &mut Params) -> Result<()> {
    read_tensors(&path.join(format!("{network}.safetensors")), &mut params.state())?;
    params.rescale();
    Ok(())
}

/// Reads `manifest.json` without checking the files it lists.
///
/// # Errors
/// [`Error::Checkpoint`] if it is missing, unreadable, or of another version.
pub fn read_manifest(path: &Path) -> Result<Manifest> {
    let file = path.join("manifest.json");
    let text = fs::read(&file).map_err(|e| fault(&file, e))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| fault(&file, e))?;
    if manifest.format != FORMAT {
        return Err(fault(&file, format!("format {}, expected {FORMAT}", manifest.format)));
    }
    Ok(manifest)
}

fn contents(state: &TrainState) -> Vec<(String, Named)> {
    let mut all = player("discriminator", &state.d);
    all.extend(averaged("generator", &state.g));
    all.extend(state.e.iter().flat_map(|e| averaged("encoder", e)));
    all
}

fn player<N>(name: &str, player: &Player<N>) -> Vec<(String, Named)> {
    let moments = |prefix: &str, flat: &Tensor| {
        let pieces = player.params.unflatten(flat).into_iter();
        pieces.map(|(name, t)| (format!("{prefix}.{name}"), t)).collect::<Named>()
    };
    let mut adam = moments("m", &player.adam.m);
    adam.extend(moments("v", &player.adam.v));
    vec![
        (format!("{name}.safetensors"), player.params.state()),
        (format!("{name}.adam.safetensors"), adam),
    ]
}

fn averaged<N>(name: &str, network: &Averaged<N>) -> Vec<(String, Named)> {
    let mut files = player(name, &network.live);
    let average = network.live.params.unflatten(&network.average);
    files.push((format!("{name}.average.safetensors"), average));
    files
}

fn adam_steps(state: &TrainState) -> BTreeMap<String, u64> {
    let mut steps = BTreeMap::from([
        ("generator".to_owned(), state.g.live.adam.steps()),
        ("discriminator".to_owned(), state.d.adam.steps()),
    ]);
    if let Some(e) = &state.e {
        steps.insert("encoder".to_owned(), e.live.adam.steps());
    }
    steps
}

fn dtype(kind: Kind) -> Option<Dtype> {
    match kind {
        Kind::Float => Some(Dtype::F32),
        Kind::Double => Some(Dtype::F64),
        _ => None,
    }
}

fn write_tensors(path: &Path, tensors: &Named) -> Result<FileRecord> {
    let mut raw = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = dtype(tensor.kind())
            .ok_or_else(|| fault(path, format!("{name} is {:?}", tensor.kind())))?;
        let host = tensor.to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0; host.numel() * host.kind().elt_size_in_bytes()];
        host.f_copy_data_u8(&mut bytes, host.numel())?;
        let shape: Vec<usize> = host.size().into_iter().map(|s| s as usize).collect();
        raw.push((name, dtype, shape, bytes));
    }
    let mut views = Vec::with_capacity(raw.len());
    for (name, dtype, shape, bytes) in &raw {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| fault(path, e))?;
        views.push((name.as_str(), view));
    }
    let bytes = safetensors::serialize(views, None).map_err(|e| fault(path, e))?;
    write_synced(path, &bytes)?;
    Ok(FileRecord { bytes: bytes.len() as u64, sha256: hash(&bytes) })
}

/// Fills `tensors` from a file that must hold exactly these names, shapes and types.
fn read_tensors(path: &Path, tensors: &mut Named) -> Result<()> {
    let bytes = fs::read(path).map_err(|e| fault(path, e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| fault(path, e))?;
    let expected: BTreeSet<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    let found: BTreeSet<&str> = file.names().into_iter().collect();
    if let Some(name) = expected.symmetric_difference(&found).next() {
        let side = if expected.contains(name) { "lacks" } else { "has an unexpected" };
        return Err(fault(path, format!("{side} tensor {name}: another model's checkpoint?")));
    }
    for (name, tensor) in tensors {
        let view = file.tensor(name).map_err(|e| fault(path, e))?;
        let shape: Vec<i64> = view.shape().iter().map(|s| *s as i64).collect();
        if shape != tensor.size() || Some(view.dtype()) != dtype(tensor.kind()) {
            let (found, wanted) = (view.dtype(), tensor.kind());
            let wanted = format!("{wanted:?} {:?}", tensor.size());
            return Err(fault(path, format!("{name} is {found:?} {shape:?}, expected {wanted}")));
        }
        let data = Tensor::f_from_data_size(view.data(), &shape, tensor.kind())?;
        no_grad(|| tensor.f_copy_(&data)).map_err(|e| fault(path, e))?;
    }
    Ok(())
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hexadecimal SHA-256 of a file.
///
/// # Errors
/// [`Error::Io`].
pub fn hash_of(path: &Path) -> Result<String> {
    fs::read(path).map(|bytes| hash(&bytes)).map_err(Error::io("read", path))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(Error::io("write", path))
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("sync", path))
}

fn fault(path: &Path, reason: impl ToString) -> Error {
    Error::Checkpoint { path: path.to_owned(), reason: reason.to_string() }
}
