//! Fuzzes the decoder of the 128-byte send WQE.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::wqe128(data));
