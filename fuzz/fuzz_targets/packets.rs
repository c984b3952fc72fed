//! Fuzzes a software device with arbitrary packets.

#![no_main]

#[path = "../device/mod.rs"]
mod device;

libfuzzer_sys::fuzz_target!(|data: &[u8]| device::packets(data));
