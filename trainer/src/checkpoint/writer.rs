//! Writing checkpoints while training goes on, and removing those that are no longer kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bigbigan_model::state::TrainState;
use common::files::{self, sync_folder, sync_folder_of};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tch::{Device, Kind, Tensor};
use torch_ext::memory::{copy_non_blocking, pin_memory};

use super::{
    FORMAT, Files, Manifest, Named, PendingRecord, Position, adam_steps, contents, fault, list,
    name_of, write_manifest, write_tensors,
};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::provenance::Provenance;

/// Which checkpoints stay. That of step 0 is not among them: it goes when another is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many.
    pub last: usize,
    /// Those whose step is a multiple of this; 0 for none.
    pub every: u64,
    /// The best by the run's measure, where there is one.
    pub best: Option<u64>,
}

impl Keep {
    /// Whether the checkpoint in `path` stays however many newer ones there are.
    fn for_good(&self, step: u64, path: &Path) -> bool {
        let milestone = self.every > 0 && step.is_multiple_of(self.every);
        step > 0 && path.ends_with(name_of(step, 0)) && (milestone || self.best == Some(step))
    }

    /// Which of `all`, oldest first, do not stay.
    pub(crate) fn dropped<'a>(&self, all: &'a [(u64, PathBuf)]) -> Vec<&'a Path> {
        let begun = all.len() > 1 && all[0].1.ends_with(name_of(0, 0));
        let (first, later) = all.split_at(usize::from(begun));
        let old = later.iter().rev().skip(self.last);
        let old = old.filter(|(step, path)| !self.for_good(*step, path));
        first.iter().chain(old).map(|(_, path)| path.as_path()).collect()
    }
}

/// Asked before anything in the folder of checkpoints is changed; what it refuses is not done.
#[derive(Clone)]
pub struct Guard(Arc<dyn Fn() -> Result<()> + Send + Sync>);

impl Guard {
    /// A guard that asks a function.
    pub fn new(ask: impl Fn() -> Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// Asks.
    ///
    /// # Errors
    /// What it refuses by.
    pub(crate) fn ask(&self) -> Result<()> {
        (self.0)()
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

/// Writes checkpoints under a run's `checkpoints` while training goes on.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    guard: Guard,
    /// What every manifest says of the run and of this session.
    config: String,
    provenance: Provenance,
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
    /// Why those that are no longer kept could not all be removed.
    pub not_removed: Option<String>,
}

impl Writer {
    /// A writer into `folder`, which is made, of the checkpoints of a session. What an earlier one left half
    /// done is removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(
        folder: &Path,
        config: &Config,
        provenance: Provenance,
        guard: Guard,
    ) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        sync_folder_of(folder).map_err(Error::io("sync", folder))?;
        for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let path = entry.map_err(Error::io("read", folder))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let ends = [".partial", ".replaced", ".removed"];
            let half = |n: &str| n.starts_with(".step-") && ends.iter().any(|end| n.ends_with(end));
            if name.is_some_and(|name| half(&name))
                && let Err(e) = fs::remove_dir_all(&path)
            {
                tracing::warn!("{}: {e}; half a checkpoint, it stays", path.display());
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            guard,
            config: config.to_toml(),
            provenance,
            newest: None,
            under_way: None,
            staging: vec![],
            saved: None,
        })
    }

    /// Copies the state to host memory and writes the copy in the background, then removes what `keep`
    /// does not name. Waits for the checkpoint before it, if that is still being written. Where the disk has
    /// no room, the oldest of those that `keep` names go, one after the other, but never the newest.
    ///
    /// # Errors
    /// Those of the checkpoint before; this one is then not begun, and may be asked for again.
    pub fn save(&mut self, state: &TrainState, at: Position, keep: Keep) -> Result<()> {
        let asked = Instant::now();
        self.finish()?;
        self.guard.ask()?;
        let name = name_of(state.step, state.pending_d.as_ref().map_or(0, |d| d.updates));
        if self.newest.as_ref() == Some(&name) {
            return Ok(());
        }
        let mut snapshot = Snapshot::of(state, at, std::mem::take(&mut self.staging))?;
        snapshot.manifest.config_sha256 = files::sha256(self.config.as_bytes());
        snapshot.manifest.config = self.config.clone();
        snapshot.manifest.provenance = Some(self.provenance.now());
        self.newest = Some(name.clone());
        let (folder, guard) = (self.folder.clone(), self.guard.clone());
        let (bytes, held) = (snapshot.bytes(), asked.elapsed());
        let write = move || {
            let begun = Instant::now();
            snapshot.write_making_room(&folder, keep, &guard)?;
            let not_removed = guard
                .ask()
                .and_then(|()| remove_all_but(&folder, keep))
                .err()
                .map(|e| e.to_string());
            let saved = Saved { name, bytes, held, writing: begun.elapsed(), not_removed };
            Ok((Some(saved), snapshot.files))
        };
        self.spawn(write)
    }

    /// The state went back: what is saved next is another state, though its step may be that of the last.
    pub fn go_back(&mut self) {
        self.newest = None;
    }

    /// Gets the memory for copies of `state` ready in the background, so that the first checkpoint holds
    /// training up no longer than the others.
    ///
    /// # Errors
    /// [`Error::Io`] where no thread starts.
    pub fn prepare(&mut self, state: &TrainState) -> Result<()> {
        let files = contents(state);
        let (layout, locked) = (layout(&files), device_of(&files).is_cuda());
        self.spawn(move || Ok((None, host_memory(layout, locked)?)))
    }

    fn spawn(&mut self, work: impl FnOnce() -> Result<Done> + Send + 'static) -> Result<()> {
        let spawned = std::thread::Builder::new().name("checkpoint".into()).spawn(work);
        let spawned = spawned.inspect_err(|_| self.newest = None);
        self.under_way = Some(spawned.map_err(Error::io("start a thread for", &self.folder))?);
        Ok(())
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// Those of the checkpoint that was being written. The ones before it are as they were.
    pub fn finish(&mut self) -> Result<()> {
        let outcome = match self.under_way.take().map(JoinHandle::join) {
            None => return Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(fault(&self.folder, "the writing thread panicked")),
        };
        match outcome {
            Ok((saved, staging)) => {
                // What reached the disk is told of, whatever came after it.
                self.saved = saved.or(self.saved.take());
                self.staging = staging;
                Ok(())
            }
            Err(e) => {
                self.newest = None;
                Err(e)
            }
        }
    }

    /// The newest checkpoint that reached the disk since the last call. Waits for none.
    ///
    /// # Errors
    /// Those of the checkpoint that was being written.
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
/// [`Error::Full`].
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
    Err(Error::Full { path: folder.to_owned(), reason })
}

/// A copy of a state in host memory.
struct Snapshot {
    /// Its `files` are still empty.
    manifest: Manifest,
    files: Vec<(String, Named)>,
}

impl Snapshot {
    /// Copies `state` to `staging`, where that holds a copy of the same tensors, or else to new memory.
    fn of(state: &TrainState, at: Position, mut staging: Files) -> Result<Self> {
        let files = contents(state);
        if layout(&staging) != layout(&files) {
            staging = host_memory(layout(&files), device_of(&files).is_cuda())?;
        }
        for ((_, to), (_, from)) in staging.iter().zip(&files) {
            to.iter().zip(from).for_each(|((_, to), (_, from))| copy_non_blocking(to, from));
        }
        // One wait for all of them.
        torch_ext::stream::synchronize(device_of(&files))?;
        let manifest = Manifest {
            own_sha256: None,
            format: FORMAT,
            step: state.step,
            pending_d: state.pending_d.as_ref().map(PendingRecord::of),
            cursor: at.cursor,
            adam_steps: adam_steps(state),
            rollbacks: state.rollbacks,
            data_fingerprint: at.fingerprint,
            threads: tch::get_num_threads(),
            config: String::new(),
            config_sha256: String::new(),
            provenance: None,
            files: BTreeMap::new(),
        };
        Ok(Self { manifest, files: staging })
    }

    /// About what its files will take.
    fn bytes(&self) -> u64 {
        let size = |t: &Tensor| (t.numel() * t.kind().elt_size_in_bytes() + 200) as u64;
        self.files.iter().flat_map(|(_, tensors)| tensors).map(|(_, t)| size(t)).sum()
    }

    fn write_making_room(&mut self, folder: &Path, keep: Keep, guard: &Guard) -> Result<()> {
        loop {
            guard.ask()?;
            let written = room_for(folder, self.bytes()).and_then(|()| self.write(folder, guard));
            let Err(error) = written else { return Ok(()) };
            let spare = if error.is_full() { oldest_spare(folder, keep)? } else { None };
            let Some(spare) = spare else { return Err(error) };
            tracing::warn!("{error}; {} is removed to make room", spare.display());
            remove(&spare)?;
        }
    }

    /// Writes a folder aside, syncs it and gives it its name.
    fn write(&mut self, folder: &Path, guard: &Guard) -> Result<()> {
        let name = name_of(self.manifest.step, self.manifest.pending_d.map_or(0, |d| d.updates));
        let (path, aside) = (folder.join(&name), folder.join(format!(".{name}.partial")));
        let written = self.write_aside(&aside).and_then(|()| {
            // Writing took its time.
            guard.ask()?;
            give_name(&aside, &path).map_err(Error::io("rename", &aside))?;
            sync_folder(folder).map_err(Error::io("sync", folder))
        });
        if aside.exists() {
            // Half a checkpoint, which takes room, or the one that was replaced.
            let removed = fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside));
            return written.and(removed);
        }
        written
    }

    fn write_aside(&mut self, aside: &Path) -> Result<()> {
        fs::create_dir(aside).map_err(Error::io("create", aside))?;
        for (name, tensors) in &self.files {
            let record = write_tensors(&aside.join(name), tensors)?;
            self.manifest.files.insert(name.clone(), record);
        }
        write_manifest(aside, &mut self.manifest)
    }
}

/// Gives a folder the name `path`. One that has it is never missing meanwhile: they change names. Where a file
/// system cannot do that, it has another name for a moment; a process that is killed just then loses it.
fn give_name(aside: &Path, path: &Path) -> std::io::Result<()> {
    if !path.exists() {
        return fs::rename(aside, path);
    }
    match renameat_with(CWD, aside, CWD, path, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            let replaced = aside.with_extension("replaced");
            fs::rename(path, &replaced)?;
            fs::rename(aside, path)?;
            fs::remove_dir_all(replaced)
        }
        done => Ok(done?),
    }
}

/// Bytes whose multiples tensors begin at within a piece of memory.
const ALIGNED: u64 = 64;

/// By file: names, shapes and types.
type Layout = Vec<(String, Vec<(String, Vec<i64>, Kind)>)>;

fn layout(files: &Files) -> Layout {
    let of = |(name, t): &(String, Tensor)| (name.clone(), t.size(), t.kind());
    files.iter().map(|(file, all)| (file.clone(), all.iter().map(of).collect())).collect()
}

/// Where the tensors of a state are.
fn device_of(files: &Files) -> Device {
    let first = files.iter().flat_map(|(_, all)| all).next();
    first.map_or(Device::Cpu, |(_, tensor)| tensor.device())
}

/// Tensors of zeros in host memory: written to, so that the system has really given it. `locked`: each file's in one
/// piece of page-locked memory, to which a device copies while it is at work.
fn host_memory(layout: Layout, locked: bool) -> Result<Files> {
    let file = |(file, all): (String, Vec<(String, Vec<i64>, Kind)>)| {
        if !locked {
            let zeros = |(name, shape, kind): (String, Vec<i64>, Kind)| {
                (name, Tensor::zeros(shape, (kind, Device::Cpu)))
            };
            return Ok((file, all.into_iter().map(zeros).collect()));
        }
        let bytes = |shape: &[i64], kind: Kind| {
            let bytes = shape.iter().product::<i64>() * kind.elt_size_in_bytes() as i64;
            (bytes, (bytes as u64).next_multiple_of(ALIGNED) as i64)
        };
        let whole: i64 = all.iter().map(|(_, shape, kind)| bytes(shape, *kind).1).sum();
        let piece = pin_memory(&Tensor::zeros([whole], (Kind::Uint8, Device::Cpu)));
        let piece = piece.map_err(|reason| Error::from(torch_ext::Error::said(&reason)))?;
        let mut at = 0;
        let part = |(name, shape, kind): (String, Vec<i64>, Kind)| {
            let (bytes, room) = bytes(&shape, kind);
            let part = piece.narrow(0, at, bytes).view_dtype(kind).view(shape.as_slice());
            at += room;
            (name, part)
        };
        Ok((file, all.into_iter().map(part).collect()))
    };
    layout.into_iter().map(file).collect()
}

/// Removes a checkpoint: it loses its name first, so that none is ever found half removed.
pub(super) fn remove(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = path.with_file_name(format!(".{name}.removed"));
    files::rename(path, &aside).map_err(Error::io("rename", path))?;
    fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))
}

fn remove_all_but(folder: &Path, keep: Keep) -> Result<()> {
    keep.dropped(&list(folder)?).into_iter().try_for_each(remove)
}

/// The oldest checkpoint that may go where there is no room for another: not the newest, nor one that is
/// kept for good.
pub(super) fn oldest_spare(folder: &Path, keep: Keep) -> Result<Option<PathBuf>> {
    let mut all = list(folder)?;
    all.pop();
    Ok(all.into_iter().find(|(step, path)| !keep.for_good(*step, path)).map(|(_, path)| path))
}
