//! The tags of encrypted volumes' blocks, by the pool block that each lies in: they belong to the stored
//! bytes, as these have one owner at a time. Nothing is kept here for other volumes.
//!
//! What is written together lies together in the pool, so tags are kept in runs of neighbours: a place in the
//! table costs more than what is put there.

use hashbrown::HashMap;
use trivet_model::BlockTag;

/// Pool blocks in a run, which begins at a multiple of it.
const RUN_BLOCKS: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Run {
    /// A bit for each block that has a tag here. The others' are zeros.
    present: u8,
    tags: [BlockTag; RUN_BLOCKS],
}

const _: () = assert!(u8::BITS as usize == RUN_BLOCKS);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tags(HashMap<u64, Run>);

impl Tags {
    pub(crate) fn insert(&mut self, physical: u64, tag: BlockTag) {
        self.insert_run(physical, &[tag]);
    }

    /// Inserts the tags of consecutive pool blocks.
    pub(crate) fn insert_run(&mut self, mut physical: u64, mut tags: &[BlockTag]) {
        while !tags.is_empty() {
            let (run, at) = place_of(physical);
            let (here, rest) = tags.split_at(tags.len().min(RUN_BLOCKS - at));
            let run = self.0.entry(run).or_default();
            for (at, tag) in (at..).zip(here) {
                run.present |= 1 << at;
                run.tags[at] = *tag;
            }
            physical += here.len() as u64;
            tags = rest;
        }
    }

    pub(crate) fn get(&self, physical: u64) -> Option<BlockTag> {
        if self.0.is_empty() {
            return None;
        }
        let (run, at) = place_of(physical);
        let run = self.0.get(&run)?;
        (run.present >> at & 1 == 1).then(|| run.tags[at])
    }

    pub(crate) fn remove(&mut self, physical: u64) {
        if self.0.is_empty() {
            return;
        }
        let (place, at) = place_of(physical);
        let Some(run) = self.0.get_mut(&place) else { return };
        run.present &= !(1 << at);
        run.tags[at] = BlockTag::default();
        if run.present == 0 {
            self.0.remove(&place);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Extend<(u64, BlockTag)> for Tags {
    fn extend<I: IntoIterator<Item = (u64, BlockTag)>>(&mut self, tags: I) {
        tags.into_iter().for_each(|(physical, tag)| self.insert(physical, tag));
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a place in a run of eight")]
const fn place_of(physical: u64) -> (u64, usize) {
    let blocks = RUN_BLOCKS as u64;
    (physical / blocks, (physical % blocks) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Insert { first: u64, tags: Vec<u8> },
        Remove { first: u64, count: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..60, prop::collection::vec(any::<u8>(), 0..30))
                .prop_map(|(first, tags)| Step::Insert { first, tags }),
            (0u64..60, 0u64..30).prop_map(|(first, count)| Step::Remove { first, count }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn as_a_map_of_blocks(steps in prop::collection::vec(step(), 0..40)) {
            let (mut tags, mut oracle) = (Tags::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert { first, tags: new } => {
                        let new: Vec<BlockTag> = new.into_iter().map(|byte| BlockTag([byte; 16])).collect();
                        tags.insert_run(first, &new);
                        oracle.extend((first..).zip(new));
                    }
                    Step::Remove { first, count } => {
                        (first..first + count).for_each(|physical| tags.remove(physical));
                        oracle.retain(|physical, _| !(first..first + count).contains(physical));
                    }
                }
                for physical in 0..100 {
                    prop_assert_eq!(tags.get(physical), oracle.get(&physical).copied());
                }
            }
            let mut anew = Tags::default();
            anew.extend(oracle);
            prop_assert_eq!(tags, anew, "nothing is left of what was removed");
        }
    }
}
