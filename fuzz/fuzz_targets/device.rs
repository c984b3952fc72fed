//! Fuzzes a software device: packets, ring bytes, doorbells and control calls in any order.

#![no_main]

#[path = "../device_body.rs"]
mod device_body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| device_body::device(data));
