//! Replicas are alike: of states that differ in their numbers only, one is enough.

use crate::set::Set;
use crate::state::{REPLICAS_MAX, State};

/// The state with its replicas in a fixed order.
#[must_use]
pub fn representative(state: &State) -> State {
    let sets = |m: usize| {
        state.engines.map(|engine| {
            let flush = engine.flush.map_or((false, false), |f| (f.awaits.contains(m), f.done.contains(m)));
            let flags: Set = [
                engine.connected.contains(m),
                engine.promised.contains(m),
                engine.leases.contains(m),
                engine.rebooted.contains(m),
                engine.leaving.contains(m),
                flush.0,
                flush.1,
                engine.first_promise.is_some_and(|first| usize::from(first) == m),
            ]
            .into_iter()
            .enumerate()
            .filter_map(|(bit, is)| is.then_some(bit))
            .collect();
            let done: Set = (0..engine.writes.items().len())
                .filter(|index| engine.writes.items()[*index].done.contains(m))
                .collect();
            let resync = crate::state::Resync { source: None, ..engine.resyncs[m] };
            let pulled_by = engine.resyncs.map(|r| r.source.is_some_and(|source| usize::from(source) == m));
            (
                flags,
                done,
                engine.held[m],
                engine.view.members[m],
                resync,
                pulled_by.iter().filter(|is| **is).count(),
            )
        })
    };
    let mut order: [usize; REPLICAS_MAX] = std::array::from_fn(|m| m);
    order.sort_by_cached_key(|&m| (state.record.members[m], state.replicas[m], sets(m)));
    if order.is_sorted() {
        return *state;
    }
    let mut place = [0; REPLICAS_MAX];
    for (to, from) in order.iter().enumerate() {
        place[*from] = to;
    }
    let set = |set: Set| set.iter().map(|m| place[m]).collect::<Set>();
    let number = |m: u8| u8::try_from(place[usize::from(m)]).unwrap_or_default();
    let mut sorted = *state;
    sorted.replicas = order.map(|m| state.replicas[m]);
    sorted.record.members = order.map(|m| state.record.members[m]);
    if let Some(late) = &mut sorted.late {
        late.members = order.map(|m| late.members[m]);
    }
    for engine in &mut sorted.engines {
        engine.view.members = order.map(|m| engine.view.members[m]);
        if let Some(swap) = &mut engine.swap {
            swap.new.members = order.map(|m| swap.new.members[m]);
        }
        for numbers in [
            &mut engine.connected,
            &mut engine.promised,
            &mut engine.leases,
            &mut engine.rebooted,
            &mut engine.leaving,
        ] {
            *numbers = set(*numbers);
        }
        engine.first_promise = engine.first_promise.map(number);
        engine.held = order.map(|m| engine.held[m]);
        for write in engine.writes.items_mut() {
            write.done = set(write.done);
        }
        if let Some(flush) = &mut engine.flush {
            flush.awaits = set(flush.awaits);
            flush.done = set(flush.done);
        }
        engine.resyncs = order.map(|m| engine.resyncs[m]);
        for resync in &mut engine.resyncs {
            resync.source = resync.source.map(number);
        }
    }
    sorted
}
