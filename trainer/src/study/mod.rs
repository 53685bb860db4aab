//! A study: configurations times seeds, trained and measured one after the other, and one table of what
//! came out.
//!
//! Its folder holds a run for each row and seed (`runs/ROW-SEED`, with all that [`crate::run`] writes, and
//! what it said in `runs/ROW-SEED.log`), the results made of them, and `terms.json`: on what data and by which
//! extractor they are measured. Everything it knows it reads from there, so it can be ended at any moment and
//! goes on.

mod queue;
mod results;
mod work;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use results::write;
pub use work::{Tools, run};

use crate::config::{Config, Origin};
use crate::error::{Error, Result};

/// A study file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// What it asks.
    pub title: String,
    /// The preset all rows start from.
    pub preset: String,
    /// Changes in every row, as of `--set`.
    #[serde(default)]
    pub set: Vec<String>,
    /// Seeds (`train.seed`) of every row.
    pub seeds: Vec<u64>,
    /// Configurations; the first is the one that others are compared with.
    #[serde(rename = "row")]
    pub rows: Vec<Row>,
}

/// One configuration of a study.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Letters, digits, `_` and `-`: it names folders.
    pub name: String,
    /// What it is for, in a sentence.
    #[serde(default)]
    pub note: String,
    /// Changes, as of `--set`.
    #[serde(default)]
    pub set: Vec<String>,
}

/// One run of a study.
#[derive(Debug, Clone)]
pub struct Job {
    /// Which row.
    pub row: usize,
    /// Its name and seed: `ROW-SEED`.
    pub name: String,
    /// Changes from the study's preset.
    pub set: Vec<String>,
    /// All keys, without a data folder.
    pub config: Config,
    /// Whether it is to be done; of the others only results are shown.
    pub chosen: bool,
}

impl Study {
    /// Reads a study file and resolves its configurations, with the changes `set` in every row, over its own. To be
    /// done are those of the rows named in `only`, or all.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] with every problem of every row, or a name that no row has.
    pub fn read(path: &Path, only: &[String], set: &[String]) -> Result<(Self, Vec<Job>)> {
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let wrong = |problem: String| Error::Config {
            problems: vec![format!("{}: {problem}", path.display())],
        };
        let mut study: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        // Of a key that is set twice the last counts.
        study.rows.iter_mut().for_each(|row| row.set.extend_from_slice(set));
        if let Some(name) = only.iter().find(|name| study.rows.iter().all(|row| row.name != **name))
        {
            let names: Vec<_> = study.rows.iter().map(|row| row.name.as_str()).collect();
            return Err(wrong(format!("no row {name:?}; there are {}", names.join(", "))));
        }
        let mut jobs = study.jobs().map_err(|problems| wrong(problems.join("; ")))?;
        for job in &mut jobs {
            job.chosen = only.is_empty() || only.contains(&study.rows[job.row].name);
        }
        Ok((study, jobs))
    }

    /// All runs: every row with the first seed, then with the next.
    fn jobs(&self) -> std::result::Result<Vec<Job>, Vec<String>> {
        let mut problems = vec![];
        if self.seeds.is_empty() || self.rows.is_empty() {
            problems.push("it needs seeds = [0, …] and at least one [[row]]".to_owned());
        }
        if BTreeSet::from_iter(&self.seeds).len() < self.seeds.len() {
            problems.push("a seed is there twice".to_owned());
        }
        let mut names = BTreeSet::new();
        for Row { name, .. } in &self.rows {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if name.is_empty() || !name.chars().all(plain) {
                problems.push(format!("row {name:?}: names have letters, digits, _ and - alone"));
            }
            if !names.insert(name) {
                problems.push(format!("row {name:?} is there twice"));
            }
        }
        let mut jobs = vec![];
        for seed in &self.seeds {
            for (row, Row { name, set, .. }) in self.rows.iter().enumerate() {
                let seeded = format!("train.seed={seed}");
                let set: Vec<_> = self.set.iter().chain(set).cloned().chain([seeded]).collect();
                match Config::resolve(&Origin::Preset(&self.preset), &set) {
                    Ok(config) if config.train.max_minutes > 0.0 => problems.push(format!(
                        "row {name:?}: train.max_minutes = {}: a study counts steps, as time would \
                         make its results depend on the machine; set it to 0",
                        config.train.max_minutes
                    )),
                    Ok(config) => {
                        let name = format!("{name}-{seed}");
                        jobs.push(Job { row, name, set, config, chosen: true });
                    }
                    Err(Error::Config { problems: found }) => {
                        problems.extend(found.iter().map(|p| format!("row {name:?}: {p}")));
                    }
                    Err(e) => problems.push(format!("row {name:?}: {e}")),
                }
            }
        }
        problems.dedup();
        if problems.is_empty() { Ok(jobs) } else { Err(problems) }
    }
}

impl Job {
    /// Its run's folder.
    #[must_use]
    pub fn folder(&self, out: &Path) -> PathBuf {
        out.join("runs").join(&self.name)
    }
}

/// So many jobs that are never done.
#[cfg(test)]
fn jobs_of_tests(count: usize) -> Vec<Job> {
    let config = Config::resolve(&Origin::Preset("demo"), &[]).unwrap();
    let job = |i| Job {
        row: 0,
        name: format!("job-{i}"),
        set: vec![],
        config: config.clone(),
        chosen: true,
    };
    (0..count).map(job).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn study(text: &str) -> Result<(Study, Vec<Job>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("study.toml");
        fs::write(&path, text).unwrap();
        Study::read(&path, &[], &[])
    }

    #[test]
    fn every_row_runs_with_every_seed_and_its_own_changes() {
        let (study, jobs) = study(
            "title = \"t\"\npreset = \"cifar10\"\nseeds = [3, 5]\nset = [\"train.steps=7\"]\n\
             [[row]]\nname = \"base\"\n[[row]]\nname = \"det_e\"\nset = [\"e.stochastic=false\"]\n",
        )
        .unwrap();
        assert_eq!(study.rows.len(), 2);
        let names: Vec<_> = jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(names, ["base-3", "det_e-3", "base-5", "det_e-5"]);
        assert!(jobs.iter().all(|job| job.config.train.steps == 7));
        let of = |name: &str| &jobs.iter().find(|job| job.name == name).unwrap().config;
        assert!(of("base-5").e.stochastic && !of("det_e-5").e.stochastic);
        assert_eq!(of("det_e-5").train.seed, 5);
    }

    #[test]
    fn every_study_of_the_repository_can_run() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../studies");
        let mut count = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let (study, jobs) = Study::read(&entry.unwrap().path(), &[], &[]).unwrap();
            assert_eq!(jobs.len(), study.rows.len() * study.seeds.len());
            assert!(study.rows.iter().all(|row| !row.note.is_empty()));
            count += 1;
        }
        assert!(count > 0);
    }

    #[test]
    fn some_rows_of_a_study_can_be_chosen() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../studies/ablations-cifar10.toml");
        let (study, jobs) = Study::read(&path, &["hi_e".into(), "base".into()], &[]).unwrap();
        assert_eq!(jobs.len(), study.rows.len() * study.seeds.len());
        let chosen =
            jobs.iter().filter(|job| job.chosen).map(|job| study.rows[job.row].name.as_str());
        let chosen: Vec<_> = chosen.collect();
        assert_eq!(chosen, ["base", "hi_e"].repeat(study.seeds.len()));
        let error = Study::read(&path, &["hie".into()], &[]).unwrap_err().to_string();
        assert!(error.contains("no row \"hie\"; there are base, det_e, "), "{error}");
    }

    #[test]
    fn a_study_file_that_cannot_run_says_all_that_is_wrong_with_it() {
        let head = "title = \"t\"\npreset = \"cifar10\"\n";
        for (text, words) in [
            (format!("{head}seeds = []\nrow = []\n"), vec!["seeds", "[[row]]"]),
            (
                format!(
                    "{head}seeds = [1, 1]\n[[row]]\nname = \"a/b\"\n[[row]]\nname = \"a\"\n\
                     [[row]]\nname = \"a\"\nset = [\"g.chh=4\"]\n"
                ),
                vec!["seed", "a/b", "twice", "g.chh"],
            ),
            (
                format!(
                    "{head}seeds = [1]\n[[row]]\nname = \"a\"\nset = [\"train.max_minutes=3\"]\n"
                ),
                vec!["max_minutes"],
            ),
            (format!("{head}seeds = [1]\nrwo = 3\n"), vec!["rwo"]),
        ] {
            let error = study(&text).unwrap_err();
            assert!(error.is_input());
            let error = error.to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
