//! What is copied in which order, and how far that has got. Pure.
//!
//! Invariants: pieces do not overlap, and all between start and end belongs to one; everything below
//! the cursor is done; a piece is at most [`DATA_BYTES_MAX`] or [`ZERO_BYTES_MAX`] long.

use std::collections::{BTreeMap, VecDeque};

/// Longest piece that holds data.
pub const DATA_BYTES_MAX: u64 = 1 << 20;
/// Longest piece that is zeros.
pub const ZERO_BYTES_MAX: u64 = 32 << 20;
/// So far ahead of the pieces handed out it is known what holds data.
const KNOWN_AHEAD: u64 = 64 << 20;
/// So much is asked about at once.
const ASKED_BYTES_MAX: u64 = 1 << 30;
/// Pieces begin and end at blocks, so that no block is written twice.
const BLOCK: u64 = 4096;

/// A run of bytes alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Bytes.
    pub length: u64,
    /// Whether they surely are zeros.
    pub zero: bool,
}

/// What is copied at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Whether they surely are zeros.
    pub zero: bool,
}

/// A copy under way.
#[derive(Clone, Debug)]
pub struct Schedule {
    end: u64,
    /// Where the next piece begins, and the runs from there.
    next: u64,
    runs: VecDeque<Run>,
    /// Up to where runs are known.
    known: u64,
    asked: bool,
    /// Pieces handed out and not done, by offset.
    under_way: BTreeMap<u64, u64>,
}

impl Schedule {
    /// Copies what lies between.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Self {
        let next = start.min(end);
        Self { end, next, runs: VecDeque::new(), known: next, asked: false, under_way: BTreeMap::new() }
    }

    /// The range, offset and length, of which it must be said next what holds data.
    pub fn next_question(&mut self) -> Option<(u64, u64)> {
        let due = !self.asked && self.known < self.end && self.known - self.next < KNOWN_AHEAD;
        self.asked |= due;
        due.then(|| (self.known, (self.end - self.known).min(ASKED_BYTES_MAX)))
    }

    /// The answer: runs from where the question began; they may say less than was asked.
    pub fn answered(&mut self, runs: impl IntoIterator<Item = Run>) {
        self.asked = false;
        for run in runs {
            let start = self.known;
            let end = start.saturating_add(run.length).min(self.end);
            self.known = end;
            // Of a hole only whole blocks; the data beside it is read with its whole blocks.
            let hole_start = start.next_multiple_of(BLOCK).min(end);
            let hole_end = if end == self.end { end } else { end / BLOCK * BLOCK };
            if run.zero && hole_start < hole_end {
                self.push(start, hole_start, false);
                self.push(hole_start, hole_end, true);
                self.push(hole_end, end, false);
            } else {
                self.push(start, end, false);
            }
        }
    }

    fn push(&mut self, start: u64, end: u64, zero: bool) {
        let length = end - start;
        match self.runs.back_mut() {
            _ if length == 0 => {}
            Some(last) if last.zero == zero => last.length += length,
            _ => self.runs.push_back(Run { length, zero }),
        }
    }

    /// The next piece, if it is known already.
    pub fn next_piece(&mut self) -> Option<Piece> {
        let run = self.runs.front_mut()?;
        let length = run.length.min(if run.zero { ZERO_BYTES_MAX } else { DATA_BYTES_MAX });
        let piece = Piece { offset: self.next, length, zero: run.zero };
        run.length -= length;
        if run.length == 0 {
            self.runs.pop_front();
        }
        self.next += length;
        self.under_way.insert(piece.offset, length);
        Some(piece)
    }

    /// The piece that begins there is done.
    ///
    /// # Panics
    /// When it was not under way.
    pub fn done(&mut self, offset: u64) {
        let piece = self.under_way.remove(&offset);
        assert!(piece.is_some(), "the piece at {offset} is not under way");
    }

    /// Everything below is done.
    #[must_use]
    pub fn cursor(&self) -> u64 {
        self.under_way.first_key_value().map_or(self.next, |(&first, _)| first)
    }

    /// Whether everything is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.cursor() == self.end
    }

    /// Where the cursor is when everything is done.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }
}

/// Cuts data into what is zeros and what is not. Short runs of zeros count as data: two writes cost
/// more than the space that they save.
pub fn runs_in(data: &[u8]) -> Vec<Run> {
    const HOLE_BLOCKS_MIN: u64 = 8;
    let mut runs: Vec<Run> = Vec::new();
    for block in data.chunks(usize::try_from(BLOCK).unwrap_or(usize::MAX)) {
        let length = block.len() as u64;
        let zero = block.iter().all(|byte| *byte == 0);
        match runs.last_mut() {
            Some(last) if last.zero == zero => last.length += length,
            _ => runs.push(Run { length, zero }),
        }
    }
    // A whole piece of zeros stays one, however short it is.
    if runs.len() > 1 {
        for run in &mut runs {
            run.zero &= run.length >= HOLE_BLOCKS_MIN * BLOCK;
        }
        runs.dedup_by(|later, kept| {
            let same = later.zero == kept.zero;
            if same {
                kept.length += later.length;
            }
            same
        });
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run() -> impl Strategy<Value = Run> {
        (prop_oneof![1..5000_u64, 1..80_000_000_u64], any::<bool>())
            .prop_map(|(length, zero)| Run { length, zero })
    }

    fn bytes_of(runs: &[Run]) -> u64 {
        runs.iter().map(|run| run.length).sum()
    }

    fn is_zero_at(runs: &[Run], at: u64) -> bool {
        let mut end = 0;
        let found = runs.iter().find(|run| {
            end += run.length;
            at < end
        });
        found.is_some_and(|run| run.zero)
    }

    proptest! {
        #[test]
        fn everything_is_copied_once_and_the_cursor_never_passes_what_is_not_done(
            runs in proptest::collection::vec(run(), 1..40),
            start in 0..1_000_000_000_u64,
            answers in proptest::collection::vec(1..6_usize, 1..10),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 200),
            depth in 1..9_usize,
        ) {
            let end = bytes_of(&runs);
            let start = start % (end + 1) / BLOCK * BLOCK;
            let mut schedule = Schedule::new(start, end);
            let mut open: Vec<Piece> = Vec::new();
            let mut covered = start;
            let mut orders = order.iter().cycle();
            let mut answers = answers.iter().cycle();
            while !schedule.is_done() {
                if let Some((offset, length)) = schedule.next_question() {
                    prop_assert!(length > 0 && offset + length <= end);
                    // The source says as much of it as it likes.
                    let mut told = Vec::new();
                    let mut at = 0;
                    for run in &runs {
                        let (from, to) = (at.max(offset), (at + run.length).min(offset + length));
                        at += run.length;
                        if from < to {
                            told.push(Run { length: to - from, zero: run.zero });
                        }
                    }
                    told.truncate(*answers.next().unwrap());
                    schedule.answered(told);
                }
                while open.len() < depth && let Some(piece) = schedule.next_piece() {
                    prop_assert_eq!(piece.offset, covered, "pieces follow each other");
                    covered += piece.length;
                    let most = if piece.zero { ZERO_BYTES_MAX } else { DATA_BYTES_MAX };
                    prop_assert!(piece.length <= most);
                    if piece.zero {
                        for at in [piece.offset, piece.offset + piece.length - 1, piece.offset + piece.length / 2] {
                            prop_assert!(is_zero_at(&runs, at), "{piece:?} holds data at {at}");
                        }
                    }
                    open.push(piece);
                }
                let first_open = open.iter().map(|piece| piece.offset).min().unwrap_or(covered);
                prop_assert_eq!(schedule.cursor(), first_open);
                if !open.is_empty() {
                    let piece = open.swap_remove(orders.next().unwrap().index(open.len()));
                    schedule.done(piece.offset);
                }
            }
            prop_assert_eq!(covered, end);
            prop_assert!(open.is_empty());
        }

        #[test]
        fn what_is_called_zeros_is_zeros(blocks in proptest::collection::vec((any::<bool>(), 1..20_usize), 1..12), odd in 0..4096_usize) {
            let mut data = Vec::new();
            for (zero, count) in &blocks {
                data.resize(data.len() + count * 4096, u8::from(!zero));
            }
            data.resize(data.len() + odd, 0);
            let runs = runs_in(&data);
            prop_assert_eq!(bytes_of(&runs), data.len() as u64);
            let mut at = 0;
            for run in &runs {
                let end = at + usize::try_from(run.length).unwrap();
                prop_assert!(!run.zero || data[at..end].iter().all(|byte| *byte == 0));
                at = end;
            }
            if data.iter().all(|byte| *byte == 0) {
                prop_assert!(runs.iter().all(|run| run.zero));
            }
        }
    }
}
