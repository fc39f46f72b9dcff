//! What the store has been asked and has not answered.

use super::ConnectionId;
use crate::store::RequestId;
use trivet_model::VolumeId;

/// Payload in flight of all connections above which nothing more is received from any: what the
/// server's memory is sized by.
const BYTES_HIGH: usize = 256 << 20;

/// How a reply of the store becomes a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// `Done` as `Done`.
    Done,
    /// The durable promise as `OpenReply`.
    Opened { volume: VolumeId },
    /// As `FlushReply`.
    Flushed,
    /// As `ReadReply`.
    Blocks,
    /// As `AllocationReply`.
    Extents,
    /// As `ChangedReply`.
    Changed,
    /// As `FetchReply`.
    Fetched,
    /// As `VerifyReply`.
    Verified,
    /// As `TailReply`, without the entries that an earlier one had.
    Tail { skip: u32 },
}

impl Answer {
    /// The volume whose promise it is.
    pub(super) const fn promised(self) -> Option<VolumeId> {
        match self {
            Self::Opened { volume } => Some(volume),
            _ => None,
        }
    }
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) connection: ConnectionId,
    /// The wire's request id.
    pub(super) request: u64,
    /// Of payload, brought or asked for.
    pub(super) bytes: usize,
    pub(super) answer: Answer,
}

/// Requests by the id that the store knows them by: their place here.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    bytes: usize,
}

impl InFlight {
    pub(super) fn add(&mut self, entry: Entry) -> RequestId {
        self.bytes += entry.bytes;
        let index = if let Some(index) = self.free.pop() {
            self.entries[index] = Some(entry);
            index
        } else {
            self.entries.push(Some(entry));
            self.entries.len() - 1
        };
        RequestId(index as u64)
    }

    pub(super) fn remove(&mut self, id: RequestId) -> Entry {
        let index = usize::try_from(id.0).expect("the id is a place in memory");
        let entry = self.entries.get_mut(index).and_then(Option::take);
        let entry = entry.expect("the store answers a request once");
        self.bytes -= entry.bytes;
        self.free.push(index);
        entry
    }

    pub(super) const fn is_high(&self) -> bool {
        self.bytes >= BYTES_HIGH
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }
}
