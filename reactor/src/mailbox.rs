//! Where finished operations wait for their owners.

use bytes::BytesMut;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

/// Names an owner's mailbox in a reactor: one for each part of the program (a disk, a server), not
/// one for each connection, since its number is not used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Source(pub(crate) u32);

/// An operation's end.
#[derive(Debug)]
pub struct Completion {
    /// As given at its start.
    pub token: u64,
    /// Its outcome. A cancelled operation has the raw system error `ECANCELED`.
    pub result: io::Result<Output>,
}

/// What an operation yields.
#[derive(Debug)]
pub enum Output {
    /// It took place: writes, sends, syncs, allocations, connects, timers, wake-ups.
    Done,
    /// A read's or receive's buffer, with what it got appended.
    Buffer(BytesMut),
    /// An accepted connection; blocking, close-on-exec.
    Accepted(OwnedFd),
}

#[derive(Debug, Default)]
pub(crate) struct Mailboxes {
    /// By source; `None` once closed.
    boxes: Vec<Option<VecDeque<Completion>>>,
    undelivered: usize,
}

impl Mailboxes {
    pub(crate) fn open(&mut self) -> Source {
        let id = u32::try_from(self.boxes.len()).expect("fewer than 2^32 sources");
        self.boxes.push(Some(VecDeque::new()));
        Source(id)
    }

    pub(crate) fn put(&mut self, to: Source, token: u64, result: io::Result<Output>) {
        if let Some(mailbox) = &mut self.boxes[to.0 as usize] {
            mailbox.push_back(Completion { token, result });
            self.undelivered += 1;
        }
    }

    pub(crate) fn close(&mut self, source: Source) {
        if let Some(mailbox) = self.boxes[source.0 as usize].take() {
            self.undelivered -= mailbox.len();
        }
    }

    pub(crate) fn take(&mut self, source: Source) -> Option<Completion> {
        let completion = self.boxes[source.0 as usize].as_mut()?.pop_front()?;
        self.undelivered -= 1;
        Some(completion)
    }

    /// Whether something waits for this source, or for any.
    pub(crate) fn holds(&self, source: Option<Source>) -> bool {
        match source {
            Some(source) => self.boxes[source.0 as usize].as_ref().is_some_and(|mailbox| !mailbox.is_empty()),
            None => self.undelivered > 0,
        }
    }
}
