//! Fuzzes the decoder of the receive descriptor.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::rx_desc(data));
