//! Everything that is said besides I/O: progress, keep-alives, the volume record.

use super::member::{Control, MemberLink, Role};
use super::{Action, MemberFault, MemberIndex, MemberSet, VolumeCore, VolumeState};
use std::time::Duration;
use trivet_model::{AuthorityError, MemberState as Recorded, Revision, VolumeRecord};
use trivet_wire::frame::{Progress, SnapshotEntry};
use trivet_wire::{ErrorCode, Message};

/// How long nothing is written before members are told progress by itself.
pub(super) const IDLE: Duration = Duration::from_millis(100);
/// How long a member may owe an answer without saying anything.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long until the authority is asked again when it could not be reached.
const AUTHORITY_RETRY: Duration = Duration::from_secs(1);
/// How often the record is read again: members may have been added, removed or moved.
pub(super) const REFRESH: Duration = Duration::from_secs(5);

/// What the volume record is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// Become the owner, with a new generation.
    Claim,
    /// Follow what others have changed, and learn whether a newer engine took over.
    Refresh,
    /// Record who has left, is being brought back, or is in sync again.
    Members,
    /// Record the new size.
    Grow,
    /// Record a snapshot taken or deleted.
    Snapshots,
    /// Read or change the settings.
    Settings,
    /// Record how far a revert is, or that it is done.
    Revert,
    /// Record how much of its source is in the volume.
    Hydration,
    /// Record that there is another data key, or how far blocks are sealed anew under it.
    Keys,
    /// Record that nobody has the volume open.
    Release,
}

/// A conversation with the authority; there is one at a time.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) purpose: Purpose,
    pub(super) swapping: Option<Box<VolumeRecord>>,
    pub(super) attempts: u32,
    retry_at: Option<Duration>,
}

/// A swap that has been sent, until it is known what became of it.
///
/// An answer that is lost says nothing, and reading the record unchanged says no more: the swap may
/// still arrive. Only another revision decides it, one's own if need be (`docs/adr/0007`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Undecided {
    expected: Revision,
    /// In-sync members that may be so no more: none of them is read from.
    leaving: MemberSet,
}

impl VolumeCore {
    /// Sends one member a request that is not I/O.
    pub(super) fn ask(&mut self, now: Duration, member: MemberIndex, control: Control, message: Message) {
        let id = self.new_id();
        self.members[member.0].expect(now, id, control);
        self.send(now, MemberSet::of(member), id, message);
    }

    /// The answer to a request that is not I/O.
    pub(super) fn control_answered(
        &mut self,
        now: Duration,
        member: MemberIndex,
        control: Control,
        message: Message,
    ) -> Result<(), MemberFault> {
        match (control, message) {
            (Control::Hello, Message::HelloReply(reply)) => self.greeted(now, member, &reply),
            (Control::Open, Message::OpenReply(reply)) => self.member_opened(now, member, &reply),
            (Control::Tail, Message::TailReply { entries, more }) => {
                self.tail_answered(now, member, entries, more)
            }
            (Control::Flush, Message::FlushReply(_)) => self.flush_answered(now, member),
            (Control::Progress, Message::Done) => {
                if self.any_at_fault() {
                    self.review_members(now);
                }
                Ok(())
            }
            (Control::Resize { blocks }, Message::Done) => {
                self.member_grown(now, member, blocks);
                Ok(())
            }
            (Control::CreateSnapshot { id, cut }, Message::Done) => {
                self.snapshot_kept(now, member, SnapshotEntry { id, cut });
                Ok(())
            }
            (Control::CreateSnapshot { .. }, Message::Error { code, detail }) => {
                self.snapshot_refused(now, member, code, detail)
            }
            (Control::DeleteSnapshot { id }, Message::Done) => {
                self.snapshot_let_go(now, member, id);
                Ok(())
            }
            (Control::Pull | Control::View, Message::Done) => Ok(()),
            (Control::View, Message::Error { code: ErrorCode::NoSuchSnapshot, .. }) => {
                Err(self.member_lacks_viewed())
            }
            (Control::Reset, Message::Done) => {
                self.end_attempt(now, member, "it begins anew, empty");
                Ok(())
            }
            (Control::Repair, Message::Done) => {
                self.repaired(now, member, None);
                Ok(())
            }
            (Control::Repair, Message::Error { detail, .. }) => {
                self.repaired(now, member, Some(&detail));
                Ok(())
            }
            (
                Control::Verify,
                answer @ (Message::VerifyReply { .. }
                | Message::Error { code: ErrorCode::Medium | ErrorCode::ChecksumOnMedium, .. }),
            ) => self.verified(now, member, answer),
            (Control::Changed { question, start }, Message::ChangedReply { entries, next }) => {
                self.changes_answered(now, (member, question), start, &entries, next)
            }
            (Control::Shown { question, range }, Message::AllocationReply { extents }) => {
                self.shown_answered(now, (member, question), range, &extents)
            }
            (
                Control::Changed { question, .. } | Control::Shown { question, .. },
                Message::Error { code: ErrorCode::Medium | ErrorCode::ChecksumOnMedium, detail },
            ) => {
                self.survey_refused(now, (member, question), &detail);
                Ok(())
            }
            (
                Control::Witness { operation, range },
                answer @ (Message::VerifyReply { .. }
                | Message::Error { code: ErrorCode::Medium | ErrorCode::ChecksumOnMedium, .. }),
            ) => self.witnessed(now, member, (operation, range), answer),
            (
                Control::Hearing { operation, block },
                answer @ (Message::ReadReply { .. }
                | Message::Error { code: ErrorCode::Medium | ErrorCode::ChecksumOnMedium, .. }),
            ) => self.heard(now, member, (operation, block), answer),
            (
                Control::Chunk { chunk },
                answer @ (Message::VerifyReply { .. }
                | Message::Error { code: ErrorCode::Medium | ErrorCode::ChecksumOnMedium, .. }),
            ) => self.chunk_heard(member, chunk, answer),
            (Control::PullStatus, Message::PullReport(report)) => self.pull_reported(now, member, report),
            (Control::JoinFlush, Message::FlushReply(_)) => self.join_flushed(now, member),
            (Control::Close, Message::Done) => {
                self.member_parted(now, member);
                Ok(())
            }
            (Control::Resize { .. }, Message::Error { code, detail }) => {
                self.grow_refused(member, code, detail)
            }
            (_, Message::Error { code, detail }) => Err(MemberFault::Refused { code, detail }),
            _ => Err(MemberFault::Protocol("an answer of the wrong kind")),
        }
    }

    /// The progress that may be told now. While members are made alike, none: what one of them has lost
    /// is not known by all yet (`docs/adr/0007`).
    pub(super) fn progress_told(&self) -> Progress {
        if self.state == VolumeState::Reconciling { Progress::default() } else { self.log.progress() }
    }

    /// Notes that members learn of the progress with what is sent now.
    pub(super) fn tell(&mut self, to: MemberSet, progress: Progress) {
        for member in to {
            self.members[member.0].told = progress;
        }
    }

    pub(super) fn progress_is_untold(&self) -> bool {
        let progress = self.log.progress();
        !self.options.read_only
            && self.state == VolumeState::Open
            && self
                .ready_members()
                .intersection(self.required())
                .into_iter()
                .any(|member| self.members[member.0].told != progress)
    }

    /// Tells ready members the progress when the volume is idle, and keeps connections alive.
    pub(super) fn tell_progress(&mut self, now: Duration) {
        let serving = matches!(self.state, VolumeState::Open | VolumeState::Closing);
        if !serving && self.state != VolumeState::Reconciling {
            return;
        }
        let required = self.required();
        let idle = serving && !self.options.read_only && now.saturating_sub(self.active_at) >= IDLE;
        for member in self.ready_members() {
            let counts = required.contains(member);
            let progress = if counts { self.progress_told() } else { Progress::default() };
            let link = &self.members[member.0];
            let lags = idle && counts && link.told != progress;
            let due = self.is_lease_due(member) || self.needs_witness(now, member);
            if (lags || due) && !link.expects(Control::Progress) {
                if counts && serving {
                    self.tell(MemberSet::of(member), progress);
                }
                self.ask(now, member, Control::Progress, Message::Progress(progress));
            }
        }
    }

    /// Gives up connections on which an answer has been due for too long.
    pub(super) fn check_silence(&mut self, now: Duration) {
        for index in 0..self.members.len() {
            if let Some(silent) = self.members[index].silent_for(now).filter(|&silent| silent >= SILENCE_MAX)
            {
                self.fault(now, MemberIndex(index), MemberFault::Silent(silent));
            }
        }
    }

    /// Starts a conversation with the authority, or leaves it to the one that is under way to call
    /// again.
    pub(super) fn run_errand(&mut self, purpose: Purpose) {
        let attempts = 0;
        match &mut self.errand {
            Some(errand) if errand.purpose == Purpose::Refresh => errand.purpose = purpose,
            Some(_) => {}
            None => {
                self.errand = Some(Errand { purpose, swapping: None, attempts, retry_at: None });
                self.view_asks_record();
                self.actions.push(Action::ReadRecord);
            }
        }
    }

    pub(super) fn read_record_again(&mut self, now: Duration, soon: bool) {
        if let Some(errand) = &mut self.errand {
            errand.swapping = None;
            errand.attempts += 1;
            if soon {
                errand.retry_at = None;
                self.actions.push(Action::ReadRecord);
            } else {
                errand.retry_at = Some(now + AUTHORITY_RETRY);
            }
        }
    }

    /// Asks the authority again, and reads the record while a member is away.
    pub(super) fn retry_errand(&mut self, now: Duration) {
        if let Some(errand) = &mut self.errand {
            if errand.retry_at.is_some_and(|at| now >= at) {
                errand.retry_at = None;
                self.actions.push(Action::ReadRecord);
            }
        } else if self.awaits_growth_record() {
            self.run_errand(Purpose::Grow);
        } else if self.awaits_snapshot_record() {
            self.run_errand(Purpose::Snapshots);
        } else if self.awaits_settings() && self.state == VolumeState::Open {
            self.run_errand(Purpose::Settings);
        } else if self.awaits_revert_record() {
            self.run_errand(Purpose::Revert);
        } else if self.awaits_hydration_record() {
            self.run_errand(Purpose::Hydration);
        } else if self.awaits_keys_record() {
            self.run_errand(Purpose::Keys);
        } else if self.is_releasing() {
            self.run_errand(Purpose::Release);
        } else if now >= self.refresh_at && self.state != VolumeState::Claiming {
            self.refresh_at = now + REFRESH;
            self.run_errand(Purpose::Refresh);
        }
    }

    /// The answer to [`Action::ReadRecord`].
    pub fn record_read(&mut self, now: Duration, result: Result<(VolumeRecord, Revision), AuthorityError>) {
        self.now = now;
        let Some(purpose) = self.errand.as_ref().map(|errand| errand.purpose) else { return };
        if self.state.is_over() {
            return;
        }
        let read = result.as_ref().ok().map(|&(_, revision)| revision);
        if self.undecided.is_some_and(|undecided| read.is_some_and(|read| read != undecided.expected)) {
            self.undecided = None;
        }
        match (purpose, result) {
            (Purpose::Claim, result) => self.claim(now, result),
            (_, Err(error)) => self.authority_failed(now, purpose, &error),
            (Purpose::Refresh | Purpose::Members, Ok((record, revision)))
                if self.undecided.is_some() && record.generation == self.generation =>
            {
                self.run_errand(Purpose::Members);
                let wanted = self.wanted_record(now, &record);
                self.swap(now, revision, wanted.unwrap_or(record));
            }
            (_, Ok((record, _))) if record.generation != self.generation && !self.options.read_only => {
                self.errand = None;
                self.fenced(now);
            }
            (Purpose::Refresh, Ok((record, revision))) => {
                self.record_learnt(now, record, revision);
                self.follow_revert(now);
            }
            (Purpose::Members, Ok((record, revision))) => {
                // Followed first: an earlier swap may have been done although its answer was lost.
                self.adopt(now, &record);
                match self.wanted_record(now, &record) {
                    Some(wanted) => self.swap(now, revision, wanted),
                    None => self.record_learnt(now, record, revision),
                }
            }
            (Purpose::Grow, Ok((mut record, revision))) => {
                self.adopt(now, &record);
                match self.grows_to() {
                    Some(blocks) => {
                        record.blocks = blocks;
                        self.swap(now, revision, record);
                    }
                    None => self.errand = None,
                }
            }
            (Purpose::Snapshots, Ok((record, revision))) => {
                self.adopt(now, &record);
                match self.with_snapshots(&record) {
                    Some(wanted) => self.swap(now, revision, wanted),
                    None => {
                        self.record_learnt(now, record, revision);
                        self.snapshots_recorded(now);
                    }
                }
            }
            (Purpose::Settings, Ok((record, revision))) => match self.with_settings(&record) {
                Some(wanted) => {
                    self.adopt(now, &record);
                    self.swap(now, revision, wanted);
                }
                None => {
                    self.record_learnt(now, record, revision);
                    self.settings_recorded(now);
                }
            },
            (Purpose::Revert, Ok((record, revision))) => {
                self.adopt(now, &record);
                match self.with_revert(&record) {
                    Some(wanted) => self.swap(now, revision, wanted),
                    None => {
                        self.record_learnt(now, record, revision);
                        self.revert_recorded(now);
                    }
                }
            }
            (Purpose::Hydration, Ok((record, revision))) => {
                self.adopt(now, &record);
                match self.with_hydration(&record) {
                    Some(wanted) => self.swap(now, revision, wanted),
                    None => {
                        self.record_learnt(now, record, revision);
                        self.hydration_recorded(now);
                    }
                }
            }
            (Purpose::Keys, Ok((record, revision))) => {
                self.adopt(now, &record);
                match self.with_keys(&record) {
                    Some(wanted) => {
                        self.note_rekeying(&wanted);
                        self.swap(now, revision, wanted);
                    }
                    None => {
                        self.record_learnt(now, record, revision);
                        self.keys_recorded(now);
                    }
                }
            }
            (Purpose::Release, Ok((mut record, revision))) => {
                record.owner.clear();
                record.wait_owed = false;
                self.swap(now, revision, record);
            }
        }
    }

    /// The record is as it should be.
    fn record_learnt(&mut self, now: Duration, record: VolumeRecord, revision: Revision) {
        self.errand = None;
        self.authority_trouble = None;
        self.adopt(now, &record);
        self.record_vouches(now, &record);
        self.forget_older_keys(&record);
        self.record = Some((record, revision));
        self.retry_reads(now);
        self.check_connected(now);
        self.pump(now);
    }

    pub(super) fn swap(&mut self, now: Duration, expected: Revision, record: VolumeRecord) {
        let Some(errand) = &mut self.errand else { return };
        errand.swapping = Some(Box::new(record.clone()));
        let leaves = |link: &MemberLink| {
            let recorded = record.members.iter().find(|member| member.replica == link.replica);
            matches!(link.role, Role::InSync)
                && recorded.is_none_or(|member| member.state != Recorded::InSync)
        };
        let leave = self.members_that(leaves);
        self.undecided = Some(Undecided { expected, leaving: leave.union(self.leaving()) });
        self.actions.push(Action::SwapRecord { expected, record: Box::new(record) });
        if matches!(self.state, VolumeState::Open | VolumeState::Closing) {
            // Answers that are on their way must not count any more either.
            for member in leave.intersection(self.ready_members()) {
                self.fault(now, member, MemberFault::Leaving);
            }
        }
    }

    /// In-sync members that the record may not call so any more.
    pub(super) fn leaving(&self) -> MemberSet {
        self.undecided.map_or(MemberSet::EMPTY, |undecided| undecided.leaving)
    }

    /// The answer to [`Action::SwapRecord`].
    pub fn record_swapped(&mut self, now: Duration, result: Result<Revision, AuthorityError>) {
        self.now = now;
        let Some((purpose, swapped)) =
            self.errand.as_mut().and_then(|errand| Some((errand.purpose, errand.swapping.take()?)))
        else {
            return;
        };
        if self.state.is_over() {
            return;
        }
        let revision = match result {
            Ok(revision) => revision,
            Err(AuthorityError::Conflict { .. }) => return self.read_record_again(now, true),
            Err(error) => return self.authority_failed(now, purpose, &error),
        };
        self.errand = None;
        self.undecided = None;
        self.record = Some(((*swapped).clone(), revision));
        match purpose {
            Purpose::Claim => self.claimed(now, *swapped),
            Purpose::Grow => self.grown(now, swapped.blocks),
            Purpose::Members => self.record_learnt(now, *swapped, revision),
            Purpose::Snapshots => self.snapshots_recorded(now),
            Purpose::Settings => {
                self.follow_settings(now, &swapped.settings);
                self.settings_recorded(now);
            }
            Purpose::Revert => self.revert_recorded(now),
            Purpose::Hydration => self.hydration_recorded(now),
            Purpose::Keys => self.keys_recorded(now),
            Purpose::Refresh => {}
            Purpose::Release => self.closed(now),
        }
    }

    /// The authority does not answer an errand of a volume that is open.
    fn authority_failed(&mut self, now: Duration, purpose: Purpose, error: &AuthorityError) {
        if self.authority_trouble.is_none() {
            tracing::warn!(volume = %self.options.volume, ?purpose, %error, "the volume record cannot be had");
        }
        self.authority_trouble = Some(error.to_string());
        self.authority_failed_at = Some(now);
        match purpose {
            Purpose::Refresh => {
                self.errand = None;
                if self.needs_vouching() {
                    self.refresh_at = now + AUTHORITY_RETRY;
                }
            }
            Purpose::Claim
            | Purpose::Members
            | Purpose::Grow
            | Purpose::Snapshots
            | Purpose::Settings
            | Purpose::Revert
            | Purpose::Hydration
            | Purpose::Keys
            | Purpose::Release => self.read_record_again(now, false),
        }
        self.note_standing(now);
    }
}
