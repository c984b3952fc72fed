//! Fuzzes a software device with arbitrary contents of rings and doorbells.

#![no_main]

#[path = "../device/mod.rs"]
mod device;

libfuzzer_sys::fuzz_target!(|data: &[u8]| device::rings(data));
