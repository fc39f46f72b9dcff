//! What must not be guessed.

use trivet_crypto::DataKey;

/// The system has no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers: {0}")]
pub struct RandomError(#[from] getrandom::Error);

/// A data key for a new volume.
///
/// # Errors
/// [`RandomError`].
pub fn new_data_key() -> Result<DataKey, RandomError> {
    Ok(DataKey::take(&mut random()?))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
