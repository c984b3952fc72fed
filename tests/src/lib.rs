//! Shared code of the tests across crates: a simulation with an oracle, traffic for GPU kernels, and the vendor's
//! programs.

pub mod oracle;
pub mod traffic;
pub mod vendor;
