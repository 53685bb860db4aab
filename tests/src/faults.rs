//! Programs under a library that writes down what they do to files and makes some of it fail:
//! `tests/faults/preload.c`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The calls that a fault is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Opening a file to write to it.
    Open,
    /// Writing to a file, or cutting it.
    Write,
    /// Bringing a file or folder to the disk.
    Fsync,
    /// Giving a file or folder another name.
    Rename,
    /// Any of these, and making and removing files and folders.
    Any,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails: the device does.
    Eio,
    /// It fails: the disk is full.
    Enospc,
    /// It fails: the file system is read-only.
    Erofs,
    /// SIGKILL comes before it.
    Kill,
}

/// Which call is to fail, and how.
#[derive(Debug, Clone)]
pub struct Failing<'a> {
    /// Of which kind it is.
    pub call: Call,
    /// Pattern of its path, as a shell's; `*` is anything, slashes too.
    pub path: &'a str,
    /// Its number among those, from 1.
    pub at: u64,
    /// Whether all that follow fail, too.
    pub onwards: bool,
    /// How.
    pub fault: Fault,
}

/// Lets a command's clock go back an hour at its `every`th reading, forth again at twice that, and so on.
pub fn turn_back(command: &mut Command, every: u64) {
    command.env("LD_PRELOAD", env!("FAULTS")).env("FAULT_CLOCK", every.to_string());
}

/// Lets a command write down its calls on files into `log`.
pub fn watch(command: &mut Command, log: &Path) {
    command.env("LD_PRELOAD", env!("FAULTS")).env("FAULT_LOG", log);
}

/// Lets a command's call fail.
pub fn hurt(command: &mut Command, failing: &Failing<'_>) {
    let word = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    let at = format!("{}{}", failing.at, if failing.onwards { "+" } else { "" });
    command
        .env("LD_PRELOAD", env!("FAULTS"))
        .env("FAULT_CALL", word(&failing.call))
        .env("FAULT_MATCH", failing.path)
        .env("FAULT_AT", at)
        .env("FAULT_DO", word(&failing.fault));
}

/// A call on a file that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file was opened that may not have been there.
    Created(PathBuf),
    /// Bytes went into a file, or it was cut.
    Written(PathBuf),
    /// A file, or a folder's names, went to the disk.
    Synced(PathBuf),
    /// A file or folder got another name.
    Renamed(PathBuf, PathBuf),
}

/// The calls of a log that succeeded, in order, on what lies below `root`.
///
/// # Panics
/// If there is no such log.
#[must_use]
pub fn events(log: &Path, root: &Path) -> Vec<Event> {
    let text = fs::read_to_string(log).expect("the library wrote a log");
    let event = |line: &str| {
        let parts: Vec<&str> = line.split('\t').collect();
        let path = |at: usize| parts.get(at).map(PathBuf::from);
        let event = match (*parts.first()?, *parts.last()?) {
            ("create", "0") => Event::Created(path(1)?),
            ("write", "0") => Event::Written(path(1)?),
            ("fsync", "0") => Event::Synced(path(1)?),
            ("rename", "0") => Event::Renamed(path(1)?, path(2)?),
            _ => return None,
        };
        path(1)?.starts_with(root).then_some(event)
    };
    text.lines().filter_map(event).collect()
}

/// What a power cut could undo or tear, in words, though the program went on or ended well:
///
/// - a file that got its name before its last bytes were synced, or in a folder that was not synced
///   after;
/// - a folder that got its name before a file in it, or the names in it, were synced (a file that some
///   library gives its name behind the back of libc counts as well);
/// - a file that was written under the name that it keeps, unless `grows` says that it is one to which
///   lines are added.
#[must_use]
pub fn at_risk(events: &[Event], grows: impl Fn(&Path) -> bool) -> Vec<String> {
    // Files with bytes, and folders with names, that are not on the disk; what was synced.
    let (mut bytes, mut names, mut synced) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    // Files that have the name they were written under, and folders that were given a name in.
    let (mut in_place, mut named) = (BTreeSet::new(), BTreeSet::new());
    let mut found = vec![];
    let folder = |path: &Path| path.parent().unwrap_or(path).to_owned();
    for event in events {
        match event {
            Event::Created(path) => {
                names.insert(folder(path));
                in_place.insert(path.clone());
            }
            Event::Written(path) => {
                bytes.insert(path.clone());
            }
            Event::Synced(path) => {
                bytes.remove(path);
                names.remove(path);
                named.remove(path);
                synced.insert(path.clone());
            }
            Event::Renamed(from, to) => {
                let below = |set: &BTreeSet<PathBuf>| -> Vec<PathBuf> {
                    set.iter().filter(|path| path.starts_with(from)).cloned().collect()
                };
                let moved = |path: &Path| match path.strip_prefix(from) {
                    Ok(rest) if rest != Path::new("") => to.join(rest),
                    _ => to.clone(),
                };
                let mut lost: BTreeSet<_> =
                    below(&bytes).into_iter().chain(below(&names)).collect();
                // Without one that is gone in the end, as are those with another name that was not seen.
                lost.retain(|path| path == from || moved(path).exists());
                let kept = files(to).into_iter();
                let kept = kept.map(|path| from.join(path.strip_prefix(to).unwrap_or(&path)));
                lost.extend(kept.filter(|path| !synced.contains(path)));
                for path in lost {
                    let (path, to) = (path.display(), to.display());
                    found.push(format!("{path} is not on the disk as {to} gets its name"));
                }
                in_place.retain(|path| !path.starts_with(from) && path != to);
                for set in [&mut bytes, &mut names, &mut synced] {
                    for old in below(set) {
                        set.remove(&old);
                        set.insert(moved(&old));
                    }
                }
                named.insert(folder(to));
                names.insert(folder(to));
            }
        }
    }
    let unsynced = named.iter().map(|path| format!("{}: a new name is not synced", path.display()));
    let torn = in_place.iter().filter(|path| path.exists() && !grows(path));
    let torn = torn.map(|path| format!("{} was written where it stays", path.display()));
    found.into_iter().chain(unsynced).chain(torn).collect()
}

/// The files below a folder, as they are now; none of a file.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(below).collect()
}
