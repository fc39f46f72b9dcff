//! Where a copy goes.

use super::failures::{CopyError, refused};
use crate::failure::{Exit, Failure};
use crate::nbd::NbdClient;
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use tokio::process::Child;
use trivet_images::schedule::Piece;
use trivet_model::BLOCK_SIZE_U64;
use trivet_nbd::{Finished, Request};

/// What is copied to. Each thing asked for has a handle, by which it is said to be done.
pub(super) enum Target {
    /// A volume, or an image that QEMU writes.
    Nbd(Box<NbdTarget>),
    /// A raw image, new and full of holes.
    File { file: File, done: Vec<u64> },
    /// Whatever takes bytes in order.
    Stream(Box<StreamTarget>),
}

pub(super) struct NbdTarget {
    client: NbdClient,
    /// Whether it holds nothing but zeros, apart from what this copy writes.
    fresh: bool,
    finished: Vec<Finished>,
    /// When it is only compared with: what must be found, by handle.
    expected: Option<HashMap<u64, Expected>>,
    /// Who serves it, where it is our child.
    server: Option<Child>,
}

struct Expected {
    offset: u64,
    /// What it must hold; nothing stands for zeros.
    data: Option<Bytes>,
}

pub(super) struct StreamTarget {
    out: Box<dyn Write>,
    name: &'static str,
    position: u64,
    /// What has come ahead of its turn, by offset; the copy's depth bounds it.
    waiting: BTreeMap<u64, (u64, Part)>,
    done: Vec<u64>,
}

enum Part {
    Data(Bytes),
    Zeros(u64),
}

impl Target {
    /// A volume, or an image served by our child. A fresh one holds zeros.
    pub(super) fn nbd(client: NbdClient, fresh: bool, server: Option<Child>) -> Self {
        let (finished, expected) = (Vec::new(), None);
        Self::Nbd(Box::new(NbdTarget { client, fresh, finished, expected, server }))
    }

    /// A volume that is only read, and must hold what it is told to.
    pub(super) fn comparison(client: NbdClient) -> Self {
        let (finished, expected) = (Vec::new(), Some(HashMap::new()));
        Self::Nbd(Box::new(NbdTarget { client, fresh: false, finished, expected, server: None }))
    }

    pub(super) const fn file(file: File) -> Self {
        Self::File { file, done: Vec::new() }
    }

    pub(super) fn stream(out: Box<dyn Write>, name: &'static str) -> Self {
        let (waiting, done) = (BTreeMap::new(), Vec::new());
        Self::Stream(Box::new(StreamTarget { out, name, position: 0, waiting, done }))
    }

    /// Whether zeros need not be written.
    pub(super) fn knows_zeros(&self) -> bool {
        match self {
            Self::Nbd(nbd) => nbd.fresh && nbd.expected.is_none(),
            Self::File { .. } => true,
            Self::Stream(_) => false,
        }
    }

    pub(super) fn write(&mut self, handle: u64, offset: u64, data: Bytes) -> Result<(), CopyError> {
        match self {
            Self::Nbd(nbd) => nbd.write(handle, offset, data),
            Self::File { file, done } => {
                file.write_all_at(&data, offset).map_err(|error| unwritable("the image", &error))?;
                done.push(handle);
                Ok(())
            }
            Self::Stream(stream) => stream.take(offset, handle, Part::Data(data)),
        }
    }

    pub(super) fn zero(&mut self, handle: u64, piece: Piece) -> Result<(), CopyError> {
        match self {
            Self::Nbd(nbd) => nbd.zero(handle, piece),
            Self::File { done, .. } => {
                done.push(handle);
                Ok(())
            }
            Self::Stream(stream) => stream.take(piece.offset, handle, Part::Zeros(piece.length)),
        }
    }

    pub(super) fn flush(&mut self, handle: u64) -> Result<(), CopyError> {
        match self {
            Self::Nbd(nbd) => nbd.flush(handle),
            Self::File { file, done } => {
                file.sync_data().map_err(|error| unwritable("the image", &error))?;
                done.push(handle);
                Ok(())
            }
            Self::Stream(stream) => {
                stream.out.flush().map_err(|error| unwritable(stream.name, &error))?;
                stream.done.push(handle);
                Ok(())
            }
        }
    }

    /// Takes leave of it, when all is done: QEMU writes what it still keeps.
    pub(super) async fn close(self) -> Result<(), Failure> {
        let Self::Nbd(nbd) = self else { return Ok(()) };
        let broken = |error| Failure::new("cannot finish the image", error, "see the cause above");
        nbd.client.disconnect().await.map_err(broken)?;
        let Some(mut server) = nbd.server else { return Ok(()) };
        let status = server.wait().await.map_err(broken)?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new("cannot finish the image", format!("QEMU ended with {status}"), ""))
    }

    /// Waits until something is done; adds the handles of all that is. Nothing is lost when it is
    /// cancelled.
    pub(super) async fn progress(&mut self, handles: &mut Vec<u64>) -> Result<(), CopyError> {
        let done = match self {
            Self::Nbd(nbd) => return nbd.progress(handles).await,
            Self::File { done, .. } => done,
            Self::Stream(stream) => &mut stream.done,
        };
        if done.is_empty() {
            std::future::pending::<()>().await;
        }
        handles.append(done);
        Ok(())
    }
}

impl NbdTarget {
    fn submit(&mut self, handle: u64, request: Request) -> Result<(), CopyError> {
        self.client.submit(handle, request).map_err(CopyError::VolumeAway)
    }

    fn write(&mut self, handle: u64, offset: u64, data: Bytes) -> Result<(), CopyError> {
        if let Some(expected) = &mut self.expected {
            let length = data.len() as u64;
            expected.insert(handle, Expected { offset, data: Some(data) });
            return self.read_back(handle, offset, length);
        }
        self.submit(handle, Request::Write { offset, data: whole_blocks(data) })
    }

    fn zero(&mut self, handle: u64, piece: Piece) -> Result<(), CopyError> {
        let Piece { offset, length, .. } = piece;
        if let Some(expected) = &mut self.expected {
            expected.insert(handle, Expected { offset, data: None });
            return self.read_back(handle, offset, length);
        }
        let blocks = u32::try_from(length.next_multiple_of(BLOCK_SIZE_U64)).unwrap_or(u32::MAX);
        self.submit(handle, Request::WriteZeroes { offset, length: blocks })
    }

    fn read_back(&mut self, handle: u64, offset: u64, length: u64) -> Result<(), CopyError> {
        let length = u32::try_from(length.next_multiple_of(BLOCK_SIZE_U64)).unwrap_or(u32::MAX);
        self.submit(handle, Request::Read { offset, length })
    }

    fn flush(&mut self, handle: u64) -> Result<(), CopyError> {
        self.submit(handle, Request::Flush)
    }

    async fn progress(&mut self, handles: &mut Vec<u64>) -> Result<(), CopyError> {
        self.client.progress(&mut self.finished).await.map_err(CopyError::VolumeAway)?;
        for finished in std::mem::take(&mut self.finished) {
            if finished.error != 0 {
                return Err(CopyError::Interrupted(refused(finished.error)));
            }
            if let Some(expected) = self.expected.as_mut().and_then(|all| all.remove(&finished.handle)) {
                compare(&expected, &finished.data)?;
            }
            handles.push(finished.handle);
        }
        Ok(())
    }
}

fn compare(expected: &Expected, found: &[u8]) -> Result<(), CopyError> {
    let wanted = expected.data.as_deref().unwrap_or_default();
    let (start, rest) = found.split_at(wanted.len().min(found.len()));
    let differs = start
        .iter()
        .zip(wanted)
        .position(|(found, wanted)| found != wanted)
        .or_else(|| rest.iter().position(|byte| *byte != 0).map(|at| start.len() + at));
    let Some(at) = differs else { return Ok(()) };
    Err(CopyError::Unusable(
        Failure::new(
            "the volume does not hold what the source holds",
            format!("they differ at byte {}", expected.offset + at as u64),
            "someone may have written to one of them meanwhile; import it again",
        )
        .exit(Exit::Data),
    ))
}

/// The last block of a source may be a part of one; a volume has whole ones.
fn whole_blocks(data: Bytes) -> Bytes {
    let block = usize::try_from(BLOCK_SIZE_U64).unwrap_or(usize::MAX);
    let whole = data.len().next_multiple_of(block);
    if whole == data.len() {
        return data;
    }
    let mut padded = BytesMut::from(&data[..]);
    padded.resize(whole, 0);
    padded.freeze()
}

impl StreamTarget {
    fn take(&mut self, offset: u64, handle: u64, part: Part) -> Result<(), CopyError> {
        self.waiting.insert(offset, (handle, part));
        while let Some((handle, part)) = self.waiting.remove(&self.position) {
            let written = match &part {
                Part::Data(data) => self.out.write_all(data).map(|()| data.len() as u64),
                Part::Zeros(length) => write_zeros(&mut self.out, *length).map(|()| *length),
            };
            self.position += written.map_err(|error| unwritable(self.name, &error))?;
            self.done.push(handle);
        }
        Ok(())
    }
}

fn write_zeros(out: &mut dyn Write, length: u64) -> std::io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut left = length;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        out.write_all(&ZEROS[..now])?;
        left -= now as u64;
    }
    Ok(())
}

fn unwritable(what: &str, error: &std::io::Error) -> CopyError {
    let next = match error.kind() {
        std::io::ErrorKind::StorageFull => "free space there (df -h), or choose another place",
        std::io::ErrorKind::BrokenPipe => "whoever read it has gone",
        _ => "see the cause above",
    };
    let exit = if error.kind() == std::io::ErrorKind::StorageFull { Exit::NoSpace } else { Exit::Failed };
    CopyError::Interrupted(Failure::new(format!("cannot write {what}"), error, next).exit(exit))
}
