//! A disk that misbehaves as real ones do, decided by a seed or by the test.

mod cache;
mod crash;
mod faults;

use crate::random::Random;
use crate::{Disk, DiskCompletion, DiskError, DiskImage, DiskOp, DiskToken, memory};
use bytes::BytesMut;
use cache::VolatileCache;
pub use crash::UnflushedWrite;
use faults::FaultPlan;
pub use faults::{Fault, FaultRates, OneIn};
use std::collections::VecDeque;
use trivet_model::BLOCK_SIZE_U64;

/// A disk with a volatile write cache that the test can cut the power of.
///
/// A write takes effect for readers when it completes, and survives a [`crash`](Self::crash) for
/// sure once a flush has completed that was submitted after that. Until then each of its 512-byte
/// sectors survives or not, by the seed's or the test's choice; and so it does while it is still
/// in flight. Overlapping unflushed writes leave either's or neither's sectors.
///
/// The same seed and the same calls give the same results.
#[derive(Debug)]
pub struct FaultyDisk {
    cache: VolatileCache,
    random: Random,
    plan: FaultPlan,
    order: CompletionOrder,
    length_max: u64,
    failed: bool,
    in_flight: VecDeque<InFlight>,
    ready: Vec<DiskCompletion>,
}

/// When operations in flight complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompletionOrder {
    /// Each reap completes all, first in, first out.
    Submission,
    /// Each reap completes some, in any order, as the seed says.
    Random,
    /// An operation completes when the test [releases](FaultyDisk::release) it.
    Held,
}

#[derive(Debug)]
struct InFlight {
    token: DiskToken,
    operation: DiskOp,
    fault: Option<Fault>,
    /// For a flush: the last write that had completed at its submission.
    covers: u64,
}

impl FaultyDisk {
    /// A disk with these contents, all stable, and no faults but its volatile cache; operations
    /// complete in random order.
    #[must_use]
    pub fn new(image: DiskImage, seed: u64) -> Self {
        Self {
            cache: VolatileCache::new(image),
            random: Random::new(seed),
            plan: FaultPlan::default(),
            order: CompletionOrder::Random,
            length_max: u64::MAX,
            failed: false,
            in_flight: VecDeque::new(),
            ready: Vec::new(),
        }
    }

    /// Limits the length it can be extended to; above, there is no space.
    #[must_use]
    pub fn with_length_max(mut self, length_max: u64) -> Self {
        self.length_max = length_max;
        self
    }

    /// Chooses when operations complete; from now on.
    pub fn set_completion_order(&mut self, order: CompletionOrder) {
        self.order = order;
    }

    /// Sets how often faults happen by themselves; from now on.
    pub fn set_fault_rates(&mut self, rates: FaultRates) {
        self.plan.set_rates(rates);
    }

    /// Lets `fault` happen once: to the operation of its kind that is submitted after `after` more
    /// of that kind.
    pub fn inject(&mut self, fault: Fault, after: u64) {
        self.plan.schedule(fault, after);
    }

    /// Whether a write or flush has failed: what the cache still shows may not survive, whatever later
    /// flushes say.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Only failures from now on count.
    pub fn forget_failure(&mut self) {
        self.failed = false;
    }

    /// Lets no fault happen to what is submitted from now on.
    pub fn clear_faults(&mut self) {
        self.plan = FaultPlan::default();
    }

    /// Turns one bit over on the medium, for readers now and after a crash.
    ///
    /// # Panics
    /// When `offset` lies beyond the end, or `bit` above 7.
    pub fn flip_bit(&mut self, offset: u64, bit: u8) {
        self.cache.flip_bit(offset, bit);
    }

    /// What readers see.
    #[must_use]
    pub fn image(&self) -> &DiskImage {
        self.cache.visible()
    }

    /// The operations in flight, in the order of their submission.
    pub fn in_flight(&self) -> impl Iterator<Item = DiskToken> {
        self.in_flight.iter().map(|operation| operation.token)
    }

    /// Carries out one operation; the next reap delivers its completion.
    ///
    /// # Panics
    /// When no operation of that token is in flight.
    pub fn release(&mut self, token: DiskToken) {
        let index = self.in_flight.iter().position(|operation| operation.token == token);
        self.complete(index.expect("only an operation in flight can be released"));
    }

    /// Carries out all operations in flight, in the order of their submission.
    pub fn release_all(&mut self) {
        while !self.in_flight.is_empty() {
            self.complete(0);
        }
    }

    /// Forgets what is in flight and what was not reaped: the process that asked is gone, and what
    /// the device has not taken by now never reaches it.
    pub fn abandon(&mut self) {
        self.in_flight.clear();
        self.ready.clear();
    }

    fn complete(&mut self, index: usize) {
        let Some(InFlight { token, operation, fault, covers }) = self.in_flight.remove(index) else {
            unreachable!("an index among those in flight")
        };
        let result = match operation {
            DiskOp::Read { offset, buffer } => self.read(offset, buffer, fault),
            DiskOp::Write { offset, segments } => self.write(token, offset, &segments.concat(), fault),
            DiskOp::Flush if fault == Some(Fault::FlushError) => {
                self.cache.fail_flush(covers);
                Err(injected("flush", 0))
            }
            DiskOp::Flush => {
                self.cache.flush(covers);
                Ok(BytesMut::new())
            }
            DiskOp::Extend { length, .. } if length <= self.length() => Ok(BytesMut::new()),
            DiskOp::Extend { length, .. } if fault == Some(Fault::NoSpace) || length > self.length_max => {
                Err(DiskError::NoSpace { length })
            }
            DiskOp::Extend { length, .. } => {
                self.cache.grow(length);
                Ok(BytesMut::new())
            }
        };
        self.failed |= matches!(fault, Some(Fault::WriteError | Fault::FlushError));
        self.ready.push(DiskCompletion { token, result });
    }

    fn read(&mut self, offset: u64, buffer: BytesMut, fault: Option<Fault>) -> Result<BytesMut, DiskError> {
        let from = match fault {
            Some(Fault::ReadError) => return Err(injected("read", offset)),
            Some(Fault::MisdirectedRead) => self.another_offset(offset, buffer.capacity() as u64),
            _ => offset,
        };
        Ok(memory::read(self.cache.visible(), from, buffer))
    }

    fn write(
        &mut self,
        token: DiskToken,
        offset: u64,
        data: &[u8],
        fault: Option<Fault>,
    ) -> Result<BytesMut, DiskError> {
        match fault {
            Some(Fault::WriteError) => {
                self.cache.fail_write(token, offset, data, &mut self.random);
                return Err(injected("write", offset));
            }
            Some(Fault::MisdirectedWrite) => {
                let to = self.another_offset(offset, data.len() as u64);
                self.cache.write(token, to, data);
            }
            Some(Fault::FlippedBit) if !data.is_empty() => {
                let mut flipped = data.to_vec();
                flipped[self.random.index(data.len())] ^= 1 << self.random.below(8);
                self.cache.write(token, offset, &flipped);
            }
            _ => self.cache.write(token, offset, data),
        }
        Ok(BytesMut::new())
    }

    /// A block-aligned place that holds `bytes` and is not `offset`, if the device has one.
    fn another_offset(&mut self, offset: u64, bytes: u64) -> u64 {
        let places = (self.length() - bytes) / BLOCK_SIZE_U64 + 1;
        if places == 1 {
            return offset;
        }
        let place = self.random.below(places - 1);
        if place < offset / BLOCK_SIZE_U64 { place * BLOCK_SIZE_U64 } else { (place + 1) * BLOCK_SIZE_U64 }
    }
}

fn injected(operation: &'static str, offset: u64) -> DiskError {
    DiskError::Io { operation, offset, cause: "injected fault".to_owned() }
}

impl Disk for FaultyDisk {
    fn length(&self) -> u64 {
        self.cache.visible().length()
    }

    fn submit(&mut self, token: DiskToken, operation: DiskOp) {
        if let Err(error) = operation.check(self.length()) {
            self.ready.push(DiskCompletion { token, result: Err(error) });
            return;
        }
        let fault = self.plan.next(&operation, &mut self.random);
        let covers = self.cache.last_write();
        self.in_flight.push_back(InFlight { token, operation, fault, covers });
    }

    /// # Panics
    /// In [`CompletionOrder::Held`], when asked to wait for what only the test can release.
    fn reap(&mut self, wait: bool, completions: &mut Vec<DiskCompletion>) {
        match self.order {
            CompletionOrder::Submission => self.release_all(),
            CompletionOrder::Random => {
                let least = usize::from(wait && self.ready.is_empty()).min(self.in_flight.len());
                let count = least + self.random.index(self.in_flight.len() - least + 1);
                for _ in 0..count {
                    let index = self.random.index(self.in_flight.len());
                    self.complete(index);
                }
            }
            CompletionOrder::Held => assert!(
                !wait || !self.ready.is_empty() || self.in_flight.is_empty(),
                "waiting for operations that are held back would take for ever"
            ),
        }
        completions.append(&mut self.ready);
    }
}
