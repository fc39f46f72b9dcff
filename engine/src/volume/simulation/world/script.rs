//! What tests have the world do, step by step or until something has come about.

use super::{Faults, MEMBERS, SECOND_KEY, World, data_key};
use crate::request::{IoError, IoReply, IoRequest};
use crate::volume::simulation::model_member::ModelMember;
use crate::volume::{MemberIndex, Standing, Tag, VolumeState};
use bytes::Bytes;
use std::time::Duration;
use trivet_model::{BLOCK_SIZE, BLOCK_SIZE_U64, BlockRange, MemberState, VolumeRecord};
use trivet_wire::Message;

/// Tags of requests that are not the consumer's, from here on.
pub(super) const ASKED: u64 = 1 << 40;

impl World {
    /// No more faults: everything asked is answered, and members are at rest.
    pub(in crate::volume::simulation) fn settle(&mut self) {
        let Faults { planted, source_fails, verified, .. } = self.faults;
        let source_fails = if source_fails > 0 { u32::MAX } else { 0 };
        self.faults = Faults { planted, source_fails, verified, ..Faults::default() };
        for member in &mut self.members {
            (member.full, member.bad_read) = (0, 0);
        }
        for _ in 0..200_000 {
            self.step(0);
            let open = self.core.state() == VolumeState::Open && self.core.standing() == Standing::Open;
            if open && self.is_quiet() {
                return;
            }
        }
        panic!(
            "does not come to rest: {:?} {:?}\n{:#?}",
            self.core.status(self.now()),
            self.client.in_flight(),
            self.core
        );
    }

    /// Whether nothing is asked or on its way.
    fn is_quiet(&self) -> bool {
        let links = self.links.iter().all(|link| link.to_member.is_empty() && link.to_engine.is_empty());
        let busy = self.members.iter().any(ModelMember::is_busy);
        links && !busy && self.client.in_flight() == 0 && self.core.is_idle()
    }

    /// Until a member that was cut off is in sync no more, and nothing is on its way.
    pub(in crate::volume::simulation) fn wait_until_dropped(&mut self, member: usize) {
        for _ in 0..200_000 {
            self.step(0);
            if !self.core.in_sync().contains(MemberIndex(member)) && self.is_quiet() {
                return;
            }
        }
        panic!("it is not dropped: {:?}", self.core.status(self.now()));
    }

    pub(in crate::volume::simulation) fn read_all(&mut self) -> Vec<u8> {
        loop {
            let opening = self.openings;
            let (tag, request) = self.client.ask_all(self.time);
            self.image_tag = Some(tag);
            self.core.submit(self.now(), Tag(tag), request);
            self.settle();
            match self.image.take() {
                Some(image) => return image,
                // The engine had been fenced, and did not know it yet.
                None => assert!(self.openings > opening, "the whole volume can be read"),
            }
        }
    }

    /// Closes the volume and answers whether everything could be finished.
    pub(in crate::volume::simulation) fn close(&mut self, patience: Duration) -> bool {
        self.core.close(self.now(), patience);
        for _ in 0..200_000 {
            if self.core.state().is_over() {
                assert_eq!(self.client.in_flight(), 0, "everything is answered when a volume is closed");
                return self.core.closed_cleanly();
            }
            // Not `step`, which would open the volume again.
            self.time += 1 + self.random.below(20) as u64;
            let member = self.random.below(MEMBERS);
            self.connect(member);
            self.deliver_to_member(member);
            self.execute(member);
            self.deliver_to_engine(member);
            if self.random.once_in(4) {
                self.authorize();
                self.fetch();
                self.core.tick(self.now());
            }
            self.perform();
        }
        panic!("does not close: {:?}", self.core.status(self.now()));
    }

    /// The consumer asks for a part of a block to be changed, which must be read first.
    pub(in crate::volume::simulation) fn patch(&mut self) {
        self.zero(1);
    }

    /// It asks for so many sectors to be zeroed, from the first.
    pub(in crate::volume::simulation) fn zero(&mut self, sectors: usize) {
        let (tag, request) = self.client.ask_to_zero(self.time, sectors);
        self.core.submit(self.now(), Tag(tag), request);
        self.perform();
    }

    /// Time passes, in which nobody answers.
    pub(in crate::volume::simulation) fn pass(&mut self, time: Duration) {
        self.time += u64::try_from(time.as_millis()).unwrap();
        self.core.tick(self.now());
        self.perform();
    }

    /// A member gets all that was sent to it, and answers.
    pub(in crate::volume::simulation) fn answer(&mut self, member: usize) {
        while !self.links[member].to_member.is_empty() || self.members[member].is_busy() {
            self.deliver_to_member(member);
            self.execute(member);
        }
        while !self.links[member].to_engine.is_empty() {
            self.deliver_to_engine(member);
            self.perform();
        }
    }

    /// What is on its way to a member, or lies there.
    pub(in crate::volume::simulation) fn asked_of(&self, member: usize) -> Vec<&Message> {
        let frames = self.members[member].pending().iter().chain(&self.links[member].to_member);
        frames.map(|frame| &frame.message).collect()
    }

    /// A member that does not come back by itself.
    pub(in crate::volume::simulation) fn cut_off(&mut self, member: usize) {
        self.break_link(member);
        self.links[member].wanted = false;
    }

    pub(in crate::volume::simulation) fn grow(&mut self, blocks: u64) {
        let (tag, _) = self.client.ask_flush(self.time);
        self.core.grow(self.now(), Tag(tag), blocks);
        self.perform();
    }

    /// A larger volume is imported, and from a larger source, which has zeros beyond what it has otherwise. Not
    /// for the consumer, who knows of no such blocks.
    pub(in crate::volume::simulation) fn enlarge(&mut self, blocks: u64, source_blocks: u64) {
        self.record.0.blocks = blocks;
        self.members.iter_mut().for_each(|member| member.size = blocks);
        let import = self.record.0.import.as_mut().expect("it is imported");
        import.bytes = source_blocks * BLOCK_SIZE_U64;
    }

    /// From now on the source fails once in so many times.
    pub(in crate::volume::simulation) fn let_source_fail(&mut self, once_in: u32) {
        self.faults.source_fails = once_in;
    }

    /// Blocks are filled with a byte, of which the consumer's record of what it wrote knows nothing.
    pub(in crate::volume::simulation) fn fill(&mut self, range: BlockRange, byte: u8) {
        let block = Bytes::from(vec![byte; BLOCK_SIZE]);
        let segments = range.blocks().map(|_| block.clone()).collect();
        let offset = range.start * BLOCK_SIZE_U64;
        self.submit(IoRequest::Write { offset, segments, force_unit_access: false });
    }

    /// Asks for something in the consumer's name.
    pub(in crate::volume::simulation) fn submit(&mut self, request: IoRequest) {
        let (tag, _) = self.client.ask_flush(self.time);
        self.core.submit(self.now(), Tag(tag), request);
        self.perform();
    }

    /// Asks for something, and answers what comes of it.
    pub(in crate::volume::simulation) fn ask(&mut self, request: IoRequest) -> Result<IoReply, IoError> {
        let tag = ASKED + self.time;
        self.core.submit(self.now(), Tag(tag), request);
        self.perform();
        self.wait_until("an answer", |world| world.answers.contains_key(&tag));
        self.answers.remove(&tag).expect("it has come")
    }

    /// The volume is to go over to another data key.
    pub(in crate::volume::simulation) fn rekey(&mut self) {
        let key = data_key(SECOND_KEY);
        if self.record.0.key != Some(key.id()) && self.record.0.next_key.is_none() {
            self.record.0.next_key = Some(key.id());
            self.record.1.0 += 1;
        }
        let (tag, _) = self.client.ask_flush(self.time);
        self.core.rekey(self.now(), Tag(tag), key);
        self.perform();
    }

    /// Until something has come about.
    pub(in crate::volume::simulation) fn wait_until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..200_000 {
            if is_so(self) {
                return;
            }
            self.step(0);
        }
        panic!("{what} does not come about: {:?}", self.core.status(self.now()));
    }

    pub(in crate::volume::simulation) fn in_sync(&self) -> impl Iterator<Item = &ModelMember> {
        let in_sync = self.record.0.members.iter().zip(&self.members);
        in_sync.filter(|(member, _)| member.state == MemberState::InSync).map(|(_, member)| member)
    }

    pub(in crate::volume::simulation) fn recorded(&self) -> &VolumeRecord {
        &self.record.0
    }

    pub(in crate::volume::simulation) fn flush(&mut self) {
        let (tag, request) = self.client.ask_flush(self.time);
        self.core.submit(self.now(), Tag(tag), request);
        self.perform();
    }

    /// Everything loses power at once; a new engine opens the volume.
    pub(in crate::volume::simulation) fn lose_power(&mut self) {
        for member in &mut self.members {
            member.power_lost(&mut self.random);
        }
        self.open();
    }

    /// The authority answers one question.
    pub(in crate::volume::simulation) fn ask_authority(&mut self) {
        self.authorize();
        self.perform();
    }
}
