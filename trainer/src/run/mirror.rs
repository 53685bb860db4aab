//! A copy of a run's folder behind a URL (`checkpoint.mirror`), kept while training goes on: what a run goes on from
//! where its machine is gone.
//!
//! A pass brings the logs, the settings, the pictures and the report there, then the checkpoints: their files are read
//! back and compared with the manifest's hashes, and the manifest comes last, so that a checkpoint with one is whole.
//! Those that are no longer kept lose their manifest first. A pass that fails ends nothing; the next checkpoint asks
//! for another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use pipeline::{Store, Stored};

use super::session::is_ours;
use super::sessions::SESSIONS;
use crate::checkpoint::{self, Guard, Keep};
use crate::error::{Error, Result};

/// The folder of checkpoints, here and there.
pub(super) const CHECKPOINTS: &str = "checkpoints";
pub(super) const MANIFEST: &str = "manifest.json";

/// After a pass that took longer, no other is made at the end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed {
    /// The step of the newest checkpoint that is there.
    pub(super) step: Option<u64>,
}

/// A run's folder and its copy.
#[derive(Debug)]
pub(super) struct Copied {
    out: PathBuf,
    store: Store,
    /// The manifests of checkpoints that were verified there in this session.
    verified: BTreeMap<String, Vec<u8>>,
    /// Length and time of the logs that were brought there in this session.
    brought: BTreeMap<String, (u64, SystemTime)>,
}

/// Names of the whole checkpoints in a copy, oldest first.
pub(super) fn whole(there: &[Stored]) -> Vec<(u64, PathBuf)> {
    let name = |stored: &Stored| {
        let folder = stored.name.strip_prefix(CHECKPOINTS)?.strip_prefix('/')?;
        folder.strip_suffix(MANIFEST)?.strip_suffix('/').map(PathBuf::from)
    };
    checkpoint::in_order(there.iter().filter_map(name))
}

impl Copied {
    /// The copy of the run in `out`. Nothing is read.
    pub(super) fn new(out: &Path, url: &str) -> Result<Self> {
        let (verified, brought) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { out: out.to_owned(), store: Store::open(url)?, verified, brought })
    }

    /// Where it is, for people.
    pub(super) fn url(&self) -> &Path {
        self.store.url()
    }

    /// Refuses a copy of another run, or of this one from where it went on elsewhere: one whose sessions are not the
    /// first of this folder's.
    ///
    /// # Errors
    /// [`Error::Output`]; [`Error::Data`] where it cannot be read.
    pub(super) fn check(&self) -> Result<()> {
        self.check_own(&self.store.list()?)
    }

    fn check_own(&self, there: &[Stored]) -> Result<()> {
        if whole(there).is_empty() {
            return Ok(()); // nothing to lose
        }
        let path = self.out.join(SESSIONS);
        let ours = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
            read => read.map_err(Error::io("read", &path))?,
        };
        let theirs = self.store.read(SESSIONS)?.unwrap_or_default();
        if begins_with(&ours, &theirs) {
            return Ok(());
        }
        let reason = "it holds another run, or this one went on elsewhere; name another checkpoint.mirror, or go on from \
            it in a new folder by --resume=auto";
        Err(Error::Output { path: self.url().to_owned(), reason: reason.to_owned() })
    }

    /// Brings the copy up to date.
    ///
    /// # Errors
    /// [`Error::Data`] of the store, [`Error::Output`] where it is another run's, [`Error::Checkpoint`] where one here is
    /// damaged, [`Error::Io`].
    pub(super) fn pass(&mut self, keep: Keep) -> Result<Passed> {
        let there = self.store.list()?;
        self.check_own(&there)?;
        self.bring_logs(&there)?;
        let here = checkpoint::list(&self.out.join(CHECKPOINTS))?;
        let here = here.into_iter().filter_map(|(_, path)| Some(PathBuf::from(path.file_name()?)));
        let here: BTreeSet<PathBuf> = here.collect();
        let both = whole(&there).into_iter().map(|(_, path)| path).chain(here.iter().cloned());
        let both = checkpoint::in_order(both.collect::<BTreeSet<_>>());
        let gone: BTreeSet<_> = keep.dropped(&both).into_iter().collect();
        let kept = both.iter().map(|(_, name)| name.as_path()).filter(|name| !gone.contains(name));
        for name in kept.rev().filter(|name| here.contains(*name)) {
            let path = self.out.join(CHECKPOINTS).join(name);
            match self.bring_checkpoint(&name.to_string_lossy(), &path) {
                // Training kept others meanwhile.
                Err(_) if checkpoint::is_gone(&path) => {}
                done => done?,
            }
        }
        self.remove_all_but(keep)
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
        let sessions_first = |(name, _): &(&String, &PathBuf)| *name != SESSIONS;
        let mut here_in_order: Vec<_> = here.iter().collect();
        here_in_order.sort_by_key(sessions_first);
        for (name, path) in here_in_order {
            let Ok(found) = fs::metadata(path) else { continue };
            let time = found.modified().map_err(Error::io("look at", path))?;
            let state = (found.len(), time);
            // Of an earlier session, by the store's clock.
            let same = |of: &&Stored| of.bytes == found.len() && of.modified >= time;
            let known = self.brought.get(name) == Some(&state);
            if !found.is_file() || known || there.get(name.as_str()).is_some_and(same) {
                continue;
            }
            let file = match File::open(path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                file => file.map_err(Error::io("open", path))?,
            };
            self.store.write(name, file)?;
            self.brought.insert(name.clone(), state);
        }
        let ours = |name: &str| is_ours(name.split('/').next().unwrap_or_default());
        for name in there.keys().filter(|name| ours(name) && !here.contains_key(**name)) {
            self.store.remove(name)?;
            self.brought.remove(*name);
        }
        Ok(())
    }

    /// Brings a checkpoint there, unless it is there as it is here.
    fn bring_checkpoint(&mut self, name: &str, path: &Path) -> Result<()> {
        let manifest = path.join(MANIFEST);
        let text = fs::read(&manifest).map_err(Error::io("read", &manifest))?;
        if self.verified.get(name) == Some(&text) {
            return Ok(());
        }
        let at = |file: &str| format!("{CHECKPOINTS}/{name}/{file}");
        match self.store.read(&at(MANIFEST))? {
            Some(there) if there == text => {
                self.verified.insert(name.to_owned(), text);
                return Ok(());
            }
            // It loses what makes it whole before what it was.
            Some(_) => self.store.remove(&at(MANIFEST))?,
            None => {}
        }
        let records = checkpoint::read_manifest(path)?.files;
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
            if self.store.write(&at(&file), opened)? != expected {
                return changed(path.join(&file), "it has bytes");
            }
            if self.store.read_with(&at(&file), |_| Ok(()))? != expected {
                return changed(self.url().join(at(&file)), "the store gives bytes back");
            }
        }
        let opened = File::open(&manifest).map_err(Error::io("open", &manifest))?;
        self.store.write(&at(MANIFEST), opened)?;
        if self.store.read(&at(MANIFEST))?.as_ref() != Some(&text) {
            self.store.remove(&at(MANIFEST))?;
            return changed(self.url().join(at(MANIFEST)), "it is another one there");
        }
        self.verified.insert(name.to_owned(), text);
        Ok(())
    }

    /// Removes there what `keep` does not name, and checkpoints without a manifest.
    fn remove_all_but(&mut self, keep: Keep) -> Result<Passed> {
        let there = self.store.list()?;
        let whole = whole(&there);
        let gone: BTreeSet<_> = keep.dropped(&whole).into_iter().collect();
        let stays = |name: &str| {
            let path = Path::new(name);
            whole.iter().any(|(_, of)| of == path) && !gone.contains(path)
        };
        let folder_of = |stored: &Stored| {
            let below = stored.name.strip_prefix(CHECKPOINTS)?.strip_prefix('/')?;
            Some(below.split_once('/')?.0.to_owned())
        };
        let named = there.iter().filter_map(|stored| Some((folder_of(stored)?, stored)));
        // Nothing of another name is ours.
        let ours = |name: &str| !checkpoint::in_order([PathBuf::from(name)]).is_empty();
        let (mut manifests, mut others) = (vec![], vec![]);
        for (folder, stored) in named.filter(|(folder, _)| ours(folder) && !stays(folder)) {
            self.verified.remove(&folder);
            let last = stored.name.ends_with(MANIFEST);
            if last { manifests.push(&stored.name) } else { others.push(&stored.name) }
        }
        manifests.into_iter().chain(others).try_for_each(|name| self.store.remove(name))?;
        Ok(Passed { step: whole.last().map(|(step, _)| *step) })
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

/// Whether the whole lines of `first` are the first of `all`. A last line without its end is of a write that was cut.
fn begins_with(all: &[u8], first: &[u8]) -> bool {
    let lines = |text| <[u8]>::split_inclusive(text, |byte| *byte == b'\n');
    let first = lines(first).filter(|line| line.ends_with(b"\n"));
    let mut all = lines(all);
    first.into_iter().all(|line| all.next() == Some(line))
}

/// A pass that is asked for, and what stays by it.
type Wish = (u64, Keep);

/// A thread that keeps the copy up to date. It ends with the process; a pass that is cut short is nothing worse than one
/// that fails.
#[derive(Debug)]
pub(super) struct Mirror {
    url: PathBuf,
    wishes: Sender<Wish>,
    asked: u64,
    /// Which wish, and those before it, was done.
    done: Receiver<(u64, Result<Passed>)>,
}

impl Mirror {
    /// Nothing is brought there before [`Mirror::wanted`]. `guard` is asked before every pass.
    ///
    /// # Errors
    /// [`Error::Io`] where no thread starts.
    pub(super) fn start(mut copied: Copied, guard: Guard) -> Result<Self> {
        let (wishes, wanted) = channel::<Wish>();
        let (tell, done) = channel();
        let url = copied.url().to_owned();
        let work = move || {
            while let Ok(mut wish) = wanted.recv() {
                // What is there now is what counts.
                while let Ok(newer) = wanted.try_recv() {
                    wish = newer;
                }
                let passed = Error::caught(|| guard.ask().and_then(|()| copied.pass(wish.1)));
                if tell.send((wish.0, passed)).is_err() {
                    return;
                }
            }
        };
        let spawned = std::thread::Builder::new().name("mirror".into()).spawn(work);
        spawned.map_err(Error::io("start a thread for", &url))?;
        Ok(Self { url, wishes, asked: 0, done })
    }

    /// Where the copy is, for people.
    pub(super) fn url(&self) -> &Path {
        &self.url
    }

    /// Asks for a pass, by which `keep` says what stays.
    pub(super) fn wanted(&mut self, keep: Keep) {
        self.asked += 1;
        // A thread that is gone is noticed where its outcome is waited for.
        let _ = self.wishes.send((self.asked, keep));
    }

    /// What came of the newest pass since the last call, if one ended.
    pub(super) fn passed(&self) -> Option<Result<Passed>> {
        self.done.try_iter().last().map(|(_, passed)| passed)
    }

    /// Waits for one more pass, and for another one where that fails soon.
    ///
    /// # Errors
    /// Those of the last pass.
    pub(super) fn finish(mut self, keep: Keep) -> Result<Passed> {
        let begun = Instant::now();
        match self.pass(keep) {
            // Where the network is away, it was waited for.
            Err(_) if begun.elapsed() < PATIENCE => self.pass(keep),
            passed => passed,
        }
    }

    fn pass(&mut self, keep: Keep) -> Result<Passed> {
        self.wanted(keep);
        loop {
            match self.done.recv() {
                Ok((of, passed)) if of == self.asked => return passed,
                Ok(_) => {}
                Err(_) => {
                    let reason =
                        "the thread that keeps it is gone: this is a bug; please report it";
                    let path = self.url.clone();
                    return Err(Error::Output { path, reason: reason.to_owned() });
                }
            }
        }
    }
}
