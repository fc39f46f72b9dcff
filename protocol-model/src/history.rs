//! What clients may see: the specification, as a set of possible worlds for each block.
//!
//! A *world* of a block is its value and the set of writes that have taken effect. A write that has been
//! asked for may take effect at any time; one that is acknowledged has; a read throws away the worlds in
//! which the value is another. No world left: not linearizable. When a newer engine serves, the unacknowledged
//! writes of older ones have taken effect by then or never do: the chosen outcome sticks.
//!
//! When all members have lost power, a block may be back at any value that it had since the last
//! flush: *survivors*.

use crate::replica::Value;
use crate::set::Set;
use crate::state::BLOCKS_MAX;

/// Writes of clients, at most.
pub const WRITES_MAX: usize = 3;
const VALUES: usize = WRITES_MAX + 1;
const EFFECTS: usize = 1 << WRITES_MAX;

/// Sets of values, one for each block.
pub type Values = [Set; BLOCKS_MAX];

/// See the module's documentation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct History {
    /// One bit for each world.
    worlds: [u32; BLOCKS_MAX],
    /// What the last flush covers, and everything after.
    pub survivors: Values,
    /// Of each write, its generation (0: not asked for yet) and block.
    writes: [(u8, u8); WRITES_MAX],
    /// Writes that may yet take effect.
    undecided: Set,
    /// The newest generation that has served something.
    pub served: u8,
    /// A write was acknowledged after a newer generation had served something (and taken the write in).
    pub acknowledged_late: bool,
}

impl Default for History {
    fn default() -> Self {
        Self {
            worlds: [1; BLOCKS_MAX],
            survivors: [Set::of(0); BLOCKS_MAX],
            writes: [(0, 0); WRITES_MAX],
            undecided: Set::EMPTY,
            served: 0,
            acknowledged_late: false,
        }
    }
}

const fn world(value: usize, effects: usize) -> u32 {
    1 << (value * EFFECTS + effects)
}

fn all_worlds() -> impl Iterator<Item = (usize, usize)> {
    (0..VALUES).flat_map(|value| (0..EFFECTS).map(move |effects| (value, effects)))
}

impl History {
    /// A client asks for a write; answers its value.
    pub fn asked(&mut self, block: usize, generation: u8) -> Option<Value> {
        let index = self.writes.iter().position(|(generation, _)| *generation == 0)?;
        self.writes[index] = (generation, u8::try_from(block).ok()?);
        self.undecided.insert(index);
        self.survivors[block].insert(index + 1);
        self.take_effects(block);
        Value::try_from(index + 1).ok()
    }

    /// The write of `value` is acknowledged; answers whether that can be.
    pub fn acknowledged(&mut self, value: Value) -> bool {
        let index = usize::from(value) - 1;
        let block = usize::from(self.writes[index].1);
        self.undecided.remove(index);
        self.keep(block, |_, effects| effects & (1 << index) != 0)
    }

    /// A client has read `value`; answers whether that can be.
    pub fn read(&mut self, block: usize, value: Value) -> bool {
        let possible = self.keep(block, |present, _| present == usize::from(value));
        self.take_effects(block);
        possible
    }

    /// An engine begins to serve.
    pub fn serves(&mut self, generation: u8) {
        let older = |index: &usize| self.writes[*index].0 < generation;
        self.undecided = self.undecided.without(self.undecided.iter().filter(older).collect());
    }

    /// Every member has lost power.
    pub fn all_lost_power(&mut self) {
        for block in 0..BLOCKS_MAX {
            let before = self.worlds[block];
            for (value, effects) in
                all_worlds().filter(|(value, effects)| before & world(*value, *effects) != 0)
            {
                let values = self.survivors[block].union(Set::of(value));
                self.worlds[block] |= values.iter().fold(0, |worlds, value| worlds | world(value, effects));
            }
            self.take_effects(block);
        }
    }

    /// The values that a read may find.
    #[must_use]
    pub fn possible(&self, block: usize) -> Set {
        (0..VALUES).filter(|value| self.worlds[block] >> (value * EFFECTS) & 0xff != 0).collect()
    }

    /// Whether a write of the block may yet take effect.
    #[must_use]
    pub fn is_undecided(&self, block: usize) -> bool {
        self.undecided.iter().any(|index| usize::from(self.writes[index].1) == block)
    }

    fn keep(&mut self, block: usize, keep: impl Fn(usize, usize) -> bool) -> bool {
        let kept: u32 =
            all_worlds().filter(|(value, effects)| keep(*value, *effects)).map(|(v, e)| world(v, e)).sum();
        self.worlds[block] &= kept;
        self.worlds[block] != 0
    }

    /// Adds the worlds that undecided writes lead to.
    fn take_effects(&mut self, block: usize) {
        loop {
            let before = self.worlds[block];
            for index in self.undecided.iter().filter(|index| usize::from(self.writes[*index].1) == block) {
                for (value, effects) in all_worlds() {
                    if before & world(value, effects) != 0 && effects & (1 << index) == 0 {
                        self.worlds[block] |= world(index + 1, effects | 1 << index);
                    }
                }
            }
            if self.worlds[block] == before {
                return;
            }
        }
    }
}
