//! What each message means in each state of its connection.

use super::connection::{Session, State};
use super::in_flight::{Answer, Entry};
use super::writers::Promise;
use super::{CloseReason, ConnectionId, Output, PoolFacts, Sessions, SourceAddress, reply};
use crate::planted::{self, PlantedFault};
use crate::pull::{PullOrder, RepairOrder};
use crate::store::{Parent, Request, RequestError, Snapshot, VolumeProgress};
use trivet_model::geometry::BLOCK_SIZE;
use trivet_model::{BlockRange, Generation, Stamp, VolumeId};
use trivet_wire::{BlockData, ErrorCode, Frame, Hello, HelloReply, Message, PROTOCOL_VERSION, Progress};

/// Where an accepted frame came from.
#[derive(Clone, Copy)]
struct From {
    connection: ConnectionId,
    request: u64,
}

/// A request to the store, and what becomes of its answer.
struct Asked {
    request: Request,
    answer: Answer,
    /// Of payload, brought or asked for.
    bytes: usize,
}

impl Asked {
    fn new(request: Request, answer: Answer) -> Self {
        Self { request, answer, bytes: 0 }
    }
}

fn unexpected(detail: &str) -> CloseReason {
    CloseReason::Ours { code: ErrorCode::Unexpected, detail: detail.to_owned() }
}

fn malformed(detail: &str) -> CloseReason {
    CloseReason::Ours { code: ErrorCode::Malformed, detail: detail.to_owned() }
}

impl Sessions {
    /// Carries a request out, or says why the connection must end.
    pub(super) fn dispatch(
        &mut self,
        connection: ConnectionId,
        frame: Frame,
        pool: &dyn PoolFacts,
        out: &mut Vec<Output>,
    ) -> Result<(), CloseReason> {
        let from = From { connection, request: frame.request };
        let Some(known) = self.connections.get_mut(connection) else { return Ok(()) };
        match (&mut known.state, frame.message) {
            (State::Greeting, Message::Hello(hello)) => self.greet(from, &hello, out),
            (State::Greeting, _) => Err(unexpected("a connection begins with Hello")),
            (State::Ready, Message::Open { volume, writable: true, session }) => {
                let asked = Promise { generation: frame.generation, epoch: frame.epoch, session };
                self.open_to_write(from, volume, asked, pool, out)
            }
            (State::Ready, Message::Open { volume, writable: false, .. }) => {
                let message = reply::opened(volume, self.identity.boot, pool);
                if matches!(message, Message::OpenReply(_)) {
                    known.enter(State::Open(Session {
                        volume,
                        writable: false,
                        generation: frame.generation,
                        epoch: frame.epoch,
                        at: None,
                        progress: Progress::default(),
                    }));
                }
                out.push(known.frame(connection, from.request, message));
                Ok(())
            }
            (State::Ready, Message::Progress(_)) => {
                out.push(known.frame(connection, from.request, Message::Done));
                Ok(())
            }
            (State::Ready, message) => self.administer(from, message, pool, out),
            (State::Open(session), message) if session.writable => {
                if frame.generation < session.generation {
                    let detail = format!("generation {} is open", session.generation);
                    out.push(known.error(connection, from.request, ErrorCode::Fenced, detail));
                    return Ok(());
                }
                if frame.generation > session.generation {
                    return Err(unexpected("a generation must be opened before it is used"));
                }
                if frame.epoch < session.epoch {
                    return Err(unexpected("an epoch does not go back"));
                }
                session.epoch = frame.epoch;
                self.write(from, message, pool, out)
            }
            (State::Open(_), message) => self.read(from, message, pool, out),
            (State::Opening(_), _) => Err(unexpected("the volume is still being opened")),
            (State::Closing { .. }, _) => Err(unexpected("the volume is being closed")),
            (State::Closed, _) => Ok(()),
        }
    }

    fn greet(&mut self, from: From, hello: &Hello, out: &mut Vec<Output>) -> Result<(), CloseReason> {
        if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
            let Hello { version_min, version_max } = hello;
            return Err(CloseReason::Ours {
                code: ErrorCode::Version,
                detail: format!(
                    "this server speaks version {PROTOCOL_VERSION}, not {version_min} to {version_max}"
                ),
            });
        }
        let pool = self.identity.pool;
        let Some(known) = self.connections.get_mut(from.connection) else { return Ok(()) };
        known.enter(State::Ready);
        let message = Message::HelloReply(HelloReply { version: PROTOCOL_VERSION, pool });
        out.push(known.frame(from.connection, from.request, message));
        Ok(())
    }

    fn open_to_write(
        &mut self,
        from: From,
        volume: VolumeId,
        asked: Promise,
        pool: &dyn PoolFacts,
        out: &mut Vec<Output>,
    ) -> Result<(), CloseReason> {
        if asked.generation == Generation::ZERO {
            return Err(malformed("generation 0 cannot be opened for writing"));
        }
        let Some(replica) = pool.volume(volume) else {
            self.answer(from, reply::failure(&RequestError::NoSuchVolume(volume)), out);
            return Ok(());
        };
        let durable =
            Promise { generation: replica.generation, epoch: replica.epoch, session: replica.session };
        let superseded = match self.writers.admit(volume, durable, asked, from.connection) {
            Ok(superseded) => superseded,
            Err(fenced) => {
                let message = Message::Error { code: ErrorCode::Fenced, detail: fenced.to_string() };
                self.answer(from, message, out);
                return Ok(());
            }
        };
        if let Some(older) = superseded
            && !planted::is(PlantedFault::KeepOlderSession)
        {
            let detail = format!("generation {} has opened the volume", asked.generation);
            self.close(older, CloseReason::Ours { code: ErrorCode::Fenced, detail }, out);
        }
        if let Some(known) = self.connections.get_mut(from.connection) {
            known.enter(State::Opening(Session {
                volume,
                writable: true,
                generation: asked.generation,
                epoch: asked.epoch,
                at: None,
                progress: Progress::default(),
            }));
        }
        let Promise { generation, epoch, session } = asked;
        let promise = Request::Promise { volume, generation, epoch, session };
        self.submit(from, Asked::new(promise, Answer::Opened { volume }), out);
        Ok(())
    }

    /// Messages to the pool rather than to a volume that is open.
    fn administer(
        &mut self,
        from: From,
        message: Message,
        pool: &dyn PoolFacts,
        out: &mut Vec<Output>,
    ) -> Result<(), CloseReason> {
        let request = match message {
            Message::CreateVolume { volume, blocks, parent, tagged } => {
                let parent = parent.map(|(volume, snapshot)| Parent { volume, snapshot });
                Request::CreateVolume { volume, blocks, parent, tagged }
            }
            Message::Flatten { volume } => {
                out.push(Output::Flatten(from.connection, from.request, volume));
                return Ok(());
            }
            Message::ResizeVolume { volume, blocks } => Request::ResizeVolume { volume, blocks },
            Message::DeleteVolume { volume } if self.writers.is_open(volume) => {
                let detail = format!("volume {volume} is open for writing");
                self.answer(from, Message::Error { code: ErrorCode::Busy, detail }, out);
                return Ok(());
            }
            Message::DeleteVolume { volume } => {
                self.end_readers(volume, "the copy has been deleted", out);
                Request::DeleteVolume { volume }
            }
            Message::PoolStatus => {
                self.answer(from, reply::pool_report(self.identity.pool, pool), out);
                return Ok(());
            }
            _ => return Err(unexpected("no volume is open on this connection")),
        };
        self.submit(from, Asked::new(request, Answer::Done), out);
        Ok(())
    }

    /// Messages on a volume open for writing.
    fn write(
        &mut self,
        from: From,
        message: Message,
        pool: &dyn PoolFacts,
        out: &mut Vec<Output>,
    ) -> Result<(), CloseReason> {
        let Some(known) = self.connections.get_mut(from.connection) else { return Ok(()) };
        let State::Open(session) = &mut known.state else { return Ok(()) };
        let volume = session.volume;
        if let Some(progress) = progress_of(&message) {
            note_progress(session, progress, out);
        }
        if stamp_of(&message).is_some_and(|stamp| stamp.generation() > session.generation) {
            return Err(malformed("a stamp of a generation to come"));
        }
        let asked = match message {
            Message::Write { start, stamp, force_unit_access: stable, data, .. } => {
                if let Err(index) = data.verify() {
                    let detail = format!("block {} arrived changed", start + index as u64);
                    out.push(known.error(from.connection, from.request, ErrorCode::ChecksumOnWire, detail));
                    return Ok(());
                }
                let bytes = data.bytes();
                let BlockData { crcs, tags, segments } = data;
                let request = Request::Write { volume, start, stamp, crcs, tags, segments, stable };
                Asked { request, answer: Answer::Done, bytes }
            }
            Message::Discard { range, stamp, force_unit_access: stable, .. } => {
                Asked::new(Request::Discard { volume, range, stamp, stable }, Answer::Done)
            }
            Message::Flush { .. } => Asked::new(Request::Flush { volume }, Answer::Flushed),
            Message::CreateSnapshot { cut, .. } if cut.generation() > session.generation => {
                return Err(malformed("a cut of a generation to come"));
            }
            Message::CreateSnapshot { id, cut } => {
                let snapshot = Snapshot { id, cut };
                Asked::new(Request::CreateSnapshot { volume, snapshot }, Answer::Done)
            }
            Message::Reset => {
                self.end_readers(volume, "the copy begins anew", out);
                Asked::new(Request::ResetVolume { volume }, Answer::Done)
            }
            Message::DeleteSnapshot { id } => {
                Asked::new(Request::DeleteSnapshot { volume, id }, Answer::Done)
            }
            // The writer grows its own volume under its generation.
            Message::ResizeVolume { volume: named, blocks } if named == volume => {
                Asked::new(Request::ResizeVolume { volume, blocks }, Answer::Done)
            }
            copy @ (Message::Pull { .. } | Message::PullStatus { .. } | Message::Repair { .. }) => {
                self.copy(from, copy, pool, out);
                return Ok(());
            }
            other => return self.read(from, other, pool, out),
        };
        self.submit(from, asked, out);
        Ok(())
    }

    /// Messages about copying from another member.
    fn copy(&mut self, from: From, message: Message, pool: &dyn PoolFacts, out: &mut Vec<Output>) {
        let From { connection, request } = from;
        let Some(known) = self.connections.get_mut(connection) else { return };
        let State::Open(session) = &known.state else { return };
        let (volume, generation, epoch) = (session.volume, session.generation, session.epoch);
        match message {
            Message::Pull { source, boot, address, since, floor, stable } => {
                out.push(Output::TrimTail(volume, stable));
                let blocks = pool.volume(volume).map_or(0, |replica| replica.blocks);
                let order = PullOrder { volume, blocks, since, floor, generation };
                let source = SourceAddress { pool: source, boot: Some(boot), address, epoch };
                out.push(Output::Pull(connection, order, source));
                out.push(known.frame(connection, request, Message::Done));
            }
            Message::Repair { range, source, address } => {
                let bytes = payload_bytes(range);
                known.started(request, bytes);
                let id = self.in_flight.add(Entry { connection, request, bytes, answer: Answer::Done });
                // A repair takes nothing older than what is there: any boot will do.
                let source = SourceAddress { pool: source, boot: None, address, epoch };
                out.push(Output::Repair(connection, id, RepairOrder { volume, range, generation }, source));
            }
            Message::PullStatus { stable } => {
                out.push(Output::TrimTail(volume, stable));
                out.push(Output::ReportPull(connection, request));
            }
            other => unreachable!("{other:?} does not copy"),
        }
    }

    /// Messages on any open volume.
    fn read(
        &mut self,
        from: From,
        message: Message,
        pool: &dyn PoolFacts,
        out: &mut Vec<Output>,
    ) -> Result<(), CloseReason> {
        let Some(known) = self.connections.get_mut(from.connection) else { return Ok(()) };
        let State::Open(session) = &mut known.state else { return Ok(()) };
        let (volume, at) = (session.volume, session.at);
        let asked = match message {
            Message::View { at } => {
                let missing = at.filter(|at| pool.snapshots(volume).iter().all(|known| known.id != *at));
                let answer = match missing {
                    Some(missing) => reply::failure(&RequestError::NoSuchSnapshot(missing)),
                    None => {
                        session.at = at;
                        Message::Done
                    }
                };
                self.answer(from, answer, out);
                return Ok(());
            }
            Message::Read { range } => Asked {
                request: Request::Read { volume, at, range },
                answer: Answer::Blocks,
                bytes: payload_bytes(range),
            },
            Message::Allocation { range } => {
                Asked::new(Request::Allocation { volume, at, range }, Answer::Extents)
            }
            Message::Tail { since, skip } => {
                Asked::new(Request::Tail { volume, since }, Answer::Tail { skip })
            }
            Message::Changed { since, start } => {
                Asked::new(Request::Changed { volume, at, since, start }, Answer::Changed)
            }
            Message::Fetch { range } => Asked {
                request: Request::Fetch { volume, at, range },
                answer: Answer::Fetched,
                bytes: payload_bytes(range),
            },
            Message::Verify { range, stamps_only } => Asked {
                request: Request::Verify { volume, at, range, stamps_only },
                answer: Answer::Verified,
                bytes: if stamps_only { 0 } else { payload_bytes(range) },
            },
            Message::Progress(_) => {
                self.answer(from, Message::Done, out);
                return Ok(());
            }
            Message::Close { .. } => {
                self.begin_close(from, out);
                return Ok(());
            }
            _ => return Err(unexpected("not a request that this session allows")),
        };
        self.submit(from, asked, out);
        Ok(())
    }

    fn begin_close(&mut self, from: From, out: &mut Vec<Output>) {
        let Some(known) = self.connections.get_mut(from.connection) else { return };
        let State::Open(session) = &known.state else { return };
        let session = session.clone();
        if session.writable {
            out.push(Output::EndPull(from.connection));
        }
        known.enter(State::Closing { session, request: from.request });
        self.settle(from.connection, out);
    }

    fn submit(&mut self, from: From, asked: Asked, out: &mut Vec<Output>) {
        let Some(known) = self.connections.get_mut(from.connection) else { return };
        known.started(from.request, asked.bytes);
        let entry = Entry {
            connection: from.connection,
            request: from.request,
            bytes: asked.bytes,
            answer: asked.answer,
        };
        out.push(Output::Submit(self.in_flight.add(entry), asked.request));
    }

    fn answer(&self, from: From, message: Message, out: &mut Vec<Output>) {
        if let Some(known) = self.connections.get(from.connection) {
            out.push(known.frame(from.connection, from.request, message));
        }
    }
}

fn payload_bytes(range: BlockRange) -> usize {
    range.count as usize * BLOCK_SIZE
}

const fn progress_of(message: &Message) -> Option<Progress> {
    match message {
        Message::Write { progress, .. }
        | Message::Discard { progress, .. }
        | Message::Flush { progress }
        | Message::Close { progress }
        | Message::Progress(progress) => Some(*progress),
        _ => None,
    }
}

const fn stamp_of(message: &Message) -> Option<Stamp> {
    match message {
        Message::Write { stamp, .. } | Message::Discard { stamp, .. } => Some(*stamp),
        _ => None,
    }
}

/// Most frames repeat what is known.
fn note_progress(session: &mut Session, progress: Progress, out: &mut Vec<Output>) {
    if progress != session.progress {
        session.progress = progress;
        let Progress { committed, stable } = progress;
        out.push(Output::Progress(session.volume, VolumeProgress { committed, stable }));
    }
}
