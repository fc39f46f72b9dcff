//! Replicas made, asked after and deleted by embedders without a manager, on a blocking connection.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;
use trivet_model::{Epoch, Generation, PoolId, VolumeId};
use trivet_wire::{
    DecodeError, Decoder, Encoder, ErrorCode, Frame, Hello, Message, PROTOCOL_VERSION, PoolReport,
};

/// How long a replica server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a replica server, for everything but a volume's data.
#[derive(Debug)]
pub struct Admin {
    stream: TcpStream,
    decoder: Decoder,
    pool: PoolId,
    next_request: u64,
}

/// Why a replica server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It cannot be reached, or hung up.
    #[error("the replica server at {address} cannot be reached: {cause}")]
    Unreachable {
        /// `host:port`.
        address: String,
        /// The system's.
        #[source]
        cause: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the replica server broke: {0}")]
    Io(#[from] io::Error),
    /// It does not speak the protocol.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It refused.
    #[error("the replica server refuses ({code:?}): {detail}")]
    Refused {
        /// The kind.
        code: ErrorCode,
        /// In its words.
        detail: String,
    },
    /// It answered something else.
    #[error("the replica server answers something else than it was asked")]
    Unexpected,
}

impl Admin {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn connect(address: &str) -> Result<Self, AdminError> {
        let unreachable = |cause| AdminError::Unreachable { address: address.to_owned(), cause };
        let mut addresses = address.to_socket_addrs().map_err(unreachable)?;
        let first = addresses.next().ok_or_else(|| unreachable(io::ErrorKind::AddrNotAvailable.into()))?;
        let stream = TcpStream::connect_timeout(&first, TIMEOUT).map_err(unreachable)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let pool = PoolId::from_bytes([0; 16]);
        let mut admin = Self { stream, decoder: Decoder::new(), pool, next_request: 1 };
        let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION };
        match admin.ask(Message::Hello(hello))? {
            Message::HelloReply(reply) => admin.pool = reply.pool,
            _ => return Err(AdminError::Unexpected),
        }
        Ok(admin)
    }

    /// Whose server it is.
    #[must_use]
    pub const fn pool(&self) -> PoolId {
        self.pool
    }

    /// Makes an empty replica of `blocks` blocks, of an encrypted volume if it is `tagged`; done already if it
    /// is there with that size.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn create_volume(&mut self, volume: VolumeId, blocks: u64, tagged: bool) -> Result<(), AdminError> {
        self.change(Message::CreateVolume { volume, blocks, parent: None, tagged })
    }

    /// Deletes a replica; done already if it is not there.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn delete_volume(&mut self, volume: VolumeId) -> Result<(), AdminError> {
        self.change(Message::DeleteVolume { volume })
    }

    /// The pool's state, with the generation that each of its volumes has promised.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn pool_status(&mut self) -> Result<PoolReport, AdminError> {
        match self.ask(Message::PoolStatus)? {
            Message::PoolReport(report) => Ok(report),
            _ => Err(AdminError::Unexpected),
        }
    }

    fn change(&mut self, message: Message) -> Result<(), AdminError> {
        match self.ask(message)? {
            Message::Done => Ok(()),
            _ => Err(AdminError::Unexpected),
        }
    }

    fn ask(&mut self, message: Message) -> Result<Message, AdminError> {
        let request = self.next_request;
        self.next_request += 1;
        let mut encoder = Encoder::new();
        encoder.push(&Frame { request, generation: Generation::ZERO, epoch: Epoch(0), message });
        for segment in encoder.take() {
            self.stream.write_all(&segment)?;
        }
        let frame = self.receive()?;
        match frame.message {
            Message::Error { code, detail } => Err(AdminError::Refused { code, detail }),
            message if frame.request == request => Ok(message),
            _ => Err(AdminError::Unexpected),
        }
    }

    fn receive(&mut self) -> Result<Frame, AdminError> {
        let mut received = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next()? {
                return Ok(frame);
            }
            let mut buffer = self.decoder.buffer();
            let room = received.len().min(buffer.capacity());
            let count = self.stream.read(&mut received[..room])?;
            buffer.extend_from_slice(&received[..count]);
            self.decoder.filled(buffer);
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}
