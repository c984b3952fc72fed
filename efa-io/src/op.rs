//! The operations of a send queue, and how each becomes a WQE.
//!
//! An operation is a small value: where the bytes are, where they go, an optional immediate. Its `encode` checks it
//! against the queue's [`Limits`] and returns the WQE without request id and phase, which the ring adds when it posts
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
//!
//! What tells the operations apart stands in one table (`layout.rs`). One function checks them all by it, and one
//! encodes them all.

pub use crate::buf::{Bufs, Lkey, LocalBuf, RemoteBuf};
pub use crate::limits::Limits;
pub use crate::meta::{Destination, Hints, RdmaHead};
pub use crate::opcode::OpCode;

use crate::error::EncodeError;
use crate::layout::{self, Layout, Payload};
use crate::meta::Head;
use crate::wqe::{SendWqe, Wqe};

/// An operation that a send queue with WQEs of `W` words takes. Sealed: the five operations of this module, and
/// references to them.
pub trait Operation<const W: usize>: sealed::Sealed
where
    Wqe<W>: SendWqe,
{
    /// Checks the request against `limits` and builds its WQE, request id and phase left zero.
    ///
    /// # Errors
    /// An [`EncodeError`] that names the limit which the request exceeds.
    #[inline(always)]
    fn encode(&self, limits: &Limits, dest: Destination) -> Result<Wqe<W>, EncodeError> {
        self.check(limits)?;
        Ok(self.wqe(dest))
    }

    /// Checks the request against `limits`.
    ///
    /// # Errors
    /// As for [`encode`](Self::encode).
    fn check(&self, limits: &Limits) -> Result<(), EncodeError>;

    /// Builds the WQE of a request that was [checked](Self::check), request id and phase left zero. Of a request that
    /// was not checked, parts may be left out.
    fn wqe(&self, dest: Destination) -> Wqe<W>;
}

mod sealed {
    pub trait Sealed {}
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

/// Sends a message from up to two registered buffers; it consumes a receive descriptor at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send {
    /// Buffers of the message; no buffer at all is an empty message.
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
    /// Immediate data: with it, the write has a completion at the target, too.
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
    /// Immediate data: with it, the write has a completion at the target, too.
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

/// All that an operation may consist of. The operation's row of the table says which of it counts.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) remote: RemoteBuf,
    pub(crate) bufs: Bufs,
    pub(crate) data: &'a [u8],
    pub(crate) imm: Option<u32>,
    pub(crate) hints: Hints,
}

impl Parts<'_> {
    pub(crate) const NONE: Self =
        Self { remote: RemoteBuf::NONE, bufs: Bufs::NONE, data: &[], imm: None, hints: Hints::NONE };

    /// Returns the number of bytes that the operation moves.
    #[inline(always)]
    pub(crate) const fn total_bytes(&self, layout: &Layout) -> u64 {
        if layout.is_inline() { self.data.len() as u64 } else { self.bufs.total_bytes() }
    }

    /// Checks the request against the limits of a queue, given the most inline bytes in its WQEs.
    #[inline(always)]
    const fn check(&self, layout: &Layout, limits: &Limits, max_inline: usize) -> Result<(), EncodeError> {
        let op = layout.op;
        if limits.operations & layout.needs != layout.needs {
            return Err(EncodeError::Unsupported { op });
        }
        if layout.is_inline() {
            let (given, of_queue) = (self.data.len(), limits.max_inline_bytes as usize);
            let max = if of_queue < max_inline { of_queue } else { max_inline };
            return if given <= max { Ok(()) } else { Err(EncodeError::InlineTooLong { given, max }) };
        }
        let (given, max) = (self.bufs.count(), limits.max_bufs(op));
        if given > max {
            return Err(EncodeError::TooManyBuffers { given, max });
        }
        let (given, max) = (self.bufs.total_bytes(), limits.max_bytes(op));
        if given > max as u64 {
            return Err(EncodeError::MessageTooLong { op, given, max });
        }
        Ok(())
    }

    /// Builds the WQE of a request that was checked.
    #[inline(always)]
    const fn wqe<const W: usize>(&self, layout: &Layout, dest: Destination) -> Wqe<W>
    where
        Wqe<W>: SendWqe,
    {
        let length = if layout.is_inline() { self.data.len() } else { self.bufs.count() };
        let mut head = Head::new(layout, length, self.hints);
        if let Some(imm) = self.imm {
            head = head.imm(imm);
        }
        let mut words = head.with(&dest.words());
        if let Some(at) = layout.remote {
            [words[at], words[at + 1]] = self.remote.words(self.total_bytes(layout) as u32);
        }
        let at = layout.payload;
        match layout.kind {
            Payload::Inline { .. } => words = put_inline(words, at, self.data),
            Payload::Bufs { most, .. } => {
                let [first, second] = self.bufs.both();
                [words[at], words[at + 1]] = first.words();
                if most > 1 {
                    [words[at + 2], words[at + 3]] = second.words();
                }
            }
        }
        Wqe::from_words(words)
    }
}

/// Writes `data` into `words`, which are zero from word `first` on. Word by word without a loop, so that every index is
/// a constant and the words stay in registers.
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

/// Returns the word that holds the bytes of `data` from `at` on, those beyond its end zero.
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

    #[inline(always)]
    pub(crate) const fn parts(&self) -> Parts<'_> {
        let Self { bufs, imm, hints } = *self;
        Parts { bufs, imm, hints, ..Parts::NONE }
    }
}

impl<'a> SendInline<'a> {
    /// A send of these bytes.
    #[inline(always)]
    pub const fn new(data: &'a [u8]) -> Self {
        Self { data, imm: None, hints: Hints::NONE }
    }

    #[inline(always)]
    pub(crate) const fn parts(&self) -> Parts<'a> {
        let Self { data, imm, hints } = *self;
        Parts { data, imm, hints, ..Parts::NONE }
    }
}

impl RdmaWrite {
    /// A write of `local` to `remote`.
    #[inline(always)]
    pub const fn new(local: LocalBuf, remote: RemoteBuf) -> Self {
        Self { local, remote, imm: None, hints: Hints::NONE }
    }

    #[inline(always)]
    pub(crate) const fn parts(&self) -> Parts<'_> {
        let Self { local, remote, imm, hints } = *self;
        Parts { bufs: Bufs::one(local), remote, imm, hints, ..Parts::NONE }
    }
}

impl<'a> RdmaWriteInline<'a> {
    /// A write of these bytes to `remote`.
    #[inline(always)]
    pub const fn new(data: &'a [u8], remote: RemoteBuf) -> Self {
        Self { data, remote, imm: None, hints: Hints::NONE }
    }

    #[inline(always)]
    pub(crate) const fn parts(&self) -> Parts<'a> {
        let Self { data, remote, imm, hints } = *self;
        Parts { data, remote, imm, hints, ..Parts::NONE }
    }
}

impl RdmaRead {
    /// A read of `remote` into `local`.
    #[inline(always)]
    pub const fn new(local: LocalBuf, remote: RemoteBuf) -> Self {
        Self { local, remote, hints: Hints::NONE }
    }

    #[inline(always)]
    pub(crate) const fn parts(&self) -> Parts<'_> {
        let Self { local, remote, hints } = *self;
        Parts { bufs: Bufs::one(local), remote, hints, ..Parts::NONE }
    }
}

/// Defines the methods that all operations have. Its arguments are the operation, its row of the table, what its check
/// refuses, the generic parameter and the number of words of its WQEs, the same for its own `check`, and which of
/// `hints` and `imm` it takes.
///
/// The methods with these names are there beside those of [`Operation`] because they are `const`. The most inline bytes
/// are a constant of their own, so that the compiler compares with a number and not with a place in the table.
macro_rules! operation {
    (
        $op:ty, $layout:ident, $errors:literal, [$($wqe:tt)*] $W:tt, check [$($check:tt)*] $C:tt,
        $hints:ident $(and $imm:ident)?
    ) => {
        impl $op {
            $(
                /// Adds immediate data (host byte order).
                #[inline(always)]
                pub const fn $imm(mut self, imm: u32) -> Self {
                    self.$imm = Some(imm);
                    self
                }
            )?

            /// Replaces the processing hints.
            #[inline(always)]
            pub const fn $hints(mut self, hints: Hints) -> Self {
                self.$hints = hints;
                self
            }

            /// Checks the request against `limits` and builds its WQE, request id and phase left zero.
            ///
            /// # Errors
            #[doc = $errors]
            #[inline(always)]
            pub const fn encode<$($wqe)*>(&self, limits: &Limits, dest: Destination) -> Result<Wqe<$W>, EncodeError>
            where
                Wqe<$W>: SendWqe,
            {
                match self.parts().check(&layout::$layout, limits, const { layout::$layout.max_inline($W) }) {
                    Ok(()) => Ok(self.wqe(dest)),
                    Err(e) => Err(e),
                }
            }

            /// Checks the request against `limits`; see [`Operation::check`].
            ///
            /// # Errors
            #[doc = $errors]
            #[inline(always)]
            pub const fn check<$($check)*>(&self, limits: &Limits) -> Result<(), EncodeError>
            where
                Wqe<$C>: SendWqe,
            {
                self.parts().check(&layout::$layout, limits, const { layout::$layout.max_inline($C) })
            }

            /// Builds the WQE of a request that was checked; see [`Operation::wqe`].
            #[inline(always)]
            pub const fn wqe<$($wqe)*>(&self, dest: Destination) -> Wqe<$W>
            where
                Wqe<$W>: SendWqe,
            {
                self.parts().wqe(&layout::$layout, dest)
            }
        }

        impl sealed::Sealed for $op {}
        impl<$($wqe)*> Operation<$W> for $op
        where
            Wqe<$W>: SendWqe,
        {
            #[inline(always)]
            fn check(&self, limits: &Limits) -> Result<(), EncodeError> {
                self.parts().check(&layout::$layout, limits, const { layout::$layout.max_inline($W) })
            }

            #[inline(always)]
            fn wqe(&self, dest: Destination) -> Wqe<$W> {
                self.parts().wqe(&layout::$layout, dest)
            }
        }
    };
}

operation! {
    Send, SEND, "More buffers than the queue takes, or a message longer than the MTU.",
    [const W: usize] W, check [] 8, hints and imm
}
operation! {
    SendInline<'_>, SEND_INLINE, "More inline bytes than the queue takes, or than fit the WQE.",
    [const W: usize] W, check [const W: usize] W, hints and imm
}
operation! {
    RdmaWrite, RDMA_WRITE, "A queue without RDMA write, or more bytes than `max_rdma_size`.",
    [const W: usize] W, check [] 8, hints and imm
}
operation! {
    RdmaWriteInline<'_>, RDMA_WRITE_INLINE,
    "A queue without RDMA write or inline RDMA write, or more inline bytes than the queue takes, or than fit the WQE.",
    [] 16, check [] 16, hints and imm
}
operation! {
    RdmaRead, RDMA_READ, "A queue without RDMA read, or more bytes than `max_rdma_size`.",
    [const W: usize] W, check [] 8, hints
}
