//! What every front end adapts to: one small set of requests in bytes.
//!
//! A front end lives on its volume's thread, has a mailbox of its own in the thread's reactor, and
//! so hands nothing over: what a client's socket brings is submitted to the volume, and what the
//! volume completes is sent, in one turn of the loop.

pub(crate) mod control_socket;
pub mod nbd;
pub(crate) mod nbd_server;
pub(crate) mod status_socket;

use crate::request::{IoError, IoReply, IoRequest};
use crate::volume::{ScrubOrder, Standing, Tag, VolumeCore, VolumeState, VolumeStatus};
use std::time::Duration;
use trivet_crypto::DataKey;
use trivet_model::{SnapshotOrder, VolumeSettings};

/// An adapter between a volume and some protocol, on the volume's thread.
///
/// In each turn of the loop [`turn`](Frontend::turn) comes first, then
/// [`completed`](Frontend::completed) for every request that has ended and again
/// [`pump`](Frontend::pump), as often as something ends, and at last [`flush`](Frontend::flush).
pub trait Frontend {
    /// Takes what its mailbox holds, and submits what follows from it.
    fn turn(&mut self, volume: &mut Port<'_>);
    /// A request submitted under `tag` has ended.
    fn completed(&mut self, tag: u64, result: Result<IoReply, IoError>);
    /// Requests have ended: submits what waited for that.
    fn pump(&mut self, volume: &mut Port<'_>);
    /// The turn is over: sends what it has gathered.
    fn flush(&mut self);
    /// The volume closes: takes nothing new, and ends once what was taken is answered.
    fn shut_down(&mut self);
    /// Whether it has ended.
    fn is_finished(&self) -> bool;
    /// How many clients it serves.
    fn connections(&self) -> usize {
        0
    }
}

/// The volume, as a front end sees it during its turn.
#[derive(Debug)]
pub struct Port<'a> {
    core: &'a mut VolumeCore,
    now: Duration,
    frontend: usize,
    connections: usize,
}

/// Bits of a tag that belong to the front end.
const TAG_BITS: u32 = 48;

impl<'a> Port<'a> {
    pub(crate) const fn new(
        core: &'a mut VolumeCore,
        now: Duration,
        frontend: usize,
        connections: usize,
    ) -> Self {
        Self { core, now, frontend, connections }
    }

    /// Submits a request; [`Frontend::completed`] brings its outcome under the same tag.
    ///
    /// # Panics
    /// When `tag` has more than 48 bits.
    pub fn submit(&mut self, tag: u64, request: IoRequest) {
        assert!(tag < 1 << TAG_BITS, "a front end's tags have 48 bits");
        self.core.submit(self.now, Tag(((self.frontend as u64) << TAG_BITS) | tag), request);
    }

    /// Grows the volume to `blocks` blocks; completes like a request.
    pub(crate) fn grow(&mut self, tag: u64, blocks: u64) {
        self.core.grow(self.now, Tag(((self.frontend as u64) << TAG_BITS) | tag), blocks);
    }

    /// Takes or deletes a snapshot; completes like a request.
    pub(crate) fn order_snapshot(&mut self, tag: u64, order: SnapshotOrder) {
        let tag = Tag(((self.frontend as u64) << TAG_BITS) | tag);
        self.core.order_snapshot(self.now, tag, order);
    }

    /// Changes the volume's settings, or with `None` follows its record's; completes like a request.
    pub(crate) fn change_settings(&mut self, tag: u64, wanted: Option<VolumeSettings>) {
        let tag = Tag(((self.frontend as u64) << TAG_BITS) | tag);
        self.core.change_settings(self.now, tag, wanted);
    }

    /// Goes over to another data key; completes like a request.
    pub(crate) fn rekey(&mut self, tag: u64, key: DataKey) {
        self.core.rekey(self.now, Tag(((self.frontend as u64) << TAG_BITS) | tag), key);
    }

    /// The scrub that shall be under way, if one shall.
    pub(crate) fn want_scrub(&mut self, scrub: Option<ScrubOrder>) {
        match scrub {
            Some(order) => self.core.scrub(self.now, order),
            None => self.core.stop_scrub(self.now),
        }
    }

    /// Time since the thread began.
    #[must_use]
    pub const fn now(&self) -> Duration {
        self.now
    }

    /// Whether the volume's name and size are known and requests are served, if perhaps late.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.core.state() == VolumeState::Open && !self.core.is_reverting()
    }

    /// The volume's name; empty before its record is read.
    #[must_use]
    pub fn name(&self) -> &str {
        self.core.record().map_or("", |record| &record.name)
    }

    /// The volume's size in blocks; 0 before its record is read.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.core.blocks()
    }

    /// The snapshots that are older than what is served.
    #[must_use]
    pub fn changed_since(&self) -> Vec<nbd::Since> {
        let older = self.core.older_snapshots();
        older.map(|found| nbd::Since { name: found.name.clone(), snapshot: found.id }).collect()
    }

    /// Whether writes are refused.
    #[must_use]
    pub const fn read_only(&self) -> bool {
        self.core.read_only()
    }

    /// Whether the volume serves, in one word.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.core.standing()
    }

    /// The volume's state, for people.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        self.core.status(self.now)
    }

    /// Clients of all front ends.
    #[must_use]
    pub const fn connections(&self) -> usize {
        self.connections
    }
}

/// The front end and its own tag that a tag belongs to.
pub(crate) const fn split_tag(tag: Tag) -> (usize, u64) {
    ((tag.0 >> TAG_BITS) as usize, tag.0 & ((1 << TAG_BITS) - 1))
}
