//! The engine: the only writer of an attached volume, next to its consumer.
//!
//! - A hypervisor embeds it: [`Volume::open`], requests with a callback, as futures or through a
//!   [`CompletionQueue`] with an eventfd, [`Volume::close`]. See `examples/embedded.rs`.
//! - A process serves a volume over NBD: [`Engine`].
//!
//! Within: [`volume`] is the pure core that decides, without I/O or clock; the rest performs, on one
//! io_uring thread per volume: `link` keeps a connection to each member, [`frontend`] speaks to
//! clients, `handover` takes requests from other threads, `errands` makes the calls that block.
#![forbid(unsafe_code)]

pub mod admin;
mod authority;
mod completion_queue;
mod embedded;
mod errands;
mod event_loop;
pub mod frontend;
mod handover;
mod import_source;
mod io_future;
mod link;
mod process;
pub mod request;
pub mod volume;

pub use authority::MemoryAuthority;
pub use completion_queue::{Completion, CompletionQueue, QueueFull};
pub use embedded::{CloseError, OpenError, OpenOptions, Volume};
pub use frontend::status_socket::EngineReport;
pub use io_future::IoFuture;
pub use process::{Engine, EngineError, EngineOptions, StopHandle};
pub use request::{IoError, IoReply, IoRequest};
pub use trivet_reactor::{SetupError, SocketError};
