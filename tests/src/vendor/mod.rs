//! The vendor's library and the programs that use it, run unmodified on software devices.
//!
//! `cargo xtask vendor` brings them ([`Vendor`]); `efa run` puts a software device under them ([`EfaRun`]); [`Peer`] is a program of ours
//! on the vendor's library. Their C library is newer than the machine's may be, so all of them run through the loader that came along.

mod node;
mod packages;
mod peer;

pub use node::{EfaRun, Process, efa, free_port, is_listening, test_executable, words};
pub use packages::{Vendor, skip};
pub use peer::{Peer, QueuePairInfo, WorkCompletion, pattern};
