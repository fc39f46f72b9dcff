//! A member's connection, as the core sees it.
//!
//! ```text
//!                connected          HelloReply: the right pool     OpenReply: the right size
//! ┌──────────────┐     ┌──────────┐           ┌─────────┐                ┌───────┐
//! │ Disconnected │────▶│ Greeting │──────────▶│ Opening │───────────────▶│ Ready │
//! └──────────────┘     └──────────┘           └─────────┘                └───────┘
//!        ▲                  │                      │ │ it lost acknowledged  │
//!        │                  │                      │ │ writes   ┌──────┐     │
//!        │                  │                      │ └─────────▶│ Lost │     │
//!        │                  │                      │            └──────┘     │
//!        └── any fault ─────┴──────────────────────┴───────────────┴─────────┘
//! ```
//!
//! Apart from its connection a member has a role, which the record decides (`membership.rs`): in sync,
//! stale, or being brought back (`sync.rs`). Only a ready in-sync member is read from.

use super::slow::Latency;
use super::sync::Attempt;
use super::{MemberIndex, MemberSet, OperationId, VolumeCore};
use std::time::Duration;
use trivet_model::{BlockRange, BootId, PoolId, SnapshotId, Stamp};
use trivet_wire::ErrorCode;
use trivet_wire::frame::{Progress, SnapshotEntry};

/// Why a member is not ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberFault {
    /// Nobody has connected yet.
    #[error("not connected yet")]
    NotConnected,
    /// The connection could not be made, or broke.
    #[error("{0}")]
    Unreachable(String),
    /// It speaks, but not the protocol.
    #[error("it breaks the protocol: {0}")]
    Protocol(&'static str),
    /// Another pool answers at its address.
    #[error("pool {found} answers at its address")]
    WrongPool {
        /// Who answered.
        found: PoolId,
    },
    /// Its replica is smaller than the record says.
    #[error("its replica has {found} blocks where the volume has {expected}")]
    TooSmall {
        /// As recorded.
        expected: u64,
        /// As answered.
        found: u64,
    },
    /// It answered an error that ends the connection.
    #[error("it refuses ({code:?}): {detail}")]
    Refused {
        /// The kind.
        code: ErrorCode,
        /// In its words.
        detail: String,
    },
    /// It did not answer.
    #[error("no answer for {} s", .0.as_secs())]
    Silent(Duration),
    /// Its replica lacks a snapshot.
    #[error("its replica lacks snapshot {0}, which every copy in sync has")]
    LacksSnapshot(SnapshotId),
    /// It came back without writes that it had acknowledged.
    #[error(
        "its host lost power: of the acknowledged writes up to {acknowledged} it is sure only of those up \
         to {intact}; detach and attach the volume to bring them back from the other members"
    )]
    Lost {
        /// What it must have.
        acknowledged: Stamp,
        /// What it is sure to have.
        intact: Stamp,
    },
    /// Another member failed while the tails were compared, which begins anew.
    #[error("opening again since another member failed")]
    Restarted,
    /// It owes an answer that its peers have given.
    #[error("it has not answered for {} s what others have", .0.as_secs())]
    Hangs(Duration),
    /// It takes much longer than its peers.
    #[error("it takes {} ms for a write that others take {} ms for", .average.as_millis(), .fastest.as_millis())]
    Slow {
        /// Its latency.
        average: Duration,
        /// The fastest member's.
        fastest: Duration,
    },
    /// It has no space for what other members have taken.
    #[error("it has no space")]
    NoSpace,
    /// The record is being told that it is in sync no more.
    #[error("it is being dropped")]
    Leaving,
    /// It is in sync no more, and begins again with a new session.
    #[error("dropped: {0}")]
    Dropped(String),
    /// The attempt to bring it back came to nothing.
    #[error("the copy to it has ended early: {0}")]
    SyncFailed(String),
}

/// What a member is to the volume, as the record says.
#[derive(Debug)]
pub(super) enum Role {
    /// Holds everything that was acknowledged.
    InSync,
    /// Lacks writes above `since`.
    Stale { since: Stamp },
    /// As stale, but writes are sent to it while it is brought back. `attempt` is `None` until it begins.
    Syncing { since: Stamp, attempt: Option<Attempt> },
    /// Not in the record any more.
    Removed,
}

/// A member's standing; the module draws it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MemberState {
    Disconnected,
    Greeting,
    Opening,
    Ready,
    Lost,
}

/// What a control request asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Control {
    Hello,
    Open,
    Tail,
    Flush,
    Progress,
    /// To grow to so many.
    Resize {
        blocks: u64,
    },
    Close,
    /// To begin a copy, of its progress, and the flush at its end.
    Pull,
    PullStatus,
    Repair,
    /// What it has, for a scrub.
    Verify,
    /// Its stamps, to hold another's answer to a read against them.
    Witness {
        operation: OperationId,
        range: BlockRange,
    },
    /// What it has of a block of which two have said different things.
    Hearing {
        operation: OperationId,
        block: u64,
    },
    /// Its stamps, to know what the volume has of a chunk that is imported.
    Chunk {
        chunk: u64,
    },
    /// To keep a snapshot, and to let one go.
    CreateSnapshot {
        id: SnapshotId,
        cut: Stamp,
    },
    DeleteSnapshot {
        id: SnapshotId,
    },
    /// To be looked at as a snapshot.
    View,
    /// A revert's question, by its number: what has changed since a snapshot, from a block on; or which blocks of
    /// it hold data.
    Changed {
        question: u64,
        start: u64,
    },
    Shown {
        question: u64,
        range: BlockRange,
    },
    /// To begin anew, empty.
    Reset,
    JoinFlush,
}

/// Why and since when a member is to leave the in-sync ones.
#[derive(Clone, Debug)]
pub(super) struct Expulsion {
    pub(super) fault: MemberFault,
    pub(super) since: Duration,
}

/// One member.
#[derive(Debug)]
pub(super) struct MemberLink {
    pub(super) replica: PoolId,
    pub(super) address: String,
    pub(super) role: Role,
    pub(super) state: MemberState,
    pub(super) fault: Option<MemberFault>,
    /// Since when it has not been ready.
    pub(super) away_since: Option<Duration>,
    /// Why it is to leave the in-sync members although it is connected, or at once.
    pub(super) expelled: Option<Expulsion>,
    /// When the latest request was sent that it has answered on this connection.
    pub(super) lease: Option<Duration>,
    /// Not before then is it brought back.
    pub(super) sync_after: Duration,
    pub(super) sync_failures: u32,
    /// Whether it has promised our generation.
    pub(super) promised: bool,
    /// As it answered to `Open`: its size, and the highest stamp it held.
    pub(super) blocks: u64,
    pub(super) last: Stamp,
    /// Whether it is on this host: read from first.
    pub(super) local: bool,
    pub(super) boot: Option<BootId>,
    /// What its session looks at.
    pub(super) looks_at: Option<SnapshotId>,
    /// Its snapshots, in the order of their cuts.
    pub(super) snapshots: Vec<SnapshotEntry>,
    /// The highest stamp that it answered for: it must still have it when it comes back.
    pub(super) held: Stamp,
    pub(super) intact: Stamp,
    pub(super) known: Progress,
    /// What it was told of the volume's progress.
    pub(super) told: Progress,
    pub(super) reads_in_flight: usize,
    pub(super) latency: Latency,
    /// Reads that another member has answered first, and when this one was asked.
    pub(super) unwanted: Vec<(u64, Duration)>,
    pub(super) disconnects: u64,
    control: Vec<(u64, Control, Duration)>,
    outstanding: usize,
    heard: Duration,
    pub(super) spoken: Duration,
}

impl MemberLink {
    pub(super) fn new(now: Duration, replica: PoolId, address: String, role: Role) -> Self {
        let local = is_local(&address);
        Self {
            replica,
            address,
            role,
            state: MemberState::Disconnected,
            fault: Some(MemberFault::NotConnected),
            away_since: Some(now),
            expelled: None,
            lease: None,
            sync_after: Duration::ZERO,
            sync_failures: 0,
            promised: false,
            blocks: 0,
            last: Stamp::ZERO,
            local,
            boot: None,
            looks_at: None,
            snapshots: Vec::new(),
            held: Stamp::ZERO,
            intact: Stamp::ZERO,
            known: Progress::default(),
            told: Progress::default(),
            reads_in_flight: 0,
            latency: Latency::default(),
            unwanted: Vec::new(),
            disconnects: 0,
            control: Vec::new(),
            outstanding: 0,
            heard: Duration::ZERO,
            spoken: Duration::ZERO,
        }
    }

    /// Whether it owes an answer about a snapshot.
    pub(super) fn expects_snapshots(&self) -> bool {
        let about = |control: &Control| {
            matches!(control, Control::CreateSnapshot { .. } | Control::DeleteSnapshot { .. })
        };
        self.control.iter().any(|(_, control, _)| about(control))
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state != MemberState::Disconnected
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state == MemberState::Ready
    }

    pub(super) const fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// A request goes out to it.
    pub(super) fn asked(&mut self, now: Duration) {
        if self.outstanding == 0 {
            self.heard = now;
        }
        self.outstanding += 1;
        self.spoken = now;
    }

    /// A frame came from it. Whether it can be an answer.
    pub(super) fn answered(&mut self, now: Duration, request: u64) -> bool {
        self.heard = now;
        let expected = request != 0 && self.outstanding > 0;
        if expected {
            self.outstanding -= 1;
        }
        expected
    }

    /// For how long it has not said anything although an answer is due.
    pub(super) fn silent_for(&self, now: Duration) -> Option<Duration> {
        (self.outstanding > 0).then(|| now.saturating_sub(self.heard))
    }

    pub(super) fn expel(&mut self, now: Duration, fault: MemberFault) {
        self.expelled = Some(Expulsion { fault, since: now });
    }

    /// Whether it is to leave for such a fault.
    pub(super) fn is_expelled_for(&self, such: impl Fn(&MemberFault) -> bool) -> bool {
        self.expelled.as_ref().is_some_and(|expulsion| such(&expulsion.fault))
    }

    /// Whether it is away, or is to leave.
    pub(super) const fn is_at_fault(&self) -> bool {
        self.away_since.is_some() || self.expelled.is_some()
    }

    /// Whether it had everything, so that the record may call it in sync already.
    pub(super) fn is_complete(&self) -> bool {
        matches!(&self.role, Role::Syncing { attempt: Some(attempt), .. } if attempt.is_complete())
    }

    /// Whether it has everything and waits for the record to say so.
    pub(super) fn is_to_be_promoted(&self) -> bool {
        self.is_complete() && self.is_ready()
    }

    /// Whether its host has not lost power with writes that were not stable.
    pub(super) fn is_whole(&self) -> bool {
        self.intact == Stamp::MAX
    }

    /// Of what was acknowledged before it was opened, it has everything up to here.
    pub(super) fn surely_has(&self) -> Stamp {
        self.intact.min(self.known.committed)
    }

    /// No read of its is in flight any more.
    pub(super) const fn forget_reads(&mut self) {
        self.reads_in_flight = 0;
    }

    pub(super) fn expect(&mut self, now: Duration, request: u64, control: Control) {
        self.control.push((request, control, now));
    }

    pub(super) fn expects(&self, control: Control) -> bool {
        self.control.iter().any(|&(_, expected, _)| expected == control)
    }

    /// What a request that is not I/O asked, now that it is answered. Renews the lease, unless it is
    /// refused: that may be because a newer engine has the member.
    pub(super) fn take_control(&mut self, now: Duration, request: u64, refused: bool) -> Option<Control> {
        let at = self.control.iter().position(|&(id, ..)| id == request)?;
        let (_, control, sent) = self.control.swap_remove(at);
        if !refused && (self.state == MemberState::Ready || control == Control::Open) {
            self.lease = self.lease.max(Some(sent));
        }
        if control == Control::Progress {
            self.latency.note(now, now.saturating_sub(sent));
        }
        Some(control)
    }

    /// The only place that changes `state`.
    fn transition(&mut self, next: MemberState) {
        use MemberState::{Disconnected, Greeting, Lost, Opening, Ready};
        let legal = match (self.state, next) {
            (Disconnected, Greeting) | (Greeting, Opening) | (Opening, Ready | Lost) => true,
            (Disconnected | Greeting | Opening | Ready | Lost, Disconnected) => true,
            (Disconnected | Greeting | Opening | Ready | Lost, Greeting | Opening | Ready | Lost) => false,
        };
        assert!(legal, "a member cannot go from {:?} to {next:?}", self.state);
        self.state = next;
        if next == Disconnected {
            self.control.clear();
            self.outstanding = 0;
            self.reads_in_flight = 0;
            self.lease = None;
            self.unwanted.clear();
            self.latency = Latency::default();
        }
    }
}

/// Whether `host:port` names this host beyond doubt.
fn is_local(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl VolumeCore {
    pub(super) fn member_transition(&mut self, now: Duration, member: MemberIndex, next: MemberState) {
        let link = &mut self.members[member.0];
        link.transition(next);
        if link.is_ready() {
            link.away_since = None;
        } else {
            link.away_since.get_or_insert(now);
        }
        self.session_changed(member);
        self.note_standing(now);
    }

    pub(super) fn ready_members(&self) -> MemberSet {
        self.members_that(MemberLink::is_ready)
    }

    pub(super) fn members_that(&self, wanted: impl Fn(&MemberLink) -> bool) -> MemberSet {
        let mut set = MemberSet::EMPTY;
        for (index, member) in self.members.iter().enumerate() {
            if wanted(member) {
                set.insert(MemberIndex(index));
            }
        }
        set
    }
}
