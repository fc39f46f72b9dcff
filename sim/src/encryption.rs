//! Encrypted worlds: half of all seeds. The checkers look at what members hold with a cipher of their own, which
//! knows nothing of what the engine did.

use trivet_crypto::{BlockCipher, DataKey};
use trivet_model::VolumeId;
use trivet_replica::store::BlockVersion;

/// The volume's keys in every encrypted world; it begins with number 0.
pub(crate) fn data_key(number: usize) -> DataKey {
    let number = u8::try_from(number).unwrap_or(u8::MAX);
    DataKey::take(&mut [0x5c_u8.wrapping_add(number); 32])
}

/// What a version says that this volume wrote under its key of this number, out of the bytes that a member holds; why they are not what an
/// engine sealed.
pub(crate) fn opened(
    (writer, key): (VolumeId, usize),
    block: u64,
    version: &BlockVersion,
    bytes: &[u8],
) -> Result<Vec<u8>, String> {
    let Some(tag) = version.tag else { return Err(format!("block {block} has no tag")) };
    let mut out = bytes.to_vec();
    let cipher = BlockCipher::new(&data_key(key), writer);
    cipher.open(block, version.stamp, &mut out, &tag).map_err(|error| error.to_string())?;
    Ok(out)
}
