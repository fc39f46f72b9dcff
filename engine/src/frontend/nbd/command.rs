//! The transmission phase's requests: what is in a header, and whether it is allowed.

use super::context::Context;
use super::protocol::{Errno, REQUEST_HEADER_BYTES, REQUEST_MAGIC, command, command_flag};
use super::{BLOCK_BYTES, ExportInfo, PAYLOAD_BYTES_MAX, SECTOR_BYTES};
use bytes::Buf;

/// A request's header as it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestHeader {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl RequestHeader {
    /// `None` when the magic is wrong: what follows cannot be understood.
    pub(super) fn decode(bytes: &[u8; REQUEST_HEADER_BYTES]) -> Option<Self> {
        let mut rest = bytes.as_slice();
        if rest.get_u32() != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: rest.get_u16(),
            command: rest.get_u16(),
            cookie: rest.get_u64(),
            offset: rest.get_u64(),
            length: rest.get_u32(),
        })
    }

    /// Bytes that follow the header.
    pub(super) fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE { self.length } else { 0 }
    }

    /// Bytes that the request holds while it is in flight, in one direction or the other.
    pub(super) fn bytes_in_flight(&self) -> usize {
        let moves_data = matches!(self.command, command::READ | command::WRITE);
        if moves_data && self.length <= PAYLOAD_BYTES_MAX { self.length as usize } else { 0 }
    }
}

/// An allowed request, with what its reply needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command {
    Read {
        /// Answer in one piece: a simple reply, or a structured one that must not be fragmented.
        whole: bool,
    },
    Write {
        force_unit_access: bool,
    },
    Flush,
    Trim {
        /// A flush must follow before it is answered.
        flush_after: bool,
    },
    WriteZeroes {
        force_unit_access: bool,
        may_unmap: bool,
    },
    BlockStatus {
        one_extent: bool,
    },
}

/// Why a request is refused: the error number, and the reason for people.
pub(super) type Refusal = (Errno, &'static str);

/// What was agreed in the handshake.
#[derive(Clone, Debug, Default)]
pub(super) struct Agreed {
    pub(super) structured_replies: bool,
    /// What the client has selected to be told of ranges.
    pub(super) contexts: Vec<Context>,
}

/// Checks a request against the protocol, the handshake and the export.
pub(super) fn check(
    header: &RequestHeader,
    agreed: &Agreed,
    export: &ExportInfo,
) -> Result<Command, Refusal> {
    let command = known_command(header, agreed)?;
    if header.flags & !allowed_flags(command, agreed) != 0 {
        return Err((Errno::Invalid, "a flag that this command does not have"));
    }
    let writes =
        matches!(command, Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. });
    if writes && export.read_only {
        return Err((Errno::Perm, "the export is read-only"));
    }
    if command == Command::Flush {
        return match (header.offset, header.length) {
            (0, 0) => Ok(command),
            _ => Err((Errno::Invalid, "a flush has no offset and no length")),
        };
    }
    check_range(header, command, agreed, export)?;
    Ok(command)
}

fn known_command(header: &RequestHeader, agreed: &Agreed) -> Result<Command, Refusal> {
    let has = |flag| header.flags & flag != 0;
    Ok(match header.command {
        command::READ => Command::Read { whole: !agreed.structured_replies || has(command_flag::DF) },
        command::WRITE => Command::Write { force_unit_access: has(command_flag::FUA) },
        command::FLUSH => Command::Flush,
        command::TRIM => Command::Trim { flush_after: has(command_flag::FUA) },
        command::WRITE_ZEROES => Command::WriteZeroes {
            force_unit_access: has(command_flag::FUA),
            may_unmap: !has(command_flag::NO_HOLE),
        },
        command::BLOCK_STATUS if !agreed.contexts.is_empty() => {
            Command::BlockStatus { one_extent: has(command_flag::REQ_ONE) }
        }
        command::BLOCK_STATUS => return Err((Errno::Invalid, "no metadata context was selected")),
        command::CACHE => return Err((Errno::Invalid, "there is no cache to read into")),
        _ => return Err((Errno::Invalid, "unknown command")),
    })
}

/// FUA is allowed everywhere: the protocol demands it, as clients are known to set it anywhere.
fn allowed_flags(command: Command, agreed: &Agreed) -> u16 {
    command_flag::FUA
        | match command {
            Command::Read { .. } if agreed.structured_replies => command_flag::DF,
            Command::WriteZeroes { .. } => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            Command::BlockStatus { .. } => command_flag::REQ_ONE,
            _ => 0,
        }
}

fn check_range(
    header: &RequestHeader,
    command: Command,
    agreed: &Agreed,
    export: &ExportInfo,
) -> Result<(), Refusal> {
    let length = u64::from(header.length);
    if length == 0 {
        return Err((Errno::Invalid, "the length is zero"));
    }
    if !header.offset.is_multiple_of(SECTOR_BYTES) || !length.is_multiple_of(SECTOR_BYTES) {
        return Err((Errno::Invalid, "offset and length must be multiples of 512 bytes"));
    }
    if header.length > PAYLOAD_BYTES_MAX {
        match command {
            Command::Read { .. } if agreed.structured_replies => {
                return Err((Errno::Overflow, "longer than 32 MiB"));
            }
            Command::Read { .. } | Command::Write { .. } => {
                return Err((Errno::Invalid, "longer than 32 MiB"));
            }
            _ => {}
        }
    }
    let inside = header.offset.checked_add(length).is_some_and(|end| end <= export.size_bytes);
    if !inside {
        let grows = matches!(command, Command::Write { .. } | Command::WriteZeroes { .. });
        let errno = if grows { Errno::NoSpace } else { Errno::Invalid };
        return Err((errno, "beyond the end of the export"));
    }
    let fast = header.flags & command_flag::FAST_ZERO != 0;
    if fast && !(header.offset.is_multiple_of(BLOCK_BYTES) && length.is_multiple_of(BLOCK_BYTES)) {
        // Whole blocks are zeroed by metadata alone; a partial one must be read and written.
        return Err((Errno::NotSupported, "only whole blocks of 4096 bytes are zeroed fast"));
    }
    Ok(())
}
