//! Drives one NBD connection over a volume in memory. The fuzz target `nbd_connection` and the
//! engine's own tests include this file; the includer has `nbd` and `request` in scope.

use super::nbd::{CloseReason, Connection, ExportInfo, REQUESTS_MAX, Since, Tag};
use super::request::{IoError, IoReply, IoRequest};
use bytes::Bytes;
use trivet_model::SnapshotId;

const BLOCK: usize = 4096;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A volume in memory that knows which blocks were written.
pub struct RamVolume {
    data: Vec<u8>,
    written: Vec<bool>,
    /// Reads of this block fail.
    pub unreadable_block: Option<usize>,
    /// Writes to blocks from here on fail for want of space.
    pub full_from_block: Option<usize>,
    /// Bytes that may still be read; then the volume is closed.
    pub readable_bytes: usize,
    /// What was asked for, in short.
    pub journal: Vec<String>,
}

impl RamVolume {
    pub fn new(size_bytes: usize) -> Self {
        let blocks = size_bytes.div_ceil(BLOCK);
        Self {
            data: vec![0; size_bytes],
            written: vec![false; blocks],
            unreadable_block: None,
            full_from_block: None,
            readable_bytes: usize::MAX,
            journal: Vec::new(),
        }
    }

    pub fn contents(&self) -> &[u8] {
        &self.data
    }

    /// Carries a request out. What does not lie within the volume is a mistake of the front end.
    pub fn execute(&mut self, request: IoRequest) -> Result<IoReply, IoError> {
        match request {
            IoRequest::Read { offset, length } => self.read(offset, length),
            IoRequest::Write { offset, segments, force_unit_access } => {
                let length: usize = segments.iter().map(Bytes::len).sum();
                self.journal.push(format!("write {offset}+{length} fua={force_unit_access}"));
                let mut at = self.check(offset, length as u64);
                if self.full_from_block.is_some_and(|full| (at + length).div_ceil(BLOCK) > full) {
                    return Err(IoError::NoSpace);
                }
                self.mark(at, length, true);
                for segment in segments {
                    self.data[at..at + segment.len()].copy_from_slice(&segment);
                    at += segment.len();
                }
                Ok(IoReply::Done)
            }
            IoRequest::Flush => {
                self.journal.push("flush".to_owned());
                Ok(IoReply::Done)
            }
            IoRequest::Discard { offset, length } => {
                self.journal.push(format!("discard {offset}+{length}"));
                let start = self.check(offset, length).next_multiple_of(BLOCK);
                let end = (offset + length) as usize / BLOCK * BLOCK;
                if start < end {
                    self.zero(start, end - start);
                }
                Ok(IoReply::Done)
            }
            IoRequest::WriteZeroes { offset, length, force_unit_access, may_unmap } => {
                let flags = format!("fua={force_unit_access} unmap={may_unmap}");
                self.journal.push(format!("zero {offset}+{length} {flags}"));
                let at = self.check(offset, length);
                self.zero(at, length as usize);
                Ok(IoReply::Done)
            }
            IoRequest::Changed { since, offset, length } => {
                self.journal.push(format!("changed {offset}+{length}"));
                assert!(snapshots().iter().any(|known| known.snapshot == since));
                Ok(IoReply::Changed(self.by_block(offset, length, |block| block % 2 == 1)))
            }
            IoRequest::Allocation { offset, length } => {
                self.journal.push(format!("allocation {offset}+{length}"));
                Ok(IoReply::Allocation(self.by_block(offset, length, |block| self.written[block])))
            }
        }
    }

    /// What is said of each block, in lengths of bytes.
    fn by_block(&self, offset: u64, length: u64, is: impl Fn(usize) -> bool) -> Vec<(u64, bool)> {
        let mut at = self.check(offset, length);
        let end = at + length as usize;
        let mut extents = Vec::new();
        while at < end {
            let next = ((at / BLOCK + 1) * BLOCK).min(end);
            extents.push(((next - at) as u64, is(at / BLOCK)));
            at = next;
        }
        extents
    }

    fn read(&mut self, offset: u64, length: u32) -> Result<IoReply, IoError> {
        self.journal.push(format!("read {offset}+{length}"));
        let mut at = self.check(offset, u64::from(length));
        let end = at + length as usize;
        let mut segments = Vec::new();
        self.readable_bytes = self.readable_bytes.checked_sub(end - at).ok_or(IoError::Closed)?;
        while at < end {
            let block = at / BLOCK;
            if self.unreadable_block == Some(block) {
                let (start, end) = (block as u64, block as u64 + 1);
                return Err(IoError::Medium { start, end, cause: "scratched".to_owned() });
            }
            let next = ((block + 1) * BLOCK).min(end);
            segments.push(if self.written[block] {
                Bytes::copy_from_slice(&self.data[at..next])
            } else {
                Bytes::from_static(&ZEROS[..next - at])
            });
            at = next;
        }
        Ok(IoReply::Data(segments))
    }

    fn check(&self, offset: u64, length: u64) -> usize {
        assert!(length > 0 && offset.is_multiple_of(512) && length.is_multiple_of(512));
        assert!(offset.checked_add(length).unwrap() <= self.data.len() as u64);
        offset as usize
    }

    fn mark(&mut self, at: usize, length: usize, written: bool) {
        self.written[at / BLOCK..(at + length).div_ceil(BLOCK)].fill(written);
    }

    fn zero(&mut self, at: usize, length: usize) {
        self.data[at..at + length].fill(0);
        let (start, end) = (at.div_ceil(BLOCK), (at + length) / BLOCK);
        if start < end {
            self.written[start..end].fill(false);
        }
    }
}

/// In which order the volume completes what is handed out in one turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    AtOnce,
    LastFirst,
}

/// A connection with its volume.
pub struct Driver {
    pub connection: Connection,
    pub volume: RamVolume,
    pub order: Order,
    /// All that was sent.
    pub sent: Vec<u8>,
    /// The largest buffer lent out.
    pub buffer_bytes_max: usize,
    held: Vec<(Tag, IoRequest)>,
}

impl Driver {
    pub fn new(export: ExportInfo) -> Self {
        let volume = RamVolume::new(usize::try_from(export.size_bytes).unwrap());
        Self {
            connection: Connection::new(export),
            volume,
            order: Order::AtOnce,
            sent: Vec::new(),
            buffer_bytes_max: 0,
            held: Vec::new(),
        }
    }

    /// Lets the client say `input`, in pieces of the lengths that `splits` repeats. Returns how
    /// much of it was taken.
    pub fn say(&mut self, input: &[u8], splits: &[usize]) -> usize {
        let mut splits = splits.iter().copied().filter(|&split| split > 0).cycle();
        let mut taken = 0;
        self.turn();
        while taken < input.len() && self.connection.wants_input() {
            let mut buffer = self.connection.buffer();
            let room = buffer.capacity() - buffer.len();
            assert!(room > 0);
            self.buffer_bytes_max = self.buffer_bytes_max.max(buffer.capacity());
            let rest = &input[taken..];
            let count = splits.next().unwrap_or(usize::MAX).min(room).min(rest.len());
            buffer.extend_from_slice(&rest[..count]);
            taken += count;
            self.connection.received(buffer);
            self.turn();
        }
        taken
    }

    /// Carries out and sends until nothing more happens.
    pub fn turn(&mut self) {
        loop {
            let before = self.sent.len();
            while let Some((tag, request)) = self.connection.next_request() {
                match self.order {
                    Order::AtOnce => {
                        let reply = self.volume.execute(request);
                        self.connection.complete(tag, reply);
                    }
                    Order::LastFirst => self.held.push((tag, request)),
                }
                assert!(self.connection.requests_in_flight() <= REQUESTS_MAX);
            }
            let completed = !self.held.is_empty();
            while let Some((tag, request)) = self.held.pop() {
                let reply = self.volume.execute(request);
                self.connection.complete(tag, reply);
            }
            let mut out = Vec::new();
            self.connection.take_output(&mut out);
            out.iter().for_each(|segment| self.sent.extend_from_slice(segment));
            if self.sent.len() == before && !completed {
                break;
            }
        }
        let in_flight = self.connection.requests_in_flight();
        assert!(in_flight <= 1, "only a write that is still being sent may be in flight");
        let finished = self.connection.is_finished().is_some();
        assert!(finished != self.connection.wants_input(), "neither goes on nor ends");
    }

    /// The client's stream ends; everything must come to an end.
    pub fn hang_up(&mut self) -> CloseReason {
        self.connection.end_of_input();
        self.turn();
        self.connection.is_finished().expect("ends when the client has gone")
    }
}

/// The export that fuzzing and the corpus use.
pub fn export(read_only: bool) -> ExportInfo {
    ExportInfo {
        name: "disk0".to_owned(),
        description: "a volume".to_owned(),
        size_bytes: 2 << 20,
        read_only,
        changed_since: Vec::new(),
    }
}

/// Two snapshots of it.
pub fn snapshots() -> Vec<Since> {
    let snapshot =
        |(name, id): (&str, u8)| Since { name: name.to_owned(), snapshot: SnapshotId::from_bytes([id; 16]) };
    [("first", 1), ("second", 2)].map(snapshot).to_vec()
}

/// One case: the first byte chooses options, the second how the stream is cut, the rest is what the
/// client sends. However it is cut, the answer is the same; and nothing makes the server fail.
pub fn run(case: &[u8]) {
    let [options, split, stream @ ..] = case else { return };
    let drive = |splits: &[usize], order| {
        let mut driver = Driver::new(ExportInfo { changed_since: snapshots(), ..export(options & 1 != 0) });
        driver.order = order;
        driver.volume.unreadable_block = Some(13);
        driver.volume.full_from_block = Some(500);
        // Thousands of long reads fit into a small case: it must still take little time and memory.
        driver.volume.readable_bytes = 16 << 20;
        driver.say(stream, splits);
        let reason = driver.hang_up();
        assert!(driver.buffer_bytes_max <= 1 << 20, "a buffer of {}", driver.buffer_bytes_max);
        (driver.sent, driver.volume.data, reason)
    };
    let whole = drive(&[usize::MAX], Order::AtOnce);
    let cut = drive(&[usize::from(*split) % 61 + 1, usize::from(*split) * 7 + 1], Order::AtOnce);
    assert!(whole == cut, "the answer depends on how the stream is cut");
    // Overlapping requests in flight at once may come out in any order: only the end is compared.
    assert_eq!(drive(&[usize::MAX], Order::LastFirst).2, whole.2);
}
