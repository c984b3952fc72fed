//! The vendor's unmodified library and programs, on software devices.
//!
//! `cargo xtask vendor` brings them ([`Vendor`]), and `efa run` runs them on software devices ([`EfaRun`]). [`Peer`] is
//! our own program on the vendor's library. Their C library may be newer than the machine's, so all of them run through
//! the loader of their packages.

mod node;
mod packages;
mod peer;

pub use node::{EfaRun, Process, efa, free_port, is_listening, test_executable, words};
pub use packages::{Vendor, skip};
pub use peer::{Peer, QueuePairInfo, WorkCompletion, pattern};
