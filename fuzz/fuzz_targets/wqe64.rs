//! Fuzzes the decoder of the 64-byte send WQE.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::wqe64(data));
