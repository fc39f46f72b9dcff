//! Keeping a process's memory to itself, while it holds a key.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use std::io;

/// Lets this process leave no core file, lets no other process of the user look into its memory, and, where
/// the system allows it, keeps its memory out of swap. Answers whether it could do the last.
///
/// # Errors
/// The system's: a core file might hold the key.
pub fn guard_process() -> io::Result<bool> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // With a bound on locked memory, later allocations would fail at it.
    let unbounded = getrlimit(Resource::Memlock).current.is_none();
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    Ok(unbounded && mlockall(flags).is_ok())
}
