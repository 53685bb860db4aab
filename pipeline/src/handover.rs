//! Who writes which rows, and when a batch may be read. Numbers only: the memory is `slab`'s.
//!
//! Rows are dealt out in *runs*: neighbours of one batch. A decode thread takes the next run by one
//! atomic addition, which gives it a number; batch and rows follow by arithmetic ([`Runs`]). It
//! waits until that batch has a slab, writes its rows, and says so. The caller takes batches in
//! order, each as soon as all its rows are written, and gives their slabs back in any order.
//!
//! # Why nothing can deadlock
//! Slabs are lent to batches in the order of the batches. A run whose batch has a slab never waits
//! here. So the oldest batch that is not whole always goes on: where it has a slab, its runs were
//! taken, or are the next to be taken; where it has none, all slabs are with the caller, for any
//! other would have come to it first. The one thing that can hold all up is a caller that keeps
//! every slab, and [`HandOver::all_out`] tells it.
//!
//! # Why no two write the same row
//! A number is taken once, and [`Runs`] gives no row of a batch to two numbers. A slab is lent to
//! one batch until the caller has it and gives it back. A slot serves the batches n, n + slabs, …:
//! while batch n is not published it holds a slab, so of the others only `slabs - 1` are left, and
//! batch n + slabs waits.
//!
//! What happens with `std`'s atomics here, `tests/handover.rs` tries with loom's, in every order
//! that they allow.

use std::ops::Range;
use std::time::Duration;

use crossbeam::utils::CachePadded;

use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// How the rows of an endless order of batches are cut into runs. Of an epoch's batches all have
/// the same number of rows but the last one; batches of no rows are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Runs {
    /// Rows of a batch.
    pub(crate) rows: usize,
    /// Rows of an epoch's last batch, at least 1.
    pub(crate) last: usize,
    /// Batches of an epoch.
    pub(crate) batches: u64,
    /// Batches of the first epoch that are passed over.
    pub(crate) first: u64,
    /// Rows of a run, at least 1; the last of a batch may have fewer.
    pub(crate) run: usize,
}

impl Runs {
    /// Rows of the batch `number`, counted from the first that is not passed over.
    pub(crate) fn rows_of(&self, number: u64) -> usize {
        let last = (number + self.first) % self.batches == self.batches - 1;
        if last { self.last } else { self.rows }
    }

    /// The run with this number: of which batch, and which rows.
    pub(crate) fn run(&self, number: u64) -> (u64, Range<usize>) {
        let of_batch = self.rows.div_ceil(self.run) as u64;
        let of_epoch = (self.batches - 1) * of_batch + self.last.div_ceil(self.run) as u64;
        let number = number + self.first * of_batch;
        let (epoch, within) = (number / of_epoch, number % of_epoch);
        let batch = (within / of_batch).min(self.batches - 1);
        let first = (within - batch * of_batch) as usize * self.run;
        let batch = epoch * self.batches + batch - self.first;
        (batch, first..(first + self.run).min(self.rows_of(batch)))
    }
}

/// What the caller is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<E> {
    /// The next batch, of this number, is whole; it is on this slab, which is the caller's until it
    /// is given back.
    Whole(u64, usize),
    /// The next batch cannot be made whole.
    Failed(E),
    /// A thread cannot go on.
    Broken(E),
}

/// The place where decode threads and the caller meet.
#[derive(Debug)]
pub(crate) struct HandOver<E> {
    runs: Runs,
    /// Batches in all.
    end: u64,
    /// Runs taken.
    taken: CachePadded<AtomicU64>,
    /// Batches that were lent a slab: those below may be written.
    lent: CachePadded<AtomicU64>,
    stopped: AtomicBool,
    /// Of the batch n at n modulo their number, which is that of the slabs.
    slots: Box<[CachePadded<Slot>]>,
    state: Mutex<State<E>>,
    /// A slab was lent, or all is over: for decode threads.
    lending: Condvar,
    /// The next batch is whole or failed: for the caller.
    publishing: Condvar,
}

#[derive(Debug)]
struct Slot {
    slab: AtomicUsize,
    /// Rows that are not yet written.
    left: AtomicUsize,
}

#[derive(Debug)]
struct State<E> {
    /// Batches that the caller got, which is the number of the next one.
    published: u64,
    /// Slabs that the caller has.
    out: usize,
    /// Decode threads that wait for a slab, and whether the caller waits for a batch: a wake-up of
    /// nobody is a system call as well.
    writers: usize,
    reader: bool,
    /// Batches that cannot be made whole.
    failed: Vec<(u64, E)>,
    broken: Option<E>,
}

impl<E> HandOver<E> {
    /// For the first `end` batches of `runs`, with so many slabs, all of them lent at once.
    pub(crate) fn new(runs: Runs, end: u64, slabs: usize) -> Self {
        let slot = || Slot { slab: AtomicUsize::new(0), left: AtomicUsize::new(0) };
        let new = Self {
            runs,
            end,
            taken: CachePadded::new(AtomicU64::new(0)),
            lent: CachePadded::new(AtomicU64::new(0)),
            stopped: AtomicBool::new(false),
            slots: (0..slabs).map(|_| CachePadded::new(slot())).collect(),
            state: Mutex::new(State {
                published: 0,
                out: 0,
                writers: 0,
                reader: false,
                failed: Vec::new(),
                broken: None,
            }),
            lending: Condvar::new(),
            publishing: Condvar::new(),
        };
        let mut state = new.lock();
        (0..slabs).for_each(|slab| new.lend(&mut state, slab));
        drop(state);
        new
    }

    /// The next run of rows, which is this thread's; none when all are taken.
    pub(crate) fn take(&self) -> Option<(u64, Range<usize>)> {
        // Nothing but the number itself is handed over here.
        let (batch, rows) = self.runs.run(self.taken.fetch_add(1, Ordering::Relaxed));
        (batch < self.end).then_some((batch, rows))
    }

    /// Waits until `batch` has a slab, and gives it; none when the loader stops.
    pub(crate) fn enter(&self, batch: u64) -> Option<usize> {
        // Acquires what the slot and the slab held when they were lent.
        if self.lent.load(Ordering::Acquire) <= batch {
            let mut state = self.lock();
            // Written under the lock only.
            while self.lent.load(Ordering::Relaxed) <= batch && !self.is_stopped() {
                state.writers += 1;
                state = wait(&self.lending, state);
                state.writers -= 1;
            }
        }
        (!self.is_stopped()).then(|| self.slot(batch).slab.load(Ordering::Relaxed))
    }

    /// Says that so many rows of `batch` are written.
    pub(crate) fn leave(&self, batch: u64, rows: usize) {
        // Releases what was written; the caller acquires what all threads wrote.
        if self.slot(batch).left.fetch_sub(rows, Ordering::AcqRel) == rows {
            self.tell(|_| {}, Some(batch));
        }
    }

    /// Says that a row of `batch` cannot be written. The first to say so is heard.
    pub(crate) fn fail(&self, batch: u64, error: E) {
        self.tell(|state| state.failed.push((batch, error)), Some(batch));
    }

    /// Says that a thread cannot go on. The first to say so is heard.
    pub(crate) fn give_up(&self, error: E) {
        let first = |state: &mut State<E>| {
            state.broken.get_or_insert(error);
        };
        self.tell(first, None);
    }

    /// Waits for the next batch for so long at most; none when that was not enough.
    pub(crate) fn next(&self, patience: Duration) -> Option<Event<E>> {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            if let Some(error) = state.broken.take() {
                return Some(Event::Broken(error));
            }
            let next = state.published;
            if let Some(at) = state.failed.iter().position(|failed| failed.0 == next) {
                return Some(Event::Failed(state.failed.swap_remove(at).1));
            }
            if next < self.lent.load(Ordering::Relaxed)
                && self.slot(next).left.load(Ordering::Acquire) == 0
            {
                state.published += 1;
                state.out += 1;
                let slab = self.slot(next).slab.load(Ordering::Relaxed);
                return Some(Event::Whole(next, slab));
            }
            if waited {
                return None;
            }
            state.reader = true;
            (state, waited) = wait_for(&self.publishing, state, patience);
            state.reader = false;
        }
    }

    /// Gives a slab back that [`HandOver::next`] gave.
    pub(crate) fn give_back(&self, slab: usize) {
        let mut state = self.lock();
        state.out -= 1;
        self.lend(&mut state, slab);
        if state.writers > 0 {
            self.lending.notify_all();
        }
    }

    /// Whether the caller has every slab there is, so that nothing can come before it gives one
    /// back.
    pub(crate) fn all_out(&self) -> bool {
        self.lock().out == self.slots.len()
    }

    /// Batches that are whole and not yet with the caller.
    pub(crate) fn ready(&self) -> usize {
        let next = self.lock().published;
        let lent = self.lent.load(Ordering::Acquire);
        (next..lent).filter(|&n| self.slot(n).left.load(Ordering::Relaxed) == 0).count()
    }

    /// Lets every decode thread end.
    pub(crate) fn stop(&self) {
        let _state = self.lock();
        self.stopped.store(true, Ordering::Relaxed);
        self.lending.notify_all();
    }

    /// Whether the loader stops.
    pub(crate) fn is_stopped(&self) -> bool {
        // Only a hint outside the lock: it orders nothing.
        self.stopped.load(Ordering::Relaxed)
    }

    /// Lends a slab to the next batch that has none; none is left when all have had one.
    fn lend(&self, _state: &mut State<E>, slab: usize) {
        let batch = self.lent.load(Ordering::Relaxed);
        if batch == self.end {
            return;
        }
        let slot = self.slot(batch);
        slot.slab.store(slab, Ordering::Relaxed);
        slot.left.store(self.runs.rows_of(batch), Ordering::Relaxed);
        // Releases the slot, and the slab as the caller left it.
        self.lent.store(batch + 1, Ordering::Release);
    }

    /// Changes the state and wakes the caller where it waits for `batch`, or for anything.
    fn tell(&self, change: impl FnOnce(&mut State<E>), batch: Option<u64>) {
        let mut state = self.lock();
        change(&mut state);
        if state.reader && batch.is_none_or(|batch| batch == state.published) {
            self.publishing.notify_all();
        }
    }

    fn slot(&self, batch: u64) -> &Slot {
        &self.slots[(batch % self.slots.len() as u64) as usize]
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        // No code that can panic runs under the lock, so what it guards is whole.
        self.state.lock().unwrap_or_else(crate::sync::PoisonError::into_inner)
    }
}

fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(crate::sync::PoisonError::into_inner)
}

/// Says as well whether it was for nothing.
fn wait_for<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    patience: Duration,
) -> (MutexGuard<'a, T>, bool) {
    let (guard, result) = condition
        .wait_timeout(guard, patience)
        .unwrap_or_else(crate::sync::PoisonError::into_inner);
    (guard, result.timed_out())
}
