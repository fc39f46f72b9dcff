//! Scrubbing: every block of every in-sync member is read and compared, at a bounded rate.
//!
//! ```text
//!            pace allows, all there       all have answered      nothing differs (any more)
//!  ┌─────────┐        ┌───────────┐            ┌──────────┐            ┌───────────┐
//!  │ Waiting │───────▶│ Comparing │───────────▶│ Settling │───────────▶│ Repairing │──▶ the next window
//!  └─────────┘        └───────────┘            └──────────┘            └───────────┘
//!       ▲                   └── a member left, or its connection broke ──────┘
//!       └────────────────────────── the window begins anew ◀─────────────────┘
//! ```
//!
//! A window is compared beside live writes, which members carry out at different moments: what differs
//! there means nothing yet. Each such block is compared again in its place among overlapping I/O, as if it
//! were a write of its own: everything before it is settled then, and nothing comes in between. Only what
//! differs still counts (`scrub/settle.rs`).
//!
//! - Bad on some members: repaired as after a read that failed (`repair.rs`).
//! - Other versions: the newest is written to everyone, as an ordinary write.
//! - Nobody can read the newest version: counted and named. An older one is never put in its place.
//!
//! Whoever orders a scrub keeps its position and its counts (the manager does); an engine forgets.

mod judge;
pub(super) mod pace;
mod report;
mod settle;

pub use report::ScrubStatus;
pub use trivet_model::{ScrubCounts, ScrubOrder};

use super::control::IDLE;
use super::member::Control;
use super::operation::Outcome;
use super::planted::PlantedFault as Planted;
use super::{MemberFault, MemberIndex, MemberSet, OperationId, VolumeCore, VolumeState};
pub(super) use judge::{Found, expand};
use judge::{Verdict, judge};
use pace::Pace;
use std::collections::VecDeque;
use std::time::Duration;
use trivet_model::geometry::IO_BLOCKS_MAX;
use trivet_model::{BLOCK_SIZE_U64, BlockRange};
use trivet_wire::Message;

/// The slowest scrub: slower ones would not end.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;
/// Bytes of consumers in flight from which on they count as busy.
const BUSY_BYTES: usize = 4 << 20;
/// Requests of consumers in flight from which on they count as busy.
const BUSY_REQUESTS: usize = 32;
/// How long it rests when a member cannot answer.
const REST: Duration = Duration::from_secs(5);

/// A scrub under way, or the last one that came to its end.
#[derive(Debug)]
pub(super) struct Scrub {
    run: u64,
    position: u64,
    counts: ScrubCounts,
    pace: Pace,
    began: (Duration, u64),
    rests_until: Duration,
    trouble: Option<String>,
    window: Option<Window>,
    finished_at: Option<Duration>,
}

/// The part that is being looked at.
#[derive(Debug)]
struct Window {
    range: BlockRange,
    members: MemberSet,
    /// How often their connections had broken when it began.
    breaks: u64,
    comparison: Option<Comparison>,
    suspects: VecDeque<u64>,
    recheck: Option<Recheck>,
    bad: Vec<Bad>,
    repairs: Vec<(MemberIndex, BlockRange)>,
    /// To be looked at once more: a device may fail only now and then, and a source of a repair have lost
    /// meanwhile what another member has.
    again: VecDeque<u64>,
    /// How often all suspects have been looked at.
    rounds: u32,
}

#[derive(Debug)]
struct Comparison {
    range: BlockRange,
    awaiting: MemberSet,
    answers: Vec<(MemberIndex, Vec<Found>)>,
}

/// A block that differed, with its place among other I/O.
#[derive(Clone, Copy, Debug)]
struct Recheck {
    id: OperationId,
    block: u64,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Ordering,
    Comparing,
    Rewriting,
}

/// A run of blocks that the same members have bad.
#[derive(Clone, Copy, Debug)]
struct Bad {
    range: BlockRange,
    members: MemberSet,
    source: MemberIndex,
}

impl VolumeCore {
    /// Begins a scrub, in place of another one; of the same one, only changes the rate. It waits until
    /// the volume is open. A volume open for reading only is not scrubbed: nothing can be mended there.
    pub fn scrub(&mut self, now: Duration, order: ScrubOrder) {
        self.now = now;
        if self.options.read_only || self.state.is_over() || self.state == VolumeState::Closing {
            return;
        }
        let rate = order.bytes_per_second.max(BYTES_PER_SECOND_MIN);
        if let Some(scrub) = self.scrub.as_mut().filter(|scrub| scrub.run == order.run) {
            scrub.pace.set_rate(rate);
            return;
        }
        self.stop_scrub(now);
        let ScrubOrder { run, position, counts, .. } = order;
        self.scrub = Some(Scrub {
            run,
            position,
            counts,
            pace: Pace::new(now, rate),
            began: (now, position),
            rests_until: now,
            trouble: None,
            window: None,
            finished_at: None,
        });
        self.advance_scrub(now);
    }

    /// Ends the scrub, wherever it is. What it has begun to mend is mended.
    pub fn stop_scrub(&mut self, now: Duration) {
        self.now = now;
        self.abandon_window(now);
        self.scrub = None;
    }

    /// How soon the scrub wants to be looked at.
    pub(super) fn scrub_within(&self) -> Option<Duration> {
        let (now, open) = (self.now, self.state == VolumeState::Open);
        let scrub = self.scrub.as_ref().filter(|scrub| open && scrub.finished_at.is_none())?;
        if scrub.window.is_some() {
            return Some(IDLE);
        }
        let wait = scrub.pace.wait(now).max(scrub.rests_until.saturating_sub(now));
        Some(wait.clamp(Duration::from_millis(1), IDLE))
    }

    /// Takes the scrub as far as it gets.
    pub(super) fn advance_scrub(&mut self, now: Duration) {
        let Some(scrub) = &self.scrub else { return };
        if scrub.window.is_some() {
            if self.window_stands() {
                self.settle_lost_repairs(now);
            } else {
                self.abandon_window(now);
            }
        } else if scrub.finished_at.is_none() {
            self.begin_window(now);
        }
    }

    fn begin_window(&mut self, now: Duration) {
        let members = self.in_sync();
        let may = self.state == VolumeState::Open
            && !self.renewing
            && self.growing.is_none()
            && self.taking.is_none()
            && !self.is_reverting()
            && self.required_are_ready()
            // What is still to be answered of an older window could not be told from what is asked now.
            && !members.into_iter().any(|member| self.members[member.0].expects(Control::Verify));
        let (blocks, breaks) = (self.blocks, self.breaks_of(members));
        let Some(scrub) = self.scrub.as_mut().filter(|_| may) else { return };
        if scrub.position >= blocks {
            scrub.finished_at = Some(now);
            let ScrubCounts { compared, repaired, mismatched, unrepairable, .. } = scrub.counts;
            tracing::info!(volume = %self.options.volume, compared, repaired, mismatched, unrepairable,
                "scrubbed");
            return self.begin_flush(now);
        }
        if now < scrub.rests_until || !scrub.pace.wait(now).is_zero() {
            return;
        }
        let left = u32::try_from(blocks - scrub.position).unwrap_or(u32::MAX);
        let range = BlockRange::new(scrub.position, left.min(IO_BLOCKS_MAX));
        scrub.trouble = None;
        scrub.window = Some(Window {
            range,
            members,
            breaks,
            comparison: None,
            suspects: VecDeque::new(),
            recheck: None,
            bad: Vec::new(),
            repairs: Vec::new(),
            again: VecDeque::new(),
            rounds: 1,
        });
        self.compare(now, range);
    }

    /// Whether all who take part in the window have been there all the time.
    fn window_stands(&self) -> bool {
        let window = self.scrub.as_ref().and_then(|scrub| scrub.window.as_ref());
        window.is_some_and(|window| {
            self.state == VolumeState::Open
                && !self.renewing
                && self.in_sync() == window.members
                && window.members.without(self.ready_members()).is_empty()
                && self.breaks_of(window.members) == window.breaks
        })
    }

    fn breaks_of(&self, members: MemberSet) -> u64 {
        members.into_iter().map(|member| self.members[member.0].disconnects).sum()
    }

    fn window_mut(&mut self) -> Option<&mut Window> {
        self.scrub.as_mut()?.window.as_mut()
    }

    /// Begins the window anew, later: what is on its way is let go.
    fn abandon_window(&mut self, now: Duration) {
        let Some(window) = self.scrub.as_mut().and_then(|scrub| scrub.window.take()) else { return };
        // One that waits for its place ends when it gets it; one that is being written goes on.
        if let Some(Recheck { id, step: Step::Comparing, .. }) = window.recheck {
            self.finish(now, id, Outcome::Done);
        }
    }

    fn compare(&mut self, now: Duration, range: BlockRange) {
        let Some(window) = self.window_mut() else { return };
        let members = window.members;
        window.comparison = Some(Comparison { range, awaiting: members, answers: Vec::new() });
        for member in members {
            self.ask(now, member, Control::Verify, Message::Verify { range, stamps_only: false });
        }
    }

    /// A member says what it has, or that it cannot.
    pub(super) fn verified(
        &mut self,
        now: Duration,
        member: MemberIndex,
        message: Message,
    ) -> Result<(), MemberFault> {
        if !self.window_stands() {
            self.abandon_window(now);
            return Ok(());
        }
        let Some(comparison) = self.window_mut().and_then(|window| window.comparison.as_mut()) else {
            return Ok(());
        };
        match message {
            Message::VerifyReply { versions, crcs, failed } => {
                let found = expand(comparison.range, &versions, &crcs, &failed)?;
                comparison.awaiting.remove(member);
                comparison.answers.push((member, found));
                if comparison.awaiting.is_empty() {
                    self.compared(now);
                }
            }
            Message::Error { detail, .. } => {
                let trouble = format!("member {} cannot tell: {detail}", self.members[member.0].replica);
                tracing::error!(volume = %self.options.volume, trouble, "a scrub does not get on");
                self.abandon_window(now);
                if let Some(scrub) = &mut self.scrub {
                    (scrub.trouble, scrub.rests_until) = (Some(trouble), now + REST);
                }
            }
            _ => return Err(MemberFault::Protocol("it answers a scrub with something else")),
        }
        Ok(())
    }

    /// Everyone has answered.
    fn compared(&mut self, now: Duration) {
        let (busy, latency) = self.strain();
        let trusting = self.has_planted(Planted::TrustFirstComparison);
        let Some(scrub) = self.scrub.as_mut() else { return };
        let Some(window) = scrub.window.as_mut() else { return };
        let Some(comparison) = window.comparison.take() else { return };
        if let Some(recheck) = window.recheck {
            return self.settle_block(now, recheck, comparison.verdict(0));
        }
        for (index, block) in comparison.range.blocks().enumerate() {
            match comparison.verdict(index) {
                Verdict::Alike => {}
                Verdict::Differs { .. } if trusting => scrub.counts.mismatched += 1,
                _ => window.suspects.push_back(block),
            }
        }
        scrub.counts.compared += u64::from(comparison.range.count);
        // A window costs something even where nothing was ever written.
        let bytes = (comparison.data_blocks() + 1) * BLOCK_SIZE_U64;
        scrub.pace.read(now, bytes, busy, latency);
        self.next_suspect(now);
    }

    /// Whether consumers want the disks much, and how long members take.
    pub(super) fn strain(&self) -> (bool, Duration) {
        let busy = self.window_bytes >= BUSY_BYTES
            || self.requests.len() >= BUSY_REQUESTS
            || !self.waiting.is_empty();
        let latency = self.in_sync().into_iter().map(|member| self.members[member.0].latency.average()).max();
        (busy, latency.unwrap_or_default())
    }

    fn end_window(&mut self, now: Duration) {
        if let Some(scrub) = &mut self.scrub
            && let Some(window) = scrub.window.take()
        {
            scrub.position = window.range.end();
            self.begin_window(now);
        }
    }
}

impl Comparison {
    fn verdict(&self, index: usize) -> Verdict {
        judge(self.answers.iter().map(|(member, found)| (*member, found[index])))
    }

    /// The most blocks that a member had to read.
    fn data_blocks(&self) -> u64 {
        let read = |found: &Vec<Found>| found.iter().filter(|found| found.crc.is_some()).count() as u64;
        self.answers.iter().map(|(_, found)| read(found)).max().unwrap_or(0)
    }
}
