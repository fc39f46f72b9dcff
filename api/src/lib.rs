//! The control plane's interface: its messages, a client of the manager, and where a cluster
//! keeps its sockets and files. Volume I/O never passes here.
#![forbid(unsafe_code)]

pub mod authority;
pub mod client;
pub mod convert;
pub mod failure;
mod hidden;
pub mod layout;

pub use authority::ManagerAuthority;
pub use client::{Client, ManagerAddress};
pub use convert::MalformedRecord;
pub use failure::{ApiError, FailureKind};
pub use layout::{Layout, LayoutError};

/// The messages, client and server generated from `proto/trivet/v1/manager.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file is the documentation"
)]
pub mod v1 {
    tonic::include_proto!("trivet.v1");
}
