//! What can be posted to a send queue.

use crate::error::PostError;
use crate::peer::Peer;
use crate::region::{LocalSlice, RemoteSlice};
use efa_io::op::{self, RdmaHead};
use efa_io::{EncodeError, Hints, Limits, OpCode, RemoteBuf, SendWqe, Wqe};

/// A request that a send queue of WQE size `W` takes. Sealed: the five requests of this module.
pub trait Request<const W: usize>: sealed::Sealed
where
    Wqe<W>: SendWqe,
{
    /// Checks the request and builds its WQE.
    #[doc(hidden)]
    fn encode(&self, domain: u32, bounds: &Bounds, peer: &Peer) -> Result<Wqe<W>, PostError>;
}

/// A queue's limits, and what RDMA requests ask of them in a form that takes one comparison.
pub struct Bounds {
    pub(crate) limits: Limits,
    /// RDMA writes must be shorter than this; 0 where there are none.
    write_end: u64,
    /// The same for reads.
    read_end: u64,
}

impl Bounds {
    pub(crate) fn new(limits: Limits) -> Self {
        let end = |operation| {
            if limits.operations & operation == 0 { 0 } else { u64::from(limits.max_rdma_bytes) + 1 }
        };
        Self { limits, write_end: end(Limits::RDMA_WRITE), read_end: end(Limits::RDMA_READ) }
    }

    #[cold]
    #[inline(never)]
    fn refuse(&self, op: OpCode, length: u32) -> PostError {
        let end = if op == OpCode::RdmaWrite { self.write_end } else { self.read_end };
        PostError::Encode(if end == 0 {
            EncodeError::Unsupported { op }
        } else {
            EncodeError::MessageTooLong { op, given: length.into(), max: self.limits.max_rdma_bytes }
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// Sends up to two slices as one message; it consumes a receive at the destination.
#[derive(Clone, Copy, Debug)]
pub struct Send<'r> {
    bufs: &'r [LocalSlice<'r>],
    imm: Option<u32>,
    hints: Hints,
}

/// Sends bytes that travel inside the WQE; they are the caller's again as soon as the post returns.
#[derive(Clone, Copy, Debug)]
pub struct SendInline<'a> {
    op: op::SendInline<'a>,
}

/// Writes a slice into remote memory.
#[derive(Clone, Copy, Debug)]
pub struct RdmaWrite<'r> {
    local: LocalSlice<'r>,
    remote: RemoteSlice,
    head: RdmaHead,
}

/// Writes bytes that travel inside the WQE into remote memory. Queues with 128-byte WQEs only.
#[derive(Clone, Copy, Debug)]
pub struct RdmaWriteInline<'a> {
    op: op::RdmaWriteInline<'a>,
    remote_len: u64,
}

/// Reads remote memory into a slice.
#[derive(Clone, Copy, Debug)]
pub struct RdmaRead<'r> {
    local: LocalSlice<'r>,
    remote: RemoteSlice,
    head: RdmaHead,
}

#[inline(always)]
fn same_domain(slice: &LocalSlice<'_>, own: u32) -> Result<(), PostError> {
    if slice.domain == own { Ok(()) } else { Err(foreign("region", slice.domain, own)) }
}

// Errors are made out of line, and checks stand where they are needed rather than in a common function: what a good
// request is made of then stays in registers, which is a fifth of a post's time.

#[cold]
#[inline(never)]
pub(crate) fn foreign(what: &'static str, given: u32, own: u32) -> PostError {
    PostError::ForeignDomain { what, given, own }
}

#[cold]
#[inline(never)]
fn mismatch(local: u64, remote: u64) -> PostError {
    PostError::LengthMismatch { local, remote }
}

#[inline(always)]
fn same_length(local: u64, remote: u64) -> Result<(), PostError> {
    if local == remote { Ok(()) } else { Err(mismatch(local, remote)) }
}

/// `imm` and `hints` of requests whose field of this name has them.
macro_rules! with_imm {
    ($field:ident) => {
        /// With immediate data: a receiver finds it in its completion, and the target of a write learns of the write
        /// from it.
        pub const fn imm(mut self, imm: u32) -> Self {
            self.$field = self.$field.imm(imm);
            self
        }
    };
}

macro_rules! with_hints {
    ($field:ident) => {
        /// With processing hints.
        pub const fn hints(mut self, hints: Hints) -> Self {
            self.$field = self.$field.hints(hints);
            self
        }
    };
}

impl<'r> Send<'r> {
    /// A send of these slices, one after the other; none at all is an empty message.
    pub const fn new(bufs: &'r [LocalSlice<'r>]) -> Self {
        Self { bufs, imm: None, hints: Hints::NONE }
    }

    /// With immediate data, which the receiver finds in its completion.
    pub const fn imm(mut self, imm: u32) -> Self {
        self.imm = Some(imm);
        self
    }

    /// With processing hints.
    pub const fn hints(mut self, hints: Hints) -> Self {
        self.hints = hints;
        self
    }
}

impl<'a> SendInline<'a> {
    /// A send of these bytes.
    pub const fn new(data: &'a [u8]) -> Self {
        Self { op: op::SendInline::new(data) }
    }

    with_imm!(op);
    with_hints!(op);
}

impl<'r> RdmaWrite<'r> {
    /// A write of `local` to `remote`, which are of one length.
    pub const fn new(local: LocalSlice<'r>, remote: RemoteSlice) -> Self {
        Self { local, remote, head: RdmaHead::new(OpCode::RdmaWrite) }
    }

    with_imm!(head);
    with_hints!(head);
}

impl<'a> RdmaWriteInline<'a> {
    /// A write of these bytes to `remote`, which is as long.
    pub const fn new(data: &'a [u8], remote: RemoteSlice) -> Self {
        Self { op: op::RdmaWriteInline::new(data, RemoteBuf::from_words(remote.words)), remote_len: remote.len() }
    }

    with_imm!(op);
    with_hints!(op);
}

impl<'r> RdmaRead<'r> {
    /// A read of `remote` into `local`, which are of one length.
    pub const fn new(local: LocalSlice<'r>, remote: RemoteSlice) -> Self {
        Self { local, remote, head: RdmaHead::new(OpCode::RdmaRead) }
    }

    with_hints!(head);
}

impl sealed::Sealed for Send<'_> {}
impl<const W: usize> Request<W> for Send<'_>
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn encode(&self, domain: u32, bounds: &Bounds, peer: &Peer) -> Result<Wqe<W>, PostError> {
        for slice in self.bufs {
            same_domain(slice, domain)?;
        }
        let bufs = match *self.bufs {
            [] => op::Bufs::new(&[]),
            [a] => op::Bufs::new(&[a.buf()]),
            [a, b] => op::Bufs::new(&[a.buf(), b.buf()]),
            ref more => Err(EncodeError::TooManyBuffers { given: more.len(), max: bounds.limits.max_send_bufs.into() }),
        }?;
        Ok(op::Send { bufs, imm: self.imm, hints: self.hints }.encode(&bounds.limits, peer.dest)?)
    }
}

impl sealed::Sealed for SendInline<'_> {}
impl<const W: usize> Request<W> for SendInline<'_>
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn encode(&self, _: u32, bounds: &Bounds, peer: &Peer) -> Result<Wqe<W>, PostError> {
        Ok(self.op.encode(&bounds.limits, peer.dest)?)
    }
}

impl sealed::Sealed for RdmaWrite<'_> {}
impl<const W: usize> Request<W> for RdmaWrite<'_>
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn encode(&self, domain: u32, bounds: &Bounds, peer: &Peer) -> Result<Wqe<W>, PostError> {
        same_domain(&self.local, domain)?;
        same_length(self.local.len().into(), self.remote.len())?;
        if u64::from(self.local.len()) >= bounds.write_end {
            return Err(bounds.refuse(OpCode::RdmaWrite, self.local.len()));
        }
        Ok(self.head.wqe(&peer.words, self.remote.words, self.local.words))
    }
}

impl sealed::Sealed for RdmaWriteInline<'_> {}
impl Request<16> for RdmaWriteInline<'_> {
    #[inline(always)]
    fn encode(&self, _: u32, bounds: &Bounds, peer: &Peer) -> Result<Wqe<16>, PostError> {
        same_length(self.op.data.len() as u64, self.remote_len)?;
        Ok(self.op.encode(&bounds.limits, peer.dest)?)
    }
}

impl sealed::Sealed for RdmaRead<'_> {}
impl<const W: usize> Request<W> for RdmaRead<'_>
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn encode(&self, domain: u32, bounds: &Bounds, peer: &Peer) -> Result<Wqe<W>, PostError> {
        same_domain(&self.local, domain)?;
        same_length(self.local.len().into(), self.remote.len())?;
        if u64::from(self.local.len()) >= bounds.read_end {
            return Err(bounds.refuse(OpCode::RdmaRead, self.local.len()));
        }
        Ok(self.head.wqe(&peer.words, self.remote.words, self.local.words))
    }
}

impl<R: sealed::Sealed> sealed::Sealed for &R {}
impl<R: Request<W>, const W: usize> Request<W> for &R
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn encode(&self, domain: u32, bounds: &Bounds, peer: &Peer) -> Result<Wqe<W>, PostError> {
        R::encode(self, domain, bounds, peer)
    }
}
