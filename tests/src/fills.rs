//! One value everywhere on a volume, with holes between: enough to tell one state of it from another.

use crate::NbdClient;

const MIB: u32 = 1 << 20;
/// The parts that are written: the first half of each of so many MiB.
const PARTS: u32 = 8;

/// What is written at a time, in bytes; as much is left a hole behind it.
pub const PART_BYTES: usize = MIB as usize / 2;
/// All that is written.
pub const FILL_BYTES: usize = PARTS as usize * PART_BYTES;

/// Where the parts begin.
pub fn offsets() -> impl Iterator<Item = u64> {
    (0..u64::from(PARTS)).map(|part| part * u64::from(MIB))
}

/// Writes this value everywhere, and flushes.
///
/// # Panics
/// When that fails.
pub fn fill(client: &mut NbdClient, value: u8) {
    for offset in offsets() {
        client.write(offset, &[value; PART_BYTES]).expect("a volume in good order takes writes");
    }
    client.flush().expect("a volume in good order can be flushed");
}

/// Whether everything that was written has this value, and nothing else was written.
///
/// # Panics
/// When it has not, or cannot be read.
pub fn assert_filled(client: &mut NbdClient, value: u8) {
    for offset in offsets() {
        let found = client.read(offset, MIB).expect("a volume in good order can be read");
        let (written, hole) = found.split_at(PART_BYTES);
        assert!(written.iter().all(|byte| *byte == value), "at {offset} it does not hold {value}");
        assert!(hole.iter().all(|byte| *byte == 0), "behind {offset} it holds what was never written");
    }
}
