//! From the volume's completions to replies.

use super::Connection;
use crate::frontend::nbd::command::Command;
use crate::frontend::nbd::reply::{self, Replies};
use crate::frontend::nbd::requests::Tag;
use bytes::Bytes;

impl Connection {
    pub(super) fn complete_read(&mut self, tag: Tag, segments: Vec<Bytes>) {
        let request = self.requests.get_mut(tag.slot());
        let Command::Read { whole } = request.command else {
            panic!("data answers a read only");
        };
        let (offset, length) = request.part(tag.part()).expect("this part was asked for");
        let read: usize = segments.iter().map(Bytes::len).sum();
        assert_eq!(read, length as usize, "a read returns as much as was asked for");
        if whole {
            request.gathered.push((tag.part(), segments));
        } else {
            let last = request.is_over();
            self.replies.chunks(&mut self.output, request.cookie, offset, segments, last);
        }
        self.finish_if_over(tag.slot());
    }

    pub(super) fn complete_status(&mut self, tag: Tag, extents: &[(u64, bool)]) {
        let request = self.requests.get_mut(tag.slot());
        let Command::BlockStatus { one_extent } = request.command else {
            panic!("extents answer a block status request only");
        };
        let context = self.agreed.contexts[tag.part() as usize];
        Replies::block_status(&mut self.output, request, context, one_extent, extents);
        self.finish_if_over(tag.slot());
    }

    /// Answers the request if nothing of it is left to do.
    pub(super) fn finish_if_over(&mut self, slot: u32) {
        if !self.requests.get_mut(slot).is_over() {
            return;
        }
        let mut request = self.requests.remove(slot);
        if matches!(request.command, Command::Read { .. } | Command::Write { .. }) {
            self.bytes_in_flight -= request.length as usize;
        }
        if request.abandoned {
            return;
        }
        let structured = self.agreed.structured_replies;
        if let Some(error) = &request.error {
            let reason = if structured { error.to_string() } else { String::new() };
            Replies::error(&mut self.output, structured, request.cookie, reply::errno(error), &reason);
            return;
        }
        match request.command {
            Command::Read { whole: false } | Command::BlockStatus { .. } => {}
            Command::Read { whole: true } => {
                request.gathered.sort_unstable_by_key(|(part, _)| *part);
                let gathered = std::mem::take(&mut request.gathered);
                let segments = gathered.into_iter().flat_map(|(_, segments)| segments);
                if structured {
                    Replies::unfragmented(&mut self.output, &request, segments);
                } else {
                    Replies::simple_data(&mut self.output, request.cookie, segments);
                }
            }
            _ => Replies::simple(&mut self.output, request.cookie, 0),
        }
    }
}
