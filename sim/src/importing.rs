//! Worlds whose volume is imported while it is used, from a source that is slow, fails at times and goes away
//! for a while.

use crate::checkers::oracle::{SECTORS, WriteId, value_of};
use crate::cloning::contents;
use crate::random::Random;
use crate::swarm::Profile;
use crate::world::{Event, Mending, World};
use bytes::Bytes;
use std::time::Duration;
use trivet_engine::volume::SourceError;
use trivet_model::{BLOCK_SIZE_U64, InstantImport, VolumeRecord};

/// How long the source takes, unless it takes long.
const QUICK: (Duration, Duration) = (Duration::from_micros(300), Duration::from_millis(30));
/// While faults strike, one in so many answers is an error.
const FAILS_ONE_IN: u64 = 6;

/// Something asked of the source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetch {
    pub(crate) chunk: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

/// Whether the source has data in a block that is used.
pub(crate) const fn begins_with_data(block: u64) -> bool {
    block % 3 != 2
}

/// The volume's record, made as the manager makes that of one to be imported.
pub(crate) fn record(plain: VolumeRecord) -> VolumeRecord {
    let source = "nbd://source/disk".to_owned();
    let bytes = plain.blocks * BLOCK_SIZE_U64;
    let import = Some(InstantImport { source, bytes, fingerprint: 0, hydrated: 0 });
    VolumeRecord { import, ..plain }
}

/// What the source holds.
fn data(profile: &Profile, fetch: Fetch) -> Bytes {
    let blocks = fetch.offset / BLOCK_SIZE_U64..(fetch.offset + u64::from(fetch.length)) / BLOCK_SIZE_U64;
    let of_block = |block: u64| {
        let mut bytes = contents(block, true);
        if !profile.begins_with_data(block) {
            bytes.fill(0);
        }
        bytes
    };
    blocks.flat_map(of_block).collect::<Vec<u8>>().into()
}

impl World {
    /// An engine asks the source for something.
    pub(crate) fn fetch_from_source(&mut self, engine: usize, fetch: Fetch) {
        let incarnation = self.engines[engine].incarnation;
        let long = self.is_striking() && self.random.one_in(self.profile.slow_fetch_one_in);
        let most = if long { self.profile.scale / 4 } else { QUICK.1 };
        let after = self.random.log_between(QUICK.0, most.max(QUICK.1));
        self.schedule(after, Event::SourceAnswers { engine, incarnation, fetch });
    }

    pub(crate) fn source_answers(&mut self, engine: usize, incarnation: u64, fetch: Fetch) {
        if self.engines[engine].incarnation != incarnation {
            return;
        }
        let fails = self.source_away > 0 || (self.is_striking() && self.random.one_in(FAILS_ONE_IN));
        let result = if fails {
            Err(SourceError::Away("it does not answer".to_owned()))
        } else {
            Ok(data(&self.profile, fetch))
        };
        self.with_core(engine, |core, now| core.source_fetched(now, fetch.chunk, result));
    }

    /// The source goes away, and comes back after a while.
    pub(crate) fn lose_source(&mut self, random: &mut Random, hang: Duration) {
        self.source_away += 1;
        let lasts = if random.one_in(2) { hang } else { QUICK.1 };
        self.mend_after(lasts, Mending::Source);
    }

    /// What the volume shows where its members hold nothing: zeros, or what is still the source's.
    pub(crate) fn beginning_of(&self, sector: usize) -> u64 {
        let block = (sector / SECTORS) as u64;
        let import = self.records.record.import.as_ref();
        let of_source = import.is_some_and(|import| block >= import.hydrated);
        if of_source && self.profile.begins_with_data(block) { value_of(WriteId::FIRST, sector) } else { 0 }
    }
}
