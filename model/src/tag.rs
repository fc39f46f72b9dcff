//! What proves that a block of an encrypted volume is the one that its engine wrote.

/// Length of a tag.
pub const TAG_BYTES: usize = 16;

/// The authentication tag of an encrypted block: goes with its bytes from the engine to the medium and
/// back, as the checksum does. Only who has the volume's key can make or check it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct BlockTag(pub [u8; TAG_BYTES]);
