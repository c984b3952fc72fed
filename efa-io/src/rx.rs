//! The receive descriptor, 16 bytes: a buffer for an incoming message.
//!
//! A receive with several buffers is several descriptors in a row: the first has the request id and the `first` bit,
//! the last has the `last` bit (`struct efa_io_rx_desc`, and `efa_post_recv` in rdma-core 65's `verbs.c`). Receive
//! descriptors have no phase: the device goes by the doorbell alone.

use crate::bits::Field;
use crate::buf::Lkey;
use crate::error::DecodeError;
use static_assertions::const_assert_eq;

pub(crate) mod field {
    use super::Field;

    pub(crate) const BUF_ADDR: Field = Field::new("buf_addr", 0, 63, 0);
    pub(crate) const REQ_ID: Field = Field::new("req_id", 1, 15, 0);
    pub(crate) const LENGTH: Field = Field::new("length", 1, 31, 16);
    pub(crate) const LKEY: Field = Field::new("lkey_ctrl.lkey", 1, 55, 32);
    pub(crate) const RESERVED: Field = Field::new("lkey_ctrl.reserved", 1, 61, 56);
    pub(crate) const FIRST: Field = Field::new("lkey_ctrl.first", 1, 62, 62);
    pub(crate) const LAST: Field = Field::new("lkey_ctrl.last", 1, 63, 63);
}

/// A receive descriptor as it stands in the ring.
#[derive(Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct RxDesc([u64; 2]);

const_assert_eq!(size_of::<RxDesc>(), RxDesc::SIZE);

/// A decoded receive descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxBuf {
    /// Request id; meaningful in the first descriptor of a receive.
    pub req_id: u16,
    /// Virtual address of the buffer.
    pub addr: u64,
    /// Key of the buffer's region.
    pub lkey: Lkey,
    /// Length in bytes, up to 65535: far more than the MTU, which bounds a message.
    pub length: u16,
    /// First descriptor of a receive.
    pub first: bool,
    /// Last descriptor of a receive.
    pub last: bool,
}

impl RxDesc {
    /// Bytes of a descriptor, the entry size of a receive ring.
    pub const SIZE: usize = 16;

    /// The descriptor of `buf`.
    #[inline(always)]
    pub const fn new(buf: RxBuf) -> Self {
        Self([
            buf.addr,
            field::REQ_ID.put(buf.req_id as u64)
                | field::LENGTH.put(buf.length as u64)
                | field::LKEY.put(buf.lkey.get() as u64)
                | field::FIRST.put(buf.first as u64)
                | field::LAST.put(buf.last as u64),
        ])
    }

    /// The descriptor of these words, unchecked; see [`decode`](Self::decode).
    #[inline(always)]
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self(words)
    }

    /// Returns the words, in the order in which they stand in memory.
    #[inline(always)]
    pub const fn words(&self) -> &[u64; 2] {
        &self.0
    }

    /// Returns the bytes as they stand in the ring.
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    /// Decodes the descriptor.
    ///
    /// # Errors
    /// Reserved bits that are set.
    pub const fn decode(&self) -> Result<RxBuf, DecodeError> {
        let words = &self.0;
        if field::RESERVED.is_set(words) {
            return Err(DecodeError::at(field::RESERVED, field::RESERVED.get(words), "0, it is reserved"));
        }
        Ok(RxBuf {
            req_id: field::REQ_ID.get(words) as u16,
            addr: field::BUF_ADDR.get(words),
            lkey: Lkey::from_low_bits(field::LKEY.get(words)),
            length: field::LENGTH.get(words) as u16,
            first: field::FIRST.is_set(words),
            last: field::LAST.is_set(words),
        })
    }
}

impl core::fmt::Debug for RxDesc {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "RxDesc({:016x} {:016x})", self.0[0], self.0[1])
    }
}
