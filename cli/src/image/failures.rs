//! What can go wrong with a copy, and on which side.

use crate::failure::{Exit, Failure};
use std::io;

/// A copy that failed.
#[derive(Debug)]
pub(super) enum CopyError {
    /// The source is damaged, or not what it was: the same again would fail again.
    Unusable(Failure),
    /// The source or the target is away, or full, or someone stopped it: it can go on later.
    Interrupted(Failure),
    /// The connection to the volume broke; its engine may be back in a moment.
    VolumeAway(io::Error),
}

impl CopyError {
    /// For where nothing can go on later.
    pub(super) fn into_failure(self) -> Failure {
        match self {
            Self::Unusable(failure) | Self::Interrupted(failure) => failure,
            Self::VolumeAway(error) => volume_away(&error),
        }
    }
}

pub(super) fn volume_away(error: &io::Error) -> Failure {
    Failure::new(
        "the connection to the volume broke",
        error,
        "see whether its engine runs, and its log: trivet status",
    )
}

/// An NBD server's answer to a request, in words.
pub(super) fn errno(number: u32) -> io::Error {
    io::Error::from_raw_os_error(i32::try_from(number).unwrap_or(i32::MAX))
}

/// The volume refused a write.
pub(super) fn refused(number: u32) -> Failure {
    const ENOSPC: u32 = 28;
    let what = "the volume does not take what is imported";
    if number == ENOSPC {
        let next = "free space on the disks of its replicas (trivet status), then run the same command again";
        return Failure::new(what, errno(number), next).exit(Exit::NoSpace);
    }
    Failure::new(what, errno(number), "see why: trivet status")
}
