//! What a reactor says when the system refuses it, for real. Each refusal is confined to a thread
//! or to this process, which has this one test only: the file limit is the whole process's.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use trivet_reactor::{
    Options, Reactor, SetupError, SocketAddress, SocketError, listen, raise_file_handle_limit,
};

#[test]
fn refusals_are_told_apart() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let refused = std::thread::spawn(move || {
            refuse_io_uring(errno);
            Reactor::new(Options::default()).err()
        });
        assert!(matches!(refused.join().unwrap(), Some(SetupError::ForbiddenBySeccomp)));
    }

    let hard = set_file_limit(64);
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    assert!(matches!(Reactor::new(Options::default()), Err(SetupError::FileHandles { limit: 64 })));
    assert!(matches!(listen(&SocketAddress::loopback(0)), Err(SocketError::FileHandles { .. })));
    // One for the ring, none for the wakers' eventfd.
    files.pop();
    assert!(matches!(Reactor::new(Options::default()), Err(SetupError::FileHandles { limit: 64 })));

    assert_eq!(raise_file_handle_limit().unwrap(), hard);
    assert!(Reactor::new(Options::default()).is_ok());
}

/// Sets the soft limit; answers the hard one.
fn set_file_limit(soft: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is live for both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = soft;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    limit.rlim_max
}

/// A seccomp filter on this thread as container runtimes have it: io_uring_setup fails.
fn refuse_io_uring(errno: i32) {
    let statement =
        |code: u32, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf: 0, k };
    let system_call = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let is_setup =
        libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, system_call) };
    let mut program = [
        // The system call's number comes first in what a filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        is_setup,
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: the program lives until the calls are over; the kernel keeps a copy of its own.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}
