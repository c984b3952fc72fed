//! Fuzzes a software device: whatever stands in rings and doorbells.

#![no_main]

#[path = "../device/mod.rs"]
mod device;

libfuzzer_sys::fuzz_target!(|data: &[u8]| device::rings(data));
