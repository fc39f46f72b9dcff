//! Volumes that are write-through or limited from the beginning, or become so while they are used; and those
//! whose reads are verified.
//!
//! A volume that was said to be write-through stays so: from then on what is acknowledged survives any
//! loss of power, whichever engine acknowledges it.

use crate::Check;
use crate::random::Random;
use crate::swarm::{Fault, Profile};
use crate::world::World;
use trivet_engine::volume::VolumeState;
use trivet_model::{Durability, RateLimit, VolumeSettings};

/// What a world's volume has from the beginning.
pub(crate) fn draw(seed: u64, profile: &Profile) -> VolumeSettings {
    let verified_reads = profile.encrypted
        && (profile.has(Fault::OldVersions)
            || profile.has(Fault::Settings) && Random::stream(seed, 24).one_in(3));
    if !profile.has(Fault::Settings) {
        return VolumeSettings { verified_reads, ..VolumeSettings::default() };
    }
    let random = &mut Random::stream(seed, 19);
    let durability = if random.one_in(2) { Durability::WriteThrough } else { Durability::WriteBack };
    VolumeSettings { durability, iops_limit: draw_limit(random), verified_reads, ..VolumeSettings::default() }
}

fn draw_limit(random: &mut Random) -> Option<RateLimit> {
    let (per_second, burst) = (random.pick(&[30, 100, 400]), random.pick(&[1, 4, 20]));
    random.one_in(2).then_some(RateLimit { per_second, burst })
}

impl World {
    /// Makes the volume write-through, and limits it otherwise.
    pub(crate) fn ask_to_set(&mut self, engine: usize, random: &mut Random) {
        let settings = VolumeSettings {
            durability: Durability::WriteThrough,
            iops_limit: draw_limit(random),
            ..self.records.record.settings.clone()
        };
        self.limits_change = true;
        self.request_settings(engine, settings);
    }

    /// An engine has carried one I/O more out: not more than its limit allows.
    pub(crate) fn check_limit(&mut self, index: usize) {
        let now = self.engine_clock(index);
        let Some(engine) = &mut self.engines[index].engine else { return };
        engine.passed += 1;
        let Some(limit) = self.records.record.settings.iops_limit.filter(|_| !self.limits_change) else {
            return;
        };
        let due = (now - engine.began).as_nanos() * u128::from(limit.per_second) / 1_000_000_000;
        // What was taken is finished when a volume is closed.
        if engine.core.state() == VolumeState::Open
            && u128::from(engine.passed) > due + u128::from(limit.burst)
        {
            let detail =
                format!("{} I/Os, where {due} and {} at once are allowed", engine.passed, limit.burst);
            self.fail(Check::Limit, detail);
        }
    }
}
