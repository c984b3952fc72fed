//! Registered memory.
//!
//! A peer may write a registered region at any time, and the device may read one after a post has returned. So a region
//! is never a `&mut [u8]`, nor a `&[u8]`: its bytes are copied in and out. A copy that races with a peer's write
//! returns some mixture of old and new bytes. A completion tells when bytes have arrived.
//!
//! Everybody in the program accesses a region as atomic bytes, so regions may overlap. `efa_memory` explains this, and
//! why no ring can be a region.

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
/// Dropping it deregisters the memory: the device accesses it no more, and requests that still name it fail with a
/// status. So a region may be dropped at any time, and posts need no reference count.
pub struct Region<'d> {
    range: HostRange,
    registration: Registration,
    lkey: Lkey,
    domain: Arc<DomainShared>,
    _domain: PhantomData<&'d ()>,
}

// SAFETY: the only field that is not `Send` is the address in `range`. This file and the provider access those bytes
// only as atomics, which any thread may do while they are valid. `range` owns them, or the `BorrowedRegion` around this
// borrows them for longer than the region lives.
unsafe impl Send for Region<'_> {}
// SAFETY: a shared reference allows only these atomic accesses.
unsafe impl Sync for Region<'_> {}

/// A piece of a region, for one side of a work request.
#[derive(Clone, Copy, Debug)]
pub struct LocalSlice<'r> {
    /// The piece's descriptor, as it stands in a WQE.
    pub(crate) words: [u64; 2],
    pub(crate) domain: u32,
    _region: PhantomData<&'r ()>,
}

/// A region as peers need to know it, the program's own or a peer's: plain numbers, exchanged by any means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemoteRegion {
    /// Address of the first byte, as its owner sees it.
    pub addr: u64,
    /// The remote key.
    pub rkey: u32,
    /// Bytes.
    pub len: u64,
}

/// A piece of a remote region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteSlice {
    /// The piece's descriptor, as it stands in a WQE.
    pub(crate) words: [u64; 2],
}

/// Returns the first byte of a range in `len` bytes, and the byte after its last.
pub(crate) fn resolve_range(range: impl RangeBounds<u64>, len: u64) -> Result<(u64, u64), RangeError> {
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

    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        self.range.len as u64
    }

    /// Returns `true` if the length is 0.
    pub fn is_empty(&self) -> bool {
        self.range.len == 0
    }

    /// Returns the address of the first byte, by which work requests name it.
    pub fn addr(&self) -> u64 {
        self.range.ptr.as_ptr() as u64
    }

    /// Returns the region's keys.
    pub fn keys(&self) -> RegionKeys {
        self.registration.keys
    }

    /// Returns what peers need to know to access the region.
    pub fn remote(&self) -> RemoteRegion {
        RemoteRegion { addr: self.addr(), rkey: self.keys().rkey, len: self.len() }
    }

    /// Returns a piece of the region, for one side of a work request.
    ///
    /// # Errors
    /// [`RangeError`]: the range passes the end, or has 4 GiB or more.
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<LocalSlice<'_>, RangeError> {
        let (start, end) = resolve_range(range, self.len())?;
        LocalSlice::new(self.addr() + start, end - start, self.lkey, self.domain.tag)
    }

    /// Copies bytes of the region into `dst`, from `offset` on.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`].
    pub fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), RangeError> {
        let (start, _) = resolve_range(offset..offset.saturating_add(dst.len() as u64), self.len())?;
        // SAFETY: `resolve_range` found the range inside the region. The bytes are valid while `self` is borrowed:
        // `range` owns them, or `BorrowedRegion` borrows them exclusively for longer than the region lives. Safe code
        // reaches them only as atomic bytes: they are `SharedMemory`, or a slice whose owner cannot use it meanwhile,
        // and the contract of `Provider` binds the device.
        unsafe { copy_out(self.range.ptr.as_ptr().add(start as usize), dst) };
        Ok(())
    }

    /// Copies `src` into the region, at `offset`.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`].
    pub fn write(&self, offset: u64, src: &[u8]) -> Result<(), RangeError> {
        let (start, _) = resolve_range(offset..offset.saturating_add(src.len() as u64), self.len())?;
        // SAFETY: as in `read`; `copy_in` stores atomic bytes.
        unsafe { copy_in(src, self.range.ptr.as_ptr().add(start as usize)) };
        Ok(())
    }

    /// Returns a copy of these bytes.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`].
    pub fn read_vec(&self, range: impl RangeBounds<u64>) -> Result<Vec<u8>, RangeError> {
        let (start, end) = resolve_range(range, self.len())?;
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

/// A region over borrowed bytes. The type is private to this crate, so that a program cannot leak it.
pub(crate) struct BorrowedRegion<'b> {
    region: Region<'b>,
    _bytes: PhantomData<&'b mut [u8]>,
}

impl<'b> BorrowedRegion<'b> {
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
    /// Returns the slice of `len` bytes at `addr` of a region with this key. The caller has checked the bounds.
    pub(crate) fn new(addr: u64, len: u64, lkey: Lkey, domain: u32) -> Result<Self, RangeError> {
        let max = u64::from(u32::MAX);
        let length = u32::try_from(len).map_err(|_| RangeError::SliceTooLong { len, max })?;
        Ok(Self { words: LocalBuf { addr, lkey, length }.words(), domain, _region: PhantomData })
    }

    /// Returns the piece as plain data, for requests that a kernel makes. The result does not borrow the region.
    #[inline(always)]
    pub fn buf(&self) -> LocalBuf {
        LocalBuf::from_words(self.words)
    }

    /// Returns the first `at` bytes, and the rest. With `at` beyond the end, the rest is empty.
    pub fn split_at(self, at: u32) -> (Self, Self) {
        let buf = self.buf();
        let at = at.min(buf.length);
        let head = LocalBuf { length: at, ..buf };
        let tail = LocalBuf { addr: buf.addr + u64::from(at), length: buf.length - at, ..buf };
        (Self { words: head.words(), ..self }, Self { words: tail.words(), ..self })
    }

    /// Returns the length in bytes.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.buf().length
    }

    /// Returns `true` if the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl RemoteRegion {
    /// Returns a piece of the region.
    ///
    /// # Errors
    /// [`RangeError`]: the range passes the end, or has 4 GiB or more.
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<RemoteSlice, RangeError> {
        let (start, end) = resolve_range(range, self.len)?;
        let buf = RemoteBuf { addr: self.addr.wrapping_add(start), rkey: self.rkey };
        let max = u64::from(u32::MAX);
        let length = u32::try_from(end - start).map_err(|_| RangeError::SliceTooLong { len: end - start, max })?;
        Ok(RemoteSlice { words: buf.words(length) })
    }
}

impl RemoteSlice {
    /// Returns the piece as plain data, for requests that a kernel makes. The length is that of the local side.
    pub fn buf(&self) -> RemoteBuf {
        RemoteBuf { addr: self.words[1], rkey: (self.words[0] >> 32) as u32 }
    }

    /// Returns the length in bytes.
    #[inline(always)]
    pub const fn len(&self) -> u64 {
        self.words[0] as u32 as u64
    }

    /// Returns `true` if the length is 0.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
