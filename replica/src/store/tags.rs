//! The tags of encrypted volumes' blocks, by the pool block that each lies in: they belong to the stored
//! bytes, as these have one owner at a time. Nothing is kept here for other volumes.

use hashbrown::HashMap;
use trivet_model::BlockTag;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tags(HashMap<u64, BlockTag>);

impl Tags {
    pub(crate) fn insert(&mut self, physical: u64, tag: BlockTag) {
        self.0.insert(physical, tag);
    }

    pub(crate) fn get(&self, physical: u64) -> Option<BlockTag> {
        if self.0.is_empty() { None } else { self.0.get(&physical).copied() }
    }

    pub(crate) fn remove(&mut self, physical: u64) {
        if !self.0.is_empty() {
            self.0.remove(&physical);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Extend<(u64, BlockTag)> for Tags {
    fn extend<I: IntoIterator<Item = (u64, BlockTag)>>(&mut self, tags: I) {
        self.0.extend(tags);
    }
}
