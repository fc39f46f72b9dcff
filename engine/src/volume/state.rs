//! A volume's life.
//!
//! ```text
//!              record swapped     all members ready    members alike      close
//! ┌──────────┐      ┌────────────┐      ┌─────────────┐      ┌──────┐      ┌─────────┐      ┌────────┐
//! │ Claiming │─────▶│ Connecting │─────▶│ Reconciling │─────▶│ Open │─────▶│ Closing │─────▶│ Closed │
//! └──────────┘      └────────────┘      └─────────────┘      └──────┘      └─────────┘      └────────┘
//!   │    ▲            │        ▲ a member failed │             │    │
//!   │    │            │        └─────────────────┘             │    │
//!   │    └── stamps of this generation are used up ────────────┘    │
//!   ▼                 └─ read-only: one member ready ──▶ Open       ▼
//! Failed: the record cannot be claimed       Fenced: a newer engine has it (from any state but the last ones)
//!   (from Connecting and Open: the snapshot that is looked at, or reverted to, is not there)
//! ```
//!
//! `Closed`, `Failed` and `Fenced` are final. From every state before `Closing`, closing leads
//! straight to `Closed` unless the volume is open.

use super::{Action, VolumeCore};
use crate::request::IoError;
use std::time::Duration;
use trivet_model::{AuthorityError, KeyId, SnapshotId};

/// Where a volume is in its life; the module draws it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VolumeState {
    /// The record is being read and swapped.
    Claiming,
    /// Members are being connected and opened.
    Connecting,
    /// Members' tails are compared and made alike.
    Reconciling,
    /// Requests are served, or wait for a member that is away.
    Open,
    /// No new requests; what is in flight finishes.
    Closing,
    /// Closed in good order, or given up while closing.
    Closed,
    /// A newer engine has opened the volume.
    Fenced,
    /// It could not be opened, or the snapshot that it was opened as is gone.
    Failed,
}

impl VolumeState {
    /// Whether it is final: nothing will ever be served again.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Fenced | Self::Failed)
    }

    const fn may_become(self, next: Self) -> bool {
        use VolumeState::{Claiming, Closed, Closing, Connecting, Failed, Fenced, Open, Reconciling};
        match (self, next) {
            (Claiming, Connecting | Failed | Fenced | Closed)
            | (Connecting, Reconciling | Open | Fenced | Closed | Failed)
            | (Reconciling, Connecting | Open | Fenced | Closed)
            | (Open, Claiming | Closing | Fenced | Failed)
            | (Closing, Closed | Fenced) => true,
            (
                Claiming | Connecting | Reconciling | Open | Closing | Closed | Fenced | Failed,
                Claiming | Connecting | Reconciling | Open | Closing | Closed | Fenced | Failed,
            ) => false,
        }
    }
}

/// Why a volume could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The record cannot be had.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Someone else swapped the record again and again.
    #[error("the volume's record is being changed by others all the time")]
    Contended,
    /// Nobody holds the volume's data.
    #[error("the volume has no in-sync member")]
    NoMember,
    /// More members than a set can name.
    #[error("the volume has {0} members, more than 32")]
    TooManyMembers(usize),
    /// There is no such snapshot, or no more.
    #[error("the volume has no such snapshot, or has none any more")]
    NoSnapshot,
    /// Nobody writes to it.
    #[error("the volume is a golden image: open it for reading, or clone it")]
    IsImage,
    /// An encrypted volume, and no key.
    #[error("the volume is encrypted, and no key was given")]
    NoKey,
    /// A key, and nothing to use it for.
    #[error("the volume is not encrypted, and a key was given")]
    NotEncrypted,
    /// A key for another volume.
    #[error("the key given is not the volume's: its name is {found}, the volume's key is {expected}")]
    WrongKey {
        /// The volume's.
        expected: KeyId,
        /// Of the one given.
        found: KeyId,
    },
    /// What it keeps of an older key is not what was kept.
    #[error("the volume's older data key {0} does not come out of its record")]
    OlderKey(KeyId),
    /// Between two states.
    #[error("the volume is being reverted to a snapshot: it can be looked at when that is done")]
    Reverting,
    /// There is nothing to go on with.
    #[error("the volume was being reverted to snapshot {0}, which is gone: revert it to another one")]
    NothingToRevertTo(SnapshotId),
    /// Only opening the volume anew helps.
    #[error("the members have lost power during a revert: it goes on when the volume is opened again")]
    LostWhileReverting,
    /// What is not imported yet would read as zeros.
    #[error("the volume is still being imported: until that is done it can be opened for writing only")]
    Importing,
    /// 2^24 openings.
    #[error("the volume's generations are used up")]
    GenerationsUsedUp,
}

/// What would change a volume that is not to be changed.
pub(super) const READ_ONLY: IoError = IoError::Invalid("the volume is open for reading only");

impl VolumeCore {
    /// Whether orders are carried out now; otherwise why not.
    pub(super) const fn check_open(&self) -> Result<(), IoError> {
        match self.state {
            VolumeState::Open => Ok(()),
            VolumeState::Claiming | VolumeState::Connecting | VolumeState::Reconciling => {
                Err(IoError::Invalid("the volume is being opened; try again"))
            }
            VolumeState::Closing | VolumeState::Closed | VolumeState::Failed => Err(IoError::Closed),
            VolumeState::Fenced => Err(IoError::Fenced),
        }
    }

    /// Whether orders are carried out now that change what the volume is.
    pub(super) fn check_changeable(&self) -> Result<(), IoError> {
        self.check_open()?;
        if self.options.read_only {
            Err(READ_ONLY)
        } else if self.is_reverting() {
            Err(IoError::Invalid("the volume is being reverted to a snapshot"))
        } else {
            Ok(())
        }
    }

    /// The only place that changes `state`.
    pub(super) fn transition(&mut self, now: Duration, next: VolumeState) {
        assert!(self.state.may_become(next), "a volume cannot go from {:?} to {next:?}", self.state);
        self.state = next;
        self.actions.push(Action::StateChanged);
        self.note_standing(now);
    }
}
