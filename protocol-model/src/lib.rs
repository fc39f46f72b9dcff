//! An exhaustive model of the volume protocol (`docs/protocol.md`, ADRs 3, 4 and 7), checked with
//! [`stateright`]. In small worlds every order of everything that can happen is tried, and the design's
//! invariants are checked in every state. Where the model and the page differ, ADR 7 says why.
//!
//! # What is in it
//!
//! Two engine processes that open the volume at any time and crash at any time; two or three replicas; one or
//! two blocks; the record with its compare-and-swap. Writes, reads under a lease, flushes; opening with drops,
//! reconciling by newest version, the wait; dropping by swap; coming back by `since`, `base` and `J`, walk,
//! rewrites of diverged blocks, join, drain, flush, promotion; closing. Connections break, with a request done
//! and its answer lost or with neither; slow members are dropped while they still answer; replicas are
//! killed; hosts lose power and with it any subset of the unflushed writes; the answer to a swap is lost, and a
//! swap that was given up is done later, or never.
//!
//! # What is abstracted
//!
//! - **Time.** What may take long may take for ever and be over at once: a member can be given up at any
//!   time. A lease ends only where someone relies on that: an opener that has waited ends the older
//!   engines' leases on the member that promised it first, and no other.
//! - **Messages.** A request is on its way until it is delivered, in order of stamps for each connection; its
//!   answer comes with the delivery or never. Answers that come late are left out: they would let an
//!   engine know less. Progress goes with writes and flushes, as it is when they arrive.
//! - **The walk.** A block is listed, compared, fetched and placed in one step, blocks in order. A walk does not
//!   survive a restart of its source.
//! - **The device.** Unflushed writes are kept or lost one by one; a flush keeps all. No torn writes, no
//!   bad media, no older copies of a disk: `replica/tests/store_crash.rs` has those.
//! - **Clients.** One write in flight for each block, and no read beside it: the engine orders overlapping
//!   requests (`engine/src/volume/ordering.rs`). Discards are writes.
//! - **Left out:** the epoch (the revision counts), sessions, snapshots (invariant 7), blocks on the medium (9), time to
//!   resume (10), stamps that run out, growing, adding and removing members, repair, migration.
//!   Liveness is not checked, only that the interesting situations are reached ([`model::SIGHTS`]).
//!
//! # What is checked
//!
//! Invariants 1 to 6 and 8 of the design, and that what is flushed is on the medium of every in-sync member, so that
//! it survives the loss of all power. 4 is linearizability for each block (`history.rs`), with two
//! sharper rules: an unacknowledged write of an older engine has taken effect when a newer one serves, or never
//! does; and an acknowledged, unflushed write may be lost only when every member that the record calls in
//! sync has lost power. 6 compares stamps too. 2 is checked as ADR 7 words it.
//!
//! [`bounds::SMALL`] and [`bounds::LARGE`] are the worlds. [`variant::Variant`] has mistakes, each of which must be
//! found (`tests/mistakes.rs`).
//!
//! # What a passed check means
//!
//! That no violation exists within those bounds, but for collisions of 64-bit fingerprints (with 2^24 states, one in
//! 2^17). It says nothing about longer histories, and nothing about the code: the engine's simulation does.
#![forbid(unsafe_code)]

pub mod action;
pub mod bounds;
pub mod check;
mod faults;
pub mod history;
pub mod list;
mod membership;
pub mod model;
mod opening;
pub mod record;
pub mod replica;
mod requests;
pub mod set;
pub mod state;
mod swapping;
pub mod symmetry;
pub mod variant;
