//! Downloads over HTTP that go on where they were interrupted, and notice another file.

use crate::fingerprint::Fingerprint;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;
use ureq::Agent;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};

const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
const PIECE_BYTES: usize = 256 << 10;

/// Why a download does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The server cannot be reached, or hung up.
    #[error("{0}")]
    Connection(Box<ureq::Error>),
    /// What was received cannot be kept.
    #[error("what is downloaded cannot be kept: {0}")]
    Keep(#[source] io::Error),
    /// The connection broke in the middle.
    #[error("the server's answer broke off: {0}")]
    BrokeOff(#[source] io::Error),
    /// Another answer than success.
    #[error("the server answers {0}")]
    Refused(StatusCode),
    /// It does not say how much comes.
    #[error("the server does not say how long it is")]
    NoLength,
    /// What is there is not what was begun with.
    #[error("the file on the server is not the one that the download began with")]
    Changed,
    /// What it says of what it sends does not fit together.
    #[error("the server's answer makes no sense: {0}")]
    Nonsense(&'static str),
}

impl DownloadError {
    /// Whether trying again may help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connection(_) | Self::BrokeOff(_) => true,
            Self::Refused(status) => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Keep(_) | Self::NoLength | Self::Changed | Self::Nonsense(_) => false,
        }
    }
}

/// A server's answer, of which the rest is still to be read.
pub struct Answer {
    body: ureq::Body,
    /// Where its first byte belongs.
    start: u64,
    size: u64,
    version: String,
}

impl Answer {
    /// What tells whether it is the same file.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::Url { size: self.size, version: self.version.clone() }
    }

    /// Where its first byte belongs: zero, or where it was to go on.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Bytes of the whole.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Reads all of it into a file, which stands at [`Answer::start`]. `progress` is told how many bytes
    /// of the whole are there.
    ///
    /// # Errors
    /// When less or more comes than was announced.
    pub fn save(mut self, file: &mut File, mut progress: impl FnMut(u64)) -> Result<(), DownloadError> {
        let mut have = self.start;
        let mut reader = self.body.as_reader();
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(DownloadError::BrokeOff(error)),
            };
            if count == 0 {
                break;
            }
            have += count as u64;
            if have > self.size {
                return Err(DownloadError::Nonsense("more comes than it announced"));
            }
            file.write_all(&buffer[..count]).map_err(DownloadError::Keep)?;
            progress(have);
        }
        if have < self.size {
            return Err(DownloadError::BrokeOff(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }
}

/// Asks for the file from byte `have` on, if it is still this one; else, or if the server cannot do that,
/// for all of it.
///
/// # Errors
/// When it cannot be had.
pub fn ask(url: &str, have: u64, known: Option<&Fingerprint>) -> Result<Answer, DownloadError> {
    let mut request = agent().get(url).header(header::ACCEPT_ENCODING, "identity");
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
        // A weak tag does not promise the same bytes: such an answer is checked for its tag below.
        if let Some(Fingerprint::Url { version, .. }) = known
            && !version.is_empty()
            && !version.starts_with("W/")
        {
            request = request.header(header::IF_RANGE, version);
        }
    }
    let response = request.call().map_err(|error| DownloadError::Connection(Box::new(error)))?;
    let answer = read_head(response)?;
    if answer.start != 0 && answer.start != have {
        return Err(DownloadError::Nonsense("it sends another part than was asked for"));
    }
    if have > 0 && known.is_some_and(|known| *known != answer.fingerprint()) {
        return Err(DownloadError::Changed);
    }
    Ok(answer)
}

fn read_head(response: Response<ureq::Body>) -> Result<Answer, DownloadError> {
    let (parts, body) = response.into_parts();
    let version = text(&parts.headers, header::ETAG)
        .or_else(|| text(&parts.headers, header::LAST_MODIFIED))
        .unwrap_or_default()
        .to_owned();
    let length = body.content_length();
    let (start, size) = match parts.status {
        StatusCode::OK => (0, length.ok_or(DownloadError::NoLength)?),
        StatusCode::PARTIAL_CONTENT => {
            let range = text(&parts.headers, header::CONTENT_RANGE).and_then(parse_range);
            let (start, end, size) =
                range.ok_or(DownloadError::Nonsense("it does not say which part it sends"))?;
            if start > end || end + 1 != size || length.is_some_and(|length| length != size - start) {
                return Err(DownloadError::Nonsense("it sends another part than was asked for"));
            }
            (start, size)
        }
        // Behind the end: the file has become shorter.
        StatusCode::RANGE_NOT_SATISFIABLE => return Err(DownloadError::Changed),
        status => return Err(DownloadError::Refused(status)),
    };
    Ok(Answer { body, start, size, version })
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// First, last and all bytes of `bytes FIRST-LAST/ALL`.
fn parse_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let size: u64 = size.parse().ok()?;
    let end: u64 = end.parse().ok()?;
    (end < size).then_some((start.parse().ok()?, end, size))
}

fn agent() -> Agent {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .timeout_connect(Some(CONNECT_PATIENCE))
        .timeout_recv_response(Some(ANSWER_PATIENCE))
        .http_status_as_error(false)
        .user_agent(concat!("trivet/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_strictly() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, 9, 10)));
        for bad in [
            "",
            "bytes */10",
            "bytes 5-10/10",
            "bytes 5-9/*",
            "items 5-9/10",
            "bytes -1-9/10",
            "bytes 5-9/99999999999999999999",
        ] {
            assert_eq!(parse_range(bad), None, "{bad}");
        }
    }
}
