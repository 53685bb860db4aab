//! A training state as a folder of safetensors and a manifest, written aside, synced and renamed.
//!
//! `checkpoints/step-00000012/` (`step-00000012+1` after the first update of D of the step that follows)
//! holds `NETWORK.safetensors` (weights, singular vectors, statistics),
//! `NETWORK.adam.safetensors` (moments `m.NAME`, `v.NAME`), `NETWORK.average.safetensors` (G and E)
//! and `manifest.json`, which is written last and carries the size and SHA-256 of every file. No
//! file but safetensors is ever read as weights.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pipeline::Cursor;
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};

use crate::config::Config;
use crate::dist::World;
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::state::{Averaged, OfD, Player, TrainState, Update};

/// Version of the folder's format.
pub const FORMAT: u32 = 1;

pub(crate) type Named = Vec<(String, Tensor)>;

/// The tensors of a checkpoint by file.
type Files = Vec<(String, Named)>;

/// What `manifest.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// G/E updates done.
    pub step: u64,
    /// Of the step that follows, what was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_d: Option<OfDRecord>,
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

/// [`OfD`] as numbers; those that are not finite are left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfDRecord {
    /// Updates of D done.
    pub updates: u32,
    /// Loss of the last.
    pub loss: Option<f32>,
    /// ‖gradient‖₂ of the last.
    pub norm: Option<f32>,
    /// Whether one of them met a value that is not finite.
    pub fault: bool,
}

impl OfDRecord {
    fn of(d: &OfD) -> Self {
        let number =
            |t: &Tensor| Some(t.double_value(&[]) as f32).filter(|value| value.is_finite());
        let fault = d.update.fault.double_value(&[]) != 0.0;
        Self { updates: d.updates, loss: number(&d.loss), norm: number(&d.update.norm), fault }
    }

    fn restored(&self, device: Device) -> OfD {
        let tensor = |value: f32| Tensor::from(value).to_device(device);
        let number = |value: Option<f32>| tensor(value.unwrap_or(f32::NAN));
        let fault = tensor(if self.fault { 1.0 } else { 0.0 });
        let update = Update { norm: number(self.norm), fault };
        OfD { updates: self.updates, loss: number(self.loss), update }
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

/// Which checkpoints stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many.
    pub last: usize,
    /// Those whose step is a multiple of this; 0 for none.
    pub every: u64,
    /// The best by the run's measure, where there is one.
    pub best: Option<u64>,
}

/// Writes checkpoints under a run's `checkpoints` while training goes on.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    /// Name of the newest checkpoint that this writer took on.
    newest: Option<String>,
    under_way: Option<JoinHandle<Result<Done>>>,
    /// Host memory for the next copy, in use before: memory that was never touched takes many times as long
    /// to fill. Empty while a checkpoint is being written.
    staging: Files,
    /// The newest that is on the disk, until it was told of.
    saved: Option<Saved>,
}

/// What the background thread of a [`Writer`] hands back: the memory for the next copy too.
type Done = (Option<Saved>, Files);

/// What a checkpoint that is on the disk took.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// Its folder's name.
    pub name: String,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// How long training was held up: the wait for the checkpoint before it, and the copy.
    pub held: Duration,
    /// How long writing took after that, beside training.
    pub writing: Duration,
}

impl Writer {
    /// A writer into `folder`, which is made. What an earlier one left half done is removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let path = entry.map_err(Error::io("read", folder))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            if name.is_some_and(|name| name.starts_with(".step-")) {
                fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            newest: None,
            under_way: None,
            staging: vec![],
            saved: None,
        })
    }

    /// Copies the state to host memory and writes the copy in the background, then removes what `keep`
    /// does not name. Waits for the checkpoint before it, if that is still being written.
    ///
    /// # Errors
    /// Those of the checkpoint before; [`Error::Output`] where the disk has no room for this one.
    pub fn save(&mut self, state: &TrainState, data: u64, keep: Keep) -> Result<()> {
        let asked = Instant::now();
        self.finish()?;
        let name = name_of(state.step, state.of_d.as_ref().map_or(0, |d| d.updates));
        if self.newest.as_ref() == Some(&name) {
            return Ok(());
        }
        let mut snapshot = Snapshot::of(state, data, std::mem::take(&mut self.staging));
        room_for(&self.folder, snapshot.bytes())?;
        self.newest = Some(name.clone());
        let folder = self.folder.clone();
        let (bytes, held) = (snapshot.bytes(), asked.elapsed());
        let write = move || {
            let begun = Instant::now();
            snapshot.write(&folder)?;
            remove_all_but(&folder, keep)?;
            let saved = Saved { name, bytes, held, writing: begun.elapsed() };
            Ok((Some(saved), snapshot.files))
        };
        self.spawn(write)
    }

    /// Gets the memory for copies of `state` ready in the background, so that the first checkpoint holds
    /// training up no longer than the others.
    ///
    /// # Errors
    /// [`Error::Io`] where no thread starts.
    pub fn prepare(&mut self, state: &TrainState) -> Result<()> {
        let layout = layout(&contents(state));
        self.spawn(move || Ok((None, host_memory(layout))))
    }

    fn spawn(&mut self, work: impl FnOnce() -> Result<Done> + Send + 'static) -> Result<()> {
        let spawned = std::thread::Builder::new().name("checkpoint".into()).spawn(work);
        self.under_way = Some(spawned.map_err(Error::io("start a thread for", &self.folder))?);
        Ok(())
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// Those of the checkpoint that was being written.
    pub fn finish(&mut self) -> Result<()> {
        match self.under_way.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome.map(|(saved, staging)| {
                self.saved = saved;
                self.staging = staging;
            }),
            Some(Err(_)) => Err(fault(&self.folder, "the writing thread panicked")),
        }
    }

    /// The newest checkpoint that reached the disk since the last call. Waits for none.
    ///
    /// # Errors
    /// Those of that checkpoint.
    pub fn saved(&mut self) -> Result<Option<Saved>> {
        if self.under_way.as_ref().is_some_and(JoinHandle::is_finished) {
            self.finish()?;
        }
        Ok(self.saved.take())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(e) = self.finish() {
            tracing::error!("{e}");
        }
    }
}

/// Refuses to begin what the disk cannot hold.
///
/// # Errors
/// [`Error::Output`].
pub fn room_for(folder: &Path, bytes: u64) -> Result<()> {
    let disk = rustix::fs::statvfs(folder).map_err(|e| Error::io("look at", folder)(e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if bytes <= free {
        return Ok(());
    }
    let reason = format!(
        "a checkpoint takes {} MB and the disk has {} MB free; make room, or lower checkpoint.keep",
        bytes.div_ceil(1_000_000),
        free / 1_000_000
    );
    Err(Error::Output { path: folder.to_owned(), reason })
}

/// A copy of a state in host memory.
struct Snapshot {
    /// Its `files` are still empty.
    manifest: Manifest,
    files: Vec<(String, Named)>,
}

impl Snapshot {
    /// Copies `state` to `staging`, where that holds a copy of the same tensors, or else to new memory.
    fn of(state: &TrainState, data: u64, mut staging: Files) -> Self {
        let files = contents(state);
        if layout(&staging) != layout(&files) {
            staging = host_memory(layout(&files));
        }
        for ((_, to), (_, from)) in staging.iter_mut().zip(&files) {
            let pairs = to.iter_mut().zip(from);
            no_grad(|| pairs.for_each(|((_, to), (_, from))| to.copy_(from)));
        }
        let manifest = Manifest {
            format: FORMAT,
            step: state.step,
            of_d: state.of_d.as_ref().map(OfDRecord::of),
            cursor: state.cursor,
            adam_steps: adam_steps(state),
            rollbacks: state.rollbacks,
            data_fingerprint: data,
            threads: tch::get_num_threads(),
            files: BTreeMap::new(),
        };
        Self { manifest, files: staging }
    }

    /// About what its files will take.
    fn bytes(&self) -> u64 {
        let size = |t: &Tensor| (t.numel() * t.kind().elt_size_in_bytes() + 200) as u64;
        self.files.iter().flat_map(|(_, tensors)| tensors).map(|(_, t)| size(t)).sum()
    }

    /// Writes a folder aside, syncs it and gives it its name.
    fn write(&mut self, folder: &Path) -> Result<()> {
        let name = name_of(self.manifest.step, self.manifest.of_d.map_or(0, |d| d.updates));
        let (path, aside) = (folder.join(&name), folder.join(format!(".{name}.partial")));
        fs::create_dir(&aside).map_err(Error::io("create", &aside))?;
        for (name, tensors) in &self.files {
            let record = write_tensors(&aside.join(name), tensors)?;
            self.manifest.files.insert(name.clone(), record);
        }
        let text = serde_json::to_vec_pretty(&self.manifest).map_err(|e| fault(&aside, e))?;
        write_synced(&aside.join("manifest.json"), &text)?;
        sync_folder(&aside)?;
        if path.exists() {
            remove(&path)?;
        }
        fs::rename(&aside, &path).map_err(Error::io("rename", &aside))?;
        sync_folder(folder)
    }
}

/// By file: names, shapes and types.
type Layout = Vec<(String, Vec<(String, Vec<i64>, Kind)>)>;

fn layout(files: &Files) -> Layout {
    let of = |(name, t): &(String, Tensor)| (name.clone(), t.size(), t.kind());
    files.iter().map(|(file, all)| (file.clone(), all.iter().map(of).collect())).collect()
}

/// Tensors of zeros in host memory: written to, so that the system has really given it.
fn host_memory(layout: Layout) -> Files {
    let zeros = |(name, shape, kind): (String, Vec<i64>, Kind)| {
        (name, Tensor::zeros(shape, (kind, Device::Cpu)))
    };
    layout.into_iter().map(|(file, all)| (file, all.into_iter().map(zeros).collect())).collect()
}

fn name_of(step: u64, updates: u32) -> String {
    if updates == 0 { format!("step-{step:08}") } else { format!("step-{step:08}+{updates}") }
}

/// Removes a checkpoint: it loses its name first, so that none is ever found half removed.
fn remove(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = path.with_file_name(format!(".{name}.removed"));
    fs::rename(path, &aside).map_err(Error::io("rename", path))?;
    fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))
}

fn remove_all_but(folder: &Path, keep: Keep) -> Result<()> {
    for (step, path) in list(folder)?.into_iter().rev().skip(keep.last) {
        let whole = path.ends_with(name_of(step, 0));
        let milestone = keep.every > 0 && step.is_multiple_of(keep.every);
        if !whole || !(milestone || keep.best == Some(step)) {
            remove(&path)?;
        }
    }
    Ok(())
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
        let step = step.map(|s| s.split_once('+').map_or(s, |(step, _)| step));
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
    let steps: Vec<_> = found.iter().map(|(step, _)| step.to_string()).collect();
    let reason = format!("no checkpoint of step {step}; there are those of {}", steps.join(", "));
    Err(fault(folder, reason))
}

/// The newest state under `folder` that can be loaded, with the checkpoint's folder; those passed over
/// are reported as warnings.
///
/// # Errors
/// As [`load`], for the newest, if there is none.
pub fn load_newest(
    folder: &Path,
    config: &Config,
    device: Device,
    data: u64,
    world: &World,
) -> Result<(PathBuf, TrainState)> {
    let mut first = None;
    let found = if folder.is_dir() { list(folder)? } else { vec![] };
    for (_, path) in found.into_iter().rev() {
        match load(&path, config, device, data, world) {
            Ok(state) => return Ok((path, state)),
            Err(e) => {
                tracing::warn!("{e}; going back to the one before");
                first.get_or_insert(e);
            }
        }
    }
    let none = || fault(folder, "no checkpoint here; start a new run, or name another --out");
    Err(first.unwrap_or_else(none))
}

/// Gives the checkpoints that were passed over for the one in `loaded` other names, `step-….damaged`, under
/// which they count for nothing: not as what training goes on from, nor among those to keep.
///
/// # Errors
/// [`Error::Io`].
pub fn set_aside_after(folder: &Path, loaded: &Path) -> Result<()> {
    for (_, path) in list(folder)?.into_iter().rev().take_while(|(_, path)| path != loaded) {
        let mut aside = path.clone().into_os_string();
        aside.push(".damaged");
        let aside = PathBuf::from(aside);
        if aside.exists() {
            fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))?;
        }
        fs::rename(&path, &aside).map_err(Error::io("rename", &path))?;
    }
    Ok(())
}

/// Reads the manifest and checks every file's length and hash.
///
/// # Errors
/// [`Error::Checkpoint`] naming the first file that is wrong.
pub fn verify(path: &Path) -> Result<Manifest> {
    let manifest = read_manifest(path)?;
    for (name, expected) in &manifest.files {
        let file = path.join(name);
        let found = record(&file).map_err(|e| fault(&file, e))?;
        if found.bytes != expected.bytes {
            let (has, wanted) = (found.bytes, expected.bytes);
            return Err(fault(&file, format!("has {has} bytes, the manifest says {wanted}")));
        }
        if found.sha256 != expected.sha256 {
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
pub fn load(
    path: &Path,
    config: &Config,
    device: Device,
    data: u64,
    world: &World,
) -> Result<TrainState> {
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
    let mut state = TrainState::in_world(config, world, (Kind::Float, device), false);
    for (name, mut tensors) in contents(&state) {
        read_tensors(&path.join(name), &mut tensors)?;
    }
    state.step = manifest.step;
    state.of_d = manifest.of_d.map(|d| d.restored(device));
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

/// Every tensor of a state, by file and name. Writing to them writes to the state; [`Params::rescale`]
/// then makes W/σ of them.
pub(crate) fn contents(state: &TrainState) -> Vec<(String, Named)> {
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

/// A tensor in host memory as safetensors writes it.
struct Host<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for Host<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        self.tensor.copy_data_u8(&mut bytes, self.tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

pub(crate) fn write_tensors(path: &Path, tensors: &Named) -> Result<FileRecord> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = dtype(tensor.kind())
            .ok_or_else(|| fault(path, format!("{name} is {:?}", tensor.kind())))?;
        let shape = tensor.size().into_iter().map(|side| side as usize).collect();
        views.push((name.as_str(), Host { tensor, dtype, shape }));
    }
    safetensors::serialize_to_file(views, None, path).map_err(|e| fault(path, e))?;
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))?;
    record(path).map_err(Error::io("read", path))
}

/// Length and hash of a file.
fn record(path: &Path) -> std::io::Result<FileRecord> {
    let (mut file, mut hasher) = (File::open(path)?, Sha256::new());
    let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
    let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileRecord { bytes, sha256 })
}

/// Fills `tensors` from a file that must hold exactly these names, shapes and types.
pub(crate) fn read_tensors(path: &Path, tensors: &mut Named) -> Result<()> {
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

/// What a safetensors file says of itself beside its tensors.
///
/// # Errors
/// [`Error::Checkpoint`].
pub(crate) fn note_of(path: &Path) -> Result<HashMap<String, String>> {
    let bytes = fs::read(path).map_err(|e| fault(path, e))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| fault(path, e))?;
    Ok(header.metadata().clone().unwrap_or_default())
}

/// Hexadecimal SHA-256 of a file.
///
/// # Errors
/// [`Error::Io`].
pub fn hash_of(path: &Path) -> Result<String> {
    Ok(record(path).map_err(Error::io("read", path))?.sha256)
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

#[cfg(test)]
mod tests;
