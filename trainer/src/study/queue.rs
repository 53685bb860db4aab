//! Which job goes to which device, and which devices get no more.
//!
//! A device that is dead fails every job within seconds, and would empty the queue. So a job that fails at its
//! start goes back for the other devices, and a device on which several in a row did gets no more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use common::panic_text;

use super::Job;
use crate::say;

/// Jobs that fail at their start on a device, one after the other, before it gets no more.
const IN_A_ROW: usize = 2;
const POLL: Duration = Duration::from_millis(50);

/// How a job ended on a device.
#[derive(Debug)]
pub(super) enum Ended {
    /// With nothing left to do.
    Done,
    /// Before that, as it was asked to.
    Stopped,
    /// It failed.
    Failed {
        reason: String,
        /// So soon, and in such a way, that the device may be to blame.
        at_start: bool,
    },
}

/// What came of all jobs.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) done: usize,
    /// Whether a job was stopped.
    pub(super) stopped: bool,
    /// Jobs that failed, by name.
    pub(super) failed: Vec<String>,
    /// Jobs that no device was left for.
    pub(super) untried: Vec<String>,
    /// Devices that got no more jobs.
    pub(super) lost: Vec<String>,
}

#[derive(Debug)]
struct Waiting<'a> {
    job: &'a Job,
    /// Devices on which it failed at its start.
    failed_on: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct State<'a> {
    left: VecDeque<Waiting<'a>>,
    working: usize,
    /// Jobs that failed at their start on a device, one after the other up to now.
    in_a_row: BTreeMap<String, usize>,
    outcome: Outcome,
}

/// What a worker does next.
enum Next<'a> {
    Job(Waiting<'a>),
    /// Another worker's job may come back.
    Wait,
    Over,
}

/// Does jobs on all devices, one at a time on each, until none is left or `stopping`. A job that panics fails.
pub(super) fn drain<'a>(
    jobs: impl Iterator<Item = &'a Job>,
    devices: &[String],
    stopping: impl Fn() -> bool + Sync,
    work: impl Fn(&Job, &str) -> Ended + Sync,
) -> Outcome {
    let waiting = |job| Waiting { job, failed_on: BTreeSet::new() };
    let left = jobs.map(waiting).collect();
    let state = Mutex::new(State { left, ..State::default() });
    let worker = |device: &str| {
        loop {
            let next = if stopping() { Next::Over } else { lock(&state).next(device) };
            match next {
                Next::Over => return,
                Next::Wait => thread::sleep(POLL),
                Next::Job(waiting) => {
                    let ended = catch_unwind(AssertUnwindSafe(|| work(waiting.job, device)));
                    let ended = ended.unwrap_or_else(|panic| Ended::Failed {
                        reason: format!("a fault of this program: {}", panic_text(&*panic)),
                        at_start: false,
                    });
                    lock(&state).record(waiting, device, ended);
                }
            }
        }
    };
    thread::scope(|scope| {
        for device in devices {
            scope.spawn(|| worker(device));
        }
    });
    let State { left, mut outcome, .. } =
        state.into_inner().unwrap_or_else(PoisonError::into_inner);
    for Waiting { job, failed_on } in left {
        let all = if failed_on.is_empty() { &mut outcome.untried } else { &mut outcome.failed };
        all.push(job.name.clone());
    }
    outcome
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> State<'a> {
    fn next(&mut self, device: &str) -> Next<'a> {
        if self.outcome.lost.iter().any(|lost| lost == device) {
            return Next::Over;
        }
        let place = self.left.iter().position(|waiting| !waiting.failed_on.contains(device));
        match place.and_then(|place| self.left.remove(place)) {
            Some(waiting) => {
                self.working += 1;
                Next::Job(waiting)
            }
            None if self.working > 0 => Next::Wait,
            None => Next::Over,
        }
    }

    fn record(&mut self, mut waiting: Waiting<'a>, device: &str, ended: Ended) {
        self.working -= 1;
        let Ended::Failed { reason, at_start } = ended else {
            self.in_a_row.remove(device);
            match ended {
                Ended::Done => self.outcome.done += 1,
                _ => self.outcome.stopped = true,
            }
            return;
        };
        let name = &waiting.job.name;
        say::note(format_args!("{name}, on {device}: {reason}"));
        if !at_start {
            self.in_a_row.remove(device);
            self.outcome.failed.push(name.clone());
            return;
        }
        let in_a_row = self.in_a_row.entry(device.to_owned()).or_default();
        *in_a_row += 1;
        if *in_a_row == IN_A_ROW {
            say::note(format_args!(
                "{device}: {IN_A_ROW} runs in a row failed at their start on it: it gets no more"
            ));
            self.outcome.lost.push(device.to_owned());
        }
        waiting.failed_on.insert(device.to_owned());
        self.left.push_back(waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::super::jobs_of_tests;
    use super::*;

    fn failed(at_start: bool) -> Ended {
        Ended::Failed { reason: "no".to_owned(), at_start }
    }

    fn devices<const N: usize>(names: [&str; N]) -> Vec<String> {
        names.map(str::to_owned).into()
    }

    #[test]
    fn a_dead_device_gets_two_jobs_and_the_others_do_all() {
        let jobs = jobs_of_tests(20);
        let tried = Mutex::new(0);
        let outcome = drain(
            jobs.iter(),
            &devices(["dead", "good"]),
            || false,
            |_, device| {
                if device == "dead" {
                    *lock(&tried) += 1;
                    return failed(true);
                }
                // Longer than a job on the dead device, which would win them all.
                thread::sleep(Duration::from_millis(20));
                Ended::Done
            },
        );
        assert_eq!((outcome.done, *lock(&tried)), (20, IN_A_ROW));
        assert_eq!(outcome.lost, ["dead"]);
        assert!(outcome.failed.is_empty() && outcome.untried.is_empty(), "{outcome:?}");
    }

    #[test]
    fn where_no_device_is_left_the_rest_is_not_tried() {
        let jobs = jobs_of_tests(20);
        let outcome = drain(jobs.iter(), &devices(["a", "b"]), || false, |_, _| failed(true));
        assert_eq!(outcome.lost.len(), 2);
        let (failed, untried) = (outcome.failed.len(), outcome.untried.len());
        assert!(failed <= 2 * IN_A_ROW && failed + untried == 20, "{outcome:?}");
    }

    #[test]
    fn a_job_that_fails_everywhere_fails_alone() {
        let jobs = jobs_of_tests(6);
        let outcome = drain(
            jobs.iter(),
            &devices(["a", "b"]),
            || false,
            |job, _| {
                if job.name == jobs[2].name { failed(true) } else { Ended::Done }
            },
        );
        assert_eq!(
            (outcome.done, outcome.failed.as_slice()),
            (5, [jobs[2].name.clone()].as_slice())
        );
        assert!(outcome.lost.is_empty());
        // One that had worked is to blame itself, as often as it happens.
        let outcome = drain(jobs.iter(), &devices(["a"]), || false, |_, _| failed(false));
        assert!(outcome.failed.len() == 6 && outcome.lost.is_empty(), "{outcome:?}");
    }

    #[test]
    fn a_panic_is_a_failure_of_its_job_and_hangs_nothing() {
        let jobs = jobs_of_tests(4);
        let outcome = drain(
            jobs.iter(),
            &devices(["a", "b"]),
            || false,
            |job, _| {
                assert_ne!(job.name, jobs[1].name, "on purpose");
                Ended::Done
            },
        );
        assert_eq!((outcome.done, outcome.failed), (3, vec![jobs[1].name.clone()]));
    }
}
