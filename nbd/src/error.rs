//! What a server can do wrong.

/// Why a connection cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The greeting is another protocol's, or of before 2011.
    #[error("what listens there is no newstyle NBD server")]
    NoServer,
    /// The export cannot be had.
    #[error("the server has no export '{export}' for us: {said}")]
    NoExport {
        /// Its name.
        export: String,
        /// The server's words, or its error's number.
        said: String,
    },
    /// The name, or what is asked for, is longer than the protocol can say.
    #[error("{what} is too long for NBD")]
    TooLong {
        /// The thing.
        what: &'static str,
    },
    /// An answer in the handshake is malformed.
    #[error("the server's answer in the handshake makes no sense: {what}")]
    BadHandshake {
        /// Its fault.
        what: &'static str,
    },
    /// A reply begins with something else.
    #[error("the server's reply begins with {found:#010x}, which is no reply's beginning")]
    BadMagic {
        /// What came.
        found: u32,
    },
    /// A reply to nothing.
    #[error("the server answers request {handle}, which was not asked")]
    NotAsked {
        /// The reply's handle.
        handle: u64,
    },
    /// A reply's chunk is longer than any can rightly be.
    #[error("the server announces a chunk of {length} bytes")]
    ChunkTooLong {
        /// What it announced.
        length: u32,
    },
    /// A chunk's kind or length does not fit its request.
    #[error("the server answers request {handle} with a chunk of type {kind} and {length} bytes")]
    BadChunk {
        /// The reply's handle.
        handle: u64,
        /// The chunk's type.
        kind: u16,
        /// Its length.
        length: u32,
    },
    /// Bytes beside those that were asked for, or twice the same.
    #[error("the server answers request {handle} with {length} bytes at {offset}, which are not wanted")]
    BadPlace {
        /// The reply's handle.
        handle: u64,
        /// Where it says that they belong.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// The reply ended early.
    #[error("the server answers request {handle} with {found} of {wanted} bytes")]
    Incomplete {
        /// The reply's handle.
        handle: u64,
        /// What came.
        found: u64,
        /// What was asked for.
        wanted: u64,
    },
}
