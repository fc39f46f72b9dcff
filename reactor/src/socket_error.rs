//! Why a socket could not be made, and what to do about it.

use crate::SocketAddress;
use std::io;

/// Why a listening or connecting socket could not be made. Each message says the cause and, where
/// there is one, the next step.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error(
        "{address} is in use by another process; stop it, or choose another address{}",
        find_hint(address)
    )]
    Occupied {
        /// Where.
        address: SocketAddress,
    },
    /// No local interface has this address.
    #[error("{address} is not an address of this host; list them with: ip address")]
    NotLocal {
        /// Where.
        address: SocketAddress,
    },
    /// A port below 1024, or a folder without write permission.
    #[error("no permission to listen at {address}; {}", permission_hint(address))]
    Permission {
        /// Where.
        address: SocketAddress,
    },
    /// The kernel keeps unix socket paths in 108 bytes.
    #[error(
        "the socket path {address} has {length} bytes, and the system allows {max}; choose a shorter folder"
    )]
    PathTooLong {
        /// Where.
        address: SocketAddress,
        /// Bytes of the path.
        length: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A unix socket in a folder that is not there.
    #[error("the folder of {address} does not exist; create it first")]
    NoFolder {
        /// Where.
        address: SocketAddress,
    },
    /// A file that is no socket bears the name.
    #[error("{address} is a file, not a socket; remove it, or choose another path")]
    NotASocket {
        /// Where.
        address: SocketAddress,
    },
    /// RLIMIT_NOFILE or the system's file table is exhausted.
    #[error("too many open files for a socket at {address}; raise the limit with ulimit -n or LimitNOFILE=")]
    FileHandles {
        /// Where.
        address: SocketAddress,
    },
    /// Anything else.
    #[error("{operation} for {address} failed: {source}")]
    System {
        /// The system call.
        operation: &'static str,
        /// Where.
        address: SocketAddress,
        /// Its error.
        source: io::Error,
    },
}

fn find_hint(address: &SocketAddress) -> String {
    match address {
        SocketAddress::Tcp(address) => format!(" (find it with: ss -ltnp 'sport = :{}')", address.port()),
        SocketAddress::Unix(path) => format!(" (find it with: ss -lxp src {})", path.display()),
    }
}

fn permission_hint(address: &SocketAddress) -> &'static str {
    match address {
        SocketAddress::Tcp(_) => "ordinary users may use ports from 1024 on",
        SocketAddress::Unix(_) => "its folder must be writable for this user",
    }
}

impl SocketError {
    /// Sorts the system's error of a call that was to make a socket for `address`.
    pub(crate) fn diagnose(operation: &'static str, address: &SocketAddress, source: io::Error) -> Self {
        let address = address.clone();
        match source.raw_os_error() {
            Some(libc::EADDRINUSE) => Self::Occupied { address },
            Some(libc::EADDRNOTAVAIL) => Self::NotLocal { address },
            Some(libc::EACCES | libc::EPERM) => Self::Permission { address },
            Some(libc::ENOENT | libc::ENOTDIR) => Self::NoFolder { address },
            Some(libc::EMFILE | libc::ENFILE) => Self::FileHandles { address },
            _ => Self::System { operation, address, source },
        }
    }
}
