//! Batches become whole out of order; they are published in order.

use std::collections::VecDeque;

/// Puts numbered things back in order. Holds at most as many as the numbers run ahead.
#[derive(Debug)]
pub(crate) struct Reorder<T> {
    next: u64,
    waiting: VecDeque<Option<T>>, // position i belongs to number next + i
}

impl<T> Reorder<T> {
    /// Nothing yet; the first number is 0.
    pub(crate) fn new() -> Self {
        Self { next: 0, waiting: VecDeque::new() }
    }

    /// Takes in `value`, whose number is not yet published and comes once.
    pub(crate) fn put(&mut self, number: u64, value: T) {
        let position = (number - self.next) as usize;
        while self.waiting.len() <= position {
            self.waiting.push_back(None);
        }
        // An error may meet the error of another row of its batch: the first one stays.
        self.waiting[position].get_or_insert(value);
    }

    /// The next one, if it is there.
    pub(crate) fn take(&mut self) -> Option<T> {
        let value = self.waiting.front_mut()?.take()?;
        self.waiting.pop_front();
        self.next += 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_come_out_in_order_and_no_earlier() {
        let mut order = Reorder::new();
        assert_eq!(order.take(), None);
        order.put(2, 'c');
        order.put(1, 'b');
        assert_eq!(order.take(), None);
        order.put(0, 'a');
        assert_eq!([(); 4].map(|()| order.take()), [Some('a'), Some('b'), Some('c'), None]);
        order.put(3, 'd');
        order.put(3, 'x');
        assert_eq!(order.take(), Some('d'));
    }
}
