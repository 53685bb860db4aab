//! A fixed pool of batch memory. A slab's rows are lent one by one to the decode threads, which
//! write in place; when the last row comes home the slab can be read as a whole.

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::{MmapMut, MmapRaw};

use crate::SampleId;
use crate::error::Error;

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
///
/// Access follows a protocol that the types carry: [`Slab::lend`] takes the only handle and gives
/// a [`Row`] per row; each row is written by its holder alone; the last [`Row::finish`] gives
/// [`Filled`], the only handle again.
#[derive(Debug)]
pub(crate) struct Slab {
    block: Box<dyn HostBlock>,
    large: usize, // bytes of a row
    small: usize,
    capacity: usize,
    rows: UnsafeCell<usize>,
    labels: Box<[UnsafeCell<i64>]>,
    ids: Box<[UnsafeCell<SampleId>]>,
    out: AtomicUsize, // rows still lent
}

// SAFETY: the cells and the block are touched only through `Row` (one per row index at a time)
// and `Filled` (only when no `Row` is out); see there.
unsafe impl Sync for Slab {}

impl Slab {
    /// Memory for `rows` rows of `large` by `large` and `small` by `small` pixels.
    pub(crate) fn make(
        memory: &dyn HostMemory,
        rows: usize,
        (large, small): (usize, usize),
    ) -> Result<Free, Error> {
        let (large, small) = (large * large * 3, small * small * 3);
        let bytes = (large + small) * rows;
        let block = memory.allocate(bytes)?;
        if block.len() < bytes {
            let reason = format!("only {} bytes were given", block.len());
            return Err(Error::Memory { bytes, reason });
        }
        Ok(Free(Arc::new(Self {
            block,
            large,
            small,
            capacity: rows,
            rows: UnsafeCell::new(rows),
            labels: (0..rows).map(|_| UnsafeCell::new(-1)).collect(),
            ids: (0..rows).map(|_| UnsafeCell::new(0)).collect(),
            out: AtomicUsize::new(0),
        })))
    }

    fn large_start(&self) -> *mut u8 {
        self.block.pointer().as_ptr()
    }

    fn small_start(&self) -> *mut u8 {
        // SAFETY: the large rows end inside the block, as `make` checked.
        unsafe { self.large_start().add(self.large * self.capacity) }
    }
}

/// A slab that nobody uses.
#[derive(Debug)]
pub(crate) struct Free(Arc<Slab>);

impl Free {
    /// Lends out the first `rows` rows.
    ///
    /// # Panics
    /// When `rows` is zero or more than the slab has.
    pub(crate) fn lend(self, rows: usize) -> impl Iterator<Item = Row> {
        let slab = self.0;
        assert!((1..=slab.capacity).contains(&rows), "{rows} rows of {}", slab.capacity);
        // SAFETY: `Free` is the only handle that may touch the slab: no row is out.
        unsafe { *slab.rows.get() = rows };
        // The rows travel to their threads through channels, which order this store before theirs.
        slab.out.store(rows, Ordering::Relaxed);
        (0..rows).map(move |row| Row { slab: Arc::clone(&slab), row })
    }
}

/// One row of a slab, to be written by its holder.
#[derive(Debug)]
pub(crate) struct Row {
    slab: Arc<Slab>,
    row: usize,
}

impl Row {
    /// The row's pixels, large and small; what they hold now is of no meaning.
    pub(crate) fn pixels(&mut self) -> (&mut [u8], &mut [u8]) {
        let slab = &*self.slab;
        // SAFETY: both ranges lie inside the block, whose size `make` checked against the capacity,
        // and `row` is below it. No two live `Row`s of a slab have the same index, `lend` being
        // the only maker, and `Filled` exists only when none is left; so the ranges are ours alone
        // for as long as `self` is borrowed. The bytes are initialised (`HostBlock`).
        unsafe {
            let large = slab.large_start().add(self.row * slab.large);
            let small = slab.small_start().add(self.row * slab.small);
            (
                std::slice::from_raw_parts_mut(large, slab.large),
                std::slice::from_raw_parts_mut(small, slab.small),
            )
        }
    }

    /// Hands the row back, with what it holds. The last row of the slab gives the whole.
    pub(crate) fn finish(self, label: Option<i64>, id: SampleId) -> Option<Filled> {
        let Self { slab, row } = self;
        // SAFETY: the cells of this row are ours alone, for the reason given in `pixels`.
        unsafe {
            *slab.labels[row].get() = label.unwrap_or(-1);
            *slab.ids[row].get() = id;
        }
        // Release what was written; the last one acquires what all the others wrote.
        (slab.out.fetch_sub(1, Ordering::AcqRel) == 1).then_some(Filled(slab))
    }
}

/// A slab whose rows are all written. It can only be read, until it is freed.
#[derive(Debug)]
pub(crate) struct Filled(Arc<Slab>);

impl Filled {
    pub(crate) fn rows(&self) -> usize {
        // SAFETY: written in `lend` only, which needs the handle that we hold.
        unsafe { *self.0.rows.get() }
    }

    pub(crate) fn large(&self) -> &[u8] {
        // SAFETY: no row is out, so nobody writes, and nobody can before `free` takes `self`; the
        // range lies inside the block and is initialised.
        unsafe { std::slice::from_raw_parts(self.0.large_start(), self.0.large * self.rows()) }
    }

    pub(crate) fn small(&self) -> &[u8] {
        // SAFETY: as in `large`.
        unsafe { std::slice::from_raw_parts(self.0.small_start(), self.0.small * self.rows()) }
    }

    pub(crate) fn labels(&self) -> &[i64] {
        let cells = &self.0.labels[..self.rows()];
        // SAFETY: `UnsafeCell<i64>` has the layout of `i64`, and nobody writes, as in `large`.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    pub(crate) fn ids(&self) -> &[SampleId] {
        let cells = &self.0.ids[..self.rows()];
        // SAFETY: as in `labels`.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    pub(crate) fn free(self) -> Free {
        Free(self.0)
    }
}

/// Memory whose use panics on any thread but the one that made it.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Trap(std::thread::ThreadId);

#[cfg(test)]
impl Trap {
    pub(crate) fn new() -> Self {
        Self(std::thread::current().id())
    }
}

#[cfg(test)]
impl HostMemory for Trap {
    fn allocate(&self, bytes: usize) -> Result<Box<dyn HostBlock>, Error> {
        Ok(Box::new(TrapBlock { block: Heap.allocate(bytes)?, home: self.0 }))
    }
}

#[cfg(test)]
#[derive(Debug)]
struct TrapBlock {
    block: Box<dyn HostBlock>,
    home: std::thread::ThreadId,
}

// SAFETY: where it returns, it returns what a sound block does.
#[cfg(test)]
unsafe impl HostBlock for TrapBlock {
    fn pointer(&self) -> NonNull<u8> {
        assert_eq!(std::thread::current().id(), self.home, "the trap shut");
        self.block.pointer()
    }

    fn len(&self) -> usize {
        self.block.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_written_by_many_threads_come_home_whole() {
        let mut free = Slab::make(&Heap, 64, (8, 4)).unwrap();
        for round in 0..50u8 {
            let (sender, receiver) = crossbeam::channel::unbounded();
            for (id, row) in free.lend(64 - usize::from(round % 3)).enumerate() {
                sender.send((id as u8, row)).unwrap();
            }
            drop(sender);
            let write = |(id, mut row): (u8, Row)| {
                let (large, small) = row.pixels();
                large.fill(id ^ round);
                small.fill(id + 1);
                row.finish((id & 1 == 0).then_some(id.into()), id.into())
            };
            let mut whole = std::thread::scope(|scope| {
                let threads = [(); 4].map(|()| {
                    let receiver = receiver.clone();
                    scope.spawn(move || receiver.iter().filter_map(write).collect::<Vec<_>>())
                });
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(whole.len(), 1);
            let filled = whole.remove(0);
            for row in 0..filled.rows() {
                let id = row as u8;
                assert_eq!(filled.large()[row * 192..][..192], [id ^ round; 192]);
                assert_eq!(filled.small()[row * 48..][..48], [id + 1; 48]);
                assert_eq!(filled.ids()[row], row as u64);
                assert_eq!(filled.labels()[row], if id & 1 == 0 { id.into() } else { -1 });
            }
            free = filled.free();
        }
    }

    #[test]
    fn only_the_last_row_gives_the_whole() {
        let slab = Slab::make(&Heap, 3, (2, 1)).unwrap();
        let mut rows: Vec<_> = slab.lend(2).collect();
        for (value, row) in rows.iter_mut().enumerate() {
            row.pixels().0.fill(value as u8);
            row.pixels().1.fill(value as u8 + 10);
        }
        let last = rows.pop().unwrap();
        assert!(rows.pop().unwrap().finish(None, 5).is_none());
        let filled = last.finish(Some(3), 6).unwrap();
        assert_eq!(filled.rows(), 2);
        assert_eq!(filled.large(), [[0; 12], [1; 12]].concat());
        assert_eq!(filled.small(), [10, 10, 10, 11, 11, 11]);
        assert_eq!((filled.labels(), filled.ids()), (&[-1, 3][..], &[5, 6][..]));
        assert_eq!(filled.free().lend(3).count(), 3);
    }
}
