//! Requests: what can be posted to a send queue.
//!
//! This file joins two things: the handles of this crate (regions, peers), which carry a protection domain and lengths
//! to check, and the operations of `efa_io::op`, which encode WQEs. A request holds its descriptors as they stand in a
//! WQE, so that encoding a good request is a few moves between registers.

use crate::error::PostError;
use crate::peer::Peer;
use crate::region::{LocalSlice, RemoteSlice};
use efa_io::op::{self, RdmaHead};
use efa_io::{EncodeError, Hints, Limits, OpCode, RemoteBuf, SendWqe, Wqe};

/// A request that a send queue with WQEs of `W` words takes. Sealed: the five requests of this module.
pub trait Request<const W: usize>: sealed::Sealed
where
    Wqe<W>: SendWqe,
{
    /// Checks the request and builds its WQE.
    #[doc(hidden)]
    fn encode(&self, domain: u32, bounds: &Bounds, peer: &Peer) -> Result<Wqe<W>, PostError>;
}

/// The limits of a queue, and a form of the limits of RDMA requests that takes one comparison.
pub struct Bounds {
    pub(crate) limits: Limits,
    /// RDMA writes must be shorter than this; 0 if the queue has no RDMA writes.
    write_end: u64,
    /// RDMA reads must be shorter than this; 0 if the queue has no RDMA reads.
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

/// A send of up to two slices as one message. It consumes a receive at the destination.
#[derive(Clone, Copy, Debug)]
pub struct Send<'r> {
    bufs: &'r [LocalSlice<'r>],
    imm: Option<u32>,
    hints: Hints,
}

/// A send of bytes that travel inside the WQE. The bytes belong to the caller again when the post returns.
#[derive(Clone, Copy, Debug)]
pub struct SendInline<'a> {
    op: op::SendInline<'a>,
}

/// An RDMA write of a slice into remote memory.
#[derive(Clone, Copy, Debug)]
pub struct RdmaWrite<'r> {
    local: LocalSlice<'r>,
    remote: RemoteSlice,
    head: RdmaHead,
}

/// An RDMA write of bytes that travel inside the WQE. Only queues with 128-byte WQEs have it.
#[derive(Clone, Copy, Debug)]
pub struct RdmaWriteInline<'a> {
    op: op::RdmaWriteInline<'a>,
    remote_len: u64,
}

/// An RDMA read of remote memory into a slice.
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

// Errors are made out of line, and each request checks for itself instead of in a common function: then the parts of a
// good request stay in registers, which is a fifth of a post's time.

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

/// The method `imm` of requests whose field of this name has it.
macro_rules! with_imm {
    ($field:ident) => {
        /// Adds immediate data. The receiver finds it in its completion; the target of a write gets a completion only
        /// through it.
        pub const fn imm(mut self, imm: u32) -> Self {
            self.$field = self.$field.imm(imm);
            self
        }
    };
}

/// The method `hints` of requests whose field of this name has it.
macro_rules! with_hints {
    ($field:ident) => {
        /// Adds processing hints.
        pub const fn hints(mut self, hints: Hints) -> Self {
            self.$field = self.$field.hints(hints);
            self
        }
    };
}

impl<'r> Send<'r> {
    /// Returns a send of these slices, one after the other. No slices make an empty message.
    pub const fn new(bufs: &'r [LocalSlice<'r>]) -> Self {
        Self { bufs, imm: None, hints: Hints::NONE }
    }

    /// Adds immediate data, which the receiver finds in its completion.
    pub const fn imm(mut self, imm: u32) -> Self {
        self.imm = Some(imm);
        self
    }

    /// Adds processing hints.
    pub const fn hints(mut self, hints: Hints) -> Self {
        self.hints = hints;
        self
    }
}

impl<'a> SendInline<'a> {
    /// Returns a send of these bytes.
    pub const fn new(data: &'a [u8]) -> Self {
        Self { op: op::SendInline::new(data) }
    }

    with_imm!(op);
    with_hints!(op);
}

impl<'r> RdmaWrite<'r> {
    /// Returns a write of `local` to `remote`. Both must have the same length.
    pub const fn new(local: LocalSlice<'r>, remote: RemoteSlice) -> Self {
        Self { local, remote, head: RdmaHead::new(OpCode::RdmaWrite) }
    }

    with_imm!(head);
    with_hints!(head);
}

impl<'a> RdmaWriteInline<'a> {
    /// Returns a write of these bytes to `remote`, which must have the same length.
    pub const fn new(data: &'a [u8], remote: RemoteSlice) -> Self {
        Self { op: op::RdmaWriteInline::new(data, RemoteBuf::from_words(remote.words)), remote_len: remote.len() }
    }

    with_imm!(op);
    with_hints!(op);
}

impl<'r> RdmaRead<'r> {
    /// Returns a read of `remote` into `local`. Both must have the same length.
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
