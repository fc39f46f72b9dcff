//! The pool: thin, checksummed, journaled block storage for many volumes, as a synchronous state
//! machine. It holds no clock, socket or thread: requests, disk completions and checkpoint results
//! go in; [`Action`]s come out.

mod request;

pub use request::{
    Action, AllocationExtent, CheckpointJob, CheckpointOutcome, GroupLoad, GroupsLoaded, PoolStatistics,
    ReadBlocks, Reply, Request, RequestError, RequestId, TailExtent, VolumeProgress, VolumeStatistics,
};
