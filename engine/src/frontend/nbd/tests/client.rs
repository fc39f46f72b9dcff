//! The client's side of the protocol, written independently of the server's: its own constants.

use std::collections::BTreeMap;

pub(super) const FIXED: u32 = 1;
pub(super) const NO_ZEROES: u32 = 2;

pub(super) const READ: u16 = 0;
pub(super) const WRITE: u16 = 1;
pub(super) const DISC: u16 = 2;
pub(super) const FLUSH: u16 = 3;
pub(super) const TRIM: u16 = 4;
pub(super) const CACHE: u16 = 5;
pub(super) const WRITE_ZEROES: u16 = 6;
pub(super) const BLOCK_STATUS: u16 = 7;

pub(super) const FUA: u16 = 1;
pub(super) const NO_HOLE: u16 = 2;
pub(super) const DF: u16 = 4;
pub(super) const REQ_ONE: u16 = 8;
pub(super) const FAST_ZERO: u16 = 16;

pub(super) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

/// `NBD_OPT_INFO` (6) or `NBD_OPT_GO` (7).
pub(super) fn go(kind: u32, name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    option(kind, &data)
}

/// `NBD_OPT_LIST_META_CONTEXT` (9) or `NBD_OPT_SET_META_CONTEXT` (10).
pub(super) fn meta(kind: u32, name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    option(kind, &data)
}

/// From connect to transmission.
pub(super) fn hello(structured: bool) -> Vec<u8> {
    hello_with(if structured { &["base:allocation"] } else { &[] })
}

/// The same with structured replies and these contexts; without any of both.
pub(super) fn hello_with(contexts: &[&str]) -> Vec<u8> {
    let mut bytes = (FIXED | NO_ZEROES).to_be_bytes().to_vec();
    if !contexts.is_empty() {
        bytes.extend(option(8, b""));
        bytes.extend(meta(10, "", contexts));
    }
    bytes.extend(go(7, "", &[3]));
    bytes
}

pub(super) fn command(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

pub(super) fn write(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = command(flags, WRITE, cookie, offset, u32::try_from(data.len()).unwrap());
    bytes.extend(data);
    bytes
}

/// Takes bytes off a server's output.
pub(super) struct Reader<'bytes>(pub(super) &'bytes [u8]);

impl<'bytes> Reader<'bytes> {
    pub(super) fn take(&mut self, count: usize) -> &'bytes [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    /// The server's greeting.
    pub(super) fn greeting(&mut self) {
        assert_eq!(self.take(16), b"NBDMAGICIHAVEOPT");
        assert_eq!(self.u16(), 3);
    }

    /// One reply to an option: option, reply type, data.
    pub(super) fn option_reply(&mut self) -> (u32, u32, &'bytes [u8]) {
        assert_eq!(self.u64(), 0x0003_e889_0455_65a9);
        let (option, kind, length) = (self.u32(), self.u32(), self.u32());
        (option, kind, self.take(length as usize))
    }

    /// Everything before transmission.
    pub(super) fn skip_handshake(&mut self) {
        self.greeting();
        loop {
            let (option, kind, _) = self.option_reply();
            assert!(kind & (1 << 31) == 0, "option {option} failed with {kind:#x}");
            if (option, kind) == (7, 1) {
                break;
            }
        }
    }
}

/// A reply, put together from its chunks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) error: u32,
    pub(super) message: String,
    pub(super) data: Vec<u8>,
    pub(super) data_chunks: usize,
    pub(super) hole_chunks: usize,
    pub(super) extents: Vec<(u32, u32)>,
    /// The contexts of block status chunks, in their order.
    pub(super) contexts: Vec<u32>,
    done: bool,
}

/// All replies in `reader`, which must be complete, by cookie. `reads`: offset and length of the
/// reads among the requests, by cookie.
pub(super) fn replies(mut reader: Reader<'_>, reads: &BTreeMap<u64, (u64, u32)>) -> BTreeMap<u64, Reply> {
    let mut replies = BTreeMap::<u64, Reply>::new();
    let mut covered = BTreeMap::<u64, u64>::new();
    while !reader.0.is_empty() {
        match reader.u32() {
            0x6744_6698 => {
                let (error, cookie) = (reader.u32(), reader.u64());
                let mut reply = Reply { error, done: true, ..Reply::default() };
                if let Some((_, length)) = reads.get(&cookie).filter(|_| error == 0) {
                    reply.data = reader.take(*length as usize).to_vec();
                    covered.insert(cookie, u64::from(*length));
                }
                assert!(replies.insert(cookie, reply).is_none(), "answered twice");
            }
            0x668e_33ef => {
                let (flags, kind, cookie) = (reader.u16(), reader.u16(), reader.u64());
                let length = reader.u32() as usize;
                let reply = replies.entry(cookie).or_default();
                assert!(!reply.done, "goes on after its end");
                reply.done = flags == 1;
                let payload = Reader(reader.take(length));
                *covered.entry(cookie).or_default() += chunk(reply, kind, payload, reads.get(&cookie));
            }
            magic => panic!("reply magic {magic:#x}"),
        }
    }
    assert!(replies.values().all(|reply| reply.done), "a reply is not complete");
    for (cookie, (_, length)) in reads {
        if replies.get(cookie).is_some_and(|reply| reply.error == 0) {
            assert_eq!(covered[cookie], u64::from(*length), "a read must be covered once, and whole");
        }
    }
    replies
}

/// Takes a chunk's payload in; returns how many bytes of a read it covers.
fn chunk(reply: &mut Reply, kind: u16, mut payload: Reader<'_>, read: Option<&(u64, u32)>) -> u64 {
    match kind {
        1 | 2 => {
            let (start, length) = *read.expect("only reads are answered with data");
            reply.data.resize(length as usize, 0xee);
            let at = usize::try_from(payload.u64() - start).unwrap();
            if kind == 2 {
                let count = payload.u32();
                assert!(count > 0 && payload.0.is_empty());
                reply.data[at..at + count as usize].fill(0);
                reply.hole_chunks += 1;
                return u64::from(count);
            }
            assert!(!payload.0.is_empty());
            reply.data[at..at + payload.0.len()].copy_from_slice(payload.0);
            reply.data_chunks += 1;
            payload.0.len() as u64
        }
        5 => {
            reply.contexts.push(payload.u32());
            while !payload.0.is_empty() {
                reply.extents.push((payload.u32(), payload.u32()));
            }
            0
        }
        0x8001 => {
            reply.error = payload.u32();
            let length = payload.u16();
            reply.message = String::from_utf8(payload.take(length.into()).to_vec()).unwrap();
            assert!(payload.0.is_empty());
            0
        }
        _ => panic!("chunk type {kind}"),
    }
}
