//! Messages with secrets, as they are shown.

use crate::v1::{AttachVolumeRequest, RekeyVolumeRequest, RevertVolumeRequest};
use std::fmt;

impl fmt::Debug for AttachVolumeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, listen, read_only, force, data_key } = self;
        f.debug_struct("AttachVolumeRequest")
            .field("name", name)
            .field("listen", listen)
            .field("read_only", read_only)
            .field("force", force)
            .field("has_data_key", &!data_key.is_empty())
            .finish()
    }
}

impl fmt::Debug for RevertVolumeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volume, snapshot, safety, dry_run, data_key } = self;
        f.debug_struct("RevertVolumeRequest")
            .field("volume", volume)
            .field("snapshot", snapshot)
            .field("safety", safety)
            .field("dry_run", dry_run)
            .field("has_data_key", &!data_key.is_empty())
            .finish()
    }
}

impl fmt::Debug for RekeyVolumeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, expected, wrapped_key, data_key, dry_run } = self;
        f.debug_struct("RekeyVolumeRequest")
            .field("name", name)
            .field("expected", expected)
            .field("wrapped_key", wrapped_key)
            .field("has_data_key", &!data_key.is_empty())
            .field("dry_run", dry_run)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_shown() {
        let data_key = vec![0xab; 32];
        let attach = AttachVolumeRequest { data_key: data_key.clone(), ..AttachVolumeRequest::default() };
        let revert = RevertVolumeRequest { data_key: data_key.clone(), ..RevertVolumeRequest::default() };
        let rekey = RekeyVolumeRequest { data_key, ..RekeyVolumeRequest::default() };
        for shown in [format!("{attach:?}"), format!("{revert:?}"), format!("{rekey:?}")] {
            assert!(shown.contains("has_data_key: true") && !shown.contains("171"), "{shown}");
        }
    }
}
