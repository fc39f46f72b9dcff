//! The handshake: fixed newstyle negotiation of options, until the client enters transmission.

use super::close::{CloseReason, Violation};
use super::command::Agreed;
use super::context::{self, SELECTED_MAX};
use super::output::Output;
use super::protocol::{
    EXPORT_NAME_ZEROES, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, STRING_BYTES_MAX, handshake_flag,
    info, option, option_reply, transmission_flag,
};
use super::{ExportInfo, MINIMUM_BYTES, PAYLOAD_BYTES_MAX, PREFERRED_BYTES};
use bytes::Buf;

/// Longest data of an option; what is longer is skipped and refused.
pub(super) const OPTION_BYTES_MAX: u32 = 32 * 1024;
/// Options a client may send before it must have decided.
const OPTIONS_MAX: u32 = 1024;

/// What the client has said so far.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    fixed_newstyle: bool,
    no_zeroes: bool,
    agreed: Agreed,
    options_seen: u32,
}

/// Where an option leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Option,
    Transmission,
    Close(CloseReason),
}

/// Why an option is refused: the reply type, and the reason for people.
type Refusal = (u32, &'static str);

const MALFORMED: Refusal = (option_reply::ERR_INVALID, "the option's data is malformed");
const UNKNOWN_EXPORT: Refusal = (option_reply::ERR_UNKNOWN, "there is no export of this name");

/// What the server says first.
pub(super) fn greet(output: &mut Output) {
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    output.head(18).u64(GREETING_MAGIC).u64(OPTION_MAGIC).u16(flags).end();
}

impl Handshake {
    pub(super) fn agreed(&self) -> Agreed {
        self.agreed.clone()
    }

    /// The client's answer to the greeting.
    pub(super) fn client_flags(&mut self, flags: u32) -> Result<(), Violation> {
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        if flags & !known != 0 {
            return Err(Violation::ClientFlags(flags));
        }
        self.fixed_newstyle = flags & u32::from(handshake_flag::FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        Ok(())
    }

    /// Checks an option's header before its data is waited for.
    pub(super) fn header(&mut self, magic: u64, option: u32, length: u32) -> Result<(), Violation> {
        self.options_seen += 1;
        if magic != OPTION_MAGIC {
            Err(Violation::OptionMagic(magic))
        } else if self.options_seen > OPTIONS_MAX {
            Err(Violation::TooManyOptions)
        } else if option != option::EXPORT_NAME && !self.fixed_newstyle {
            Err(Violation::OptionBeforeFixedNewstyle(option))
        } else if option == option::EXPORT_NAME && length > OPTION_BYTES_MAX {
            Err(Violation::ExportNameTooLong(length))
        } else {
            Ok(())
        }
    }

    /// Answers an option whose data was too long to look at.
    pub(super) fn skipped(&mut self, option: u32, output: &mut Output) {
        if option == option::SET_META_CONTEXT {
            self.agreed.contexts.clear();
        }
        refuse(output, option, (option_reply::ERR_TOO_BIG, "the option's data is too long"));
    }

    /// Answers an option.
    pub(super) fn option(
        &mut self,
        option: u32,
        data: &[u8],
        export: &ExportInfo,
        output: &mut Output,
    ) -> Next {
        let answer = match option {
            option::EXPORT_NAME => return self.export_name(data, export, output),
            option::ABORT => {
                reply(output, option, option_reply::ACK, 0);
                return Next::Close(CloseReason::Aborted);
            }
            option::LIST => list(data, export, output),
            option::STARTTLS if !data.is_empty() => Err(MALFORMED),
            option::STARTTLS => Err((option_reply::ERR_POLICY, "this server does not offer TLS")),
            option::INFO | option::GO => self.information(option, data, export, output),
            option::STRUCTURED_REPLY if !data.is_empty() => Err(MALFORMED),
            option::STRUCTURED_REPLY => {
                self.agreed.structured_replies = true;
                Ok(())
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, data, export, output)
            }
            _ => Err((option_reply::ERR_UNSUP, "this option is not supported")),
        };
        match answer {
            Err(refusal) => refuse(output, option, refusal),
            Ok(()) => {
                reply(output, option, option_reply::ACK, 0);
                if option == option::GO {
                    return Next::Transmission;
                }
            }
        }
        Next::Option
    }

    fn export_name(&self, name: &[u8], export: &ExportInfo, output: &mut Output) -> Next {
        if !is_export(name, export) {
            return Next::Close(CloseReason::UnknownExport);
        }
        let head = output.head(10 + EXPORT_NAME_ZEROES).u64(export.size_bytes).u16(self.flags(export));
        head.zeroes(if self.no_zeroes { 0 } else { EXPORT_NAME_ZEROES }).end();
        Next::Transmission
    }

    /// `NBD_OPT_INFO` and `NBD_OPT_GO`.
    fn information(
        &self,
        option: u32,
        data: &[u8],
        export: &ExportInfo,
        output: &mut Output,
    ) -> Result<(), Refusal> {
        let mut rest = data;
        let name = take_string(&mut rest)?;
        let count = usize::from(rest.try_get_u16().or(Err(MALFORMED))?);
        if rest.len() != 2 * count {
            return Err(MALFORMED);
        }
        if !is_export(name, export) {
            return Err(UNKNOWN_EXPORT);
        }
        let wanted = |kind: u16| rest.chunks_exact(2).any(|asked| asked == kind.to_be_bytes());

        reply(output, option, option_reply::INFO, 12);
        output.head(12).u16(info::EXPORT).u64(export.size_bytes).u16(self.flags(export)).end();
        for (kind, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)] {
            if wanted(kind) {
                reply(output, option, option_reply::INFO, 2 + string_length(text));
                output.head(2 + text.len()).u16(kind).slice(text.as_bytes()).end();
            }
        }
        if wanted(info::BLOCK_SIZE) {
            reply(output, option, option_reply::INFO, 14);
            let head = output.head(14).u16(info::BLOCK_SIZE);
            head.u32(MINIMUM_BYTES).u32(PREFERRED_BYTES).u32(PAYLOAD_BYTES_MAX).end();
        }
        Ok(())
    }

    /// `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
    fn meta_context(
        &mut self,
        option: u32,
        data: &[u8],
        export: &ExportInfo,
        output: &mut Output,
    ) -> Result<(), Refusal> {
        let set = option == option::SET_META_CONTEXT;
        if set {
            // What was selected before is void, even if this fails.
            self.agreed.contexts.clear();
        }
        if !self.agreed.structured_replies {
            return Err((option_reply::ERR_INVALID, "structured replies must be agreed on first"));
        }
        let mut rest = data;
        let name = take_string(&mut rest)?;
        let count = rest.try_get_u32().or(Err(MALFORMED))?;
        let mut found = if count == 0 && !set { context::listed(export) } else { Vec::new() };
        for _ in 0..count {
            let query = take_string(&mut rest)?;
            for context in context::matching(query, !set, export) {
                if !found.contains(&context) {
                    found.push(context);
                }
            }
        }
        if !rest.is_empty() {
            return Err(MALFORMED);
        }
        if !is_export(name, export) {
            return Err(UNKNOWN_EXPORT);
        }
        if set && found.len() > SELECTED_MAX {
            return Err((option_reply::ERR_TOO_BIG, "at most 16 contexts can be selected"));
        }
        for context in &found {
            let name = context.name(export);
            reply(output, option, option_reply::META_CONTEXT, 4 + string_length(&name));
            let id = if set { context.id() } else { 0 };
            output.head(4 + name.len()).u32(id).slice(&name).end();
        }
        if set {
            self.agreed.contexts = found;
        }
        Ok(())
    }

    fn flags(&self, export: &ExportInfo) -> u16 {
        use transmission_flag as flag;
        // One engine serves all connections, so that a flush on one covers what was completed on
        // any of them.
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN;
        flags |= if export.read_only {
            flag::READ_ONLY
        } else {
            flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
        };
        if self.agreed.structured_replies {
            flags |= flag::SEND_DF;
        }
        flags
    }
}

fn list(data: &[u8], export: &ExportInfo, output: &mut Output) -> Result<(), Refusal> {
    if !data.is_empty() {
        return Err(MALFORMED);
    }
    let (name, description) = (&export.name, &export.description);
    let length = 4 + string_length(name) + string_length(description);
    reply(output, option::LIST, option_reply::SERVER, length);
    let head = output.head(length as usize).u32(string_length(name));
    head.slice(name.as_bytes()).slice(description.as_bytes()).end();
    Ok(())
}

/// The empty name means the default export: the only one.
fn is_export(name: &[u8], export: &ExportInfo) -> bool {
    name.is_empty() || name == export.name.as_bytes()
}

/// A string with its 32-bit length before it.
fn take_string<'data>(rest: &mut &'data [u8]) -> Result<&'data [u8], Refusal> {
    let length = rest.try_get_u32().or(Err(MALFORMED))? as usize;
    if length > STRING_BYTES_MAX {
        return Err((option_reply::ERR_TOO_BIG, "strings are at most 4096 bytes"));
    }
    let (string, after) = rest.split_at_checked(length).ok_or(MALFORMED)?;
    *rest = after;
    Ok(string)
}

fn string_length(text: impl AsRef<[u8]>) -> u32 {
    u32::try_from(text.as_ref().len()).expect("checked when the connection was made")
}

fn reply(output: &mut Output, option: u32, kind: u32, length: u32) {
    output.head(20).u64(OPTION_REPLY_MAGIC).u32(option).u32(kind).u32(length).end();
}

fn refuse(output: &mut Output, option: u32, (kind, reason): Refusal) {
    reply(output, option, kind, string_length(reason));
    output.head(reason.len()).slice(reason.as_bytes()).end();
}
