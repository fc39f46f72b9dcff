//! What members say of a block, held against each other.
//!
//! The higher stamp stands, wherever it is: what is older was overwritten, and what is newer was written
//! to everyone. A hole has no stamp that counts, since members forget tombstones at different times.

use crate::volume::{MemberFault, MemberIndex, MemberSet};
use trivet_model::{BlockCrc, BlockRange, Stamp};
use trivet_wire::TailEntry;

/// A block as one member has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::volume) struct Found {
    /// Zero where the member knows nothing of the block.
    pub(in crate::volume) stamp: Stamp,
    /// The checksum that was stored with it; `None` for a hole.
    pub(in crate::volume) crc: Option<BlockCrc>,
    /// Its bytes cannot be read, or do not match the checksum.
    pub(super) failed: bool,
}

/// What is to be done about a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Everyone holds the same, and it can be read.
    Alike,
    /// Everyone has the same version, but on these members' media it is bad.
    Bad { members: MemberSet, source: MemberIndex },
    /// Members have different versions: the newest, which these hold well, is to be written to everyone.
    Differs { newest: MemberSet, discard: bool },
    /// Nobody can read the newest version.
    Lost,
}

/// A member's answer, block by block.
pub(in crate::volume) fn expand(
    range: BlockRange,
    versions: &[TailEntry],
    crcs: &[BlockCrc],
    failed: &[BlockRange],
) -> Result<Vec<Found>, MemberFault> {
    let mut found = vec![Found::default(); range.count as usize];
    let mut crcs = crcs.iter();
    for entry in versions {
        for (block, at) in entry.range.blocks().zip(0..) {
            let found = at_block(&mut found, range, block)?;
            let crc = if entry.discard { None } else { crcs.next().copied() };
            *found = Found { stamp: entry.stamp.plus(at), crc, failed: false };
        }
    }
    for block in failed.iter().flat_map(|range| range.blocks()) {
        let found = at_block(&mut found, range, block)?;
        if found.crc.is_none() {
            return Err(MemberFault::Protocol("it finds a hole bad"));
        }
        found.failed = true;
    }
    Ok(found)
}

fn at_block(found: &mut [Found], range: BlockRange, block: u64) -> Result<&mut Found, MemberFault> {
    let at = block.checked_sub(range.start).and_then(|at| usize::try_from(at).ok());
    let beyond = MemberFault::Protocol("it answers for blocks that it was not asked about");
    at.and_then(|at| found.get_mut(at)).ok_or(beyond)
}

/// Compares what all members have of one block.
pub(super) fn judge(found: impl Iterator<Item = (MemberIndex, Found)> + Clone) -> Verdict {
    let newest = found.clone().map(|(_, block)| block.stamp).max().unwrap_or_default();
    let set = |wanted: &dyn Fn(&Found) -> bool| {
        let mut members = MemberSet::EMPTY;
        for (member, _) in found.clone().filter(|(_, block)| wanted(block)) {
            members.insert(member);
        }
        members
    };
    let everyone = set(&|_| true);
    if set(&|block| block.crc.is_none()) == everyone {
        return Verdict::Alike;
    }
    // Of two contents under one stamp, neither of which is bad, the one that most members have.
    let good = || found.clone().filter(|(_, block)| block.stamp == newest && !block.failed);
    let mut best = (MemberSet::EMPTY, None);
    for (_, block) in good() {
        let alike = set(&|other| *other == block);
        if alike.into_iter().count() > best.0.into_iter().count() {
            best = (alike, block.crc);
        }
    }
    let (holders, crc) = best;
    let Some(source) = holders.into_iter().next() else { return Verdict::Lost };
    let same = set(&|block| block.stamp == newest && block.crc == crc);
    if same != everyone {
        return Verdict::Differs { newest: holders, discard: crc.is_none() };
    }
    let members = everyone.without(holders);
    if members.is_empty() { Verdict::Alike } else { Verdict::Bad { members, source } }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Found = data(5, 50);

    const fn data(stamp: u64, crc: u32) -> Found {
        Found { stamp: Stamp::from_u64(stamp), crc: Some(BlockCrc(crc)), failed: false }
    }

    const fn hole(stamp: u64) -> Found {
        Found { stamp: Stamp::from_u64(stamp), crc: None, failed: false }
    }

    const fn bad(found: Found) -> Found {
        Found { failed: true, ..found }
    }

    fn members(of: &[usize]) -> MemberSet {
        of.iter().fold(MemberSet::EMPTY, |set, &index| set.union(MemberSet::of(MemberIndex(index))))
    }

    fn verdict(found: &[Found]) -> Verdict {
        judge(found.iter().enumerate().map(|(index, &found)| (MemberIndex(index), found)))
    }

    fn differs(newest: &[usize], discard: bool) -> Verdict {
        Verdict::Differs { newest: members(newest), discard }
    }

    #[test]
    fn every_combination_has_its_verdict() {
        let is_bad =
            |of: &[usize], source| Verdict::Bad { members: members(of), source: MemberIndex(source) };
        let cases = [
            (vec![GOOD, GOOD, GOOD], Verdict::Alike),
            (vec![GOOD], Verdict::Alike),
            // Tombstones are forgotten at different times.
            (vec![hole(7), hole(0), hole(3)], Verdict::Alike),
            (vec![bad(GOOD), GOOD, GOOD], is_bad(&[0], 1)),
            (vec![GOOD, bad(GOOD), bad(GOOD)], is_bad(&[1, 2], 0)),
            (vec![bad(GOOD), bad(GOOD)], Verdict::Lost),
            (vec![bad(GOOD)], Verdict::Lost),
            (vec![GOOD, data(4, 40), GOOD], differs(&[0, 2], false)),
            (vec![GOOD, hole(0)], differs(&[0], false)),
            (vec![GOOD, hole(9)], differs(&[1], true)),
            (vec![hole(9), data(4, 40), hole(0)], differs(&[0], true)),
            // The same stamp with other contents: what most have.
            (vec![data(5, 1), data(5, 2), data(5, 2)], differs(&[1, 2], false)),
            (vec![data(5, 1), data(5, 2)], differs(&[0], false)),
            // An older version is never put in place of a newer one that nobody can read.
            (vec![bad(data(6, 60)), GOOD, GOOD], Verdict::Lost),
            (vec![bad(data(6, 60)), data(6, 60), GOOD], differs(&[1], false)),
        ];
        for (found, expected) in cases {
            assert_eq!(verdict(&found), expected, "{found:?}");
        }
    }

    #[test]
    fn an_answer_is_taken_apart_and_nonsense_refused() {
        let range = BlockRange::new(10, 4);
        let entry = |start, count, stamp, discard| TailEntry {
            range: BlockRange::new(start, count),
            stamp: Stamp::from_u64(stamp),
            discard,
        };
        let versions = [entry(10, 1, 9, true), entry(12, 2, 5, false)];
        let crcs = [BlockCrc(50), BlockCrc(60)];
        let found = expand(range, &versions, &crcs, &[BlockRange::new(13, 1)]).unwrap();
        assert_eq!(found, [hole(9), hole(0), GOOD, bad(data(6, 60))]);
        for (versions, failed) in [
            (vec![entry(9, 1, 1, false)], vec![]),
            (vec![entry(13, 2, 1, false)], vec![]),
            (vec![], vec![BlockRange::new(14, 1)]),
            (versions.to_vec(), vec![BlockRange::new(10, 1)]),
        ] {
            assert!(expand(range, &versions, &crcs, &failed).is_err(), "{versions:?} {failed:?}");
        }
    }
}
