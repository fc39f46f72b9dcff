//! The newstyle handshake: structured replies if they can be had, then `NBD_OPT_GO`.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const CLIENT_FIXED_NEWSTYLE: u32 = 1;
const CLIENT_NO_ZEROES: u32 = 2;
const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
/// Longest option reply that is read; an error's text is not longer.
const REPLY_BYTES_MAX: u32 = 64 << 10;

/// What was agreed upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Agreed {
    /// The export's bytes.
    pub(super) size: u64,
    pub(super) read_only: bool,
    pub(super) can_flush: bool,
    pub(super) structured: bool,
}

const EXPORT_READ_ONLY: u16 = 1 << 1;
const EXPORT_CAN_FLUSH: u16 = 1 << 2;

pub(super) async fn shake_hands(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    export: &str,
) -> io::Result<Agreed> {
    let mut greeting = [0; 18];
    reader.read_exact(&mut greeting).await?;
    let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
    if &greeting[..8] != MAGIC || &greeting[8..16] != OPTION_MAGIC || flags & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(bad("what listens there is no newstyle NBD server"));
    }
    writer.write_all(&(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES).to_be_bytes()).await?;
    send_option(writer, OPTION_STRUCTURED_REPLY, &[]).await?;
    let structured = read_reply(reader, OPTION_STRUCTURED_REPLY).await?.0 == REPLY_ACK;
    let length = u32::try_from(export.len()).or(Err(bad("the export's name is too long")))?;
    let go = [&length.to_be_bytes(), export.as_bytes(), &[0, 0]].concat();
    send_option(writer, OPTION_GO, &go).await?;
    let mut found = None;
    loop {
        let (kind, data) = read_reply(reader, OPTION_GO).await?;
        match kind {
            REPLY_INFO if data.starts_with(&INFO_EXPORT.to_be_bytes()) => found = Some(export_info(&data)?),
            REPLY_INFO => {}
            REPLY_ACK => break,
            _ => {
                let said = String::from_utf8_lossy(&data);
                return Err(bad(&format!("the server has no export '{export}' for us: {said}")));
            }
        }
    }
    let (size, flags) = found.ok_or_else(|| bad("the server does not say how large the export is"))?;
    Ok(Agreed {
        size,
        read_only: flags & EXPORT_READ_ONLY != 0,
        can_flush: flags & EXPORT_CAN_FLUSH != 0,
        structured,
    })
}

fn export_info(data: &[u8]) -> io::Result<(u64, u16)> {
    let fields: &[u8; 12] =
        data.try_into().or(Err(bad("the server's NBD_INFO_EXPORT has a wrong length")))?;
    let [_, _, size @ .., flags_high, flags_low] = *fields;
    Ok((u64::from_be_bytes(size), u16::from_be_bytes([flags_high, flags_low])))
}

async fn send_option(writer: &mut (impl AsyncWrite + Unpin), option: u32, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).or(Err(bad("the option is too long")))?;
    let message = [&OPTION_MAGIC[..], &option.to_be_bytes(), &length.to_be_bytes(), data].concat();
    writer.write_all(&message).await
}

/// The reply's kind and data; of an error, too.
async fn read_reply(reader: &mut (impl AsyncRead + Unpin), option: u32) -> io::Result<(u32, Vec<u8>)> {
    let magic = reader.read_u64().await?;
    let answered = reader.read_u32().await?;
    let kind = reader.read_u32().await?;
    let length = reader.read_u32().await?;
    if magic != REPLY_MAGIC || answered != option || length > REPLY_BYTES_MAX {
        return Err(bad("the server's answer to an option makes no sense"));
    }
    let mut data = vec![0; usize::try_from(length).or(Err(bad("the answer is too long")))?];
    reader.read_exact(&mut data).await?;
    if kind & REPLY_ERROR != 0 && option == OPTION_GO && data.is_empty() {
        data = format!("error {}", kind & !REPLY_ERROR).into_bytes();
    }
    Ok((kind, data))
}

pub(super) fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
