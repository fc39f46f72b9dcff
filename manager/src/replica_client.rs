//! The manager's side of the data protocol: a replica server's lifecycle, never volume I/O.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use trivet_model::{Epoch, Generation, PoolId, SnapshotId, Stamp, VolumeId};
use trivet_wire::{
    DecodeError, Decoder, ErrorCode, Frame, Hello, Message, OpenReply, PROTOCOL_VERSION, PoolReport,
    Progress, PullReport, TailEntry, encode,
};

/// Time for a server to answer one request; making a volume waits for a flush.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a replica server did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// It cannot be connected to, or the connection broke.
    #[error("the replica server at {address} does not answer: {cause}")]
    Unreachable {
        /// Where.
        address: String,
        /// The system's words.
        cause: io::Error,
    },
    /// It did not answer in time.
    #[error("the replica server at {address} has not answered for {} s", .waited.as_secs())]
    Silent {
        /// Where.
        address: String,
        /// For how long it was waited for.
        waited: Duration,
    },
    /// Its bytes are no frames.
    #[error("what answers at {address} is no replica server of this version: {cause}")]
    Malformed {
        /// Where.
        address: String,
        /// What is wrong with them.
        cause: DecodeError,
    },
    /// It answered with another message than the protocol has for this request.
    #[error("the replica server at {address} gave no answer that fits the request")]
    Unexpected {
        /// Where.
        address: String,
    },
    /// Another pool answers at the address.
    #[error("pool {found} answers at {address}, where pool {expected} should be")]
    OtherPool {
        /// Where.
        address: String,
        /// The pool meant.
        expected: PoolId,
        /// The pool found.
        found: PoolId,
    },
    /// It refused.
    #[error("the replica server at {address} refused: {detail}")]
    Refused {
        /// Where.
        address: String,
        /// The kind.
        code: ErrorCode,
        /// Its words.
        detail: String,
    },
}

/// A connection to a replica server.
#[derive(Debug)]
pub struct ReplicaConnection {
    address: String,
    stream: TcpStream,
    decoder: Decoder,
    pool: PoolId,
    requests: u64,
    /// Of the volume that it has open for writing.
    generation: Generation,
    epoch: Epoch,
}

impl ReplicaConnection {
    /// Connects and greets. With `expected`, makes sure that it is this pool.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn connect(address: &str, expected: Option<PoolId>) -> Result<Self, ReplicaError> {
        let connecting = tokio::time::timeout(ANSWER_TIMEOUT, TcpStream::connect(address));
        let stream = connecting
            .await
            .or(Err(ReplicaError::Silent { address: address.to_owned(), waited: ANSWER_TIMEOUT }))?
            .map_err(|cause| ReplicaError::Unreachable { address: address.to_owned(), cause })?;
        let mut connection = Self {
            address: address.to_owned(),
            stream,
            decoder: Decoder::new(),
            pool: PoolId::from_bytes([0; 16]),
            requests: 0,
            generation: Generation::ZERO,
            epoch: Epoch(0),
        };
        let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION };
        match connection.request(Message::Hello(hello)).await? {
            Message::HelloReply(reply) => connection.pool = reply.pool,
            _ => return Err(connection.unexpected()),
        }
        match expected {
            Some(expected) if expected != connection.pool => {
                Err(ReplicaError::OtherPool { address: connection.address, expected, found: connection.pool })
            }
            _ => Ok(connection),
        }
    }

    /// The pool that answers here.
    #[must_use]
    pub fn pool(&self) -> PoolId {
        self.pool
    }

    /// Makes an empty replica of a volume, of an encrypted one if it is `tagged`; done already if it is there
    /// with this size.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn create_volume(
        &mut self,
        volume: VolumeId,
        blocks: u64,
        tagged: bool,
    ) -> Result<(), ReplicaError> {
        self.change(Message::CreateVolume { volume, blocks, parent: None, tagged }).await
    }

    /// Makes a replica of a clone, which is read from its parent's replica there; done already if it is there
    /// with this size and parent.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn create_clone(
        &mut self,
        volume: VolumeId,
        blocks: u64,
        of: (VolumeId, SnapshotId),
        tagged: bool,
    ) -> Result<(), ReplicaError> {
        self.change(Message::CreateVolume { volume, blocks, parent: Some(of), tagged }).await
    }

    /// Has a clone's replica make what it reads from its parent its own; how far that is.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn flatten(&mut self, volume: VolumeId) -> Result<PullReport, ReplicaError> {
        match self.request(Message::Flatten { volume }).await? {
            Message::PullReport(report) => Ok(report),
            _ => Err(self.unexpected()),
        }
    }

    /// Opens a replica for writing, as an engine does: whoever had it open before is fenced.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn open_to_write(
        &mut self,
        volume: VolumeId,
        (generation, epoch): (Generation, Epoch),
        session: u64,
    ) -> Result<OpenReply, ReplicaError> {
        (self.generation, self.epoch) = (generation, epoch);
        match self.request(Message::Open { volume, writable: true, session }).await? {
            Message::OpenReply(reply) => Ok(reply),
            _ => Err(self.unexpected()),
        }
    }

    /// Has the replica that is open keep a snapshot.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn create_snapshot(&mut self, id: SnapshotId, cut: Stamp) -> Result<(), ReplicaError> {
        self.change(Message::CreateSnapshot { id, cut }).await
    }

    /// Has the replica that is open let a snapshot go.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn delete_snapshot(&mut self, id: SnapshotId) -> Result<(), ReplicaError> {
        self.change(Message::DeleteSnapshot { id }).await
    }

    /// Closes the replica that is open, of which nothing has changed.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn close(&mut self, progress: Progress) -> Result<(), ReplicaError> {
        self.change(Message::Close { progress }).await
    }

    /// Deletes a replica; done already if it is not there.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn delete_volume(&mut self, volume: VolumeId) -> Result<(), ReplicaError> {
        self.change(Message::DeleteVolume { volume }).await
    }

    /// Grows a replica; done already if it has this size.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn resize_volume(&mut self, volume: VolumeId, blocks: u64) -> Result<(), ReplicaError> {
        self.change(Message::ResizeVolume { volume, blocks }).await
    }

    /// The snapshots that a replica keeps; only this volume can be asked about afterwards.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn snapshots(&mut self, volume: VolumeId) -> Result<Vec<SnapshotId>, ReplicaError> {
        match self.request(Message::Open { volume, writable: false, session: 0 }).await? {
            Message::OpenReply(reply) => Ok(reply.snapshots.into_iter().map(|known| known.id).collect()),
            _ => Err(self.unexpected()),
        }
    }

    /// From now on looks at a volume, as it is or as a snapshot shows it.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn look_at(&mut self, volume: VolumeId, at: Option<SnapshotId>) -> Result<(), ReplicaError> {
        self.snapshots(volume).await?;
        self.change(Message::View { at }).await
    }

    /// Of the volume looked at, what has a stamp above `since`, from block `start` on; and the block to go
    /// on from.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn changed(
        &mut self,
        since: Stamp,
        start: u64,
    ) -> Result<(Vec<TailEntry>, Option<u64>), ReplicaError> {
        match self.request(Message::Changed { since, start }).await? {
            Message::ChangedReply { entries, next } if next.is_none_or(|next| next > start) => {
                Ok((entries, next))
            }
            _ => Err(self.unexpected()),
        }
    }

    /// The pool's state.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub async fn pool_status(&mut self) -> Result<PoolReport, ReplicaError> {
        match self.request(Message::PoolStatus).await? {
            Message::PoolReport(report) => Ok(report),
            _ => Err(self.unexpected()),
        }
    }

    async fn change(&mut self, message: Message) -> Result<(), ReplicaError> {
        match self.request(message).await? {
            Message::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    async fn request(&mut self, message: Message) -> Result<Message, ReplicaError> {
        let address = self.address.clone();
        tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(message))
            .await
            .or(Err(ReplicaError::Silent { address, waited: ANSWER_TIMEOUT }))?
    }

    async fn exchange(&mut self, message: Message) -> Result<Message, ReplicaError> {
        self.requests += 1;
        let request = self.requests;
        let mut segments = Vec::new();
        let (generation, epoch) = (self.generation, self.epoch);
        encode(&Frame { request, generation, epoch, message }, &mut segments);
        for segment in segments {
            self.stream.write_all(&segment).await.map_err(|cause| self.broken(cause))?;
        }
        let frame = self.next_frame().await?;
        match frame.message {
            Message::Error { code, detail } if frame.request == request || frame.request == 0 => {
                Err(ReplicaError::Refused { address: self.address.clone(), code, detail })
            }
            message if frame.request == request => Ok(message),
            _ => Err(self.unexpected()),
        }
    }

    async fn next_frame(&mut self) -> Result<Frame, ReplicaError> {
        loop {
            match self.decoder.next() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(cause) => return Err(ReplicaError::Malformed { address: self.address.clone(), cause }),
            }
            let mut buffer = self.decoder.buffer();
            let received = self.stream.read_buf(&mut buffer).await;
            self.decoder.filled(buffer);
            if received.map_err(|cause| self.broken(cause))? == 0 {
                return Err(self.broken(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    fn broken(&self, cause: io::Error) -> ReplicaError {
        ReplicaError::Unreachable { address: self.address.clone(), cause }
    }

    fn unexpected(&self) -> ReplicaError {
        ReplicaError::Unexpected { address: self.address.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;
    use trivet_wire::HelloReply;

    async fn serve_one(listener: TcpListener, answers: Vec<Message>) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut decoder = Decoder::new();
        for message in answers {
            let frame = loop {
                if let Some(frame) = decoder.next().unwrap() {
                    break frame;
                }
                let mut buffer = decoder.buffer();
                stream.read_buf(&mut buffer).await.unwrap();
                decoder.filled(buffer);
            };
            let mut out = Vec::new();
            encode(&Frame { message, ..frame }, &mut out);
            for segment in out {
                stream.write_all(&segment).await.unwrap();
            }
        }
    }

    fn hello(pool: u8) -> Message {
        Message::HelloReply(HelloReply { version: PROTOCOL_VERSION, pool: PoolId::from_bytes([pool; 16]) })
    }

    #[tokio::test]
    async fn refusals_and_strangers_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let full = Message::Error { code: ErrorCode::NoSpace, detail: "full".into() };
        let server = tokio::spawn(serve_one(listener, vec![hello(7), Message::Done, full, hello(7)]));
        let mut connection =
            ReplicaConnection::connect(&address, Some(PoolId::from_bytes([7; 16]))).await.unwrap();
        let volume = VolumeId::from_bytes([1; 16]);
        connection.create_volume(volume, 8, false).await.unwrap();
        let refused = connection.resize_volume(volume, 9).await.unwrap_err();
        assert!(matches!(refused, ReplicaError::Refused { code: ErrorCode::NoSpace, .. }), "{refused}");
        let nonsense = connection.delete_volume(volume).await.unwrap_err();
        assert!(matches!(nonsense, ReplicaError::Unexpected { .. }), "{nonsense}");
        server.await.unwrap();
        let gone = connection.pool_status().await.unwrap_err();
        assert!(matches!(gone, ReplicaError::Unreachable { .. }), "{gone}");
    }

    #[tokio::test]
    async fn another_pool_at_the_address_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(serve_one(listener, vec![hello(8)]));
        let error =
            ReplicaConnection::connect(&address, Some(PoolId::from_bytes([7; 16]))).await.unwrap_err();
        assert!(matches!(error, ReplicaError::OtherPool { .. }), "{error}");
        server.await.unwrap();
    }
}
