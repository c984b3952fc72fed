//! Memory that this process cannot touch, as that of a GPU: regions and completion queues in it.
//!
//! It comes as a DMA-BUF, a descriptor by which its owner lets others have it. The feature `cuda` makes these of GPU
//! memory; whoever has memory of another kind, or allocates GPU memory by other means, starts here.

use efa_memory::Backing;
use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

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
    /// A piece of a DMA-BUF, which work requests name by addresses from `addr` on. `addr` and the piece's offset are at
    /// the same place of a page.
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

    /// The same, which the kernel may also look up by its address in this process: that works for GPU memory where a
    /// peer-memory module is loaded.
    ///
    /// # Safety
    /// Until the region is deregistered, and as long as an [owner](Self::owned_by) given before this lives, the bytes
    /// at these addresses must stay allocated, and nobody may rely on what is in them except through atomic or volatile
    /// access.
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

    /// Whether it may be registered by its address. Then the bytes are valid until that is undone, and as long as
    /// [`owner`](Self::owner) lives.
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
