//! The checkpointed map's hot part, in bounded memory.
//!
//! The unit is a leaf: the entries of [`LEAF_BLOCKS`] consecutive blocks, loaded together by one
//! seek. A leaf holds only the entries there are, found by their rank in a mask. Eviction is by
//! second chance (CLOCK; Corbató, 1968).

use hashbrown::HashMap;
use trivet_model::{BlockTag, Stamp};

use super::entry::{BlockKey, Entry};
use super::record::Slot;
use super::tags::Tags;

/// Blocks that a leaf covers (1 MiB of a volume).
pub(crate) const LEAF_BLOCKS: u64 = 256;
const WORDS: usize = 4;

/// Names a leaf: blocks `index * LEAF_BLOCKS ..` of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct LeafKey {
    pub(crate) slot: Slot,
    pub(crate) index: u64,
    /// As this cut shows them; [`Stamp::MAX`] for the volume as it is now.
    pub(crate) cut: Stamp,
}

impl LeafKey {
    pub(crate) fn of(key: BlockKey) -> Self {
        Self::at(key, Stamp::MAX)
    }

    pub(crate) fn at(key: BlockKey, cut: Stamp) -> Self {
        Self { slot: key.slot, index: key.block / LEAF_BLOCKS, cut }
    }
}

/// The entries of a leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaf {
    mask: [u64; WORDS],
    entries: Vec<Entry>,
    /// One for each entry of an encrypted volume (zeros for tombstones), none for others.
    tags: Vec<BlockTag>,
}

impl Leaf {
    /// Adds the entry of a block; blocks come in rising order.
    pub(crate) fn push(&mut self, block: u64, entry: Entry, tag: Option<BlockTag>) {
        let at = block % LEAF_BLOCKS;
        self.mask[(at / 64) as usize] |= 1 << (at % 64);
        self.insert_tag(self.entries.len(), tag);
        self.entries.push(entry);
        debug_assert_eq!(self.rank(at) + 1, self.entries.len());
    }

    pub(crate) fn get(&self, block: u64) -> Option<Entry> {
        let at = block % LEAF_BLOCKS;
        self.has(at).then(|| self.entries[self.rank(at)])
    }

    /// The tag of a block of an encrypted volume that has data.
    pub(crate) fn tag(&self, block: u64) -> Option<BlockTag> {
        let at = block % LEAF_BLOCKS;
        if self.tags.is_empty() || !self.has(at) { None } else { Some(self.tags[self.rank(at)]) }
    }

    fn set(&mut self, block: u64, entry: Entry, tag: Option<BlockTag>) {
        let at = block % LEAF_BLOCKS;
        let rank = self.rank(at);
        if self.has(at) {
            self.entries[rank] = entry;
            match self.tags.get_mut(rank) {
                Some(there) => *there = tag.unwrap_or_default(),
                None => self.insert_tag_among(rank, tag, self.entries.len() - 1),
            }
        } else {
            self.mask[(at / 64) as usize] |= 1 << (at % 64);
            self.insert_tag(rank, tag);
            self.entries.insert(rank, entry);
        }
    }

    fn insert_tag(&mut self, rank: usize, tag: Option<BlockTag>) {
        self.insert_tag_among(rank, tag, self.entries.len());
    }

    /// Puts a tag at its place among those of `others` entries.
    fn insert_tag_among(&mut self, rank: usize, tag: Option<BlockTag>, others: usize) {
        if self.tags.is_empty() && tag.is_none() {
            return;
        }
        self.tags.resize(others, BlockTag::default());
        self.tags.insert(rank, tag.unwrap_or_default());
    }

    fn has(&self, at: u64) -> bool {
        self.mask[(at / 64) as usize] >> (at % 64) & 1 == 1
    }

    fn rank(&self, at: u64) -> usize {
        let (word, bit) = ((at / 64) as usize, at % 64);
        let before: u32 = self.mask[..word].iter().map(|w| w.count_ones()).sum();
        (before + (self.mask[word] & ((1 << bit) - 1)).count_ones()) as usize
    }

    fn bytes(&self) -> usize {
        let tags = self.tags.capacity() * size_of::<BlockTag>();
        self.entries.capacity() * size_of::<Entry>() + tags + LEAF_OVERHEAD_BYTES
    }
}

/// A node, its place in the index, and what the allocator adds.
const LEAF_OVERHEAD_BYTES: usize = size_of::<Node>() + 2 * size_of::<(LeafKey, u32)>() + 32;

#[derive(Debug)]
struct Node {
    key: LeafKey,
    leaf: Leaf,
    referenced: bool,
}

#[derive(Debug)]
pub(crate) struct MapCache {
    budget_bytes: usize,
    used_bytes: usize,
    index: HashMap<LeafKey, u32>,
    nodes: Vec<Node>,
    hand: usize,
}

impl MapCache {
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self { budget_bytes, used_bytes: 0, index: HashMap::new(), nodes: Vec::new(), hand: 0 }
    }

    pub(crate) fn get(&mut self, key: LeafKey) -> Option<&Leaf> {
        let node = &mut self.nodes[*self.index.get(&key)? as usize];
        node.referenced = true;
        Some(&node.leaf)
    }

    pub(crate) fn insert(&mut self, key: LeafKey, mut leaf: Leaf) {
        leaf.entries.shrink_to_fit();
        leaf.tags.shrink_to_fit();
        self.remove(key);
        let bytes = leaf.bytes();
        while self.used_bytes + bytes > self.budget_bytes && !self.nodes.is_empty() {
            self.evict_one();
        }
        self.used_bytes += bytes;
        self.index.insert(key, u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        self.nodes.push(Node { key, leaf, referenced: false });
    }

    /// Brings the leaves that are present up to date with changes, which come in order.
    pub(crate) fn update(&mut self, changes: &[(BlockKey, Entry)], tags: &Tags) {
        for of_leaf in changes.chunk_by(|(a, _), (b, _)| LeafKey::of(*a) == LeafKey::of(*b)) {
            let Some(&at) = self.index.get(&LeafKey::of(of_leaf[0].0)) else { continue };
            let leaf = &mut self.nodes[at as usize].leaf;
            let before = leaf.bytes();
            for (key, entry) in of_leaf {
                leaf.set(key.block, *entry, tags.get(entry.physical));
            }
            self.used_bytes = self.used_bytes + leaf.bytes() - before;
        }
    }

    pub(crate) fn remove(&mut self, key: LeafKey) {
        if let Some(at) = self.index.get(&key) {
            self.remove_at(*at as usize);
        }
    }

    /// Drops the leaves for which `drop` says so.
    pub(crate) fn remove_where(&mut self, mut drop: impl FnMut(LeafKey) -> bool) {
        let mut at = 0;
        while at < self.nodes.len() {
            if drop(self.nodes[at].key) {
                self.remove_at(at);
            } else {
                at += 1;
            }
        }
    }

    fn evict_one(&mut self) {
        loop {
            if self.hand >= self.nodes.len() {
                self.hand = 0;
            }
            let node = &mut self.nodes[self.hand];
            if !std::mem::take(&mut node.referenced) {
                self.remove_at(self.hand);
                return;
            }
            self.hand += 1;
        }
    }

    fn remove_at(&mut self, at: usize) {
        let node = self.nodes.swap_remove(at);
        self.used_bytes -= node.leaf.bytes();
        self.index.remove(&node.key);
        if let Some(moved) = self.nodes.get(at) {
            self.index.insert(moved.key, u32::try_from(at).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64) -> Entry {
        Entry { stamp: Stamp::from_u64(n), physical: n + 1, crc: trivet_model::BlockCrc(0) }
    }

    #[test]
    fn a_leaf_finds_entries_by_rank() {
        let mut leaf = Leaf::default();
        for block in [3, 63, 64, 130, 255] {
            leaf.push(block, entry(block), None);
        }
        leaf.set(100, entry(100), None);
        leaf.set(64, entry(7), None);
        assert!(leaf.tags.is_empty(), "a volume that is not encrypted pays nothing");
        for block in 0..256 {
            let expected = match block {
                3 | 63 | 130 | 255 | 100 => Some(entry(block)),
                64 => Some(entry(7)),
                _ => None,
            };
            assert_eq!(leaf.get(block), expected, "block {block}");
        }
    }

    #[test]
    fn a_leaf_finds_tags_as_it_finds_entries() {
        let tag = |byte| Some(BlockTag([byte; 16]));
        let mut leaf = Leaf::default();
        leaf.push(3, Entry::tombstone(Stamp::from_u64(1)), None);
        leaf.push(130, entry(130), tag(130));
        leaf.set(200, Entry::tombstone(Stamp::from_u64(2)), None);
        leaf.set(100, entry(100), tag(100));
        leaf.set(130, entry(7), tag(7));
        leaf.set(3, entry(3), tag(3));
        let found: Vec<_> = [3, 100, 130, 150, 200].map(|block| leaf.tag(block)).into();
        assert_eq!(found, [tag(3), tag(100), tag(7), None, tag(0)]);
        assert_eq!(leaf.tags.len(), leaf.entries.len());

        let mut first = Leaf::default();
        first.push(9, Entry::tombstone(Stamp::from_u64(1)), None);
        first.set(9, entry(9), tag(9));
        assert_eq!((first.tag(9), first.tags.len()), (tag(9), 1));
    }

    #[test]
    fn memory_stays_within_the_budget_and_hot_leaves_stay() {
        let mut cache = MapCache::new(64 * 1024);
        let hot = LeafKey { slot: Slot(0), index: 0, cut: Stamp::MAX };
        let mut leaf = Leaf::default();
        leaf.push(0, entry(0), None);
        cache.insert(hot, leaf.clone());
        for index in 1..5000 {
            assert!(cache.get(hot).is_some());
            cache.insert(LeafKey { slot: Slot(0), index, cut: Stamp::MAX }, leaf.clone());
            assert!(cache.used_bytes <= 64 * 1024);
        }
        assert!(cache.nodes.len() > 100);
        cache.remove_where(|key| key.index % 2 == 0);
        assert!(cache.nodes.iter().all(|node| node.key.index % 2 == 1));
        assert_eq!(cache.used_bytes, cache.nodes.iter().map(|node| node.leaf.bytes()).sum::<usize>());
        assert_eq!(cache.index.len(), cache.nodes.len());
    }
}
