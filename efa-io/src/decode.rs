//! The checked decoder of a WQE: back to the request that it was made of, or the first field that is invalid.

use crate::buf::{Bufs, LocalBuf, RemoteBuf, field as buf_field};
use crate::error::DecodeError;
use crate::layout::{self, Layout, Payload};
use crate::meta::{Destination, Hints};
use crate::op::{Parts, RdmaRead, RdmaWrite, RdmaWriteInline, Send, SendInline};
use crate::opcode::OpCode;
use crate::wqe::{SendWqe, Wqe, field};

/// A decoded send WQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendRequest<'a> {
    /// Request id. On a queue without 64-bit request ids the high 48 bits must be zero.
    pub req_id: u64,
    /// Phase bit of the lap.
    pub phase: bool,
    /// Destination.
    pub dest: Destination,
    /// Operation.
    pub op: Op<'a>,
}

/// Any operation, as decoded from a WQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// See [`Send`].
    Send(Send),
    /// See [`SendInline`].
    SendInline(SendInline<'a>),
    /// See [`RdmaWrite`].
    RdmaWrite(RdmaWrite),
    /// See [`RdmaWriteInline`].
    RdmaWriteInline(RdmaWriteInline<'a>),
    /// See [`RdmaRead`].
    RdmaRead(RdmaRead),
}

impl<'a> Op<'a> {
    const fn new(layout: &Layout, Parts { remote, bufs, data, imm, hints }: Parts<'a>) -> Self {
        let [local, _] = bufs.both();
        match (layout.op, layout.is_inline()) {
            (OpCode::Send, false) => Self::Send(Send { bufs, imm, hints }),
            (OpCode::Send, true) => Self::SendInline(SendInline { data, imm, hints }),
            (OpCode::RdmaWrite, false) => Self::RdmaWrite(RdmaWrite { local, remote, imm, hints }),
            (OpCode::RdmaWrite, true) => Self::RdmaWriteInline(RdmaWriteInline { data, remote, imm, hints }),
            (OpCode::RdmaRead, _) => Self::RdmaRead(RdmaRead { local, remote, hints }),
        }
    }

    /// Returns the operation's row of the table, and its parts. Inline, so that whoever asks for one part pays for one.
    #[inline(always)]
    const fn parts(&self) -> (Layout, Parts<'_>) {
        match self {
            Self::Send(op) => (layout::SEND, op.parts()),
            Self::SendInline(op) => (layout::SEND_INLINE, op.parts()),
            Self::RdmaWrite(op) => (layout::RDMA_WRITE, op.parts()),
            Self::RdmaWriteInline(op) => (layout::RDMA_WRITE_INLINE, op.parts()),
            Self::RdmaRead(op) => (layout::RDMA_READ, op.parts()),
        }
    }

    /// Returns the operation's number.
    #[inline]
    pub const fn code(&self) -> OpCode {
        self.parts().0.op
    }

    /// Returns the immediate, if the operation carries one.
    #[inline]
    pub const fn imm(&self) -> Option<u32> {
        self.parts().1.imm
    }

    /// Returns the number of bytes that the operation moves.
    #[inline]
    pub const fn total_bytes(&self) -> u64 {
        let (layout, parts) = self.parts();
        parts.total_bytes(&layout)
    }
}

impl<const W: usize> Wqe<W>
where
    Self: SendWqe,
{
    /// Decodes the request, checked as the device would.
    ///
    /// Bytes that its operation does not use are ignored.
    ///
    /// # Errors
    /// A [`DecodeError`] that names the first invalid field.
    pub fn decode(&self) -> Result<SendRequest<'_>, DecodeError> {
        let words = self.words();
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
        let layout = self.layout()?;
        Ok(SendRequest {
            req_id: self.req_id(),
            phase: self.phase(),
            dest: Destination {
                ah: field::AH.get(words) as u16,
                qpn: field::DEST_QP_NUM.get(words) as u16,
                qkey: field::QKEY.get(words) as u32,
            },
            op: Op::new(&layout, self.parts(&layout)?),
        })
    }

    /// Finds the row of the table.
    fn layout(&self) -> Result<Layout, DecodeError> {
        let words = self.words();
        let code = field::OP_TYPE.get(words);
        let Some(op) = OpCode::from_bits(code) else {
            return Err(DecodeError::at(field::OP_TYPE, code, "0 (send), 1 (RDMA read) or 2 (RDMA write)"));
        };
        let layout = if !field::INLINE_MSG.is_set(words) {
            Layout::of(op)
        } else {
            let Some(layout) = Layout::of_inline(op) else {
                return Err(DecodeError::at(field::INLINE_MSG, 1, "0 in an RDMA read"));
            };
            if layout.max_inline(W) == 0 {
                return Err(DecodeError::at(field::INLINE_MSG, 1, "0: an inline RDMA write takes a 128-byte WQE"));
            }
            layout
        };
        if field::HAS_IMM.is_set(words) && !layout.imm {
            return Err(DecodeError::at(field::HAS_IMM, 1, "0 in an RDMA read"));
        }
        Ok(layout)
    }

    fn parts(&self, layout: &Layout) -> Result<Parts<'_>, DecodeError> {
        let words = self.words();
        let mut parts = Parts {
            imm: field::HAS_IMM.is_set(words).then(|| field::IMMEDIATE_DATA.get(words) as u32),
            hints: Hints::from_low_bits(field::PROCESSING_HINTS.get(words)),
            ..Parts::NONE
        };
        let length = field::LENGTH.get(words);
        match layout.kind {
            Payload::Inline { .. } if length > layout.max_inline(W) as u64 => {
                return Err(DecodeError::at(
                    field::LENGTH,
                    length,
                    "no more inline bytes than the WQE holds (32 or 80)",
                ));
            }
            Payload::Inline { .. } => parts.data = &self.as_bytes()[layout.payload * 8..][..length as usize],
            Payload::Bufs { least, most, expected } if length < least || length > most => {
                return Err(DecodeError::at(field::LENGTH, length, expected));
            }
            Payload::Bufs { .. } => parts.bufs = self.bufs(layout.payload, length)?,
        }
        if let Some(at) = layout.remote {
            let remote_length = buf_field::remote_length(at);
            if remote_length.get(words) != parts.total_bytes(layout) {
                return Err(DecodeError::at(remote_length, remote_length.get(words), "the length of the local side"));
            }
            parts.remote = RemoteBuf::from_words([words[at], words[at + 1]]);
        }
        Ok(parts)
    }

    /// Decodes `count` buffers from word `at` on, two at most.
    fn bufs(&self, at: usize, count: u64) -> Result<Bufs, DecodeError> {
        let bufs = match count {
            0 => Bufs::NONE,
            1 => Bufs::one(self.local_buf(at)?),
            _ => Bufs::two(self.local_buf(at)?, self.local_buf(at + 2)?),
        };
        Ok(bufs)
    }

    fn local_buf(&self, at: usize) -> Result<LocalBuf, DecodeError> {
        let words = self.words();
        let reserved = buf_field::reserved(at);
        if reserved.is_set(words) {
            return Err(DecodeError::at(reserved, reserved.get(words), "0, it is reserved"));
        }
        Ok(LocalBuf::from_words([words[at], words[at + 1]]))
    }
}
