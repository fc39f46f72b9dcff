//! The invariants of the record, step by step.

use trivet_model::{MemberState, VolumeRecord};

/// What a swap of the record breaks, if anything.
pub(crate) fn record_step(before: &VolumeRecord, after: &VolumeRecord) -> Option<&'static str> {
    let in_sync = |record: &VolumeRecord| {
        record.members.iter().filter(|member| member.state == MemberState::InSync).count()
    };
    if after.generation < before.generation {
        return Some("the generation goes back");
    }
    if after.epoch < before.epoch {
        return Some("the epoch goes back");
    }
    if after.blocks < before.blocks {
        return Some("the volume shrinks");
    }
    if in_sync(after) == 0 {
        return Some("nobody is in sync");
    }
    let mut changed = false;
    for member in &after.members {
        let old = before.members.iter().find(|old| old.replica == member.replica).map(|old| old.state);
        changed |= old != Some(member.state);
        if member.state == MemberState::InSync
            && !matches!(old, Some(MemberState::InSync | MemberState::Syncing { .. }))
        {
            return Some("a member becomes in sync without having been syncing");
        }
    }
    let joins = after.members.iter().any(|member| {
        let old = before.members.iter().find(|old| old.replica == member.replica);
        member.state == MemberState::InSync && old.is_some_and(|old| old.state != member.state)
    });
    if joins && after.generation != before.generation {
        return Some("a member becomes in sync while the owner changes");
    }
    let shrinks = before.members.iter().any(|old| {
        old.state == MemberState::InSync
            && !after
                .members
                .iter()
                .any(|member| member.replica == old.replica && member.state == MemberState::InSync)
    });
    if changed && (joins || shrinks) && after.epoch == before.epoch {
        return Some("who is in sync changes within an epoch");
    }
    None
}
