//! What is shown of an encrypted volume's data keys.

use serde::Serialize;
use std::fmt;
use trivet_api::v1;
use trivet_model::size::ByteSize;
use trivet_model::{BLOCK_SIZE_U64, OlderKey, VolumeRecord};

/// Data that is being encrypted anew under the present key.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub(crate) struct ResealView {
    /// Of the walk over the volume.
    pub(crate) percent: f64,
    pub(crate) resealed_bytes: u64,
    pub(crate) bytes_per_second: u64,
    /// Unknown at first.
    pub(crate) seconds_left: Option<u64>,
    /// Why it does not get on; empty when it does.
    pub(crate) waits: String,
}

impl ResealView {
    #[allow(clippy::cast_precision_loss, reason = "a percentage for people")]
    pub(crate) fn new(resealing: v1::Resealing, blocks: u64) -> Self {
        Self {
            percent: resealing.position.min(blocks) as f64 * 100.0 / blocks.max(1) as f64,
            resealed_bytes: resealing.changed.saturating_mul(BLOCK_SIZE_U64),
            bytes_per_second: resealing.bytes_per_second,
            seconds_left: resealing.seconds_left,
            waits: resealing.waits,
        }
    }
}

impl fmt::Display for ResealView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (resealed, rate) = (ByteSize(self.resealed_bytes), ByteSize(self.bytes_per_second));
        write!(f, "{:.0} %, {resealed} encrypted anew, {rate}/s", self.percent)?;
        if let Some(seconds) = self.seconds_left {
            write!(f, ", {seconds} s left")?;
        }
        if self.waits.is_empty() { Ok(()) } else { write!(f, "; waits: {}", self.waits) }
    }
}

/// A data key that the volume had before, and what still needs it.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub(crate) struct OlderKeyView {
    pub(crate) key: String,
    /// Whether something that the volume shows may still be encrypted under it.
    pub(crate) resealing: bool,
    pub(crate) snapshots: Vec<String>,
    /// Copies that have not been in sync since all was encrypted anew, by their pools' ids.
    pub(crate) copies: Vec<String>,
}

impl OlderKeyView {
    /// Of all that a volume had.
    pub(crate) fn all(record: &VolumeRecord) -> Vec<Self> {
        let view = |older: &OlderKey| Self {
            key: older.key.to_string(),
            resealing: older.rewritten.is_none(),
            snapshots: record.snapshots_needing(older).map(|snapshot| snapshot.name.clone()).collect(),
            copies: record.members_needing(older).map(|member| member.replica.to_string()).collect(),
        };
        record.older_keys.iter().map(view).collect()
    }
}

impl fmt::Display for OlderKeyView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.snapshots.as_slice() {
            _ if self.resealing => f.write_str("one, until all is encrypted anew")?,
            [] if self.copies.is_empty() => f.write_str("one, about to be destroyed")?,
            [] => f.write_str("one, for copies that are not in sync")?,
            [snapshot] => write!(f, "one, for snapshot {snapshot}")?,
            snapshots => write!(f, "one, for {} snapshots", snapshots.len())?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encrypted_anew_and_what_needs_the_old_key() {
        let resealing = v1::Resealing {
            position: 256,
            changed: 128,
            bytes_per_second: 1 << 20,
            seconds_left: Some(3),
            waits: String::new(),
        };
        let mut view = ResealView::new(resealing, 1024);
        assert_eq!(view.to_string(), "25 %, 512 KiB encrypted anew, 1 MiB/s, 3 s left");
        (view.seconds_left, view.waits) = (None, "a member is away".to_owned());
        assert!(view.to_string().ends_with("1 MiB/s; waits: a member is away"), "{view}");

        let key = |resealing, snapshots: &[&str], copies: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            OlderKeyView { key: String::new(), resealing, snapshots: texts(snapshots), copies: texts(copies) }
                .to_string()
        };
        assert_eq!(key(true, &["a"], &["x"]), "one, until all is encrypted anew");
        assert_eq!(key(false, &["a", "b"], &[]), "one, for 2 snapshots");
        assert_eq!(key(false, &["a"], &[]), "one, for snapshot a");
        assert_eq!(key(false, &[], &["x"]), "one, for copies that are not in sync");
        assert_eq!(key(false, &[], &[]), "one, about to be destroyed");
    }
}
