//! What the inspector says of an image, and whether it can be had.

use crate::format::Format;
use crate::jail::IMAGE_PATH;
use serde::Deserialize;
use serde_json::Value;

/// Longest description that is read.
pub const DESCRIPTION_BYTES_MAX: usize = 1 << 20;

/// An image that can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// Bytes of the disk that it is an image of.
    pub size: u64,
}

/// Why an image cannot be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// It is not a well-formed image.
    #[error("{0}")]
    Damaged(String),
    /// What the inspector says is not understood.
    #[error("qemu-img describes it in a way that is not understood: {0}")]
    NotUnderstood(String),
    /// It stands on another one.
    #[error("it holds only what differs from another image: {0}")]
    HasParent(String),
    /// Its data is elsewhere.
    #[error("its data is in another file: {0}")]
    DataElsewhere(String),
    /// Its data cannot be read without a secret.
    #[error("it is encrypted")]
    Encrypted,
    /// A kind of VMDK that is not one file.
    #[error("it is a VMDK of type '{0}'; those of types monolithicSparse and streamOptimized can be read")]
    OtherVmdk(String),
    /// Larger than any volume.
    #[error("it says that it is an image of {size} bytes; a volume has at most {most}")]
    TooLarge {
        /// What it says.
        size: u64,
        /// What can be.
        most: u64,
    },
    /// Nothing in it.
    #[error("it is an image of nothing")]
    Empty,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Description {
    virtual_size: u64,
    format: String,
    #[serde(default)]
    encrypted: bool,
    backing_filename: Option<String>,
    full_backing_filename: Option<String>,
    #[serde(default)]
    format_specific: Value,
}

/// Decides on what the inspector printed; `most` is the largest size that is wanted.
///
/// # Errors
/// When the image is not one file that stands alone, or too large.
pub fn judge(description: &[u8], format: Format, most: u64) -> Result<Inspection, InspectError> {
    let not_understood = |error: String| InspectError::NotUnderstood(error);
    let found: Description =
        serde_json::from_slice(description).map_err(|error| not_understood(error.to_string()))?;
    if found.format != format.driver() {
        return Err(not_understood(format!("a format of '{}'", found.format)));
    }
    if let Some(parent) = found.backing_filename.or(found.full_backing_filename) {
        return Err(InspectError::HasParent(parent));
    }
    let specific = &found.format_specific["data"];
    if let Some(file) = specific.get("data-file") {
        return Err(InspectError::DataElsewhere(text(file)));
    }
    if found.encrypted || specific.get("encrypt").is_some() {
        return Err(InspectError::Encrypted);
    }
    if format == Format::Vmdk {
        one_file(specific)?;
    }
    match found.virtual_size {
        0 => Err(InspectError::Empty),
        size if size > most => Err(InspectError::TooLarge { size, most }),
        size => Ok(Inspection { size }),
    }
}

fn one_file(specific: &Value) -> Result<(), InspectError> {
    let kind = text(&specific["create-type"]);
    if kind != "monolithicSparse" && kind != "streamOptimized" {
        return Err(InspectError::OtherVmdk(kind));
    }
    let extents = specific["extents"].as_array().map(Vec::as_slice).unwrap_or_default();
    match extents.iter().map(|extent| text(&extent["filename"])).find(|name| name != IMAGE_PATH) {
        Some(elsewhere) => Err(InspectError::DataElsewhere(elsewhere)),
        None if extents.len() == 1 => Ok(()),
        None => Err(InspectError::NotUnderstood(format!("{} extents", extents.len()))),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The reason out of what the inspector complained.
#[must_use]
pub fn complaint(stderr: &[u8]) -> InspectError {
    let said = String::from_utf8_lossy(&stderr[..stderr.len().min(4096)]);
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("qemu-img gave no reason");
    let reason = line.trim_start_matches("qemu-img: ").replace(IMAGE_PATH, "the image");
    // A text of the image's may be in it.
    InspectError::Damaged(reason.chars().filter(|c| !c.is_control()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(description: &str, format: Format) -> Result<Inspection, InspectError> {
        judge(description.as_bytes(), format, 1 << 40)
    }

    #[test]
    fn images_that_stand_alone_are_taken() {
        let qcow2 = r#"{"virtual-size": 4096, "format": "qcow2", "format-specific": {"type": "qcow2", "data": {"compat": "1.1"}}}"#;
        assert_eq!(judged(qcow2, Format::Qcow2), Ok(Inspection { size: 4096 }));
        let vmdk = format!(
            r#"{{"virtual-size": 512, "format": "vmdk", "format-specific": {{"data":
               {{"create-type": "streamOptimized", "extents": [{{"filename": "{IMAGE_PATH}"}}]}}}}}}"#
        );
        assert_eq!(judged(&vmdk, Format::Vmdk), Ok(Inspection { size: 512 }));
    }

    #[test]
    fn everything_that_reaches_out_is_refused() {
        for (field, expected) in [
            (r#""backing-filename": "/etc/passwd""#, InspectError::HasParent("/etc/passwd".to_owned())),
            (r#""full-backing-filename": "/x""#, InspectError::HasParent("/x".to_owned())),
            (
                r#""format-specific": {"data": {"data-file": "/etc/shadow"}}"#,
                InspectError::DataElsewhere("/etc/shadow".to_owned()),
            ),
            (r#""encrypted": true"#, InspectError::Encrypted),
            (r#""format-specific": {"data": {"encrypt": {"format": "luks"}}}"#, InspectError::Encrypted),
        ] {
            let description = format!(r#"{{"virtual-size": 4096, "format": "qcow2", {field}}}"#);
            assert_eq!(judged(&description, Format::Qcow2), Err(expected));
        }
        let vmdk = r#"{"virtual-size": 4096, "format": "vmdk", "format-specific": {"data":
            {"create-type": "monolithicFlat", "extents": [{"filename": "/etc/passwd"}]}}}"#;
        assert_eq!(judged(vmdk, Format::Vmdk), Err(InspectError::OtherVmdk("monolithicFlat".to_owned())));
        let elsewhere = vmdk.replace("monolithicFlat", "monolithicSparse");
        assert_eq!(
            judged(&elsewhere, Format::Vmdk),
            Err(InspectError::DataElsewhere("/etc/passwd".to_owned()))
        );
    }

    #[test]
    fn impossible_sizes_and_other_formats_are_refused() {
        let huge = r#"{"virtual-size": 9223372036854775296, "format": "qcow2"}"#;
        let (size, most) = (9_223_372_036_854_775_296, 1 << 40);
        assert_eq!(judged(huge, Format::Qcow2), Err(InspectError::TooLarge { size, most }));
        assert_eq!(
            judged(r#"{"virtual-size": 0, "format": "qcow2"}"#, Format::Qcow2),
            Err(InspectError::Empty)
        );
        for bad in [
            r#"{"virtual-size": 1, "format": "raw"}"#,
            "",
            "[]",
            r#"{"virtual-size": -1, "format": "qcow2"}"#,
        ] {
            assert!(matches!(judged(bad, Format::Qcow2), Err(InspectError::NotUnderstood(_))), "{bad}");
        }
    }

    #[test]
    fn a_complaint_is_one_line_of_text() {
        let said = complaint(b"qemu-img: Could not open '/proc/self/fd/10': bad \x1b[31mmagic\n");
        assert_eq!(said.to_string(), "Could not open 'the image': bad [31mmagic");
    }
}
