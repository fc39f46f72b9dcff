//! Raw images: files and block devices, read as they are. Nothing in them is interpreted.

use crate::fingerprint::Fingerprint;
use crate::format::{Edges, HEAD_BYTES, TAIL_BYTES};
use crate::schedule::Run;
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

/// An open file or block device.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    size: u64,
    is_device: bool,
    fingerprint: Fingerprint,
}

/// Why something is no raw image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RawError {
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A folder, a pipe, a terminal.
    #[error("it is neither a file nor a block device")]
    OtherKind,
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
}

impl RawImage {
    /// Opens it for reading.
    ///
    /// # Errors
    /// When it cannot be read, or is something else.
    pub fn open(path: &Path) -> Result<Self, RawError> {
        let metadata = std::fs::metadata(path)?;
        let is_device = metadata.file_type().is_block_device();
        // Opening a pipe would wait for somebody to write to it.
        if !is_device && !metadata.is_file() {
            return Err(RawError::OtherKind);
        }
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        let size = file.seek(io::SeekFrom::End(0))?;
        if size == 0 {
            return Err(RawError::Empty);
        }
        let fingerprint = Fingerprint::of(&metadata, size);
        Ok(Self { file, size, is_device, fingerprint })
    }

    /// Bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Whether it is a block device.
    #[must_use]
    pub const fn is_device(&self) -> bool {
        self.is_device
    }

    /// As it was when it was opened.
    #[must_use]
    pub const fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Whether it has been changed since it was opened, as far as that shows.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn has_changed(&self) -> io::Result<bool> {
        let size = (&self.file).seek(io::SeekFrom::End(0))?;
        Ok(Fingerprint::of(&self.file.metadata()?, size) != self.fingerprint)
    }

    /// Its first and last bytes, to look at.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn with_edges<T>(&self, look: impl FnOnce(Edges<'_>) -> T) -> io::Result<T> {
        let edge = |length: usize| usize::try_from(self.size).unwrap_or(usize::MAX).min(length);
        let mut head = vec![0; edge(HEAD_BYTES)];
        let mut tail = vec![0; edge(TAIL_BYTES)];
        self.read(0, &mut head)?;
        self.read(self.size - tail.len() as u64, &mut tail)?;
        Ok(look(Edges { head: &head, tail: &tail }))
    }

    /// Reads bytes that are there.
    ///
    /// # Errors
    /// When they cannot be read, or are not there any more.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    /// What holds data, as the file system knows it.
    ///
    /// # Errors
    /// When it does not say.
    pub fn runs(&self, offset: u64, length: u64) -> io::Result<Vec<Run>> {
        let end = offset.saturating_add(length).min(self.size);
        if self.is_device {
            return Ok(vec![Run { length: end - offset, zero: false }]);
        }
        let mut runs = Vec::new();
        let mut at = offset;
        while at < end {
            let data = self.seek(SeekFrom::Data(at))?.unwrap_or(end).clamp(at, end);
            if data > at {
                runs.push(Run { length: data - at, zero: true });
            }
            let hole = if data < end {
                self.seek(SeekFrom::Hole(data))?.unwrap_or(end).clamp(data, end)
            } else {
                end
            };
            if hole > data {
                runs.push(Run { length: hole - data, zero: false });
            }
            if hole == at {
                return Err(io::Error::other("its file system does not say what holds data"));
            }
            at = hole;
        }
        Ok(runs)
    }

    fn seek(&self, to: SeekFrom) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.file, to) {
            Ok(found) => Ok(Some(found)),
            // Only a hole comes behind.
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_known_and_odd_sizes_are_kept() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = folder.path().join("image");
        let file = File::create(&path).unwrap();
        file.set_len((4 << 20) + 100).unwrap();
        file.write_all_at(&[7; 4096], 1 << 20).unwrap();
        let image = RawImage::open(&path).unwrap();
        assert_eq!(image.size(), (4 << 20) + 100);
        let runs = image.runs(0, u64::MAX).unwrap();
        assert_eq!(runs.iter().map(|run| run.length).sum::<u64>(), image.size());
        let data: u64 = runs.iter().filter(|run| !run.zero).map(|run| run.length).sum();
        assert!((4096..=1 << 20).contains(&data), "{runs:?}");
        assert!(runs[0].zero && runs[0].length <= 1 << 20);
        assert!(!image.has_changed().unwrap());
        file.set_len(4 << 20).unwrap();
        assert!(image.has_changed().unwrap());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(RawImage::open(folder.path()), Err(RawError::OtherKind)));
        assert!(matches!(RawImage::open(Path::new("/dev/null")), Err(RawError::OtherKind)));
        let empty = folder.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        assert!(matches!(RawImage::open(&empty), Err(RawError::Empty)));
    }
}
