//! Completion counters: numbers in memory that count completions of chosen kinds (`ibv_create_comp_cntr(3)`,
//! `ibv_qp_attach_comp_cntr(3)`, `efadv_create_comp_cntr(3)`).
//!
//! EFA counts work requests, not bytes (`efa_create_comp_cntr_impl` of rdma-core accepts no other type).

use std::ops::BitOr;

/// The highest value of a completion counter. After it comes 0.
///
/// A device reports its own limit (`max_value`). This number is an assumption, taken from the tests of the vendor's
/// libfabric.
pub const COUNTER_MAX: u64 = (1 << 31) - 1;

/// A set of kinds of completions, for a counter to count (the bits of `enum ibv_qp_attach_comp_cntr_op`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CounterOps(u32);

impl CounterOps {
    /// Sends of the queue pair.
    pub const SEND: Self = Self(1);
    /// Receives of the queue pair, also those of writes with immediate.
    pub const RECV: Self = Self(1 << 1);
    /// RDMA reads of the queue pair.
    pub const RDMA_READ: Self = Self(1 << 2);
    /// RDMA reads that peers made through the queue pair. Failed ones are not counted, because the device has no event
    /// for them.
    pub const REMOTE_RDMA_READ: Self = Self(1 << 3);
    /// RDMA writes of the queue pair.
    pub const RDMA_WRITE: Self = Self(1 << 4);
    /// RDMA writes that peers made through the queue pair. Failed ones are not counted.
    pub const REMOTE_RDMA_WRITE: Self = Self(1 << 5);
    /// Number of kinds.
    pub const KINDS: usize = 6;

    /// Returns the set with these bits. Bits beyond [`KINDS`](Self::KINDS) are kept, so that a device can refuse them.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Returns the bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Returns the numbers of the kinds in the set, each below [`KINDS`](Self::KINDS).
    pub fn kinds(self) -> impl Iterator<Item = usize> {
        (0..Self::KINDS).filter(move |kind| self.0 >> kind & 1 != 0)
    }
}

impl BitOr for CounterOps {
    type Output = Self;
    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

/// One of the two numbers of a completion counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterValue {
    /// Successful completions.
    Completions,
    /// Completions with an error.
    Errors,
}
