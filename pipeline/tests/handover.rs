//! The hand-over between decode threads and the caller, in every order that the memory model allows
//! (up to a number of preemptions): the very file that the loader runs, with loom's locks, atomics
//! and cells in place of the standard library's. A deadlock, a lost wake-up or a row that two
//! threads touch at once ends the test.

#![allow(dead_code, unreachable_pub, reason = "the test drives a part of the module")]
#![allow(clippy::unwrap_used, reason = "a test stops where it did not expect something")]

#[path = "../src/handover.rs"]
mod handover;

/// As in the crate's root, with loom's parts.
mod sync {
    pub(crate) use std::sync::PoisonError;

    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard, atomic};
}

use std::time::Duration;

use handover::{Event, HandOver, Runs};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

const FOR_EVER: Duration = Duration::MAX;

/// Tries all orders with so many preemptions.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Slabs of two rows, whose cells panic when two threads touch them at once.
struct Memory(Vec<[UnsafeCell<u64>; 2]>);

// SAFETY: loom's cells check what this promises.
unsafe impl Sync for Memory {}
// SAFETY: numbers may go anywhere.
unsafe impl Send for Memory {}

/// Writes rows until none are left, each with a number of its own.
fn write(hand_over: &HandOver<u8>, memory: &Memory) {
    while let Some((batch, rows)) = hand_over.take() {
        let Some(slab) = hand_over.enter(batch) else { return };
        for row in rows.clone() {
            // SAFETY: what is tested.
            memory.0[slab][row].with_mut(|value| unsafe { *value = 10 * batch + row as u64 });
        }
        hand_over.leave(batch, rows.len());
    }
}

/// Takes the next batch and looks at its rows.
fn read(hand_over: &HandOver<u8>, memory: &Memory, runs: Runs, batch: u64) -> usize {
    let Some(Event::Whole(number, slab)) = hand_over.next(FOR_EVER) else { panic!("no batch") };
    assert_eq!(number, batch);
    for row in 0..runs.rows_of(batch) {
        // SAFETY: what is tested.
        memory.0[slab][row].with(|value| assert_eq!(unsafe { *value }, 10 * batch + row as u64));
    }
    slab
}

fn memory(slabs: usize) -> Memory {
    Memory((0..slabs).map(|_| [0; 2].map(UnsafeCell::new)).collect())
}

#[test]
fn batches_are_whole_and_in_order_whoever_writes_them() {
    check(2, || {
        let runs = Runs { rows: 2, last: 1, batches: 3, first: 0, run: 1 };
        let shared = Arc::new((HandOver::new(runs, 3, 2), memory(2)));
        let writers = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || write(&shared.0, &shared.1))
        });
        for batch in 0..3 {
            shared.0.give_back(read(&shared.0, &shared.1, runs, batch));
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
}

#[test]
fn a_batch_that_is_kept_stops_nobody_while_there_is_another_slab() {
    check(2, || {
        let runs = Runs { rows: 2, last: 2, batches: 9, first: 0, run: 2 };
        let shared = Arc::new((HandOver::new(runs, 4, 2), memory(2)));
        let writer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || write(&shared.0, &shared.1))
        };
        let kept = read(&shared.0, &shared.1, runs, 0);
        let (second, third) = (1, 2);
        shared.0.give_back(read(&shared.0, &shared.1, runs, second));
        let last = read(&shared.0, &shared.1, runs, third);
        assert!(shared.0.all_out());
        shared.0.give_back(kept);
        shared.0.give_back(last);
        read(&shared.0, &shared.1, runs, 3);
        writer.join().unwrap();
    });
}

#[test]
fn batches_may_be_given_back_by_another_thread() {
    check(2, || {
        let runs = Runs { rows: 1, last: 1, batches: 1, first: 0, run: 1 };
        let shared = Arc::new((HandOver::new(runs, 2, 1), memory(1)));
        let writer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || write(&shared.0, &shared.1))
        };
        let slab = read(&shared.0, &shared.1, runs, 0);
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.0.give_back(slab))
        };
        read(&shared.0, &shared.1, runs, 1);
        other.join().unwrap();
        writer.join().unwrap();
    });
}

#[test]
fn an_error_comes_in_its_batch_s_place_and_a_panic_at_once() {
    check(2, || {
        let runs = Runs { rows: 1, last: 1, batches: 1, first: 0, run: 1 };
        let shared = Arc::new((HandOver::new(runs, 2, 2), memory(2)));
        let failing = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (batch, rows) = shared.0.take().unwrap();
                shared.0.enter(batch).unwrap();
                let (late, _) = shared.0.take().unwrap();
                shared.0.fail(late, 7);
                shared.0.leave(batch, rows.len());
            })
        };
        assert!(matches!(shared.0.next(FOR_EVER), Some(Event::Whole(0, _))));
        assert_eq!(shared.0.next(FOR_EVER), Some(Event::Failed(7)));
        failing.join().unwrap();
    });
    check(2, || {
        let runs = Runs { rows: 1, last: 1, batches: 1, first: 0, run: 1 };
        let shared = Arc::new(HandOver::new(runs, 2, 2));
        let broken = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.give_up(9))
        };
        assert_eq!(shared.next(FOR_EVER), Some(Event::Broken(9)));
        broken.join().unwrap();
    });
}

#[test]
fn a_thread_that_waits_for_a_slab_ends_when_it_is_told() {
    check(3, || {
        let runs = Runs { rows: 1, last: 1, batches: 1, first: 0, run: 1 };
        let shared = Arc::new((HandOver::<u8>::new(runs, u64::MAX, 1), memory(1)));
        let writers = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || write(&shared.0, &shared.1))
        });
        shared.0.stop();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
}
