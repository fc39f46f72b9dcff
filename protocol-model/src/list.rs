//! A short list without the heap, so that states are cheap to copy and to hash.

use std::fmt;

/// Up to `N` items in order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct List<T, const N: usize> {
    length: usize,
    /// Those past `length` are defaults, so that equal lists are equal bytes.
    items: [T; N],
}

impl<T: Copy + Default, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self { length: 0, items: [T::default(); N] }
    }
}

impl<T: Copy + Default, const N: usize> List<T, N> {
    /// The items.
    #[must_use]
    pub fn items(&self) -> &[T] {
        &self.items[..self.length]
    }

    /// The items, to be changed.
    pub fn items_mut(&mut self) -> &mut [T] {
        &mut self.items[..self.length]
    }

    /// Adds one at the end.
    ///
    /// # Panics
    /// When the list is full: the bounds of the check are too large for the state.
    pub fn push(&mut self, item: T) {
        assert!(self.length < N, "a list of {N} is full");
        self.items[self.length] = item;
        self.length += 1;
    }

    /// Keeps those that `keep` is true for.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        let mut kept = Self::default();
        for item in self.items() {
            if keep(item) {
                kept.push(*item);
            }
        }
        *self = kept;
    }
}

impl<T: fmt::Debug, const N: usize> fmt::Debug for List<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.items[..self.length]).finish()
    }
}
