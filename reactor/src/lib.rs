//! The one event loop of the data path: files, sockets, timers and wake-ups on one thread, driven
//! by io_uring.
//!
//! A [`Reactor`] is a cheap handle; clones drive the same ring. An owner asks for a [`Source`]
//! (its mailbox), starts operations under tokens of its choosing, calls [`Reactor::poll`] once per
//! turn of its loop, and takes what has finished out of its mailbox:
//!
//! ```no_run
//! use bytes::BytesMut;
//! use trivet_reactor::{Handle, Options, Output, Reactor, Wait};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let reactor = Reactor::new(Options::default())?;
//! let source = reactor.source();
//! let file = Handle::from(std::os::fd::OwnedFd::from(std::fs::File::open("data")?));
//! reactor.read_at(source, 7, &file, 0, BytesMut::with_capacity(4096));
//! loop {
//!     reactor.poll(Wait::Forever)?;
//!     while let Some(done) = reactor.take(source) {
//!         if let (7, Ok(Output::Buffer(bytes))) = (done.token, done.result) {
//!             println!("{} bytes", bytes.len());
//!             return Ok(());
//!         }
//!     }
//! }
//! # }
//! ```
//!
//! An operation owns its buffers and its file handle from the call that starts it until the
//! kernel has finished with them; dropping the reactor cancels what is in flight and waits for it.

mod clock;
mod direct;
mod handle;
mod limits;
mod mailbox;
mod operation;
mod reactor;
mod ring;
mod segments;
mod setup_error;
mod shortcut;
mod slab;
mod socket;
mod socket_address;
mod socket_error;
mod spin;
mod timers;
mod waker;

pub use handle::Handle;
pub use limits::raise_file_handle_limit;
pub use mailbox::{Completion, Output, Source};
pub use reactor::{Options, Reactor, Sent, Wait};
pub use ring::Features;
pub use setup_error::SetupError;
pub use shortcut::{connect_shortcut, listen_shortcut, prepare_shortcut};
pub use socket::{listen, local_address, prepare_accepted, socket};
pub use socket_address::SocketAddress;
pub use socket_error::SocketError;
pub use waker::Waker;
