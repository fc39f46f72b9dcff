//! What an encrypted volume has of a chunk: every member in sync is asked.
//!
//! Elsewhere one member's word is enough, since all hold the same. Of an encrypted volume none is believed alone: one
//! that hides a block, or has lost a write, would have the source's version written over the volume's on all of
//! them. So a block is missing if every member in sync says so. If one has it, it is the volume's, and a read
//! settles what it holds (`witness.rs`). They are asked for stamps alone, which costs their disks nothing.
//!
//! Nothing is written to a chunk without all members in sync either, so nothing is lost by waiting for them.

use super::Step;
use crate::volume::member::Control;
use crate::volume::scrub::expand;
use crate::volume::{MemberFault, MemberIndex, MemberSet, VolumeCore};
use std::ops::Range;
use std::time::Duration;
use trivet_model::BlockRange;
use trivet_wire::Message;

/// Members are asked what they have of a chunk.
#[derive(Debug)]
pub(super) struct Hearing {
    awaiting: MemberSet,
    heard: MemberSet,
    /// Which of its blocks somebody has; none if nobody could tell.
    there: Option<Vec<bool>>,
}

impl Hearing {
    fn missing(&self, start: u64) -> Option<Vec<Range<u64>>> {
        let mut missing: Vec<Range<u64>> = Vec::new();
        for (block, there) in (start..).zip(self.there.as_ref()?) {
            match missing.last_mut() {
                _ if *there => {}
                Some(run) if run.end == block => run.end += 1,
                _ => missing.push(block..block + 1),
            }
        }
        Some(missing)
    }
}

impl VolumeCore {
    /// Asks all members in sync what they have of a chunk.
    pub(super) fn hear_of_chunk(&mut self, now: Duration, chunk: u64) {
        let everyone = self.in_sync();
        if everyone.is_empty() || !everyone.without(self.hearable()).is_empty() {
            return self.pause_chunk(now, chunk, "a member in sync is away".to_owned());
        }
        let Some(hydration) = &mut self.hydration else { return };
        let range = range_of(&hydration.blocks(chunk));
        let hearing = Hearing { awaiting: everyone, heard: MemberSet::EMPTY, there: None };
        hydration.under_way.insert(chunk, Step::Hearing(hearing));
        for member in everyone {
            self.look(now, member, None);
            self.ask(now, member, Control::Chunk { chunk }, Message::Verify { range, stamps_only: true });
        }
    }

    /// A member has answered what it has of a chunk; [`VolumeCore::advance_hydration`] takes it from there.
    pub(in super::super) fn chunk_heard(
        &mut self,
        member: MemberIndex,
        chunk: u64,
        message: Message,
    ) -> Result<(), MemberFault> {
        let Some(hydration) = &mut self.hydration else { return Ok(()) };
        let range = range_of(&hydration.blocks(chunk));
        let Some(Step::Hearing(hearing)) = hydration.under_way.get_mut(&chunk) else { return Ok(()) };
        if let Message::VerifyReply { versions, crcs, failed } = message {
            let found = expand(range, &versions, &crcs, &failed)?;
            let there = hearing.there.get_or_insert_with(|| vec![false; found.len()]);
            for (there, found) in there.iter_mut().zip(found) {
                *there |= found.crc.is_some();
            }
        }
        hearing.awaiting.remove(member);
        hearing.heard.insert(member);
        Ok(())
    }

    /// Goes on with chunks of which all that will answer have.
    pub(super) fn decide_heard(&mut self, now: Duration) {
        let Some(hydration) = &self.hydration else { return };
        let owes = |chunk: u64, member: MemberIndex| self.members[member.0].expects(Control::Chunk { chunk });
        let ended = hydration.under_way.iter().filter(|(chunk, step)| {
            matches!(step, Step::Hearing(hearing) if !hearing.awaiting.into_iter().any(|member| owes(**chunk, member)))
        });
        let ended: Vec<u64> = ended.map(|(&chunk, _)| chunk).collect();
        for chunk in ended {
            let in_sync = self.in_sync();
            let Some(hydration) = &self.hydration else { return };
            let Some(Step::Hearing(hearing)) = hydration.under_way.get(&chunk) else { continue };
            let all = in_sync.without(hearing.heard).is_empty();
            match hearing.missing(hydration.blocks(chunk).start).filter(|_| all) {
                Some(missing) => self.chunk_known(now, chunk, missing),
                None => {
                    let trouble = "not all members in sync say what they have".to_owned();
                    self.pause_chunk(now, chunk, trouble);
                }
            }
        }
    }
}

/// At most a chunk.
fn range_of(blocks: &Range<u64>) -> BlockRange {
    BlockRange::new(blocks.start, u32::try_from(blocks.end - blocks.start).unwrap_or(u32::MAX))
}
