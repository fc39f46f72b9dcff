//! NBD URIs: `nbd+unix:///EXPORT?socket=PATH` and `nbd://HOST:PORT/EXPORT`.

use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Where an export is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uri {
    /// At which server.
    pub server: Server,
    /// Its name there.
    pub export: String,
}

/// An NBD server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Server {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

/// The port that NBD has of IANA.
const PORT_DEFAULT: u16 = 10_809;

/// The URI of an export on a unix socket.
#[must_use]
pub fn unix_uri(export: &str, socket: &Path) -> String {
    let (export, socket) = (encode(export.as_bytes()), encode(socket.as_os_str().as_bytes()));
    format!("nbd+unix:///{export}?socket={socket}")
}

impl std::str::FromStr for Uri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = |why: &str| {
            format!("'{text}' {why}; write nbd+unix:///NAME?socket=/path or nbd://host:port/NAME")
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| fail("is no NBD URI"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = String::from_utf8(decode(path).ok_or_else(|| fail("has a bad % escape"))?)
            .or(Err(fail("names an export that is not UTF-8")))?;
        let server = match scheme {
            "nbd+unix" => {
                let socket = query.split('&').find_map(|field| field.strip_prefix("socket="));
                let socket = socket.ok_or_else(|| fail("names no socket"))?;
                let bytes = decode(socket).ok_or_else(|| fail("has a bad % escape"))?;
                Server::Unix(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
            }
            "nbd" if authority.is_empty() => return Err(fail("names no host")),
            "nbd" if authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => {
                Server::Tcp(authority.to_owned())
            }
            "nbd" => Server::Tcp(format!("{authority}:{PORT_DEFAULT}")),
            "nbds" | "nbds+unix" => {
                return Err(fail(
                    "asks for TLS, which this client does not speak: make a tunnel (ssh, stunnel) to it",
                ));
            }
            _ => return Err(fail("is no NBD URI")),
        };
        Ok(Self { server, export })
    }
}

/// Everything that is not allowed to stand for itself in a path or a query becomes `%XX`.
fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"/-._~:@,".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            if write!(text, "%{byte:02X}").is_err() {
                unreachable!("a string takes all that fits memory");
            }
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_tools_write() {
        let unix = "nbd+unix:///disk0?socket=/a/b%20c".parse::<Uri>().unwrap();
        assert_eq!(unix.server, Server::Unix("/a/b c".into()));
        assert_eq!(unix.export, "disk0");
        let tcp = "nbd://localhost/x".parse::<Uri>().unwrap();
        assert_eq!(tcp.server, Server::Tcp("localhost:10809".into()));
        let port = "nbd://[::1]:99/".parse::<Uri>().unwrap();
        assert_eq!((port.server, port.export.as_str()), (Server::Tcp("[::1]:99".into()), ""));
        for bad in
            ["", "disk0", "http://x/", "nbd+unix:///x", "nbd:///x", "nbds://x/", "nbd+unix:///%g?socket=/a"]
        {
            let error = bad.parse::<Uri>().unwrap_err();
            assert!(error.contains("nbd+unix:///NAME?socket=/path"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_socket_path_survives(path in proptest::collection::vec(1..=255_u8, 1..60)) {
            let socket = PathBuf::from(std::ffi::OsString::from_vec(path));
            let uri = unix_uri("disk0", &socket);
            prop_assert!(uri.is_ascii());
            prop_assert_eq!(uri.parse::<Uri>().unwrap().server, Server::Unix(socket));
        }
    }
}
