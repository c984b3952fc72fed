//! The send WQE: a metadata descriptor of 32 bytes, then buffers or inline data.
//!
//! ```text
//!         64-byte WQE                                        128-byte WQE
//!  byte 0 ┌───────────────────────────────────────────┐      ┌─────────────────────────┐
//!         │ metadata: operation, destination, imm, id │      │ the same metadata       │
//!      32 ├─────────────────────┬─────────────────────┤      ├─────────────────────────┤
//!   send  │ buffer 0, buffer 1  │ or 32 inline bytes  │      │ … or 80 inline bytes    │
//!   RDMA  │ remote buffer       │                     │      │ remote buffer           │
//!      48 │ local buffer        │                     │      │ local, or 80 inline     │
//!      64 └─────────────────────┴─────────────────────┘  128 └─────────────────────────┘
//! ```
//!
//! Source: `struct efa_io_tx_wqe`, `efa_io_tx_wqe_128` and `efa_io_tx_meta_desc` in rdma-core 65's `efa_io_defs.h`.
//! Queues have 128-byte WQEs when they take more than 32 inline bytes or inline RDMA writes (`efa_calc_sq_wqe_size` in
//! its `verbs.c`).

use crate::bits::Field;
use crate::layout;
use static_assertions::const_assert_eq;

/// The metadata descriptor, `struct efa_io_tx_meta_desc`.
pub(crate) mod field {
    use super::Field;

    pub(crate) const REQ_ID: Field = Field::new("req_id", 0, 15, 0);
    pub(crate) const OP_TYPE: Field = Field::new("ctrl1.op_type", 0, 19, 16);
    pub(crate) const HAS_IMM: Field = Field::new("ctrl1.has_imm", 0, 20, 20);
    pub(crate) const INLINE_MSG: Field = Field::new("ctrl1.inline_msg", 0, 21, 21);
    pub(crate) const META_EXTENSION: Field = Field::new("ctrl1.meta_extension", 0, 22, 22);
    pub(crate) const META_DESC: Field = Field::new("ctrl1.meta_desc", 0, 23, 23);
    pub(crate) const PHASE: Field = Field::new("ctrl2.phase", 0, 24, 24);
    pub(crate) const RESERVED25: Field = Field::new("ctrl2.reserved25", 0, 25, 25);
    pub(crate) const FIRST: Field = Field::new("ctrl2.first", 0, 26, 26);
    pub(crate) const LAST: Field = Field::new("ctrl2.last", 0, 27, 27);
    pub(crate) const COMP_REQ: Field = Field::new("ctrl2.comp_req", 0, 28, 28);
    pub(crate) const RESERVED29: Field = Field::new("ctrl2.reserved29", 0, 31, 29);
    pub(crate) const DEST_QP_NUM: Field = Field::new("dest_qp_num", 0, 47, 32);
    pub(crate) const LENGTH: Field = Field::new("length", 0, 63, 48);
    pub(crate) const IMMEDIATE_DATA: Field = Field::new("immediate_data", 1, 31, 0);
    pub(crate) const AH: Field = Field::new("ah", 1, 47, 32);
    pub(crate) const PROCESSING_HINTS: Field = Field::new("ctrl3.processing_hints", 1, 49, 48);
    pub(crate) const RESERVED_CTRL3: Field = Field::new("ctrl3.reserved", 1, 55, 50);
    pub(crate) const RESERVED: Field = Field::new("reserved", 1, 63, 56);
    pub(crate) const QKEY: Field = Field::new("qkey", 2, 31, 0);
    pub(crate) const RESERVED2_LO: Field = Field::new("reserved2", 2, 63, 32);
    pub(crate) const RESERVED2_HI: Field = Field::new("reserved2", 3, 15, 0);
    pub(crate) const REQ_ID_EX: Field = Field::new("req_id_ex", 3, 63, 16);

    /// Fields that must be zero.
    pub(crate) const MUST_BE_ZERO: [Field; 7] =
        [META_EXTENSION, RESERVED25, RESERVED29, RESERVED_CTRL3, RESERVED, RESERVED2_LO, RESERVED2_HI];
    /// Fields that must be one: what libefa always sets, since it posts only signaled work requests.
    pub(crate) const MUST_BE_ONE: [Field; 4] = [META_DESC, FIRST, LAST, COMP_REQ];
}

/// A send WQE of `W` 64-bit words: [`Wqe64`] or [`Wqe128`]. Word 0 is the first in memory.
#[derive(Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Wqe<const W: usize>([u64; W]);

/// A WQE of 64 bytes.
pub type Wqe64 = Wqe<8>;
/// A WQE of 128 bytes.
pub type Wqe128 = Wqe<16>;

const_assert_eq!(size_of::<Wqe64>(), 64);
const_assert_eq!(size_of::<Wqe128>(), 128);

/// A size of send WQE. Sealed: [`Wqe64`] and [`Wqe128`].
pub trait SendWqe: Copy + core::fmt::Debug + PartialEq + bytemuck::Pod + sealed::Sealed {
    /// Bytes of the WQE, the entry size of its ring.
    const SIZE: usize;
    /// Most inline bytes of a send (`EFA_IO_TX_DESC_INLINE_MAX_SIZE`, `…_128`).
    const MAX_INLINE_SEND: usize;
    /// Most inline bytes of an RDMA write; 0 if the size has no inline writes.
    const MAX_INLINE_WRITE: usize;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Wqe64 {}
    impl Sealed for super::Wqe128 {}
}

impl SendWqe for Wqe64 {
    const SIZE: usize = 64;
    const MAX_INLINE_SEND: usize = layout::SEND_INLINE.max_inline(8);
    const MAX_INLINE_WRITE: usize = layout::RDMA_WRITE_INLINE.max_inline(8);
}

impl SendWqe for Wqe128 {
    const SIZE: usize = 128;
    const MAX_INLINE_SEND: usize = layout::SEND_INLINE.max_inline(16);
    const MAX_INLINE_WRITE: usize = layout::RDMA_WRITE_INLINE.max_inline(16);
}

impl<const W: usize> Wqe<W> {
    /// The WQE of these words, unchecked; see [`decode`](Self::decode).
    #[inline(always)]
    pub const fn from_words(words: [u64; W]) -> Self {
        Self(words)
    }

    /// Returns the words, in the order in which they stand in memory.
    #[inline(always)]
    pub const fn words(&self) -> &[u64; W] {
        &self.0
    }

    /// Returns the bytes as they stand in the ring.
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    /// Sets a 16-bit request id.
    #[inline(always)]
    pub const fn with_req_id(mut self, req_id: u16) -> Self {
        self.0[0] = field::REQ_ID.replace(self.0[0], req_id as u64);
        self
    }

    /// Sets a 64-bit request id, for queues with that capability.
    #[inline(always)]
    pub const fn with_req_id_64(mut self, req_id: u64) -> Self {
        self.0[0] = field::REQ_ID.replace(self.0[0], req_id);
        self.0[3] = field::REQ_ID_EX.replace(self.0[3], req_id >> 16);
        self
    }

    /// Sets the phase of the lap in which the WQE is posted; see [`WqCursor::phase`](crate::WqCursor).
    #[inline(always)]
    pub const fn with_phase(mut self, phase: bool) -> Self {
        self.0[0] = field::PHASE.replace(self.0[0], phase as u64);
        self
    }

    /// Adds a 16-bit request id and the phase to a WQE in which both are zero, as an operation's `encode` returns it.
    /// `phase` is [`phase_bit`](Self::phase_bit), which a ring computes once per lap.
    #[inline(always)]
    pub const fn stamp(mut self, req_id: u16, phase: u64) -> Self {
        self.0[0] |= field::REQ_ID.put(req_id as u64) | phase;
        self
    }

    /// Adds a 64-bit request id and the phase to a WQE in which both are zero, for queues with that capability.
    #[inline(always)]
    pub const fn stamp_64(mut self, req_id: u64, phase: u64) -> Self {
        self.0[0] |= field::REQ_ID.put(req_id) | phase;
        self.0[3] |= field::REQ_ID_EX.put(req_id >> 16);
        self
    }

    /// Returns the phase as a bit of word 0.
    #[inline(always)]
    pub const fn phase_bit(phase: bool) -> u64 {
        field::PHASE.put(phase as u64)
    }

    /// Returns the phase bit.
    #[inline(always)]
    pub const fn phase(&self) -> bool {
        field::PHASE.is_set(&self.0)
    }

    /// Returns the request id: 16 bits, or all 64 if the queue has that capability.
    #[inline(always)]
    pub const fn req_id(&self) -> u64 {
        field::REQ_ID.get(&self.0) | field::REQ_ID_EX.get(&self.0) << 16
    }
}

impl<const W: usize> core::fmt::Debug for Wqe<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Wqe{}(", W * 8)?;
        for word in &self.0 {
            write!(f, " {word:016x}")?;
        }
        write!(f, " )")
    }
}
