//! What is put under load: two real implementations behind one small face.

use super::embedded::EmbeddedTarget;
use super::nbd::NbdTarget;
use super::workload::{Pattern, Step};
use crate::args::Place;
use crate::failure::Failure;
use trivet_nbd::Uri;

/// A finished request.
#[derive(Debug)]
pub(super) struct Done {
    /// As submitted.
    pub(super) handle: u64,
    /// Why it failed, if it did.
    pub(super) error: Option<String>,
}

/// A disk under load.
pub(super) enum Target {
    /// Over NBD.
    Nbd(Box<NbdTarget>),
    /// The engine in this process.
    Embedded(EmbeddedTarget),
}

impl Target {
    pub(super) async fn nbd(uri: &Uri) -> Result<Self, Failure> {
        Ok(Self::Nbd(Box::new(NbdTarget::connect(uri).await?)))
    }

    pub(super) async fn embedded(place: &Place, volume: &str, pattern: Pattern) -> Result<Self, Failure> {
        EmbeddedTarget::open(place, volume, pattern).await.map(Self::Embedded)
    }

    /// For people.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Nbd(nbd) => &nbd.name,
            Self::Embedded(embedded) => &embedded.name,
        }
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Nbd(nbd) => nbd.size(),
            Self::Embedded(embedded) => embedded.size(),
        }
    }

    pub(super) fn is_read_only(&self) -> bool {
        match self {
            Self::Nbd(nbd) => nbd.is_read_only(),
            Self::Embedded(_) => false,
        }
    }

    pub(super) fn can_flush(&self) -> bool {
        match self {
            Self::Nbd(nbd) => nbd.can_flush(),
            Self::Embedded(_) => true,
        }
    }

    /// The server's process, where it can be known.
    pub(super) fn server_pid(&self) -> Option<u32> {
        match self {
            Self::Nbd(nbd) => nbd.server_pid(),
            Self::Embedded(_) => None,
        }
    }

    /// Starts a request; `length` is a read's. Sent by the next [`Target::progress`].
    pub(super) fn submit(&mut self, handle: u64, step: Step, length: u32) -> Result<(), Failure> {
        match self {
            Self::Nbd(nbd) => nbd.submit(handle, step, length),
            Self::Embedded(embedded) => {
                embedded.submit(handle, step, length);
                Ok(())
            }
        }
    }

    /// Waits until at least one request has finished; adds all that have.
    pub(super) async fn progress(&mut self, done: &mut Vec<Done>) -> Result<(), Failure> {
        match self {
            Self::Nbd(nbd) => nbd.progress(done).await,
            Self::Embedded(embedded) => {
                embedded.progress(done).await;
                Ok(())
            }
        }
    }

    /// Takes leave in good order.
    pub(super) async fn close(self) -> Result<(), Failure> {
        match self {
            Self::Nbd(nbd) => nbd.close().await,
            Self::Embedded(embedded) => embedded.close().await,
        }
    }
}
