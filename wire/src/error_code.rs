//! Why a request failed, or a connection ends.

/// Kinds of errors; the numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum ErrorCode {
    /// The frame or its fields make no sense; the connection closes.
    Malformed = 1,
    /// No protocol version in common; the connection closes.
    Version = 2,
    /// A message that this state of the connection does not allow; the connection closes.
    Unexpected = 3,
    /// A newer generation has been promised; the session is over for ever.
    Fenced = 4,
    /// The pool has no replica of this volume.
    NoSuchVolume = 5,
    /// The range lies beyond the volume.
    OutOfRange = 6,
    /// A block's checksum did not match its data as received.
    ChecksumOnWire = 7,
    /// A block's checksum did not match its data as read from the medium.
    ChecksumOnMedium = 8,
    /// The device reported an error for this request.
    Medium = 9,
    /// No space is left in the pool.
    NoSpace = 10,
    /// The pool has stopped after an I/O error and must be reopened.
    PoolFailed = 11,
    /// The volume exists with another size, or the size is not allowed.
    BadSize = 12,
    /// More in flight than the replica takes; the connection closes.
    TooMuch = 13,
    /// The volume is open for writing by a session and cannot be deleted.
    Busy = 14,
    /// The server is stopping; connect again later.
    Stopping = 15,
    /// Too many writes lie above the volume's stable stamp: flush, tell progress, and try again.
    TailTooLong = 16,
    /// The source of a repair cannot be reached, or does not have what it should; it is not this
    /// replica that failed.
    Source = 17,
    /// The volume has no such snapshot.
    NoSuchSnapshot = 18,
    /// The snapshot cannot be taken.
    BadSnapshot = 19,
    /// A clone cannot be made of this volume and snapshot here.
    BadParent = 20,
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The kind with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Malformed,
            2 => Self::Version,
            3 => Self::Unexpected,
            4 => Self::Fenced,
            5 => Self::NoSuchVolume,
            6 => Self::OutOfRange,
            7 => Self::ChecksumOnWire,
            8 => Self::ChecksumOnMedium,
            9 => Self::Medium,
            10 => Self::NoSpace,
            11 => Self::PoolFailed,
            12 => Self::BadSize,
            13 => Self::TooMuch,
            14 => Self::Busy,
            15 => Self::Stopping,
            16 => Self::TailTooLong,
            17 => Self::Source,
            18 => Self::NoSuchSnapshot,
            19 => Self::BadSnapshot,
            20 => Self::BadParent,
            _ => return None,
        })
    }
}
