//! Several ranks on one machine, with no Python: what `torchrun` does there.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::c10d::Store;
use super::watch::{VERDICT, Verdict, last_words};
use super::{join, place};
use crate::error::{Error, Result};

/// Time that ranks have to leave by themselves once one has failed.
const GRACE: Duration = Duration::from_secs(3);
/// Lines of a rank that are shown again when it fails.
const LAST_LINES: usize = 12;
const POLL: Duration = Duration::from_millis(20);

type Tail = Arc<Mutex<VecDeque<String>>>;

#[derive(Debug)]
struct Rank {
    child: Child,
    tail: Tail,
    readers: Vec<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

/// Runs this program with `args` as `ranks` processes that find each other through a store served here, and
/// waits for all. Their lines come out with `[rank]` before them. SIGTERM, SIGINT and SIGUSR1 are passed on.
/// When one fails, the others get 3 s to leave, and its last lines are shown. Returns the exit code of the first
/// that failed, else 0.
///
/// # Errors
/// [`Error::Join`] if the store cannot be served; [`Error::Io`] if a process cannot be started.
pub fn launch(args: &[OsString], ranks: usize) -> Result<u8> {
    let prefix = place::prefix("", "");
    let store = Store::open(("127.0.0.1", 0), true, &prefix, Duration::from_secs(10));
    let store = store.map_err(join)?;
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGUSR1]).map_err(Error::io("listen for", "signals"))?;
    let mut all = vec![];
    for rank in 0..ranks {
        match spawn(args, rank, ranks, store.port()) {
            Ok(started) => all.push(started),
            Err(e) => {
                all.iter().for_each(|rank| signal(rank, Signal::KILL));
                return Err(e);
            }
        }
    }
    let mut failed: Option<(usize, Instant)> = None;
    while all.iter().any(|rank| rank.status.is_none()) {
        for number in signals.pending() {
            let number = match number {
                SIGINT => Signal::INT,
                SIGUSR1 => Signal::USR1,
                _ => Signal::TERM,
            };
            all.iter().for_each(|rank| signal(rank, number));
        }
        for (number, rank) in all.iter_mut().enumerate().filter(|(_, rank)| rank.status.is_none()) {
            rank.status = rank.child.try_wait().map_err(Error::io("wait for", "a rank"))?;
            let bad = rank.status.filter(|status| !status.success());
            if let (Some(status), None) = (bad, failed) {
                failed = Some((number, Instant::now()));
                tell_the_others(&store, number, status);
            }
        }
        if failed.is_some_and(|(_, since)| since.elapsed() > GRACE) {
            all.iter().for_each(|rank| signal(rank, Signal::KILL));
        }
        thread::sleep(POLL);
    }
    for rank in &mut all {
        rank.readers.drain(..).for_each(|reader| drop(reader.join()));
    }
    Ok(failed.map_or(0, |(number, _)| report(number, &all[number])))
}

fn spawn(args: &[OsString], rank: usize, ranks: usize, port: u16) -> Result<Rank> {
    let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
    let mut command = Command::new(&program);
    command.args(args);
    for (name, value) in [
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", ranks.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("LOCAL_WORLD_SIZE", ranks.to_string()),
        ("MASTER_ADDR", "127.0.0.1".to_owned()),
        ("MASTER_PORT", port.to_string()),
        ("TORCHELASTIC_USE_AGENT_STORE", "True".to_owned()),
    ] {
        command.env(name, value);
    }
    for name in ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_ERROR_FILE"] {
        command.env_remove(name);
    }
    if std::env::var_os("TORCH_CPP_LOG_LEVEL").is_none() {
        // c10d warns of every lost connection with a stack trace; the ranks say it in a line.
        command.env("TORCH_CPP_LOG_LEVEL", "ERROR");
    }
    if std::env::var_os("OMP_NUM_THREADS").is_none() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        command.env("OMP_NUM_THREADS", (cores / ranks).max(1).to_string());
    }
    // A group of its own: Ctrl-C reaches the ranks once, through the launcher.
    command.process_group(0).stdin(Stdio::null());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("start", program))?;
    let tail = Tail::default();
    let readers = [
        child.stdout.take().map(|pipe| pass_on(rank, pipe, std::io::stdout, tail.clone())),
        child.stderr.take().map(|pipe| pass_on(rank, pipe, std::io::stderr, tail.clone())),
    ];
    Ok(Rank { child, tail, readers: readers.into_iter().flatten().collect(), status: None })
}

fn pass_on<W: Write>(
    rank: usize,
    pipe: impl Read + Send + 'static,
    out: impl Fn() -> W + Send + 'static,
    tail: Tail,
) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(std::io::Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            // A reader that went away stops nobody.
            let _ = writeln!(out(), "[{rank}] {line}");
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == LAST_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
    })
}

fn signal(rank: &Rank, signal: Signal) {
    if rank.status.is_none()
        && let Some(pid) = Pid::from_raw(rank.child.id() as i32)
    {
        // It may just have ended.
        let _ = kill_process(pid, signal);
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Posts who failed, unless that rank did so itself: the others then leave at once.
fn tell_the_others(store: &Store, rank: usize, status: ExitStatus) {
    if !matches!(store.get(VERDICT), Ok(None)) {
        return;
    }
    let (name, place) = last_words(store, rank);
    let text = format!("{name} {}; {place}", how(status));
    let verdict = Verdict { text, code: 1, by: None };
    if let Ok(verdict) = serde_json::to_vec(&verdict) {
        let _ = store.set(VERDICT, &verdict);
    }
}

fn report(number: usize, rank: &Rank) -> u8 {
    let Some(status) = rank.status else { return 1 };
    eprintln!("launch: rank {number} (pid {}) {}; its last lines:", rank.child.id(), how(status));
    for line in rank.tail.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        eprintln!("    {line}");
    }
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
