//! A run whose machine is gone, brought back from its mirror into an empty folder.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Component, Path};

use common::files::{sha256_of, sync_folder, sync_folder_of};
use common::stop::Stop;
use pipeline::{Store, Stored};

use super::folder::{Written, written};
use super::mirror::{CHECKPOINTS, MANIFEST, is_mirror, take_over, whole};
use super::session::{Found, is_ours};
use super::sessions::SESSIONS;
use crate::checkpoint;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::evaluations;
use crate::lock::Lock;
use crate::say;

/// A mirror that is this process's to write to.
#[derive(Debug)]
pub struct Taken(pub(super) String);

/// Where what comes lies until all of it is there. A folder with one holds nothing else that anybody could miss.
const COMING: &str = ".from-mirror.partial";

/// The settings of the run that a mirror holds, where a folder has no checkpoint, or was left while that run was brought:
/// what [`restore`] would bring. None where there is nothing to bring, or the folder holds a run.
///
/// # Errors
/// [`Error::Data`] where the mirror cannot be read: nothing says that there is no run in it; [`Error::Config`].
pub fn mirrored(out: &Path, url: &str) -> Result<Option<Config>> {
    let bare = [Found::Nothing, Found::Unsaved];
    if !out.join(COMING).is_dir() && !bare.contains(&Found::look(out)?) {
        return Ok(None);
    }
    let store = Store::open(url)?;
    if whole(&store.list()?).is_empty() || !is_mirror(&store, out)? {
        return Ok(None);
    }
    let text = store.read("config.toml")?.unwrap_or_default();
    Config::parse(&String::from_utf8_lossy(&text)).map(Some)
}

/// Brings the run in the mirror behind `url` into `out`: its newest sound checkpoint, settings, logs and pictures. What a
/// try before has brought of that checkpoint is not brought again.
///
/// # Errors
/// [`Error::Data`] where the mirror cannot be read, or `stop` is wanted; [`Error::Checkpoint`] where none of its
/// checkpoints is sound; [`Error::InUse`], [`Error::Io`].
pub fn restore(out: &Path, url: &str, stop: &Stop) -> Result<Taken> {
    let (store, aside) = (Store::open(url)?, out.join(COMING));
    fs::create_dir_all(out).map_err(Error::io("create", out))?;
    let _lock = Lock::take(out)?;
    let taken = Taken(take_over(&store)?);
    let there = store.list()?;
    fs::create_dir_all(&aside).map_err(Error::io("create", &aside))?;
    let from = store.url().display().to_string();
    say::note(format_args!("{}: bringing back what {from} holds", out.display()));
    let mut bad = None;
    let sound = whole(&there).into_iter().rev().find_map(|(step, name)| {
        let name = name.to_string_lossy().into_owned();
        match bring_checkpoint(&store, &name, &aside, stop) {
            Ok(()) => Some(Ok(step)),
            Err(e @ Error::Checkpoint { .. }) => {
                tracing::warn!("{from}: {e}; taking the one before");
                bad = Some(e);
                None
            }
            Err(e) => Some(Err(e)),
        }
    });
    let Some(step) = sound.transpose()? else {
        let reason = "no sound checkpoint in it any more".to_owned();
        let none = Error::Checkpoint { path: store.url().to_owned(), reason };
        return Err(bad.unwrap_or(none));
    };
    let logs = there.iter().filter(|stored| is_ours(first(&stored.name)) && stored.name != "lock");
    for stored in logs {
        bring_log(&store, stored, &aside, stop)?;
    }
    // By this line the mirror is known to be this folder's, whenever that goes on.
    evaluations::append(
        &aside.join(SESSIONS),
        &serde_json::json!({"event": "brought_back", "step": step, "mirror": &taken.0}),
    )?;
    give_places(&aside, out)?;
    say::note(format_args!("{}: brought back from {from}, step {step}", out.display()));
    Ok(taken)
}

/// Brings a checkpoint, and it alone: its manifest, then what the manifest names and is not here yet.
fn bring_checkpoint(store: &Store, name: &str, aside: &Path, stop: &Stop) -> Result<()> {
    let at = aside.join(CHECKPOINTS).join(name);
    keep_alone(&aside.join(CHECKPOINTS), name)?;
    let there = |file: &str| format!("{CHECKPOINTS}/{name}/{file}");
    bring(store, &there(MANIFEST), &at.join(MANIFEST), stop)?;
    for (file, record) in checkpoint::read_manifest(&at)?.files {
        let path = at.join(&file);
        if !is_name(&file) {
            let reason = format!("its manifest names {file:?}, which is no file of a checkpoint");
            return Err(Error::Checkpoint { path: at, reason });
        }
        let here = File::open(&path).and_then(sha256_of).ok();
        if here != Some((record.bytes, record.sha256)) {
            bring(store, &there(&file), &path, stop)?;
        }
    }
    checkpoint::verify(&at).map(drop)
}

/// Removes all that is in a folder but this.
fn keep_alone(folder: &Path, name: &str) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io("read", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("read", folder))?;
        if entry.file_name() != name {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether this is the name of a file in its folder.
fn is_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

/// Brings a file that may be gone by now, with the mirror's time.
fn bring_log(store: &Store, stored: &Stored, aside: &Path, stop: &Stop) -> Result<()> {
    let parts = Path::new(&stored.name).components();
    if !parts.into_iter().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(()); // nobody's file of a run
    }
    let path = aside.join(&stored.name);
    match bring(store, &stored.name, &path, stop) {
        Err(Error::Checkpoint { .. }) => remove(&path),
        brought => {
            brought?;
            let file =
                File::options().append(true).open(&path).map_err(Error::io("open", &path))?;
            file.set_modified(stored.modified).map_err(Error::io("write", &path))
        }
    }
}

/// Brings a file. One that is not there is an [`Error::Checkpoint`].
fn bring(store: &Store, name: &str, path: &Path, stop: &Stop) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    let read = store.read_with(name, |piece| {
        if stop.wanted() {
            return Err(pipeline::Error::Stopped);
        }
        file.write_all(piece).map_err(|source| {
            let path = path.to_owned();
            pipeline::Error::Io { action: "write", path, source }
        })
    });
    if read?.is_none() {
        let path = store.url().join(name);
        return Err(Error::Checkpoint { path, reason: "it is not there".to_owned() });
    }
    file.sync_all().map_err(Error::io("sync", path))?;
    sync_folder(folder).map_err(Error::io("sync", folder))
}

/// Refuses a folder into which a run was being brought.
///
/// # Errors
/// [`Error::Output`].
pub(super) fn check_whole(out: &Path) -> Result<()> {
    if !out.join(COMING).is_dir() {
        return Ok(());
    }
    let reason = "it was being brought back from a mirror; finish that by --resume=auto and the checkpoint.mirror that it \
        came from";
    Err(Error::Output { path: out.to_owned(), reason: reason.to_owned() })
}

/// The folder, or file, of a run that a name begins with.
fn first(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

/// Gives what lies aside its place. The sessions come first, by which the mirror is known to be this folder's: whatever else
/// lies there tells of a run. The settings come last: they make a run of the folder.
fn give_places(aside: &Path, out: &Path) -> Result<()> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(aside).map_err(Error::io("read", aside))? {
        let name = entry.map_err(Error::io("read", aside))?.file_name();
        names.insert((name == "config.toml", name != SESSIONS, name));
    }
    // Settings that somebody laid there may be all there is of them.
    let settings = out.join("config.toml");
    if settings.is_file() && !matches!(written(out)?, Written::This(_)) {
        let kept = checkpoint::free(&out.join("config.toml.before"))?;
        fs::copy(&settings, &kept).map_err(Error::io("copy", &settings))?;
        say::note(format_args!("the config.toml that lay there is kept as {}", kept.display()));
    }
    for (_, _, name) in names {
        let (from, to) = (aside.join(&name), out.join(&name));
        // A file takes another's place at once.
        if from.is_dir() || to.is_dir() {
            remove(&to)?;
        }
        fs::rename(&from, &to).map_err(Error::io("rename", &from))?;
    }
    sync_folder(out).map_err(Error::io("sync", out))?;
    fs::remove_dir(aside).map_err(Error::io("remove", aside))?;
    sync_folder(out).and_then(|()| sync_folder_of(out)).map_err(Error::io("sync", out))
}

/// Removes a file or folder that may be there.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    removed.map_err(Error::io("remove", path))
}
