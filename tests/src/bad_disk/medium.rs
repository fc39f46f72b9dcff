//! What keeps a bad disk's bytes: a file and, where the disk has a volatile cache, what has been written
//! since the last flush.

use crate::Random;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A device tears at these.
const SECTOR: usize = 512;
/// What the cache holds at most; then the oldest half is written back, as a device does by itself.
const CACHE_BYTES: usize = 16 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Medium {
    image: File,
    cache: Mutex<Cache>,
}

#[derive(Debug)]
struct Cache {
    volatile: bool,
    /// In the order of writing; the later hides the earlier.
    writes: Vec<(u64, Vec<u8>)>,
    bytes: usize,
    powered: bool,
}

impl Medium {
    pub(super) fn new(image: File, volatile: bool) -> Self {
        let cache = Mutex::new(Cache { volatile, writes: Vec::new(), bytes: 0, powered: true });
        Self { image, cache }
    }

    pub(super) fn size(&self) -> io::Result<u64> {
        self.image.metadata().map(|metadata| metadata.len())
    }

    fn cache(&self) -> io::Result<MutexGuard<'_, Cache>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.powered { Ok(cache) } else { Err(io::Error::other("the power is off")) }
    }

    pub(super) fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        let cache = self.cache()?;
        self.image.read_exact_at(data, offset)?;
        let end = offset + data.len() as u64;
        for (start, written) in &cache.writes {
            let (from, to) = (offset.max(*start), end.min(*start + written.len() as u64));
            if from < to {
                let within = |base: u64| index(from - base)..index(to - base);
                data[within(offset)].copy_from_slice(&written[within(*start)]);
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, data: Vec<u8>, offset: u64) -> io::Result<()> {
        let mut cache = self.cache()?;
        if !cache.volatile {
            return self.image.write_all_at(&data, offset);
        }
        cache.bytes += data.len();
        cache.writes.push((offset, data));
        if cache.bytes > CACHE_BYTES {
            let half = cache.writes.len() / 2;
            self.write_back(&mut cache, half)?;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        let mut cache = self.cache()?;
        let all = cache.writes.len();
        self.write_back(&mut cache, all)
    }

    fn write_back(&self, cache: &mut Cache, count: usize) -> io::Result<()> {
        for (offset, data) in cache.writes.drain(..count) {
            self.image.write_all_at(&data, offset)?;
            cache.bytes -= data.len();
        }
        Ok(())
    }

    /// From now on everything fails, and nothing that is asked for is done.
    pub(super) fn cut_power(&self) {
        if let Ok(mut cache) = self.cache() {
            cache.powered = false;
        }
    }

    /// Of what was in the cache, some is on the medium, some is not, and some is torn.
    pub(super) fn restore_power(&self, random: &mut Random) -> io::Result<()> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = random.below(101);
        for (offset, data) in cache.writes.drain(..) {
            let torn = random.chance(20);
            let whole = random.chance(kept);
            for (sector, at) in data.chunks(SECTOR).zip((offset..).step_by(SECTOR)) {
                if if torn { random.chance(50) } else { whole } {
                    self.image.write_all_at(sector, at)?;
                }
            }
        }
        cache.bytes = 0;
        cache.powered = true;
        Ok(())
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("within a request")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    fn medium(scratch: &Scratch) -> Medium {
        let path = scratch.join("image");
        std::fs::write(&path, [0; 8192]).unwrap();
        Medium::new(File::options().read(true).write(true).open(path).unwrap(), true)
    }

    fn read(medium: &Medium) -> Vec<u8> {
        let mut data = vec![0; 4096];
        medium.read(&mut data, 512).unwrap();
        data
    }

    #[test]
    fn what_was_flushed_outlives_a_loss_of_power_and_the_rest_is_old_or_new_by_sector() {
        let scratch = Scratch::new();
        let medium = medium(&scratch);
        medium.write(vec![1; 4096], 0).unwrap();
        medium.flush().unwrap();
        medium.write(vec![2; 4096], 1024).unwrap();
        assert_eq!(read(&medium), [vec![1; 512], vec![2; 3584]].concat(), "the cache is read");
        let mut lost = false;
        for seed in 0..20 {
            medium.cut_power();
            assert!(medium.read(&mut [0; 512], 0).is_err() && medium.write(vec![3; 512], 0).is_err());
            medium.restore_power(&mut Random::new(seed)).unwrap();
            let found = read(&medium);
            assert!(found[..512] == [1; 512] && found.iter().all(|byte| *byte < 3));
            assert!(found.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            lost |= found[512..] != [2; 3584];
            medium.write(vec![2; 4096], 1024).unwrap();
        }
        assert!(lost, "nothing was ever lost");
    }
}
