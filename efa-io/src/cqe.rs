//! The completion entry: the work request that is done, its status, and for a receive the message that arrived.
//!
//! Source: `struct efa_io_cdesc_common`, `efa_io_tx_cdesc`, `efa_io_rx_cdesc` and `efa_io_rx_cdesc_ex` in rdma-core
//! 65's `efa_io_defs.h`. libefa always creates queues with 32-byte entries; the upper half holds the high bits of a
//! long length, or the source address of a peer that has no address handle here.

use crate::bits::Field;
use crate::error::{DecodeError, EncodeError};
use crate::opcode::OpCode;
use crate::status::Status;
use static_assertions::const_assert_eq;

pub(crate) mod field {
    use super::Field;

    pub(crate) const REQ_ID: Field = Field::new("req_id", 0, 15, 0);
    pub(crate) const STATUS: Field = Field::new("status", 0, 23, 16);
    pub(crate) const PHASE: Field = Field::new("flags.phase", 0, 24, 24);
    pub(crate) const Q_TYPE: Field = Field::new("flags.q_type", 0, 26, 25);
    pub(crate) const HAS_IMM: Field = Field::new("flags.has_imm", 0, 27, 27);
    pub(crate) const OP_TYPE: Field = Field::new("flags.op_type", 0, 30, 28);
    pub(crate) const UNSOLICITED: Field = Field::new("flags.unsolicited", 0, 31, 31);
    pub(crate) const QP_NUM: Field = Field::new("qp_num", 0, 47, 32);
    /// Send completions: request id bits 31:16, then 63:32.
    pub(crate) const REQ_ID_EX_LO: Field = Field::new("req_id_ex", 0, 63, 48);
    pub(crate) const REQ_ID_EX_HI: Field = Field::new("req_id_ex", 1, 31, 0);
    /// Receive completions.
    pub(crate) const LENGTH: Field = Field::new("length", 0, 63, 48);
    pub(crate) const AH: Field = Field::new("ah", 1, 15, 0);
    pub(crate) const SRC_QP_NUM: Field = Field::new("src_qp_num", 1, 31, 16);
    pub(crate) const IMM: Field = Field::new("imm", 1, 63, 32);
    pub(crate) const LENGTH_HI: Field = Field::new("rdma_write.length_hi", 2, 15, 0);
}

/// `enum efa_io_queue_type`.
pub(crate) const SEND_QUEUE: u64 = 1;
pub(crate) const RECV_QUEUE: u64 = 2;
/// A source that has no address handle on this device.
pub(crate) const UNKNOWN_AH: u16 = 0xffff;

/// A completion entry of `W` 64-bit words: [`Cqe16`] or [`Cqe32`].
#[derive(Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Cqe<const W: usize>([u64; W]);

/// A completion entry of 16 bytes.
pub type Cqe16 = Cqe<2>;
/// A completion entry of 32 bytes.
pub type Cqe32 = Cqe<4>;

const_assert_eq!(size_of::<Cqe16>(), 16);
const_assert_eq!(size_of::<Cqe32>(), 32);

/// A decoded completion entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Request id of the work request: 16 bits, or for a send on a queue with 64-bit request ids all 64.
    /// Meaningless in an unsolicited receive.
    pub req_id: u64,
    /// Status of the work request.
    pub status: Status,
    /// Local queue pair number.
    pub qpn: u16,
    /// Phase bit of the lap.
    pub phase: bool,
    /// The work request or the message.
    pub event: Event,
}

/// The kind of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A work request of a send queue.
    Send {
        /// Its operation.
        op: OpCode,
    },
    /// A receive: a message arrived.
    Receive(Received),
}

/// A message that arrived: a send, or an RDMA write with immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// [`OpCode::Send`], or [`OpCode::RdmaWrite`] for a write with immediate.
    pub op: OpCode,
    /// Length of the message in bytes. A 16-byte entry holds the low 16 bits only.
    pub length: u32,
    /// Address handle of the sender on this device, `None` if it has none.
    pub ah: Option<u16>,
    /// Queue pair number of the sender.
    pub src_qpn: u16,
    /// Immediate data (host byte order), if there was any.
    pub imm: Option<u32>,
    /// `true` if no receive descriptor was consumed: a write with immediate to a queue pair that was created with
    /// unsolicited write receives.
    pub unsolicited: bool,
    /// The sender's GID, in the 32-byte entry of a send from a peer without address handle. All zero if the completion
    /// queue was not created to report it.
    pub src_gid: Option<[u8; 16]>,
}

impl<const W: usize> Cqe<W> {
    /// Bytes of the entry.
    pub const SIZE: usize = W * 8;

    /// The entry of these words, unchecked; see [`decode`](Self::decode).
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

    /// Sets the phase of the lap in which the entry is written; see [`CqCursor::phase`](crate::CqCursor).
    #[inline(always)]
    pub const fn with_phase(mut self, phase: bool) -> Self {
        self.0[0] = field::PHASE.replace(self.0[0], phase as u64);
        self
    }

    /// Returns the phase bit. An entry is valid only if it is that of the reader's [`CqCursor`](crate::CqCursor).
    #[inline(always)]
    pub const fn phase(&self) -> bool {
        field::PHASE.is_set(&self.0)
    }

    /// Returns the status of the work request.
    #[inline(always)]
    pub const fn status(&self) -> Status {
        Status::from_code(field::STATUS.get(&self.0) as u8)
    }

    /// Returns the local queue pair number.
    #[inline(always)]
    pub const fn qpn(&self) -> u16 {
        field::QP_NUM.get(&self.0) as u16
    }

    /// Returns `true` if it completes a work request of the send queue.
    #[inline(always)]
    pub const fn is_send(&self) -> bool {
        field::Q_TYPE.get(&self.0) == SEND_QUEUE
    }

    /// Returns `true` if it is a receive that consumed no descriptor. Meaningless in a send's entry.
    #[inline(always)]
    pub const fn is_unsolicited(&self) -> bool {
        field::UNSOLICITED.is_set(&self.0)
    }

    /// Returns `true` if the second half of a 32-byte entry holds nothing: it is used only for the high bits of a
    /// write's length, and for the address of a peer without address handle.
    #[inline(always)]
    pub const fn is_all_in_first_half(&self) -> bool {
        self.is_send()
            || field::OP_TYPE.get(&self.0) != OpCode::RdmaWrite as u64 && field::AH.get(&self.0) != UNKNOWN_AH as u64
    }

    /// Decodes the entry.
    ///
    /// # Errors
    /// An invalid operation or queue type. A status without a name is valid: [`Status::Other`].
    #[inline]
    pub const fn decode(&self) -> Result<Completion, DecodeError> {
        let words = &self.0;
        let op = field::OP_TYPE.get(words);
        let Some(op) = OpCode::from_bits(op) else {
            return Err(DecodeError::at(field::OP_TYPE, op, "0 (send), 1 (RDMA read) or 2 (RDMA write)"));
        };
        let mut req_id = field::REQ_ID.get(words);
        let event = match field::Q_TYPE.get(words) {
            SEND_QUEUE => {
                req_id |= field::REQ_ID_EX_LO.get(words) << 16 | field::REQ_ID_EX_HI.get(words) << 32;
                Event::Send { op }
            }
            RECV_QUEUE if matches!(op, OpCode::RdmaRead) => {
                return Err(DecodeError::at(field::OP_TYPE, op as u64, "0 or 2: nobody receives an RDMA read"));
            }
            RECV_QUEUE => Event::Receive(self.received(op)),
            other => return Err(DecodeError::at(field::Q_TYPE, other, "1 (send queue) or 2 (receive queue)")),
        };
        Ok(Completion { req_id, status: self.status(), qpn: self.qpn(), phase: self.phase(), event })
    }

    #[inline(always)]
    const fn received(&self, op: OpCode) -> Received {
        let words = &self.0;
        let ah = field::AH.get(words) as u16;
        let write = matches!(op, OpCode::RdmaWrite);
        let mut length = field::LENGTH.get(words) as u32;
        if W > 2 && write {
            length |= (field::LENGTH_HI.get(words) as u32) << 16;
        }
        Received {
            op,
            length,
            ah: if ah == UNKNOWN_AH { None } else { Some(ah) },
            src_qpn: field::SRC_QP_NUM.get(words) as u16,
            imm: if field::HAS_IMM.is_set(words) { Some(field::IMM.get(words) as u32) } else { None },
            unsolicited: field::UNSOLICITED.is_set(words),
            src_gid: if W > 2 && ah == UNKNOWN_AH && !write { Some(gid_of(words[2], words[3])) } else { None },
        }
    }
}

const fn gid_of(lo: u64, hi: u64) -> [u8; 16] {
    (lo as u128 | (hi as u128) << 64).to_le_bytes()
}

impl Completion {
    /// Encodes the entry that a device writes for this completion.
    ///
    /// # Errors
    /// [`EncodeError::EntryTooSmall`] for a receive over 65535 bytes in a 16-byte entry.
    pub const fn encode<const W: usize>(&self) -> Result<Cqe<W>, EncodeError> {
        let mut words = [0; W];
        words[0] = field::REQ_ID.put(self.req_id)
            | field::STATUS.put(self.status.code() as u64)
            | field::PHASE.put(self.phase as u64)
            | field::QP_NUM.put(self.qpn as u64);
        match self.event {
            Event::Send { op } => {
                words[0] |= field::Q_TYPE.put(SEND_QUEUE)
                    | field::OP_TYPE.put(op as u64)
                    | field::REQ_ID_EX_LO.put(self.req_id >> 16);
                words[1] = field::REQ_ID_EX_HI.put(self.req_id >> 32);
            }
            Event::Receive(r) => {
                let (has_imm, imm) = match r.imm {
                    Some(imm) => (1, imm as u64),
                    None => (0, 0),
                };
                let ah = match r.ah {
                    Some(ah) => ah,
                    None => UNKNOWN_AH,
                };
                words[0] |= field::Q_TYPE.put(RECV_QUEUE)
                    | field::OP_TYPE.put(r.op as u64)
                    | field::HAS_IMM.put(has_imm)
                    | field::UNSOLICITED.put(r.unsolicited as u64)
                    | field::LENGTH.put(r.length as u64);
                words[1] = field::AH.put(ah as u64) | field::SRC_QP_NUM.put(r.src_qpn as u64) | field::IMM.put(imm);
                if W > 2 {
                    if matches!(r.op, OpCode::RdmaWrite) {
                        words[2] = field::LENGTH_HI.put((r.length >> 16) as u64);
                    } else if let Some(gid) = r.src_gid {
                        let gid = u128::from_le_bytes(gid);
                        [words[2], words[3]] = [gid as u64, (gid >> 64) as u64];
                    }
                } else if r.length > 0xffff {
                    return Err(EncodeError::EntryTooSmall { length: r.length });
                }
            }
        }
        Ok(Cqe(words))
    }
}

impl<const W: usize> core::fmt::Debug for Cqe<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Cqe{}(", W * 8)?;
        for word in &self.0 {
            write!(f, " {word:016x}")?;
        }
        write!(f, " )")
    }
}
