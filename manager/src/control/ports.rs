//! Ports for replica servers on the loopback interface.

use super::Refusal;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Below Linux's range for outgoing connections, so that none of them takes a server's port while
/// the server is down.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

/// Picks a port on which nobody listens and which is not among `taken`. Begins at a random place,
/// so that clusters made at the same time seldom meet.
pub(super) fn pick(taken: &[String]) -> Result<String, Refusal> {
    let mut random = [0; 2];
    getrandom::fill(&mut random).map_err(Refusal::Random)?;
    let span = LAST - FIRST + 1;
    let begin = u16::from_le_bytes(random) % span;
    for step in 0..span {
        let port = FIRST + (begin + step) % span;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();
        if !taken.contains(&address) && is_free(&address) {
            return Ok(address);
        }
    }
    Err(Refusal::NoPort { first: FIRST, last: LAST })
}

/// Whether one could listen there now.
pub(super) fn is_free(address: &str) -> bool {
    TcpListener::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_are_free_and_not_taken() {
        let first = pick(&[]).unwrap();
        assert!(is_free(&first));
        let listener = TcpListener::bind(&first).unwrap();
        assert!(!is_free(&first));
        let second = pick(std::slice::from_ref(&first)).unwrap();
        assert_ne!(first, second);
        drop(listener);
    }
}
