//! Going over to other data keys: somebody, as the manager does, has the record name the next key and tells it to
//! the volume's engine, again and again until it has gone over; and destroys keys that nothing needs any more. The
//! checkers know all keys that the volume ever had, and which stamps belong to which.

use crate::Check;
use crate::encryption::data_key;
use crate::trace::Happening;
use crate::workload::Kind;
use crate::world::{VOLUME, World};
use trivet_crypto::DataKey;
use trivet_engine::volume::VolumeState;
use trivet_model::{OLDER_KEYS_MAX, Stamp, VolumeRecord};

impl World {
    /// The volume is to have another key.
    pub(crate) fn strike_rekey(&mut self, engine: usize) {
        let record = &mut self.records.record;
        let busy = record.reverting.is_some() || record.is_resealing() || record.next_key.is_some();
        let may = self.profile.encrypted && !busy && record.older_keys.len() < OLDER_KEYS_MAX;
        if may {
            record.next_key = Some(data_key(self.untils.len() + 1).id());
            self.records.revision.0 += 1;
            self.note(Happening::Note("another data key is wanted"));
        }
        self.tell_key(engine);
    }

    /// Tells an engine the key that it has not gone over to.
    fn tell_key(&mut self, engine: usize) {
        let Some(next) = self.records.record.next_key else { return };
        let key = data_key(self.untils.len() + 1);
        let host = &self.engines[engine];
        let waits = host.held.is_some() || host.state() != Some(VolumeState::Open) || self.is_reader(engine);
        if key.id() == next
            && !waits
            && let Some(tag) = self.note_request(engine, Kind::Rekey)
        {
            self.with_core(engine, |core, now| core.rekey(now, tag, key));
        }
    }

    /// Goes on with what was begun, and destroys what is not needed any more.
    pub(crate) fn look_after_keys(&mut self) {
        if !self.is_rekeyed() && self.requests_in_flight(self.desired) < self.profile.depth {
            self.tell_key(self.desired);
        }
        let unneeded = self.records.record.unneeded_keys();
        if unneeded > 0 {
            self.records.record.older_keys.drain(..unneeded);
            self.records.revision.0 += 1;
            self.note(Happening::Note("a data key is destroyed"));
        }
    }

    /// Whether all that the volume shows is sealed under the key that it shall have.
    pub(crate) fn is_rekeyed(&self) -> bool {
        let record = &self.records.record;
        record.next_key.is_none() && !record.is_resealing()
    }

    /// The key that opens the volume.
    pub(crate) fn present_key(&self) -> Option<DataKey> {
        let known = (0..=self.untils.len()).rev().map(data_key);
        self.records.record.key.and_then(|key| known.into_iter().find(|known| known.id() == key))
    }

    /// Which of its keys a version is sealed under.
    pub(crate) fn key_number(&self, stamp: Stamp) -> usize {
        self.untils.iter().filter(|until| **until < stamp).count()
    }

    /// The record has changed.
    pub(crate) fn keys_changed(&mut self, before: &VolumeRecord) {
        let after = &self.records.record;
        if after.key != before.key {
            let until = after.older_keys.last().map_or(Stamp::ZERO, |older| older.until);
            self.untils.push(until);
            self.note(Happening::Note("the volume has another data key"));
        } else if before.is_resealing() && !after.is_resealing() {
            self.note(Happening::Note("all is sealed anew"));
            self.check_resealed();
        }
    }

    /// All that members in sync show is sealed under the present key.
    fn check_resealed(&mut self) {
        if self.lost_disk_at.is_some() {
            return;
        }
        for block in 0..self.profile.blocks {
            if let Some(detail) = self.sealed_below(block, Stamp::MAX, self.untils.len()) {
                return self.fail(Check::Keys, detail);
            }
        }
    }

    /// What snapshots show can be opened with the keys that are left.
    pub(crate) fn check_keys(&mut self) {
        let destroyed = self.untils.len() - self.records.record.older_keys.len();
        let snapshots = self.records.record.snapshots.iter().map(|snapshot| snapshot.cut);
        let cuts: Vec<Stamp> = snapshots.chain([Stamp::MAX]).collect();
        for cut in cuts {
            for block in 0..self.profile.blocks {
                if let Some(detail) = self.sealed_below(block, cut, destroyed) {
                    return self.fail(Check::Keys, detail);
                }
            }
        }
    }

    /// A block, as a cut shows it, that a member in sync has sealed under an older key than this.
    fn sealed_below(&self, block: u64, cut: Stamp, key: usize) -> Option<String> {
        self.records.in_sync().into_iter().find_map(|host| {
            let of = &self.hosts[host];
            let version = of.process.as_ref()?.store.version(&*of.meta, VOLUME, block, cut).ok()??;
            let found = self.key_number(version.stamp);
            (version.offset.is_some() && found < key).then(|| {
                let stamp = version.stamp;
                format!("host {host}: block {block} (stamp {stamp}, cut {cut}) is sealed under key {found}, not {key}")
            })
        })
    }
}
