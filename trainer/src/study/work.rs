//! Doing a study's runs: each stage is a command of this program, in a process of its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::{exit, files};
use pipeline::Dataset;
use serde::{Deserialize, Serialize};

use super::queue::{self, Ended};
use super::results::{self, measured};
use super::{Job, Study};
use crate::checkpoint;
use crate::device;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::run::{evaluated, read_config};
use crate::say;
use crate::supervisor::{Child, End, Lines, Signals};

const POLL: Duration = Duration::from_millis(50);
/// A command that fails sooner may have failed for its device.
const START: Duration = Duration::from_secs(60);

/// What the runs of a study work with.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Data folder or URL.
    pub data: PathBuf,
    /// Image network of the Fréchet distance; none measures none.
    pub extractor: Option<PathBuf>,
    /// Whether to run it if it is TorchScript that is not known.
    pub trust_extractor: bool,
    /// Generated images it compares with as many real ones.
    pub images: i64,
    /// A run is in progress on each of these at a time.
    pub devices: Vec<String>,
}

/// How a study's work ended.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Runs that are trained and measured.
    pub done: usize,
    /// Runs that were to be.
    pub of: usize,
    /// Names of runs that failed; why was said as they did.
    pub failed: Vec<String>,
    /// Names of runs that no device was left for.
    pub untried: Vec<String>,
    /// Devices that were given no more runs, as several in a row failed at their start on them.
    pub lost: Vec<String>,
    /// A signal ended it before all was done.
    pub stopped: bool,
    /// The results so far, as `results.md` has them.
    pub table: String,
}

/// A command that brings a run further.
#[derive(Debug, PartialEq, Eq)]
struct Stage {
    what: &'static str,
    args: Vec<OsString>,
}

/// Does what is left of the chosen jobs of a study in the folder `out`, and writes the results after every run.
/// Signals ([`common::signals`]) are passed on to the runs in progress, which save; the same call then goes on. A run
/// that fails does not stop the others, and a device on which runs fail at their start gets no more.
///
/// # Errors
/// [`Error::Output`] if another study is at work in `out`, or what is there was made with other settings;
/// [`Error::Data`] if the data cannot be opened; [`Error::Io`].
pub fn run(study: &Study, jobs: &[Job], out: &Path, tools: &Tools) -> Result<Outcome> {
    let runs = out.join("runs");
    fs::create_dir_all(&runs).map_err(Error::io("create", &runs))?;
    let _lock = Lock::take(out)?;
    let mut shown = vec![];
    for job in jobs {
        match same(job, out) {
            Ok(()) => shown.push(job.clone()),
            Err(e) if job.chosen => return Err(e),
            Err(e) => say::note(format_args!("{}: left out of the results: {e}", job.name)),
        }
    }
    Terms::of(tools)?.hold(out)?;
    results::write(study, &shown, out)?;
    let signals = Signals::open()?;
    let work = Work { study, jobs: &shown, out, tools, signals, writing: Mutex::new(()) };
    let chosen = || jobs.iter().filter(|job| job.chosen);
    let found =
        queue::drain(chosen(), &tools.devices, || work.signals.any(), |job, on| work.of(job, on));
    let (done, of) = (found.done, chosen().count());
    let stopped = found.stopped || work.signals.any() && done < of;
    // After a signal the rest was not to be tried.
    let untried = if stopped { vec![] } else { found.untried };
    let (failed, lost) = (found.failed, found.lost);
    let table = results::write(study, &shown, out)?;
    Ok(Outcome { done, of, failed, untried, lost, stopped, table })
}

/// What the workers share.
#[derive(Debug)]
struct Work<'a> {
    study: &'a Study,
    /// Those whose results are shown.
    jobs: &'a [Job],
    out: &'a Path,
    tools: &'a Tools,
    signals: Signals,
    /// Held while results are written: workers write the same files.
    writing: Mutex<()>,
}

impl Work<'_> {
    /// Does a job on a device.
    fn of(&self, job: &Job, device: &str) -> Ended {
        let ended = self.job(job, device);
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match (ended, results::write(self.study, self.jobs, self.out)) {
            (Ok(Ended::Done), Err(e)) | (Err(e), _) => {
                Ended::Failed { reason: e.to_string(), at_start: false }
            }
            (Ok(ended), _) => ended,
        }
    }

    /// Every stage of a job that is left.
    fn job(&self, job: &Job, device: &str) -> Result<Ended> {
        let begun = Instant::now();
        let mut before = None;
        while let Some(stage) = next_stage(job, self.out, self.tools, self.study, device)? {
            if self.signals.any() {
                return Ok(Ended::Stopped);
            }
            if before.as_ref() == Some(&stage) {
                let reason = format!("{} ended well but left nothing behind", stage.what);
                return Err(Error::Study { path: job.folder(self.out), reason });
            }
            say::note(format_args!("{}: {} on {device}", job.name, stage.what));
            match self.execute(job, &stage, device)? {
                Ended::Done => before = Some(stage),
                ended => return Ok(ended),
            }
        }
        if before.is_some() {
            let minutes = begun.elapsed().as_secs_f64() / 60.0;
            say::note(format_args!("{}: done in {minutes:.1} min", job.name));
        }
        Ok(Ended::Done)
    }

    fn execute(&self, job: &Job, stage: &Stage, device: &str) -> Result<Ended> {
        let path = job.folder(self.out).with_extension("log");
        let io = |action| Error::io(action, &path);
        let mut log = File::options().create(true).append(true).open(&path).map_err(io("open"))?;
        let words: Vec<_> = stage.args.iter().map(|word| word.to_string_lossy()).collect();
        writeln!(log, "$ trainer {}", words.join(" ")).map_err(io("write"))?;
        let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
        let mut command = Command::new(&program);
        command.args(&stage.args);
        let beside = self.tools.devices.len();
        let begun = Instant::now();
        let mut child = Child::start(command, Lines::Log(path), beside, &self.signals)?;
        let code = loop {
            match child.look(&self.signals)? {
                None => thread::sleep(POLL),
                Some(End::Done) => return Ok(Ended::Done),
                Some(End::Stopped) => return Ok(Ended::Stopped),
                Some(End::Failed(code)) => break code,
            }
        };
        let blame = match code {
            Some(exit::DIVERGED) => false,
            // What was given to read is wrong; or the device is not there.
            Some(exit::USAGE) => device::parse(device).is_err(),
            _ => true,
        };
        let at_start = blame && begun.elapsed() < START && !self.signals.any();
        let last = child.last_lines().join("\n    ");
        let reason = format!("{} {}; its last lines:\n    {last}", stage.what, child.how());
        Ok(Ended::Failed { reason, at_start })
    }
}

/// What the runs of a study are compared under, beside their settings: in the study's folder, so that none
/// is measured otherwise than those before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Terms {
    /// The training split's.
    data_fingerprint: u64,
    /// SHA-256 of the extractor's file, and the images it compares.
    extractor: Option<(String, i64)>,
}

impl Terms {
    fn of(tools: &Tools) -> Result<Self> {
        let data_fingerprint = Dataset::open(&tools.data, "train")?.fingerprint();
        let hash = |path| checkpoint::hash_of(path).map(|hash| (hash, tools.images));
        Ok(Self { data_fingerprint, extractor: tools.extractor.as_deref().map(hash).transpose()? })
    }

    /// Writes them down, or compares them with what is written. An extractor may come later.
    fn hold(&self, out: &Path) -> Result<()> {
        let path = out.join("terms.json");
        let wrong = |e: serde_json::Error| Error::io("read", &path)(e.into());
        if path.exists() {
            let text = fs::read(&path).map_err(Error::io("read", &path))?;
            let before: Self = serde_json::from_slice(&text).map_err(wrong)?;
            let refuse = |what: &str| {
                let reason = format!(
                    "its runs have {what} than this command names; give what they had, or name a new --out"
                );
                Err(Error::Output { path: out.to_owned(), reason })
            };
            if before.data_fingerprint != self.data_fingerprint {
                return refuse("other --data");
            }
            match (&before.extractor, &self.extractor) {
                (Some(_), None) => return Ok(()),
                (Some(before), Some(now)) if before != now => {
                    return refuse("another --extractor, or other --images,");
                }
                _ => {}
            }
        }
        let text = serde_json::to_string(self).map_err(wrong)? + "\n";
        files::replace_file(&path, text.as_bytes()).map_err(Error::io("write", &path))
    }
}

/// Whether a run has a checkpoint of its last step, and has done all that it does at its end. What reads
/// the checkpoint checks that it is sound.
pub(super) fn trained(job: &Job, out: &Path) -> bool {
    let (folder, steps) = (job.folder(out), job.config.train.steps);
    let all = checkpoint::list(&folder.join("checkpoints")).unwrap_or_default();
    all.last().is_some_and(|(step, _)| *step >= steps) && evaluated(&folder) == Some(steps)
}

/// Refuses the folder of a run that was made with other settings, or would be measured with others.
fn same(job: &Job, out: &Path) -> Result<()> {
    let folder = job.folder(out);
    if !folder.join("config.toml").exists() {
        return Ok(());
    }
    let changes = read_config(&folder)?.changes(&job.config);
    let matters = |key: &str| key == "train.steps" || key.starts_with("eval.");
    let moved = changes.iter().filter(|c| !c.is_free() || matters(&c.key));
    let moved: Vec<_> = moved.map(ToString::to_string).collect();
    if moved.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "it was made with other settings than the study now has ({}); remove it, or name a new --out",
        moved.join(", ")
    );
    Err(Error::Output { path: folder, reason })
}

/// What brings a job further; none if it is trained and measured.
fn next_stage(
    job: &Job,
    out: &Path,
    tools: &Tools,
    study: &Study,
    device: &str,
) -> Result<Option<Stage>> {
    let (folder, config) = (job.folder(out), &job.config);
    let mut args: Vec<OsString> = vec![];
    let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
    let what;
    if !trained(job, out) {
        what = "training";
        // The run looks at what its folder holds, and touches nothing of anybody else's.
        add(&["run", "--resume=auto", "--preset", &study.preset, "--device", device, "--out"]);
        args.push((&folder).into());
        for change in &job.set {
            args.extend(["--set".into(), change.into()]);
        }
    } else {
        let missing = |metrics: &[&str]| !measured(&folder, config.train.steps, metrics, "average");
        if config.loss.encode() && missing(&["knn_"]) {
            what = "nearest neighbours";
            add(&["eval", "knn", "--split", &config.eval.split]);
        } else if let Some(extractor) = &tools.extractor
            && missing(&["fid", "fd-"])
        {
            what = "Fréchet distance";
            let images = tools.images.to_string();
            add(&["eval", "fid", "--images", &images, "--reference-images", &images]);
            if tools.trust_extractor {
                add(&["--trust-extractor"]);
            }
            args.extend(["--extractor".into(), extractor.into()]);
            args.extend(["--cache".into(), out.join("reference").into()]);
        } else {
            return Ok(None);
        }
        args.extend(["--device".into(), device.into(), "--run".into(), (&folder).into()]);
    }
    args.extend(["--data".into(), (&tools.data).into()]);
    Ok(Some(Stage { what, args }))
}

#[cfg(test)]
mod tests {
    use super::super::Row;
    use super::*;
    use crate::config::{Config, Origin};

    #[test]
    fn a_run_s_folder_is_left_to_the_run_whatever_it_holds() {
        let out = tempfile::tempdir().unwrap();
        let row = Row { name: "base".into(), note: String::new(), set: vec![] };
        let (title, preset) = (String::new(), "demo".to_owned());
        let study = Study { title, preset, set: vec![], seeds: vec![0], rows: vec![row] };
        let config = Config::resolve(&Origin::Preset("demo"), &[]).unwrap();
        let (name, set) = ("base-0".into(), vec!["train.seed=0".into()]);
        let job = Job { row: 0, name, set, config, chosen: true };
        let tools = Tools {
            data: "data".into(),
            extractor: None,
            trust_extractor: false,
            images: 2,
            devices: vec!["cpu".into()],
        };
        let folder = job.folder(out.path());
        let next = || {
            let stage = next_stage(&job, out.path(), &tools, &study, "cpu").unwrap().unwrap();
            assert_eq!(stage.what, "training");
            stage.args.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>()
        };
        fs::create_dir_all(folder.join("checkpoints/step-00000007.damaged")).unwrap();
        fs::write(folder.join("thesis.tex"), "").unwrap();
        let args = next();
        assert!(args.contains(&"--resume=auto".into()) && args.contains(&"--preset".into()));
        assert!(args.ends_with(&["--data".into(), "data".into()]), "{args:?}");
        assert!(folder.join("checkpoints/step-00000007.damaged").exists());
        assert!(folder.join("thesis.tex").exists());
    }
}
