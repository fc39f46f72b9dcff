//! Sending past the ring what a socket takes at once.

use crate::Handle;
use crate::segments::Segments;
use std::os::fd::AsRawFd;

/// Memory for the kernel's description of a message, reused from one to the next.
#[derive(Default)]
pub(crate) struct Direct {
    iovecs: Vec<libc::iovec>,
}

impl Direct {
    /// Sends as much as there is room for. An error leaves the rest unsent; whoever sends that meets
    /// it again.
    pub(crate) fn send(&mut self, socket: &Handle, segments: &mut Segments) {
        segments.describe(&mut self.iovecs);
        // SAFETY: all zeros (null pointers, zero lengths) is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.iovecs.as_mut_ptr();
        message.msg_iovlen = self.iovecs.len();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the message, its vector and the segments that this describes outlive the call.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        self.iovecs.clear();
        if let Ok(sent) = usize::try_from(sent) {
            segments.advance(sent);
        }
    }
}
