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
//! differs still counts.
//!
//! - Bad on some members: repaired as after a read that failed (`repair.rs`).
//! - Other versions: the newest is written to everyone, as an ordinary write.
//! - Nobody can read the newest version: counted and named. An older one is never put in its place.
//!
//! Whoever orders a scrub keeps its position and its counts (the manager does); an engine forgets.

mod judge;
mod pace;

use super::control::IDLE;
use super::member::Control;
use super::operation::{Operation, Outcome, Phase};
use super::ordering::Span;
use super::pieces::Piece;
use super::planted::PlantedFault as Planted;
use super::read::{Reading, Then};
use super::write::Writing;
use super::{MemberFault, MemberIndex, MemberSet, OperationId, VolumeCore, VolumeState};
use judge::{Found, Verdict, expand, judge};
use pace::Pace;
use serde::{Deserialize, Serialize};
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
/// How often a window's blocks are looked at until one is given up.
const ROUNDS_MAX: u32 = 3;
/// Blocks that are named.
const NAMED_MAX: usize = 16;

/// What a scrub has come to.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ScrubCounts {
    /// Blocks compared.
    pub compared: u64,
    /// Copies of blocks that a member could not read, and has fetched from another.
    pub repaired: u64,
    /// Blocks of which members had different versions: the newest was written to all.
    pub mismatched: u64,
    /// Blocks that nobody could read, or whose repair failed.
    pub unrepairable: u64,
    /// The first of those.
    pub unrepairable_blocks: Vec<u64>,
}

/// A scrub that is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScrubOrder {
    /// Chosen by whoever orders it: tells this scrub from others.
    pub run: u64,
    /// The block to begin at.
    pub position: u64,
    /// How much each member may read, at most.
    pub bytes_per_second: u64,
    /// What was found before that block.
    pub counts: ScrubCounts,
}

/// How far a scrub is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ScrubStatus {
    /// As ordered.
    pub run: u64,
    /// Whether it has come to the volume's end.
    pub finished: bool,
    /// Everything before this block is done.
    pub position: u64,
    /// The volume's blocks.
    pub total: u64,
    /// What it has found, before this engine began too.
    pub counts: ScrubCounts,
    /// As ordered.
    pub bytes_per_second_max: u64,
    /// Of the volume, in this engine so far.
    pub bytes_per_second: u64,
    /// When it will have ended, at this rate.
    pub seconds_left: Option<u64>,
    /// Why it does not get on now.
    pub waits: Option<String>,
}

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

    /// How far it is.
    #[must_use]
    pub fn scrub_status(&self, now: Duration) -> Option<ScrubStatus> {
        let scrub = self.scrub.as_ref()?;
        let elapsed = scrub.finished_at.unwrap_or(now).saturating_sub(scrub.began.0).as_millis();
        let done = u128::from(scrub.position.saturating_sub(scrub.began.1));
        let left = u128::from(self.blocks.saturating_sub(scrub.position));
        let number = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        Some(ScrubStatus {
            run: scrub.run,
            finished: scrub.finished_at.is_some(),
            position: scrub.position.min(self.blocks),
            total: self.blocks,
            counts: scrub.counts.clone(),
            bytes_per_second_max: scrub.pace.bytes_per_second(),
            bytes_per_second: number(done * u128::from(BLOCK_SIZE_U64) * 1000 / elapsed.max(1)),
            seconds_left: (done > 0).then(|| number(left * elapsed / done / 1000)),
            waits: self.what_scrub_waits_for(scrub),
        })
    }

    fn what_scrub_waits_for(&self, scrub: &Scrub) -> Option<String> {
        if scrub.finished_at.is_some() {
            None
        } else if self.state != VolumeState::Open || self.renewing {
            Some("the volume is not open".to_owned())
        } else if !self.required_are_ready() {
            Some("a member is away".to_owned())
        } else {
            scrub.trouble.clone()
        }
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
            self.ask(now, member, Control::Verify, Message::Verify { range });
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
    fn strain(&self) -> (bool, Duration) {
        let busy = self.window_bytes >= BUSY_BYTES
            || self.requests.len() >= BUSY_REQUESTS
            || !self.waiting.is_empty();
        let latency = self.in_sync().into_iter().map(|member| self.members[member.0].latency.average()).max();
        (busy, latency.unwrap_or_default())
    }

    fn next_suspect(&mut self, now: Duration) {
        let Some(window) = self.window_mut() else { return };
        window.recheck = None;
        let Some(block) = window.suspects.pop_front() else { return self.repair_window(now) };
        let id = OperationId(self.new_id());
        if let Some(window) = self.window_mut() {
            window.recheck = Some(Recheck { id, block, step: Step::Ordering });
        }
        let ready = self.ordering.register(id, Span { start: block, end: block + 1 }, true);
        let operation = Operation::ordered_by_engine(Phase::Blocked(Piece::Scrub { block }));
        self.operations.insert(id, operation);
        if ready {
            self.start(now, id);
        }
    }

    /// A block's place among other I/O has come: nothing on it is in flight.
    pub(super) fn scrub_ordered(&mut self, now: Duration, id: OperationId, block: u64) {
        let stands = self.window_stands();
        let recheck = self.window_mut().and_then(|window| window.recheck.as_mut());
        match recheck.filter(|recheck| stands && recheck.id == id) {
            Some(recheck) => {
                recheck.step = Step::Comparing;
                self.compare(now, BlockRange::new(block, 1));
            }
            None => self.finish(now, id, Outcome::Done),
        }
    }

    fn settle_block(&mut self, now: Duration, recheck: Recheck, verdict: Verdict) {
        let Recheck { id, block, .. } = recheck;
        match verdict {
            Verdict::Alike => {}
            Verdict::Bad { members, source } => self.note_bad(block, members, source),
            Verdict::Differs { newest, discard } => return self.write_newest(now, recheck, newest, discard),
            Verdict::Lost if self.looks_again(BlockRange::new(block, 1)) => {}
            Verdict::Lost => {
                tracing::error!(volume = %self.options.volume, block, "no member can read this block");
                self.count_unrepairable(BlockRange::new(block, 1));
            }
        }
        if let Some(window) = self.window_mut() {
            window.recheck = None;
        }
        self.finish(now, id, Outcome::Done);
        self.next_suspect(now);
    }

    fn note_bad(&mut self, block: u64, members: MemberSet, source: MemberIndex) {
        let Some(window) = self.window_mut() else { return };
        match window.bad.last_mut() {
            Some(last) if last.range.end() == block && last.members == members && last.source == source => {
                last.range.count += 1;
            }
            _ => window.bad.push(Bad { range: BlockRange::new(block, 1), members, source }),
        }
    }

    fn write_newest(&mut self, now: Duration, recheck: Recheck, newest: MemberSet, discard: bool) {
        let Recheck { id, block, .. } = recheck;
        tracing::error!(volume = %self.options.volume, block, ?newest,
            "members have different versions of a block: writing the newest to all");
        if let Some(scrub) = &mut self.scrub {
            scrub.counts.mismatched += 1;
            if let Some(window) = &mut scrub.window {
                window.recheck = Some(Recheck { step: Step::Rewriting, ..recheck });
            }
        }
        let range = BlockRange::new(block, 1);
        let operation = self.operations.get_mut(&id).expect("it has its place");
        if discard {
            operation.phase = Phase::Writing(Writing::discard(range, false));
            self.send_write(now, id);
        } else {
            operation.phase = Phase::Reading(Reading::new(range, newest, Then::Mend));
            self.send_read(now, id);
        }
    }

    /// An operation of the engine's own has ended.
    pub(super) fn scrub_operation_ended(&mut self, now: Duration, id: OperationId, done: bool) {
        let recheck = self.window_mut().and_then(|window| window.recheck);
        let Some(recheck) = recheck.filter(|r| r.id == id && r.step == Step::Rewriting) else { return };
        if !done {
            self.count_unrepairable(BlockRange::new(recheck.block, 1));
        }
        self.next_suspect(now);
    }

    fn count_unrepairable(&mut self, range: BlockRange) {
        let Some(scrub) = &mut self.scrub else { return };
        scrub.counts.unrepairable += u64::from(range.count);
        let named = &mut scrub.counts.unrepairable_blocks;
        named.extend(range.blocks().take(NAMED_MAX.saturating_sub(named.len())));
    }

    /// All blocks have been judged: mend what is bad.
    fn repair_window(&mut self, now: Duration) {
        let skipping = self.has_planted(Planted::SkipScrubRepair);
        let Some(scrub) = self.scrub.as_mut() else { return };
        let Some(window) = scrub.window.as_mut() else { return };
        let bad = std::mem::take(&mut window.bad);
        for run in &bad {
            if skipping {
                scrub.counts.repaired += u64::from(run.range.count);
                continue;
            }
            window.repairs.extend(run.members.into_iter().map(|member| (member, run.range)));
        }
        if window.repairs.is_empty() {
            return self.end_round(now);
        }
        for run in bad {
            self.repair(now, run.members, run.range, run.source);
        }
    }

    /// A repair has ended.
    pub(super) fn scrub_repair_ended(
        &mut self,
        now: Duration,
        member: MemberIndex,
        range: BlockRange,
        done: bool,
    ) {
        let Some(window) = self.window_mut() else { return };
        let mine = window.repairs.iter().position(|repair| *repair == (member, range));
        let Some(mine) = mine else { return };
        window.repairs.swap_remove(mine);
        let last = window.repairs.is_empty();
        if let (true, Some(scrub)) = (done, &mut self.scrub) {
            // What was placed anew is not stable yet, and no write says that there is something to flush.
            self.flushing.want();
            scrub.counts.repaired += u64::from(range.count);
        } else if !self.looks_again(range) {
            self.count_unrepairable(range);
        }
        if last {
            self.end_round(now);
        }
    }

    /// Whether blocks that could not be mended are to be looked at once more.
    fn looks_again(&mut self, range: BlockRange) -> bool {
        let Some(window) = self.window_mut().filter(|window| window.rounds < ROUNDS_MAX) else {
            return false;
        };
        window.again.extend(range.blocks());
        true
    }

    fn end_round(&mut self, now: Duration) {
        let Some(window) = self.window_mut() else { return };
        if window.again.is_empty() {
            return self.end_window(now);
        }
        window.rounds += 1;
        window.suspects = std::mem::take(&mut window.again);
        self.next_suspect(now);
    }

    /// Of a repair that nobody has in hand any more, there will be no word.
    fn settle_lost_repairs(&mut self, now: Duration) {
        let Some(window) = self.scrub.as_ref().and_then(|scrub| scrub.window.as_ref()) else { return };
        let lost = |&(member, range): &(MemberIndex, BlockRange)| !self.has_repair(member, range);
        let lost: Vec<(MemberIndex, BlockRange)> = window.repairs.iter().copied().filter(lost).collect();
        for (member, range) in lost {
            self.scrub_repair_ended(now, member, range, false);
        }
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
