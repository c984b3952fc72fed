//! The table of operations: where each has its parts in a WQE, and what it asks of its queue.
//!
//! | row | remote buffer | payload | immediate | asks of the queue |
//! | --- | --- | --- | --- | --- |
//! | [`SEND`] | | up to two buffers, byte 32 | may have one | |
//! | [`SEND_INLINE`] | | up to 32 bytes, or 80 in a 128-byte WQE, byte 32 | may have one | |
//! | [`RDMA_WRITE`] | byte 32 | one buffer, byte 48 | may have one | RDMA write |
//! | [`RDMA_WRITE_INLINE`] | byte 32 | up to 80 bytes in a 128-byte WQE, byte 48 | may have one | RDMA write, inline write |
//! | [`RDMA_READ`] | byte 32 | one buffer, byte 48 | none | RDMA read |
//!
//! The encoder (`op.rs`), the decoders (`decode.rs`, `flat.rs`) and the dissector (`dissect.rs`) all go by it.
//!
//! Source: `struct efa_io_tx_wqe` and `efa_io_tx_wqe_128` in rdma-core 65's `efa_io_defs.h`, and `efa_post_send` and
//! `efa_send_wr_*` in its `verbs.c`.

use crate::limits::Limits;
use crate::opcode::OpCode;

/// A row of the table: an operation with its bytes in registered buffers, or inline in the WQE.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) op: OpCode,
    /// Word where the descriptor of the remote buffer begins; `None` for a send.
    pub(crate) remote: Option<usize>,
    /// Word where the payload begins.
    pub(crate) payload: usize,
    pub(crate) kind: Payload,
    /// `true` if the operation may carry immediate data.
    pub(crate) imm: bool,
    /// What the queue must have been created for: a sum of the constants of [`Limits`].
    pub(crate) needs: u32,
}

/// What stands at [`Layout::payload`], and how much of it.
#[derive(Clone, Copy)]
pub(crate) enum Payload {
    /// Descriptors of local buffers.
    Bufs {
        least: u64,
        most: u64,
        /// What a decoder says of another number.
        expected: &'static str,
    },
    /// Bytes.
    Inline {
        /// Most of them in a WQE of 64 bytes, and of 128 bytes; 0 if the operation does not exist there.
        most: [usize; 2],
    },
}

/// Word where the descriptor of the remote buffer begins, of RDMA.
pub(crate) const RDMA_REMOTE: usize = 4;

const ONE_BUFFER: Payload = Payload::Bufs { least: 1, most: 1, expected: "1: RDMA has exactly one local buffer" };

pub(crate) const SEND: Layout = Layout {
    op: OpCode::Send,
    remote: None,
    payload: 4,
    kind: Payload::Bufs { least: 0, most: 2, expected: "at most 2 buffers in a send" },
    imm: true,
    needs: 0,
};
pub(crate) const SEND_INLINE: Layout = Layout { kind: Payload::Inline { most: [32, 80] }, ..SEND };
pub(crate) const RDMA_WRITE: Layout = Layout {
    op: OpCode::RdmaWrite,
    remote: Some(RDMA_REMOTE),
    payload: 6,
    kind: ONE_BUFFER,
    imm: true,
    needs: Limits::RDMA_WRITE,
};
pub(crate) const RDMA_WRITE_INLINE: Layout =
    Layout { kind: Payload::Inline { most: [0, 80] }, needs: Limits::RDMA_WRITE | Limits::INLINE_WRITE, ..RDMA_WRITE };
pub(crate) const RDMA_READ: Layout =
    Layout { op: OpCode::RdmaRead, imm: false, needs: Limits::RDMA_READ, ..RDMA_WRITE };

impl Layout {
    /// Returns the row of an operation with its bytes in registered buffers.
    pub(crate) const fn of(op: OpCode) -> Self {
        match op {
            OpCode::Send => SEND,
            OpCode::RdmaRead => RDMA_READ,
            OpCode::RdmaWrite => RDMA_WRITE,
        }
    }

    /// Returns the row of an operation with its bytes inline, or `None`: an RDMA read has none.
    pub(crate) const fn of_inline(op: OpCode) -> Option<Self> {
        match op {
            OpCode::Send => Some(SEND_INLINE),
            OpCode::RdmaRead => None,
            OpCode::RdmaWrite => Some(RDMA_WRITE_INLINE),
        }
    }

    /// Returns `true` if the payload is bytes in the WQE.
    #[inline(always)]
    pub(crate) const fn is_inline(&self) -> bool {
        matches!(self.kind, Payload::Inline { .. })
    }

    /// Returns the most inline bytes in a WQE of so many words.
    #[inline(always)]
    pub(crate) const fn max_inline(&self, words: usize) -> usize {
        match self.kind {
            Payload::Bufs { .. } => 0,
            Payload::Inline { most: [of_64, of_128] } => {
                if words > 8 {
                    of_128
                } else {
                    of_64
                }
            }
        }
    }
}
