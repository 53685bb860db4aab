//! A fixed pool of batch memory. Decode threads write rows of a slab in place; when all are written
//! the slab can be read as a whole, until it is given back.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};
use std::time::Duration;

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::{MmapMut, MmapRaw};

use crate::SampleId;
use crate::error::Error;
use crate::handover::{Event, HandOver, Runs};

/// Where batch memory comes from: the heap here, page-locked memory in a trainer.
pub trait HostMemory: Send + Sync + std::fmt::Debug {
    /// Gives `bytes` bytes. Called a few times when a loader starts and never after.
    ///
    /// # Errors
    /// [`Error::Memory`] when there is none.
    fn allocate(&self, bytes: usize) -> Result<Box<dyn HostBlock>, Error>;
}

/// One piece of host memory. It is given back when dropped.
///
/// # Safety
/// `pointer` must return the same address each time, valid for reads and writes of `len` bytes,
/// initialised, and used by nobody else, until the block is dropped.
pub unsafe trait HostBlock: Send + Sync + std::fmt::Debug {
    /// The first byte.
    fn pointer(&self) -> NonNull<u8>;
    /// The number of bytes.
    fn len(&self) -> usize;
    /// True for a block of no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Ordinary batch memory, in huge pages where the system has some.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heap;

#[derive(Debug)]
struct HeapBlock(MmapRaw);

impl HostMemory for Heap {
    fn allocate(&self, bytes: usize) -> Result<Box<dyn HostBlock>, Error> {
        let refuse = |reason: std::io::Error| Error::Memory { bytes, reason: reason.to_string() };
        // The system zeroes a page when it is first written to, by the thread that does.
        let map = MmapRaw::from(MmapMut::map_anon(bytes.max(1)).map_err(refuse)?);
        #[cfg(target_os = "linux")]
        let _ = map.advise(Advice::HugePage); // a refusal changes only speed
        Ok(Box::new(HeapBlock(map)))
    }
}

// SAFETY: the address is fixed, zeroed by the system, and unshared until `drop`.
unsafe impl HostBlock for HeapBlock {
    fn pointer(&self) -> NonNull<u8> {
        NonNull::new(self.0.as_mut_ptr()).expect("a mapping is not at zero")
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Memory for one batch: N rows of large pixels, N rows of small pixels, labels and ids.
#[derive(Debug)]
struct Slab {
    block: Box<dyn HostBlock>,
    large: usize, // bytes of a row
    small: usize,
    capacity: usize,
    labels: Box<[UnsafeCell<i64>]>,
    ids: Box<[UnsafeCell<SampleId>]>,
}

// SAFETY: the cells and the block are touched only through `Run` (one per row at a time) and
// `Filled` (only while no `Run` of the slab can be had); see there.
unsafe impl Sync for Slab {}

impl Slab {
    /// Memory for `rows` rows of `large` by `large` and `small` by `small` pixels.
    fn make(
        memory: &dyn HostMemory,
        rows: usize,
        (large, small): (usize, usize),
    ) -> Result<Self, Error> {
        let (large, small) = (large * large * 3, small * small * 3);
        let bytes = (large + small) * rows;
        let block = memory.allocate(bytes)?;
        if block.len() < bytes {
            let reason = format!("only {} bytes were given", block.len());
            return Err(Error::Memory { bytes, reason });
        }
        Ok(Self {
            block,
            large,
            small,
            capacity: rows,
            labels: (0..rows).map(|_| UnsafeCell::new(-1)).collect(),
            ids: (0..rows).map(|_| UnsafeCell::new(0)).collect(),
        })
    }

    fn large_start(&self) -> *mut u8 {
        self.block.pointer().as_ptr()
    }

    fn small_start(&self) -> *mut u8 {
        // SAFETY: the large rows end inside the block, as `make` checked.
        unsafe { self.large_start().add(self.large * self.capacity) }
    }
}

/// All slabs of a loader, and who has them.
///
/// Access follows a protocol that the types carry: [`Pool::enter`] gives a [`Run`] of rows, to be
/// written by its holder alone; when all runs of a batch are finished, [`Pool::next`] gives
/// [`Filled`], to be read, whose drop gives the slab back.
#[derive(Debug)]
pub(crate) struct Pool {
    slabs: Vec<Arc<Slab>>,
    hand_over: HandOver<Error>,
    runs: Runs,
    process: u32,
}

/// What the caller is told.
#[derive(Debug)]
pub(crate) enum Next {
    /// The next batch.
    Batch(Filled),
    /// Why there is none, in its place.
    Failed(Error),
    /// A thread cannot go on.
    Broken(Error),
}

/// A run of rows that was taken: number of its batch, and which of its rows.
#[derive(Debug)]
pub(crate) struct Ticket {
    batch: u64,
    rows: Range<usize>,
}

impl Ticket {
    /// The batch, counted from the loader's start, those of no rows left out.
    pub(crate) fn batch(&self) -> u64 {
        self.batch
    }

    /// Its rows.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }
}

impl Pool {
    /// `slabs` slabs for the first `end` batches of `runs`, of `large` and `small` pixels a side.
    pub(crate) fn new(
        memory: &dyn HostMemory,
        slabs: usize,
        (runs, end): (Runs, u64),
        sides: (usize, usize),
    ) -> Result<Arc<Self>, Error> {
        let rows = runs.rows.max(runs.last);
        let make = |_| Slab::make(memory, rows, sides).map(Arc::new);
        let slabs = (0..slabs).map(make).collect::<Result<Vec<_>, _>>()?;
        let hand_over = HandOver::new(runs, end, slabs.len());
        Ok(Arc::new(Self { slabs, hand_over, runs, process: std::process::id() }))
    }

    /// The next run of rows, which is this thread's; none when all are taken.
    pub(crate) fn take(&self) -> Option<Ticket> {
        self.hand_over.take().map(|(batch, rows)| Ticket { batch, rows })
    }

    /// Waits until the rows may be written; none when the loader stops.
    pub(crate) fn enter(&self, ticket: Ticket) -> Option<Run<'_>> {
        let slab = self.hand_over.enter(ticket.batch)?;
        Some(Run { pool: self, slab: &self.slabs[slab], ticket })
    }

    /// Waits for the next batch for so long at most; none when that was not enough.
    pub(crate) fn next(self: &Arc<Self>, patience: Duration) -> Option<Next> {
        let filled = |(number, slab): (u64, usize)| Filled {
            slab: Arc::clone(&self.slabs[slab]),
            rows: self.runs.rows_of(number),
            home: (Arc::downgrade(self), slab, self.process),
        };
        Some(match self.hand_over.next(patience)? {
            Event::Whole(number, slab) => Next::Batch(filled((number, slab))),
            Event::Failed(error) => Next::Failed(error),
            Event::Broken(error) => Next::Broken(error),
        })
    }

    /// Who has what.
    pub(crate) fn hand_over(&self) -> &HandOver<Error> {
        &self.hand_over
    }
}

/// Rows of a slab, to be written by their holder. One that is dropped before it is finished leaves
/// its batch without these rows, so that nobody sees it.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pool: &'a Pool,
    slab: &'a Slab,
    ticket: Ticket,
}

impl Run<'_> {
    /// The batch, counted from the loader's start, those of no rows left out.
    pub(crate) fn batch(&self) -> u64 {
        self.ticket.batch
    }

    /// Its rows.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.ticket.rows()
    }

    /// A row's pixels, large and small; what they hold now is of no meaning.
    ///
    /// # Panics
    /// When the row is not of this run.
    pub(crate) fn pixels(&mut self, row: usize) -> (&mut [u8], &mut [u8]) {
        assert!(self.ticket.rows.contains(&row), "row {row} of {:?}", self.ticket.rows);
        let slab = self.slab;
        // SAFETY: both ranges lie inside the block, whose size `make` checked against the capacity,
        // and `Runs::rows_of`, which bounds every run's rows, is at most the capacity, as `new` took
        // it. No two runs of a batch share a row and no two batches a slab, and `Filled` exists only
        // when every run of its batch is finished (see `handover`); so the ranges are ours alone for
        // as long as `self` is borrowed. The bytes are initialised (`HostBlock`).
        unsafe {
            let large = slab.large_start().add(row * slab.large);
            let small = slab.small_start().add(row * slab.small);
            (
                std::slice::from_raw_parts_mut(large, slab.large),
                std::slice::from_raw_parts_mut(small, slab.small),
            )
        }
    }

    /// Says what a row shows.
    ///
    /// # Panics
    /// When the row is not of this run.
    pub(crate) fn describe(&mut self, row: usize, label: Option<i64>, id: SampleId) {
        assert!(self.ticket.rows.contains(&row), "row {row} of {:?}", self.ticket.rows);
        // SAFETY: the cells of this row are ours alone, for the reason given in `pixels`.
        unsafe {
            *self.slab.labels[row].get() = label.unwrap_or(-1);
            *self.slab.ids[row].get() = id;
        }
    }

    /// Hands the rows over, all of them written.
    pub(crate) fn finish(self) {
        self.pool.hand_over.leave(self.ticket.batch, self.ticket.rows.len());
    }
}

/// A slab whose rows are all written. It can only be read; dropped, it goes back to its pool, or is
/// freed where that is gone.
#[derive(Debug)]
pub(crate) struct Filled {
    slab: Arc<Slab>,
    rows: usize,
    home: (Weak<Pool>, usize, u32),
}

impl Filled {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Where large and small pixels, labels and ids begin. They may be written to while no slice of them is used.
    pub(crate) fn starts(&self) -> (*mut u8, *mut u8, *mut i64, *mut SampleId) {
        let Slab { labels, ids, .. } = &*self.slab;
        let (labels, ids) =
            (UnsafeCell::raw_get(labels.as_ptr()), UnsafeCell::raw_get(ids.as_ptr()));
        (self.slab.large_start(), self.slab.small_start(), labels, ids)
    }

    pub(crate) fn large(&self) -> &[u8] {
        let slab = &*self.slab;
        // SAFETY: all rows are written and no run of this slab can be had before `self` is dropped,
        // so nobody writes; the range lies inside the block and is initialised.
        unsafe { std::slice::from_raw_parts(slab.large_start(), slab.large * self.rows) }
    }

    pub(crate) fn small(&self) -> &[u8] {
        let slab = &*self.slab;
        // SAFETY: as in `large`.
        unsafe { std::slice::from_raw_parts(slab.small_start(), slab.small * self.rows) }
    }

    pub(crate) fn labels(&self) -> &[i64] {
        let cells = &self.slab.labels[..self.rows];
        // SAFETY: `UnsafeCell<i64>` has the layout of `i64`, and nobody writes, as in `large`.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    pub(crate) fn ids(&self) -> &[SampleId] {
        let cells = &self.slab.ids[..self.rows];
        // SAFETY: as in `labels`.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let (pool, slab, process) = &self.home;
        // In a process forked off, nobody writes, and the lock may be held by a thread that is not
        // there.
        if *process == std::process::id()
            && let Some(pool) = pool.upgrade()
        {
            pool.hand_over.give_back(*slab);
        }
    }
}

/// Memory whose use panics on any thread but the one that made it.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct ThreadBound(std::thread::ThreadId);

#[cfg(test)]
impl ThreadBound {
    pub(crate) fn new() -> Self {
        Self(std::thread::current().id())
    }
}

#[cfg(test)]
impl HostMemory for ThreadBound {
    fn allocate(&self, bytes: usize) -> Result<Box<dyn HostBlock>, Error> {
        Ok(Box::new(BoundBlock { block: Heap.allocate(bytes)?, home: self.0 }))
    }
}

#[cfg(test)]
#[derive(Debug)]
struct BoundBlock {
    block: Box<dyn HostBlock>,
    home: std::thread::ThreadId,
}

// SAFETY: where it returns, it returns what a sound block does.
#[cfg(test)]
unsafe impl HostBlock for BoundBlock {
    fn pointer(&self) -> NonNull<u8> {
        assert_eq!(std::thread::current().id(), self.home, "used on another thread");
        self.block.pointer()
    }

    fn len(&self) -> usize {
        self.block.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(runs: Runs, end: u64, slabs: usize) -> Arc<Pool> {
        Pool::new(&Heap, slabs, (runs, end), (8, 4)).unwrap()
    }

    fn whole(pool: &Arc<Pool>) -> Filled {
        match pool.next(Duration::from_secs(20)) {
            Some(Next::Batch(filled)) => filled,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rows_written_by_many_threads_come_home_whole() {
        let runs = Runs { rows: 64, last: 61, batches: 3, first: 1, run: 5 };
        let pool = pool(runs, 50, 3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(mut run) = pool.take().and_then(|ticket| pool.enter(ticket)) {
                        for row in run.rows() {
                            let (batch, id) = (run.batch() as u8, row as u8);
                            let (large, small) = run.pixels(row);
                            large.fill(id ^ batch);
                            small.fill(id + 1);
                            run.describe(row, (id & 1 == 0).then_some(id.into()), id.into());
                        }
                        run.finish();
                    }
                });
            }
            let mut held = None; // one batch is always out
            for batch in 0..50u8 {
                let filled = whole(&pool);
                assert_eq!(filled.rows(), if batch % 3 == 1 { 61 } else { 64 });
                for row in 0..filled.rows() {
                    let id = row as u8;
                    assert_eq!(filled.large()[row * 192..][..192], [id ^ batch; 192]);
                    assert_eq!(filled.small()[row * 48..][..48], [id + 1; 48]);
                    assert_eq!(filled.ids()[row], row as u64);
                    assert_eq!(filled.labels()[row], if id & 1 == 0 { id.into() } else { -1 });
                }
                held = Some(filled);
            }
            drop(held);
        });
    }

    #[test]
    fn a_batch_is_not_whole_before_its_last_row() {
        let runs = Runs { rows: 2, last: 2, batches: 1, first: 0, run: 1 };
        let pool = pool(runs, 1, 1);
        let mut runs = Vec::new();
        while let Some(ticket) = pool.take() {
            runs.push(pool.enter(ticket).unwrap());
        }
        assert_eq!(runs.len(), 2);
        for (value, run) in (0..).zip(&mut runs) {
            run.pixels(value).0.fill(value as u8);
            run.pixels(value).1.fill(value as u8 + 10);
            run.describe(value, None, value as u64 + 5);
        }
        runs.pop().unwrap().finish();
        assert!(pool.next(Duration::ZERO).is_none());
        runs.pop().unwrap().finish();
        let filled = whole(&pool);
        assert_eq!(filled.large(), [[0; 192], [1; 192]].concat());
        assert_eq!(filled.small(), [[10; 48], [11; 48]].concat());
        assert_eq!((filled.labels(), filled.ids()), (&[-1, -1][..], &[5, 6][..]));
        drop(pool);
        assert_eq!(filled.large()[0], 0, "a batch outlives its loader");
    }

    #[test]
    fn rows_of_a_run_that_is_not_finished_are_never_seen() {
        let runs = Runs { rows: 4, last: 4, batches: 1, first: 0, run: 2 };
        let pool = pool(runs, 9, 2);
        let _unfinished = pool.take().and_then(|ticket| pool.enter(ticket));
        pool.take().and_then(|ticket| pool.enter(ticket)).unwrap().finish();
        assert!(pool.next(Duration::ZERO).is_none());
    }
}
