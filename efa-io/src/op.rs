//! What can be asked of a send queue, and how each request becomes a WQE.
//!
//! An operation is a small value: where the bytes are, where they go, an optional immediate. Its `encode` checks it
//! against the queue's [`Limits`] and gives the WQE without request id and phase, which the ring adds when it posts
//! ([`Wqe::with_req_id`], [`Wqe::with_phase`]).
//!
//! ```
//! use efa_io::*;
//!
//! let limits = Limits::of_queue(8192, 1 << 30);
//! let peer = Destination { ah: 3, qpn: 17, qkey: 0x1234 };
//! let local = LocalBuf { addr: 0x7f00_0000_1000, lkey: Lkey::new(0x42)?, length: 4096 };
//! let remote = RemoteBuf { addr: 0x7f11_0000_2000, rkey: 0x99 };
//!
//! let wqe: Wqe64 = RdmaWrite::new(local, remote).imm(7).encode(&limits, peer)?;
//! let wqe = wqe.with_req_id(5).with_phase(false);
//! assert_eq!(wqe.as_bytes()[..4], [5, 0, 0x92, 0x1c]);
//! # Ok::<(), EncodeError>(())
//! ```

use crate::error::EncodeError;
use crate::wqe::{SendWqe, Wqe, field};
use core::fmt;

/// The operation of a send WQE or a completion (`enum efa_io_send_op_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpCode {
    /// A message that consumes a receive descriptor at the destination.
    Send = 0,
    /// Fetches remote memory.
    RdmaRead = 1,
    /// Places bytes in remote memory.
    RdmaWrite = 2,
}

impl OpCode {
    /// The operation with this number, or `None`: 3 to 15 are not assigned.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            0 => Some(Self::Send),
            1 => Some(Self::RdmaRead),
            2 => Some(Self::RdmaWrite),
            _ => None,
        }
    }
}

impl fmt::Display for OpCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Send => "send",
            Self::RdmaRead => "RDMA read",
            Self::RdmaWrite => "RDMA write",
        })
    }
}

/// Whom a WQE goes to. SRD is connectionless, so every WQE names its destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Address handle number, as `efadv_query_ah` gives it.
    pub ah: u16,
    /// Queue pair number at the destination.
    pub qpn: u16,
    /// The destination queue pair's queue key.
    pub qkey: u32,
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

    /// The low 24 bits of `bits`, which is how a WQE holds a key.
    pub(crate) const fn from_low_bits(bits: u64) -> Self {
        Self(bits as u32 & 0xff_ffff)
    }

    /// The key's value.
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
    /// Bytes.
    pub length: u32,
}

/// Remote memory. The length of an RDMA operation is that of its local side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RemoteBuf {
    /// Address of the first byte, in the remote region's address space.
    pub addr: u64,
    /// Remote key of the region.
    pub rkey: u32,
}

/// How the device should treat a WQE (`enum efa_io_processing_hint`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints(u8);

impl Hints {
    /// No hint.
    pub const NONE: Self = Self(0);
    /// Part of a burst of many small messages: prefer packets per second over latency.
    pub const BURST_PPS: Self = Self(1);

    /// The hint's two bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Hints from the two bits of a WQE.
    pub(crate) const fn from_low_bits(bits: u64) -> Self {
        Self(bits as u8 & 3)
    }
}

/// What a send queue takes, to be checked when a WQE is built.
///
/// The layout is fixed, since it is part of what a host hands to a GPU kernel ([`SendRingHandle`](crate::SendRingHandle)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Limits {
    /// Longest send in bytes: the device's MTU.
    pub max_send_bytes: u32,
    /// Longest RDMA read or write in bytes (`max_rdma_size`); 0 where the device has no RDMA.
    pub max_rdma_bytes: u32,
    /// Longest inline message in bytes; the WQE's size limits it further.
    pub max_inline_bytes: u16,
    /// Most buffers in one send (`max_sq_sge`), at most 2.
    pub max_send_bufs: u16,
    /// Which operations the queue was created with: a sum of the constants of this type.
    pub operations: u32,
}

impl Limits {
    /// The queue does RDMA reads.
    pub const RDMA_READ: u32 = 1;
    /// The queue does RDMA writes.
    pub const RDMA_WRITE: u32 = 2;
    /// The queue does inline RDMA writes, and so has 128-byte WQEs.
    pub const INLINE_WRITE: u32 = 4;

    /// A queue that can do everything, with its longest send and its longest RDMA operation in bytes.
    pub const fn of_queue(max_send_bytes: u32, max_rdma_bytes: u32) -> Self {
        Self {
            max_send_bytes,
            max_rdma_bytes,
            max_inline_bytes: 80,
            max_send_bufs: 2,
            operations: Self::RDMA_READ | Self::RDMA_WRITE | Self::INLINE_WRITE,
        }
    }

    #[inline(always)]
    const fn check_rdma(&self, op: OpCode, needs: u32, length: u32) -> Result<(), EncodeError> {
        if self.operations & needs != needs {
            return Err(EncodeError::Unsupported { op });
        }
        if length > self.max_rdma_bytes {
            return Err(EncodeError::MessageTooLong { op, given: length as u64, max: self.max_rdma_bytes });
        }
        Ok(())
    }

    const fn check_inline(&self, given: usize, fits_wqe: usize) -> Result<(), EncodeError> {
        let of_queue = self.max_inline_bytes as usize;
        let max = if of_queue < fits_wqe { of_queue } else { fits_wqe };
        if given <= max { Ok(()) } else { Err(EncodeError::InlineTooLong { given, max }) }
    }
}

/// The buffers of a send, at most two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bufs {
    bufs: [LocalBuf; 2],
    count: usize,
}

impl Bufs {
    /// Takes up to two buffers.
    ///
    /// # Errors
    /// [`EncodeError::TooManyBuffers`] for three or more.
    pub const fn new(bufs: &[LocalBuf]) -> Result<Self, EncodeError> {
        const NONE: LocalBuf = LocalBuf { addr: 0, lkey: Lkey(0), length: 0 };
        match *bufs {
            [] => Ok(Self { bufs: [NONE, NONE], count: 0 }),
            [a] => Ok(Self { bufs: [a, NONE], count: 1 }),
            [a, b] => Ok(Self { bufs: [a, b], count: 2 }),
            _ => Err(EncodeError::TooManyBuffers { given: bufs.len(), max: 2 }),
        }
    }

    /// The buffers.
    pub fn as_slice(&self) -> &[LocalBuf] {
        &self.bufs[..self.count]
    }

    /// Bytes in all buffers together.
    pub const fn total_bytes(&self) -> u64 {
        self.bufs[0].length as u64 + self.bufs[1].length as u64
    }
}

/// An operation that a send queue of WQE size `W` words takes. Sealed: the five operations of this module.
pub trait Operation<const W: usize>: sealed::Sealed
where
    Wqe<W>: SendWqe,
{
    /// Checks the request against `limits` and builds its WQE, request id and phase left zero.
    ///
    /// # Errors
    /// An [`EncodeError`] that says which limit was passed.
    #[inline(always)]
    fn encode(&self, limits: &Limits, dest: Destination) -> Result<Wqe<W>, EncodeError> {
        self.check(limits)?;
        Ok(self.wqe(dest))
    }

    /// Checks the request against `limits`.
    ///
    /// # Errors
    /// An [`EncodeError`] that says which limit is passed.
    fn check(&self, limits: &Limits) -> Result<(), EncodeError>;

    /// Builds the WQE, request id and phase left zero, of a request that was [checked](Self::check). Of one that was not, some of it may be left out.
    fn wqe(&self, dest: Destination) -> Wqe<W>;
}

mod sealed {
    pub trait Sealed {}
}

/// Sends a message from up to two registered buffers; it consumes a receive descriptor at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send {
    /// Where the message is; no buffer at all is an empty message.
    pub bufs: Bufs,
    /// Immediate data, delivered in the receiver's completion.
    pub imm: Option<u32>,
    /// Processing hints.
    pub hints: Hints,
}

/// Sends a message that travels inside the WQE: no key, no DMA, and the caller's bytes are free at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendInline<'a> {
    /// The message: up to 32 bytes in a 64-byte WQE, 80 in a 128-byte one.
    pub data: &'a [u8],
    /// Immediate data, delivered in the receiver's completion.
    pub imm: Option<u32>,
    /// Processing hints.
    pub hints: Hints,
}

/// Writes registered local memory into remote memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaWrite {
    /// Source.
    pub local: LocalBuf,
    /// Target; as many bytes as `local` has.
    pub remote: RemoteBuf,
    /// Immediate data: with it, the target learns of the write from its completion queue.
    pub imm: Option<u32>,
    /// Processing hints.
    pub hints: Hints,
}

/// Writes bytes that travel inside the WQE into remote memory. 128-byte WQEs only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaWriteInline<'a> {
    /// The bytes, up to 80.
    pub data: &'a [u8],
    /// Target.
    pub remote: RemoteBuf,
    /// Immediate data: with it, the target learns of the write from its completion queue.
    pub imm: Option<u32>,
    /// Processing hints.
    pub hints: Hints,
}

/// Reads remote memory into registered local memory. It carries no immediate: the target does not notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaRead {
    /// Target of the bytes.
    pub local: LocalBuf,
    /// Source; as many bytes as `local` has.
    pub remote: RemoteBuf,
    /// Processing hints.
    pub hints: Hints,
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

impl Op<'_> {
    /// The operation's number.
    pub const fn code(&self) -> OpCode {
        match self {
            Self::Send(_) | Self::SendInline(_) => OpCode::Send,
            Self::RdmaWrite(_) | Self::RdmaWriteInline(_) => OpCode::RdmaWrite,
            Self::RdmaRead(_) => OpCode::RdmaRead,
        }
    }

    /// The immediate, if the operation carries one.
    pub const fn imm(&self) -> Option<u32> {
        match self {
            Self::Send(op) => op.imm,
            Self::SendInline(op) => op.imm,
            Self::RdmaWrite(op) => op.imm,
            Self::RdmaWriteInline(op) => op.imm,
            Self::RdmaRead(_) => None,
        }
    }

    /// Bytes that the operation moves.
    pub const fn total_bytes(&self) -> u64 {
        match self {
            Self::Send(op) => op.bufs.total_bytes(),
            Self::SendInline(op) => op.data.len() as u64,
            Self::RdmaWrite(op) => op.local.length as u64,
            Self::RdmaWriteInline(op) => op.data.len() as u64,
            Self::RdmaRead(op) => op.local.length as u64,
        }
    }
}

/// Words 0 to 3 of a WQE, the metadata descriptor.
#[inline(always)]
const fn meta<const W: usize>(
    op: OpCode,
    inline: bool,
    length: usize,
    imm: Option<u32>,
    hints: Hints,
    dest: Destination,
) -> [u64; W] {
    let mut words = [0; W];
    [words[0], words[1]] = head(op, inline, length, hints);
    if let Some(imm) = imm {
        [words[0], words[1]] = add_imm([words[0], words[1]], imm);
    }
    let [a, b, c] = dest.words();
    words[0] |= a;
    words[1] |= b;
    words[2] = c;
    words
}

/// What the first two words say about the request.
#[inline(always)]
const fn head(op: OpCode, inline: bool, length: usize, hints: Hints) -> [u64; 2] {
    let first = field::OP_TYPE.put(op as u64)
        | field::INLINE_MSG.put(inline as u64)
        | field::META_DESC.put(1)
        | field::FIRST.put(1)
        | field::LAST.put(1)
        | field::COMP_REQ.put(1)
        | field::LENGTH.put(length as u64);
    [first, field::PROCESSING_HINTS.put(hints.bits() as u64)]
}

#[inline(always)]
const fn add_imm([first, second]: [u64; 2], imm: u32) -> [u64; 2] {
    [first | field::HAS_IMM.put(1), field::IMMEDIATE_DATA.replace(second, imm as u64)]
}

impl Destination {
    /// What the first three words of a WQE say about it, all other bits zero: what can be encoded once per peer.
    #[inline(always)]
    pub const fn words(self) -> [u64; 3] {
        [field::DEST_QP_NUM.put(self.qpn as u64), field::AH.put(self.ah as u64), field::QKEY.put(self.qkey as u64)]
    }
}

impl LocalBuf {
    /// Its `struct efa_io_tx_buf_desc`.
    #[inline(always)]
    pub const fn words(self) -> [u64; 2] {
        [self.length as u64 | (self.lkey.get() as u64) << 32, self.addr]
    }

    /// The buffer that such a descriptor describes.
    #[inline(always)]
    pub const fn from_words([first, addr]: [u64; 2]) -> Self {
        Self { addr, lkey: Lkey::from_low_bits(first >> 32), length: first as u32 }
    }
}

impl RemoteBuf {
    /// Its `struct efa_io_remote_mem_addr`, for so many bytes.
    #[inline(always)]
    pub const fn words(self, length: u32) -> [u64; 2] {
        [length as u64 | (self.rkey as u64) << 32, self.addr]
    }

    /// The memory that such a descriptor describes; its length aside.
    #[inline(always)]
    pub const fn from_words([first, addr]: [u64; 2]) -> Self {
        Self { addr, rkey: (first >> 32) as u32 }
    }
}

/// What an RDMA request says in a WQE, apart from where to and from: encoded once, put together with the words of a
/// [`Destination`], a [`RemoteBuf`] and a [`LocalBuf`] as often as needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaHead([u64; 2]);

impl RdmaHead {
    /// A request of this operation, [`OpCode::RdmaRead`] or [`OpCode::RdmaWrite`].
    #[inline(always)]
    pub const fn new(op: OpCode) -> Self {
        Self(head(op, false, 1, Hints::NONE))
    }

    /// The same with immediate data.
    #[inline(always)]
    pub const fn imm(self, imm: u32) -> Self {
        Self(add_imm(self.0, imm))
    }

    /// The same with processing hints.
    #[inline(always)]
    pub const fn hints(mut self, hints: Hints) -> Self {
        self.0[1] = field::PROCESSING_HINTS.replace(self.0[1], hints.bits() as u64);
        self
    }

    /// The WQE, request id and phase left zero. Nothing is checked: not limits, nor that both sides have one length.
    #[inline(always)]
    pub const fn wqe<const W: usize>(self, dest: &[u64; 3], remote: [u64; 2], local: [u64; 2]) -> Wqe<W>
    where
        Wqe<W>: SendWqe,
    {
        let mut words = [0; W];
        words[0] = self.0[0] | dest[0];
        words[1] = self.0[1] | dest[1];
        words[2] = dest[2];
        [words[4], words[5]] = remote;
        [words[6], words[7]] = local;
        Wqe::from_words(words)
    }
}

/// Writes `data` into `words`, which are zero from word `first` on. Word by word without a loop, so that every index is a constant and the words stay in
/// registers.
#[inline(always)]
const fn put_inline<const W: usize>(mut words: [u64; W], first: usize, data: &[u8]) -> [u64; W] {
    macro_rules! put {
        ($($word:literal)*) => {$(
            if first + $word < W {
                words[first + $word] = inline_word(data, 8 * $word);
            }
        )*};
    }
    put!(0 1 2 3 4 5 6 7 8 9);
    words
}

/// The word that holds the bytes of `data` from `at` on, those beyond its end zero.
#[inline(always)]
const fn inline_word(data: &[u8], at: usize) -> u64 {
    let mut word = 0;
    let mut byte = 0;
    while byte < 8 {
        if at + byte < data.len() {
            word |= (data[at + byte] as u64) << (8 * byte);
        }
        byte += 1;
    }
    word
}

macro_rules! with_imm {
    () => {
        /// The same operation with immediate data (host byte order).
        #[inline(always)]
        pub const fn imm(mut self, imm: u32) -> Self {
            self.imm = Some(imm);
            self
        }
    };
}

macro_rules! with_hints {
    () => {
        /// The same operation with processing hints.
        #[inline(always)]
        pub const fn hints(mut self, hints: Hints) -> Self {
            self.hints = hints;
            self
        }
    };
}

impl Send {
    /// A send from these buffers.
    ///
    /// # Errors
    /// [`EncodeError::TooManyBuffers`] for more than two.
    #[inline(always)]
    pub const fn new(bufs: &[LocalBuf]) -> Result<Self, EncodeError> {
        match Bufs::new(bufs) {
            Ok(bufs) => Ok(Self { bufs, imm: None, hints: Hints::NONE }),
            Err(e) => Err(e),
        }
    }

    with_imm!();
    with_hints!();

    /// See [`Operation::encode`].
    ///
    /// # Errors
    /// More buffers than the queue takes, or a message longer than the MTU.
    #[inline(always)]
    pub const fn encode<const W: usize>(&self, limits: &Limits, dest: Destination) -> Result<Wqe<W>, EncodeError>
    where
        Wqe<W>: SendWqe,
    {
        match self.check(limits) {
            Ok(()) => Ok(self.wqe(dest)),
            Err(e) => Err(e),
        }
    }

    /// See [`Operation::check`].
    ///
    /// # Errors
    /// As for [`encode`](Self::encode).
    #[inline(always)]
    pub const fn check(&self, limits: &Limits) -> Result<(), EncodeError> {
        let count = self.bufs.count;
        if count > limits.max_send_bufs as usize {
            return Err(EncodeError::TooManyBuffers { given: count, max: limits.max_send_bufs as usize });
        }
        let given = self.bufs.total_bytes();
        if given > limits.max_send_bytes as u64 {
            return Err(EncodeError::MessageTooLong { op: OpCode::Send, given, max: limits.max_send_bytes });
        }
        Ok(())
    }

    /// See [`Operation::wqe`].
    #[inline(always)]
    pub const fn wqe<const W: usize>(&self, dest: Destination) -> Wqe<W>
    where
        Wqe<W>: SendWqe,
    {
        let Bufs { bufs, count } = self.bufs;
        let mut words = meta::<W>(OpCode::Send, false, count, self.imm, self.hints, dest);
        [words[4], words[5]] = bufs[0].words();
        [words[6], words[7]] = bufs[1].words();
        Wqe::from_words(words)
    }
}

impl<'a> SendInline<'a> {
    /// A send of these bytes.
    #[inline(always)]
    pub const fn new(data: &'a [u8]) -> Self {
        Self { data, imm: None, hints: Hints::NONE }
    }

    with_imm!();
    with_hints!();

    /// See [`Operation::encode`].
    ///
    /// # Errors
    /// More bytes than fit.
    #[inline(always)]
    pub const fn encode<const W: usize>(&self, limits: &Limits, dest: Destination) -> Result<Wqe<W>, EncodeError>
    where
        Wqe<W>: SendWqe,
    {
        match self.check::<W>(limits) {
            Ok(()) => Ok(self.wqe(dest)),
            Err(e) => Err(e),
        }
    }

    /// See [`Operation::check`].
    ///
    /// # Errors
    /// As for [`encode`](Self::encode).
    #[inline(always)]
    pub const fn check<const W: usize>(&self, limits: &Limits) -> Result<(), EncodeError>
    where
        Wqe<W>: SendWqe,
    {
        limits.check_inline(self.data.len(), <Wqe<W> as SendWqe>::MAX_INLINE_SEND)
    }

    /// See [`Operation::wqe`].
    #[inline(always)]
    pub const fn wqe<const W: usize>(&self, dest: Destination) -> Wqe<W>
    where
        Wqe<W>: SendWqe,
    {
        let words = meta::<W>(OpCode::Send, true, self.data.len(), self.imm, self.hints, dest);
        Wqe::from_words(put_inline(words, 4, self.data))
    }
}

impl RdmaWrite {
    /// A write of `local` to `remote`.
    #[inline(always)]
    pub const fn new(local: LocalBuf, remote: RemoteBuf) -> Self {
        Self { local, remote, imm: None, hints: Hints::NONE }
    }

    with_imm!();
    with_hints!();

    /// See [`Operation::encode`].
    ///
    /// # Errors
    /// A queue without RDMA write, or more bytes than `max_rdma_size`.
    #[inline(always)]
    pub const fn encode<const W: usize>(&self, limits: &Limits, dest: Destination) -> Result<Wqe<W>, EncodeError>
    where
        Wqe<W>: SendWqe,
    {
        match self.check(limits) {
            Ok(()) => Ok(self.wqe(dest)),
            Err(e) => Err(e),
        }
    }

    /// See [`Operation::check`].
    ///
    /// # Errors
    /// As for [`encode`](Self::encode).
    #[inline(always)]
    pub const fn check(&self, limits: &Limits) -> Result<(), EncodeError> {
        limits.check_rdma(OpCode::RdmaWrite, Limits::RDMA_WRITE, self.local.length)
    }

    /// See [`Operation::wqe`].
    #[inline(always)]
    pub const fn wqe<const W: usize>(&self, dest: Destination) -> Wqe<W>
    where
        Wqe<W>: SendWqe,
    {
        let mut words = meta::<W>(OpCode::RdmaWrite, false, 1, self.imm, self.hints, dest);
        [words[4], words[5]] = self.remote.words(self.local.length);
        [words[6], words[7]] = self.local.words();
        Wqe::from_words(words)
    }
}

impl<'a> RdmaWriteInline<'a> {
    /// A write of these bytes to `remote`.
    #[inline(always)]
    pub const fn new(data: &'a [u8], remote: RemoteBuf) -> Self {
        Self { data, remote, imm: None, hints: Hints::NONE }
    }

    with_imm!();
    with_hints!();

    /// The 128-byte WQE of this request; see [`Operation::encode`].
    ///
    /// # Errors
    /// A queue without inline RDMA write, or more bytes than fit.
    #[inline(always)]
    pub const fn encode(&self, limits: &Limits, dest: Destination) -> Result<Wqe<16>, EncodeError> {
        match self.check(limits) {
            Ok(()) => Ok(self.wqe(dest)),
            Err(e) => Err(e),
        }
    }

    /// See [`Operation::check`].
    ///
    /// # Errors
    /// As for [`encode`](Self::encode).
    #[inline(always)]
    pub const fn check(&self, limits: &Limits) -> Result<(), EncodeError> {
        let needs = Limits::RDMA_WRITE | Limits::INLINE_WRITE;
        if let Err(e) = limits.check_rdma(OpCode::RdmaWrite, needs, 0) {
            return Err(e);
        }
        limits.check_inline(self.data.len(), <Wqe<16> as SendWqe>::MAX_INLINE_WRITE)
    }

    /// See [`Operation::wqe`].
    #[inline(always)]
    pub const fn wqe(&self, dest: Destination) -> Wqe<16> {
        let length = self.data.len();
        let mut words = meta::<16>(OpCode::RdmaWrite, true, length, self.imm, self.hints, dest);
        [words[4], words[5]] = self.remote.words(length as u32);
        Wqe::from_words(put_inline(words, 6, self.data))
    }
}

impl RdmaRead {
    /// A read of `remote` into `local`.
    #[inline(always)]
    pub const fn new(local: LocalBuf, remote: RemoteBuf) -> Self {
        Self { local, remote, hints: Hints::NONE }
    }

    with_hints!();

    /// See [`Operation::encode`].
    ///
    /// # Errors
    /// A queue without RDMA read, or more bytes than `max_rdma_size`.
    #[inline(always)]
    pub const fn encode<const W: usize>(&self, limits: &Limits, dest: Destination) -> Result<Wqe<W>, EncodeError>
    where
        Wqe<W>: SendWqe,
    {
        match self.check(limits) {
            Ok(()) => Ok(self.wqe(dest)),
            Err(e) => Err(e),
        }
    }

    /// See [`Operation::check`].
    ///
    /// # Errors
    /// As for [`encode`](Self::encode).
    #[inline(always)]
    pub const fn check(&self, limits: &Limits) -> Result<(), EncodeError> {
        limits.check_rdma(OpCode::RdmaRead, Limits::RDMA_READ, self.local.length)
    }

    /// See [`Operation::wqe`].
    #[inline(always)]
    pub const fn wqe<const W: usize>(&self, dest: Destination) -> Wqe<W>
    where
        Wqe<W>: SendWqe,
    {
        let mut words = meta::<W>(OpCode::RdmaRead, false, 1, None, self.hints, dest);
        [words[4], words[5]] = self.remote.words(self.local.length);
        [words[6], words[7]] = self.local.words();
        Wqe::from_words(words)
    }
}

macro_rules! operation {
    ($($op:ty $(, $width:ident)?;)*) => {$(
        impl sealed::Sealed for $op {}
        impl<const W: usize> Operation<W> for $op
        where
            Wqe<W>: SendWqe,
        {
            #[inline(always)]
            fn check(&self, limits: &Limits) -> Result<(), EncodeError> {
                <$op>::check$(::<$width>)?(self, limits)
            }

            #[inline(always)]
            fn wqe(&self, dest: Destination) -> Wqe<W> {
                <$op>::wqe(self, dest)
            }
        }
    )*};
}

operation! {
    Send;
    SendInline<'_>, W;
    RdmaWrite;
    RdmaRead;
}

impl<O: sealed::Sealed> sealed::Sealed for &O {}
impl<const W: usize, O: Operation<W>> Operation<W> for &O
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn check(&self, limits: &Limits) -> Result<(), EncodeError> {
        (**self).check(limits)
    }

    #[inline(always)]
    fn wqe(&self, dest: Destination) -> Wqe<W> {
        (**self).wqe(dest)
    }
}

impl sealed::Sealed for RdmaWriteInline<'_> {}
impl Operation<16> for RdmaWriteInline<'_> {
    #[inline(always)]
    fn check(&self, limits: &Limits) -> Result<(), EncodeError> {
        RdmaWriteInline::check(self, limits)
    }

    #[inline(always)]
    fn wqe(&self, dest: Destination) -> Wqe<16> {
        RdmaWriteInline::wqe(self, dest)
    }
}
