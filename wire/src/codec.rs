//! placeholder
/// x
pub struct DecodeError;
/// x
pub struct Decoder;
