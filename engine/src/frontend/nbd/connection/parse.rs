//! From the client's bytes to requests for the volume.

use super::Connection;
use crate::frontend::nbd::close::{CloseReason, Violation};
use crate::frontend::nbd::command::{self, Command, RequestHeader};
use crate::frontend::nbd::context::Context;
use crate::frontend::nbd::handshake::{Next, OPTION_BYTES_MAX};
use crate::frontend::nbd::protocol::{
    self, CLIENT_FLAGS_BYTES, Errno, OPTION_HEADER_BYTES, REQUEST_HEADER_BYTES,
};
use crate::frontend::nbd::reply::Replies;
use crate::frontend::nbd::requests::{Request, Tag};
use crate::frontend::nbd::{BLOCK_BYTES, BYTES_IN_FLIGHT_MAX, REQUESTS_MAX};
use crate::request::IoRequest;
use bytes::{Buf, Bytes};

/// Heads are small; this many bytes of them waiting mean that the client does not read.
const HEAD_BYTES_MAX: usize = 256 * 1024;

/// What comes next from the client.
#[derive(Debug)]
pub(super) enum Expecting {
    ClientFlags,
    OptionHeader,
    OptionData {
        option: u32,
        length: u32,
    },
    /// An option's data that is thrown away.
    OptionSkip {
        option: u32,
        left: u32,
    },
    RequestHeader,
    /// Nothing: a request without payload is being handed out, part by part.
    Parts {
        slot: u32,
        part: u32,
    },
    /// A write's payload, handed out part by part as it comes.
    Payload {
        slot: u32,
        part: u32,
        /// Offset of what is still to come.
        at: u64,
        /// Bytes still to come for this part.
        left: u32,
        /// What has come for this part and could not stay in one piece with the rest.
        segments: Vec<Bytes>,
    },
    /// A refused write's payload; the refusal follows it, as clients do not look for replies to
    /// a request that they are still sending.
    PayloadSkip {
        cookie: u64,
        left: u32,
        errno: Errno,
        reason: &'static str,
    },
}

/// What a step of the parser led to.
pub(super) enum Step {
    Progress,
    /// Nothing more can be done with what is there.
    Stuck,
    Request(Tag, IoRequest),
}

impl Connection {
    pub(super) fn step(&mut self) -> Step {
        if let Expecting::Parts { slot, part } = self.expecting {
            return self.step_parts(slot, part);
        }
        if self.closing.is_some() || self.input.is_lent() {
            return Step::Stuck;
        }
        match self.expecting {
            Expecting::ClientFlags => self.step_client_flags(),
            Expecting::OptionHeader => self.step_option_header(),
            Expecting::OptionData { option, length } => self.step_option_data(option, length),
            Expecting::OptionSkip { option, left } => self.step_option_skip(option, left),
            Expecting::RequestHeader => self.step_request_header(),
            Expecting::Payload { .. } => self.step_payload(),
            Expecting::PayloadSkip { cookie, left, errno, reason } => {
                self.step_payload_skip(cookie, left, errno, reason)
            }
            Expecting::Parts { .. } => unreachable!("handed out above"),
        }
    }

    fn starve(&mut self) -> Step {
        self.starved = true;
        if self.input_ended {
            self.close(CloseReason::HungUp);
        }
        Step::Stuck
    }

    pub(super) fn close(&mut self, reason: CloseReason) {
        self.closing.get_or_insert(reason);
        if let Expecting::Payload { slot, .. } = self.expecting {
            self.expecting = Expecting::RequestHeader;
            let request = self.requests.get_mut(slot);
            request.abandoned = true;
            request.all_issued = true;
            self.finish_if_over(slot);
        }
    }

    fn violate(&mut self, violation: Violation) -> Step {
        self.close(violation.into());
        Step::Stuck
    }

    fn step_client_flags(&mut self) -> Step {
        let Some(flags) = self.input.bytes().first_chunk::<CLIENT_FLAGS_BYTES>() else {
            return self.starve();
        };
        let flags = u32::from_be_bytes(*flags);
        self.input.consume(CLIENT_FLAGS_BYTES);
        if let Err(violation) = self.handshake.client_flags(flags) {
            return self.violate(violation);
        }
        self.expecting = Expecting::OptionHeader;
        Step::Progress
    }

    fn step_option_header(&mut self) -> Step {
        if self.output.head_bytes() > HEAD_BYTES_MAX {
            return Step::Stuck;
        }
        let Some(header) = self.input.bytes().first_chunk::<OPTION_HEADER_BYTES>() else {
            return self.starve();
        };
        let mut header = header.as_slice();
        let (magic, option, length) = (header.get_u64(), header.get_u32(), header.get_u32());
        self.input.consume(OPTION_HEADER_BYTES);
        if let Err(violation) = self.handshake.header(magic, option, length) {
            return self.violate(violation);
        }
        self.expecting = if length > OPTION_BYTES_MAX {
            Expecting::OptionSkip { option, left: length }
        } else {
            Expecting::OptionData { option, length }
        };
        Step::Progress
    }

    fn step_option_data(&mut self, option: u32, length: u32) -> Step {
        let Some(data) = self.input.bytes().get(..length as usize) else {
            return self.starve();
        };
        let next = self.handshake.option(option, data, &self.export, &mut self.output);
        self.input.consume(length as usize);
        self.expecting = Expecting::OptionHeader;
        match next {
            Next::Option => {}
            Next::Transmission => {
                self.agreed = self.handshake.agreed();
                self.expecting = Expecting::RequestHeader;
            }
            Next::Close(reason) => self.close(reason),
        }
        Step::Progress
    }

    fn step_option_skip(&mut self, option: u32, left: u32) -> Step {
        let left = left - self.input.skip(left);
        if left > 0 {
            self.expecting = Expecting::OptionSkip { option, left };
            return self.starve();
        }
        self.handshake.skipped(option, &mut self.output);
        self.expecting = Expecting::OptionHeader;
        Step::Progress
    }

    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        let held = self.bytes_in_flight + self.output.len();
        self.requests.len() < REQUESTS_MAX
            && self.output.head_bytes() <= HEAD_BYTES_MAX
            && (held == 0 || held + bytes <= BYTES_IN_FLIGHT_MAX)
    }

    fn step_request_header(&mut self) -> Step {
        let Some(header) = self.input.bytes().first_chunk::<REQUEST_HEADER_BYTES>() else {
            return self.starve();
        };
        let Some(header) = RequestHeader::decode(header) else {
            let mut magic = header.as_slice();
            return self.violate(Violation::RequestMagic(magic.get_u32()));
        };
        if header.command == protocol::command::DISC {
            self.close(CloseReason::Disconnected);
            return Step::Stuck;
        }
        if !self.has_room_for(header.bytes_in_flight()) {
            return Step::Stuck;
        }
        self.input.consume(REQUEST_HEADER_BYTES);
        match command::check(&header, &self.agreed, &self.export) {
            Ok(command) => self.admit(&header, command),
            Err((errno, reason)) if header.payload_bytes() == 0 => {
                let structured = self.agreed.structured_replies;
                Replies::error(&mut self.output, structured, header.cookie, errno, reason);
            }
            Err((errno, reason)) => {
                let left = header.payload_bytes();
                self.expecting = Expecting::PayloadSkip { cookie: header.cookie, left, errno, reason };
            }
        }
        Step::Progress
    }

    fn admit(&mut self, header: &RequestHeader, command: Command) {
        self.bytes_in_flight += header.bytes_in_flight();
        let request = Request::new(header.cookie, command, header.offset, header.length);
        self.expecting = if let Command::Write { .. } = command {
            let (at, left) = request.part(0).expect("a write is not empty");
            let slot = self.requests.insert(request);
            Expecting::Payload { slot, part: 0, at, left, segments: Vec::new() }
        } else {
            Expecting::Parts { slot: self.requests.insert(request), part: 0 }
        };
    }

    fn step_parts(&mut self, slot: u32, part: u32) -> Step {
        let request = self.requests.get_mut(slot);
        let (offset, length) = (request.offset, u64::from(request.length));
        let io = match request.command {
            Command::Read { .. } => {
                let (offset, length) = request.part(part).expect("the last part ends the handing out");
                IoRequest::Read { offset, length }
            }
            Command::Flush => IoRequest::Flush,
            Command::Trim { .. } => IoRequest::Discard { offset, length },
            Command::WriteZeroes { force_unit_access, may_unmap } => {
                IoRequest::WriteZeroes { offset, length, force_unit_access, may_unmap }
            }
            Command::BlockStatus { .. } => match self.agreed.contexts[part as usize] {
                Context::Allocation => IoRequest::Allocation { offset, length },
                Context::Changed { since, .. } => IoRequest::Changed { since, offset, length },
            },
            Command::Write { .. } => unreachable!("a write's parts come with its payload"),
        };
        request.parts_pending += 1;
        let more = match request.command {
            Command::Read { .. } => request.part(part + 1).is_some(),
            Command::BlockStatus { .. } => part as usize + 1 < self.agreed.contexts.len(),
            _ => false,
        };
        request.all_issued = !more;
        self.expecting =
            if more { Expecting::Parts { slot, part: part + 1 } } else { Expecting::RequestHeader };
        Step::Request(Tag::new(slot, part), io)
    }

    fn step_payload(&mut self) -> Step {
        let Expecting::Payload { slot, part, at, left, segments } = &mut self.expecting else {
            unreachable!("only called for a payload");
        };
        let here = self.input.bytes().len();
        if here < *left as usize {
            if !self.input.fits(*left as usize) {
                // The rest gets a buffer of its own. Whole blocks stay where they are, so that
                // segments are whole blocks; less than a block is moved.
                let cut = whole_blocks(*at, here);
                if cut > 0 {
                    segments.push(self.input.take(cut));
                    *at += cut as u64;
                    *left -= u32::try_from(cut).expect("less than what is left");
                }
            }
            return self.starve();
        }
        segments.push(self.input.take(*left as usize));
        let (slot, part, segments) = (*slot, *part, std::mem::take(segments));
        let request = self.requests.get_mut(slot);
        let Command::Write { force_unit_access } = request.command else {
            unreachable!("only writes have a payload");
        };
        let (offset, _) = request.part(part).expect("this part is being received");
        request.parts_pending += 1;
        let next = request.part(part + 1);
        request.all_issued = next.is_none();
        self.expecting = match next {
            Some((at, left)) => Expecting::Payload { slot, part: part + 1, at, left, segments: Vec::new() },
            None => Expecting::RequestHeader,
        };
        Step::Request(Tag::new(slot, part), IoRequest::Write { offset, segments, force_unit_access })
    }

    fn step_payload_skip(&mut self, cookie: u64, left: u32, errno: Errno, reason: &'static str) -> Step {
        let left = left - self.input.skip(left);
        if left > 0 {
            self.expecting = Expecting::PayloadSkip { cookie, left, errno, reason };
            return self.starve();
        }
        Replies::error(&mut self.output, self.agreed.structured_replies, cookie, errno, reason);
        self.expecting = Expecting::RequestHeader;
        Step::Progress
    }
}

/// How many of `here` bytes at `at` reach up to the last block boundary among them.
fn whole_blocks(at: u64, here: usize) -> usize {
    let end = (at + here as u64) / BLOCK_BYTES * BLOCK_BYTES;
    usize::try_from(end.saturating_sub(at)).expect("not more than is here")
}
