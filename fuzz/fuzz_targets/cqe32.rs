//! Fuzzes the decoder of the 32-byte completion entry.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::cqe32(data));
