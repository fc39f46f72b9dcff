//! The newstyle handshake: structured replies and `base:allocation` if they can be had, then
//! `NBD_OPT_GO`.

use crate::ProtocolError;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;

const MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const GREETING_BYTES: usize = 18;
const REPLY_HEADER_BYTES: usize = 20;
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const CLIENT_FIXED_NEWSTYLE: u32 = 1;
const CLIENT_NO_ZEROES: u32 = 2;
const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;
const OPTION_SET_META_CONTEXT: u32 = 10;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_META_CONTEXT: u32 = 4;
const REPLY_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const ALLOCATION: &[u8] = b"base:allocation";
/// Longest option reply that is read; an error's text is not longer.
const REPLY_BYTES_MAX: u32 = 64 << 10;
/// A server that goes on for ever is none.
const REPLIES_MAX: u32 = 64;

const EXPORT_READ_ONLY: u16 = 1 << 1;
const EXPORT_CAN_FLUSH: u16 = 1 << 2;
const EXPORT_CAN_WRITE_ZEROES: u16 = 1 << 6;

/// What the client would like to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// To read and write.
    Data,
    /// To be told also what holds data.
    DataAndAllocation,
}

/// What was agreed upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Export {
    /// Its bytes.
    pub size: u64,
    /// Whether it takes no writes.
    pub read_only: bool,
    /// Whether it takes flushes.
    pub can_flush: bool,
    /// Whether it takes [`Request::WriteZeroes`](crate::Request::WriteZeroes).
    pub can_write_zeroes: bool,
    /// Whether replies are structured.
    pub structured: bool,
    /// Whether it answers [`Request::Allocation`](crate::Request::Allocation).
    pub has_allocation: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Greeting,
    StructuredReply,
    Context,
    Go,
}

/// A handshake under way.
#[derive(Debug)]
pub(crate) struct Handshake {
    step: Step,
    name: String,
    wanted: Wanted,
    structured: bool,
    allocation: bool,
    /// Size and flags.
    found: Option<(u64, u16)>,
    replies: u32,
}

impl Handshake {
    pub(crate) fn new(name: &str, wanted: Wanted) -> Self {
        let name = name.to_owned();
        Self {
            step: Step::Greeting,
            name,
            wanted,
            structured: false,
            allocation: false,
            found: None,
            replies: 0,
        }
    }

    /// Goes on with what has been received; the export when all is agreed.
    pub(crate) fn advance(
        &mut self,
        received: &mut BytesMut,
        to_send: &mut VecDeque<Bytes>,
    ) -> Result<Option<Export>, ProtocolError> {
        loop {
            let understood = match self.step {
                Step::Greeting => self.greeting(received, to_send)?,
                _ => match take_reply(received, self.option())? {
                    None => false,
                    Some((kind, data)) => {
                        self.replies += 1;
                        if self.replies > REPLIES_MAX {
                            return Err(ProtocolError::BadHandshake { what: "it never ends" });
                        }
                        if let Some(export) = self.reply(kind, &data, to_send)? {
                            return Ok(Some(export));
                        }
                        true
                    }
                },
            };
            if !understood {
                return Ok(None);
            }
        }
    }

    const fn option(&self) -> u32 {
        match self.step {
            Step::Greeting | Step::StructuredReply => OPTION_STRUCTURED_REPLY,
            Step::Context => OPTION_SET_META_CONTEXT,
            Step::Go => OPTION_GO,
        }
    }

    fn greeting(
        &mut self,
        received: &mut BytesMut,
        to_send: &mut VecDeque<Bytes>,
    ) -> Result<bool, ProtocolError> {
        let known = received.len().min(MAGIC.len());
        if received[..known] != MAGIC[..known] {
            return Err(ProtocolError::NoServer);
        }
        let Some(greeting) = received.first_chunk::<GREETING_BYTES>() else { return Ok(false) };
        let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
        if &greeting[8..16] != OPTION_MAGIC || flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(ProtocolError::NoServer);
        }
        received.advance(GREETING_BYTES);
        to_send.push_back(Bytes::copy_from_slice(&(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES).to_be_bytes()));
        self.step = Step::StructuredReply;
        to_send.push_back(option(OPTION_STRUCTURED_REPLY, &[])?);
        Ok(true)
    }

    fn reply(
        &mut self,
        kind: u32,
        data: &[u8],
        to_send: &mut VecDeque<Bytes>,
    ) -> Result<Option<Export>, ProtocolError> {
        match (self.step, kind) {
            (Step::StructuredReply, _) => {
                self.structured = kind == REPLY_ACK;
                // Block status needs structured replies.
                let asks = self.structured && self.wanted == Wanted::DataAndAllocation;
                self.ask(if asks { Step::Context } else { Step::Go }, to_send)?;
            }
            (Step::Context, REPLY_META_CONTEXT) => {
                self.allocation |= data.get(4..) == Some(ALLOCATION);
            }
            (Step::Context, _) => {
                // Without the acknowledgement nothing was selected.
                self.allocation &= kind == REPLY_ACK;
                self.ask(Step::Go, to_send)?;
            }
            (_, REPLY_INFO) if data.starts_with(&INFO_EXPORT.to_be_bytes()) => {
                self.found = Some(export_info(data)?);
            }
            (_, REPLY_INFO) => {}
            (_, REPLY_ACK) => return self.export().map(Some),
            (_, kind) => return Err(self.refused(kind, data)),
        }
        Ok(None)
    }

    fn ask(&mut self, step: Step, to_send: &mut VecDeque<Bytes>) -> Result<(), ProtocolError> {
        self.step = step;
        let name = counted(self.name.as_bytes())?;
        let data = match step {
            Step::Context => [name, 1_u32.to_be_bytes().to_vec(), counted(ALLOCATION)?].concat(),
            _ => [name, vec![0, 0]].concat(),
        };
        to_send.push_back(option(self.option(), &data)?);
        Ok(())
    }

    fn export(&self) -> Result<Export, ProtocolError> {
        let (size, flags) = self
            .found
            .ok_or(ProtocolError::BadHandshake { what: "it does not say how large the export is" })?;
        Ok(Export {
            size,
            read_only: flags & EXPORT_READ_ONLY != 0,
            can_flush: flags & EXPORT_CAN_FLUSH != 0,
            can_write_zeroes: flags & EXPORT_CAN_WRITE_ZEROES != 0,
            structured: self.structured,
            has_allocation: self.allocation,
        })
    }

    fn refused(&self, kind: u32, data: &[u8]) -> ProtocolError {
        let said = match data {
            [] => format!("error {}", kind & !REPLY_ERROR),
            text => String::from_utf8_lossy(text).into_owned(),
        };
        ProtocolError::NoExport { export: self.name.clone(), said }
    }
}

fn counted(text: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    let length = u32::try_from(text.len()).or(Err(ProtocolError::TooLong { what: "the export's name" }))?;
    Ok([&length.to_be_bytes(), text].concat())
}

fn option(option: u32, data: &[u8]) -> Result<Bytes, ProtocolError> {
    let length = u32::try_from(data.len()).or(Err(ProtocolError::TooLong { what: "the export's name" }))?;
    Ok([&OPTION_MAGIC[..], &option.to_be_bytes(), &length.to_be_bytes(), data].concat().into())
}

fn export_info(data: &[u8]) -> Result<(u64, u16), ProtocolError> {
    let fields: &[u8; 12] = data
        .try_into()
        .or(Err(ProtocolError::BadHandshake { what: "NBD_INFO_EXPORT has a wrong length" }))?;
    let [_, _, size @ .., flags_high, flags_low] = *fields;
    Ok((u64::from_be_bytes(size), u16::from_be_bytes([flags_high, flags_low])))
}

/// The kind and data of the next reply to an option, if it is there whole.
fn take_reply(received: &mut BytesMut, option: u32) -> Result<Option<(u32, Bytes)>, ProtocolError> {
    let Some(mut header) = received.get(..REPLY_HEADER_BYTES) else { return Ok(None) };
    let magic = header.get_u64();
    let answered = header.get_u32();
    let kind = header.get_u32();
    let length = header.get_u32();
    if magic != REPLY_MAGIC || answered != option {
        return Err(ProtocolError::BadHandshake { what: "it answers something else" });
    }
    if length > REPLY_BYTES_MAX {
        return Err(ProtocolError::BadHandshake { what: "an answer is too long" });
    }
    let length = usize::try_from(length).or(Err(ProtocolError::TooLong { what: "an answer" }))?;
    if received.len() < REPLY_HEADER_BYTES + length {
        return Ok(None);
    }
    received.advance(REPLY_HEADER_BYTES);
    Ok(Some((kind, received.split_to(length).freeze())))
}
