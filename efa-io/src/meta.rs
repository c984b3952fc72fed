//! The metadata descriptor, words 0 to 3 of a WQE: which operation, to whom, with what immediate.

use crate::layout::{self, Layout};
use crate::opcode::OpCode;
use crate::wqe::{SendWqe, Wqe, field};

/// The destination of a WQE. SRD is connectionless, so every WQE names its destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Address handle number, as `efadv_query_ah` gives it.
    pub ah: u16,
    /// Queue pair number at the destination.
    pub qpn: u16,
    /// The destination queue pair's queue key.
    pub qkey: u32,
}

impl Destination {
    /// Returns the first three words of a WQE with this destination, all other bits zero: what can be encoded once per
    /// peer.
    #[inline(always)]
    pub const fn words(self) -> [u64; 3] {
        [field::DEST_QP_NUM.put(self.qpn as u64), field::AH.put(self.ah as u64), field::QKEY.put(self.qkey as u64)]
    }
}

/// Processing hints for the device (`enum efa_io_processing_hint`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints(u8);

impl Hints {
    /// No hint.
    pub const NONE: Self = Self(0);
    /// Part of a burst of many small messages: prefer packets per second over latency.
    pub const BURST_PPS: Self = Self(1);

    /// Returns the hint's two bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Returns the hints in the low two bits of `bits`.
    pub(crate) const fn from_low_bits(bits: u64) -> Self {
        Self(bits as u8 & 3)
    }
}

/// The first two words of a WQE, as far as they describe the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head([u64; 2]);

impl Head {
    /// `length` is a number of buffers, or of inline bytes.
    #[inline(always)]
    pub(crate) const fn new(layout: &Layout, length: usize, hints: Hints) -> Self {
        let first = field::OP_TYPE.put(layout.op as u64)
            | field::INLINE_MSG.put(layout.is_inline() as u64)
            | field::META_DESC.put(1)
            | field::FIRST.put(1)
            | field::LAST.put(1)
            | field::COMP_REQ.put(1)
            | field::LENGTH.put(length as u64);
        Self([first, field::PROCESSING_HINTS.put(hints.bits() as u64)])
    }

    /// Adds immediate data.
    #[inline(always)]
    pub(crate) const fn imm(self, imm: u32) -> Self {
        let [first, second] = self.0;
        Self([first | field::HAS_IMM.put(1), field::IMMEDIATE_DATA.replace(second, imm as u64)])
    }

    /// Returns all words of a WQE, those behind the metadata zero.
    #[inline(always)]
    pub(crate) const fn with<const W: usize>(self, dest: &[u64; 3]) -> [u64; W] {
        let mut words = [0; W];
        words[0] = self.0[0] | dest[0];
        words[1] = self.0[1] | dest[1];
        words[2] = dest[2];
        words
    }
}

/// The metadata of an RDMA request without its destination: encoded once, put together with the words of a
/// [`Destination`], a [`RemoteBuf`](crate::RemoteBuf) and a [`LocalBuf`](crate::LocalBuf) as often as needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaHead(Head);

impl RdmaHead {
    /// The metadata of this operation, [`OpCode::RdmaRead`] or [`OpCode::RdmaWrite`].
    #[inline(always)]
    pub const fn new(op: OpCode) -> Self {
        Self(Head::new(&Layout::of(op), 1, Hints::NONE))
    }

    /// Adds immediate data.
    #[inline(always)]
    pub const fn imm(self, imm: u32) -> Self {
        Self(self.0.imm(imm))
    }

    /// Replaces the processing hints.
    #[inline(always)]
    pub const fn hints(self, hints: Hints) -> Self {
        let Head([first, second]) = self.0;
        Self(Head([first, field::PROCESSING_HINTS.replace(second, hints.bits() as u64)]))
    }

    /// Builds the WQE, request id and phase left zero. Nothing is checked: neither limits nor that both sides have the
    /// same length.
    #[inline(always)]
    pub const fn wqe<const W: usize>(self, dest: &[u64; 3], remote: [u64; 2], local: [u64; 2]) -> Wqe<W>
    where
        Wqe<W>: SendWqe,
    {
        const REMOTE: usize = layout::RDMA_REMOTE;
        const LOCAL: usize = layout::RDMA_WRITE.payload;
        let mut words = self.0.with(dest);
        [words[REMOTE], words[REMOTE + 1]] = remote;
        [words[LOCAL], words[LOCAL + 1]] = local;
        Wqe::from_words(words)
    }
}
