//! Socket addresses, as people write them and as the kernel reads them.

use std::fmt;
use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Where a socket listens or connects to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum SocketAddress {
    /// TCP over IPv4 or IPv6.
    Tcp(SocketAddr),
    /// A unix stream socket at a path.
    Unix(PathBuf),
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl SocketAddress {
    /// TCP at a port of the loopback interface; port 0 lets the system choose.
    #[must_use]
    pub fn loopback(port: u16) -> Self {
        Self::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    }
}

/// The longest path that leaves room for the closing zero.
pub(crate) const UNIX_PATH_MAX: usize =
    size_of::<libc::sockaddr_un>() - offset_of!(libc::sockaddr_un, sun_path) - 1;

/// An address as the kernel reads it.
pub(crate) struct RawAddress {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

/// A type's size as socket calls take it.
#[allow(clippy::cast_possible_truncation, reason = "addresses and option values are of some hundred bytes")]
pub(crate) const fn size_of_as_length<T>() -> libc::socklen_t {
    assert!(size_of::<T>() <= 1024);
    size_of::<T>() as libc::socklen_t
}

#[allow(clippy::cast_possible_truncation, reason = "the kernel keeps address families in 16 bits")]
const fn family(family: i32) -> libc::sa_family_t {
    family as libc::sa_family_t
}

impl RawAddress {
    pub(crate) fn zeroed() -> Self {
        // SAFETY: all zeros is a valid sockaddr_storage.
        Self { storage: unsafe { std::mem::zeroed() }, length: 0 }
    }

    /// Storage and its length, for the kernel to fill and set.
    pub(crate) fn for_kernel(&mut self) -> (*mut libc::sockaddr, *mut libc::socklen_t) {
        self.length = size_of_as_length::<libc::sockaddr_storage>();
        ((&raw mut self.storage).cast(), &raw mut self.length)
    }

    /// Encodes; the only error is a unix path that is too long or has a zero byte.
    pub(crate) fn new(address: &SocketAddress) -> io::Result<Self> {
        let mut raw = Self::zeroed();
        match address {
            SocketAddress::Tcp(SocketAddr::V4(address)) => raw.put(libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                sin_zero: [0; 8],
            }),
            SocketAddress::Tcp(SocketAddr::V6(address)) => raw.put(libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            }),
            SocketAddress::Unix(path) => {
                let path = path.as_os_str().as_bytes();
                if path.is_empty() || path.len() > UNIX_PATH_MAX || path.contains(&0) {
                    let text = "a socket's path must have 1 to 107 bytes, none of them zero";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
                }
                let mut unix = libc::sockaddr_un { sun_family: family(libc::AF_UNIX), sun_path: [0; 108] };
                for (to, from) in unix.sun_path.iter_mut().zip(path) {
                    *to = from.cast_signed();
                }
                raw.put(unix);
            }
        }
        Ok(raw)
    }

    fn put<T: Copy>(&mut self, address: T) {
        const { assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>()) };
        // SAFETY: the storage is long enough (asserted), aligned for every address, and plain data.
        unsafe { (&raw mut self.storage).cast::<T>().write(address) };
        self.length = size_of_as_length::<T>();
    }

    fn get<T: Copy>(&self) -> T {
        const { assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>()) };
        // SAFETY: as for `put`; every bit pattern is a valid address structure.
        unsafe { (&raw const self.storage).cast::<T>().read() }
    }

    pub(crate) fn pointer(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(crate) fn length(&self) -> libc::socklen_t {
        self.length
    }

    pub(crate) fn decode(&self) -> io::Result<SocketAddress> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                let raw: libc::sockaddr_in = self.get();
                let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
                Ok(SocketAddress::Tcp(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into()))
            }
            libc::AF_INET6 => {
                let raw: libc::sockaddr_in6 = self.get();
                let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                let port = u16::from_be(raw.sin6_port);
                Ok(SocketAddress::Tcp(
                    SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into(),
                ))
            }
            libc::AF_UNIX => {
                let raw: libc::sockaddr_un = self.get();
                let used = (self.length as usize).saturating_sub(offset_of!(libc::sockaddr_un, sun_path));
                let path = raw.sun_path[..used.min(raw.sun_path.len())].iter();
                let path: Vec<u8> = path.map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
                Ok(SocketAddress::Unix(PathBuf::from(std::ffi::OsString::from_vec(path))))
            }
            _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }
}
