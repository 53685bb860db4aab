//! Processes that this program starts, passes signals on to and waits for.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use common::exit;
use common::signals::Inbox;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::error::{Error, Result};

/// Lines of a child that are shown again when it fails.
const LAST_LINES: usize = 12;
/// The end of a log that they are looked for in.
const LAST_BYTES: u64 = 64 << 10;

/// The signals that came since this was opened, to be passed on. They no longer end this process.
#[derive(Debug)]
pub(crate) struct Signals(Mutex<Received>);

#[derive(Debug)]
struct Received {
    inbox: Inbox,
    all: Vec<Signal>,
}

impl Signals {
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open() -> Result<Self> {
        let inbox = Inbox::open().map_err(Error::io("listen for", "signals"))?;
        Ok(Self(Mutex::new(Received { inbox, all: vec![] })))
    }

    fn look(&self) -> MutexGuard<'_, Received> {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Received { inbox, all } = &mut *received;
        all.extend(inbox.take());
        received
    }

    /// Whether one came.
    pub(crate) fn any(&self) -> bool {
        !self.look().all.is_empty()
    }
}

/// Where a child's lines go.
#[derive(Debug)]
pub(crate) enum Lines {
    /// To where this program's own go, with this before each.
    Through(String),
    /// To the end of a file.
    Log(PathBuf),
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With all its work done.
    Done,
    /// Stopped by a signal with everything saved ([`exit::STOPPED`]); or by the default action of one that was
    /// passed on: it had not come to listen to any yet, and so not to any work.
    Stopped,
    /// Any other way, with this exit code, if it was one.
    Failed(Option<u8>),
}

/// A child, in a process group of its own: what a terminal sends to this program's group reaches it once, from
/// here. One that is dropped is killed; all that it said is out then.
#[derive(Debug)]
pub(crate) struct Child {
    child: process::Child,
    /// How many of the signals it was too late for or has been sent.
    sent: usize,
    passed_on: Vec<Signal>,
    words: Words,
    status: Option<ExitStatus>,
}

type Tail = Arc<Mutex<VecDeque<String>>>;

#[derive(Debug)]
enum Words {
    Piped(Tail, Vec<JoinHandle<()>>),
    Logged(PathBuf, u64),
}

impl Child {
    /// Starts one of `beside` children that share this machine's cores.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn start(
        mut command: Command,
        lines: Lines,
        beside: usize,
        signals: &Signals,
    ) -> Result<Self> {
        if std::env::var_os("OMP_NUM_THREADS").is_none() {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            command.env("OMP_NUM_THREADS", (cores / beside).max(1).to_string());
        }
        command.process_group(0).stdin(Stdio::null());
        let mut log = None;
        match &lines {
            Lines::Through(_) => {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            Lines::Log(path) => {
                let io = |action| Error::io(action, path);
                let file = File::options().create(true).append(true).open(path);
                let file = file.map_err(io("open"))?;
                log = Some(file.metadata().map_err(io("open"))?.len());
                command.stdout(file.try_clone().map_err(io("open"))?).stderr(file);
            }
        }
        let sent = signals.look().all.len();
        let program = PathBuf::from(command.get_program());
        let mut child = command.spawn().map_err(Error::io("start", program))?;
        let words = match lines {
            Lines::Log(path) => Words::Logged(path, log.unwrap_or_default()),
            Lines::Through(before) => {
                let tail = Tail::default();
                let (out, err) = (child.stdout.take(), child.stderr.take());
                let out = out.map(|pipe| pass_on(&before, pipe, std::io::stdout, &tail));
                let err = err.map(|pipe| pass_on(&before, pipe, std::io::stderr, &tail));
                Words::Piped(tail, out.into_iter().chain(err).collect())
            }
        };
        Ok(Self { child, sent, passed_on: vec![], words, status: None })
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its process, unless it has ended.
    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.child.id() as i32).filter(|_| self.status.is_none())
    }

    /// Asks it to end.
    pub(crate) fn ask_to_end(&self) {
        let _ = self.pid().map(|pid| kill_process(pid, Signal::TERM));
    }

    /// Ends it and all that it started at once.
    pub(crate) fn kill(&self) {
        // It may just have ended.
        let _ = self.pid().map(|pid| kill_process_group(pid, Signal::KILL));
    }

    /// Passes on what signals came since the last call, and says how it ended, once it has.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn look(&mut self, signals: &Signals) -> Result<Option<End>> {
        if self.status.is_none() {
            let all = signals.look();
            for signal in &all.all[self.sent.min(all.all.len())..] {
                let _ = self.pid().map(|pid| kill_process(pid, *signal));
                self.passed_on.push(*signal);
            }
            self.sent = all.all.len();
            drop(all);
            self.status = self.child.try_wait().map_err(Error::io("wait for", "a process"))?;
        }
        Ok(self.status.map(|status| self.end(status)))
    }

    fn end(&self, status: ExitStatus) -> End {
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        let by = status.signal().and_then(Signal::from_named_raw);
        match code {
            Some(exit::DONE) => End::Done,
            Some(exit::STOPPED) => End::Stopped,
            _ if by.is_some_and(|signal| self.passed_on.contains(&signal)) => End::Stopped,
            code => End::Failed(code),
        }
    }

    /// How it ended, in words.
    pub(crate) fn how(&self) -> String {
        let status = self.status;
        match status.map(|status| (status.code(), status.signal())) {
            None => "goes on".to_owned(),
            Some((Some(code), _)) => format!("ended with exit code {code}"),
            Some((None, Some(signal))) => format!("was killed by signal {signal}"),
            Some((None, None)) => "ended".to_owned(),
        }
    }

    /// The last lines that it wrote, once it has ended.
    pub(crate) fn last_lines(&mut self) -> Vec<String> {
        match &mut self.words {
            Words::Piped(tail, readers) => {
                readers.drain(..).for_each(|reader| drop(reader.join()));
                tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
            }
            Words::Logged(path, from) => last_lines(path, *from).unwrap_or_default(),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.kill();
            let _ = self.child.wait();
        }
        if let Words::Piped(_, readers) = &mut self.words {
            readers.drain(..).for_each(|reader| drop(reader.join()));
        }
    }
}

fn pass_on<W: Write>(
    before: &str,
    pipe: impl Read + Send + 'static,
    out: impl Fn() -> W + Send + 'static,
    tail: &Tail,
) -> JoinHandle<()> {
    let (before, tail) = (before.to_owned(), tail.clone());
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(std::io::Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            // A reader that went away stops nobody.
            let _ = writeln!(out(), "{before}{line}");
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == LAST_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
    })
}

fn last_lines(path: &PathBuf, from: u64) -> std::io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(LAST_BYTES))))?;
    let mut text = vec![];
    file.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LAST_LINES)..].iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn ended(script: &str, log: &std::path::Path, signals: &Signals) -> (End, Child) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let mut child = Child::start(command, Lines::Log(log.to_owned()), 1, signals).unwrap();
        loop {
            if let Some(end) = child.look(signals).unwrap() {
                return (end, child);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_child_s_end_and_its_own_last_lines_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let (log, signals) = (folder.path().join("log"), Signals::open().unwrap());
        fs::write(&log, "of another\n").unwrap();
        for (script, end) in [
            ("exit 0", End::Done),
            ("exit 75", End::Stopped),
            ("exit 130", End::Failed(Some(130))),
            ("kill -9 $$", End::Failed(None)),
            // Nobody was sent one.
            ("kill -15 $$", End::Failed(None)),
        ] {
            assert_eq!(ended(script, &log, &signals).0, end, "{script}");
        }
        let (_, mut child) = ended("seq 1 20; echo oh >&2; exit 1", &log, &signals);
        let last = child.last_lines();
        assert_eq!(last.len(), LAST_LINES);
        assert!(last.ends_with(&["20".to_owned(), "oh".to_owned()]), "{last:?}");
        assert_eq!(child.how(), "ended with exit code 1");
        let (_, mut child) = ended("exit 1", &log, &signals);
        assert!(child.last_lines().is_empty());
    }
}
