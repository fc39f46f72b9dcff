//! A volume's snapshots, and which versions of a block they keep.
//!
//! A snapshot is a *cut*: a stamp. It shows of every block the newest version whose stamp is not
//! above the cut. The live cuts part the stamps into *intervals*, each above one cut and up to the
//! next; of several versions of a block in one interval only the newest is ever seen.
//!
//! Invariants
//! - Cuts rise strictly; no two snapshots have the same id or the same cut.
//! - No stamp above a cut was written before the snapshot was taken (the engine stands still meanwhile),
//!   so what a snapshot shows changes only by copies of what other members hold.
//! - A cut that a clone reads from outlives its snapshot: it parts intervals as before, and nobody sees it.

use bytes::{Buf, BufMut, TryGetError};
use trivet_model::{SnapshotId, Stamp};

use crate::planted::{self, PlantedFault};

/// Most snapshots that a volume may have.
pub const SNAPSHOTS_MAX: usize = 4096;

/// A snapshot as a replica knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Its identity.
    pub id: SnapshotId,
    /// It shows what was written up to this stamp.
    pub cut: Stamp,
}

/// The stamps between two cuts that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Interval {
    /// Exclusive: a cut, or zero.
    pub(crate) after: Stamp,
    /// Inclusive: a cut, or above all stamps.
    pub(crate) until: Stamp,
}

/// A cut of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cut {
    id: SnapshotId,
    cut: Stamp,
    /// The snapshot is deleted; clones read from it.
    kept: bool,
}

/// The cuts of a volume, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshots(Vec<Cut>);

/// What a volume without snapshots has.
pub(crate) static NO_SNAPSHOTS: Snapshots = Snapshots(Vec::new());

const CUT_BYTES: usize = 16 + 8 + 1;

impl Snapshots {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The snapshots that there are; cuts that only clones need are none.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Snapshot> + '_ {
        self.0.iter().filter(|cut| !cut.kept).map(|cut| Snapshot { id: cut.id, cut: cut.cut })
    }

    pub(crate) fn find(&self, id: SnapshotId) -> Option<Snapshot> {
        self.iter().find(|snapshot| snapshot.id == id)
    }

    /// Every cut, those without a snapshot included.
    pub(crate) fn cuts(&self) -> impl Iterator<Item = Stamp> + '_ {
        self.0.iter().map(|cut| cut.cut)
    }

    /// The cuts that outlive their snapshots.
    pub(crate) fn kept(&self) -> impl Iterator<Item = Stamp> + '_ {
        self.0.iter().filter(|cut| cut.kept).map(|cut| cut.cut)
    }

    /// The snapshot with this cut, deleted or not.
    pub(crate) fn at(&self, cut: Stamp) -> Option<Snapshot> {
        let at = self.0.binary_search_by_key(&cut, |other| other.cut).ok()?;
        Some(Snapshot { id: self.0[at].id, cut })
    }

    pub(crate) fn insert(&mut self, snapshot: Snapshot) {
        let Snapshot { id, cut } = snapshot;
        match self.0.binary_search_by_key(&cut, |other| other.cut) {
            Ok(at) => self.0[at].kept &= self.0[at].id != id,
            Err(at) => self.0.insert(at, Cut { id, cut, kept: false }),
        }
    }

    /// Takes a snapshot away and keeps its cut.
    pub(crate) fn keep(&mut self, id: SnapshotId) {
        if let Some(cut) = self.0.iter_mut().find(|cut| cut.id == id) {
            cut.kept = true;
        }
    }

    /// Takes a cut away; answers the interval that it cut off from the one below.
    pub(crate) fn remove(&mut self, cut: Stamp) -> Option<Interval> {
        let at = self.0.binary_search_by_key(&cut, |other| other.cut).ok()?;
        self.0.remove(at);
        Some(Interval { after: cut, until: self.interval(cut.next()).until })
    }

    /// The interval that a stamp lies in.
    pub(crate) fn interval(&self, stamp: Stamp) -> Interval {
        let at = self.0.partition_point(|snapshot| snapshot.cut < stamp);
        Interval {
            after: at.checked_sub(1).map_or(Stamp::ZERO, |below| self.0[below].cut),
            until: self.0.get(at).map_or(Stamp::MAX, |above| above.cut),
        }
    }

    /// The interval that a layer of the map belongs to: layers are named by a cut that they lie above.
    pub(crate) fn interval_of_layer(&self, layer: Stamp) -> Interval {
        self.interval(layer.next())
    }

    /// The intervals from the one that begins `after` a cut, upwards.
    pub(crate) fn intervals_from(&self, after: Stamp) -> impl Iterator<Item = Interval> + '_ {
        let first = self.0.partition_point(|snapshot| snapshot.cut <= after);
        let starts = std::iter::once(after).chain(self.0[first..].iter().map(|snapshot| snapshot.cut));
        let ends = self.0[first..].iter().map(|snapshot| snapshot.cut).chain([Stamp::MAX]);
        starts.zip(ends).map(|(after, until)| Interval { after, until })
    }

    /// Whether a snapshot shows the older of two versions of a block.
    pub(crate) fn part(&self, older: Stamp, newer: Stamp) -> bool {
        if planted::is(PlantedFault::ForgetOlderVersions) {
            return false;
        }
        let at = self.0.partition_point(|snapshot| snapshot.cut < older);
        self.0.get(at).is_some_and(|snapshot| snapshot.cut < newer)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32_le(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        for Cut { id, cut, kept } in &self.0 {
            out.put_slice(id.as_bytes());
            out.put_u64_le(cut.as_u64());
            out.put_u8(u8::from(*kept));
        }
    }

    /// `None` when there are too many, or they do not rise.
    pub(crate) fn decode(input: &mut &[u8]) -> Result<Option<Self>, TryGetError> {
        let count = input.try_get_u32_le()? as usize;
        if count > SNAPSHOTS_MAX || input.len() < count * CUT_BYTES {
            return Ok(None);
        }
        let mut cuts: Vec<Cut> = Vec::with_capacity(count);
        for _ in 0..count {
            let mut id = [0; 16];
            input.try_copy_to_slice(&mut id)?;
            let cut = Stamp::from_u64(input.try_get_u64_le()?);
            cuts.push(Cut { id: SnapshotId::from_bytes(id), cut, kept: input.try_get_u8()? != 0 });
        }
        let rises = cuts.is_sorted_by(|a, b| a.cut < b.cut);
        let apart = rises && cuts.iter().all(|cut| cut.cut < Stamp::MAX);
        Ok(apart.then_some(Self(cuts)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_cuts(cuts: &std::collections::BTreeSet<u64>) -> Snapshots {
        let snapshot = |cut: &u64| Snapshot {
            id: SnapshotId::from_bytes(u128::from(*cut).to_le_bytes()),
            cut: Stamp::from_u64(*cut),
        };
        let mut snapshots = Snapshots::default();
        for cut in cuts.iter().rev() {
            snapshots.insert(snapshot(cut));
        }
        snapshots
    }

    proptest! {
        #[test]
        fn intervals_agree_with_looking_at_every_cut(
            cuts in prop::collection::btree_set(1u64..40, 0..8), a in 1u64..50, b in 1u64..50)
        {
            let snapshots = with_cuts(&cuts);
            let (older, newer) = (a.min(b), a.max(b));
            let shown = cuts.iter().any(|cut| (older..newer).contains(cut));
            prop_assert_eq!(snapshots.part(Stamp::from_u64(older), Stamp::from_u64(newer)), shown);
            let interval = snapshots.interval(Stamp::from_u64(a));
            prop_assert_eq!(interval.after.as_u64(), cuts.iter().copied().filter(|cut| *cut < a).max().unwrap_or(0));
            prop_assert_eq!(interval.until.as_u64(), cuts.iter().copied().find(|cut| *cut >= a).unwrap_or(u64::MAX));
            let all: Vec<Interval> = snapshots.intervals_from(Stamp::ZERO).collect();
            prop_assert_eq!(all.len(), cuts.len() + 1);
            prop_assert!(all.windows(2).all(|pair| pair[0].until == pair[1].after));
            let from: Vec<Interval> = snapshots.intervals_from(interval.after).collect();
            prop_assert_eq!(&from[..], &all[all.iter().position(|other| *other == interval).unwrap()..]);

            // A cut whose snapshot is deleted parts as before, and is listed no more.
            let mut keeping = snapshots.clone();
            if let Some(first) = snapshots.iter().next() {
                keeping.keep(first.id);
                prop_assert_eq!(keeping.interval(Stamp::from_u64(a)), interval);
                prop_assert_eq!(keeping.iter().count() + 1, snapshots.len());
                prop_assert_eq!((keeping.find(first.id), keeping.kept().next()), (None, Some(first.cut)));
            }
            let mut bytes = Vec::new();
            keeping.encode(&mut bytes);
            prop_assert_eq!(Snapshots::decode(&mut &bytes[..]), Ok(Some(keeping)));
            bytes.clear();
            snapshots.encode(&mut bytes);
            prop_assert_eq!(Snapshots::decode(&mut &bytes[..]), Ok(Some(snapshots.clone())));
            let short = Snapshots::decode(&mut &bytes[..bytes.len() - 1]);
            prop_assert!(!matches!(short, Ok(Some(_))));

            let mut fewer = snapshots.clone();
            for snapshot in snapshots.iter() {
                let cut_off = fewer.remove(snapshot.cut).unwrap();
                prop_assert_eq!(cut_off, Interval { after: snapshot.cut, until: snapshots.interval(snapshot.cut.next()).until });
            }
            prop_assert_eq!(fewer, Snapshots::default());
        }
    }

    #[test]
    fn cuts_that_do_not_rise_are_refused() {
        let mut bytes = Vec::new();
        with_cuts(&[3, 5].into()).encode(&mut bytes);
        bytes[4 + 16] = 5;
        assert_eq!(Snapshots::decode(&mut &bytes[..]), Ok(None));
        assert_eq!(Snapshots::decode(&mut &u32::MAX.to_le_bytes()[..]), Ok(None));
    }
}
