//! What a process does to itself before it becomes the program.

use super::{Jail, system_calls};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Where systemd's protocol for passing sockets has the first.
const SOCKET_HANDLE: RawFd = 3;
/// Where [`IMAGE_PATH`](super::IMAGE_PATH) finds the image.
const IMAGE_HANDLE: RawFd = 10;
const HANDLES_MAX: u64 = 64;
/// What programs are made of; anyone may read it.
const PROGRAMS: [&str; 4] = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache"];
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];
/// Newest Landlock whose rules are known to suit the program; an older kernel enforces what it knows.
const LANDLOCK: ABI = ABI::V6;

/// Why the program was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfineError {
    /// It cannot be read.
    #[error("the image cannot be opened: {0}")]
    Image(#[source] io::Error),
    /// Handles could not be passed on.
    #[error("its handles cannot be passed on: {0}")]
    Handles(#[source] io::Error),
    /// Rights could not be given up.
    #[error("rights cannot be given up: {0}")]
    Rights(#[source] io::Error),
    /// A limit could not be set.
    #[error("its limits cannot be set: {0}")]
    Limits(#[source] io::Error),
    /// The kernel cannot keep it from other files.
    #[error(
        "this kernel has no Landlock, which keeps the reader of an image from all other files; enable it (lsm=landlock,…), or make a raw image of it elsewhere"
    )]
    NoLandlock,
    /// Its rules were refused.
    #[error("Landlock's rules cannot be set: {0}")]
    Landlock(#[from] RulesetError),
    /// The filter of system calls was refused.
    #[error("the filter of system calls cannot be set: {0}")]
    Seccomp(String),
    /// Who started it has ended.
    #[error("the process that it was to read for has ended")]
    Orphan,
    /// The program itself.
    #[error("it cannot be started: {0}")]
    Start(#[source] io::Error),
}

/// Confines this process, which has a single thread, and becomes the program. Returns only when that
/// fails; the process must end then.
#[must_use]
pub fn confine(jail: &Jail, program: &[OsString]) -> ConfineError {
    match enter(jail, program) {
        Ok(mut command) => ConfineError::Start(command.exec()),
        Err(error) => error,
    }
}

/// Becomes `command` without the handles beyond the standard ones that this process was started with: some
/// parents leave theirs open. Returns only when that fails.
#[must_use]
pub fn shed_handles(mut command: Command) -> ConfineError {
    close_fds::set_fds_cloexec(SOCKET_HANDLE, &[]);
    ConfineError::Start(command.exec())
}

fn enter(jail: &Jail, program: &[OsString]) -> Result<Command, ConfineError> {
    let [program, arguments @ ..] = program else {
        return Err(ConfineError::Start(io::ErrorKind::NotFound.into()));
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null());
    let image = open(jail)?;
    if jail.socket {
        let socket = place(rustix::stdio::stdin(), SOCKET_HANDLE).map_err(ConfineError::Handles)?;
        command.env("LISTEN_FDS", "1").env("LISTEN_PID", std::process::id().to_string());
        // It is the program's from here, and closed with it.
        std::mem::forget(socket);
    }
    limit(jail)?;
    give_up_rights(&image)?;
    fence_files(jail, &image)?;
    // What the parent started ends with it, however that ends. Last of all: changing rights undoes it.
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| ConfineError::Rights(error.into()))?;
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get().unsigned_abs());
    if parent != Some(jail.parent) {
        return Err(ConfineError::Orphan);
    }
    let filter = system_calls::filter().map_err(|error| ConfineError::Seccomp(error.to_string()))?;
    seccompiler::apply_filter(&filter).map_err(|error| ConfineError::Seccomp(error.to_string()))?;
    std::mem::forget(image);
    Ok(command)
}

/// Opens the image with the caller's rights, where [`IMAGE_PATH`](super::IMAGE_PATH) finds it.
fn open(jail: &Jail) -> Result<OwnedFd, ConfineError> {
    let file = OpenOptions::new().read(true).write(jail.writable).open(&jail.image);
    place(file.map_err(ConfineError::Image)?, IMAGE_HANDLE).map_err(ConfineError::Handles)
}

/// A copy of a handle under this number, or the next free one, that the program gets too.
fn place(handle: impl AsFd, number: RawFd) -> io::Result<OwnedFd> {
    let placed = fcntl_dupfd_cloexec(handle, number)?;
    if placed.as_raw_fd() != number {
        return Err(io::Error::other(format!("handle {number} is taken already")));
    }
    fcntl_setfd(&placed, FdFlags::empty())?;
    Ok(placed)
}

fn limit(jail: &Jail) -> Result<(), ConfineError> {
    let written = if jail.writable { None } else { Some(0) };
    let limits = [
        (Resource::As, Some(jail.memory_bytes_max)),
        (Resource::Cpu, Some(jail.cpu_seconds_max)),
        (Resource::Nofile, Some(HANDLES_MAX)),
        (Resource::Fsize, written),
        (Resource::Core, Some(0)),
    ];
    for (resource, most) in limits {
        if let Some(most) = most {
            let limit = Rlimit { current: Some(most), maximum: Some(most) };
            setrlimit(resource, limit).map_err(|error| ConfineError::Limits(error.into()))?;
        }
    }
    Ok(())
}

/// Root becomes the image's owner, who can open it again; and nobody keeps or gets a capability.
fn give_up_rights(image: &OwnedFd) -> Result<(), ConfineError> {
    let rights = |error: rustix::io::Errno| ConfineError::Rights(error.into());
    set_no_new_privs(true).map_err(rights)?;
    if rustix::process::geteuid().is_root() {
        let owner = File::from(image.try_clone().map_err(ConfineError::Rights)?);
        let owner = owner.metadata().map_err(ConfineError::Rights)?;
        let (user, group) =
            (rustix::process::Uid::from_raw(owner.uid()), rustix::process::Gid::from_raw(owner.gid()));
        set_thread_groups(&[]).map_err(rights)?;
        set_thread_res_gid(group, group, group).map_err(rights)?;
        set_thread_res_uid(user, user, user).map_err(rights)?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(rights)
}

fn fence_files(jail: &Jail, image: &OwnedFd) -> Result<(), ConfineError> {
    let of_image = if jail.writable {
        AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate
    } else {
        AccessFs::ReadFile.into()
    };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rule(PathBeneath::new(image, of_image))?;
    let known = [
        (&PROGRAMS[..], AccessFs::from_read(LANDLOCK)),
        (&DEVICES[..], AccessFs::ReadFile | AccessFs::WriteFile),
    ];
    for (paths, access) in known {
        // Not every machine has each of them.
        for path in paths.iter().filter_map(|path| PathFd::new(path).ok()) {
            rules = rules.add_rule(PathBeneath::new(path, access))?;
        }
    }
    match rules.restrict_self()?.ruleset {
        RulesetStatus::NotEnforced => Err(ConfineError::NoLandlock),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::IMAGE_PATH;
    use super::*;

    #[test]
    fn the_image_is_where_its_path_says() {
        assert_eq!(IMAGE_PATH, format!("/proc/self/fd/{IMAGE_HANDLE}"));
    }
}
