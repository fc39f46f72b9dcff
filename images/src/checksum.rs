//! Checksums of sources, as they are published beside images.

use sha2::{Digest, Sha256, Sha512};
use std::fmt::Write;

/// Which function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Function {
    Sha256,
    Sha512,
}

/// A checksum that a source must have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checksum {
    function: Function,
    /// In lower case.
    hex: String,
}

impl Checksum {
    /// What computes such a checksum.
    #[must_use]
    pub fn hasher(&self) -> Hasher {
        match self.function {
            Function::Sha256 => Hasher::Sha256(Sha256::new()),
            Function::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }
}

/// A checksum under way.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The checksum of all bytes taken.
    #[must_use]
    pub fn finish(self) -> Checksum {
        match self {
            Self::Sha256(hasher) => Checksum { function: Function::Sha256, hex: hex(&hasher.finalize()) },
            Self::Sha512(hasher) => Checksum { function: Function::Sha512, hex: hex(&hasher.finalize()) },
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        if write!(text, "{byte:02x}").is_err() {
            unreachable!("a string takes all that fits memory");
        }
        text
    })
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let function = match self.function {
            Function::Sha256 => "sha256",
            Function::Sha512 => "sha512",
        };
        write!(f, "{function}:{}", self.hex)
    }
}

impl std::str::FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = text.split_once(':').and_then(|(function, hex)| match function {
            "sha256" => Some((Function::Sha256, hex, 64)),
            "sha512" => Some((Function::Sha512, hex, 128)),
            _ => None,
        });
        known
            .filter(|(_, hex, digits)| {
                hex.len() == *digits && hex.bytes().all(|digit| digit.is_ascii_hexdigit())
            })
            .map(|(function, hex, _)| Self { function, hex: hex.to_ascii_lowercase() })
            .ok_or_else(|| "a checksum is sha256: and 64 hexadecimal digits, or sha512: and 128".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // FIPS 180-4's example "abc".
        let text = "sha256:BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
        let checksum: Checksum = text.parse().unwrap();
        let mut hasher = checksum.hasher();
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.finish(), checksum);
        assert_eq!(checksum.to_string(), text.to_ascii_lowercase().replace("SHA", "sha"));
        for bad in
            ["", "sha256:", "sha256:12", "md5:900150983cd24fb0d6963f7d28e17f72", &text.replace("BA", "XX")]
        {
            assert!(bad.parse::<Checksum>().unwrap_err().contains("64 hexadecimal digits"), "{bad}");
        }
    }
}
