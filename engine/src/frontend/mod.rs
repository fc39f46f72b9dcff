//! What every front end adapts to: one small set of requests in bytes.

pub mod nbd;
