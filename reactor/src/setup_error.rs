//! Why there is no event loop to be had, and what to do about it.

use std::io;

/// Why a reactor could not be set up. Each message says the cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `kernel.io_uring_disabled` is 1 or 2.
    #[error(
        "this host forbids io_uring (sysctl kernel.io_uring_disabled = {value}); \
         an administrator can allow it with: sysctl -w kernel.io_uring_disabled=0{}",
        if *value == 1 { ", or by adding this user to the group in kernel.io_uring_group" } else { "" }
    )]
    ForbiddenBySysctl {
        /// The sysctl's value.
        value: u8,
    },
    /// A seccomp filter or security module refuses the system call, as containers' default
    /// profiles do.
    #[error(
        "a security filter (seccomp) on this process forbids io_uring, as container runtimes do by \
         default; run the container with a profile that allows io_uring_setup, io_uring_enter and \
         io_uring_register (docker run --security-opt seccomp=PROFILE.json, Kubernetes: \
         securityContext.seccompProfile)"
    )]
    ForbiddenBySeccomp,
    /// Refused, with neither of the known reasons to be seen.
    #[error(
        "the kernel refuses io_uring to this process though neither sysctl nor seccomp forbids it; \
         look for a denial by SELinux or AppArmor in the kernel's log (dmesg, ausearch -m avc)"
    )]
    Forbidden,
    /// The kernel has no io_uring, or one too old.
    #[error("this kernel's io_uring lacks {missing}; Trivet needs Linux 5.15 or later, with CONFIG_IO_URING")]
    KernelTooOld {
        /// What is missing.
        missing: &'static str,
    },
    /// The ring's memory is above RLIMIT_MEMLOCK (before Linux 5.12) or the memory cgroup's limit.
    #[error(
        "no memory for an io_uring of {entries} entries (RLIMIT_MEMLOCK is {limit_bytes} bytes); raise \
         the limit with ulimit -l, LimitMEMLOCK= in the systemd unit, or the container's memory limit"
    )]
    LockedMemory {
        /// Submission entries asked for.
        entries: u32,
        /// The soft limit; `u64::MAX` means none.
        limit_bytes: u64,
    },
    /// RLIMIT_NOFILE or the system's file table is exhausted.
    #[error(
        "too many open files ({limit} allowed for this process); raise the limit with ulimit -n or \
         LimitNOFILE= in the systemd unit"
    )]
    FileHandles {
        /// The soft limit.
        limit: u64,
    },
    /// Anything else.
    #[error("io_uring could not be set up: {0}")]
    System(#[source] io::Error),
}

impl SetupError {
    /// Finds out why the kernel answered `error` to io_uring_setup or eventfd.
    pub(crate) fn diagnose(error: io::Error, entries: u32) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => match sysctl() {
                Some(value @ 1..) => Self::ForbiddenBySysctl { value },
                _ if is_filtered() => Self::ForbiddenBySeccomp,
                _ => Self::Forbidden,
            },
            Some(libc::ENOSYS) if is_filtered() => Self::ForbiddenBySeccomp,
            Some(libc::ENOSYS) => Self::KernelTooOld { missing: "the system call" },
            Some(libc::EINVAL) => Self::KernelTooOld { missing: "a ring of our plainest kind" },
            Some(libc::ENOMEM) => Self::LockedMemory { entries, limit_bytes: limit(libc::RLIMIT_MEMLOCK) },
            Some(libc::EMFILE | libc::ENFILE) => Self::FileHandles { limit: limit(libc::RLIMIT_NOFILE) },
            _ => Self::System(error),
        }
    }
}

fn sysctl() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// Whether this thread runs under a seccomp filter.
fn is_filtered() -> bool {
    std::fs::read_to_string("/proc/thread-self/status").is_ok_and(|status| {
        status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
    })
}

fn limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live rlimit, and the call writes nothing else.
    match unsafe { libc::getrlimit(resource, &raw mut limit) } {
        0 => limit.rlim_cur,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosed(errno: i32) -> SetupError {
        SetupError::diagnose(io::Error::from_raw_os_error(errno), 256)
    }

    #[test]
    fn each_cause_names_its_next_step() {
        assert!(diagnosed(libc::ENOMEM).to_string().contains("ulimit -l"));
        assert!(diagnosed(libc::EMFILE).to_string().contains("ulimit -n"));
        assert!(diagnosed(libc::EINVAL).to_string().contains("Linux 5.15"));
        assert!(matches!(diagnosed(libc::EIO), SetupError::System(_)));
        for value in [1, 2] {
            let text = SetupError::ForbiddenBySysctl { value }.to_string();
            assert!(text.contains("sysctl -w kernel.io_uring_disabled=0"));
            assert_eq!(text.contains("io_uring_group"), value == 1);
        }
    }
}
