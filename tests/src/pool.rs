//! A pool's file on disk, looked at and damaged behind its server's back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Of a block, in bytes.
pub const BLOCK: u64 = 4096;

/// Its data and journal.
#[must_use]
pub fn pool_file(pool: &Path) -> PathBuf {
    pool.join("pool")
}

/// Changes a bit of a byte on the medium.
///
/// # Panics
/// When the file cannot be changed.
pub fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("the byte to flip is there");
    file.write_all_at(&[byte[0] ^ 0x40], at).expect("a byte can be written");
    file.sync_all().expect("a file can be synced");
}

/// The offsets of the blocks of a file that `wanted` picks.
///
/// # Panics
/// When the file cannot be read.
#[must_use]
pub fn blocks(path: &Path, wanted: impl Fn(&[u8]) -> bool) -> Vec<u64> {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let blocks = file.metadata().expect("a file has a length").len() / BLOCK;
    let mut block = vec![0; usize::try_from(BLOCK).expect("small")];
    (0..blocks)
        .map(|number| number * BLOCK)
        .filter(|&offset| {
            file.read_exact_at(&mut block, offset).expect("a block can be read");
            wanted(&block)
        })
        .collect()
}
