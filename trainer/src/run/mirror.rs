//! A copy of a run's folder behind a URL (`checkpoint.mirror`), kept while training goes on: what a run goes on from
//! where its machine is gone.
//!
//! `mirror.json` there says whose copy it is and which session writes to it: it is written first, and looked at before
//! every write, so that a session that another one took over from leaves it alone. A pass brings the logs, the settings,
//! the pictures and the report, then the checkpoints, the newest first: their files are read back and compared with the
//! manifest's hashes, and the manifest comes last, so that a checkpoint with one is whole. Those that are no longer kept
//! lose their manifest first. A pass that fails ends nothing; the next checkpoint asks for another.

mod mark;
mod thread;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pipeline::{Store, Stored};

use self::mark::{Mark, begins_with, knows, mark, run_of, session_name, write_mark};
pub(super) use self::mark::{is_mirror, take_over};
pub(super) use self::thread::Mirror;
use super::session::is_ours;
use super::sessions::SESSIONS;
use crate::checkpoint::{self, Keep};
use crate::config::Config;
use crate::error::{Error, Result};

/// The folder of checkpoints, here and there.
pub(super) const CHECKPOINTS: &str = "checkpoints";
pub(super) const MANIFEST: &str = "manifest.json";
/// The folders of a run.
const FOLDERS: [&str; 3] = [CHECKPOINTS, "images", "events"];
/// What makes a folder behind a URL a mirror.
pub(super) const MARK: &str = "mirror.json";

/// Times that checkpoints are brought anew which training has replaced meanwhile.
const TRIES: usize = 3;

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed {
    /// The step of the run's newest checkpoint, which is there; none where the run has none yet.
    pub(super) step: Option<u64>,
}

/// A run's folder and its copy.
#[derive(Debug)]
pub(super) struct Copied {
    out: PathBuf,
    store: Store,
    /// [`Config::computes_sha256`] of the run.
    computes: String,
    /// This session's name.
    session: String,
    /// Whether it has said so there.
    claimed: bool,
    /// The manifests of checkpoints that were verified there in this session.
    verified: BTreeMap<String, Vec<u8>>,
    /// Length and time of the logs that were brought there in this session.
    brought: BTreeMap<String, (u64, SystemTime)>,
}

/// Names of the whole checkpoints in a copy, oldest first.
pub(super) fn whole(there: &[Stored]) -> Vec<(u64, PathBuf)> {
    let name = |stored: &Stored| {
        let (folder, file) = of_checkpoint(&stored.name)?;
        (file == MANIFEST).then(|| PathBuf::from(folder))
    };
    checkpoint::in_order(there.iter().filter_map(name))
}

/// The folder's and the file's name, of a file of a checkpoint.
fn of_checkpoint(name: &str) -> Option<(&str, &str)> {
    let (folder, file) = name.strip_prefix(CHECKPOINTS)?.strip_prefix('/')?.split_once('/')?;
    let ours = file == MANIFEST || file.ends_with(".safetensors");
    let named = !checkpoint::in_order([PathBuf::from(folder)]).is_empty();
    (ours && named && !file.contains('/')).then_some((folder, file))
}

impl Copied {
    /// The copy of the run in `out`, which this process may have taken over ([`take_over`]). Nothing is read.
    ///
    /// # Errors
    /// [`Error::Data`] for what is no such URL; [`Error::Output`] for one that leads into the run's own folder.
    pub(super) fn new(out: &Path, config: &Config, taken: Option<String>) -> Result<Self> {
        let store = Store::open(&config.checkpoint.mirror)?;
        let real = |path: &Path| fs::canonicalize(path).or_else(|_| std::path::absolute(path));
        if let (Some(local), Ok(ours)) = (store.local(), real(out))
            && let Ok(theirs) = real(local)
            && (theirs.starts_with(&ours) || ours.starts_with(&theirs))
        {
            let reason = "checkpoint.mirror lies in the run's folder, or that in it: name another"
                .to_owned();
            return Err(Error::Output { path: out.to_owned(), reason });
        }
        Ok(Self {
            out: out.to_owned(),
            store,
            computes: config.computes_sha256(),
            claimed: taken.is_some(),
            session: taken.unwrap_or_else(session_name),
            verified: BTreeMap::new(),
            brought: BTreeMap::new(),
        })
    }

    /// Where it is, for people.
    pub(super) fn url(&self) -> &Path {
        self.store.url()
    }

    /// Refuses a folder that holds something else, the copy of another run, or of this one from where it went on
    /// elsewhere: one whose sessions are not the first of this folder's.
    ///
    /// # Errors
    /// [`Error::Output`]; [`Error::Data`] where it cannot be read.
    pub(super) fn check(&self) -> Result<()> {
        self.check_own(&self.store.list()?)
    }

    fn refuse<T>(&self, reason: &str) -> Result<T> {
        Err(Error::Output { path: self.url().to_owned(), reason: reason.to_owned() })
    }

    fn check_own(&self, there: &[Stored]) -> Result<()> {
        // What a console made for an empty folder is nothing.
        let folder = |of: &Stored| of.bytes == 0 && FOLDERS.contains(&of.name.as_str());
        let Some(first) = there.iter().find(|stored| !folder(stored)) else { return Ok(()) };
        let Some(mark) = mark(&self.store)? else {
            let first = &first.name;
            return self.refuse(&format!(
                "it is no mirror of a run, and not empty ({first}); name an empty folder as checkpoint.mirror"
            ));
        };
        if self.claimed {
            return self.check_claim();
        }
        if whole(there).is_empty() {
            // Of a run that never came to a checkpoint there, by this command most likely.
            return match self.store.read("config.toml")? {
                Some(text) if self.is_other(&String::from_utf8_lossy(&text)) => {
                    self.refuse("another run begins there; name another checkpoint.mirror")
                }
                _ => Ok(()),
            };
        }
        let ours = self.sessions()?;
        let theirs = self.store.read(SESSIONS)?.unwrap_or_default();
        let run = run_of(&ours);
        let known = knows(&ours, &mark.session) || run.as_ref() == Some(&mark.session);
        if known && run == Some(mark.run) && begins_with(&ours, &theirs) {
            return Ok(());
        }
        self.refuse(
            "it holds another run, or this one went on elsewhere; name another checkpoint.mirror, or go on from it in a new \
             folder by --resume=auto",
        )
    }

    /// Whether a configuration computes something else.
    fn is_other(&self, text: &str) -> bool {
        Config::parse(text).is_ok_and(|theirs| theirs.computes_sha256() != self.computes)
    }

    /// Of a run that is done: no line of `sessions.jsonl` names this session.
    pub(super) fn of_a_finished_run(mut self) -> Result<Self> {
        if let (Some(run), false) = (run_of(&self.sessions()?), self.claimed) {
            self.session = run;
        }
        Ok(self)
    }

    /// This session's name.
    pub(super) fn session(&self) -> &str {
        &self.session
    }

    /// Refuses to write to what another session has taken over since this one began to.
    fn check_claim(&self) -> Result<()> {
        if !self.claimed {
            return Ok(());
        }
        match mark(&self.store)? {
            Some(mark) if mark.session == self.session => Ok(()),
            Some(Mark { host, since, .. }) => self.refuse(&format!(
                "another trainer writes to it (on {host}, since {since}); this one leaves it alone"
            )),
            None => self.refuse("somebody removed its mirror.json; this session leaves it alone"),
        }
    }

    /// Says there that this session writes to it.
    fn claim(&mut self) -> Result<()> {
        if self.claimed {
            return Ok(());
        }
        let path = self.out.join(SESSIONS);
        let Some(run) = run_of(&self.sessions()?) else {
            let reason = "it has no line yet, by which the mirror would know the run".to_owned();
            return Err(Error::Output { path, reason });
        };
        write_mark(&self.store, run, &self.session)?;
        self.claimed = true;
        self.check_claim()?;
        Ok(self.store.remove_unfinished()?)
    }

    fn sessions(&self) -> Result<Vec<u8>> {
        let path = self.out.join(SESSIONS);
        match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            read => read.map_err(Error::io("read", &path)),
        }
    }

    /// Brings the copy up to date. Checkpoints there of later steps than the newest here were given up, and go, unless one
    /// of that name is damaged here.
    ///
    /// # Errors
    /// [`Error::Data`] of the store, [`Error::Output`] where it is another run's, [`Error::Checkpoint`] where one here is
    /// damaged, [`Error::Io`].
    pub(super) fn pass(&mut self, keep: Keep) -> Result<Passed> {
        let there = self.store.list()?;
        self.check_own(&there)?;
        self.claim()?;
        self.bring_logs(&there)?;
        for _ in 0..TRIES {
            if let Some(passed) = self.bring_checkpoints(keep)? {
                return Ok(passed);
            }
        }
        self.refuse("training replaces its checkpoints before they are there: save less often, or raise checkpoint.keep")
    }

    /// None where training has removed the newest before it was there; then nothing was removed there.
    fn bring_checkpoints(&mut self, keep: Keep) -> Result<Option<Passed>> {
        let there = self.store.list()?;
        let folder = self.out.join(CHECKPOINTS);
        let name = |(_, path): (u64, PathBuf)| Some(PathBuf::from(path.file_name()?));
        let here = checkpoint::list(&folder)?.into_iter().filter_map(name);
        let here: BTreeSet<PathBuf> = here.collect();
        let both = whole(&there).into_iter().map(|(_, path)| path).chain(here.iter().cloned());
        let mut both = checkpoint::in_order(both.collect::<BTreeSet<_>>());
        let Some(newest) = both.iter().rposition(|(_, name)| here.contains(name)) else {
            return Ok(Some(Passed { step: None }));
        };
        let later: BTreeSet<PathBuf> =
            both.split_off(newest + 1).into_iter().map(|(_, name)| name).collect();
        let (step, newest) = both[newest].clone();
        let gone: BTreeSet<_> = keep.dropped(&both).into_iter().collect();
        let kept: Vec<&Path> = both
            .iter()
            .map(|(_, name)| name.as_path())
            .filter(|name| !gone.contains(name) && here.contains(*name))
            .collect();
        self.remove_halves(&there, &kept)?;
        let mut damaged = None;
        for name in kept.iter().rev() {
            let path = folder.join(name);
            match self.bring_making_room(&name.to_string_lossy(), &path, &there, keep) {
                Ok(()) => {}
                Err(_) if checkpoint::is_gone(&path) && *name == newest => return Ok(None),
                // Training keeps others now.
                Err(_) if checkpoint::is_gone(&path) => {}
                // An older one that is damaged here keeps no other from there.
                Err(e @ Error::Checkpoint { .. }) if *name != newest => {
                    damaged.get_or_insert(e);
                }
                Err(e) => return Err(e),
            }
        }
        // The newest is there: of what is whole now, some may go.
        let mut now = whole(&self.store.list()?);
        now.retain(|(_, name)| !later.contains(name));
        let gone: BTreeSet<PathBuf> = keep.dropped(&now).into_iter().map(Path::to_owned).collect();
        let is_damaged = |name: &str| folder.join(format!("{name}.damaged")).exists();
        self.remove_checkpoints(|name| {
            let path = PathBuf::from(name);
            let stays = now.iter().any(|(_, of)| *of == path) && !gone.contains(&path);
            !(stays || later.contains(&path) && is_damaged(name))
        })?;
        damaged.map_or(Ok(Some(Passed { step: Some(step) })), Err)
    }

    /// What is written here beside checkpoints, and is another there. Sessions come first, as here: by them settings are
    /// known to be the run's.
    fn bring_logs(&mut self, there: &[Stored]) -> Result<()> {
        let there: BTreeMap<_, _> = there.iter().map(|of| (of.name.as_str(), of)).collect();
        let mut here = BTreeMap::new();
        for name in names(&self.out)?.into_iter().filter(|name| is_ours(name) && name != "lock") {
            let path = self.out.join(&name);
            if path.is_dir() {
                here.extend(
                    names(&path)?.into_iter().map(|of| (format!("{name}/{of}"), path.join(of))),
                );
            } else {
                here.insert(name, path);
            }
        }
        let mut in_order: Vec<_> = here.iter().collect();
        in_order.sort_by_key(|(name, _)| *name != SESSIONS);
        for (name, path) in in_order {
            let Ok(found) = fs::metadata(path) else { continue };
            let time = found.modified().map_err(Error::io("look at", path))?;
            let state = (found.len(), time);
            // A picture of an earlier session, by the store's clock. What is not in a folder is little, and brought anyway.
            let same =
                |of: &&Stored| name.contains('/') && of.bytes == found.len() && of.modified >= time;
            let known = self.brought.get(name) == Some(&state);
            if !found.is_file() || known || there.get(name.as_str()).is_some_and(same) {
                continue;
            }
            let file = match File::open(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(Error::io("open", path))?,
            };
            self.check_claim()?;
            self.store.write(name, file)?;
            self.brought.insert(name.clone(), state);
        }
        // What this session brought, and what would call the run finished. Nothing else is this session's to remove.
        let again = |name: &&&str| self.brought.contains_key(**name) || **name == super::EVALUATED;
        let gone = there.keys().filter(|name| !here.contains_key(**name)).filter(again);
        let gone: Vec<&str> = gone.copied().collect();
        for name in gone {
            self.check_claim()?;
            self.store.remove(name)?;
            self.brought.remove(name);
        }
        Ok(())
    }

    /// Brings a checkpoint there; where the store has no room, the oldest there that are not kept for good go, one after
    /// the other, but never the newest.
    fn bring_making_room(
        &mut self,
        name: &str,
        path: &Path,
        there: &[Stored],
        keep: Keep,
    ) -> Result<()> {
        loop {
            let Err(error) = self.bring_checkpoint(name, path, there) else { return Ok(()) };
            let all = whole(&self.store.list()?);
            let spare =
                Keep { last: 1, ..keep }.dropped(&all).last().map(|spare| (*spare).to_owned());
            let Some(spare) = spare.filter(|_| error.is_full()) else { return Err(error) };
            tracing::warn!("{error}; {} is removed there to make room", spare.display());
            self.remove_checkpoints(|name| Path::new(name) == spare)?;
        }
    }

    /// Brings a checkpoint there, unless it is there as it is here.
    fn bring_checkpoint(&mut self, name: &str, path: &Path, there: &[Stored]) -> Result<()> {
        let manifest = path.join(MANIFEST);
        let text = fs::read(&manifest).map_err(Error::io("read", &manifest))?;
        let records = checkpoint::read_manifest(path)?.files;
        let at = |file: &str| format!("{CHECKPOINTS}/{name}/{file}");
        let lies = |(file, record): (&String, &checkpoint::FileRecord)| {
            let (name, bytes) = (at(file), record.bytes);
            there.iter().any(|stored| stored.name == name && stored.bytes == bytes)
        };
        let complete = records.iter().all(lies);
        if complete && self.verified.get(name) == Some(&text) {
            return Ok(());
        }
        match self.store.read(&at(MANIFEST))? {
            Some(there) if there == text && complete => {
                self.verified.insert(name.to_owned(), text);
                return Ok(());
            }
            // It loses what makes it whole before what it was.
            Some(_) => {
                self.check_claim()?;
                self.store.remove(&at(MANIFEST))?;
            }
            None => {}
        }
        // Opened all at once: training may remove it while they are on their way.
        let open = |(file, record): (String, checkpoint::FileRecord)| {
            let path = path.join(&file);
            let opened = File::open(&path).map_err(Error::io("open", &path))?;
            Ok((file, record, opened))
        };
        let files: Vec<_> = records.into_iter().map(open).collect::<Result<_>>()?;
        let changed = |path: PathBuf, how: &str| {
            let reason = format!("{how}, which the manifest does not say");
            Err(Error::Checkpoint { path, reason })
        };
        for (file, record, opened) in files {
            let expected = (record.bytes, record.sha256);
            self.check_claim()?;
            if self.store.write(&at(&file), opened)? != expected {
                return changed(path.join(&file), "it has bytes");
            }
            if self.store.read_with(&at(&file), |_| Ok(()))? != Some(expected) {
                return self.refuse(&format!("it gives back other bytes of {}", at(&file)));
            }
        }
        self.check_claim()?;
        self.store.put(&at(MANIFEST), &text)?;
        if self.store.read(&at(MANIFEST))?.as_ref() != Some(&text) {
            return self.refuse(&format!("it gives back another {}", at(MANIFEST)));
        }
        self.verified.insert(name.to_owned(), text);
        Ok(())
    }

    /// Removes what was left without a manifest, but for those that will be brought now.
    fn remove_halves(&mut self, there: &[Stored], kept: &[&Path]) -> Result<()> {
        let whole: BTreeSet<PathBuf> = whole(there).into_iter().map(|(_, name)| name).collect();
        self.remove_checkpoints(|name| {
            let path = Path::new(name);
            !whole.contains(path) && !kept.contains(&path)
        })
    }

    /// Removes checkpoints there, each its manifest first. Files of other names stay.
    fn remove_checkpoints(&mut self, gone: impl Fn(&str) -> bool) -> Result<()> {
        let there = self.store.list()?;
        let of = |stored: &Stored| of_checkpoint(&stored.name).map(|(f, _)| f.to_owned());
        let named = there.iter().filter_map(|stored| Some((of(stored)?, &stored.name)));
        let mut gone: Vec<_> = named.filter(|(folder, _)| gone(folder)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        self.check_claim()?;
        gone.sort_by_key(|(_, name)| !name.ends_with(MANIFEST));
        for (folder, name) in gone {
            self.verified.remove(&folder);
            self.store.remove(name)?;
        }
        Ok(())
    }
}

/// The names in a folder, without those of files that are being written aside.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let name = entry.map_err(Error::io("read", folder))?.file_name();
        // A run's own are all text.
        found.extend(name.into_string().ok().filter(|name| !name.starts_with('.')));
    }
    Ok(found)
}
