//! A run's folder from the first look to the last line: who may write to it, whether a run is begun or
//! gone on with, and which sessions there were.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::files::{replace_file, sha256};
use serde::{Deserialize, Serialize};

use super::{Begin, read_config};
use crate::checkpoint;
use crate::config::{Change, Config};
use crate::dist::Place;
use crate::error::{Error, Result};
use crate::evaluations;
use crate::lock::Lock;
use crate::say;

/// What a run leaves in its folder beside `checkpoints`.
const OURS: [&str; 14] = [
    "config.toml",
    "lock",
    "stats.jsonl.before",
    "metrics.jsonl.before",
    "incidents.jsonl.before",
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
/// A line where a session begins and where it ends, of all sessions; none where it was killed.
pub(super) const SESSIONS: &str = "sessions.jsonl";

/// A folder that was looked at, and is this process's to write to if it held anything.
#[derive(Debug)]
pub struct Session {
    pub(super) out: PathBuf,
    begin: Begin,
    pub(super) lock: Option<Arc<Lock>>,
    /// Why there is none, where the run may be finished.
    unlocked: Option<Error>,
    edited: Option<String>,
    /// Whether `config.toml` is as a trainer wrote it, and says so.
    as_written: bool,
    /// The hash of the configuration of the checkpoint that is gone on from.
    pub(super) from_config_sha256: Option<String>,
    /// Whether checkpoints that no session of the run made are taken, too.
    pub any_checkpoint: bool,
    before: Option<Config>,
    anew: bool,
}

/// What a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
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
    fn look(out: &Path) -> Result<Self> {
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
            foreign |= !nobody_s && name != "checkpoints" && !OURS.contains(&&*name);
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
fn has_saved(out: &Path) -> bool {
    #[derive(Deserialize)]
    struct Of {
        step: u64,
        ended: Option<Ending>,
    }
    let sessions = fs::read(out.join(SESSIONS)).unwrap_or_default();
    let sessions = String::from_utf8_lossy(&sessions);
    let later = |line| {
        serde_json::from_str::<Of>(line).is_ok_and(|of| {
            of.step > 0 && !matches!(of.ended, Some(Ending::Failed | Ending::Diverged))
        })
    };
    super::evaluated(out).is_some() || sessions.lines().any(later) || saved_by_statistics(out)
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

/// The newest checkpoint in a folder, whether sound or not.
fn newest_of(out: &Path) -> Option<PathBuf> {
    Some(checkpoint::list(&out.join("checkpoints")).ok()?.pop()?.1)
}

/// Whether a file was being written aside ([`common::files`]) when its writer was killed.
fn is_aside(name: &str) -> bool {
    let whole = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    whole.is_some_and(|name| OURS.iter().any(|ours| name.starts_with(ours)))
}

impl Session {
    /// Looks at `out`, and locks it if there is a run in it, before anything in it is changed. Ranks but 0
    /// only read.
    ///
    /// # Errors
    /// [`Error::Output`] where `begin` does not fit what is there; [`Error::InUse`] where another trainer is at work;
    /// [`Error::Checkpoint`] where there is nothing to go on from; [`Error::Config`].
    pub fn open(out: &Path, begin: Begin, place: &Place) -> Result<Self> {
        let refuse =
            |reason: &str| Err(Error::Output { path: out.to_owned(), reason: reason.to_owned() });
        let mut session = Self {
            out: out.to_owned(),
            begin,
            lock: None,
            unlocked: None,
            edited: None,
            as_written: true,
            any_checkpoint: false,
            from_config_sha256: None,
            before: None,
            anew: false,
        };
        if place.rank > 0 {
            let reads = match begin {
                Begin::New => false,
                Begin::Continue => true,
                Begin::Auto => Found::look(out)? == Found::Run,
            };
            session.before = reads.then(|| read_config(out)).transpose()?;
            return Ok(session);
        }
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
                    return refuse(
                        "its checkpoints are missing, and it has saved some: bring them back, or name a \
                         new folder",
                    );
                }
                session.anew = true;
            }
            (Begin::Continue | Begin::Auto, Found::Run) => {
                let before = read_config(out)?;
                let written = as_written(out)?;
                session.as_written = written == Some(true);
                session.edited = edited(out, &before, written);
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
                let reason = "no checkpoint here: the run was stopped before its first; begin it again \
                    by the command that began it, or by --resume=auto";
                return Err(Error::Checkpoint {
                    path: out.join("checkpoints"),
                    reason: reason.to_owned(),
                });
            }
        }
        Ok(session)
    }

    /// The configuration of the run that is gone on with; none where one is begun.
    #[must_use]
    pub fn before(&self) -> Option<&Config> {
        self.before.as_ref()
    }

    /// What differs between `config.toml` and the configuration that the newest checkpoint was made with, in words,
    /// where the file is not as a trainer wrote it: edited, or cut.
    #[must_use]
    pub fn edited(&self) -> Option<&str> {
        self.edited.as_deref()
    }

    /// Whether the folder's `config.toml` is to be written: it is another, or does not say that a trainer wrote it.
    pub(super) fn differs(&self, config: &Config) -> bool {
        self.before() != Some(config) || !self.as_written
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
        let out = &self.out;
        #[derive(Deserialize)]
        struct Of {
            config_sha256: String,
            from_config_sha256: Option<String>,
        }
        let manifest = checkpoint::read_manifest(found)?;
        let sessions = fs::read(out.join(SESSIONS)).unwrap_or_default();
        let sessions = String::from_utf8_lossy(&sessions);
        let known: Vec<_> =
            sessions.lines().filter_map(|line| serde_json::from_str::<Of>(line).ok()).collect();
        let Ok(made_with) = Config::parse(&manifest.config) else { return Ok(()) };
        let moved: Vec<_> =
            made_with.changes(config).into_iter().filter(|c| !c.is_free()).collect();
        let hash = &manifest.config_sha256;
        let ours =
            |of: &Of| of.config_sha256 == *hash || of.from_config_sha256.as_ref() == Some(hash);
        if moved.is_empty() || known.iter().any(ours) {
            return Ok(());
        }
        let moved: Vec<_> = moved.iter().map(Change::shown).collect();
        if known.is_empty() {
            let (path, moved) = (found.display(), moved.join(", "));
            tracing::warn!(
                "{path}: made with other settings ({moved}); no sessions.jsonl says whose it is"
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
        let text = fs::read(self.out.join(SESSIONS)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().rev().find_map(|line| serde_json::from_str::<End>(line).ok());
        match last {
            Some(End { ended: Ending::Diverged, step, computes_sha256, .. })
                if computes_sha256.as_ref() == Some(&config.computes_sha256()) =>
            {
                Err(Error::DivergedBefore { step })
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
            for name in ["stats.jsonl", "metrics.jsonl", "incidents.jsonl"] {
                let (from, to) = (out.join(name), out.join(format!("{name}.before")));
                match fs::rename(&from, to) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(writable(e)),
                    _ => {}
                }
            }
        }
        self.configure(config)
    }

    /// Writes the run's configuration, under a line by which a later change is noticed.
    pub(super) fn configure(&self, config: &Config) -> Result<()> {
        let (path, text) = (self.out.join("config.toml"), config.to_toml());
        let text = format!("{AS_WRITTEN}{}\n{text}", sha256(text.as_bytes()));
        replace_file(&path, text.as_bytes()).map_err(Error::io("write", &path))
    }
}

/// What the first line of a run's `config.toml` says, before the hash.
const AS_WRITTEN: &str = "# as the trainer wrote it; SHA-256 of the lines below: ";

/// Whether a run's `config.toml` is as a trainer wrote it; those of before did not say.
fn as_written(out: &Path) -> Result<Option<bool>> {
    let path = out.join("config.toml");
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let Some((first, rest)) = text.split_once('\n') else { return Ok(Some(false)) };
    Ok(first.strip_prefix(AS_WRITTEN).map(|hash| hash == sha256(rest.as_bytes())))
}

/// See [`Session::edited`]. Where the text was touched and says the same, nothing was edited.
fn edited(out: &Path, before: &Config, written: Option<bool>) -> Option<String> {
    if written == Some(true) {
        return None;
    }
    let made_with = || {
        let newest = checkpoint::newest(&out.join("checkpoints")).ok()?;
        let manifest = checkpoint::read_manifest(&newest).ok()?;
        // A trainer whose checkpoints have no hash of their own wrote no first line either.
        let of_before = written.is_none() && manifest.own_sha256.is_none();
        Some((Config::parse(&manifest.config).ok()?, of_before))
    };
    let Some((made_with, of_before)) = made_with() else {
        return (written == Some(false))
            .then(|| "there is no checkpoint to compare it with".to_owned());
    };
    let changes: Vec<_> = made_with.changes(before).iter().map(Change::shown).collect();
    (!changes.is_empty() && !of_before).then(|| changes.join(", "))
}

/// The hash that tells one configuration from another.
pub(crate) fn hash_of(config: &Config) -> String {
    common::files::sha256(config.to_toml().as_bytes())
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ending {
    /// All steps are done.
    Steps,
    /// `train.max_minutes` are over.
    Time,
    /// A signal.
    Signal,
    /// Values that are not finite.
    Diverged,
    /// An error.
    Failed,
}

/// The line of a session that begins.
#[derive(Debug, Serialize)]
pub(super) struct Start<'a> {
    pub(super) event: &'static str,
    /// Steps done before it.
    pub(super) step: u64,
    pub(super) ranks: usize,
    pub(super) threads: i32,
    pub(super) pid: u32,
    pub(super) config_sha256: String,
    /// That of the checkpoint that it goes on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from_config_sha256: Option<String>,
    #[serde(flatten)]
    pub(super) provenance: &'a crate::provenance::Provenance,
}

/// The line of a session that ended by itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) event: String,
    pub(super) ended: Ending,
    pub(super) step: u64,
    pub(super) config_sha256: String,
    /// [`Config::computes_sha256`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) computes_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;

    fn open(out: &Path, begin: Begin) -> Result<Session> {
        Session::open(out, begin, &Place::alone())
    }

    fn touch(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn a_folder_is_begun_in_or_gone_on_with_by_what_it_holds() {
        let config = Config::resolve(&Origin::Preset("demo"), &[]).unwrap();
        let make = |names: &[&str]| {
            let folder = tempfile::tempdir().unwrap();
            for name in names {
                touch(&folder.path().join(name));
            }
            if names.contains(&"config.toml") {
                fs::write(folder.path().join("config.toml"), config.to_toml()).unwrap();
            }
            folder
        };
        let nothing: [&[&str]; 3] = [&[], &["lock"], &["lost+found/a", "lock"]];
        let unsaved: [&[&str]; 3] = [
            &["config.toml"],
            &["config.toml", "lock", "stats.jsonl", "images/reals.png"],
            &["config.toml", "checkpoints/.step-00000000.partial/a", ".config.toml.1-0.tmp"],
        ];
        let runs: [&[&str]; 2] = [
            &["config.toml", "checkpoints/step-00000000/manifest.json"],
            &["config.toml", "checkpoints/step-00000007.damaged/manifest.json"],
        ];
        let others: [&[&str]; 5] = [
            &["thesis.tex"],
            &["config.toml", "thesis.tex"],
            &["images/samples.png", "report.html"],
            &["metrics.jsonl"],
            &["checkpoints/step-00000001/manifest.json"],
        ];
        for names in nothing.iter().chain(&unsaved) {
            let folder = make(names);
            for begin in [Begin::New, Begin::Auto] {
                assert!(open(folder.path(), begin).unwrap().before().is_none(), "{names:?}");
            }
            assert!(open(folder.path(), Begin::Continue).is_err(), "{names:?}");
        }
        for names in runs {
            let folder = make(names);
            for begin in [Begin::Continue, Begin::Auto] {
                assert!(open(folder.path(), begin).unwrap().before().is_some(), "{names:?}");
            }
            assert!(open(folder.path(), Begin::New).is_err(), "{names:?}");
        }
        for names in others {
            let folder = make(names);
            for begin in [Begin::New, Begin::Continue, Begin::Auto] {
                assert!(open(folder.path(), begin).is_err(), "{names:?}");
            }
        }
    }

    #[test]
    fn a_run_whose_checkpoints_are_missing_is_not_begun_anew_unless_it_never_saved_any() {
        let config = Config::resolve(&Origin::Preset("demo"), &[]).unwrap();
        for (line, begins) in [
            (r#"{"event":"begin","step":0}"#, true),
            (r#"{"event":"begin","step":7}"#, false),
            (r#"{"event":"end","step":7,"ended":"signal"}"#, false),
            (r#"{"event":"end","step":7,"ended":"failed"}"#, true),
            ("no line", true),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("checkpoints")).unwrap();
            fs::write(folder.path().join("config.toml"), config.to_toml()).unwrap();
            fs::write(folder.path().join(SESSIONS), line).unwrap();
            for begin in [Begin::New, Begin::Auto] {
                assert_eq!(open(folder.path(), begin).is_ok(), begins, "{line}");
            }
        }
    }

    #[test]
    fn who_comes_second_is_told_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        let refused = Lock::take(folder.path()).unwrap_err().to_string();
        let words = format!("process {} on {}, since 20", std::process::id(), common::host());
        assert!(refused.contains(&words), "{refused}");
        drop(first);
        Lock::take(folder.path()).unwrap();
    }
}
