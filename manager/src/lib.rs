//! The manager: the configuration authority of a cluster, and on one machine the supervisor of its
//! processes. Volume I/O never passes here and never waits for it.
//!
//! - [`store`]: keys and values with compare-and-swap; [`records`]: what is kept in it;
//! - [`supervisor`]: starts and watches replica servers and engines;
//! - [`control`]: the one owner of changes, which turns records into running processes;
//! - [`service`]: the gRPC face of it all; [`server`]: the process.
#![forbid(unsafe_code)]

pub mod control;
pub mod engine_report;
mod group;
pub mod records;
pub mod replica_client;
pub mod server;
pub mod service;
pub mod store;
pub mod supervisor;

pub use server::{ManagerOptions, ServerError};
