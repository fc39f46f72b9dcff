//! Random histories, held to what a naive observer keeps.

use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

/// A step of a random history; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Connect,
    Disconnect(usize),
    Open { connection: usize, generation: u32, session: u64 },
    Write { connection: usize, request: u64 },
    Close { connection: usize },
    Complete { index: usize, fails: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Connect),
        1 => (0..8usize).prop_map(Step::Disconnect),
        4 => (0..8usize, 1..6u32, 0..2u64)
            .prop_map(|(connection, generation, session)| Step::Open { connection, generation, session }),
        6 => (0..8usize, 10..20u64).prop_map(|(connection, request)| Step::Write { connection, request }),
        1 => (0..8usize).prop_map(|connection| Step::Close { connection }),
        8 => (0..8usize, prop::bool::weighted(0.1)).prop_map(|(index, fails)| Step::Complete { index, fails }),
    ];
    prop::collection::vec(step, 1..120)
}

/// What a naive observer keeps of a history, to hold the sessions to.
#[derive(Default)]
struct Observer {
    connections: Vec<ConnectionId>,
    /// Generation that each connection asked for last.
    generations: HashMap<ConnectionId, u32>,
    /// (connection, request) that is owed an answer.
    owed: HashSet<(ConnectionId, u64)>,
    seen: usize,
}

impl Observer {
    fn after(&mut self, server: &mut Server) -> Result<(), TestCaseError> {
        for (connection, _) in server.closed.drain(..) {
            self.connections.retain(|&c| c != connection);
            self.owed.retain(|&(c, _)| c != connection);
            server.sessions.disconnected(connection);
        }
        for (to, request, _) in server.sent.drain(..) {
            prop_assert!(request == 0 || self.owed.remove(&(to, request)), "an answer nobody is owed");
        }
        let durable = &server.facts.0[&VOLUME];
        let mut floor = (durable.generation.get(), durable.session);
        for (index, (_, request)) in server.submitted.iter().enumerate() {
            match request {
                Request::Promise { generation, session, .. } => {
                    let promise = (generation.get(), *session);
                    prop_assert!(promise.0 > floor.0 || promise == floor, "{floor:?} then {promise:?}");
                    floor = promise;
                }
                Request::Write { stamp, .. } if index >= self.seen => {
                    prop_assert_eq!(stamp.generation().get(), floor.0, "a fenced write");
                }
                Request::Write { .. } => {}
                other => prop_assert!(false, "never asked for {:?}", other),
            }
        }
        self.seen = server.submitted.len();
        Ok(())
    }

    fn take(&mut self, server: &mut Server, step: Step) {
        let pick = |connections: &[ConnectionId], index: usize| {
            (!connections.is_empty()).then(|| connections[index % connections.len()])
        };
        match step {
            Step::Connect => {
                let connection = server.greeted();
                self.connections.push(connection);
            }
            Step::Disconnect(index) => {
                if let Some(connection) = pick(&self.connections, index) {
                    server.sessions.disconnected(connection);
                    self.connections.retain(|&c| c != connection);
                    self.owed.retain(|&(c, _)| c != connection);
                }
            }
            Step::Open { connection, generation, session } => {
                if let Some(connection) = pick(&self.connections, connection) {
                    self.owed.insert((connection, 2));
                    self.generations.insert(connection, generation);
                    server.say(connection, 2, generation, open(session));
                }
            }
            Step::Write { connection, request } => {
                if let Some(connection) = pick(&self.connections, connection)
                    && let Some(&of) = self.generations.get(&connection)
                {
                    self.owed.insert((connection, request));
                    server.say(connection, request, of, write(of, request));
                }
            }
            Step::Close { connection } => {
                if let Some(connection) = pick(&self.connections, connection)
                    && let Some(&of) = self.generations.get(&connection)
                {
                    self.owed.insert((connection, 3));
                    server.say(connection, 3, of, Message::Close { progress: Progress::default() });
                }
            }
            Step::Complete { index, fails } => self.complete(server, index, fails),
        }
    }

    /// Completes one request; a promise only when nothing older is in flight, as the store does.
    fn complete(&mut self, server: &mut Server, index: usize, fails: bool) {
        if server.submitted.is_empty() {
            return;
        }
        let mut index = index % server.submitted.len();
        if matches!(server.submitted[index].1, Request::Promise { .. }) {
            index = 0;
        }
        self.seen -= 1;
        if !fails && matches!(server.submitted[index].1, Request::Promise { .. }) {
            return server.promise();
        }
        let id = server.submitted.remove(index).0;
        server.complete(id, if fails { Err(RequestError::Medium("EIO".into())) } else { Ok(Reply::Done) });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_any_history_the_fenced_never_write_and_everyone_is_answered_once(steps in steps()) {
        let mut server = Server::new();
        let mut observer = Observer::default();
        for step in steps {
            observer.take(&mut server, step);
            observer.after(&mut server)?;
        }
        while !server.submitted.is_empty() {
            observer.complete(&mut server, 0, false);
            observer.after(&mut server)?;
        }
        prop_assert!(server.sessions.is_drained());
        prop_assert_eq!(&observer.owed, &HashSet::new(), "unanswered");
    }
}
