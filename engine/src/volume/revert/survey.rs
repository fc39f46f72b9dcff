//! Finding out what is to be changed: a member in sync is asked what has a stamp above the cut, one part of the
//! volume after the other, and then what the snapshot shows there.

use super::super::member::Control;
use super::super::planted::PlantedFault as Planted;
use super::super::{MemberFault, MemberIndex, VolumeCore};
use super::difference::{Change, Run, difference};
use super::{REST, Revert};
use std::time::Duration;
use trivet_model::BlockRange;
use trivet_wire::{Extent, Message, TailEntry};

/// Changes found and not begun from which on no more are looked for.
const FOUND_ENOUGH: usize = 64;

/// How far it has been found out what is to be changed.
#[derive(Debug)]
pub(super) struct Survey {
    /// Where to look next; `None` at the volume's end.
    next: Option<u64>,
    /// Of whom, and the question's number: an earlier revert may have asked something, too.
    asked: Option<(MemberIndex, u64)>,
    window: Option<Window>,
}

/// A part of the volume that has changed, and as much as is known of what the snapshot shows there.
#[derive(Debug)]
struct Window {
    changed: Vec<Run>,
    shown: Vec<Run>,
}

impl Window {
    /// What the snapshot must still be asked about.
    fn unknown(&self) -> Option<BlockRange> {
        let (first, last) = (self.changed.first()?, self.changed.last()?);
        let from = self.shown.last().map_or(first.range.start, |run| run.range.end());
        let left = last.range.end().checked_sub(from).filter(|left| *left > 0)?;
        Some(BlockRange::new(from, u32::try_from(left).unwrap_or(u32::MAX)))
    }
}

impl Survey {
    pub(super) const fn from(position: u64) -> Self {
        Self { next: Some(position), asked: None, window: None }
    }

    /// Of everything before this block it is known; `None` when of all.
    pub(super) fn position(&self) -> Option<u64> {
        let window = self.window.as_ref().and_then(|window| Some(window.changed.first()?.range.start));
        window.into_iter().chain(self.next).min()
    }
}

impl VolumeCore {
    /// Asks for what is to be known next.
    pub(super) fn survey(&mut self, now: Duration) {
        let (blocks, question) = (self.blocks, self.new_id());
        let Some(revert) = &self.revert else { return };
        let idle = revert.survey.asked.is_none() && now >= revert.rests_until;
        let waits = revert.follows_another && !revert.under_way.is_empty();
        if !idle || waits || revert.found.len() >= FOUND_ENOUGH {
            return;
        }
        let (start, at, control, message) = match (&revert.survey.window, revert.survey.next) {
            (Some(window), _) => {
                let Some(range) = window.unknown() else { return };
                let control = Control::Shown { question, range };
                (range.start, Some(revert.to), control, Message::Allocation { range })
            }
            (None, Some(start)) if start < blocks => {
                let message = Message::Changed { since: revert.cut, start };
                (start, None, Control::Changed { question, start }, message)
            }
            (None, _) => {
                if let Some(revert) = &mut self.revert {
                    revert.survey.next = None;
                }
                return;
            }
        };
        let Some(member) = self.nearest(self.in_sync(), start) else { return };
        if let Some(revert) = &mut self.revert {
            (revert.survey.asked, revert.follows_another) = (Some((member, question)), false);
        }
        self.look(now, member, at);
        self.ask(now, member, control, message);
    }

    /// The revert, if this is the question that it waits for.
    fn surveyed(&mut self, asked: (MemberIndex, u64)) -> Option<&mut Revert> {
        let revert = self.revert.as_mut().filter(|revert| revert.survey.asked == Some(asked))?;
        revert.survey.asked = None;
        Some(revert)
    }

    /// A member says what has changed since the cut, from a block on.
    pub(in crate::volume) fn changes_answered(
        &mut self,
        now: Duration,
        asked: (MemberIndex, u64),
        start: u64,
        entries: &[TailEntry],
        next: Option<u64>,
    ) -> Result<(), MemberFault> {
        let blocks = self.blocks;
        let Some(revert) = self.surveyed(asked) else { return Ok(()) };
        let end = next.unwrap_or(blocks).min(blocks);
        let mut from = start;
        for entry in entries {
            if entry.range.start < from || entry.range.end() > end || entry.range.count == 0 {
                return Err(MemberFault::Protocol("what it says has changed is out of order"));
            }
            from = entry.range.end();
        }
        if next.is_some_and(|next| next <= start) {
            return Err(MemberFault::Protocol("it does not get on with what has changed"));
        }
        revert.survey.next = next.filter(|next| *next < blocks);
        if !entries.is_empty() {
            let run = |entry: &TailEntry| Run { range: entry.range, data: !entry.discard };
            let changed = entries.iter().map(run).collect();
            revert.survey.window = Some(Window { changed, shown: Vec::new() });
        }
        self.advance_revert(now);
        Ok(())
    }

    /// A member says what the snapshot shows.
    pub(in crate::volume) fn shown_answered(
        &mut self,
        now: Duration,
        asked: (MemberIndex, u64),
        asked_of: BlockRange,
        extents: &[Extent],
    ) -> Result<(), MemberFault> {
        let skips = self.has_planted(Planted::SkipRevertDiscards);
        let Some(revert) = self.surveyed(asked) else { return Ok(()) };
        let Some(window) = &mut revert.survey.window else { return Ok(()) };
        let mut from = asked_of.start;
        for extent in extents {
            let left = u32::try_from(asked_of.end().saturating_sub(from)).unwrap_or(u32::MAX);
            let range = BlockRange::new(from, extent.count.min(left));
            if range.count == 0 {
                break;
            }
            window.shown.push(Run { range, data: extent.allocated });
            from = range.end();
        }
        if from == asked_of.start {
            return Err(MemberFault::Protocol("an allocation query's answer covers nothing"));
        }
        if window.unknown().is_none() {
            let mut changes = difference(&window.changed, &window.shown);
            changes.retain(|change| !skips || matches!(change, Change::Restore(_)));
            revert.found.extend(changes);
            revert.survey.window = None;
        }
        self.advance_revert(now);
        Ok(())
    }

    /// A member cannot say: another is asked, or the same later.
    pub(in crate::volume) fn survey_refused(&mut self, now: Duration, asked: (MemberIndex, u64), why: &str) {
        let trouble = format!("member {} cannot tell: {why}", self.members[asked.0.0].replica);
        tracing::error!(volume = %self.options.volume, trouble, "a revert does not get on");
        if let Some(revert) = self.surveyed(asked) {
            (revert.trouble, revert.rests_until) = (Some(trouble), now + REST);
        }
    }

    /// A session with a member has ended: it answers no more.
    pub(in crate::volume) fn survey_forgets(&mut self, member: MemberIndex) {
        let asks = |revert: &&mut Revert| revert.survey.asked.is_some_and(|(of, _)| of == member);
        if let Some(revert) = self.revert.as_mut().filter(asks) {
            revert.survey.asked = None;
        }
    }
}
