//! Growing a file: allocate, write zeros where that is asked for, sync.
//!
//! Allocation alone leaves extents that the file system must mark as written at each first write,
//! which costs a journal transaction there and makes that write about three times slower.
//!
//! ```text
//!   Waiting ──► Allocating ──► Zeroing ──► Syncing ──► over
//!                    ├────────────┼───────────┴──► Failing (until nothing is in flight) ──► over
//! ```

use crate::{DiskError, DiskToken};
use bytes::Bytes;
use std::io;
use trivet_model::{BLOCK_SIZE, BlockArena};
use trivet_reactor::{Handle, Reactor, Source};

/// Written at once, and how many such writes are in flight: few, as whatever else the device is asked
/// for waits behind them.
const ZEROS_BYTES: usize = 128 << 10;
const ZEROS_DEPTH: usize = 2;

pub(super) struct Extension {
    token: DiskToken,
    length: u64,
    zeros: Zeros,
    old_length: u64,
    state: State,
    in_flight: usize,
}

/// Whether the new part is written with zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    Wanted,
    /// Somebody waits for the space.
    Spared,
    /// The file system cannot allocate in another way.
    Required,
}

enum State {
    Waiting,
    Allocating,
    Zeroing { next: u64, zeros: Bytes },
    Syncing,
    Failing(DiskError),
}

/// What to do after a step.
pub(super) enum Step {
    /// Start these; possibly none, while others are in flight.
    Run(Vec<Request>),
    /// The file is as long as asked for, and that is stable.
    Finished,
    /// Nothing is in flight any more, and the file must be cut back.
    Failed(DiskError),
}

pub(super) enum Request {
    Allocate { offset: u64, length: u64 },
    Write { offset: u64, zeros: Bytes },
    Sync,
}

impl Request {
    pub(super) fn start(self, reactor: &Reactor, source: Source, token: u64, file: &Handle) {
        match self {
            Self::Allocate { offset, length } => reactor.allocate(source, token, file, offset, length),
            Self::Write { offset, zeros } => reactor.write_at(source, token, file, offset, vec![zeros]),
            Self::Sync => reactor.sync_data(source, token, file),
        }
    }
}

impl Extension {
    pub(super) fn new(token: DiskToken, length: u64, written: bool) -> Self {
        let zeros = if written { Zeros::Wanted } else { Zeros::Spared };
        Self { token, length, zeros, old_length: 0, state: State::Waiting, in_flight: 0 }
    }

    pub(super) fn token(&self) -> DiskToken {
        self.token
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// From now on it writes no more zeros than it must.
    pub(super) fn hurry(&mut self) {
        if self.zeros == Zeros::Wanted {
            self.zeros = Zeros::Spared;
        }
    }

    /// Goes on after one of its requests has `ended`; the first call, without one, starts it.
    pub(super) fn advance(&mut self, device_length: u64, ended: Option<io::Result<()>>) -> Step {
        match ended {
            None if self.length <= device_length => return Step::Finished,
            None => {
                self.old_length = device_length;
                self.state = State::Allocating;
                let length = self.length - device_length;
                return self.run(vec![Request::Allocate { offset: device_length, length }]);
            }
            Some(result) => {
                self.in_flight -= 1;
                self.note(result);
            }
        }
        match &mut self.state {
            State::Waiting => unreachable!("no request ends before the first is started"),
            State::Allocating if self.zeros == Zeros::Spared => self.sync(),
            State::Allocating => {
                let mut zeros = BlockArena::new().allocate(ZEROS_BYTES / BLOCK_SIZE);
                zeros.resize(ZEROS_BYTES, 0);
                self.state = State::Zeroing { next: self.old_length, zeros: zeros.freeze() };
                self.write_zeros()
            }
            State::Zeroing { .. } => self.write_zeros(),
            State::Syncing => Step::Finished,
            State::Failing(_) if self.in_flight > 0 => Step::Run(Vec::new()),
            State::Failing(error) => Step::Failed(error.clone()),
        }
    }

    /// The first error ends the extension. A file system that cannot allocate ahead (and a block
    /// device, which need not) is no error: writing zeros allocates.
    fn note(&mut self, result: io::Result<()>) {
        let Err(error) = result else { return };
        if matches!(self.state, State::Allocating) && error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            self.zeros = Zeros::Required;
        } else if !matches!(self.state, State::Failing(_)) {
            self.state = State::Failing(self.describe(&error));
        }
    }

    fn write_zeros(&mut self) -> Step {
        let State::Zeroing { next, zeros } = &mut self.state else {
            unreachable!("zeros are written in their own state only")
        };
        let end = if self.zeros == Zeros::Spared { *next } else { self.length };
        let mut requests = Vec::new();
        while *next < end && self.in_flight + requests.len() < ZEROS_DEPTH {
            let length = (end - *next).min(zeros.len() as u64);
            let piece = zeros.slice(..usize::try_from(length).expect("at most the buffer"));
            requests.push(Request::Write { offset: *next, zeros: piece });
            *next += length;
        }
        if requests.is_empty() && self.in_flight == 0 {
            return self.sync();
        }
        self.run(requests)
    }

    fn sync(&mut self) -> Step {
        self.state = State::Syncing;
        self.run(vec![Request::Sync])
    }

    fn run(&mut self, requests: Vec<Request>) -> Step {
        self.in_flight += requests.len();
        Step::Run(requests)
    }

    fn describe(&self, error: &io::Error) -> DiskError {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => DiskError::NoSpace { length: self.length },
            _ => DiskError::Io { operation: "extend", offset: self.old_length, cause: error.to_string() },
        }
    }
}

/// Adds to an extension's error that the file could not be cut back either.
pub(super) fn also(error: DiskError, cut: &io::Error) -> DiskError {
    match error {
        DiskError::Io { operation, offset, cause } => {
            DiskError::Io { operation, offset, cause: format!("{cause}; cutting the file back: {cut}") }
        }
        // Its next step, freeing space, is the same.
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn started(length: u64) -> Extension {
        let mut extension = Extension::new(DiskToken(1), length, true);
        let Step::Run(first) = extension.advance(4096, None) else { panic!("nothing started") };
        assert!(matches!(first[..], [Request::Allocate { offset: 4096, length: l }] if l == length - 4096));
        extension
    }

    fn run(extension: &mut Extension, ended: io::Result<()>) -> Vec<Request> {
        match extension.advance(4096, Some(ended)) {
            Step::Run(requests) => requests,
            Step::Finished => panic!("finished early"),
            Step::Failed(error) => panic!("failed: {error}"),
        }
    }

    fn full() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    #[test]
    fn zeros_cover_the_new_part_once_and_only_then_comes_the_sync() {
        let length = 4096 + 10 * MIB + 8192;
        let mut extension = started(length);
        let mut in_flight = run(&mut extension, Ok(()));
        let mut next = 4096;
        loop {
            assert!(in_flight.len() <= ZEROS_DEPTH);
            match in_flight.remove(0) {
                Request::Write { offset, zeros } => {
                    assert_eq!(offset, next);
                    assert!(zeros.iter().all(|byte| *byte == 0));
                    next += zeros.len() as u64;
                }
                Request::Sync => break,
                Request::Allocate { .. } => panic!("allocated twice"),
            }
            in_flight.extend(run(&mut extension, Ok(())));
        }
        assert_eq!(next, length);
        assert!(in_flight.is_empty());
        assert!(matches!(extension.advance(4096, Some(Ok(()))), Step::Finished));
    }

    #[test]
    fn a_failure_waits_for_what_is_in_flight() {
        let mut extension = started(8 * MIB);
        assert_eq!(run(&mut extension, Ok(())).len(), ZEROS_DEPTH);
        assert_eq!(run(&mut extension, Ok(())).len(), 1);
        assert!(run(&mut extension, full()).is_empty());
        // A later error does not replace the first one.
        let later = Err(io::Error::from_raw_os_error(libc::EIO));
        let Step::Failed(error) = extension.advance(4096, Some(later)) else { panic!("not over") };
        assert_eq!(error, DiskError::NoSpace { length: 8 * MIB });
    }

    #[test]
    fn one_that_is_hurried_writes_no_more_zeros_unless_it_must() {
        let mut extension = started(8 * MIB);
        assert_eq!(run(&mut extension, Ok(())).len(), ZEROS_DEPTH);
        extension.hurry();
        assert!(run(&mut extension, Ok(())).is_empty());
        assert!(matches!(run(&mut extension, Ok(()))[..], [Request::Sync]));

        let mut extension = started(8 * MIB);
        let unsupported = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        assert_eq!(run(&mut extension, Err(unsupported)).len(), ZEROS_DEPTH);
        extension.hurry();
        assert!(matches!(run(&mut extension, Ok(()))[..], [Request::Write { .. }]));
    }

    #[test]
    fn what_is_only_allocated_needs_no_zeros_unless_it_cannot_be_allocated() {
        let begin = |allocated| {
            let mut extension = Extension::new(DiskToken(1), 4096 + MIB, false);
            assert!(matches!(extension.advance(4096, None), Step::Run(_)));
            run(&mut extension, allocated)
        };
        assert!(matches!(begin(Ok(()))[..], [Request::Sync]));
        let unsupported = Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        assert!(begin(unsupported).iter().all(|request| matches!(request, Request::Write { .. })));
    }

    #[test]
    fn allocation_may_be_unsupported_but_not_refused() {
        let mut extension = started(MIB);
        assert_eq!(
            run(&mut extension, Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))).len(),
            ZEROS_DEPTH
        );
        let mut extension = started(MIB);
        assert!(matches!(extension.advance(4096, Some(full())), Step::Failed(DiskError::NoSpace { .. })));
        let mut extension = started(MIB);
        let error = io::Error::from_raw_os_error(libc::EIO);
        let Step::Failed(error) = extension.advance(4096, Some(Err(error))) else { panic!("not over") };
        assert!(matches!(error, DiskError::Io { operation: "extend", offset: 4096, .. }));
    }
}
