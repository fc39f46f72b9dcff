//! The operations in flight, each at a fixed address, with reusable slots.

use crate::mailbox::Source;
use crate::operation::{Operation, Progress, Scratch};
use io_uring::squeue;

/// Names an operation in flight, also to the kernel: slot (32) and the slot's count of uses (32),
/// so that a late cancellation cannot hit the slot's next operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OperationId(pub(crate) u64);

#[derive(Default)]
struct Slot {
    /// Boxed slots keep this where it is, whatever happens to the slab.
    operation: Option<Operation>,
    scratch: Scratch,
}

/// What a cancellation looks for, apart from the slots so that the search reads little memory.
#[derive(Clone, Copy, Default)]
struct Key {
    uses: u32,
    occupant: Option<(Source, u64)>,
}

#[derive(Default)]
pub(crate) struct Slab {
    #[allow(clippy::vec_box, reason = "the kernel holds pointers into slots while the vector grows")]
    slots: Vec<Box<Slot>>,
    keys: Vec<Key>,
    free: Vec<u32>,
}

impl Slab {
    /// Operations in flight.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes an operation in.
    pub(crate) fn insert(&mut self, operation: Operation) -> OperationId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Box::default());
            self.keys.push(Key::default());
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 operations in flight")
        });
        let key = &mut self.keys[index as usize];
        key.uses = key.uses.wrapping_add(1);
        key.occupant = Some((operation.to, operation.token));
        let slot = &mut self.slots[index as usize];
        assert!(slot.operation.is_none(), "a free slot holds an operation");
        slot.operation = Some(operation);
        OperationId(u64::from(key.uses) << 32 | u64::from(index))
    }

    fn index(&self, id: OperationId) -> usize {
        #[allow(clippy::cast_possible_truncation, reason = "the lower half is the slot")]
        let index = id.0 as u32 as usize;
        assert_eq!(u64::from(self.keys[index].uses), id.0 >> 32, "a completion for an operation long gone");
        index
    }

    pub(crate) fn get_mut(&mut self, id: OperationId) -> &mut Operation {
        let index = self.index(id);
        self.slots[index].operation.as_mut().expect("an operation in flight has a slot")
    }

    pub(crate) fn prepare(&mut self, id: OperationId) -> squeue::Entry {
        let index = self.index(id);
        let Slot { operation, scratch } = &mut *self.slots[index];
        let operation = operation.as_mut().expect("an operation in flight has a slot");
        operation.prepare(scratch).user_data(id.0)
    }

    pub(crate) fn advance(&mut self, id: OperationId, result: i32) -> Progress {
        self.get_mut(id).advance(result)
    }

    /// Frees the slot of an operation that the kernel has no more to do with.
    pub(crate) fn remove(&mut self, id: OperationId) -> Operation {
        let index = self.index(id);
        let operation = self.slots[index].operation.take().expect("an operation in flight has a slot");
        self.keys[index].occupant = None;
        self.free.push(u32::try_from(index).expect("slots are counted in 32 bits"));
        operation
    }

    fn id(&self, index: usize) -> OperationId {
        OperationId(u64::from(self.keys[index].uses) << 32 | index as u64)
    }

    /// The operations under this token.
    pub(crate) fn find(&self, to: Source, token: u64) -> Vec<OperationId> {
        let matches = |key: &Key| key.occupant == Some((to, token));
        let found = self.keys.iter().enumerate().filter(|(_, key)| matches(key));
        found.map(|(index, _)| self.id(index)).collect()
    }

    /// All operations.
    pub(crate) fn all(&self) -> Vec<OperationId> {
        let taken = self.slots.iter().enumerate().filter(|(_, slot)| slot.operation.is_some());
        taken.map(|(index, _)| self.id(index)).collect()
    }

    /// Gives up the memory of what is still in flight, since the kernel may still use it.
    pub(crate) fn leak(&mut self) {
        for slot in self.slots.drain(..).filter(|slot| slot.operation.is_some()) {
            Box::leak(slot);
        }
        self.keys.clear();
        self.free.clear();
    }
}
