//! A blocking client of the data protocol, as much of it as looking needs. It shares the codec
//! with the product; the codec's golden bytes are tested in `wire`.

use bytes::BufMut;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use trivet_model::{BLOCK_SIZE, BlockRange, Epoch, Generation, VolumeId, block_crc};
use trivet_wire::{Decoder, Encoder, Frame, Hello, Message, PROTOCOL_VERSION, PoolReport};

/// A connection to a replica server, past its greeting.
#[derive(Debug)]
pub struct ReplicaClient {
    stream: TcpStream,
    decoder: Decoder,
    received: VecDeque<Frame>,
    next_request: u64,
}

impl ReplicaClient {
    /// Connects and greets.
    ///
    /// # Errors
    /// When there is no server, or it refuses.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(crate::patience::SOON))?;
        let mut client = Self { stream, decoder: Decoder::new(), received: VecDeque::new(), next_request: 1 };
        let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION };
        match client.call(Message::Hello(hello))? {
            Message::HelloReply(_) => Ok(client),
            other => Err(unexpected(&other)),
        }
    }

    /// Opens a volume without promising anything: for reading only.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn open_to_look(&mut self, volume: VolumeId) -> io::Result<()> {
        match self.call(Message::Open { volume, writable: false, session: 0 })? {
            Message::OpenReply(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The pool's state.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn report(&mut self) -> io::Result<PoolReport> {
        match self.call(Message::PoolStatus)? {
            Message::PoolReport(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads blocks; `None` for a hole. Checksums are verified here too.
    ///
    /// # Errors
    /// When the server refuses, or the blocks are not what their checksums say.
    pub fn read(&mut self, range: BlockRange) -> io::Result<Vec<Option<Vec<u8>>>> {
        let (present, data) = match self.call(Message::Read { range })? {
            Message::ReadReply { present, data, .. } => (present, data),
            other => return Err(unexpected(&other)),
        };
        let mut stored =
            data.segments.iter().flat_map(|segment| segment.chunks_exact(BLOCK_SIZE)).zip(&data.crcs);
        let mut blocks = Vec::new();
        for index in 0..range.blocks().len() {
            if present.get(index / 8).is_none_or(|bits| bits >> (index % 8) & 1 == 0) {
                blocks.push(None);
                continue;
            }
            let Some((bytes, &crc)) = stored.next() else {
                return Err(io::Error::other("fewer blocks came than are marked present"));
            };
            if block_crc(bytes) != crc {
                return Err(io::Error::other(format!(
                    "block {} has a wrong checksum",
                    range.start + index as u64
                )));
            }
            blocks.push(Some(bytes.to_vec()));
        }
        Ok(blocks)
    }

    /// Sends one message and waits for its answer.
    ///
    /// # Errors
    /// When the connection ends or the answer is an error.
    pub fn call(&mut self, message: Message) -> io::Result<Message> {
        let request = self.next_request;
        self.next_request += 1;
        let mut encoder = Encoder::new();
        encoder.push(&Frame { request, generation: Generation::ZERO, epoch: Epoch(0), message });
        for segment in encoder.take() {
            self.stream.write_all(&segment)?;
        }
        loop {
            let frame = self.next_frame()?;
            match frame.message {
                Message::Error { code, detail } => {
                    return Err(io::Error::other(format!("{code:?}: {detail}")));
                }
                message if frame.request == request => return Ok(message),
                // Keep-alives carry no request of ours.
                _ => {}
            }
        }
    }

    fn next_frame(&mut self) -> io::Result<Frame> {
        let mut bytes = vec![0; 256 * 1024];
        loop {
            if let Some(frame) = self.received.pop_front() {
                return Ok(frame);
            }
            let mut buffer = self.decoder.buffer();
            let room = (buffer.capacity() - buffer.len()).min(bytes.len());
            let count = self.stream.read(&mut bytes[..room])?;
            buffer.put_slice(&bytes[..count]);
            self.decoder.filled(buffer);
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            while let Some(frame) = self.decoder.next().map_err(io::Error::other)? {
                self.received.push_back(frame);
            }
        }
    }
}

fn unexpected(message: &Message) -> io::Error {
    io::Error::other(format!("an answer to another question: {message:?}"))
}
