//! The replica server: keeps replicas of many volumes in one disk's pool.

pub mod store;
