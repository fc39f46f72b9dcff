//! How the engine of an encrypted volume comes by its key: it listens until the manager, or whoever else may
//! enter the cluster's folder, brings it. So the key is in no argument, variable or file.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;
use trivet_crypto::{DATA_KEY_BYTES, DataKey};
use trivet_keys::guard_process;
use trivet_manager::control::KEY_TAKEN;
use trivet_model::KeyId;
use zeroize::Zeroize;

/// Whoever connects says the key within this.
const SAYING_MAX: Duration = Duration::from_secs(2);
const REFUSED: u8 = b'0';

/// Waits for the key of this name at the socket.
pub(super) fn await_key(path: &Path, expected: KeyId) -> io::Result<DataKey> {
    let locked = guard_process()?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    tracing::info!(memory_locked = locked, "the volume is encrypted: waiting for its key");
    loop {
        let (mut caller, _) = listener.accept()?;
        let mut bytes = [0; DATA_KEY_BYTES];
        let said = caller.set_read_timeout(Some(SAYING_MAX)).and_then(|()| caller.read_exact(&mut bytes));
        if said.is_err() {
            bytes.zeroize();
            continue;
        }
        let key = DataKey::take(&mut bytes);
        let fits = key.id() == expected;
        // Whoever does not wait for the answer has its reasons.
        if caller.write_all(&[if fits { KEY_TAKEN } else { REFUSED }]).is_err() {
            tracing::debug!("who brought a key is gone");
        }
        if fits {
            std::fs::remove_file(path)?;
            return Ok(key);
        }
        tracing::warn!("a key that is not the volume's was refused");
    }
}
