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
//! Queues have 128-byte WQEs when they take more than 32 inline bytes or inline RDMA writes (`efa_calc_sq_wqe_size` in its `verbs.c`).

use crate::bits::Field;
use crate::error::DecodeError;
use crate::op::{
    Bufs, Destination, Hints, Lkey, LocalBuf, Op, OpCode, RdmaRead, RdmaWrite, RdmaWriteInline, RemoteBuf, Send,
    SendInline,
};
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

/// Fields of the buffers: `struct efa_io_tx_buf_desc` and `struct efa_io_remote_mem_addr`, by their first word.
pub(crate) mod buf_field {
    use super::Field;

    pub(crate) const fn length(word: usize) -> Field {
        Field::new("buf.length", word, 31, 0)
    }
    pub(crate) const fn lkey(word: usize) -> Field {
        Field::new("buf.lkey", word, 55, 32)
    }
    pub(crate) const fn reserved(word: usize) -> Field {
        Field::new("buf.reserved", word, 63, 56)
    }
    pub(crate) const fn addr(word: usize) -> Field {
        Field::new("buf.buf_addr", word + 1, 63, 0)
    }
    pub(crate) const fn remote_length(word: usize) -> Field {
        Field::new("remote_mem.length", word, 31, 0)
    }
    pub(crate) const fn rkey(word: usize) -> Field {
        Field::new("remote_mem.rkey", word, 63, 32)
    }
    pub(crate) const fn remote_addr(word: usize) -> Field {
        Field::new("remote_mem.buf_addr", word + 1, 63, 0)
    }
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
    /// Most inline bytes of an RDMA write; 0: not possible.
    const MAX_INLINE_WRITE: usize;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Wqe64 {}
    impl Sealed for super::Wqe128 {}
}

impl SendWqe for Wqe64 {
    const SIZE: usize = 64;
    const MAX_INLINE_SEND: usize = 32;
    const MAX_INLINE_WRITE: usize = 0;
}

impl SendWqe for Wqe128 {
    const SIZE: usize = 128;
    const MAX_INLINE_SEND: usize = 80;
    const MAX_INLINE_WRITE: usize = 80;
}

impl<const W: usize> Wqe<W> {
    /// A WQE of these words, unchecked: [`decode`](Self::decode) says what it means, if anything.
    #[inline(always)]
    pub const fn from_words(words: [u64; W]) -> Self {
        Self(words)
    }

    /// The words, in the order in which they stand in memory.
    #[inline(always)]
    pub const fn words(&self) -> &[u64; W] {
        &self.0
    }

    /// The bytes as they stand in the ring.
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    /// The same WQE with a 16-bit request id.
    #[inline(always)]
    pub const fn with_req_id(mut self, req_id: u16) -> Self {
        self.0[0] = field::REQ_ID.replace(self.0[0], req_id as u64);
        self
    }

    /// The same WQE with a 64-bit request id, for queues with that capability.
    #[inline(always)]
    pub const fn with_req_id_64(mut self, req_id: u64) -> Self {
        self.0[0] = field::REQ_ID.replace(self.0[0], req_id);
        self.0[3] = field::REQ_ID_EX.replace(self.0[3], req_id >> 16);
        self
    }

    /// The same WQE with the phase of the lap in which it is posted; see [`RingSize::wq_phase`](crate::RingSize::wq_phase).
    #[inline(always)]
    pub const fn with_phase(mut self, phase: bool) -> Self {
        self.0[0] = field::PHASE.replace(self.0[0], phase as u64);
        self
    }

    /// A WQE as an operation's `encode` gives it, with request id and phase put where it left zeros. `phase` is
    /// [`phase_bit`](Self::phase_bit), which a ring works out once per lap.
    #[inline(always)]
    pub const fn stamp(mut self, req_id: u16, phase: u64) -> Self {
        self.0[0] |= field::REQ_ID.put(req_id as u64) | phase;
        self
    }

    /// The same with a 64-bit request id, for queues with that capability.
    #[inline(always)]
    pub const fn stamp_64(mut self, req_id: u64, phase: u64) -> Self {
        self.0[0] |= field::REQ_ID.put(req_id) | phase;
        self.0[3] |= field::REQ_ID_EX.put(req_id >> 16);
        self
    }

    /// The phase as a bit of word 0.
    #[inline(always)]
    pub const fn phase_bit(phase: bool) -> u64 {
        field::PHASE.put(phase as u64)
    }

    /// The phase bit.
    #[inline(always)]
    pub const fn phase(&self) -> bool {
        field::PHASE.is_set(&self.0)
    }

    /// The request id: 16 bits, or all 64 where the queue has that capability.
    #[inline(always)]
    pub const fn req_id(&self) -> u64 {
        field::REQ_ID.get(&self.0) | field::REQ_ID_EX.get(&self.0) << 16
    }

    /// What the WQE asks for, checked as the device would.
    ///
    /// Bytes that its operation does not use are ignored.
    ///
    /// # Errors
    /// A [`DecodeError`] that names the first field which makes no sense.
    pub fn decode(&self) -> Result<SendRequest<'_>, DecodeError>
    where
        Self: SendWqe,
    {
        let words = &self.0;
        for one in field::MUST_BE_ONE {
            if !one.is_set(words) {
                return Err(DecodeError::at(one, 0, "1"));
            }
        }
        for zero in field::MUST_BE_ZERO {
            if zero.is_set(words) {
                return Err(DecodeError::at(zero, zero.get(words), "0, it is reserved"));
            }
        }
        let code = field::OP_TYPE.get(words);
        let Some(code) = OpCode::from_bits(code) else {
            return Err(DecodeError::at(field::OP_TYPE, code, "0 (send), 1 (RDMA read) or 2 (RDMA write)"));
        };
        let imm = field::HAS_IMM.is_set(words).then(|| field::IMMEDIATE_DATA.get(words) as u32);
        let hints = Hints::from_low_bits(field::PROCESSING_HINTS.get(words));
        let op = match (code, field::INLINE_MSG.is_set(words)) {
            (OpCode::Send, false) => Op::Send(Send { bufs: self.send_bufs()?, imm, hints }),
            (OpCode::Send, true) => {
                let data = self.inline_data(4, Self::MAX_INLINE_SEND)?;
                Op::SendInline(SendInline { data, imm, hints })
            }
            (OpCode::RdmaWrite, false) => {
                let (local, remote) = self.rdma_bufs()?;
                Op::RdmaWrite(RdmaWrite { local, remote, imm, hints })
            }
            (OpCode::RdmaWrite, true) => {
                if Self::MAX_INLINE_WRITE == 0 {
                    return Err(DecodeError::at(field::INLINE_MSG, 1, "0: an inline RDMA write takes a 128-byte WQE"));
                }
                let data = self.inline_data(6, Self::MAX_INLINE_WRITE)?;
                let remote = self.remote_buf(data.len() as u32)?;
                Op::RdmaWriteInline(RdmaWriteInline { data, remote, imm, hints })
            }
            (OpCode::RdmaRead, true) => return Err(DecodeError::at(field::INLINE_MSG, 1, "0 in an RDMA read")),
            (OpCode::RdmaRead, false) => {
                if imm.is_some() {
                    return Err(DecodeError::at(field::HAS_IMM, 1, "0 in an RDMA read"));
                }
                let (local, remote) = self.rdma_bufs()?;
                Op::RdmaRead(RdmaRead { local, remote, hints })
            }
        };
        Ok(SendRequest {
            req_id: self.req_id(),
            phase: self.phase(),
            dest: Destination {
                ah: field::AH.get(words) as u16,
                qpn: field::DEST_QP_NUM.get(words) as u16,
                qkey: field::QKEY.get(words) as u32,
            },
            op,
        })
    }

    fn send_bufs(&self) -> Result<Bufs, DecodeError> {
        let count = field::LENGTH.get(&self.0);
        let bufs = match count {
            0 => Bufs::new(&[]),
            1 => Bufs::new(&[self.local_buf(4)?]),
            2 => Bufs::new(&[self.local_buf(4)?, self.local_buf(6)?]),
            _ => return Err(DecodeError::at(field::LENGTH, count, "at most 2 buffers in a send")),
        };
        Ok(bufs.unwrap_or_default())
    }

    fn local_buf(&self, word: usize) -> Result<LocalBuf, DecodeError> {
        let reserved = buf_field::reserved(word);
        if reserved.is_set(&self.0) {
            return Err(DecodeError::at(reserved, reserved.get(&self.0), "0, it is reserved"));
        }
        Ok(LocalBuf {
            addr: buf_field::addr(word).get(&self.0),
            lkey: Lkey::from_low_bits(buf_field::lkey(word).get(&self.0)),
            length: buf_field::length(word).get(&self.0) as u32,
        })
    }

    fn remote_buf(&self, local_length: u32) -> Result<RemoteBuf, DecodeError> {
        let length = buf_field::remote_length(4);
        if length.get(&self.0) != local_length as u64 {
            return Err(DecodeError::at(length, length.get(&self.0), "the length of the local side"));
        }
        Ok(RemoteBuf { addr: buf_field::remote_addr(4).get(&self.0), rkey: buf_field::rkey(4).get(&self.0) as u32 })
    }

    fn rdma_bufs(&self) -> Result<(LocalBuf, RemoteBuf), DecodeError> {
        let count = field::LENGTH.get(&self.0);
        if count != 1 {
            return Err(DecodeError::at(field::LENGTH, count, "1: RDMA has exactly one local buffer"));
        }
        let local = self.local_buf(6)?;
        Ok((local, self.remote_buf(local.length)?))
    }

    fn inline_data(&self, word: usize, max: usize) -> Result<&[u8], DecodeError> {
        let length = field::LENGTH.get(&self.0);
        if length > max as u64 {
            return Err(DecodeError::at(field::LENGTH, length, "no more inline bytes than the WQE holds (32 or 80)"));
        }
        Ok(&self.as_bytes()[word * 8..][..length as usize])
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

/// A decoded send WQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendRequest<'a> {
    /// Request id. On a queue without 64-bit request ids the high 48 bits must be zero.
    pub req_id: u64,
    /// Phase bit of the lap.
    pub phase: bool,
    /// Where it goes.
    pub dest: Destination,
    /// What it does.
    pub op: Op<'a>,
}
