//! The fixed newstyle handshake.

use super::transport::Transport;
use std::io::{self, Read, Write};

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;
const OPTION_SET_META_CONTEXT: u32 = 10;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_META_CONTEXT: u32 = 4;
const REPLY_IS_ERROR: u32 = 1 << 31;
const OPTION_REPLY_BYTES_MAX: u32 = 64 * 1024;

/// What the server offers for the export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// `NBD_FLAG_READ_ONLY`.
    #[must_use]
    pub const fn read_only(self) -> bool {
        self.0 & 2 != 0
    }

    /// `NBD_FLAG_SEND_FLUSH`: without it a guest takes the disk for write-through.
    #[must_use]
    pub const fn flush(self) -> bool {
        self.0 & 4 != 0
    }

    /// `NBD_FLAG_CAN_MULTI_CONN`.
    #[must_use]
    pub const fn multi_conn(self) -> bool {
        self.0 & 0x100 != 0
    }
}

pub(super) struct Agreed {
    pub(super) size: u64,
    pub(super) flags: TransmissionFlags,
}

pub(super) fn negotiate(transport: &mut Transport, export: &str) -> io::Result<Agreed> {
    let mut greeting = [0; 18];
    transport.read_exact(&mut greeting)?;
    if &greeting[..8] != b"NBDMAGIC" || greeting[8..16] != OPTION_MAGIC.to_be_bytes() || greeting[17] & 1 == 0
    {
        return Err(protocol(format!("not a fixed newstyle server: {greeting:02x?}")));
    }
    // FIXED_NEWSTYLE, and NO_ZEROES when the server has it.
    let flags = u32::from(greeting[17] & 3);
    transport.write_all(&flags.to_be_bytes())?;
    acknowledged(transport, OPTION_STRUCTURED_REPLY, &[])?;
    acknowledged(transport, OPTION_SET_META_CONTEXT, &meta_context(export)?)?;
    let mut go = counted(export)?;
    go.extend_from_slice(&0_u16.to_be_bytes());
    acknowledged(transport, OPTION_GO, &go)?.ok_or_else(|| protocol("GO without NBD_INFO_EXPORT".into()))
}

fn counted(text: &str) -> io::Result<Vec<u8>> {
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes(), text.as_bytes()].concat())
}

fn meta_context(export: &str) -> io::Result<Vec<u8>> {
    Ok([counted(export)?, 1_u32.to_be_bytes().to_vec(), counted("base:allocation")?].concat())
}

/// Sends an option and reads its replies up to the acknowledgement.
fn acknowledged(transport: &mut Transport, option: u32, data: &[u8]) -> io::Result<Option<Agreed>> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let head = [&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &length.to_be_bytes()].concat();
    transport.write_all(&[&head, data].concat())?;
    let mut agreed = None;
    loop {
        let magic = u64::from_be_bytes(read_array(transport)?);
        let answered = u32::from_be_bytes(read_array(transport)?);
        let kind = u32::from_be_bytes(read_array(transport)?);
        let length = u32::from_be_bytes(read_array(transport)?);
        if magic != OPTION_REPLY_MAGIC || answered != option || length > OPTION_REPLY_BYTES_MAX {
            return Err(protocol(format!(
                "bad reply to option {option}: {magic:#x} {answered} {kind} {length}"
            )));
        }
        let mut body = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        transport.read_exact(&mut body)?;
        match (kind, &body[..]) {
            (REPLY_ACK, []) => return Ok(agreed),
            (REPLY_INFO, [0, 0, size @ .., f0, f1]) if size.len() == 8 => {
                let size = size.try_into().map_err(io::Error::other)?;
                let flags = TransmissionFlags(u16::from_be_bytes([*f0, *f1]));
                agreed = Some(Agreed { size: u64::from_be_bytes(size), flags });
            }
            (REPLY_INFO | REPLY_META_CONTEXT, _) => {}
            (kind, body) if kind & REPLY_IS_ERROR != 0 => {
                let text = String::from_utf8_lossy(body);
                return Err(protocol(format!("option {option} refused ({kind:#x}): {text}")));
            }
            (kind, body) => return Err(protocol(format!("reply {kind} to option {option}: {body:02x?}"))),
        }
    }
}

pub(super) fn read_array<const N: usize>(transport: &mut Transport) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    transport.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn protocol(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
