//! Who looks at a snapshot beside the volume: one more engine, that promises nothing. It comes, stops and
//! goes; what it is shown must be what the snapshot showed when it was taken.

use crate::Check;
use crate::checkers::oracle::read_sector;
use crate::random::Random;
use crate::trace::Happening;
use crate::world::World;
use bytes::Bytes;
use std::ops::Range;
use std::time::Duration;
use trivet_model::{SECTOR_SIZE, SnapshotId};

impl World {
    /// Whether an engine is the reader, which comes behind those that write.
    pub(crate) const fn is_reader(&self, engine: usize) -> bool {
        engine >= self.profile.engines
    }

    /// The reader begins to look at a snapshot; or it ends, or stops for a while.
    pub(crate) fn strike_reader(&mut self, random: &mut Random, hang: Duration) {
        let reader = self.profile.engines;
        let recorded: Vec<SnapshotId> = self.records.record.snapshots.iter().map(|known| known.id).collect();
        if self.engines[reader].engine.is_none() {
            if !recorded.is_empty() {
                let viewed = random.pick(&recorded);
                self.start_engine_at(reader, Some(viewed));
            }
        } else if random.one_in(3) {
            self.kill_engine(reader, true, "looks no more");
        } else if random.one_in(3) {
            self.pause_engine(reader, hang);
        }
    }

    /// The reader has been shown something.
    pub(crate) fn check_view(&mut self, viewed: Option<SnapshotId>, sectors: Range<usize>, data: &[Bytes]) {
        let bytes: Vec<u8> = data.concat();
        if bytes.len() != sectors.len() * SECTOR_SIZE {
            return self.fail(Check::Answers, format!("{} bytes for {sectors:?}", bytes.len()));
        }
        // Of a snapshot whose taker did not live to say so, or when no member did, it is not known what it
        // must show.
        let known = |viewed: &SnapshotId| self.snapshots.get(viewed).is_some_and(|taken| !taken.is_empty());
        let Some(viewed) = viewed.filter(known) else { return };
        for (sector, bytes) in sectors.zip(bytes.chunks_exact(SECTOR_SIZE)) {
            let was = self.snapshots[&viewed].get(&sector).copied().unwrap_or(0);
            match read_sector(bytes, sector) {
                Ok(value) if value == was => {}
                Ok(value) => {
                    let detail = format!(
                        "a reader of snapshot {viewed} is shown {value:#x} in sector {sector}, not {was:#x}"
                    );
                    return self.fail(Check::Snapshots, detail);
                }
                Err(why) => return self.fail(Check::Snapshots, format!("a reader is shown: {why}")),
            }
        }
        self.note(Happening::Note("a reader is shown what it must be"));
    }
}
