//! Image formats, and how a file's is known.
//!
//! A raw image is a guest's disk, and a guest can write anything to the beginning of its disk: what a
//! file looks like is never enough to take it for more than raw. Its name or the user must say so,
//! and where name and looks disagree, the user must say.

use std::path::Path;

/// An image's format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// The disk's bytes, and nothing else.
    Raw,
    /// QEMU's.
    Qcow2,
    /// `VMware`'s, in one file: sparse or stream-optimised.
    Vmdk,
    /// Virtual PC's, fixed or dynamic.
    Vhd,
    /// Hyper-V's.
    Vhdx,
}

/// Why a file is not taken for an image.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Name and looks disagree.
    #[error("by its name it is {named}, but it looks like {seen}")]
    Ambiguous {
        /// What the name says.
        named: Format,
        /// What the content says.
        seen: Format,
    },
    /// It does not look like what it is said to be.
    #[error("it is no {said} image: it does not begin like one")]
    NotSuch {
        /// What the user or its name said.
        said: Format,
    },
    /// A text that names other files.
    #[error("it is only the description of a VMDK image, whose data is in other files")]
    OnlyDescription,
    /// What changed since a parent image.
    #[error("it is a differencing VHD, which holds only what changed since another image")]
    Differencing,
}

/// Bytes at an image's beginning that are looked at.
pub const HEAD_BYTES: usize = 512;
/// Bytes at its end.
pub const TAIL_BYTES: usize = 512;

/// An image's first and last bytes.
#[derive(Clone, Copy, Debug)]
pub struct Edges<'a> {
    /// Up to [`HEAD_BYTES`].
    pub head: &'a [u8],
    /// Up to [`TAIL_BYTES`].
    pub tail: &'a [u8],
}

const VHD_COOKIE: &[u8] = b"conectix";
/// Where a VHD's footer says what kind it is.
const VHD_KIND_AT: usize = 60;
const VHD_FIXED: [u8; 4] = [0, 0, 0, 2];
const VHD_DYNAMIC: [u8; 4] = [0, 0, 0, 3];

impl Format {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhd, Self::Vhdx];

    /// What users call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }

    /// What QEMU calls it.
    #[must_use]
    pub const fn driver(self) -> &'static str {
        match self {
            Self::Vhd => "vpc",
            other => other.name(),
        }
    }

    /// What a file's name says: its ending, where that is a format's, else raw.
    #[must_use]
    pub fn of_name(path: &Path) -> Self {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
        match ending.as_str() {
            "qcow2" | "qcow" => Self::Qcow2,
            "vmdk" => Self::Vmdk,
            "vhd" | "vpc" => Self::Vhd,
            "vhdx" => Self::Vhdx,
            _ => Self::Raw,
        }
    }

    /// What its edges look like. Anything may be raw.
    ///
    /// # Errors
    /// When it looks like an image that does not stand alone.
    pub fn of_looks(edges: Edges<'_>) -> Result<Self, FormatError> {
        let head = edges.head;
        if head.starts_with(b"QFI\xfb") {
            return Ok(Self::Qcow2);
        }
        if head.starts_with(b"KDMV") || head.starts_with(b"COWD") {
            return Ok(Self::Vmdk);
        }
        if head.starts_with(b"# Disk DescriptorFile") {
            return Err(FormatError::OnlyDescription);
        }
        if head.starts_with(b"vhdxfile") {
            return Ok(Self::Vhdx);
        }
        let Some(footer) = [head, edges.tail].into_iter().find(|edge| edge.starts_with(VHD_COOKIE)) else {
            return Ok(Self::Raw);
        };
        match footer.get(VHD_KIND_AT..VHD_KIND_AT + 4) {
            Some(kind) if kind == VHD_FIXED || kind == VHD_DYNAMIC => Ok(Self::Vhd),
            _ => Err(FormatError::Differencing),
        }
    }

    /// The format to read a file as: what the user said if it looks like that, else what its name
    /// says if it looks like that.
    ///
    /// # Errors
    /// When it does not, or the image does not stand alone.
    pub fn decide(said: Option<Self>, path: &Path, edges: Edges<'_>) -> Result<Self, FormatError> {
        // What is said to be raw is read as it is, whatever it looks like.
        if said == Some(Self::Raw) {
            return Ok(Self::Raw);
        }
        let seen = Self::of_looks(edges)?;
        let named = said.unwrap_or_else(|| Self::of_name(path));
        match (said, named, seen) {
            _ if named == seen => Ok(named),
            (None, Self::Raw, seen) => Err(FormatError::Ambiguous { named, seen }),
            (None, named, seen) if seen != Self::Raw => Err(FormatError::Ambiguous { named, seen }),
            (_, said, _) => Err(FormatError::NotSuch { said }),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|format| format.name() == text);
        known.ok_or_else(|| "a format is raw, qcow2, vmdk, vhd or vhdx".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(said: Option<Format>, name: &str, head: &[u8], tail: &[u8]) -> Result<Format, FormatError> {
        Format::decide(said, Path::new(name), Edges { head, tail })
    }

    fn vhd(kind: u8) -> Vec<u8> {
        let mut footer = vec![0; 512];
        footer[..8].copy_from_slice(VHD_COOKIE);
        footer[VHD_KIND_AT + 3] = kind;
        footer
    }

    #[test]
    fn name_and_looks_must_agree() {
        let qcow2 = b"QFI\xfb\0\0\0\x03";
        assert_eq!(decide(None, "a.qcow2", qcow2, &[]), Ok(Format::Qcow2));
        assert_eq!(decide(None, "a.QCOW2", qcow2, &[]), Ok(Format::Qcow2));
        assert_eq!(decide(None, "a.img", &[0; 512], &[0; 512]), Ok(Format::Raw));
        let (named, seen) = (Format::Raw, Format::Qcow2);
        assert_eq!(decide(None, "a.img", qcow2, &[]), Err(FormatError::Ambiguous { named, seen }));
        let (named, seen) = (Format::Vmdk, Format::Qcow2);
        assert_eq!(decide(None, "a.vmdk", qcow2, &[]), Err(FormatError::Ambiguous { named, seen }));
        let said = Format::Vmdk;
        assert_eq!(decide(None, "a.vmdk", &[0; 512], &[]), Err(FormatError::NotSuch { said }));
    }

    #[test]
    fn what_the_user_says_counts_where_it_can_be() {
        let qcow2 = b"QFI\xfb\0\0\0\x03";
        assert_eq!(decide(Some(Format::Qcow2), "a.img", qcow2, &[]), Ok(Format::Qcow2));
        assert_eq!(decide(Some(Format::Raw), "a.qcow2", qcow2, &[]), Ok(Format::Raw));
        let said = Format::Vhdx;
        assert_eq!(decide(Some(said), "a.vhdx", qcow2, &[]), Err(FormatError::NotSuch { said }));
    }

    #[test]
    fn images_that_do_not_stand_alone_are_refused() {
        let text = b"# Disk DescriptorFile\nversion=1\n";
        assert_eq!(decide(None, "a.vmdk", text, &[]), Err(FormatError::OnlyDescription));
        assert_eq!(decide(None, "a.vhd", &vhd(4), &vhd(4)), Err(FormatError::Differencing));
        assert_eq!(decide(None, "a.vhd", &vhd(3), &vhd(3)), Ok(Format::Vhd));
        assert_eq!(decide(None, "a.vhd", &[0; 512], &vhd(2)), Ok(Format::Vhd));
    }
}
