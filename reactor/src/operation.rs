//! What an operation in flight owns, what it asks of the kernel, and when it has finished.

use crate::Handle;
use crate::mailbox::{Output, Source};
use crate::segments::{CALL_BYTES_MAX, Segments};
use crate::socket_address::RawAddress;
use bytes::BytesMut;
use io_uring::{opcode, squeue, types};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(crate) struct Operation {
    pub(crate) to: Source,
    pub(crate) token: u64,
    pub(crate) handle: Handle,
    pub(crate) kind: Kind,
    /// Asked to end: a partial result is not continued.
    pub(crate) cancelled: bool,
}

pub(crate) enum Kind {
    Read {
        offset: u64,
        buffer: BytesMut,
    },
    Write {
        offset: u64,
        segments: Segments,
    },
    SyncData,
    Allocate {
        offset: u64,
        length: u64,
    },
    Receive {
        buffer: BytesMut,
        /// Leave it to the kernel to fill the buffer, as far as the stream goes.
        whole: bool,
    },
    Send {
        segments: Segments,
    },
    Accept,
    Connect {
        address: Box<RawAddress>,
    },
    /// The read of the wakers' eventfd; reports to nobody and starts over.
    Doorbell {
        count: u64,
    },
}

/// Memory for the kernel's descriptions of an operation's memory; reused by one operation after
/// the other, and at a fixed address while one is in flight.
pub(crate) struct Scratch {
    iovecs: Vec<libc::iovec>,
    message: libc::msghdr,
}

impl Default for Scratch {
    fn default() -> Self {
        // SAFETY: all zeros (null pointers, zero lengths) is a valid msghdr.
        Self { iovecs: Vec::new(), message: unsafe { std::mem::zeroed() } }
    }
}

/// What a kernel completion means for its operation.
pub(crate) enum Progress {
    /// Prepare and submit it again: the rest is to do.
    Continue,
    /// Over.
    Finished(io::Result<Output>),
}

impl Operation {
    /// Whether there is nothing to ask of the kernel, and so what the outcome is.
    pub(crate) fn trivial_outcome(&mut self) -> Option<io::Result<Output>> {
        match &mut self.kind {
            Kind::Write { segments, .. } | Kind::Send { segments } if segments.remaining() == 0 => {
                Some(Ok(Output::Done))
            }
            Kind::Read { buffer, .. } if buffer.capacity() == buffer.len() => {
                Some(Ok(Output::Buffer(std::mem::take(buffer))))
            }
            Kind::Receive { buffer, .. } if buffer.capacity() == buffer.len() => Some(Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a receive into a buffer without room cannot tell data from the end",
            ))),
            _ => None,
        }
    }

    /// The kernel's entry for what is left to do. It points into `self` and `scratch`, neither of
    /// which may move or be changed until its completion.
    pub(crate) fn prepare(&mut self, scratch: &mut Scratch) -> squeue::Entry {
        let fd = types::Fd(self.handle.as_raw_fd());
        match &mut self.kind {
            Kind::Read { offset, buffer } => {
                let (pointer, length) = spare(buffer);
                opcode::Read::new(fd, pointer, length).offset(*offset).build()
            }
            Kind::Write { offset, segments } => {
                segments.describe(&mut scratch.iovecs);
                match scratch.iovecs.as_slice() {
                    [one] => opcode::Write::new(fd, one.iov_base.cast(), kernel_length(one.iov_len))
                        .offset(*offset)
                        .build(),
                    many => opcode::Writev::new(fd, many.as_ptr(), kernel_length(many.len()))
                        .offset(*offset)
                        .build(),
                }
            }
            Kind::SyncData => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Kind::Allocate { offset, length } => opcode::Fallocate::new(fd, *length).offset(*offset).build(),
            Kind::Receive { buffer, whole } => {
                let (pointer, length) = spare(buffer);
                let flags = if *whole { libc::MSG_WAITALL } else { 0 };
                opcode::Recv::new(fd, pointer, length).flags(flags).build()
            }
            Kind::Send { segments } => {
                segments.describe(&mut scratch.iovecs);
                // WAITALL: newer kernels (5.19) continue a short send themselves.
                let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
                match scratch.iovecs.as_mut_slice() {
                    [one] => opcode::Send::new(fd, one.iov_base.cast(), kernel_length(one.iov_len))
                        .flags(flags)
                        .build(),
                    many => {
                        scratch.message.msg_iov = many.as_mut_ptr();
                        scratch.message.msg_iovlen = many.len();
                        opcode::SendMsg::new(fd, &raw const scratch.message)
                            .flags(flags.cast_unsigned())
                            .build()
                    }
                }
            }
            Kind::Accept => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build(),
            Kind::Connect { address } => {
                opcode::Connect::new(fd, address.pointer(), address.length()).build()
            }
            Kind::Doorbell { count } => {
                opcode::Read::new(fd, std::ptr::from_mut(count).cast(), 8).offset(0).build()
            }
        }
    }

    /// Takes note of the kernel's result for the entry last prepared.
    pub(crate) fn advance(&mut self, result: i32) -> Progress {
        let Ok(count) = usize::try_from(result) else {
            return self.failed(-result);
        };
        match &mut self.kind {
            Kind::Read { offset, buffer } => {
                if count == 0 {
                    return Progress::Finished(Err(io::Error::from(io::ErrorKind::UnexpectedEof)));
                }
                filled(buffer, count);
                *offset += count as u64;
                if buffer.len() == buffer.capacity() {
                    return Progress::Finished(Ok(Output::Buffer(std::mem::take(buffer))));
                }
                self.rest()
            }
            Kind::Write { segments, .. } | Kind::Send { segments } if count == 0 => {
                debug_assert!(segments.remaining() > 0, "an empty transfer never reaches the kernel");
                Progress::Finished(Err(io::Error::from(io::ErrorKind::WriteZero)))
            }
            Kind::Write { offset, segments } => {
                segments.advance(count);
                *offset += count as u64;
                if segments.remaining() == 0 { done() } else { self.rest() }
            }
            Kind::Send { segments } => {
                segments.advance(count);
                if segments.remaining() == 0 { done() } else { self.rest() }
            }
            Kind::Receive { buffer, .. } => {
                filled(buffer, count);
                Progress::Finished(Ok(Output::Buffer(std::mem::take(buffer))))
            }
            // SAFETY: the kernel has just opened this descriptor for us; nobody else knows it.
            Kind::Accept => Progress::Finished(Ok(Output::Accepted(unsafe { OwnedFd::from_raw_fd(result) }))),
            Kind::SyncData | Kind::Allocate { .. } | Kind::Connect { .. } => done(),
            Kind::Doorbell { .. } => self.rest(),
        }
    }

    fn rest(&self) -> Progress {
        if self.cancelled { Progress::Finished(Err(cancelled())) } else { Progress::Continue }
    }

    fn failed(&self, errno: i32) -> Progress {
        match errno {
            // A signal, or a worker told to stop for a cancellation.
            libc::EINTR if self.can_restart() => self.rest(),
            _ => Progress::Finished(Err(io::Error::from_raw_os_error(errno))),
        }
    }

    /// A connect goes on in the background when interrupted; starting over would answer EALREADY.
    fn can_restart(&self) -> bool {
        !matches!(self.kind, Kind::Connect { .. })
    }
}

pub(crate) fn cancelled() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}

fn done() -> Progress {
    Progress::Finished(Ok(Output::Done))
}

fn kernel_length(length: usize) -> u32 {
    u32::try_from(length).expect("transfers are cut to CALL_BYTES_MAX")
}

/// The unused part of a buffer, as much of it as one call may fill.
fn spare(buffer: &mut BytesMut) -> (*mut u8, u32) {
    let spare = buffer.spare_capacity_mut();
    (spare.as_mut_ptr().cast(), kernel_length(spare.len().min(CALL_BYTES_MAX)))
}

fn filled(buffer: &mut BytesMut, count: usize) {
    let length = buffer.len() + count;
    assert!(length <= buffer.capacity(), "the kernel filled more than it was given");
    // SAFETY: the kernel has initialized `count` bytes from the old length on (`prepare` pointed
    // it there), and they lie within the capacity.
    unsafe { buffer.set_len(length) };
}
