//! One client's connection: parses what comes, hands requests out, gathers replies.

mod complete;
mod parse;

use super::ExportInfo;
use super::close::CloseReason;
use super::command::{Agreed, Command};
use super::handshake::{self, Handshake};
use super::input::Input;
use super::output::Output;
use super::protocol::{CLIENT_FLAGS_BYTES, OPTION_HEADER_BYTES, REQUEST_HEADER_BYTES, STRING_BYTES_MAX};
use super::reply::Replies;
use super::requests::{Requests, Tag};
use crate::request::{IoError, IoReply, IoRequest};
use bytes::{Bytes, BytesMut};
use parse::{Expecting, Step};
use std::collections::VecDeque;

/// One client's connection. See the [module](super) for the turns that a shell takes.
#[derive(Debug)]
pub struct Connection {
    export: ExportInfo,
    handshake: Handshake,
    agreed: Agreed,
    expecting: Expecting,
    input: Input,
    output: Output,
    requests: Requests,
    replies: Replies,
    /// Trims that are done and must be flushed before they are answered.
    flushes_due: VecDeque<u32>,
    bytes_in_flight: usize,
    starved: bool,
    input_ended: bool,
    closing: Option<CloseReason>,
}

impl Connection {
    /// A connection just accepted. Its greeting waits in the output.
    ///
    /// # Panics
    /// When the export's name or description is longer than the protocol's 4096 bytes.
    #[must_use]
    pub fn new(export: ExportInfo) -> Self {
        assert!(export.name.len() <= STRING_BYTES_MAX, "the export's name is too long");
        assert!(export.description.len() <= STRING_BYTES_MAX, "the export's description is too long");
        let mut output = Output::default();
        handshake::greet(&mut output);
        Self {
            export,
            handshake: Handshake::default(),
            agreed: Agreed::default(),
            expecting: Expecting::ClientFlags,
            input: Input::new(),
            output,
            requests: Requests::default(),
            replies: Replies::default(),
            flushes_due: VecDeque::new(),
            bytes_in_flight: 0,
            starved: true,
            input_ended: false,
            closing: None,
        }
    }

    /// Whether to receive into [`Connection::buffer`]. `false` while too much is in flight: the
    /// client must wait. Meaningful once [`Connection::next_request`] has returned `None`.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        let begun = matches!(self.expecting, Expecting::Payload { .. } | Expecting::PayloadSkip { .. });
        self.starved
            && !self.input.is_lent()
            && !self.input_ended
            && self.closing.is_none()
            && (begun || self.has_room_for(0))
    }

    /// Lends the buffer to receive into: append to what is in it, within its spare capacity, which
    /// is not zero and at most what can be used.
    ///
    /// # Panics
    /// When [`Connection::wants_input`] is `false`.
    pub fn buffer(&mut self) -> BytesMut {
        assert!(self.wants_input(), "no input is wanted");
        let awaited = match &self.expecting {
            Expecting::ClientFlags => CLIENT_FLAGS_BYTES,
            Expecting::OptionHeader => OPTION_HEADER_BYTES,
            Expecting::OptionData { length, .. } => *length as usize,
            Expecting::RequestHeader => REQUEST_HEADER_BYTES,
            Expecting::Payload { left, .. } => *left as usize,
            Expecting::OptionSkip { .. } | Expecting::PayloadSkip { .. } | Expecting::Parts { .. } => 1,
        };
        self.input.lend(awaited)
    }

    /// Returns the buffer with what was received appended. Nothing appended is the stream's end, as
    /// for [`Connection::end_of_input`].
    ///
    /// # Panics
    /// When no buffer was lent out, or it is shorter than it was.
    pub fn received(&mut self, buffer: BytesMut) {
        if self.input.give_back(buffer) {
            self.starved = false;
        } else {
            self.end_of_input();
        }
    }

    /// The client's stream has ended, or failed. What it has sent is still carried out and answered:
    /// it may have closed its sending side only. A buffer lent out need not come back any more.
    pub fn end_of_input(&mut self) {
        self.input_ended = true;
        if self.starved {
            self.close(CloseReason::HungUp);
        }
    }

    /// Stops taking requests. Those in flight are carried out and answered; then the connection is
    /// finished.
    pub fn shut_down(&mut self) {
        self.close(CloseReason::ShutDown);
    }

    /// The next request for the volume; complete it with its tag, in any order. `None` until
    /// something is received, completed or taken.
    pub fn next_request(&mut self) -> Option<(Tag, IoRequest)> {
        if let Some(slot) = self.flushes_due.pop_front() {
            return Some((Tag::new(slot, 1), IoRequest::Flush));
        }
        loop {
            match self.step() {
                Step::Progress => {}
                Step::Stuck => return None,
                Step::Request(tag, request) => return Some((tag, request)),
            }
        }
    }

    /// A request is done; its reply joins the output when all its parts are.
    ///
    /// # Panics
    /// When no such request is in flight, or the reply is not of its kind.
    pub fn complete(&mut self, tag: Tag, result: Result<IoReply, IoError>) {
        let slot = tag.slot();
        let request = self.requests.get_mut(slot);
        assert!(request.parts_pending > 0, "completed twice");
        request.parts_pending -= 1;
        match result {
            Err(error) => {
                request.error.get_or_insert(error);
            }
            Ok(_) if request.error.is_some() => {}
            Ok(IoReply::Data(segments)) => return self.complete_read(tag, segments),
            Ok(IoReply::Allocation(extents) | IoReply::Changed(extents)) => {
                return self.complete_status(tag, &extents);
            }
            Ok(IoReply::Cut(_)) => panic!("a client takes no part in snapshots"),
            Ok(IoReply::Done) => {
                let answers = !matches!(request.command, Command::Read { .. } | Command::BlockStatus { .. });
                assert!(answers, "a read and an allocation are answered with what was asked for");
                if request.command == (Command::Trim { flush_after: true }) && tag.part() == 0 {
                    request.parts_pending += 1;
                    self.flushes_due.push_back(slot);
                }
            }
        }
        self.finish_if_over(slot);
    }

    /// Appends everything that can be sent to `out`. Send it all before the next call: what was
    /// taken no longer counts against this connection's limits.
    pub fn take_output(&mut self, out: &mut Vec<Bytes>) {
        self.output.take(out);
    }

    /// Whether the connection is over: nothing is in flight, and nothing more will come or go once
    /// the output is taken and sent.
    #[must_use]
    pub fn is_finished(&self) -> Option<CloseReason> {
        if self.requests.len() > 0 { None } else { self.closing.clone() }
    }

    /// How many of the client's requests are not answered yet.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.requests.len()
    }
}
