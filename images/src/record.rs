//! What is kept of an import under way, so that it goes on after an interruption: a file beside the
//! cluster's others, replaced as a whole.

use crate::fingerprint::Fingerprint;
use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
/// Longest record that is read.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// An import under way.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ImportRecord {
    version: u32,
    /// As the user named it.
    pub source: String,
    /// What it was then.
    pub fingerprint: Fingerprint,
    /// The name of its format.
    pub format: String,
    /// The volume's id.
    pub volume: String,
    /// Whether this import made the volume.
    pub created: bool,
    /// Whether this import attached it.
    pub attached: bool,
    /// Everything below, in bytes, is in the volume, stable.
    pub copied: u64,
}

impl ImportRecord {
    /// One that begins.
    #[must_use]
    pub const fn new(source: String, fingerprint: Fingerprint, format: String, volume: String) -> Self {
        Self {
            version: VERSION,
            source,
            fingerprint,
            format,
            volume,
            created: false,
            attached: false,
            copied: 0,
        }
    }
}

/// A download under way, or done.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct DownloadRecord {
    version: u32,
    /// From where.
    pub url: String,
    /// What the server said of it.
    pub fingerprint: Fingerprint,
    /// Whether all of it is there.
    pub complete: bool,
}

impl DownloadRecord {
    /// One that begins.
    #[must_use]
    pub const fn new(url: String, fingerprint: Fingerprint) -> Self {
        Self { version: VERSION, url, fingerprint, complete: false }
    }
}

/// The files of one volume's import. Only one process has them at a time.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
    volume: String,
    _lock: File,
}

/// Why records cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The system refused.
    #[error("{path}: {cause}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Another process has them.
    #[error("another import into this volume is running")]
    InUse,
    /// Not what we wrote.
    #[error("{path} is damaged: {cause}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        cause: serde_json::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |cause| RecordError::Io { path, cause }
}

impl Records {
    /// Those of this volume, in a folder that is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be used, or another import into the volume is running.
    pub fn open(folder: &Path, volume: &str) -> Result<Self, RecordError> {
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        let path = folder.join(format!("{volume}.lock"));
        let lock = File::create(&path).map_err(io_error(&path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(RecordError::InUse),
            Err(error) => return Err(io_error(&path)(error.into())),
        }
        Ok(Self { folder: folder.to_owned(), volume: volume.to_owned(), _lock: lock })
    }

    fn path(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{}.{what}", self.volume))
    }

    /// Where what is downloaded goes.
    #[must_use]
    pub fn download_file(&self) -> PathBuf {
        self.path("download")
    }

    /// The import under way.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn import(&self) -> Result<Option<ImportRecord>, RecordError> {
        load(&self.path("import.json"))
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_import(&self, record: &ImportRecord) -> Result<(), RecordError> {
        save(&self.path("import.json"), record)
    }

    /// The download under way.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn download(&self) -> Result<Option<DownloadRecord>, RecordError> {
        load(&self.path("download.json"))
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_download(&self, record: &DownloadRecord) -> Result<(), RecordError> {
        save(&self.path("download.json"), record)
    }

    /// Forgets everything: the import is done, or given up.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn forget(&self) -> Result<(), RecordError> {
        self.remove(&["import.json", "download.json", "download"])
    }

    /// Forgets what was downloaded.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn forget_download(&self) -> Result<(), RecordError> {
        self.remove(&["download.json", "download"])
    }

    fn remove(&self, files: &[&str]) -> Result<(), RecordError> {
        for what in files {
            let path = self.path(what);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&path)(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(path)(error)),
    };
    if length > RECORD_BYTES_MAX {
        return Err(io_error(path)(io::Error::other(format!("{length} bytes are no record"))));
    }
    let bytes = fs::read(path).map_err(io_error(path))?;
    let record = serde_json::from_slice(&bytes);
    record.map(Some).map_err(|cause| RecordError::Damaged { path: path.to_owned(), cause })
}

fn save(path: &Path, record: &impl Serialize) -> Result<(), RecordError> {
    let new = path.with_extension("new");
    let written = (|| {
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(record).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    written.map_err(io_error(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_one_process_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path(), "disk0").unwrap();
        assert_eq!(records.import().unwrap(), None);
        let fingerprint =
            Fingerprint::File { device: 1, inode: u64::MAX, size: 3, modified: -4, modified_ns: 5 };
        let mut record = ImportRecord::new("/a".into(), fingerprint, "raw".into(), "id".into());
        records.keep_import(&record).unwrap();
        record.copied = 1 << 40;
        records.keep_import(&record).unwrap();
        assert!(matches!(Records::open(folder.path(), "disk0"), Err(RecordError::InUse)));
        assert!(Records::open(folder.path(), "disk1").unwrap().import().unwrap().is_none());
        drop(records);
        let records = Records::open(folder.path(), "disk0").unwrap();
        assert_eq!(records.import().unwrap(), Some(record));
        records.forget().unwrap();
        assert_eq!(records.import().unwrap(), None);
        fs::write(folder.path().join("disk0.import.json"), "{").unwrap();
        assert!(matches!(records.import(), Err(RecordError::Damaged { .. })));
    }
}
