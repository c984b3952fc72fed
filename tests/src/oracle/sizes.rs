//! The sizes and times of a simulation.

use std::time::Duration;

/// The number of nodes.
pub(super) const NODES: usize = 3;
/// The number of queue pairs of a node. Queue pairs 0 and 1 are reliable: 0 has 64-byte WQEs, 1 has 128-byte WQEs and
/// unsolicited writes.
pub(super) const QPS: usize = 3;
/// The index of the unreliable queue pair.
pub(super) const UD: usize = 2;
/// The number of entries of a send queue.
pub(super) const SQ: u32 = 16;
/// The number of receives of a queue pair.
pub(super) const RECEIVES: usize = 6;
/// The MTU in bytes.
pub(super) const MTU: usize = 2048;
/// The number of slots of a region.
pub(super) const SLOTS: usize = 24;
/// The size of a slot in bytes.
pub(super) const SLOT: usize = 40_000;

/// The time after which no packet that was sent before can arrive.
pub(super) const REST: Duration = Duration::from_millis(200);
/// The time after which every node has noticed that a peer died and came back.
pub(super) const DEATH_NOTICE: Duration = Duration::from_secs(2);
