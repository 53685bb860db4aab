//! A run whose machine is gone, brought back from its mirror into an empty folder.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Component, Path};
use std::time::SystemTime;

use common::files::{sync_folder, sync_folder_of};
use pipeline::{Store, Stored};

use super::mirror::{CHECKPOINTS, whole};
use super::session::{Found, is_ours};
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::say;

/// Where what comes lies until all of it is there. A folder with one holds nothing but what came from the mirror.
const COMING: &str = ".from-mirror.partial";

/// Brings the run in the mirror behind `url` into `out`, where that is empty, or was left while one was brought: its
/// newest sound checkpoint, settings, logs and pictures. Whether there was one.
///
/// # Errors
/// [`Error::Data`] where the mirror cannot be read: nothing says that there is no run in it; [`Error::Checkpoint`] where
/// none of its checkpoints is sound; [`Error::InUse`], [`Error::Io`].
pub fn restore(out: &Path, url: &str) -> Result<bool> {
    let aside = out.join(COMING);
    let again = aside.is_dir();
    if !again && Found::look(out)? != Found::Nothing {
        return Ok(false);
    }
    let store = Store::open(url)?;
    let there = store.list()?;
    let checkpoints = whole(&there);
    if checkpoints.is_empty() && !again {
        return Ok(false);
    }
    fs::create_dir_all(out).map_err(Error::io("create", out))?;
    let _lock = Lock::take(out)?;
    // What was half there may be of an older state.
    remove(&aside)?;
    fs::create_dir(&aside).map_err(Error::io("create", &aside))?;
    let mut bad = None;
    let sound = checkpoints.iter().rev().find_map(|(step, name)| {
        let folder = format!("{CHECKPOINTS}/{}/", name.display());
        let files = there.iter().filter(|stored| stored.name.starts_with(&folder));
        let brought = files.into_iter().try_for_each(|stored| bring(&store, stored, &aside));
        let at = aside.join(CHECKPOINTS).join(name);
        match brought.and_then(|()| checkpoint::verify(&at)) {
            Ok(_) => Some(Ok(*step)),
            Err(e @ Error::Checkpoint { .. }) => {
                tracing::warn!("{}: {e}; taking the one before", store.url().display());
                bad = Some(e);
                remove(&at).err().map(Err)
            }
            Err(e) => Some(Err(e)),
        }
    });
    let Some(step) = sound.transpose()? else {
        let reason = "no sound checkpoint in it any more".to_owned();
        let none = Error::Checkpoint { path: store.url().to_owned(), reason };
        return Err(bad.unwrap_or(none));
    };
    for stored in there.iter().filter(|stored| is_ours(first(&stored.name))) {
        bring(&store, stored, &aside)?;
    }
    take_over(&aside, out)?;
    let from = store.url().display();
    say::note(format_args!("{}: brought back from {from}, step {step}", out.display()));
    Ok(true)
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

/// Writes a file of the mirror into `aside`, with the mirror's time.
fn bring(store: &Store, stored: &Stored, aside: &Path) -> Result<()> {
    let name = Path::new(&stored.name);
    if !name.components().all(|part| matches!(part, Component::Normal(_)))
        || name == Path::new("lock")
    {
        return Ok(()); // nobody's file of a run
    }
    let path = aside.join(name);
    let folder = path.parent().unwrap_or(aside);
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let write = Error::io("write", &path);
    let mut file = File::create(&path).map_err(Error::io("create", &path))?;
    let mut failed = None;
    let read = store.read_with(&stored.name, |piece| {
        file.write_all(piece).map_err(|source| {
            let copy = std::io::Error::from(source.kind());
            failed = Some(source);
            pipeline::Error::Io { action: "write", path: path.clone(), source: copy }
        })
    });
    if let Some(source) = failed {
        return Err(write(source));
    }
    read?;
    let modified: SystemTime = stored.modified;
    file.set_modified(modified).and_then(|()| file.sync_all()).map_err(write)?;
    sync_folder(folder).map_err(Error::io("sync", folder))
}

/// Gives what lies aside its place, the settings last: they make a run of the folder.
fn take_over(aside: &Path, out: &Path) -> Result<()> {
    let mut names = vec![];
    for entry in fs::read_dir(aside).map_err(Error::io("read", aside))? {
        names.push(entry.map_err(Error::io("read", aside))?.file_name());
    }
    names.sort_by_key(|name| name == "config.toml");
    for name in names {
        let (from, to) = (aside.join(&name), out.join(&name));
        remove(&to)?;
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
