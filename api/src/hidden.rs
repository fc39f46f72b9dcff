//! Messages with secrets, as they are shown.

use crate::v1::AttachVolumeRequest;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_shown() {
        let request = AttachVolumeRequest { data_key: vec![0xab; 32], ..AttachVolumeRequest::default() };
        let shown = format!("{request:?}");
        assert!(shown.contains("has_data_key: true") && !shown.contains("171"), "{shown}");
    }
}
