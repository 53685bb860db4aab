//! A batch: the same views at one or two resolutions, labels, and the cursor that follows it.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::SampleId;
use crate::cursor::Cursor;
use crate::dataset::Dataset;
use crate::slab::Filled;

/// One batch. It may go to any thread and outlive its loader. Clones show the same memory; when the
/// last one is dropped, the loader fills it again.
///
/// # Shapes
/// N rows, H = W pixels a side: `large` is (N, H, W, 3) at encoder size and `small` the same at
/// generator size, both u8 RGB in row-major order without gaps; `labels` (i64) and `ids` (u64) are
/// (N). N is the loader's batch, but for the last batch of an epoch under
/// [`LastBatch::Keep`](crate::LastBatch::Keep): there it may be smaller, and 0 on a rank that is
/// left nothing.
#[derive(Debug, Clone)]
pub struct Batch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    filled: Option<Filled>, // none for no rows
    data: Arc<Dataset>,
    sides: (usize, Option<usize>),
    cursor: Cursor,
}

impl Batch {
    pub(crate) fn new(
        filled: Option<Filled>,
        data: Arc<Dataset>,
        sides: (usize, Option<usize>),
        cursor: Cursor,
    ) -> Self {
        Self(Arc::new(Inner { filled, data, sides, cursor }))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.read(Filled::rows)
    }

    /// Pixels a side of a large row and of a small one, where there are small ones.
    pub fn sides(&self) -> (usize, Option<usize>) {
        self.0.sides
    }

    /// The views at encoder size, (N, H, W, 3).
    pub fn large(&self) -> &[u8] {
        self.read(Filled::large)
    }

    /// The views at generator size, (N, H, W, 3): the exact mean of each 2x2 (or 4x4) square of
    /// [`Batch::large`], halves rounded up. With equal sizes, the same pixels. Empty where the
    /// loader makes one size only.
    pub fn small(&self) -> &[u8] {
        self.read(Filled::small)
    }

    /// Class numbers, -1 where a sample has none.
    pub fn labels(&self) -> &[i64] {
        self.read(Filled::labels)
    }

    /// Positions of the samples in their split.
    pub fn ids(&self) -> &[SampleId] {
        self.read(Filled::ids)
    }

    /// Keys of the samples, row by row.
    pub fn keys(&self) -> Vec<String> {
        self.ids().iter().map(|&id| self.0.data.key(id)).collect()
    }

    /// Where [`Batch::large`] begins, and its shape (N, H, W, 3): for programs in other languages.
    /// Valid for as long as this batch or a clone of it lives. The loader does not write to it before; who has the
    /// only clone may, while nothing reads a slice of it.
    pub fn large_array(&self) -> (NonNull<u8>, [usize; 4]) {
        let side = self.0.sides.0;
        (self.start(|starts| starts.0), [self.rows(), side, side, 3])
    }

    /// The same of [`Batch::small`]; none where the loader makes one size only.
    pub fn small_array(&self) -> Option<(NonNull<u8>, [usize; 4])> {
        let side = self.0.sides.1?;
        Some((self.start(|starts| starts.1), [self.rows(), side, side, 3]))
    }

    /// The same of [`Batch::labels`], and their number.
    pub fn labels_array(&self) -> (NonNull<i64>, usize) {
        (self.start(|starts| starts.2), self.rows())
    }

    /// The same of [`Batch::ids`].
    pub fn ids_array(&self) -> (NonNull<SampleId>, usize) {
        (self.start(|starts| starts.3), self.rows())
    }

    /// The position after this batch: start there to go on with the next one.
    pub fn cursor(&self) -> Cursor {
        self.0.cursor
    }

    fn read<'a, T: Default>(&'a self, part: impl FnOnce(&'a Filled) -> T) -> T {
        self.0.filled.as_ref().map_or_else(T::default, part)
    }

    /// One of [`Filled::starts`]; some address where there are no rows.
    fn start<T>(
        &self,
        which: impl FnOnce((*mut u8, *mut u8, *mut i64, *mut SampleId)) -> *mut T,
    ) -> NonNull<T> {
        let start = self.0.filled.as_ref().and_then(|filled| NonNull::new(which(filled.starts())));
        start.unwrap_or(NonNull::dangling())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_may_go_to_any_thread_and_be_seen_from_several() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<Batch>();
    }
}
