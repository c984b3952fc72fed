//! What can be posted to a send queue.

use crate::error::PostError;
use crate::region::{LocalSlice, RemoteSlice};
use efa_io::{Destination, Hints, Limits, SendWqe, Wqe, op};

/// A request that a send queue of WQE size `W` takes. Sealed: the five requests of this module.
pub trait Request<const W: usize>: sealed::Sealed
where
    Wqe<W>: SendWqe,
{
    /// Checks the request and builds its WQE.
    #[doc(hidden)]
    fn encode(&self, domain: u32, limits: &Limits, dest: Destination) -> Result<Wqe<W>, PostError>;
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
pub struct SendInline<'a>(op::SendInline<'a>);

/// Writes a slice into remote memory.
#[derive(Clone, Copy, Debug)]
pub struct RdmaWrite<'r> {
    local: LocalSlice<'r>,
    remote: RemoteSlice,
    imm: Option<u32>,
    hints: Hints,
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
    hints: Hints,
}

macro_rules! with_imm {
    () => {
        /// With immediate data: a receiver finds it in its completion, and the target of a write learns of the write from it.
        pub const fn imm(mut self, imm: u32) -> Self {
            self.imm = Some(imm);
            self
        }
    };
}

macro_rules! with_hints {
    () => {
        /// With processing hints.
        pub const fn hints(mut self, hints: Hints) -> Self {
            self.hints = hints;
            self
        }
    };
}

#[inline(always)]
fn same_domain(slice: &LocalSlice<'_>, own: u32) -> Result<(), PostError> {
    if slice.domain == own {
        Ok(())
    } else {
        Err(PostError::ForeignDomain { what: "region", given: slice.domain, own })
    }
}

#[inline(always)]
fn same_length(local: u64, remote: u64) -> Result<(), PostError> {
    if local == remote { Ok(()) } else { Err(PostError::LengthMismatch { local, remote }) }
}

impl<'r> Send<'r> {
    /// A send of these slices, one after the other; none at all is an empty message.
    pub const fn new(bufs: &'r [LocalSlice<'r>]) -> Self {
        Self { bufs, imm: None, hints: Hints::NONE }
    }

    with_imm!();

    with_hints!();
}

impl<'a> SendInline<'a> {
    /// A send of these bytes.
    pub const fn new(data: &'a [u8]) -> Self {
        Self(op::SendInline::new(data))
    }

    /// With immediate data.
    pub const fn imm(self, imm: u32) -> Self {
        Self(self.0.imm(imm))
    }

    /// With processing hints.
    pub const fn hints(self, hints: Hints) -> Self {
        Self(self.0.hints(hints))
    }
}

impl<'r> RdmaWrite<'r> {
    /// A write of `local` to `remote`, which are of one length.
    pub const fn new(local: LocalSlice<'r>, remote: RemoteSlice) -> Self {
        Self { local, remote, imm: None, hints: Hints::NONE }
    }

    with_imm!();

    with_hints!();
}

impl<'a> RdmaWriteInline<'a> {
    /// A write of these bytes to `remote`, which is as long.
    pub const fn new(data: &'a [u8], remote: RemoteSlice) -> Self {
        Self { op: op::RdmaWriteInline::new(data, remote.buf), remote_len: remote.len }
    }

    /// With immediate data, from which the target learns of the write.
    pub const fn imm(mut self, imm: u32) -> Self {
        self.op = self.op.imm(imm);
        self
    }

    /// With processing hints.
    pub const fn hints(mut self, hints: Hints) -> Self {
        self.op = self.op.hints(hints);
        self
    }
}

impl<'r> RdmaRead<'r> {
    /// A read of `remote` into `local`, which are of one length.
    pub const fn new(local: LocalSlice<'r>, remote: RemoteSlice) -> Self {
        Self { local, remote, hints: Hints::NONE }
    }

    with_hints!();
}

impl sealed::Sealed for Send<'_> {}
impl<const W: usize> Request<W> for Send<'_>
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn encode(&self, domain: u32, limits: &Limits, dest: Destination) -> Result<Wqe<W>, PostError> {
        for slice in self.bufs {
            same_domain(slice, domain)?;
        }
        let bufs = match *self.bufs {
            [] => op::Bufs::new(&[]),
            [a] => op::Bufs::new(&[a.buf]),
            [a, b] => op::Bufs::new(&[a.buf, b.buf]),
            ref more => {
                Err(efa_io::EncodeError::TooManyBuffers { given: more.len(), max: limits.max_send_bufs.into() })
            }
        }?;
        Ok(op::Send { bufs, imm: self.imm, hints: self.hints }.encode(limits, dest)?)
    }
}

impl sealed::Sealed for SendInline<'_> {}
impl<const W: usize> Request<W> for SendInline<'_>
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn encode(&self, _: u32, limits: &Limits, dest: Destination) -> Result<Wqe<W>, PostError> {
        Ok(self.0.encode(limits, dest)?)
    }
}

impl sealed::Sealed for RdmaWrite<'_> {}
impl<const W: usize> Request<W> for RdmaWrite<'_>
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn encode(&self, domain: u32, limits: &Limits, dest: Destination) -> Result<Wqe<W>, PostError> {
        same_domain(&self.local, domain)?;
        same_length(self.local.buf.length.into(), self.remote.len)?;
        let op = op::RdmaWrite { local: self.local.buf, remote: self.remote.buf, imm: self.imm, hints: self.hints };
        Ok(op.encode(limits, dest)?)
    }
}

impl sealed::Sealed for RdmaWriteInline<'_> {}
impl Request<16> for RdmaWriteInline<'_> {
    #[inline(always)]
    fn encode(&self, _: u32, limits: &Limits, dest: Destination) -> Result<Wqe<16>, PostError> {
        same_length(self.op.data.len() as u64, self.remote_len)?;
        Ok(self.op.encode(limits, dest)?)
    }
}

impl sealed::Sealed for RdmaRead<'_> {}
impl<const W: usize> Request<W> for RdmaRead<'_>
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn encode(&self, domain: u32, limits: &Limits, dest: Destination) -> Result<Wqe<W>, PostError> {
        same_domain(&self.local, domain)?;
        same_length(self.local.buf.length.into(), self.remote.len)?;
        let op = op::RdmaRead { local: self.local.buf, remote: self.remote.buf, hints: self.hints };
        Ok(op.encode(limits, dest)?)
    }
}
