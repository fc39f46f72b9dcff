//! A volume's one thread: members' links, front ends and the core, turn by turn.
//!
//! A turn takes everything that has happened since the last: frames of members and requests of
//! clients go into the core, its actions become frames and completions, and what they lead to goes in
//! again until nothing more follows. Only then each link and each client gets all it is to get in one
//! send.

use crate::errands::{Errand, Errands, Finished};
use crate::frontend::{Frontend, Port, split_tag};
use crate::handover::{Handover, Seen, Shared};
use crate::import_source::{Fetch, Fetched, ImportSource};
use crate::link::{Link, Thread, member_of};
use crate::volume::{Action, CoreOptions, MemberIndex, SourceError, VolumeCore, VolumeState};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use trivet_reactor::{Reactor, Source, Wait};

/// How long clients have to take their last answers once the volume is over.
const FAREWELL: Duration = Duration::from_secs(2);

/// The token of the wake-up after an errand; links' tokens have a connection's number, above 0.
pub(crate) const ERRAND_DONE: u64 = 0;

/// Everything that the thread owns.
pub(crate) struct EventLoop {
    reactor: Reactor,
    source: Source,
    core: VolumeCore,
    links: Vec<Link>,
    errands: Errands,
    /// Where what is not imported yet comes from; started when it is wanted first.
    import: Option<ImportSource>,
    shared: Arc<Shared>,
    handover: Handover,
    frontends: Vec<Box<dyn Frontend>>,
    actions: Vec<Action>,
    next_tick: Duration,
    closing: bool,
    over_since: Option<Duration>,
}

impl EventLoop {
    pub(crate) fn new(
        reactor: Reactor,
        source: Source,
        options: CoreOptions,
        errands: Errands,
        handover: (Handover, Arc<Shared>),
        frontends: Vec<Box<dyn Frontend>>,
    ) -> Self {
        let core = VolumeCore::new(options, reactor.now());
        let (handover, shared) = handover;
        Self {
            reactor,
            source,
            core,
            links: Vec::new(),
            errands,
            import: None,
            shared,
            handover,
            frontends,
            actions: Vec::new(),
            next_tick: Duration::ZERO,
            closing: false,
            over_since: None,
        }
    }

    /// Runs until the volume was told to close, and has.
    ///
    /// # Errors
    /// The kernel's, when it refuses the ring as such.
    pub(crate) fn run(mut self) -> io::Result<()> {
        self.settle();
        loop {
            let patience = self.patience();
            self.reactor.poll(patience)?;
            self.take_errands();
            self.take_fetched();
            self.take_frames();
            self.advance_links();
            self.take_requests();
            self.tick();
            self.settle();
            if self.is_finished() {
                return Ok(());
            }
        }
    }

    fn patience(&mut self) -> Wait {
        if self.core.has_actions() {
            return Wait::No;
        }
        let now = self.reactor.now();
        let tick = self.core.tick_within().map(|within| {
            // Something may have come up that wants an earlier tick.
            self.next_tick = self.next_tick.min(now + within);
            self.next_tick
        });
        let links = self.links.iter().filter_map(Link::due);
        let farewell = self.over_since.filter(|_| self.closing).map(|since| since + FAREWELL);
        let due = links.chain(tick).chain(farewell).min();
        due.map_or(Wait::Forever, |due| Wait::For(due.saturating_sub(now)))
    }

    const fn thread<'a>(reactor: &'a Reactor, source: Source, now: Duration) -> Thread<'a> {
        Thread { reactor, source, now }
    }

    fn take_errands(&mut self) {
        let now = self.reactor.now();
        let thread = Self::thread(&self.reactor, self.source, now);
        while let Some(finished) = self.errands.finished() {
            match finished {
                Finished::Read(result) => self.core.record_read(now, *result),
                Finished::Swapped(result) => self.core.record_swapped(now, result),
                Finished::Resolved { member, result } => {
                    if let Some(link) = self.links.get_mut(member) {
                        link.resolved(&thread, &mut self.core, result);
                    }
                }
            }
        }
    }

    fn take_fetched(&mut self) {
        while let Some(Fetched { chunk, result }) = self.import.as_mut().and_then(ImportSource::fetched) {
            self.core.source_fetched(self.reactor.now(), chunk, result);
        }
    }

    /// Has a part of the volume's source fetched, from where the record says that it is now.
    fn fetch(&mut self, fetch: Fetch) {
        let import = self.core.record().and_then(|record| record.import.as_ref());
        let started = match import {
            Some(import) if self.import.as_ref().is_some_and(|source| source.is_of(import)) => Ok(()),
            Some(import) => {
                let waker = self.reactor.waker(self.source, ERRAND_DONE);
                ImportSource::start(import.clone(), waker)
                    .map(|source| self.replace_import(source))
                    .map_err(|error| format!("a thread cannot be started: {error}"))
            }
            None => Err("its record names no source any more".to_owned()),
        };
        match (started, &mut self.import) {
            (Ok(()), Some(source)) => source.fetch(fetch),
            (Ok(()), None) => unreachable!("it has been started"),
            (Err(trouble), _) => {
                self.core.source_fetched(self.reactor.now(), fetch.chunk, Err(SourceError::Away(trouble)))
            }
        }
    }

    /// The source is elsewhere now: what the last one owes is asked of this.
    fn replace_import(&mut self, source: ImportSource) {
        let last = self.import.replace(source);
        let owed = last.into_iter().flat_map(ImportSource::into_unanswered);
        if let Some(source) = &mut self.import {
            owed.for_each(|fetch| source.fetch(fetch));
        }
    }

    fn take_frames(&mut self) {
        let thread = Self::thread(&self.reactor, self.source, self.reactor.now());
        while let Some(completion) = self.reactor.take(self.source) {
            if completion.token != ERRAND_DONE
                && let Some(link) = self.links.get_mut(member_of(completion.token))
            {
                link.completed(&thread, &mut self.core, completion);
            }
        }
    }

    fn advance_links(&mut self) {
        if self.core.state().is_over() {
            return;
        }
        let thread = Self::thread(&self.reactor, self.source, self.reactor.now());
        for (member, link) in self.links.iter_mut().enumerate() {
            if let Some(address) = link.advance(&thread, &mut self.core) {
                self.errands.give(Errand::Resolve { member, address });
            }
        }
    }

    fn take_requests(&mut self) {
        let now = self.reactor.now();
        let connections = self.frontends.iter().map(|frontend| frontend.connections()).sum();
        self.handover.turn(&mut Port::new(&mut self.core, now, 0, connections));
        for (index, frontend) in self.frontends.iter_mut().enumerate() {
            frontend.turn(&mut Port::new(&mut self.core, now, index + 1, connections));
        }
        if let Some(patience) = self.handover.take_close() {
            self.close(now, patience);
        }
    }

    fn close(&mut self, now: Duration, patience: Duration) {
        self.closing = true;
        self.handover.shut_down();
        for frontend in &mut self.frontends {
            frontend.shut_down();
        }
        self.core.close(now, patience);
    }

    fn tick(&mut self) {
        let now = self.reactor.now();
        if now < self.next_tick {
            return;
        }
        if let Some(within) = self.core.tick_within() {
            self.core.tick(now);
            self.next_tick = now + within;
            if self.core.state() != VolumeState::Open {
                self.show();
            }
        }
    }

    /// Performs actions, and what follows from them, until nothing is left; then sends.
    fn settle(&mut self) {
        while self.core.has_actions() {
            self.perform();
            let now = self.reactor.now();
            for (index, frontend) in self.frontends.iter_mut().enumerate() {
                frontend.pump(&mut Port::new(&mut self.core, now, index + 1, 0));
            }
        }
        let thread = Self::thread(&self.reactor, self.source, self.reactor.now());
        for link in &mut self.links {
            link.flush(&thread);
        }
        for frontend in &mut self.frontends {
            frontend.flush();
        }
    }

    fn perform(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        self.core.take_actions(&mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Send { to, frame } => {
                    for member in to {
                        self.links[member.0].push(&frame);
                    }
                }
                Action::Complete { tag, result } => match split_tag(tag) {
                    (0, tag) => self.handover.completed(tag, result),
                    (frontend, tag) => self.frontends[frontend - 1].completed(tag, result),
                },
                Action::Connect { member, address } => self.connect(member, address),
                Action::Disconnect { member } => self.links[member.0].hang_up(self.reactor.now()),
                Action::Forget { member } => self.links[member.0].forget(self.reactor.now()),
                Action::ReadRecord => self.errands.give(Errand::Read),
                Action::SwapRecord { expected, record } => {
                    self.errands.give(Errand::Swap { expected, record });
                }
                Action::FetchSource { chunk, offset, length } => {
                    self.fetch(Fetch { chunk, offset, length });
                }
                Action::StateChanged => {
                    if !self.core.is_hydrating() {
                        self.import = None;
                    }
                    self.log_state();
                    self.show();
                }
            }
        }
        self.actions = actions;
    }

    fn connect(&mut self, member: MemberIndex, address: String) {
        if let Some(link) = self.links.get_mut(member.0) {
            return link.readdress(address);
        }
        assert_eq!(member.0, self.links.len(), "members are connected in order");
        self.links.push(Link::new(member, address));
    }

    fn show(&mut self) {
        let state = self.core.state();
        if state.is_over() {
            self.over_since.get_or_insert(self.reactor.now());
        }
        let (reason, clean) = (self.core.reason(), self.core.closed_cleanly());
        self.shared.show(Seen { state, reason, clean, blocks: self.core.blocks() });
    }

    fn log_state(&self) {
        let (state, standing) = (self.core.state(), self.core.standing());
        match self.core.reason() {
            Some(reason) => tracing::info!(?state, ?standing, %reason, "volume"),
            None => tracing::info!(?state, ?standing, "volume"),
        }
    }

    fn is_finished(&self) -> bool {
        let Some(since) = self.over_since.filter(|_| self.closing) else { return false };
        let parted = self.handover.is_finished() && self.frontends.iter().all(|f| f.is_finished());
        parted || self.reactor.now() >= since + FAREWELL
    }
}
