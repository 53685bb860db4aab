//! A batch: the same views at two resolutions, labels, and the cursor that follows it.

use crate::SampleId;
use crate::cursor::Cursor;
use crate::slab::{Filled, Free};

/// One batch. Dropping it gives its memory back to the loader, which fills it again.
///
/// # Shapes
/// N rows, H = W pixels a side: `large` is (N, H, W, 3) at encoder size and `small` the same at
/// generator size, both u8 RGB in row-major order; `labels` and `ids` are (N).
#[derive(Debug)]
pub struct Batch {
    filled: Option<Filled>, // taken in `drop` only
    sides: (usize, usize),
    cursor: Cursor,
    free: async_channel::Sender<Free>,
}

impl Batch {
    pub(crate) fn new(
        filled: Filled,
        sides: (usize, usize),
        cursor: Cursor,
        free: async_channel::Sender<Free>,
    ) -> Self {
        Self { filled: Some(filled), sides, cursor, free }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.read(Filled::rows)
    }

    /// Pixels a side of a large row and of a small one.
    pub fn sides(&self) -> (usize, usize) {
        self.sides
    }

    /// The views at encoder size, (N, H, W, 3).
    pub fn large(&self) -> &[u8] {
        self.read(Filled::large)
    }

    /// The views at generator size, (N, H, W, 3): the exact mean of each 2x2 (or 4x4) square of
    /// [`Batch::large`], halves rounded up. With equal sizes, the same pixels.
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

    /// The position after this batch: start there to go on with the next one.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    fn read<'a, T: Default>(&'a self, part: impl FnOnce(&'a Filled) -> T) -> T {
        self.filled.as_ref().map_or_else(T::default, part)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(filled) = self.filled.take() {
            // There is room for every slab there is. When the loader is gone, so is the channel,
            // and the memory is freed instead.
            let _ = self.free.try_send(filled.free());
        }
    }
}
