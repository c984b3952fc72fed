//! Registered memory.
//!
//! A peer may write a registered region at any time, and the device reads one after a post has returned. So a region is
//! never a `&mut [u8]`, nor even a `&[u8]`: its bytes are copied in and out. A copy that races with a peer's write sees
//! some mixture of old and new bytes, never anything worse; arrival is learnt from a completion.
//!
//! Everyone accesses a region as atomic bytes, so regions may overlap: `efa_memory` tells why, and why no ring
//! can be a region.

use crate::error::{RangeError, SetupError};
use crate::provider::{HostRange, Registration};
use crate::shared::domain::DomainShared;
use efa_io::{Lkey, LocalBuf, RemoteBuf};
use efa_memory::{SharedMemory, copy_in, copy_out};
use efa_types::{Access, RegionKeys};
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::ptr::NonNull;
use std::sync::Arc;

/// A registered memory region.
///
/// Dropping it deregisters: the device does not touch the memory any more, and a request that is still under way
/// towards it fails with a status. So a region may be dropped at any time, and nothing needs to be counted per post.
pub struct Region<'d> {
    range: HostRange,
    registration: Registration,
    lkey: Lkey,
    domain: Arc<DomainShared>,
    _domain: PhantomData<&'d ()>,
}

// SAFETY: only the address in `range` keeps this from being automatic. What is done with it is access as atomic bytes,
// here and by the provider, which any thread may do while the bytes are valid: `range` owns them, or `Scoped` borrows
// them for longer than the region lives.
unsafe impl Send for Region<'_> {}
// SAFETY: a shared reference gives no more than such accesses.
unsafe impl Sync for Region<'_> {}

/// A piece of a region, for one side of a work request.
#[derive(Clone, Copy, Debug)]
pub struct LocalSlice<'r> {
    /// The descriptor of the piece, as it stands in a WQE.
    pub(crate) words: [u64; 2],
    pub(crate) domain: u32,
    _region: PhantomData<&'r ()>,
}

/// A region as its owner describes it to peers: plain numbers, exchanged by any means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemoteRegion {
    /// Address of its first byte, at its owner.
    pub addr: u64,
    /// Its remote key.
    pub rkey: u32,
    /// Bytes.
    pub len: u64,
}

/// A piece of a remote region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteSlice {
    /// The descriptor of the piece, as it stands in a WQE.
    pub(crate) words: [u64; 2],
}

pub(crate) fn resolve(range: impl RangeBounds<u64>, len: u64) -> Result<(u64, u64), RangeError> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    if start <= end && end <= len { Ok((start, end)) } else { Err(RangeError::OutOfRange { start, end, len }) }
}

impl<'d> Region<'d> {
    fn register(domain: Arc<DomainShared>, range: HostRange, access: Access) -> Result<Self, SetupError> {
        let registration = domain.provider.register(domain.pd, range.clone(), access)?;
        match Lkey::new(registration.keys.lkey) {
            Ok(lkey) => Ok(Self { range, registration, lkey, domain, _domain: PhantomData }),
            Err(_) => {
                domain.provider.deregister(&registration);
                Err(SetupError::InvalidKey { lkey: registration.keys.lkey })
            }
        }
    }

    pub(crate) fn allocate(domain: Arc<DomainShared>, len: usize, access: Access) -> Result<Self, SetupError> {
        let memory = SharedMemory::zeroed(len).map_err(SetupError::io("allocating a region"))?;
        let ptr = NonNull::new(memory.as_ptr()).unwrap_or(NonNull::dangling());
        Self::register(domain, HostRange { ptr, len, owner: Some(memory) }, access)
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.range.len as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.len == 0
    }

    /// Address of the first byte, as work requests name it.
    pub fn addr(&self) -> u64 {
        self.range.ptr.as_ptr() as u64
    }

    /// Its keys.
    pub fn keys(&self) -> RegionKeys {
        self.registration.keys
    }

    /// What peers need to know to reach it.
    pub fn remote(&self) -> RemoteRegion {
        RemoteRegion { addr: self.addr(), rkey: self.keys().rkey, len: self.len() }
    }

    /// A piece of it, for a work request.
    ///
    /// # Errors
    /// The range passes the end, or is 4 GiB or longer.
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<LocalSlice<'_>, RangeError> {
        let (start, end) = resolve(range, self.len())?;
        LocalSlice::new(self.addr() + start, end - start, self.lkey, self.domain.tag)
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// They pass the end.
    pub fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), RangeError> {
        let (start, _) = resolve(offset..offset.saturating_add(dst.len() as u64), self.len())?;
        // SAFETY: `resolve` found the range inside the region. The bytes are valid while `self` is borrowed: `range`
        // owns them, or `Scoped` borrows them exclusively for longer than the region lives. They are `SharedMemory` or
        // a borrowed slice that nobody can use meanwhile, so safe code cannot reach them but as atomic bytes: by
        // regions, and by a device, which `Provider` binds to it.
        unsafe { copy_out(self.range.ptr.as_ptr().add(start as usize), dst) };
        Ok(())
    }

    /// Copies bytes in, at `offset`.
    ///
    /// # Errors
    /// They pass the end.
    pub fn write(&self, offset: u64, src: &[u8]) -> Result<(), RangeError> {
        let (start, _) = resolve(offset..offset.saturating_add(src.len() as u64), self.len())?;
        // SAFETY: as in `read`.
        unsafe { copy_in(src, self.range.ptr.as_ptr().add(start as usize)) };
        Ok(())
    }

    /// A copy of these bytes.
    ///
    /// # Errors
    /// The range passes the end.
    pub fn read_vec(&self, range: impl RangeBounds<u64>) -> Result<Vec<u8>, RangeError> {
        let (start, end) = resolve(range, self.len())?;
        let mut bytes = vec![0; (end - start) as usize];
        self.read(start, &mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        self.domain.provider.deregister(&self.registration);
    }
}

impl std::fmt::Debug for Region<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Region({} bytes at {:#x}, {:x?})", self.len(), self.addr(), self.keys())
    }
}

/// A region over borrowed bytes. It stays inside this crate, so that nobody can leak it.
pub(crate) struct Scoped<'b> {
    region: Region<'b>,
    _bytes: PhantomData<&'b mut [u8]>,
}

impl<'b> Scoped<'b> {
    pub(crate) fn new(domain: Arc<DomainShared>, bytes: &'b mut [u8], access: Access) -> Result<Self, SetupError> {
        let len = bytes.len();
        let ptr = NonNull::from(bytes).cast();
        Ok(Self { region: Region::register(domain, HostRange { ptr, len, owner: None }, access)?, _bytes: PhantomData })
    }

    pub(crate) fn region(&self) -> &Region<'b> {
        &self.region
    }
}

impl LocalSlice<'_> {
    /// `len` bytes at `addr` of a region with this key, which the caller has found in bounds.
    pub(crate) fn new(addr: u64, len: u64, lkey: Lkey, domain: u32) -> Result<Self, RangeError> {
        let max = u64::from(u32::MAX);
        let length = u32::try_from(len).map_err(|_| RangeError::SliceTooLong { len, max })?;
        Ok(Self { words: LocalBuf { addr, lkey, length }.words(), domain, _region: PhantomData })
    }

    /// The piece as plain data, for requests that a kernel makes. It says nothing of the region's life.
    #[inline(always)]
    pub fn buf(&self) -> LocalBuf {
        LocalBuf::from_words(self.words)
    }

    /// The first `at` bytes, and the rest. `at` beyond the end takes all.
    pub fn split_at(self, at: u32) -> (Self, Self) {
        let buf = self.buf();
        let at = at.min(buf.length);
        let head = LocalBuf { length: at, ..buf };
        let tail = LocalBuf { addr: buf.addr + u64::from(at), length: buf.length - at, ..buf };
        (Self { words: head.words(), ..self }, Self { words: tail.words(), ..self })
    }

    /// Bytes.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.buf().length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl RemoteRegion {
    /// A piece of it.
    ///
    /// # Errors
    /// The range passes the end, or is 4 GiB or longer.
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<RemoteSlice, RangeError> {
        let (start, end) = resolve(range, self.len)?;
        let buf = RemoteBuf { addr: self.addr.wrapping_add(start), rkey: self.rkey };
        let max = u64::from(u32::MAX);
        let length = u32::try_from(end - start).map_err(|_| RangeError::SliceTooLong { len: end - start, max })?;
        Ok(RemoteSlice { words: buf.words(length) })
    }
}

impl RemoteSlice {
    /// The piece as plain data, for requests that a kernel makes; its length is that of their local side.
    pub fn buf(&self) -> RemoteBuf {
        RemoteBuf { addr: self.words[1], rkey: (self.words[0] >> 32) as u32 }
    }

    /// Bytes.
    #[inline(always)]
    pub const fn len(&self) -> u64 {
        self.words[0] as u32 as u64
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
