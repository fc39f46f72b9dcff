//! The header that every frame begins with.
//!
//! ```text
//!  0  magic           u32   "TRVT"
//!  4  version         u16   whose layout the rest of the frame has
//!  6  kind            u16   the message
//!  8  flags           u32   see [`Flags`]; a kind refuses what it does not know
//! 12  generation      u32   24 bits are used
//! 16  request         u64
//! 24  epoch           u64
//! 32  fixed bytes     u32   length of the body's part after the header
//! 36  payload bytes   u32   length of the blocks after that
//! 40  fixed checksum  u32   CRC-32 of the fixed part
//! 44  checksum        u32   CRC-32 of bytes 0 to 43
//! ```
//!
//! All integers are little-endian. The layout of the header is the same in all versions, so that
//! two sides that have no version in common can still say so.

use crate::decode::DecodeError;
use crate::frame::PROTOCOL_VERSION;
use crate::kind::Kind;
use trivet_model::{BLOCK_SIZE, Epoch, Generation};

/// `TRVT`, read as a little-endian number.
const MAGIC: u32 = u32::from_le_bytes(*b"TRVT");

const U16: usize = size_of::<u16>();
const U32: usize = size_of::<u32>();
const U64: usize = size_of::<u64>();

const MAGIC_AT: usize = 0;
const VERSION_AT: usize = MAGIC_AT + U32;
const KIND_AT: usize = VERSION_AT + U16;
const FLAGS_AT: usize = KIND_AT + U16;
const GENERATION_AT: usize = FLAGS_AT + U32;
const REQUEST_AT: usize = GENERATION_AT + U32;
const EPOCH_AT: usize = REQUEST_AT + U64;
const FIXED_BYTES_AT: usize = EPOCH_AT + U64;
const PAYLOAD_BYTES_AT: usize = FIXED_BYTES_AT + U32;
const FIXED_CRC_AT: usize = PAYLOAD_BYTES_AT + U32;
const CRC_AT: usize = FIXED_CRC_AT + U32;
/// Bytes in a header.
pub const HEADER_BYTES: usize = CRC_AT + U32;

const _: () = assert!(HEADER_BYTES == 48);
const _: () = assert!(REQUEST_AT.is_multiple_of(U64) && EPOCH_AT.is_multiple_of(U64));

/// Bits that qualify a message; the same bit means the same in every message that has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flags(pub(crate) u32);

impl Flags {
    pub(crate) const NONE: Self = Self(0);
    /// `Write`, `Discard`: answer only when stable.
    pub(crate) const FORCE_UNIT_ACCESS: Self = Self(1);
    /// `Open`: for writing.
    pub(crate) const WRITABLE: Self = Self(1 << 1);
    /// `TailReply`: entries remain.
    pub(crate) const MORE: Self = Self(1 << 2);
    /// Blocks are encrypted and go with their tags; `CreateVolume`: all that the volume will ever have.
    pub(crate) const TAGGED: Self = Self(1 << 3);
    /// What the map says is enough.
    pub(crate) const STAMPS_ONLY: Self = Self(1 << 4);

    pub(crate) const fn when(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }

    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A header whose checksum and every field have been found good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) flags: Flags,
    pub(crate) generation: Generation,
    pub(crate) request: u64,
    pub(crate) epoch: Epoch,
    pub(crate) fixed_bytes: usize,
    pub(crate) payload_bytes: usize,
    pub(crate) fixed_crc: u32,
}

impl Header {
    /// The 48 bytes.
    ///
    /// # Panics
    /// When a length exceeds the kind's cap: such a frame must never be made.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        assert!(
            self.kind.fixed_bytes().contains(&self.fixed_bytes),
            "{:?} of {} bytes",
            self.kind,
            self.fixed_bytes
        );
        assert!(
            self.payload_bytes <= self.kind.payload_bytes_max(),
            "{:?} has too long a payload",
            self.kind
        );
        let mut bytes = [0; HEADER_BYTES];
        let mut put32 = |at: usize, value: u32| bytes[at..at + U32].copy_from_slice(&value.to_le_bytes());
        put32(MAGIC_AT, MAGIC);
        put32(FLAGS_AT, self.flags.0);
        put32(GENERATION_AT, self.generation.get());
        put32(FIXED_BYTES_AT, length32(self.fixed_bytes));
        put32(PAYLOAD_BYTES_AT, length32(self.payload_bytes));
        put32(FIXED_CRC_AT, self.fixed_crc);
        bytes[VERSION_AT..VERSION_AT + U16].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
        bytes[KIND_AT..KIND_AT + U16].copy_from_slice(&self.kind.number().to_le_bytes());
        bytes[REQUEST_AT..REQUEST_AT + U64].copy_from_slice(&self.request.to_le_bytes());
        bytes[EPOCH_AT..EPOCH_AT + U64].copy_from_slice(&self.epoch.0.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and judges a header. Nothing is allocated on behalf of one that this has not passed.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, DecodeError> {
        let magic = u32_at(bytes, MAGIC_AT);
        if magic != MAGIC {
            return Err(DecodeError::Magic { found: magic });
        }
        let (expected, found) = (u32_at(bytes, CRC_AT), crc32fast::hash(&bytes[..CRC_AT]));
        if expected != found {
            return Err(DecodeError::HeaderChecksum { expected, found });
        }
        let version = u16_at(bytes, VERSION_AT);
        if version != PROTOCOL_VERSION {
            return Err(DecodeError::Version { found: version });
        }
        let number = u16_at(bytes, KIND_AT);
        let kind = Kind::from_number(number).ok_or(DecodeError::Kind { found: number })?;
        let flags = Flags(u32_at(bytes, FLAGS_AT));
        if !kind.flags().contains(flags) {
            return Err(DecodeError::Flags { kind, found: flags.0 });
        }
        let generation = u32_at(bytes, GENERATION_AT);
        let generation =
            Generation::new(generation).ok_or(DecodeError::Field { kind, field: "generation" })?;
        let fixed_bytes = length(u32_at(bytes, FIXED_BYTES_AT));
        if !kind.fixed_bytes().contains(&fixed_bytes) {
            return Err(DecodeError::Length { kind, part: "fixed part", found: fixed_bytes });
        }
        let payload_bytes = length(u32_at(bytes, PAYLOAD_BYTES_AT));
        if payload_bytes > kind.payload_bytes_max() || !payload_bytes.is_multiple_of(BLOCK_SIZE) {
            return Err(DecodeError::Length { kind, part: "payload", found: payload_bytes });
        }
        Ok(Self {
            kind,
            flags,
            generation,
            request: u64_at(bytes, REQUEST_AT),
            epoch: Epoch(u64_at(bytes, EPOCH_AT)),
            fixed_bytes,
            payload_bytes,
            fixed_crc: u32_at(bytes, FIXED_CRC_AT),
        })
    }
}

fn u16_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// A length as received; one that the machine cannot even name is beyond every cap.
fn length(received: u32) -> usize {
    usize::try_from(received).unwrap_or(usize::MAX)
}

fn length32(length: usize) -> u32 {
    u32::try_from(length).expect("lengths are capped far below 4 GiB")
}
