//! A run's folder from the first look to the last line: who may write to it, whether a run is begun or
//! gone on with, and which sessions there were.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dist::Place;
use serde::Deserialize;

use super::folder::{Written, edited, write_config, written};
use super::mirror::Copied;
use super::restore::{Taken, check_whole};
use super::sessions::{Ending, SESSIONS, Sessions, Start, hash_of};
use super::{Begin, read_config};
use crate::checkpoint;
use crate::config::{Change, Config};
use crate::error::{Error, Result};
use crate::evaluations;
use crate::lock::Lock;
use crate::provenance::Provenance;
use crate::say;

/// What a run leaves in its folder beside `checkpoints`.
const OURS: [&str; 11] = [
    "config.toml",
    "lock",
    "stats.jsonl",
    "metrics.jsonl",
    "incidents.jsonl",
    "evaluations.jsonl",
    SESSIONS,
    "images",
    "events",
    "report.html",
    super::EVALUATED,
];

/// Whether a trainer leaves something of this name in its folder.
pub(super) fn is_ours(name: &str) -> bool {
    let before = |of: &&str| name.strip_prefix(*of).is_some_and(|end| end.starts_with(".before"));
    OURS.contains(&name) || OURS.iter().any(before)
}

/// A folder that was looked at, and is this process's to write to if it held anything.
#[derive(Debug)]
pub struct Session {
    pub(super) out: PathBuf,
    begin: Begin,
    pub(super) lock: Option<Arc<Lock>>,
    /// Why there is none, where the run may be finished.
    unlocked: Option<Error>,
    edited: Option<String>,
    /// Whether `config.toml` says that a trainer wrote it, whether or not it was touched since.
    signed: bool,
    /// The hash of what `config.toml` says.
    pub(super) before_config_sha256: Option<String>,
    /// The hash of the configuration of the checkpoint that is gone on from.
    pub(super) from_config_sha256: Option<String>,
    /// Whether checkpoints that no session of the run made are taken, too.
    pub any_checkpoint: bool,
    before: Option<Config>,
    anew: bool,
    /// The run's copy elsewhere, on rank 0 where it has one.
    pub(super) mirror: Option<Copied>,
    taken: Option<String>,
    /// Whether rank 0 may be at work bringing the run back, for as long as that takes.
    pub(super) awaits: bool,
}

/// What a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing that anybody could miss.
    Nothing,
    /// A run that has not saved anything.
    Unsaved,
    /// A run with checkpoints, whether sound or not.
    Run,
    /// Something else.
    Other,
}

impl Found {
    pub(super) fn look(out: &Path) -> Result<Self> {
        let entries = match fs::read_dir(out) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::Nothing),
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Ok(Self::Other),
            Err(e) => return Err(Error::io("read", out)(e)),
        };
        let (mut any, mut foreign) = (false, false);
        for entry in entries {
            let name = entry.map_err(Error::io("read", out))?.file_name();
            let name = name.to_string_lossy();
            let nobody_s = ["lock", "lost+found"].contains(&&*name) || is_aside(&name);
            any |= !nobody_s;
            foreign |= !nobody_s && name != "checkpoints" && !is_ours(&name);
        }
        if !any {
            return Ok(Self::Nothing);
        }
        // Of the names above many are common: what makes a folder a run's is its configuration.
        let config = out.join("config.toml");
        let ours = match fs::read_to_string(&config) {
            Ok(text) => Config::parse(&text).is_ok(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => false,
            Err(e) => return Err(Error::io("read", &config)(e)),
        };
        let checkpoints = out.join("checkpoints");
        let saved = match fs::read_dir(&checkpoints) {
            // Half-written ones have a dot before their names.
            Ok(mut all) => all.any(|entry| {
                entry.is_ok_and(|e| !e.file_name().to_string_lossy().starts_with('.'))
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(Error::io("read", &checkpoints)(e)),
        };
        Ok(match (ours, saved, foreign) {
            (true, true, _) => Self::Run,
            (true, false, false) => Self::Unsaved,
            _ => Self::Other,
        })
    }
}

/// Whether the run in a folder has once saved a later state than its first, by what it wrote down: a session
/// that began with one, or one that ended as only a saved one does.
pub(super) fn has_saved(out: &Path) -> bool {
    super::evaluated(out).is_some() || Sessions::read(out).have_saved() || saved_by_statistics(out)
}

/// Whether `stats.jsonl` tells of a checkpoint that was written after the first interval.
fn saved_by_statistics(out: &Path) -> bool {
    #[derive(Deserialize)]
    struct Of {
        step: u64,
        checkpoint_write_s: Option<f64>,
    }
    let Ok(config) = read_config(out) else { return false };
    let mut saved = false;
    evaluations::each_line(&out.join("stats.jsonl"), |line| {
        saved |= serde_json::from_slice::<Of>(line)
            .is_ok_and(|of| of.step > config.checkpoint.every && of.checkpoint_write_s.is_some());
    });
    saved
}

/// The step of the newest checkpoint in a folder, whether sound or not.
pub(super) fn newest_of(out: &Path) -> Option<u64> {
    Some(checkpoint::list(&out.join("checkpoints")).ok()?.pop()?.0)
}

/// Why there is nothing to go on from.
const BEFORE_THE_FIRST: &str = "no checkpoint here: the run was stopped before its first; begin it again by the command \
     that began it, or by --resume=auto";

const MISSING: &str =
    "its checkpoints are missing, and it has saved some: bring them back, or name a new folder";

/// Whether a file was being written aside ([`common::files`]) when its writer was killed.
fn is_aside(name: &str) -> bool {
    let whole = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    whole.is_some_and(|name| OURS.iter().any(|ours| name.starts_with(ours)))
}

impl Session {
    /// Before the folder was looked at.
    fn unopened(out: &Path, begin: Begin) -> Self {
        Self {
            out: out.to_owned(),
            begin,
            lock: None,
            unlocked: None,
            edited: None,
            signed: true,
            before_config_sha256: None,
            any_checkpoint: false,
            from_config_sha256: None,
            before: None,
            anew: false,
            mirror: None,
            taken: None,
            awaits: false,
        }
    }

    /// Whether a rank that does not write goes on with the run in `out`.
    fn reads(out: &Path, begin: Begin) -> Result<bool> {
        Ok(match begin {
            Begin::New => false,
            Begin::Continue => true,
            Begin::Auto => Found::look(out)? == Found::Run,
        })
    }

    /// Looks at `out`, and locks it if there is a run in it, before anything in it is changed. Ranks but 0
    /// only read.
    ///
    /// # Errors
    /// [`Error::Output`] where `begin` does not fit what is there; [`Error::InUse`] where another trainer is at work;
    /// [`Error::Checkpoint`] where there is nothing to go on from; [`Error::Config`].
    pub fn open(out: &Path, begin: Begin, place: &Place) -> Result<Self> {
        let refuse =
            |reason: &str| Err(Error::Output { path: out.to_owned(), reason: reason.to_owned() });
        let mut session = Self::unopened(out, begin);
        if place.rank > 0 {
            session.before = Self::reads(out, begin)?.then(|| read_config(out)).transpose()?;
            return Ok(session);
        }
        check_whole(out)?;
        if [Found::Unsaved, Found::Run].contains(&Found::look(out)?) {
            match Lock::take(out) {
                Ok(lock) => session.lock = Some(Arc::new(lock)),
                // Of a finished run nothing is written.
                Err(e) if e.is_read_only() && super::evaluated(out).is_some() => {
                    session.unlocked = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
        // What is there now stays so, if it is ours.
        let found = Found::look(out)?;
        match (begin, found) {
            (Begin::New | Begin::Auto, Found::Nothing) => {}
            (Begin::New | Begin::Auto, Found::Unsaved) => {
                if has_saved(out) {
                    return refuse(MISSING);
                }
                session.anew = true;
            }
            (Begin::Continue | Begin::Auto, Found::Run) => {
                let before = read_config(out)?;
                session.signed = !matches!(written(out)?, Written::Unsaid);
                session.edited = edited(out, &before)?;
                session.before_config_sha256 = Some(hash_of(&before));
                session.before = Some(before);
            }
            (Begin::New, Found::Run) => {
                return refuse("it holds a run; go on with it by --resume, or name a new folder");
            }
            (Begin::New | Begin::Auto, Found::Other) if newest_of(out).is_some() => {
                return refuse(
                    "it holds checkpoints, but no config.toml of a run: each checkpoint's manifest.json holds it as \
                     \"config\"; put it back",
                );
            }
            (Begin::New | Begin::Auto, Found::Other) => {
                return refuse(
                    "it is not empty, nor the folder of a run; name a new folder, or one of a run with --resume",
                );
            }
            (Begin::Continue, _) => {
                read_config(out)?;
                if has_saved(out) {
                    return refuse(MISSING);
                }
                let (path, reason) = (out.join("checkpoints"), BEFORE_THE_FIRST.to_owned());
                return Err(Error::Checkpoint { path, reason });
            }
        }
        Ok(session)
    }

    /// The line of `sessions.jsonl` by which it begins, at this step and with so many ranks.
    pub(super) fn begins<'a>(
        &self,
        config: &Config,
        (step, ranks): (u64, usize),
        provenance: &'a Provenance,
    ) -> Start<'a> {
        Start {
            event: "begin",
            step,
            ranks,
            threads: tch::get_num_threads(),
            pid: std::process::id(),
            config_sha256: hash_of(config),
            from_config_sha256: self.from_config_sha256.clone(),
            before_config_sha256: self.before_config_sha256.clone(),
            mirror: self.mirror.as_ref().map(|copied| copied.session().to_owned()),
            provenance,
        }
    }

    /// The configuration of the run that is gone on with; none where one is begun.
    #[must_use]
    pub fn before(&self) -> Option<&Config> {
        self.before.as_ref()
    }

    /// What differs between `config.toml` and the configuration that the newest checkpoint was made with, in words,
    /// where the file is not the one by which the run was gone on with last: edited, cut, or of another run or time.
    #[must_use]
    pub fn edited(&self) -> Option<&str> {
        self.edited.as_deref()
    }

    /// Writes the folder's `config.toml` where the run goes on by another, or nothing says that a trainer wrote it; words
    /// of a hand beside the settings stay.
    pub(super) fn configure(&self, config: &Config) -> Result<()> {
        // Of a new run it is written with the folder.
        match &self.before {
            None => Ok(()),
            Some(before) if before == config && self.signed => Ok(()),
            Some(_) => write_config(&self.out, config),
        }
    }

    /// Of a rank other than 0: rank 0 goes on with the run of these settings, which it brings back from its mirror.
    #[must_use]
    pub fn awaiting(mut self, config: Config) -> Self {
        self.awaits = true;
        self.before.get_or_insert(config);
        self
    }

    /// Of rank 0: it has brought the run back from its mirror, and writes to that from now on.
    #[must_use]
    pub fn brought_back(mut self, Taken(session): Taken) -> Self {
        self.taken = Some(session);
        self
    }

    /// Looks at `checkpoint.mirror`, if there is to be one, before anything is written. One that cannot be reached now
    /// does not keep a run from going on: it is said, and tried again.
    ///
    /// # Errors
    /// [`Error::Output`] where it is another run's; [`Error::Data`] where it cannot be used.
    pub(super) fn look_at_mirror(&mut self, config: &Config) -> Result<()> {
        if config.checkpoint.mirror.is_empty() {
            return Ok(());
        }
        let copied = Copied::new(&self.out, config, self.taken.take())?;
        match copied.check() {
            Err(Error::Data(e)) if self.before.is_some() && !e.is_input() => {
                tracing::warn!("checkpoint.mirror: {e}; going on without it for now");
            }
            checked => checked?,
        }
        self.mirror = Some(copied);
        Ok(())
    }

    /// Nothing is written to a folder that could not be locked.
    pub(super) fn check_locked(&mut self) -> Result<()> {
        self.unlocked.take().map_or(Ok(()), Err)
    }

    /// Refuses a checkpoint that no session of this run made: one of another run that was put among them.
    pub(super) fn check_own(&self, config: &Config, found: &Path) -> Result<()> {
        if self.any_checkpoint {
            return Ok(());
        }
        let manifest = checkpoint::read_manifest(found)?;
        let Some(made_with) = manifest.made_with(found)? else { return Ok(()) };
        let moved: Vec<_> =
            made_with.changes(config).into_iter().filter(|c| !c.is_free()).collect();
        let known = Sessions::read(&self.out).know(&manifest.config_sha256, manifest.step);
        if moved.is_empty() || known == Some(true) {
            return Ok(());
        }
        let moved: Vec<_> = moved.iter().map(Change::shown).collect();
        if known.is_none() {
            let (path, moved) = (found.display(), moved.join(", "));
            tracing::warn!(
                "{path}: made with other settings ({moved}); no line of sessions.jsonl says whose it is"
            );
            return Ok(());
        }
        let reason = format!(
            "no session of this run made it ({}): it is of another run; move it out of there, or take it as this run's \
             by --allow-change",
            moved.join(", ")
        );
        Err(Error::Output { path: found.to_owned(), reason })
    }

    /// Refuses to go on, unattended, with what would diverge as it did the last time.
    pub(super) fn check_converges(&self, config: &Config) -> Result<()> {
        if self.begin != Begin::Auto || self.before.is_none() {
            return Ok(());
        }
        let sessions = Sessions::read(&self.out);
        let Some(last) = sessions.newest_end() else { return Ok(()) };
        let same = last.computes_sha256.as_ref() == Some(&config.computes_sha256());
        // By hand, or by chance, it came further.
        let passed = newest_of(&self.out).is_some_and(|step| step > last.step);
        match last.ended {
            Some(Ending::Diverged) if same && !passed => {
                Err(Error::DivergedBefore { step: last.step })
            }
            _ => Ok(()),
        }
    }

    /// Makes the folder of a new run, or clears one in which nothing was saved, and writes its configuration.
    pub(super) fn create(&mut self, config: &Config) -> Result<()> {
        let out = self.out.clone();
        let writable = |source: std::io::Error| {
            let reason = format!("{source}; name a folder that can be written to");
            match common::files::is_full(&source) {
                true => Error::Full { path: self.out.clone(), reason: source.to_string() },
                false => Error::Output { path: self.out.clone(), reason },
            }
        };
        fs::create_dir_all(&out).map_err(writable)?;
        common::files::sync_folder_of(&out).map_err(writable)?;
        if self.lock.is_none() {
            self.lock = Some(Arc::new(Lock::take(&out)?));
            // Another trainer may have come and gone since the first look.
            if Found::look(&out)? == Found::Run {
                let reason = "another trainer has begun a run in it; name a new folder".to_owned();
                return Err(Error::Output { path: out, reason });
            }
        }
        if self.anew {
            say::note(format_args!(
                "{}: a run that saved nothing; it is begun anew",
                out.display()
            ));
            // One that somebody laid there may be all there is of it; it stays until ours is whole.
            let settings = out.join("config.toml");
            if !matches!(written(&out)?, Written::This(_)) {
                let kept = checkpoint::free(&out.join("config.toml.before"))?;
                if let Err(e) = fs::copy(&settings, &kept) {
                    let _ = fs::remove_file(&kept);
                    return Err(writable(e));
                }
                say::note(format_args!("its config.toml is kept as {}", kept.display()));
            }
            for name in ["stats.jsonl", "metrics.jsonl", "incidents.jsonl"] {
                let from = out.join(name);
                if !checkpoint::is_gone(&from) {
                    let to = checkpoint::free(&out.join(format!("{name}.before")))?;
                    fs::rename(&from, &to).map_err(writable)?;
                }
            }
        }
        write_config(&out, config)
    }
}

#[cfg(test)]
mod tests;
