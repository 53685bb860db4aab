//! A training state as a folder of safetensors and a manifest, written aside, synced and renamed.
//!
//! `checkpoints/step-00000012/` (`step-00000012+1` after the first update of D of the step that follows)
//! holds `NETWORK.safetensors` (weights, singular vectors, statistics),
//! `NETWORK.adam.safetensors` (moments `m.NAME`, `v.NAME`), `NETWORK.average.safetensors` (of G and E alone)
//! and `manifest.json`, which is written last and carries the size and SHA-256 of every file and of itself.
//! No file but safetensors is ever read as weights.

mod manifest;
mod tensors;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bigbigan_model::nn::Params;
use bigbigan_model::state::TrainState;
use common::files::{self, sha256_of};
use dist::World;
use pipeline::Cursor;
use tch::{Device, Kind};

use crate::config::Config;
use crate::error::{Error, Result};
pub use manifest::{FORMAT, FileRecord, Manifest, PendingRecord, read_manifest, write_manifest};
pub(crate) use tensors::{Named, contents, note_of, read_tensors, write_tensors};
pub use writer::{Guard, Keep, Saved, Writer, room_for};

/// The tensors of a checkpoint by file.
type Files = Vec<(String, Named)>;

/// The checkpoints under `folder`, oldest first, whether sound or not.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        found.push(entry.map_err(Error::io("read", folder))?.path());
    }
    Ok(in_order(found))
}

/// Those paths that have the name of a checkpoint, oldest first.
pub(crate) fn in_order(paths: impl IntoIterator<Item = PathBuf>) -> Vec<(u64, PathBuf)> {
    let of = |path: PathBuf| Some((place_of(path.file_name()?.to_str()?)?, path));
    let mut found: Vec<_> = paths.into_iter().filter_map(of).collect();
    found.sort();
    found.into_iter().map(|((step, _), path)| (step, path)).collect()
}

/// The step of a checkpoint's name, and the updates of D after it; of no other name, such as that of one set aside.
fn place_of(name: &str) -> Option<(u64, u32)> {
    let number = name.strip_prefix("step-")?;
    let (step, updates) = number.split_once('+').unwrap_or((number, "0"));
    let (step, updates) = (step.parse().ok()?, updates.parse().ok()?);
    (name == name_of(step, updates)).then_some((step, updates))
}

fn name_of(step: u64, updates: u32) -> String {
    if updates == 0 { format!("step-{step:08}") } else { format!("step-{step:08}+{updates}") }
}

/// Pauses before another try where the system does not read for a reason of its own: a network disk that
/// is away for a moment, no descriptor left. Such a checkpoint is not damaged. In milliseconds.
const PAUSES: [u64; 4] = if cfg!(test) { [1; 4] } else { [100, 1_000, 5_000, 10_000] };

/// Does `read` again, with pauses, as long as it fails by [`Error::Io`].
fn patiently<T>(mut read: impl FnMut() -> Result<T>) -> Result<T> {
    for pause in PAUSES.map(Duration::from_millis) {
        match read() {
            Err(e @ Error::Io { .. }) => {
                tracing::warn!("{e}; trying again in {:.1} s", pause.as_secs_f64());
                std::thread::sleep(pause);
            }
            done => return done,
        }
    }
    read()
}

/// Whether training has removed a checkpoint, or set it aside. One that cannot be looked at is not gone.
#[must_use]
pub fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

/// The newest checkpoint under `folder` that verifies; those passed over are reported as warnings. Training may go
/// on meanwhile: one that is no longer kept was not passed over, and there are newer ones.
///
/// # Errors
/// [`Error::Checkpoint`] if there is none; [`Error::Io`] if one cannot be read, which need not be its fault.
pub fn newest(folder: &Path) -> Result<PathBuf> {
    'again: loop {
        let found = if folder.is_dir() { list(folder)? } else { vec![] };
        for (_, path) in found.into_iter().rev() {
            match patiently(|| verify(&path)) {
                Ok(_) => return Ok(path),
                Err(_) if is_gone(&path) => continue 'again,
                Err(e @ Error::Checkpoint { .. }) => {
                    tracing::warn!("{e}; going back to the one before");
                }
                Err(e) => return Err(e),
            }
        }
        return Err(fault(
            folder,
            "no usable checkpoint here; start a new run, or name another --run",
        ));
    }
}

/// The checkpoint of a whole step.
///
/// # Errors
/// [`Error::Checkpoint`], naming the steps that there are.
pub fn of_step(folder: &Path, step: u64) -> Result<PathBuf> {
    let path = folder.join(name_of(step, 0));
    if path.is_dir() {
        return Ok(path);
    }
    let found = if folder.is_dir() { list(folder)? } else { vec![] };
    let whole = found.iter().filter(|(step, path)| path.ends_with(name_of(*step, 0)));
    let steps: Vec<_> = whole.map(|(step, _)| step.to_string()).collect();
    let reason = format!("no checkpoint of step {step}; there are those of {}", steps.join(", "));
    Err(fault(folder, reason))
}

/// Where a run is in its data.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    /// Of the data's index.
    pub fingerprint: u64,
    /// Where the next image comes from.
    pub cursor: Cursor,
}

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Loaded {
    /// All that a step changes.
    pub state: TrainState,
    /// Where the next image comes from.
    pub cursor: Cursor,
}

/// The newest state under `folder` that can be loaded, with the checkpoint's folder; those passed over
/// are reported as warnings. `own` is asked of each before it is read: what it refuses is not passed over.
///
/// # Errors
/// As [`load`], for the newest, if there is none. [`Error::Io`] after some tries: what the system does not
/// read need not be damaged, so none before it is taken. Those of `own`, and of other data.
pub fn load_newest(
    folder: &Path,
    config: &Config,
    device: Device,
    data: u64,
    world: &World,
    own: impl Fn(&Path) -> Result<()>,
) -> Result<(PathBuf, Loaded)> {
    let mut first = None;
    let found = if folder.is_dir() { list(folder)? } else { vec![] };
    let mut found = found.into_iter().rev().peekable();
    while let Some((_, path)) = found.next() {
        match patiently(|| own(&path).and_then(|()| load(&path, config, device, data, world))) {
            Ok(loaded) => return Ok((path, loaded)),
            Err(e @ Error::Checkpoint { .. }) => {
                let next =
                    if found.peek().is_some() { "; going back to the one before" } else { "" };
                tracing::warn!("{e}{next}");
                first.get_or_insert(e);
            }
            Err(e) => return Err(e),
        }
    }
    let none = || fault(folder, "no checkpoint here; start a new run, or name another --out");
    Err(first.unwrap_or_else(none))
}

/// Gives the checkpoints that were passed over for the one in `loaded` other names, `step-….damaged`, `….damaged-2`, under
/// which they count for nothing: not as what training goes on from, nor among those to keep.
///
/// # Errors
/// [`Error::Io`].
pub fn set_aside_after(folder: &Path, loaded: &Path) -> Result<()> {
    for (_, path) in list(folder)?.into_iter().rev().take_while(|(_, path)| path != loaded) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside = free(&path.with_file_name(format!("{name}.damaged")))?;
        files::rename(&path, &aside).map_err(Error::io("rename", &path))?;
        tracing::warn!("{}: set aside as {}", path.display(), aside.display());
    }
    Ok(())
}

/// A path that nothing has: this one, or with a number after it.
pub(crate) fn free(path: &Path) -> Result<PathBuf> {
    let mut tried = path.to_owned();
    for number in 2_u64.. {
        match fs::symlink_metadata(&tried) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(e) => return Err(Error::io("look at", &tried)(e)),
            Ok(_) => {
                let mut numbered = path.as_os_str().to_owned();
                numbered.push(format!("-{number}"));
                tried = numbered.into();
            }
        }
    }
    Ok(tried)
}

/// Reads the manifest and checks that it is that of the folder's step and lists what a checkpoint holds, and every
/// file's length and hash.
///
/// # Errors
/// [`Error::Checkpoint`] naming the first file that is wrong; [`Error::Io`] if one cannot be read.
pub fn verify(path: &Path) -> Result<Manifest> {
    let manifest = read_manifest(path)?;
    let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let own_name = name_of(manifest.step, manifest.pending_d.map_or(0, |d| d.updates));
    if place_of(&name).is_some() && name != own_name {
        return Err(fault(path, format!("holds what belongs into {own_name}")));
    }
    let file_names = |networks: &[&str], kinds: &[&str]| -> BTreeSet<String> {
        let name = |network, kind: &&str| format!("{network}{kind}.safetensors");
        networks.iter().flat_map(|network| kinds.iter().map(move |k| name(*network, k))).collect()
    };
    // Without an encoder, with one, and with a further loss of it.
    let whole = [
        (&["discriminator"][..], &["generator"][..]),
        (&["discriminator"], &["generator", "encoder"]),
        (&["discriminator", "further"], &["generator", "encoder"]),
    ];
    let whole = whole.map(|(plain, averaged)| {
        &file_names(plain, &["", ".adam"]) | &file_names(averaged, &["", ".adam", ".average"])
    });
    let listed: BTreeSet<String> = manifest.files.keys().cloned().collect();
    if !whole.contains(&listed) {
        let listed: Vec<_> = listed.into_iter().collect();
        let reason = format!("lists {listed:?}, which are not the files of a checkpoint");
        return Err(fault(&path.join("manifest.json"), reason));
    }
    for (name, expected) in &manifest.files {
        let file = path.join(name);
        let found = fs::symlink_metadata(&file).map_err(|e| unread(&file, e))?;
        if !found.is_file() {
            return Err(fault(&file, "is not a plain file"));
        }
        if found.len() != expected.bytes {
            let (has, wanted) = (found.len(), expected.bytes);
            return Err(fault(&file, format!("has {has} bytes, the manifest says {wanted}")));
        }
    }
    for (name, expected) in &manifest.files {
        let file = path.join(name);
        if record(&file).map_err(|e| unread(&file, e))? != *expected {
            return Err(fault(&file, "its SHA-256 is not the manifest's: the file was changed"));
        }
    }
    Ok(manifest)
}

/// Reads a whole training state.
///
/// # Errors
/// [`Error::Checkpoint`] where a name, shape or type differs from what `config` builds; [`Error::Output`] where it is of
/// other training data.
pub fn load(
    path: &Path,
    config: &Config,
    device: Device,
    data: u64,
    world: &World,
) -> Result<Loaded> {
    let manifest = verify(path)?;
    if manifest.data_fingerprint != data {
        let reason =
            "the data folder's index is not the one it was trained on: name that folder by --data";
        return Err(Error::Output { path: path.to_owned(), reason: reason.to_owned() });
    }
    if manifest.threads != tch::get_num_threads() {
        tracing::warn!(
            "{} threads, the checkpoint had {}: results may differ in the last bit",
            tch::get_num_threads(),
            manifest.threads
        );
    }
    let mut state = TrainState::in_world(&config.recipe(), world, (Kind::Float, device), false);
    let joins = state.further.is_some() && !manifest.files.contains_key("further.safetensors");
    for (name, mut tensors) in contents(&state) {
        if !(joins && name.starts_with("further.")) {
            read_tensors(&path.join(name), &mut tensors)?;
        }
    }
    if joins {
        tracing::warn!(
            "{} is of before [beyond] came to this run: its network begins",
            path.display()
        );
        state.renew_further(&config.recipe(), world);
    }
    state.step = manifest.step;
    state.pending_d = manifest.pending_d.map(|d| d.restored(device));
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
    if let (Some(further), false) = (&mut state.further, joins) {
        further.adam.set_steps(steps("further")?);
        further.params.rescale();
    }
    state.g.live.params.rescale();
    state.d.params.rescale();
    Ok(Loaded { state, cursor: manifest.cursor })
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

fn adam_steps(state: &TrainState) -> BTreeMap<String, u64> {
    let mut steps = BTreeMap::from([
        ("generator".to_owned(), state.g.live.adam.steps()),
        ("discriminator".to_owned(), state.d.adam.steps()),
    ]);
    if let Some(e) = &state.e {
        steps.insert("encoder".to_owned(), e.live.adam.steps());
    }
    if let Some(further) = &state.further {
        steps.insert("further".to_owned(), further.adam.steps());
    }
    steps
}

/// Length and hash of a file.
fn record(path: &Path) -> io::Result<FileRecord> {
    let (bytes, sha256) = sha256_of(File::open(path)?)?;
    Ok(FileRecord { bytes, sha256 })
}

/// Hexadecimal SHA-256 of a file.
///
/// # Errors
/// [`Error::Io`].
pub fn hash_of(path: &Path) -> Result<String> {
    Ok(record(path).map_err(Error::io("read", path))?.sha256)
}

fn fault(path: &Path, reason: impl ToString) -> Error {
    Error::Checkpoint { path: path.to_owned(), reason: reason.to_string() }
}

/// A file that could not be read: damage where it is not there or is something else, else the system's
/// affair, which may pass.
fn unread(path: &Path, error: io::Error) -> Error {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound, UnexpectedEof};
    match error.kind() {
        NotFound | NotADirectory | IsADirectory | UnexpectedEof | InvalidData => fault(path, error),
        _ => Error::io("read", path)(error),
    }
}

#[cfg(test)]
mod tests;
