//! Why connections end.

/// Why a connection ends.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseReason {
    /// The client said good-bye in the transmission phase.
    #[error("the client disconnected")]
    Disconnected,
    /// The client ended the handshake.
    #[error("the client aborted the handshake")]
    Aborted,
    /// The client's stream ended without a word.
    #[error("the client hung up")]
    HungUp,
    /// The client asked for an export that is not there, in the one way that has no error reply.
    #[error("the client asked for an unknown export")]
    UnknownExport,
    /// [`Connection::shut_down`](super::Connection::shut_down) was called.
    #[error("the server is shutting down")]
    ShutDown,
    /// The client broke the protocol.
    #[error("the client broke the protocol: {0}")]
    Protocol(#[from] Violation),
}

/// How a client broke the protocol, beyond what an error reply could say.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// Flags that were not offered.
    #[error("unknown client flags {0:#x}")]
    ClientFlags(u32),
    /// An option does not begin as it must.
    #[error("option magic {0:#x}")]
    OptionMagic(u64),
    /// More options than anyone needs.
    #[error("too many options")]
    TooManyOptions,
    /// Options other than the export's name need fixed newstyle negotiation.
    #[error("option {0} without fixed newstyle negotiation")]
    OptionBeforeFixedNewstyle(u32),
    /// No export's name is as long.
    #[error("an export name of {0} bytes")]
    ExportNameTooLong(u32),
    /// A request does not begin as it must.
    #[error("request magic {0:#x}")]
    RequestMagic(u32),
}
