//! A server in a temporary directory, and a client that speaks the protocol over a real socket.
#![allow(dead_code, reason = "each test binary uses its part")]

use bytes::{Bytes, BytesMut};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;
use trivet_model::{BLOCK_SIZE, BlockRange, Epoch, Generation, PoolId, Stamp, VolumeId};
use trivet_replica::pool::PoolOptions;
use trivet_replica::server::{ServerError, ServerOptions, StopHandle, run};
use trivet_wire::{
    BlockData, Decoder, Encoder, ErrorCode, Frame, Hello, Message, OpenReply, PROTOCOL_VERSION, Progress,
};

pub(crate) const VOLUME: VolumeId = VolumeId::from_bytes([0x51; 16]);

/// Bounds every wait for the server, far above what it takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn options(directory: &Path) -> ServerOptions {
    ServerOptions {
        directory: directory.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        pool: PoolOptions { map_budget_bytes: 16 << 20, capacity_bytes: Some(1 << 30) },
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: StopHandle,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

impl Server {
    pub(crate) fn start(directory: &Path) -> Self {
        let options = options(directory);
        let stop = StopHandle::new();
        let handle = stop.clone();
        let (bound, address) = channel();
        let thread =
            std::thread::spawn(move || run(&options, &handle, |address| bound.send(address).unwrap()));
        match address.recv_timeout(PATIENCE) {
            Ok(address) => Self { address, stop, thread: Some(thread) },
            Err(_) => panic!("the server does not start: {:?}", thread.join()),
        }
    }

    /// Stops in good order.
    pub(crate) fn stop(mut self) {
        self.stop.stop();
        let thread = self.thread.take().unwrap();
        thread.join().unwrap().unwrap();
    }

    pub(crate) fn ask_to_stop(&self) {
        self.stop.stop();
    }

    pub(crate) fn connect(&self) -> Client {
        let mut client = Client::raw(self.address);
        let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION };
        assert!(matches!(client.call(Message::Hello(hello)), Message::HelloReply(_)));
        client
    }

    /// The pool's identity, as it greets with.
    pub(crate) fn pool(&self) -> PoolId {
        let mut client = Client::raw(self.address);
        let hello = Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION };
        match client.call(Message::Hello(hello)) {
            Message::HelloReply(reply) => reply.pool,
            other => panic!("{other:?}"),
        }
    }

    /// A client that has the volume, made if need be, open for writing.
    pub(crate) fn open(&self, generation: u32, session: u64) -> (Client, OpenReply) {
        let mut client = self.connect();
        assert_eq!(
            client.call(Message::CreateVolume {
                volume: VOLUME,
                blocks: 1 << 20,
                parent: None,
                tagged: false
            }),
            Message::Done
        );
        match client.open(generation, session) {
            Message::OpenReply(reply) => (client, reply),
            other => panic!("not opened: {other:?}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || matches!(ended, Ok(Ok(()))), "{ended:?}");
        }
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    decoder: Decoder,
    request: u64,
    pub(crate) generation: u32,
}

impl Client {
    pub(crate) fn raw(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, decoder: Decoder::new(), request: 0, generation: 0 }
    }

    pub(crate) fn frame(&mut self, message: Message) -> Frame {
        self.request += 1;
        let generation = Generation::new(self.generation).unwrap();
        Frame { request: self.request, generation, epoch: Epoch(1), message }
    }

    pub(crate) fn bytes(&mut self, message: Message) -> Vec<u8> {
        let frame = self.frame(message);
        let mut encoder = Encoder::new();
        encoder.push(&frame);
        encoder.take().concat()
    }

    /// Sends, and returns the request's id.
    pub(crate) fn send(&mut self, message: Message) -> u64 {
        let bytes = self.bytes(message);
        self.stream.write_all(&bytes).unwrap();
        self.request
    }

    /// The next frame; `None` once the server has closed.
    pub(crate) fn receive(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return Some(frame);
            }
            let mut buffer: BytesMut = self.decoder.buffer();
            buffer.resize(buffer.capacity(), 0);
            let received = match self.stream.read(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                Err(error) => panic!("nothing comes from the server: {error}"),
            };
            buffer.truncate(received);
            self.decoder.filled(buffer);
            if received == 0 {
                return None;
            }
        }
    }

    pub(crate) fn call(&mut self, message: Message) -> Message {
        let request = self.send(message);
        let frame = self.receive().expect("an answer");
        assert_eq!(frame.request, request, "{:?}", frame.message);
        frame.message
    }

    pub(crate) fn open(&mut self, generation: u32, session: u64) -> Message {
        self.generation = generation;
        self.call(Message::Open { volume: VOLUME, writable: true, session })
    }

    pub(crate) fn write(&mut self, start: u64, sequence: u64, fills: &[u8]) -> Message {
        let message = write(self.generation, start, sequence, fills);
        self.call(message)
    }

    pub(crate) fn flush(&mut self) -> Stamp {
        match self.call(Message::Flush { progress: Progress::default() }) {
            Message::FlushReply(reply) => reply.stable,
            other => panic!("not flushed: {other:?}"),
        }
    }

    /// The blocks' fill bytes; `None` for a hole. Checks that each block is of one byte only.
    pub(crate) fn read(&mut self, start: u64, count: u32) -> Vec<Option<u8>> {
        match self.call(Message::Read { range: BlockRange::new(start, count) }) {
            Message::ReadReply { present, data, .. } => fills(&present, &data, count),
            other => panic!("not read: {other:?}"),
        }
    }

    /// Why the server closes: its last frame before the stream's end.
    pub(crate) fn closed_for(&mut self) -> ErrorCode {
        let frame = self.receive().expect("a reason before the end");
        let Message::Error { code, .. } = frame.message else { panic!("no reason: {frame:?}") };
        assert_eq!(frame.request, 0);
        assert!(self.receive().is_none(), "the server must close");
        code
    }

    pub(crate) fn hang_up(&self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
    }
}

pub(crate) fn fills(present: &[u8], data: &BlockData, count: u32) -> Vec<Option<u8>> {
    assert_eq!(data.verify(), Ok(()));
    let bytes = data.segments.concat();
    let mut blocks = bytes.chunks_exact(BLOCK_SIZE);
    (0..count as usize)
        .map(|index| {
            (present[index / 8] >> (index % 8) & 1 == 1).then(|| {
                let block = blocks.next().unwrap();
                assert!(block.iter().all(|&byte| byte == block[0]), "a torn block");
                block[0]
            })
        })
        .collect()
}

pub(crate) fn stamp(generation: u32, sequence: u64) -> Stamp {
    Stamp::new(Generation::new(generation).unwrap(), sequence).unwrap()
}

pub(crate) fn blocks(fills: &[u8]) -> BlockData {
    let bytes: Vec<u8> = fills.iter().flat_map(|&fill| [fill; BLOCK_SIZE]).collect();
    BlockData::checksummed(vec![Bytes::from(bytes)])
}

pub(crate) fn write(generation: u32, start: u64, sequence: u64, fills: &[u8]) -> Message {
    Message::Write {
        start,
        stamp: stamp(generation, sequence),
        progress: Progress::default(),
        force_unit_access: false,
        data: blocks(fills),
    }
}
