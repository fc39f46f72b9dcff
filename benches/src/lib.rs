//! Criterion benches of the pure parts, in `benches/`: what a write costs in processor time before
//! any device or network takes part. `make bench` measures the whole.
#![forbid(unsafe_code)]
