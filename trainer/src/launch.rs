//! Several ranks on one machine, with no Python: what `torchrun` does there.

use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::exit;
use dist::{Verdict, last_words, prefix};
use torch_ext::c10d::Store;

use crate::error::{Error, Result};
use crate::say;
use crate::supervisor::{Child, End, Lines, Signals};

/// Time that ranks have to leave by themselves once one has failed: more than the watcher's longest tick.
const GRACE: Duration = Duration::from_secs(4);
const POLL: Duration = Duration::from_millis(20);
const LOOPBACK: &str = "127.0.0.1";

/// Runs this program with `args` as `ranks` processes that find each other through a store served here, for this
/// machine alone, and waits for all. Their lines come out with `[rank]` before them. SIGTERM, SIGHUP, SIGUSR1 and
/// SIGINT are passed on. When a rank fails, the others get 4 s to leave, and its last lines are shown; one that
/// was stopped with everything saved has not failed, and the others have all the time they need. Returns the exit
/// code of the first that failed, else [`exit::STOPPED`] if a rank was stopped, else 0.
///
/// # Errors
/// [`dist::Error::Join`] if the store cannot be served; [`Error::Io`] if a process cannot be started.
pub fn launch(args: &[OsString], ranks: usize) -> Result<u8> {
    let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
    launch_program(&program, args, ranks)
}

fn launch_program(program: &Path, args: &[OsString], ranks: usize) -> Result<u8> {
    let run = nonce();
    let prefix = prefix(&run, "");
    let store = Store::open((LOOPBACK, 0), true, &prefix, Duration::from_secs(10));
    let store = store.map_err(|reason| dist::Error::Join { reason })?;
    let signals = Signals::open()?;
    let mut all = vec![];
    for rank in 0..ranks {
        let mut command = Command::new(program);
        command.args(args);
        prepare(&mut command, (rank, ranks), &run, store.port());
        let lines = Lines::Through(format!("[{rank}] "));
        all.push(Child::start(command, lines, ranks, &signals)?);
    }
    let mut ends = vec![None; ranks];
    let mut failed: Option<(usize, Instant)> = None;
    while ends.contains(&None) {
        for (rank, (child, end)) in all.iter_mut().zip(&mut ends).enumerate() {
            if end.is_some() {
                continue;
            }
            *end = child.look(&signals)?;
            if let (Some(End::Failed(code)), None) = (*end, failed) {
                failed = Some((rank, Instant::now()));
                tell_the_others(&store, rank, child, code);
            }
        }
        if failed.is_some_and(|(_, since)| since.elapsed() > GRACE) {
            all.iter().for_each(Child::kill);
        }
        thread::sleep(POLL);
    }
    if let Some((rank, _)) = failed {
        report(rank, &mut all[rank]);
        return Ok(match ends[rank] {
            Some(End::Failed(Some(code))) => code,
            _ => exit::FAILED,
        });
    }
    Ok(if ends.contains(&Some(End::Stopped)) { exit::STOPPED } else { exit::DONE })
}

/// What keeps this run's keys apart from those of any other that is, or was, at the same port. The standard
/// library keys its hashes with random numbers of the system.
fn nonce() -> String {
    let random = RandomState::new();
    format!("{:016x}{:016x}", random.hash_one(0), random.hash_one(1))
}

fn prepare(command: &mut Command, (rank, ranks): (usize, usize), run: &str, port: u16) {
    for (name, value) in [
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", ranks.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("LOCAL_WORLD_SIZE", ranks.to_string()),
        ("MASTER_ADDR", LOOPBACK.to_owned()),
        ("MASTER_PORT", port.to_string()),
        ("TORCHELASTIC_USE_AGENT_STORE", "True".to_owned()),
        ("TORCHELASTIC_RUN_ID", run.to_owned()),
    ] {
        command.env(name, value);
    }
    for name in ["TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_ERROR_FILE"] {
        command.env_remove(name);
    }
    if std::env::var_os("TORCH_CPP_LOG_LEVEL").is_none() {
        // c10d warns of every lost connection with a stack trace; the ranks say it in a line.
        command.env("TORCH_CPP_LOG_LEVEL", "ERROR");
    }
}

/// Posts who failed, unless that rank did so itself: the others then leave at once.
fn tell_the_others(store: &Store, rank: usize, child: &Child, code: Option<u8>) {
    if !matches!(Verdict::posted(store), Ok(None)) {
        return;
    }
    let (name, place) = last_words(store, rank);
    let text = format!("{name} {}; {place}", child.how());
    let _ = Verdict { text, code: code.unwrap_or(exit::FAILED), by: None }.post(store);
}

fn report(number: usize, rank: &mut Child) {
    let (pid, how) = (rank.id(), rank.how());
    say::always(format_args!("launch: rank {number} (pid {pid}) {how}; its last lines:"));
    rank.last_lines().iter().for_each(|line| say::always(format_args!("    {line}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `launch` returns of two ranks that are this shell script, and how long they took.
    fn two(script: &str) -> (u8, Duration) {
        let begun = Instant::now();
        let args = ["-c", script].map(OsString::from);
        let code = launch_program(Path::new("/bin/sh"), &args, 2).unwrap();
        (code, begun.elapsed())
    }

    #[test]
    fn a_rank_that_was_stopped_leaves_the_others_the_time_to_save() {
        let folder = tempfile::tempdir().unwrap();
        let saved = folder.path().join("saved");
        let save = format!("[ $RANK = 1 ] || {{ sleep 6; touch {}; }}; exit 75", saved.display());
        let (code, took) = two(&save);
        assert_eq!(code, exit::STOPPED);
        assert!(saved.exists() && took > GRACE + Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_failure_and_else_says_whether_a_rank_was_stopped() {
        for (script, code) in [
            ("exit 0", exit::DONE),
            ("[ $RANK = 1 ] && exit 75; exit 0", exit::STOPPED),
            ("[ $RANK = 1 ] && exit 3; sleep 1; exit 75", exit::DIVERGED),
            ("[ $RANK = 1 ] && kill -9 $$; sleep 1; exit 75", exit::FAILED),
        ] {
            assert_eq!(two(script).0, code, "{script}");
        }
        let (code, took) = two("[ $RANK = 1 ] && exit 1; sleep 60");
        assert!(code == exit::FAILED && took < Duration::from_secs(10), "{took:?}");
    }

    #[test]
    fn every_launch_has_keys_of_its_own() {
        assert_ne!(nonce(), nonce());
    }
}
