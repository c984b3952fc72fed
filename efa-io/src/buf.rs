//! Where a request's bytes are: keys, local and remote buffers, and their descriptors in a WQE.

use crate::bits::Field;
use crate::error::EncodeError;

/// Fields of a buffer's descriptor, `struct efa_io_tx_buf_desc` or `struct efa_io_remote_mem_addr`, by its first word.
pub(crate) mod field {
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

/// The local key of a memory region: 24 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lkey(u32);

impl Lkey {
    /// Wraps a local key as verbs returned it.
    ///
    /// # Errors
    /// [`EncodeError::LkeyTooWide`] if it does not fit the WQE's 24 bits; the vendor's library cuts such a key off.
    pub const fn new(lkey: u32) -> Result<Self, EncodeError> {
        if lkey >> 24 == 0 { Ok(Self(lkey)) } else { Err(EncodeError::LkeyTooWide { lkey }) }
    }

    /// Returns the low 24 bits of `bits`, which is how a WQE holds a key.
    pub(crate) const fn from_low_bits(bits: u64) -> Self {
        Self(bits as u32 & 0xff_ffff)
    }

    /// Returns the key's value.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Registered local memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LocalBuf {
    /// Virtual address of the first byte.
    pub addr: u64,
    /// Key of the region.
    pub lkey: Lkey,
    /// Length in bytes.
    pub length: u32,
}

impl LocalBuf {
    pub(crate) const NONE: Self = Self { addr: 0, lkey: Lkey(0), length: 0 };
    const KEY: u32 = field::lkey(0).shift();

    /// Returns the buffer's descriptor, `struct efa_io_tx_buf_desc`.
    #[inline(always)]
    pub const fn words(self) -> [u64; 2] {
        // The key has 24 bits by its type, so it is not masked: this is part of every post.
        [self.length as u64 | (self.lkey.get() as u64) << Self::KEY, self.addr]
    }

    /// Returns the buffer that such a descriptor describes.
    #[inline(always)]
    pub const fn from_words([first, addr]: [u64; 2]) -> Self {
        Self { addr, lkey: Lkey::from_low_bits(first >> Self::KEY), length: first as u32 }
    }
}

/// Remote memory. The length of an RDMA operation is that of its local side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RemoteBuf {
    /// Address of the first byte, in the remote region's address space.
    pub addr: u64,
    /// Remote key of the region.
    pub rkey: u32,
}

impl RemoteBuf {
    pub(crate) const NONE: Self = Self { addr: 0, rkey: 0 };
    const KEY: u32 = field::rkey(0).shift();

    /// Returns the memory's descriptor, `struct efa_io_remote_mem_addr`, for `length` bytes.
    #[inline(always)]
    pub const fn words(self, length: u32) -> [u64; 2] {
        [length as u64 | (self.rkey as u64) << Self::KEY, self.addr]
    }

    /// Returns the memory that such a descriptor describes, without its length.
    #[inline(always)]
    pub const fn from_words([first, addr]: [u64; 2]) -> Self {
        Self { addr, rkey: (first >> Self::KEY) as u32 }
    }
}

/// The buffers of a send, at most two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bufs {
    bufs: [LocalBuf; 2],
    count: usize,
}

impl Bufs {
    pub(crate) const NONE: Self = Self { bufs: [LocalBuf::NONE; 2], count: 0 };

    /// Takes up to two buffers.
    ///
    /// # Errors
    /// [`EncodeError::TooManyBuffers`] for three or more.
    pub const fn new(bufs: &[LocalBuf]) -> Result<Self, EncodeError> {
        match *bufs {
            [] => Ok(Self::NONE),
            [a] => Ok(Self::one(a)),
            [a, b] => Ok(Self::two(a, b)),
            _ => Err(EncodeError::TooManyBuffers { given: bufs.len(), max: 2 }),
        }
    }

    #[inline(always)]
    pub(crate) const fn one(buf: LocalBuf) -> Self {
        Self { bufs: [buf, LocalBuf::NONE], count: 1 }
    }

    #[inline(always)]
    pub(crate) const fn two(first: LocalBuf, second: LocalBuf) -> Self {
        Self { bufs: [first, second], count: 2 }
    }

    /// Returns the buffers.
    pub fn as_slice(&self) -> &[LocalBuf] {
        &self.bufs[..self.count]
    }

    /// Returns the number of bytes in all buffers together.
    #[inline(always)]
    pub const fn total_bytes(&self) -> u64 {
        self.bufs[0].length as u64 + self.bufs[1].length as u64
    }

    #[inline(always)]
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// Returns both buffers; those that do not exist have no bytes, address 0 and key 0.
    #[inline(always)]
    pub(crate) const fn both(&self) -> [LocalBuf; 2] {
        self.bufs
    }
}
