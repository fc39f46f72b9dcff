//! Copies from a source to a target, with many requests in flight on both sides.

use super::failures::CopyError;
use super::source::{Source, SourceEvent};
use super::target::Target;
use crate::failure::{Exit, Failure};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use trivet_images::schedule::{Piece, Schedule, runs_in};

const PIECES_MAX: usize = 16;
/// How often what was copied is made stable and noted down.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);

/// Who watches a copy.
pub(super) trait Watcher {
    /// So much is copied.
    fn copied(&mut self, cursor: u64, elapsed: Duration);
    /// So much is copied and stable.
    fn stable(&mut self, cursor: u64) -> Result<(), Failure>;
}

/// What a copy did.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Copied {
    /// Bytes that were written; the rest was zeros.
    pub(super) data_bytes: u64,
}

struct Copying<'a> {
    source: &'a mut Source,
    target: &'a mut Target,
    schedule: Schedule,
    /// By handle on the target's side: the piece that the write is of.
    writes: HashMap<u64, u64>,
    /// By offset of a piece: writes that are still under way.
    writes_left: HashMap<u64, usize>,
    reads: usize,
    next_handle: u64,
    /// The flush under way, and the cursor when it was asked for.
    flushing: Option<(u64, u64)>,
    copied: &'a mut Copied,
}

/// Copies what the schedule says, and counts it, failed copies included. At the end all is stable.
pub(super) async fn copy(
    source: &mut Source,
    target: &mut Target,
    schedule: Schedule,
    watcher: &mut impl Watcher,
    copied: &mut Copied,
) -> Result<(), CopyError> {
    let mut copying = Copying {
        source,
        target,
        schedule,
        writes: HashMap::new(),
        writes_left: HashMap::new(),
        reads: 0,
        next_handle: 0,
        flushing: None,
        copied,
    };
    copying.run(watcher).await
}

#[allow(
    clippy::disallowed_methods,
    reason = "people are told rates, and what was copied is noted now and then"
)]
fn now() -> Instant {
    Instant::now()
}

impl Copying<'_> {
    async fn run(&mut self, watcher: &mut impl Watcher) -> Result<(), CopyError> {
        let began = now();
        let mut noted = began;
        let (mut from_source, mut from_target) = (Vec::new(), Vec::new());
        let stopped = stop_signal();
        tokio::pin!(stopped);
        loop {
            self.hand_out()?;
            let time = now();
            watcher.copied(self.schedule.cursor(), time - began);
            let done = self.schedule.is_done();
            if self.flushing.is_none() && (done || time - noted >= CHECKPOINT_EVERY) {
                noted = time;
                self.flush()?;
            }
            tokio::select! {
                biased;
                failure = &mut stopped => return Err(CopyError::Interrupted(failure)),
                outcome = self.source.progress(&mut from_source) => outcome?,
                outcome = self.target.progress(&mut from_target) => outcome?,
            }
            for event in from_source.drain(..) {
                self.take_from_source(event)?;
            }
            for handle in from_target.drain(..) {
                if let Some(cursor) = self.take_from_target(handle) {
                    watcher.stable(cursor).map_err(CopyError::Interrupted)?;
                    if cursor == self.schedule.end() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Starts as much as may be under way.
    fn hand_out(&mut self) -> Result<(), CopyError> {
        if let Some((offset, length)) = self.schedule.next_question() {
            self.source.ask(offset, length)?;
        }
        while self.reads + self.writes_left.len() < PIECES_MAX
            && let Some(piece) = self.schedule.next_piece()
        {
            if !piece.zero {
                self.reads += 1;
                self.source.read(piece)?;
            } else if self.target.knows_zeros() {
                self.schedule.done(piece.offset);
            } else {
                let handle = self.handle();
                self.writes.insert(handle, piece.offset);
                self.writes_left.insert(piece.offset, 1);
                self.target.zero(handle, piece)?;
            }
        }
        Ok(())
    }

    fn handle(&mut self) -> u64 {
        self.next_handle += 1;
        self.next_handle
    }

    fn flush(&mut self) -> Result<(), CopyError> {
        let handle = self.handle();
        self.flushing = Some((handle, self.schedule.cursor()));
        self.target.flush(handle)
    }

    fn take_from_source(&mut self, event: SourceEvent) -> Result<(), CopyError> {
        match event {
            SourceEvent::Runs(runs) => self.schedule.answered(runs),
            SourceEvent::Data { offset, data } => {
                self.reads -= 1;
                let mut at = 0;
                let mut left = 0;
                for run in runs_in(&data) {
                    let length = usize::try_from(run.length).unwrap_or(usize::MAX);
                    let piece = Piece { offset: offset + at as u64, length: run.length, zero: run.zero };
                    let part = data.slice(at..at + length);
                    at += length;
                    if piece.zero && self.target.knows_zeros() {
                        continue;
                    }
                    let handle = self.handle();
                    self.writes.insert(handle, offset);
                    left += 1;
                    if piece.zero {
                        self.target.zero(handle, piece)?;
                    } else {
                        self.copied.data_bytes += run.length;
                        self.target.write(handle, piece.offset, part)?;
                    }
                }
                if left == 0 {
                    self.schedule.done(offset);
                } else {
                    self.writes_left.insert(offset, left);
                }
            }
        }
        Ok(())
    }

    /// The cursor that is stable now, if this was a flush.
    fn take_from_target(&mut self, handle: u64) -> Option<u64> {
        if let Some((_, cursor)) = self.flushing.filter(|(flush, _)| *flush == handle) {
            self.flushing = None;
            return Some(cursor);
        }
        if let Some(offset) = self.writes.remove(&handle)
            && let Some(left) = self.writes_left.get_mut(&offset)
        {
            *left -= 1;
            if *left == 0 {
                self.writes_left.remove(&offset);
                self.schedule.done(offset);
            }
        }
        None
    }
}

/// Ends when the user or the system asks to stop.
async fn stop_signal() -> Failure {
    use tokio::signal::unix::{SignalKind, signal};
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    match (interrupt, terminate) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            Failure::new("the copy was stopped", "it was asked to", "run the same command again")
                .exit(Exit::Failed)
        }
        // Without handlers, signals end the process as they always do.
        _ => std::future::pending().await,
    }
}
