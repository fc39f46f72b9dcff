//! What people are shown of a volume.

use super::member::{MemberLink, MemberState, Role};
use super::{Action, VolumeCore, VolumeState};
use crate::request::IoRequest;
use serde::Serialize;
use std::time::Duration;
use trivet_wire::ErrorCode;

/// Whether a volume serves, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Not open yet.
    Opening,
    /// Serving.
    Open,
    /// Serving, with fewer members in sync than the volume has.
    Degraded,
    /// Open, but I/O waits: for a member, or for the record.
    Paused,
    /// Finishing.
    Closing,
    /// Closed.
    Closed,
    /// A newer engine has the volume.
    Fenced,
    /// It could not be opened.
    Failed,
}

/// What has happened since the volume was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counters {
    /// Read requests taken.
    pub reads: u64,
    /// Bytes they asked for.
    pub bytes_read: u64,
    /// Write requests taken.
    pub writes: u64,
    /// Bytes they brought.
    pub bytes_written: u64,
    /// Discard and write-zeroes requests taken.
    pub discards: u64,
    /// Flush requests taken.
    pub flushes: u64,
    /// Flushes that the engine began by itself because much was unflushed.
    pub background_flushes: u64,
    /// Reads that a member could not answer and another was asked.
    pub read_fallbacks: u64,
    /// Answers whose data did not match its checksums when it came in.
    pub checksum_errors_wire: u64,
    /// Reads for which a second member was asked because the first took long.
    pub hedged_reads: u64,
    /// Blocks that a member found changed on its medium.
    pub checksum_errors_medium: u64,
    /// Reads that a member's device failed.
    pub medium_errors: u64,
    /// Writes that a member had no space for.
    pub no_space: u64,
    /// Ranges that a member could not read and has fetched from another.
    pub repairs: u64,
    /// Repairs that failed.
    pub repairs_failed: u64,
    /// Blocks rewritten to make members alike on opening.
    pub blocks_reconciled: u64,
    /// Blocks rewritten because a member that came back had another version.
    pub blocks_rewritten: u64,
    /// Blocks of an encrypted volume that a member gave back otherwise than they were written.
    pub blocks_forged: u64,
    /// Blocks of which verified reads have found that a member has another version than stands.
    pub blocks_stale: u64,
    /// In-sync members that were dropped.
    pub members_dropped: u64,
    /// How often a limit held up what came next; what waited behind it is not counted.
    pub throttled: u64,
}

impl Counters {
    pub(super) fn count(&mut self, request: &IoRequest) {
        match request {
            IoRequest::Read { length, .. } => {
                self.reads += 1;
                self.bytes_read += u64::from(*length);
            }
            IoRequest::Write { segments, .. } => {
                self.writes += 1;
                self.bytes_written += segments.iter().map(|segment| segment.len() as u64).sum::<u64>();
            }
            IoRequest::Discard { .. } | IoRequest::WriteZeroes { .. } => self.discards += 1,
            IoRequest::Flush | IoRequest::Allocation { .. } | IoRequest::Changed { .. } => {}
        }
    }

    pub(super) const fn count_bad_read(&mut self, code: ErrorCode) {
        match code {
            ErrorCode::ChecksumOnWire => self.checksum_errors_wire += 1,
            ErrorCode::ChecksumOnMedium => self.checksum_errors_medium += 1,
            _ => self.medium_errors += 1,
        }
    }
}

/// A member in a [`VolumeStatus`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MemberStatus {
    /// Its pool.
    pub replica: String,
    /// Where it listens: `host:port`.
    pub address: String,
    /// `in-sync`, `syncing`, `stale` or `removed`.
    pub role: &'static str,
    /// `disconnected`, `greeting`, `opening`, `ready` or `lost`.
    pub state: &'static str,
    /// How far it has been brought back, while that is under way.
    pub sync: Option<SyncStatus>,
    /// Why it is not ready.
    pub fault: Option<String>,
    /// How often its connection broke.
    pub disconnects: u64,
    /// Requests that it has not answered.
    pub in_flight: usize,
}

/// How far a member has been brought back, or an import is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct SyncStatus {
    /// The block that the walk over the volume has reached; of an import, how many are done.
    pub position: u64,
    /// Blocks copied.
    pub copied_blocks: u64,
    /// For how long this attempt has been under way, in milliseconds.
    pub since_ms: u64,
}

/// A volume's state, for people and their tools.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VolumeStatus {
    /// Which volume.
    pub volume: String,
    /// What people call it; empty before its record is read.
    pub name: String,
    /// Its standing in one word.
    pub standing: Standing,
    /// Why it is not simply open.
    pub reason: Option<String>,
    /// For how long it has had this standing, in milliseconds.
    pub since_ms: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Size in blocks.
    pub blocks: u64,
    /// The generation of this opening.
    pub generation: u32,
    /// Every member holds all writes up to this stamp, as `generation.sequence`.
    pub committed: String,
    /// Every member has all writes up to this stamp on its medium.
    pub stable: String,
    /// Every member, in sync or not.
    pub members: Vec<MemberStatus>,
    /// Consumers' requests that are not answered yet.
    pub requests_in_flight: usize,
    /// Bytes of them that are on their way to or from members.
    pub bytes_in_flight: usize,
    /// Bytes acknowledged since the last flush began.
    pub bytes_unflushed: u64,
    /// What its record says of durability and limits, as the engine does.
    pub settings: trivet_model::VolumeSettings,
    /// What has happened since the opening.
    pub counters: Counters,
    /// The scrub under way, or the last one of this opening that came to its end.
    pub scrub: Option<super::ScrubStatus>,
    /// The revert under way.
    pub revert: Option<super::RevertStatus>,
    /// How far the import is that fills it while it is used.
    pub import: Option<SyncStatus>,
    /// While blocks are sealed anew under another data key.
    pub resealing: Option<super::ResealStatus>,
}

impl VolumeCore {
    /// The present state.
    #[must_use]
    pub fn status(&self, now: Duration) -> VolumeStatus {
        let progress = self.log.progress();
        let since = now.saturating_sub(self.standing_since).as_millis();
        VolumeStatus {
            volume: self.options.volume.to_string(),
            name: self.record().map(|record| record.name.clone()).unwrap_or_default(),
            standing: self.standing(),
            reason: self.reason(),
            since_ms: u64::try_from(since).unwrap_or(u64::MAX),
            read_only: self.options.read_only,
            blocks: self.blocks,
            generation: self.generation.get(),
            committed: progress.committed.to_string(),
            stable: progress.stable.to_string(),
            members: self.members.iter().map(|member| member_status(member, now)).collect(),
            requests_in_flight: self.requests.len() + self.early.len(),
            bytes_in_flight: self.window_bytes,
            bytes_unflushed: self.flushing.unflushed_bytes(),
            settings: self.settings.clone(),
            counters: self.counters,
            scrub: self.scrub_status(now),
            revert: self.revert_status(now),
            import: self.hydration_status(now),
            resealing: self.reseal_status(now),
        }
    }

    /// What has happened since the opening.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether the volume serves, in one word.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.state {
            VolumeState::Claiming if self.renewing => Standing::Paused,
            VolumeState::Claiming | VolumeState::Connecting | VolumeState::Reconciling => Standing::Opening,
            VolumeState::Open if self.is_reverting() => Standing::Opening,
            VolumeState::Open if self.options.read_only && self.can_view() => Standing::Open,
            VolumeState::Open if self.options.read_only => Standing::Paused,
            VolumeState::Open if !self.required_are_ready() => Standing::Paused,
            VolumeState::Open if self.members.iter().any(is_missing) => Standing::Degraded,
            VolumeState::Open => Standing::Open,
            VolumeState::Closing => Standing::Closing,
            VolumeState::Closed => Standing::Closed,
            VolumeState::Fenced => Standing::Fenced,
            VolumeState::Failed => Standing::Failed,
        }
    }

    /// Why the volume does not simply serve; names the members that it waits for.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let away = || {
            let members = self.members.iter().filter(|member| !matches!(member.role, Role::Removed));
            let faults = members.filter_map(|member| {
                let fault = member.fault.as_ref()?;
                Some(format!("member {} at {}: {fault}", member.replica, member.address))
            });
            let trouble = self.authority_trouble.as_ref();
            let trouble = trouble.map(|cause| format!("the manager cannot be reached: {cause}"));
            faults.chain(trouble).collect::<Vec<_>>().join("; ")
        };
        match self.state {
            VolumeState::Claiming => {
                let trouble = self.authority_trouble.as_ref();
                Some(trouble.map_or("claiming the volume record".to_owned(), |cause| {
                    format!("the manager cannot be reached: {cause}")
                }))
            }
            VolumeState::Connecting => Some(format!("waiting for {}", away())),
            VolumeState::Reconciling => {
                let trouble = self.reconcile.as_ref().and_then(|reconcile| reconcile.trouble.clone());
                let full = (!self.full.is_empty()).then(|| "the members have no space".to_owned());
                let waits = self
                    .must_wait_for_older_engines(self.now)
                    .then(|| "waiting until an older engine has noticed that it is passed over".to_owned());
                Some(trouble.or(full).or(waits).unwrap_or_else(|| "making members alike".to_owned()))
            }
            VolumeState::Open if self.options.read_only => (!self.can_view()).then(away),
            VolumeState::Open if self.is_reverting() && self.required_are_ready() => {
                Some(self.why_reverting())
            }
            VolumeState::Open if !self.required_are_ready() => Some(away()),
            VolumeState::Open if self.is_rekeying() => {
                let trouble = self.authority_trouble.as_deref().unwrap_or("it has not answered yet");
                Some(format!(
                    "writes wait until the record says whether the volume has its new data key: {trouble}"
                ))
            }
            VolumeState::Open if self.members.iter().any(is_missing) => {
                let missing = self.what_is_missing();
                Some(
                    self.hydration_trouble().map_or(missing.clone(), |source| format!("{missing}; {source}")),
                )
            }
            VolumeState::Open => self.hydration_trouble(),
            VolumeState::Closed => None,
            VolumeState::Closing => (!self.required_are_ready()).then(away),
            VolumeState::Fenced => Some("a newer engine has opened the volume".to_owned()),
            VolumeState::Failed => self.failure.as_ref().map(ToString::to_string),
        }
    }

    fn why_reverting(&self) -> String {
        let waits = self.revert_status(self.now).and_then(|status| status.waits);
        let waits = waits.map(|why| format!(" ({why})")).unwrap_or_default();
        format!("reverting to a snapshot{waits}")
    }

    /// Who is not in sync, and what becomes of that.
    fn what_is_missing(&self) -> String {
        let missing = self.members.iter().filter(|member| is_missing(member)).map(|member| {
            let (replica, address) = (member.replica, &member.address);
            match (&member.role, &member.fault) {
                (Role::Syncing { attempt: Some(_), .. }, _) => {
                    format!("member {replica} at {address} is being brought back")
                }
                (_, Some(fault)) => format!("member {replica} at {address} is not in sync: {fault}"),
                (_, None) => format!("member {replica} at {address} is not in sync"),
            }
        });
        missing.collect::<Vec<_>>().join("; ")
    }

    /// Notes when the standing changes. Called after every change of state, here or of a member.
    pub(super) fn note_standing(&mut self, now: Duration) {
        let standing = self.standing();
        if standing != self.standing {
            self.standing = standing;
            self.standing_since = now;
            self.actions.push(Action::StateChanged);
        }
    }
}

fn is_missing(member: &MemberLink) -> bool {
    matches!(member.role, Role::Stale { .. } | Role::Syncing { .. })
}

fn member_status(member: &MemberLink, now: Duration) -> MemberStatus {
    let sync = match &member.role {
        Role::Syncing { attempt: Some(attempt), .. } => Some(SyncStatus {
            position: attempt.position,
            copied_blocks: attempt.copied_blocks,
            since_ms: u64::try_from(now.saturating_sub(attempt.began).as_millis()).unwrap_or(u64::MAX),
        }),
        _ => None,
    };
    MemberStatus {
        replica: member.replica.to_string(),
        address: member.address.clone(),
        role: match member.role {
            Role::InSync => "in-sync",
            Role::Stale { .. } => "stale",
            Role::Syncing { .. } => "syncing",
            Role::Removed => "removed",
        },
        state: match member.state {
            MemberState::Disconnected => "disconnected",
            MemberState::Greeting => "greeting",
            MemberState::Opening => "opening",
            MemberState::Ready => "ready",
            MemberState::Lost => "lost",
        },
        sync,
        fault: member.fault.as_ref().map(ToString::to_string),
        disconnects: member.disconnects,
        in_flight: member.outstanding(),
    }
}
