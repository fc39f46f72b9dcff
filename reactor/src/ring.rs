//! The ring itself: its set-up with what the kernel offers, submission, and waiting.

use crate::setup_error::SetupError;
use io_uring::{EnterFlags, IoUring, cqueue, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// Which of the kernel's newer io_uring features are in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// One thread submits (Linux 6.0).
    pub single_issuer: bool,
    /// Completions do not interrupt the thread (5.19).
    pub coop_taskrun: bool,
    /// Completions are worked off only when the loop waits for them (6.1).
    pub defer_taskrun: bool,
    /// A refused submission does not hold up those behind it (5.18).
    pub submit_all: bool,
    /// Submissions need no index array (6.6).
    pub no_sqarray: bool,
}

/// From the best to the plainest; a kernel answers EINVAL to what it does not know.
const LADDER: [Features; 5] = {
    const PLAIN: Features = Features {
        single_issuer: false,
        coop_taskrun: false,
        defer_taskrun: false,
        submit_all: false,
        no_sqarray: false,
    };
    const V5_18: Features = Features { submit_all: true, ..PLAIN };
    const V5_19: Features = Features { coop_taskrun: true, ..V5_18 };
    const V6_1: Features = Features { single_issuer: true, defer_taskrun: true, ..V5_18 };
    const V6_6: Features = Features { no_sqarray: true, ..V6_1 };
    [V6_6, V6_1, V5_19, V5_18, PLAIN]
};

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entered {
    /// Look for completions.
    Returned,
    /// A signal came.
    Interrupted,
}

pub(crate) struct Ring {
    uring: IoUring,
    features: Features,
    /// What the submission queue had no room for, in order. Nothing enters the queue past it.
    backlog: VecDeque<squeue::Entry>,
}

impl Ring {
    pub(crate) fn new(entries: u32) -> Result<Self, SetupError> {
        Self::with_ladder(entries, &LADDER)
    }

    fn with_ladder(entries: u32, ladder: &[Features]) -> Result<Self, SetupError> {
        for (step, features) in ladder.iter().enumerate() {
            match build(entries, *features) {
                Ok(uring) => return Self::checked(uring, *features),
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && step + 1 < ladder.len() => {}
                Err(e) => return Err(SetupError::diagnose(e, entries)),
            }
        }
        Err(SetupError::KernelTooOld { missing: "a ring of our plainest kind" })
    }

    fn checked(uring: IoUring, features: Features) -> Result<Self, SetupError> {
        let offered = uring.params();
        let missing = [
            (offered.is_feature_nodrop(), "IORING_FEAT_NODROP"),
            (offered.is_feature_submit_stable(), "IORING_FEAT_SUBMIT_STABLE"),
            (offered.is_feature_fast_poll(), "IORING_FEAT_FAST_POLL"),
            (offered.is_feature_ext_arg(), "IORING_FEAT_EXT_ARG"),
        ]
        .into_iter()
        .find(|(present, _)| !present);
        match missing {
            Some((_, missing)) => Err(SetupError::KernelTooOld { missing }),
            None => Ok(Self { uring, features, backlog: VecDeque::new() }),
        }
    }

    pub(crate) fn features(&self) -> Features {
        self.features
    }

    /// Queues an entry for the next submission. Never fails: what the ring has no room for waits.
    ///
    /// # Safety
    /// All memory the entry points to must stay valid and, if the kernel writes it, otherwise
    /// unused, until its completion has been reaped.
    pub(crate) unsafe fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: the caller's promise is the one that `push` asks for.
        if unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    /// Takes entries that have not reached the submission queue out again.
    pub(crate) fn withdraw_backlog(&mut self) -> impl Iterator<Item = u64> {
        std::mem::take(&mut self.backlog).into_iter().map(|entry| entry.get_user_data())
    }

    /// Whether entries are left that one submission could not take.
    pub(crate) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether the kernel has something to tell, without asking it.
    pub(crate) fn is_ready(&mut self) -> bool {
        let (_, submissions, completions) = self.uring.split();
        !completions.is_empty() || submissions.taskrun() || submissions.cq_overflow()
    }

    /// Submits what is queued, without waiting; no system call if there is nothing to do.
    pub(crate) fn submit(&mut self) -> io::Result<Entered> {
        self.refill();
        let (_, submissions, completions) = self.uring.split();
        let owed = submissions.taskrun() || submissions.cq_overflow();
        if submissions.is_empty() && (!owed || !completions.is_empty()) {
            return Ok(Entered::Returned);
        }
        drop((submissions, completions));
        self.enter(0, None)
    }

    /// Submits what is queued and waits for so many completions, or for the time given.
    pub(crate) fn submit_and_wait(&mut self, want: u32, at_most: Option<Duration>) -> io::Result<Entered> {
        self.refill();
        self.enter(if self.backlog.is_empty() { want } else { 0 }, at_most)
    }

    fn refill(&mut self) {
        let mut submissions = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: `push` of this type had the promise for every entry in the backlog.
            if unsafe { submissions.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    fn enter(&mut self, want: u32, at_most: Option<Duration>) -> io::Result<Entered> {
        let queued = u32::try_from(self.uring.submission().len()).expect("a ring has 32-bit entries");
        let submitter = self.uring.submitter();
        // GETEVENTS also without waiting: deferred completions are worked off only under it.
        let flags = EnterFlags::GETEVENTS;
        let result = match at_most {
            Some(time) => {
                let time = types::Timespec::new().sec(time.as_secs()).nsec(time.subsec_nanos());
                let arguments = types::SubmitArgs::new().timespec(&time);
                let flags = (flags | EnterFlags::EXT_ARG).bits();
                // SAFETY: the argument is of the type EXT_ARG asks for, and outlives the call.
                unsafe { submitter.enter(queued, want, flags, Some(&arguments)) }
            }
            // SAFETY: no argument; the queued entries are covered by `push`'s promise.
            None => unsafe { submitter.enter::<libc::sigset_t>(queued, want, flags.bits(), None) },
        };
        match result {
            Ok(_) => Ok(Entered::Returned),
            Err(e) => match e.raw_os_error() {
                Some(libc::EINTR) => Ok(Entered::Interrupted),
                // EBUSY and EAGAIN: completions must be reaped, or memory come free, first; what
                // was not submitted is still queued.
                Some(libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(Entered::Returned),
                _ => Err(e),
            },
        }
    }

    /// The next completion's user data and result.
    pub(crate) fn reap(&mut self) -> Option<(u64, i32)> {
        let entry: cqueue::Entry = self.uring.completion().next()?;
        Some((entry.user_data(), entry.result()))
    }
}

fn build(entries: u32, features: Features) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_cqsize(entries.saturating_mul(4));
    if features.single_issuer {
        builder.setup_single_issuer();
    }
    if features.coop_taskrun {
        builder.setup_coop_taskrun();
    }
    if features.defer_taskrun {
        builder.setup_defer_taskrun();
    }
    if features.coop_taskrun || features.defer_taskrun {
        builder.setup_taskrun_flag();
    }
    if features.submit_all {
        builder.setup_submit_all();
    }
    if features.no_sqarray {
        builder.setup_no_sqarray();
    }
    builder.build(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_the_ladder_makes_a_ring_that_works() {
        for features in LADDER {
            let mut ring = Ring::with_ladder(4, &[features]).unwrap();
            assert_eq!(ring.features(), features);
            for tag in 0..10 {
                let nop = io_uring::opcode::Nop::new().build().user_data(tag);
                // SAFETY: a no-op points to no memory.
                unsafe { ring.push(nop) };
            }
            let mut seen = Vec::new();
            for _ in 0..20 {
                ring.submit_and_wait(1, Some(Duration::from_secs(5))).unwrap();
                while let Some((tag, result)) = ring.reap() {
                    assert_eq!(result, 0);
                    seen.push(tag);
                }
                if seen.len() == 10 {
                    break;
                }
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>(), "{features:?}");
        }
    }
}
