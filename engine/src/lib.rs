//! The engine: the only writer of an attached volume, next to its consumer.

pub mod frontend;
pub mod request;
pub mod volume;
