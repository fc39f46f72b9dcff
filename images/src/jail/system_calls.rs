//! The system calls that nothing in the jail may make.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use std::collections::BTreeMap;

/// By what they would give.
const DENIED: &[&[i64]] = &[
    // New ways to others: the one socket that it needs was opened before.
    &[libc::SYS_socket, libc::SYS_socketpair, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen],
    // Other processes.
    &[
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_kcmp,
    ],
    // Other name spaces and mounts.
    &[
        libc::SYS_chroot,
        libc::SYS_fsopen,
        libc::SYS_mount,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_pivot_root,
        libc::SYS_setns,
        libc::SYS_umount2,
        libc::SYS_unshare,
    ],
    // Files by number, past their folders.
    &[libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at],
    // Large parts of the kernel that an image's reader has no use for.
    &[
        libc::SYS_add_key,
        libc::SYS_bpf,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_io_uring_setup,
        libc::SYS_keyctl,
        libc::SYS_perf_event_open,
        libc::SYS_request_key,
        libc::SYS_userfaultfd,
        libc::SYS_personality,
    ],
    // The machine.
    &[
        libc::SYS_acct,
        libc::SYS_delete_module,
        libc::SYS_finit_module,
        libc::SYS_init_module,
        libc::SYS_kexec_load,
        libc::SYS_quotactl,
        libc::SYS_reboot,
        libc::SYS_setdomainname,
        libc::SYS_sethostname,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_swapoff,
        libc::SYS_swapon,
        libc::SYS_syslog,
    ],
];

/// The filter, for this machine.
pub(super) fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules: BTreeMap<i64, _> =
        DENIED.iter().flat_map(|group| group.iter()).map(|&call| (call, vec![])).collect();
    // Refused, not killed: libraries try what they can do without.
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let target = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, target)?.try_into()
}
