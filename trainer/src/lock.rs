//! The right to write to a run's folder.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The right to write to a folder, for as long as it lives. A process that dies gives it back.
#[derive(Debug)]
pub struct Lock {
    out: PathBuf,
    /// Device and inode of the folder.
    folder: (u64, u64),
    file: Mutex<File>,
}

/// What the holder of a [`Lock`] writes into it.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    host: String,
    since: String,
}

impl Lock {
    /// Takes the right to write to `out`.
    ///
    /// # Errors
    /// [`Error::InUse`] naming who has it; [`Error::Io`].
    pub fn take(out: &Path) -> Result<Self> {
        let path = out.join("lock");
        let folder = fs::metadata(out).map_err(Error::io("look at", out))?;
        // Not emptied: while it is locked it says by whom.
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(|e| match fs::symlink_metadata(&path) {
            Ok(of) if !of.is_file() => Error::Output {
                path: out.to_owned(),
                reason: format!("its lock is not a file of a trainer ({e}): remove it"),
            },
            _ => Error::io("open", &path)(e),
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let read = file.read_to_string(&mut text).ok();
                let holder = read.and_then(|_| serde_json::from_str::<Holder>(&text).ok());
                let who = holder.map_or_else(String::new, |Holder { pid, host, since }| {
                    format!(" (process {pid} on {host}, since {since})")
                });
                let reason =
                    format!("another trainer{who} is writing to it; wait for it or stop it");
                return Err(Error::InUse { path: out.to_owned(), reason });
            }
            Err(TryLockError::Error(e)) => {
                let words = "the run's folder must be on a file system that has locks (flock)";
                let e = std::io::Error::new(e.kind(), format!("{e}; {words}"));
                return Err(Error::io("lock", &path)(e));
            }
        }
        let ours = file.metadata().map_err(Error::io("look at", &path))?;
        if !fs::metadata(&path).is_ok_and(|there| identity(&there) == identity(&ours)) {
            let reason = "its lock was removed just now; try again".to_owned();
            return Err(Error::InUse { path: out.to_owned(), reason });
        }
        write_holder(&mut file, &path);
        let (out, folder) = (out.to_owned(), identity(&folder));
        Ok(Self { out, folder, file: Mutex::new(file) })
    }

    /// Whether `out` is still the folder that is held: before anything is written to it by name. A lock that
    /// somebody removed is taken again, unless another trainer came first.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder went away; [`Error::InUse`] where another is in its place.
    pub fn check(&self) -> Result<()> {
        let path = self.out.join("lock");
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = held.metadata().map_err(Error::io("look at", &path))?;
        let exchanged = || {
            let reason = "the folder was exchanged, or its lock removed and taken by another trainer; nothing more \
                is written to it: stop this one, or put its own folder back";
            Error::InUse { path: self.out.clone(), reason: reason.to_owned() }
        };
        match fs::metadata(&path) {
            Ok(there) if identity(&there) == identity(&ours) => Ok(()),
            Ok(_) => Err(exchanged()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let folder = fs::metadata(&self.out).map_err(Error::io("look at", &self.out))?;
                if identity(&folder) != self.folder {
                    return Err(exchanged());
                }
                let new = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
                let mut new = match new {
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                        return Err(exchanged());
                    }
                    new => new.map_err(Error::io("open", &path))?,
                };
                if new.try_lock().is_err() {
                    return Err(exchanged());
                }
                tracing::warn!("{}: was removed; taken again", path.display());
                write_holder(&mut new, &path);
                *held = new;
                Ok(())
            }
            Err(e) => Err(Error::io("look at", &path)(e)),
        }
    }
}

/// Whether a trainer is at work in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// On this machine.
    Here,
    /// Not on this machine.
    No,
    /// Who took it last is of another machine, whose locks are not known here.
    Elsewhere(String),
}

/// Who holds the [`Lock`] of a folder. Nothing is taken: a run that begins meanwhile meets nobody.
#[must_use]
pub fn held(out: &Path) -> Held {
    let path = out.join("lock");
    let (Ok(meta), Ok(text)) = (fs::metadata(&path), fs::read_to_string(&path)) else {
        return Held::No;
    };
    let holder = serde_json::from_str::<Holder>(&text).ok();
    if let Some(Holder { host, .. }) = holder.filter(|holder| holder.host != common::host()) {
        return Held::Elsewhere(host);
    }
    // "1: FLOCK ADVISORY WRITE 1234 fe:01:5678 0 EOF"; a file system of layers has a device number of its own there.
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let inode = meta.ino().to_string();
    let ours = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, place) = (words.next(), words.nth(3));
        kind == Some("FLOCK") && place.and_then(|p| p.rsplit(':').next()) == Some(&*inode)
    };
    if locks.lines().any(|line| ours(&line)) { Held::Here } else { Held::No }
}

fn identity(of: &fs::Metadata) -> (u64, u64) {
    (of.dev(), of.ino())
}

/// Who holds it is for people: a full disk does not stop a run here.
fn write_holder(file: &mut File, path: &Path) {
    let holder = Holder { pid: std::process::id(), host: common::host(), since: common::now() };
    let mut write = || {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&serde_json::to_vec(&holder)?)
    };
    if let Err(e) = write() {
        tracing::warn!("{}: {e}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_exchanged_is_noticed_and_a_lock_that_was_removed_is_taken_again() {
        let parent = tempfile::tempdir().unwrap();
        let [ours, other, away] = ["run", "other", "away"].map(|name| parent.path().join(name));
        fs::create_dir(&ours).unwrap();
        fs::create_dir(&other).unwrap();
        let held = Lock::take(&ours).unwrap();
        held.check().unwrap();
        assert!(matches!(Lock::take(&ours), Err(Error::InUse { .. })));
        // Removed: still ours, and nobody else's.
        fs::remove_file(ours.join("lock")).unwrap();
        held.check().unwrap();
        assert!(matches!(Lock::take(&ours), Err(Error::InUse { .. })));
        // Removed, and another was quicker.
        fs::remove_file(ours.join("lock")).unwrap();
        let second = Lock::take(&ours).unwrap();
        assert!(matches!(held.check(), Err(Error::InUse { .. })));
        second.check().unwrap();
        drop(held);
        // Moved away, with nothing, with another folder, and with another run in its place.
        fs::rename(&ours, &away).unwrap();
        assert!(matches!(second.check(), Err(Error::Io { .. })));
        fs::create_dir(&ours).unwrap();
        assert!(matches!(second.check(), Err(Error::InUse { .. })));
        assert!(!ours.join("lock").exists());
        let third = Lock::take(&ours).unwrap();
        assert!(matches!(second.check(), Err(Error::InUse { .. })));
        drop(third);
        fs::remove_dir_all(&ours).unwrap();
        fs::rename(&away, &ours).unwrap();
        second.check().unwrap();
    }
}
