//! Where people keep their keys: files, pipes and variables.

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;
use zeroize::{Zeroize, Zeroizing};

/// More is not a key, and is not read.
pub const SECRET_BYTES_MAX: usize = 64 << 10;

/// Where a key comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Standard input, to its end.
    Stdin,
    /// An environment variable, by name.
    Environment(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("standard input"),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
        }
    }
}

/// Why a key could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The system refused.
    #[error("{source_of} cannot be read: {cause}")]
    Io {
        /// What was read.
        source_of: Source,
        /// The system's words.
        cause: io::Error,
    },
    /// No such variable.
    #[error("there is no environment variable {0}")]
    NotSet(String),
    /// Too much for a key.
    #[error("{0} holds more than {SECRET_BYTES_MAX} bytes")]
    TooLong(Source),
}

/// What is there, as it is.
///
/// # Errors
/// [`SourceError`], which never shows any of it.
pub fn read_secret(source: &Source) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let failed = |cause| SourceError::Io { source_of: source.clone(), cause };
    let bytes = match source {
        Source::File(path) => read_all(std::fs::File::open(path).map_err(failed)?).map_err(failed)?,
        Source::Stdin => read_all(io::stdin().lock()).map_err(failed)?,
        Source::Environment(name) => {
            use std::os::unix::ffi::OsStringExt;
            let value = std::env::var_os(name).ok_or_else(|| SourceError::NotSet(name.clone()))?;
            Zeroizing::new(value.into_vec())
        }
    };
    if bytes.len() > SECRET_BYTES_MAX {
        return Err(SourceError::TooLong(source.clone()));
    }
    Ok(bytes)
}

/// What is there, without the newline that editors and `echo` end it with.
///
/// # Errors
/// [`SourceError`].
pub fn read_text(source: &Source) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let mut bytes = read_secret(source)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    Ok(bytes)
}

/// Into one buffer that never moves, so that no copy stays behind.
fn read_all(mut from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; SECRET_BYTES_MAX + 1]);
    let mut filled = 0;
    while filled < bytes.len() {
        match from.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[filled..].zeroize();
    bytes.truncate(filled);
    Ok(bytes)
}
