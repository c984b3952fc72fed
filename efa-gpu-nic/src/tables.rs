//! The tables that the host lays out for the NIC: plain rows, in memory that the GPU reaches.
//!
//! All addresses are valid for whoever runs the NIC. A row is found by its index, which is part of every key, number
//! and handle.

use bytemuck::{Pod, Zeroable};
use efa_io::{Limits, RingSize, WqCursor};
use static_assertions::const_assert_eq;

/// Number of the first queue pair. Neither queue pairs nor address handles start at zero, so that a number which was
/// never filled in is noticed.
pub const FIRST_QPN: u32 = 256;
/// Number of the first address handle.
pub const FIRST_AH: u32 = 16;
/// Most descriptors of a receive.
pub const MAX_RECV_BUFS: u32 = 16;
/// In [`Tables::peers`]: a device that has no address handle in the domain.
pub const NO_AH: u32 = 0xffff;

/// The addresses of the tables and the numbers of their rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tables {
    /// Address of the [`QueuePair`]s.
    pub queue_pairs: u64,
    /// Address of the [`Progress`] of each queue pair.
    pub progress: u64,
    /// Address of the [`Region`]s.
    pub regions: u64,
    /// Address of the [`Cq`]s.
    pub completion_queues: u64,
    /// Address of the [`Ah`]s.
    pub address_handles: u64,
    /// Address of 32-bit words: the number of the address handle that a domain has for a device, or [`NO_AH`]. A row of
    /// `devices` words for each domain.
    pub peers: u64,
    /// Address of the [`Control`] words.
    pub control: u64,
    /// Nanoseconds without work after which a warp returns: a GPU is never occupied forever.
    pub idle_timeout_ns: u64,
    /// Number of queue pairs.
    pub queue_pair_count: u32,
    /// Number of regions.
    pub region_count: u32,
    /// Number of completion queues.
    pub completion_queue_count: u32,
    /// Number of address handles.
    pub address_handle_count: u32,
    /// Number of devices.
    pub devices: u32,
    /// Number of protection domains, which are numbered over all devices.
    pub domains: u32,
}

/// The words by which host and NIC communicate while the NIC runs, in memory that both reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Control {
    /// The host stores a value other than zero here to end the NIC.
    pub stop: u32,
    /// A value other than zero: a warp has returned because it had nothing to do for too long.
    pub timed_out: u32,
}

/// The constant part of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct QueuePair {
    /// Address of the send ring.
    pub send_ring: u64,
    /// Address of its doorbell.
    pub send_doorbell: u64,
    /// Address of the receive ring.
    pub recv_ring: u64,
    /// Address of its doorbell.
    pub recv_doorbell: u64,
    /// Address of the parked WQEs, which wait for a receive at their destination: a ring of the NIC's own.
    pub parked: u64,
    /// Address of the NIC's own copies of the receive descriptors that the warp which serves this queue pair has taken:
    /// [`MAX_RECV_BUFS`] for each of 32 lanes, aligned to 16 bytes.
    pub taken: u64,
    /// The device.
    pub device: u32,
    /// The protection domain.
    pub pd: u32,
    /// Its number.
    pub qpn: u32,
    /// The queue key that a message must have.
    pub qkey: u32,
    /// Entries of the send ring minus one.
    pub send_mask: u32,
    /// Bytes of a WQE: 64 or 128.
    pub wqe_size: u32,
    /// 1 if request ids have 64 bits.
    pub req_id_64: u32,
    /// Entries (descriptors) of the receive ring minus one.
    pub recv_mask: u32,
    /// Entries of `parked` minus one: at least those of the send ring and 32 together.
    pub parked_mask: u32,
    /// Index of the completion queue of sends.
    pub send_cq: u32,
    /// Index of the completion queue of receives.
    pub recv_cq: u32,
    /// The limits of the device and the queue pair.
    pub limits: Limits,
    /// A sum of the constants of this type.
    pub flags: u32,
    /// Zero.
    pub reserved: [u32; 4],
}

impl QueuePair {
    /// A write with immediate takes no receive.
    pub const UNSOLICITED_WRITE_RECV: u32 = 1;
    /// The device reaches itself.
    pub const LOOPBACK: u32 = 2;

    /// Returns the position of WQE number `counter` in the send ring.
    #[inline(always)]
    pub const fn send_at(&self, counter: u32) -> WqCursor {
        WqCursor::new(RingSize::from_mask(self.send_mask), counter)
    }

    /// Returns the position of descriptor number `counter` in the receive ring.
    #[inline(always)]
    pub const fn recv_at(&self, counter: u32) -> WqCursor {
        WqCursor::new(RingSize::from_mask(self.recv_mask), counter)
    }

    /// Returns the position of WQE number `counter` among the parked ones.
    #[inline(always)]
    pub const fn parked_at(&self, counter: u32) -> WqCursor {
        WqCursor::new(RingSize::from_mask(self.parked_mask), counter)
    }
}

/// The changing part of a queue pair: its counters and its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Progress {
    /// WQEs taken. Only the warp that serves the queue pair accesses these three counters.
    pub send_consumer: u32,
    /// WQEs removed from the parked ones.
    pub parked_head: u32,
    /// WQEs added to the parked ones.
    pub parked_tail: u32,
    /// Zero: the words after this are for all warps, on a line of their own.
    pub reserved: [u32; 29],
    /// Receive descriptors taken.
    pub recv_consumer: u32,
    /// [`READY`](Self::READY) or [`ERROR`](Self::ERROR).
    pub state: u32,
    /// Zero.
    pub reserved2: [u32; 30],
}

impl Progress {
    /// Messages are sent and received.
    pub const READY: u32 = 0;
    /// Everything outstanding is flushed, and so is everything new. The NIC sets it for a queue pair whose rings are
    /// invalid; the host may set it.
    pub const ERROR: u32 = 1;
}

/// A memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Region {
    /// Address of the first byte.
    pub base: u64,
    /// Bytes.
    pub len: u64,
    /// The protection domain, and so the device.
    pub pd: u32,
    /// A sum of the constants of this type.
    pub access: u32,
    /// The owner's key: the region's index above eight bits that tell a wrong key.
    pub lkey: u32,
    /// The peers' key: the region's index above 16 such bits.
    pub rkey: u32,
}

impl Region {
    /// The device may write it for its owner: receives, and targets of RDMA reads.
    pub const LOCAL_WRITE: u32 = 1;
    /// Peers may write it.
    pub const REMOTE_WRITE: u32 = 2;
    /// Peers may read it.
    pub const REMOTE_READ: u32 = 4;
}

/// A completion queue with entries of 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Cq {
    /// Address of the ring.
    pub ring: u64,
    /// Entries minus one.
    pub mask: u32,
    /// Entries that warps have reserved.
    pub producer: u32,
    /// Zero: the counter is on a line of its own.
    pub reserved: [u32; 28],
}

/// An address handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ah {
    /// The protection domain that may use it.
    pub pd: u32,
    /// The device that it leads to.
    pub target: u32,
}

const_assert_eq!(size_of::<Tables>(), 88);
const_assert_eq!(size_of::<QueuePair>(), 128);
const_assert_eq!(size_of::<Progress>(), 256);
const_assert_eq!(size_of::<Region>(), 32);
const_assert_eq!(size_of::<Cq>(), 128);
