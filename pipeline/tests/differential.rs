//! The comparison with libjpeg-turbo at the entropy decoder's real buffer size; the crate's own tests
//! run the same at a tiny one.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

/// Bytes of the entropy decoder's buffer.
const BUFFER: usize = 16 << 10;

#[path = "../src/decode/differential.rs"]
mod differential;
