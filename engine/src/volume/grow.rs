//! Growing: first the volume's members, then its record, and the new size holds.

use super::control::Purpose;
use super::member::Control;
use super::{Action, MemberFault, MemberIndex, MemberSet, Tag, VolumeCore};
use crate::request::{IoError, IoReply};
use std::time::Duration;
use trivet_model::VOLUME_BLOCKS_MAX;
use trivet_wire::{ErrorCode, Message};

/// A volume being grown: first its replicas, then its record.
#[derive(Debug)]
pub(super) struct Growing {
    pub(super) tag: Tag,
    blocks: u64,
    awaiting: MemberSet,
}

impl VolumeCore {
    /// Grows the volume to `blocks`; answered by an [`Action::Complete`]. Growing to the present
    /// size is done at once, shrinking is invalid. Waits for members that are away.
    pub fn grow(&mut self, now: Duration, tag: Tag, blocks: u64) {
        self.now = now;
        let refused = self.check_changeable().and_then(|()| {
            if blocks < self.blocks {
                Err(IoError::Invalid("a volume cannot shrink"))
            } else if blocks > VOLUME_BLOCKS_MAX {
                Err(IoError::Invalid("a volume has at most 64 TiB"))
            } else if self.growing.is_some() {
                Err(IoError::Invalid("the volume is being grown already"))
            } else {
                Ok(())
            }
        });
        if let Err(error) = refused {
            return self.complete(tag, Err(error));
        }
        if blocks == self.blocks {
            return self.complete(tag, Ok(IoReply::Done));
        }
        let awaiting = self.required().union(self.receiving());
        self.growing = Some(Growing { tag, blocks, awaiting });
        for member in self.ready_members() {
            self.resend_grow(now, member);
        }
    }

    /// Those who have left need not grow now.
    pub(super) fn settle_grow(&mut self) {
        let taking_part = self.required().union(self.receiving());
        let Some(growing) = self.growing.as_mut().filter(|growing| !growing.awaiting.is_empty()) else {
            return;
        };
        growing.awaiting = growing.awaiting.intersection(taking_part);
        if growing.awaiting.is_empty() {
            self.run_errand(Purpose::Grow);
        }
    }

    pub(super) fn resend_grow(&mut self, now: Duration, member: MemberIndex) {
        let Some(growing) = self.growing.as_ref().filter(|growing| growing.awaiting.contains(member)) else {
            return;
        };
        let blocks = growing.blocks;
        self.ask_to_grow(now, member, blocks);
    }

    pub(super) fn ask_to_grow(&mut self, now: Duration, member: MemberIndex, blocks: u64) {
        let message = Message::ResizeVolume { volume: self.options.volume, blocks };
        self.ask(now, member, Control::Resize { blocks }, message);
    }

    pub(super) fn member_grown(&mut self, now: Duration, member: MemberIndex, blocks: u64) {
        // The volume may have grown again since it was asked.
        let link = &mut self.members[member.0];
        link.blocks = link.blocks.max(blocks);
        match &mut self.growing {
            Some(growing) if growing.blocks == blocks && growing.awaiting.contains(member) => {
                growing.awaiting.remove(member);
                if growing.awaiting.is_empty() {
                    self.run_errand(Purpose::Grow);
                }
            }
            // One that was away while the volume grew.
            _ => self.begin_attempts(now),
        }
    }

    /// A member refuses to grow: no space for the map, say. It keeps its size; so does the volume.
    pub(super) fn grow_refused(
        &mut self,
        member: MemberIndex,
        code: ErrorCode,
        detail: String,
    ) -> Result<(), MemberFault> {
        let asked = self.growing.as_ref().is_some_and(|growing| growing.awaiting.contains(member));
        if !asked || !matches!(code, ErrorCode::BadSize | ErrorCode::NoSpace) {
            return Err(MemberFault::Refused { code, detail });
        }
        if let Some(growing) = self.growing.take() {
            let error = if code == ErrorCode::NoSpace {
                IoError::NoSpace
            } else {
                IoError::Invalid("a member refuses the new size")
            };
            self.complete(growing.tag, Err(error));
        }
        Ok(())
    }

    /// Whether nothing is missing but the record.
    pub(super) fn awaits_growth_record(&self) -> bool {
        self.growing.as_ref().is_some_and(|growing| growing.awaiting.is_empty())
    }

    /// The size that is under way.
    pub(super) fn grows_to(&self) -> Option<u64> {
        self.growing.as_ref().map(|growing| growing.blocks)
    }

    /// The record has the new size.
    pub(super) fn grown(&mut self, now: Duration, blocks: u64) {
        self.blocks = blocks;
        self.actions.push(Action::StateChanged);
        if let Some(growing) = self.growing.take() {
            self.complete(growing.tag, Ok(IoReply::Done));
        }
        self.check_closing(now);
    }
}
