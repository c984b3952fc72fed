//! Memory that this process cannot touch, as that of a GPU: regions and completion queues in it.
//!
//! It comes as a DMA-BUF, a descriptor by which its owner lets others have it. The feature `cuda` makes these of GPU memory; whoever has memory of another
//! kind, or allocates GPU memory by other means, starts here.

use crate::cq::{CompletionTarget, CqShared, Target};
use crate::domain::DomainInner;
use crate::error::Error;
use crate::provider::Registration;
use crate::region::{LocalSlice, RemoteRegion, resolve};
use efa_io::{CompletionRingHandle, Lkey, RingSize};
use efa_memory::Backing;
use efa_types::{Access, ControlError, RegionKeys};
use std::any::Any;
use std::ops::RangeBounds;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Bytes of a page, as NICs see memory.
const PAGE: u64 = 4096;

/// A piece of a DMA-BUF.
#[derive(Clone, Copy, Debug)]
pub struct DmabufRange<'f> {
    /// The DMA-BUF.
    pub fd: BorrowedFd<'f>,
    /// Where in it the piece begins, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Memory that is to be registered, and all ways in which a device may reach it. A device takes those that it can.
#[derive(Clone)]
pub struct ExternalMemory<'f> {
    addr: u64,
    len: u64,
    dmabuf: Result<DmabufRange<'f>, String>,
    by_address: bool,
    backing: Option<Arc<dyn Backing>>,
    owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl<'f> ExternalMemory<'f> {
    /// A piece of a DMA-BUF, which work requests name by addresses from `addr` on. `addr` and the piece's offset are at the same place of a page.
    pub fn dmabuf(range: DmabufRange<'f>, addr: u64) -> Self {
        Self { addr, len: range.len, dmabuf: Ok(range), by_address: false, backing: None, owner: None }
    }

    /// Memory of which there is no DMA-BUF, for this reason.
    #[cfg(feature = "cuda")]
    pub(crate) fn without_dmabuf(reason: String, addr: u64, len: u64) -> Self {
        Self { addr, len, dmabuf: Err(reason), by_address: false, backing: None, owner: None }
    }

    /// The same, which a software device reaches through `backing`, that is as long.
    #[must_use]
    pub fn backed_by(mut self, backing: Arc<dyn Backing>) -> Self {
        self.backing = Some(backing);
        self
    }

    /// The same, kept alive by `owner` as long as it is registered; several owners are all kept.
    #[must_use]
    pub fn owned_by(mut self, owner: Arc<dyn Any + Send + Sync>) -> Self {
        self.owner = Some(match self.owner.take() {
            Some(earlier) => Arc::new((earlier, owner)),
            None => owner,
        });
        self
    }

    /// The same, which the kernel may also look up by its address in this process: that works for GPU memory where a peer-memory module is loaded.
    ///
    /// # Safety
    /// Until the region is deregistered, and as long as an [owner](Self::owned_by) given before this lives, the bytes at these addresses must stay allocated, and nobody
    /// may rely on what is in them except through atomic or volatile access.
    #[must_use]
    pub unsafe fn by_address(mut self) -> Self {
        self.by_address = true;
        self
    }

    /// Address of the first byte, as work requests name it.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its DMA-BUF, or why there is none.
    pub fn as_dmabuf(&self) -> Result<DmabufRange<'f>, &str> {
        self.dmabuf.as_ref().copied().map_err(String::as_str)
    }

    /// Whether it may be registered by its address. Then the bytes are valid until that is undone, and as long as [`owner`](Self::owner) lives.
    pub fn is_by_address(&self) -> bool {
        self.by_address
    }

    /// How a software device reaches it.
    pub fn backing(&self) -> Option<Arc<dyn Backing>> {
        self.backing.clone()
    }

    /// What keeps it alive. Who registers it keeps this until it is deregistered, and for good if that fails.
    pub fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.owner.clone()
    }
}

impl std::fmt::Debug for ExternalMemory<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExternalMemory({} bytes at {:#x}, {:?})", self.len, self.addr, self.dmabuf)
    }
}

/// A registered region of memory that this process cannot touch.
///
/// Dropping it deregisters: the device does not touch the memory any more, and a request that is still under way towards it fails
/// with a status.
pub struct ExternalRegion {
    addr: u64,
    len: u64,
    registration: Registration,
    lkey: Lkey,
    domain: Arc<DomainInner>,
}

impl ExternalRegion {
    pub(crate) fn register(
        domain: Arc<DomainInner>,
        memory: ExternalMemory<'_>,
        access: Access,
    ) -> Result<Self, Error> {
        let (addr, len) = (memory.addr, memory.len);
        if addr.checked_add(len).is_none() {
            let expected = "an address whose region ends below 2^64";
            return Err(ControlError::Invalid { what: "region address", value: addr, expected }.into());
        }
        if let Ok(DmabufRange { offset, .. }) = memory.dmabuf
            && (addr ^ offset) % PAGE != 0
        {
            return Err(Error::DmabufPlace { addr, offset });
        }
        let registration = domain.provider.register_external(domain.pd, memory, access)?;
        match Lkey::new(registration.keys.lkey) {
            Ok(lkey) => Ok(Self { addr, len, registration, lkey, domain }),
            Err(error) => {
                domain.provider.deregister(&registration);
                Err(Error::Post(error.into()))
            }
        }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte, as work requests name it.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Its keys.
    pub fn keys(&self) -> RegionKeys {
        self.registration.keys
    }

    /// What peers need to know to reach it.
    pub fn remote(&self) -> RemoteRegion {
        RemoteRegion { addr: self.addr, rkey: self.keys().rkey, len: self.len }
    }

    /// A piece of it, for a work request of the CPU's, or by [`LocalSlice::buf`] for one of a kernel's.
    ///
    /// # Errors
    /// The range passes the end, or is 4 GiB or longer.
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<LocalSlice<'_>, Error> {
        let (start, end) = resolve(range, self.len)?;
        LocalSlice::new(self.addr + start, end - start, self.lkey, self.domain.tag)
    }
}

impl Drop for ExternalRegion {
    fn drop(&mut self) {
        self.domain.provider.deregister(&self.registration);
    }
}

impl std::fmt::Debug for ExternalRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExternalRegion({} bytes at {:#x}, {:x?})", self.len, self.addr, self.keys())
    }
}

/// A completion queue whose ring is in memory that this process cannot touch: somebody else polls it, who sees that memory. It stays theirs.
pub struct ExternalCompletionQueue {
    shared: Arc<CqShared>,
    size: RingSize,
    entry_size: usize,
}

impl ExternalCompletionQueue {
    pub(crate) fn new(shared: CqShared, size: RingSize, entry_size: usize) -> Self {
        Self { shared: Arc::new(shared), size, entry_size }
    }

    /// Number of entries.
    pub fn entries(&self) -> u32 {
        self.size.entries()
    }

    /// The reader has found the ring empty: what queue pairs that were dropped before had of it, their share and their number, is free again.
    ///
    /// # Safety
    /// The reader did find it empty, after every one of these queue pairs was dropped.
    pub unsafe fn found_empty(&self) {
        self.shared.promises.found_empty(self.shared.promises.gone());
    }

    /// What whoever polls it needs to know, who sees the ring at `addr`. There is no doorbell, and nothing has been polled.
    pub fn handle_at(&self, addr: u64) -> CompletionRingHandle {
        CompletionRingHandle {
            ring: addr,
            doorbell: 0,
            mask: self.size.mask(),
            shift: self.size.log2() as u16,
            cqe_size: self.entry_size as u16,
            consumer: 0,
            tag: self.shared.tag,
        }
    }
}

impl CompletionTarget for ExternalCompletionQueue {}
impl Target for ExternalCompletionQueue {
    fn shared(&self) -> &Arc<CqShared> {
        &self.shared
    }
}

impl std::fmt::Debug for ExternalCompletionQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExternalCompletionQueue({} entries)", self.entries())
    }
}
