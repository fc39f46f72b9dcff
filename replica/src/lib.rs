//! The replica server: keeps replicas of many volumes in one disk's pool.
#![forbid(unsafe_code)]

pub mod meta;
pub mod planted;
pub mod pool;
pub mod pull;
pub mod server;
pub mod session;
pub mod store;
