//! The pure core of a volume: events in, actions out, one owner, no clock, socket or thread.
//!
//! The owner calls a method for every event, with the time since some fixed moment, and afterwards
//! performs what [`VolumeCore::take_actions`] hands out, in order. `state.rs` draws the volume's life,
//! `member.rs` a member's. The protocol is PacificA's (MSR-TR-2008-25): one writer, passive replicas,
//! an external configuration authority; see `docs/failure-model.md`.
//!
//! A request is cut into pieces (`pieces.rs`); each becomes an operation that passes, in this order, the
//! *window* (bytes in flight, first come first served), the ordering of overlapping operations (`ordering.rs`),
//! and the links. A link carries every write once and a read at most once, so that the bound on the
//! volume bounds each link as well. What waits at one of these gates waits only for operations that
//! passed it earlier, so there is no deadlock.
//!
//! Invariants:
//! - a write is acknowledged only when every required member has answered it (`write.rs`, `membership.rs`);
//! - every write that is not acknowledged is in `log`, in stamp order, with its data, so that it can
//!   be sent again; stamps are sent to every member in rising order;
//! - while a required member is not ready nothing new is written, and no consumer sees an error for it;
//! - a request is answered exactly once.

mod closing;
mod control;
mod flush;
mod group;
mod grow;
mod hydration;
mod lease;
mod log;
mod member;
mod member_set;
mod membership;
mod mend;
mod opening;
mod operation;
mod ordering;
mod pieces;
mod planted;
mod query;
mod read;
mod reconcile;
mod rekey;
mod repair;
mod reseal;
mod revert;
mod scrub;
mod seal;
mod segments;
mod settings;
#[cfg(test)]
mod simulation;
mod slow;
mod snapshots;
mod state;
mod status;
mod sync;
mod throttle;
mod view;
mod witness;
mod write;

pub use hydration::SourceError;
pub use member::MemberFault;
pub use member_set::{MemberIndex, MemberSet};
#[cfg(any(test, feature = "planted-faults"))]
pub use planted::PlantedFault;
pub use reseal::ResealStatus;
pub use revert::RevertStatus;
pub use scrub::{ScrubCounts, ScrubOrder, ScrubStatus};
pub use state::VolumeState;
pub use status::{Counters, MemberStatus, Standing, VolumeStatus};

use crate::request::{IoError, IoReply, IoRequest};
use closing::Closing;
use control::Errand;
use flush::Flushing;
use hashbrown::HashMap;
use log::WriteLog;
use member::MemberLink;
use operation::{Operation, Request, RequestId, Waiting};
use ordering::Ordering;
use read::Answered;
use reconcile::Reconcile;
use state::Failure;
use std::collections::VecDeque;
use std::time::Duration;
use trivet_crypto::DataKey;
use trivet_model::{
    Epoch, Generation, Revision, SnapshotId, SnapshotOrder, VolumeId, VolumeRecord, VolumeSettings,
};
use trivet_wire::{Frame, Message};

/// Names a consumer's request; chosen by the consumer and handed back with its completion.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag(pub u64);

/// Names an operation; its number is the request id on the wire, the same on every link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct OperationId(u64);

/// What the owner of the core must do next, in order.
#[derive(Debug)]
pub enum Action {
    /// Keep a connection to this member from now on: connect, and connect again whenever it breaks,
    /// with growing pauses. A second one for the same member changes its address.
    Connect {
        /// Which member.
        member: MemberIndex,
        /// `host:port`.
        address: String,
    },
    /// Send a frame to each member of the set; encode it once.
    Send {
        /// To whom. All are connected.
        to: MemberSet,
        /// What.
        frame: Frame,
    },
    /// Close the present connection and deliver nothing more from it. While the volume is not over
    /// ([`VolumeState::is_over`]), connect again as after a break.
    Disconnect {
        /// Which member.
        member: MemberIndex,
    },
    /// The member is not of the volume any more: close its connection and make no other.
    Forget {
        /// Which member.
        member: MemberIndex,
    },
    /// Read the volume record off this thread; answer [`VolumeCore::record_read`].
    ReadRecord,
    /// Swap the volume record off this thread; answer [`VolumeCore::record_swapped`].
    SwapRecord {
        /// The revision it must still have.
        expected: Revision,
        /// The new record.
        record: Box<VolumeRecord>,
    },
    /// Read a run of bytes of the source that the volume is imported from, off this thread; answer
    /// [`VolumeCore::source_fetched`].
    FetchSource {
        /// Names it in the answer.
        chunk: u64,
        /// Where.
        offset: u64,
        /// How many.
        length: u32,
    },
    /// A request is answered.
    Complete {
        /// As submitted.
        tag: Tag,
        /// Its outcome.
        result: Result<IoReply, IoError>,
    },
    /// The volume's state or standing has changed: look at [`VolumeCore::state`].
    StateChanged,
}

/// How to open a volume.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// Which one.
    pub volume: VolumeId,
    /// Who opens it, for people to read in the volume record.
    pub owner: String,
    /// A random number, new at each opening.
    pub session: u64,
    /// Look without promising: no generation is claimed and writes are refused. While a writer has
    /// the volume open, or after it crashed, what is read may be taken back.
    pub read_only: bool,
    /// Look at this snapshot instead of the volume as it is; only with `read_only`.
    pub snapshot: Option<SnapshotId>,
    /// The data key of an encrypted volume.
    pub key: Option<DataKey>,
}

/// A volume as its engine sees it. See the module's documentation.
#[derive(Debug)]
pub struct VolumeCore {
    options: CoreOptions,
    /// Of an encrypted volume.
    ciphers: Option<seal::Ciphers>,
    /// The time of the event that is being handled.
    now: Duration,
    state: VolumeState,
    failure: Option<Failure>,
    standing: Standing,
    standing_since: Duration,
    record: Option<(VolumeRecord, Revision)>,
    errand: Option<Errand>,
    undecided: Option<control::Undecided>,
    generation: Generation,
    epoch: Epoch,
    blocks: u64,
    members: Vec<MemberLink>,
    /// When the first in-sync member promised our generation.
    first_promise: Option<Duration>,
    /// Whether the record named an owner when we claimed it.
    was_owned: bool,
    /// An older engine may still read from a member that nobody has fenced.
    waits_for_older_engines: bool,
    early: VecDeque<(Tag, IoRequest)>,
    requests: HashMap<RequestId, Request>,
    waiting: VecDeque<Waiting>,
    /// Only where there is a limit.
    throttle: Option<throttle::Throttle>,
    window_bytes: usize,
    ordering: Ordering,
    operations: HashMap<OperationId, Operation>,
    /// Acknowledged writes that members being brought back have not answered, and when they were sent.
    stragglers: HashMap<OperationId, (Duration, MemberSet)>,
    /// Answers that wait for the lease.
    unleased: Vec<(Tag, Result<IoReply, IoError>)>,
    held_writes: VecDeque<OperationId>,
    held_reads: VecDeque<OperationId>,
    log: WriteLog,
    flushing: Flushing,
    full: write::Full,
    reconcile: Option<Reconcile>,
    repairs: repair::Repairs,
    mending: mend::Mending,
    scrub: Option<scrub::Scrub>,
    growing: Option<grow::Growing>,
    taking: Option<snapshots::Taking>,
    deleting: Option<snapshots::Deleting>,
    group: Option<group::Group>,
    orders: VecDeque<(Tag, SnapshotOrder)>,
    revert: Option<revert::Revert>,
    rekeying: Option<rekey::Rekeying>,
    resealing: Option<reseal::Resealing>,
    viewing: view::Viewing,
    /// As the record says, as far as this engine knows.
    settings: VolumeSettings,
    changing: Option<settings::Changing>,
    refresh_at: Duration,
    authority_trouble: Option<String>,
    /// When it last did not answer.
    authority_failed_at: Option<Duration>,
    hydration: Option<Box<hydration::Hydration>>,
    feeding: hydration::Feeding,
    closing: Option<Closing>,
    unfinished: bool,
    renewing: bool,
    active_at: Duration,
    next_id: u64,
    counters: Counters,
    actions: Vec<Action>,
    #[cfg(any(test, feature = "planted-faults"))]
    planted: Option<PlantedFault>,
}

impl VolumeCore {
    /// A volume about to be opened: the first action is to read its record.
    #[must_use]
    pub fn new(options: CoreOptions, now: Duration) -> Self {
        let mut core = Self {
            // They come out of the record.
            ciphers: None,
            options,
            now,
            state: VolumeState::Claiming,
            failure: None,
            standing: Standing::Opening,
            standing_since: now,
            record: None,
            errand: None,
            undecided: None,
            generation: Generation::ZERO,
            epoch: Epoch(0),
            blocks: 0,
            members: Vec::new(),
            first_promise: None,
            was_owned: false,
            waits_for_older_engines: false,
            early: VecDeque::new(),
            requests: HashMap::new(),
            waiting: VecDeque::new(),
            throttle: None,
            window_bytes: 0,
            ordering: Ordering::default(),
            operations: HashMap::new(),
            stragglers: HashMap::new(),
            unleased: Vec::new(),
            held_writes: VecDeque::new(),
            held_reads: VecDeque::new(),
            log: WriteLog::default(),
            flushing: Flushing::default(),
            full: write::Full::default(),
            reconcile: None,
            repairs: repair::Repairs::default(),
            mending: mend::Mending::default(),
            scrub: None,
            growing: None,
            taking: None,
            deleting: None,
            group: None,
            orders: VecDeque::new(),
            revert: None,
            rekeying: None,
            resealing: None,
            viewing: view::Viewing::default(),
            settings: VolumeSettings::default(),
            changing: None,
            refresh_at: now,
            authority_trouble: None,
            authority_failed_at: None,
            hydration: None,
            feeding: hydration::Feeding::default(),
            closing: None,
            unfinished: false,
            renewing: false,
            active_at: now,
            next_id: 0,
            counters: Counters::default(),
            actions: Vec::new(),
            #[cfg(any(test, feature = "planted-faults"))]
            planted: None,
        };
        core.run_errand(control::Purpose::Claim);
        core
    }

    /// Takes a consumer's request; it is answered by exactly one [`Action::Complete`]. Before the
    /// volume is open it waits.
    pub fn submit(&mut self, now: Duration, tag: Tag, request: IoRequest) {
        self.now = now;
        match self.state {
            VolumeState::Claiming | VolumeState::Connecting | VolumeState::Reconciling => {
                self.early.push_back((tag, request));
            }
            VolumeState::Open if self.is_reverting() => self.early.push_back((tag, request)),
            VolumeState::Open => {
                self.active_at = now;
                self.take(now, tag, request);
            }
            VolumeState::Fenced => self.complete(tag, Err(IoError::Fenced)),
            VolumeState::Closing | VolumeState::Closed | VolumeState::Failed => {
                self.complete(tag, Err(IoError::Closed));
            }
        }
    }

    /// A connection to the member stands; nothing has been said on it.
    pub fn connected(&mut self, now: Duration, member: MemberIndex) {
        self.now = now;
        if !self.state.is_over() {
            self.greet(now, member);
        }
    }

    /// The member's connection broke, or could not be made.
    pub fn disconnected(&mut self, now: Duration, member: MemberIndex, fault: MemberFault) {
        self.now = now;
        if !self.state.is_over() {
            self.member_failed(now, member, fault);
        }
    }

    /// A frame came in on the member's present connection.
    pub fn received(&mut self, now: Duration, member: MemberIndex, frame: Frame) {
        self.now = now;
        if self.state.is_over() || !self.members[member.0].is_connected() {
            return;
        }
        let outcome = if self.members[member.0].answered(now, frame.request) {
            self.dispatch(now, member, frame)
        } else if let Message::Error { code, detail } = frame.message {
            Err(MemberFault::Refused { code, detail })
        } else {
            Err(MemberFault::Protocol("an answer to nothing that was asked"))
        };
        if let Err(fault) = outcome {
            self.fault(now, member, fault);
        }
        self.advance_hydration(now);
    }

    /// Time passes: call it at least as often as [`VolumeCore::tick_within`] says.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        if self.state.is_over() {
            return;
        }
        self.check_silence(now);
        self.check_slowness(now);
        self.review_members(now);
        self.advance_attempts(now);
        self.copied(now);
        self.renew_when_drained(now);
        self.end_hold(now);
        self.retry_errand(now);
        self.retry_full(now);
        self.retry_reads(now);
        self.advance_revert(now);
        self.advance_scrub(now);
        self.advance_resealing(now);
        self.pump(now);
        self.tell_progress(now);
        self.flush_when_idle(now);
        self.advance_hydration(now);
        self.check_closing(now);
    }

    /// How soon [`VolumeCore::tick`] must be called; `None` once the volume is over.
    #[must_use]
    pub fn tick_within(&self) -> Option<Duration> {
        if self.state.is_over() {
            return None;
        }
        let within = if self.is_hydration_stirred() {
            Duration::ZERO
        } else if let Some(soon) = self.slowness_within() {
            soon
        } else if self.progress_is_untold()
            || self.any_at_fault()
            || self.any_attempt()
            || self.awaits_settings()
            || self.is_reverting()
        {
            control::IDLE
        } else {
            Duration::from_secs(1)
        };
        let background = [self.scrub_within(), self.resealing_within()];
        let sooner = [self.throttled_within(), self.hold_within(self.now)];
        background.into_iter().chain(sooner).flatten().chain([within]).min()
    }

    /// Where the volume is in its life.
    #[must_use]
    pub const fn state(&self) -> VolumeState {
        self.state
    }

    /// Size in blocks; 0 before the record is read.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The record as this engine wrote or read it last.
    #[must_use]
    pub fn record(&self) -> Option<&VolumeRecord> {
        self.record.as_ref().map(|(record, _)| record)
    }

    /// Whether writes are refused.
    #[must_use]
    pub const fn read_only(&self) -> bool {
        self.options.read_only
    }

    /// Moves what is to be done to `actions`, in order.
    pub fn take_actions(&mut self, actions: &mut Vec<Action>) {
        actions.append(&mut self.actions);
    }

    /// Whether [`VolumeCore::take_actions`] would hand out anything.
    #[must_use]
    pub const fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Sends a message to members that are connected, and expects an answer of each.
    fn send(&mut self, now: Duration, to: MemberSet, request: u64, message: Message) {
        for member in to {
            assert!(self.members[member.0].is_connected(), "{member:?} is not connected");
            self.members[member.0].asked(now);
        }
        let frame = Frame { request, generation: self.generation, epoch: self.epoch, message };
        self.actions.push(Action::Send { to, frame });
    }

    /// An answer, to the operation or the control request that it belongs to.
    fn dispatch(&mut self, now: Duration, member: MemberIndex, frame: Frame) -> Result<(), MemberFault> {
        let id = OperationId(frame.request);
        let refused = matches!(frame.message, Message::Error { .. });
        if let Some(control) = self.members[member.0].take_control(now, frame.request, refused) {
            self.release_unleased();
            return self.control_answered(now, member, control, frame.message);
        }
        if self.straggler_answered(now, member, id, &frame.message) {
            return Ok(());
        }
        let unwanted = &mut self.members[member.0].unwanted;
        if let Some(at) = unwanted.iter().position(|&(request, _)| request == frame.request) {
            unwanted.swap_remove(at);
            self.release_held_writes(now);
            return Ok(());
        }
        if !self.operations.contains_key(&id) {
            return Err(MemberFault::Protocol("an answer to nothing that was asked"));
        }
        match frame.message {
            Message::Done => self.write_answered(now, member, id),
            Message::ReadReply { present, stamps, data } => {
                self.read_answered(now, member, id, Answered { present: &present, stamps: &stamps, data })
            }
            Message::AllocationReply { extents } => self.allocation_answered(now, member, id, &extents),
            Message::ChangedReply { entries, next } => self.changed_answered(now, member, id, &entries, next),
            Message::Error { code, detail } => self.operation_refused(now, member, id, code, detail),
            _ => Err(MemberFault::Protocol("an answer of the wrong kind")),
        }
    }
}
