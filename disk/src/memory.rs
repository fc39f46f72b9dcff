//! A disk in memory that never fails: operations take effect when submitted and complete in order.

use crate::{Disk, DiskCompletion, DiskError, DiskImage, DiskOp, DiskToken};
use bytes::BytesMut;

/// A [`DiskImage`] as a device.
#[derive(Debug)]
pub struct MemoryDisk {
    image: DiskImage,
    length_max: u64,
    completions: Vec<DiskCompletion>,
}

impl From<DiskImage> for MemoryDisk {
    fn from(image: DiskImage) -> Self {
        Self { image, length_max: u64::MAX, completions: Vec::new() }
    }
}

impl MemoryDisk {
    /// A disk of zeros.
    #[must_use]
    pub fn new(length: u64) -> Self {
        Self::from(DiskImage::new(length))
    }

    /// Limits the length it can be extended to; above, there is no space.
    #[must_use]
    pub fn with_length_max(mut self, length_max: u64) -> Self {
        self.length_max = length_max;
        self
    }

    /// What is on it.
    #[must_use]
    pub fn image(&self) -> &DiskImage {
        &self.image
    }

    /// What is on it, to be tampered with.
    pub fn image_mut(&mut self) -> &mut DiskImage {
        &mut self.image
    }

    /// What is on it, without the disk.
    #[must_use]
    pub fn into_image(self) -> DiskImage {
        self.image
    }

    fn perform(&mut self, operation: DiskOp) -> Result<BytesMut, DiskError> {
        operation.check(self.image.length())?;
        match operation {
            DiskOp::Read { offset, buffer } => return Ok(read(&self.image, offset, buffer)),
            DiskOp::Write { mut offset, segments } => {
                for segment in segments {
                    self.image.write(offset, &segment);
                    offset += segment.len() as u64;
                }
            }
            DiskOp::Flush => {}
            DiskOp::Extend { length, .. } if length > self.length_max => {
                return Err(DiskError::NoSpace { length });
            }
            DiskOp::Extend { length, .. } => self.image.set_length(length.max(self.image.length())),
        }
        Ok(BytesMut::new())
    }
}

/// Fills a read's buffer out of an image.
pub(crate) fn read(image: &DiskImage, offset: u64, mut buffer: BytesMut) -> BytesMut {
    let length = buffer.capacity();
    buffer.resize(length, 0);
    image.read(offset, &mut buffer);
    buffer
}

impl Disk for MemoryDisk {
    fn length(&self) -> u64 {
        self.image.length()
    }

    fn submit(&mut self, token: DiskToken, operation: DiskOp) {
        let result = self.perform(operation);
        self.completions.push(DiskCompletion { token, result });
    }

    fn reap(&mut self, _wait: bool, completions: &mut Vec<DiskCompletion>) {
        completions.append(&mut self.completions);
    }
}
