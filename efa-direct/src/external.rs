//! Memory that this process cannot access, such as that of a GPU.
//!
//! Such memory comes as a DMA-BUF: a file descriptor through which its owner shares it. The feature `cuda` makes these
//! of GPU memory. A program with memory of another kind, or that allocates GPU memory by other means, starts here.

use efa_memory::Backing;
use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A piece of a DMA-BUF.
#[derive(Clone, Copy, Debug)]
pub struct DmabufRange<'f> {
    /// The DMA-BUF.
    pub fd: BorrowedFd<'f>,
    /// Offset of the piece in the DMA-BUF, in bytes.
    pub offset: u64,
    /// Length of the piece, in bytes.
    pub len: u64,
}

/// Memory to register, with all ways in which a device may reach it. A device takes the one that it supports.
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
    /// Describes a piece of a DMA-BUF. Work requests name it by addresses from `addr` on. `addr` and the piece's offset
    /// must be at the same place in a page of 4096 bytes.
    pub fn dmabuf(range: DmabufRange<'f>, addr: u64) -> Self {
        Self { addr, len: range.len, dmabuf: Ok(range), by_address: false, backing: None, owner: None }
    }

    /// Describes memory without a DMA-BUF, with the reason why there is none.
    #[cfg(feature = "cuda")]
    pub(crate) fn without_dmabuf(reason: String, addr: u64, len: u64) -> Self {
        Self { addr, len, dmabuf: Err(reason), by_address: false, backing: None, owner: None }
    }

    /// Adds a way for software devices: they access the memory through `backing`, which must have the same length.
    #[must_use]
    pub fn backed_by(mut self, backing: Arc<dyn Backing>) -> Self {
        self.backing = Some(backing);
        self
    }

    /// Keeps `owner` alive as long as the memory is registered. All of several owners are kept.
    #[must_use]
    pub fn owned_by(mut self, owner: Arc<dyn Any + Send + Sync>) -> Self {
        self.owner = Some(match self.owner.take() {
            Some(earlier) => Arc::new((earlier, owner)),
            None => owner,
        });
        self
    }

    /// Allows a device to register the memory by its address in this process. This works for GPU memory if a
    /// peer-memory module (`nvidia_peermem`) is loaded.
    ///
    /// # Safety
    /// Until the region is deregistered, and as long as an [owner](Self::owned_by) that was given before this call
    /// lives, the bytes at these addresses must stay allocated, and nobody may rely on their contents except through
    /// atomic or volatile access.
    #[must_use]
    pub unsafe fn by_address(mut self) -> Self {
        self.by_address = true;
        self
    }

    /// Returns the address of the first byte, by which work requests name it.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns `true` if the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the DMA-BUF, or the reason why there is none.
    pub fn as_dmabuf(&self) -> Result<DmabufRange<'f>, &str> {
        self.dmabuf.as_ref().copied().map_err(String::as_str)
    }

    /// Returns `true` if the memory may be registered by its address. The bytes are valid then until they are
    /// deregistered, and as long as [`owner`](Self::owner) lives.
    pub fn is_by_address(&self) -> bool {
        self.by_address
    }

    /// Returns the way for software devices, if there is one.
    pub fn backing(&self) -> Option<Arc<dyn Backing>> {
        self.backing.clone()
    }

    /// Returns what keeps the memory alive. Whoever registers the memory keeps this until it is deregistered, and
    /// forever if that fails.
    pub fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.owner.clone()
    }
}

impl std::fmt::Debug for ExternalMemory<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExternalMemory({} bytes at {:#x}, {:?})", self.len, self.addr, self.dmabuf)
    }
}
