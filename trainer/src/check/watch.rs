//! The process that starts the parts, waits for them and keeps what they find.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::exit;
use common::files::replace_file;
use serde_json::{Value, json};

use super::{Part, Record, Row, Timed, compare};
use crate::error::{Error, Result};
use crate::provenance;
use crate::say;
use crate::supervisor::{Child, End, Lines, Signals};

const POLL: Duration = Duration::from_millis(50);
/// Between being asked to end and being killed.
const GRACE: Duration = Duration::from_secs(4);
/// A part is not begun with less.
const LEAST: Duration = Duration::from_secs(3);
/// Most that one part may take, so that one that hangs leaves time for the others: seconds.
const MOST: u64 = 200;

/// What to check.
#[derive(Debug, Clone)]
pub struct Plan {
    /// cpu, cuda, cuda:N or auto.
    pub device: String,
    /// Fewer comparisons.
    pub quick: bool,
    /// Presets to time, each with images of a batch.
    pub timed: Vec<(String, i64)>,
    /// A data folder to train from.
    pub data: Option<PathBuf>,
    /// The same model in PyTorch.
    pub peer: Option<Peer>,
    /// All of it is to take no longer.
    pub most: Duration,
    /// The file that holds what is known so far, one JSON object.
    pub out: Option<PathBuf>,
}

/// `benches/peers/step_torch.py` and what runs it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Python with PyTorch.
    pub python: PathBuf,
    /// The script.
    pub script: PathBuf,
}

/// How a check ended.
#[derive(Debug)]
pub struct Ended {
    /// All that was found, one JSON object.
    pub json: Value,
    /// Comparisons in which the device does something else than the CPU, or nothing.
    pub wrong: Vec<String>,
    /// Comparisons in which it agrees.
    pub agreeing: usize,
    /// Whether a signal ended it.
    pub stopped: bool,
}

impl Plan {
    /// Checks, and prints what is found as it is found.
    ///
    /// # Errors
    /// [`Error::Io`] where a process cannot be started or the result not be kept; [`Error::Device`] where
    /// there is no such device.
    pub fn run(&self) -> Result<Ended> {
        let path = std::env::temp_dir().join(format!("check-device-{}.jsonl", std::process::id()));
        let file = File::options().create_new(true).write(true).open(&path);
        file.map_err(Error::io("create", &path))?;
        let signals = Signals::open()?;
        let ends = Instant::now() + self.most;
        let mut watch = Watch { plan: self, path, seen: 0, signals, ends, records: vec![] };
        let outcome = watch.keep().and_then(|()| watch.all());
        let _ = fs::remove_file(&watch.path);
        outcome?;
        watch.keep()?;
        Ok(watch.ended())
    }

    /// What is timed, the most telling first.
    fn parts(&self) -> Vec<Part> {
        let mut parts = vec![
            Part::Device,
            Part::Cases { first: 0, quick: self.quick },
            Part::Deterministic,
            Part::Evaluations,
        ];
        let timed = |precision: &str, graphs: bool| {
            let precision = precision.to_owned();
            let of = move |(preset, batch): &(String, i64)| Timed {
                preset: preset.clone(),
                batch: *batch,
                precision: precision.clone(),
                graphs,
            };
            self.timed.iter().map(of).collect::<Vec<_>>()
        };
        let steps = |of: Timed, profile| Part::Steps { of, profile };
        parts.extend(timed("bf16", false).into_iter().map(|of| steps(of, true)));
        if let (Some(data), Some(of)) = (&self.data, timed("bf16", false).into_iter().next()) {
            parts.push(Part::Feed { of, data: data.clone() });
        }
        if !self.quick {
            parts.extend(timed("bf16", true).into_iter().map(|of| steps(of, false)));
            parts.extend(timed("tf32", false).into_iter().map(|of| steps(of, false)));
        }
        parts
    }
}

/// A check under way.
#[derive(Debug)]
struct Watch<'a> {
    plan: &'a Plan,
    /// Where the parts write, and how much of it was taken over.
    path: PathBuf,
    seen: usize,
    signals: Signals,
    ends: Instant,
    records: Vec<Record>,
}

impl Watch<'_> {
    fn all(&mut self) -> Result<()> {
        // The peers come after what they are compared with, before the rest.
        let mut peers_due = self.plan.peer.is_some();
        for part in self.plan.parts() {
            let plain = match &part {
                Part::Steps { of, .. } => of.precision == "bf16" && !of.graphs,
                _ => true,
            };
            if peers_due && !plain {
                self.peers()?;
                peers_due = false;
            }
            if self.signals.any() {
                self.miss(&part.name(), "a signal came")?;
                continue;
            }
            match part {
                Part::Cases { first, quick } => self.cases(first, quick)?,
                Part::Steps { of, profile } => self.steps(of, profile)?,
                part => {
                    let (end, child) = self.one(&part)?;
                    self.tell(&part, end, child)?;
                    if part == Part::Device && end != Some(End::Done) && !self.signals.any() {
                        let device = self.plan.device.clone();
                        let reason = "it does not even give its name (see above)".to_owned();
                        return Err(Error::Device { device, reason });
                    }
                }
            }
        }
        if peers_due { self.peers() } else { Ok(()) }
    }

    /// Goes on behind a comparison that took its process with it.
    fn cases(&mut self, first: usize, quick: bool) -> Result<()> {
        let mut left: Vec<_> = compare::cases().skip(first).collect();
        left.retain(|number| compare::name(*number, quick).is_some());
        let mut left = left.into_iter();
        while let Some(first) = left.clone().next() {
            let before = self.records.len();
            let part = Part::Cases { first, quick };
            let (end, child) = self.one(&part)?;
            let rows = self.records.len() - before;
            left.by_ref().take(rows).for_each(drop);
            match end {
                Some(End::Failed(code)) => {
                    // One that said why before it ended has its row.
                    if code != Some(exit::FAILED) || rows == 0 {
                        let name = left.next().and_then(|number| compare::name(number, quick));
                        let why = child.unwrap_or_default();
                        self.add(Record::Row(Row::failed(name.unwrap_or("comparisons"), why)))?;
                    }
                }
                end => return self.tell(&part, end, child),
            }
        }
        Ok(())
    }

    /// Halves the batch until it fits.
    fn steps(&mut self, mut of: Timed, profile: bool) -> Result<()> {
        loop {
            let part = Part::Steps { of: of.clone(), profile };
            let (end, child) = self.one(&part)?;
            self.tell(&part, end, child)?;
            match self.records.last() {
                Some(Record::TooLarge { of: tried }) if *tried == of && of.batch >= 4 => {
                    of.batch /= 2;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Does a part in a process of its own. How that ended, none where there was no time for it or it took too
    /// long, and its last words.
    fn one(&mut self, part: &Part) -> Result<(Option<End>, Option<String>)> {
        let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
        let mut command = Command::new(program);
        let text = serde_json::to_string(part).expect("a part is plain");
        command.args(["check-device", "--device", &self.plan.device, "--part", &text, "--records"]);
        command.arg(&self.path);
        if *part == Part::Deterministic && std::env::var_os("CUBLAS_WORKSPACE_CONFIG").is_none() {
            command.env("CUBLAS_WORKSPACE_CONFIG", ":4096:8");
        }
        self.process(command, Lines::Through(String::new()))
    }

    fn process(&mut self, command: Command, lines: Lines) -> Result<(Option<End>, Option<String>)> {
        if self.ends < Instant::now() + LEAST {
            return Ok((None, None));
        }
        let most = self.ends.min(Instant::now() + Duration::from_secs(MOST));
        let mut child = Child::start(command, lines, 1, &self.signals)?;
        let mut asked: Option<Instant> = None;
        let end = loop {
            let end = child.look(&self.signals)?;
            self.read()?;
            let now = Instant::now();
            match (end, asked) {
                (Some(end), _) => break end,
                (None, None) if self.signals.any() || now > most => {
                    child.ask_to_end();
                    asked = Some(now);
                }
                (None, Some(since)) if now > since + GRACE => child.kill(),
                _ => {}
            }
            thread::sleep(POLL);
        };
        let last = child.last_lines();
        self.read()?;
        let words = last.iter().rev().find(|line| !line.trim().is_empty()).cloned();
        let words = format!("{}: {}", child.how(), words.unwrap_or_default());
        let late = asked.is_some() && !self.signals.any();
        Ok((Some(end).filter(|_| !late), Some(words)))
    }

    /// Takes down what a part did not do.
    fn tell(&mut self, part: &Part, end: Option<End>, words: Option<String>) -> Result<()> {
        match (end, words) {
            (Some(End::Done), _) => Ok(()),
            (Some(End::Stopped), _) => self.miss(&part.name(), "a signal came"),
            (Some(End::Failed(_)), Some(words)) => self.miss(&part.name(), &words),
            (_, Some(_)) => self.miss(&part.name(), "its time was over"),
            (_, None) => self.miss(&part.name(), "no time was left"),
        }
    }

    fn miss(&mut self, part: &str, why: &str) -> Result<()> {
        self.add(Record::Missing { part: part.to_owned(), why: why.to_owned() })
    }

    /// Keeps and prints a record of this process.
    fn add(&mut self, record: Record) -> Result<()> {
        say::print(&record)?;
        self.records.push(record);
        self.keep()
    }

    /// Takes over what the parts have written since, whole lines alone.
    fn read(&mut self) -> Result<()> {
        let text = fs::read_to_string(&self.path).map_err(Error::io("read", &self.path))?;
        let fresh = text.get(self.seen..).unwrap_or_default();
        let Some((whole, _)) = fresh.rsplit_once('\n') else { return Ok(()) };
        self.seen += whole.len() + 1;
        let record = |line| {
            serde_json::from_str(line).unwrap_or_else(|e: serde_json::Error| Record::Missing {
                part: "a record".to_owned(),
                why: e.to_string(),
            })
        };
        self.records.extend(whole.lines().map(record));
        self.keep()
    }

    fn peers(&mut self) -> Result<()> {
        let Some(peer) = self.plan.peer.clone() else { return Ok(()) };
        let on_cuda = self.records.iter().any(
            |record| matches!(record, Record::Device { by, .. } if by.device.starts_with("cuda")),
        );
        let done = self.records.iter().filter_map(|record| match record {
            Record::Steps { of, .. } if of.precision == "bf16" && !of.graphs => Some(of.clone()),
            _ => None,
        });
        for of in done.collect::<Vec<_>>() {
            let name = format!("PyTorch's step of {of}");
            if self.signals.any() {
                self.miss(&name, "a signal came")?;
                continue;
            }
            let mut command = Command::new(&peer.python);
            command.arg(&peer.script).args(["--preset", &of.preset, "--precision", &of.precision]);
            command.args(["--batch", &of.batch.to_string(), "--steps", "20", "--channels-last"]);
            command.args(["--device", if on_cuda { "cuda" } else { "cpu" }]);
            let log = self.path.with_extension("peer");
            let (end, words) = self.process(command, Lines::Log(log.clone()))?;
            let text = fs::read_to_string(&log).unwrap_or_default();
            let _ = fs::remove_file(&log);
            let said = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
            match (end, said, words) {
                (Some(End::Done), Some(said), _) => self.add(Record::Peer { said })?,
                (Some(_), _, Some(words)) => self.miss(&name, &words)?,
                (_, _, Some(_)) => self.miss(&name, "its time was over")?,
                (_, _, None) => self.miss(&name, "no time was left")?,
            }
        }
        Ok(())
    }

    fn ended(&self) -> Ended {
        let rows = || {
            self.records.iter().filter_map(|record| match record {
                Record::Row(row) => Some(row),
                _ => None,
            })
        };
        let wrong = rows().filter(|row| !row.agrees).map(|row| row.name.clone()).collect();
        let agreeing = rows().filter(|row| row.agrees).count();
        Ended { json: self.json(), wrong, agreeing, stopped: self.signals.any() }
    }

    fn json(&self) -> Value {
        let quick = self.plan.quick;
        json!({
            "check_device": 1, "version": provenance::version(), "device": self.plan.device, "quick": quick,
            "stopped": self.signals.any(), "records": self.records,
        })
    }

    /// Writes what is known to the result's file.
    fn keep(&self) -> Result<()> {
        let Some(out) = &self.plan.out else { return Ok(()) };
        write(out, &self.json())
    }
}

fn write(path: &Path, value: &Value) -> Result<()> {
    replace_file(path, format!("{value}\n").as_bytes()).map_err(Error::io("write", path))
}
