//! Regions of GPU memory.

use super::arrivals::{Claim, Role};
use super::driver::contained;
use super::gpu::Gpu;
use super::memory::GpuMemory;
use crate::error::Error;
use crate::external::{DmabufRange, ExternalMemory};
use crate::external_region::ExternalRegion;
use crate::pd::ProtectionDomain;
use crate::region::resolve_range;
use efa_memory::Backing;
use efa_types::Access;
use std::ops::{Deref, RangeBounds};
use std::os::fd::AsFd;
use std::sync::Arc;

/// A registered region of GPU memory, which it keeps.
///
/// A NIC reads and writes it on the GPU. A software device does through CUDA, while kernels run.
///
/// Dropping it deregisters: the device does not touch the memory any more, and a request that is still under way
/// towards it fails with a status.
#[derive(Debug)]
pub struct GpuRegion {
    // Dropped in this order: the memory stays until it is deregistered.
    region: ExternalRegion,
    memory: GpuMemory,
    start: u64,
    _written: Option<Claim>,
}

impl ProtectionDomain {
    /// Registers bytes of GPU memory. A NIC gets them as a DMA-BUF or, if that does not go, by their address, which
    /// takes a peer-memory module (`nvidia_peermem`).
    ///
    /// # Errors
    /// The range passes the end, or [`Error::ExternalMemory`] with what came of both attempts.
    /// [`GpuError::Unordered`](super::GpuError::Unordered) if a NIC is to write it, kernels of the GPU poll for a NIC's
    /// completions, and the GPU does not order the two.
    pub fn register_gpu(
        &self,
        memory: &GpuMemory,
        range: impl RangeBounds<u64>,
        access: Access,
    ) -> Result<GpuRegion, Error> {
        let (start, end) = resolve_range(range, memory.len())?;
        let written = if access.allows(Access::LOCAL_WRITE) || access.allows(Access::REMOTE_WRITE) {
            memory.gpu().context.arrivals.claim(Role::Written, &*self.inner.provider)?
        } else {
            None
        };
        let (addr, len) = (memory.addr() + start, end - start);
        let dmabuf = memory.dmabuf();
        let external = match &dmabuf {
            Ok(fd) => ExternalMemory::dmabuf(DmabufRange { fd: fd.as_fd(), offset: start, len }, addr),
            Err(reason) => ExternalMemory::without_dmabuf(reason.to_string(), addr, len),
        };
        let external = external.owned_by(Arc::new(memory.clone())).backed_by(Arc::new(Window {
            memory: memory.clone(),
            start,
            len: len as usize,
        }));
        // SAFETY: the bytes are allocated as long as their owner lives, and are the GPU's: this process reads and
        // writes them by CUDA's copies alone, and has no reference to them.
        let external = unsafe { external.by_address() };
        let region = self.register_external(external, access)?;
        Ok(GpuRegion { region, memory: memory.clone(), start, _written: written })
    }
}

/// `slice`, `addr`, `len`, `keys` and `remote` are those of any region.
impl Deref for GpuRegion {
    type Target = ExternalRegion;

    fn deref(&self) -> &ExternalRegion {
        &self.region
    }
}

impl GpuRegion {
    /// The memory that it is in.
    pub fn memory(&self) -> &GpuMemory {
        &self.memory
    }

    /// Where in the memory it begins, in bytes.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The GPU that it is on.
    pub fn gpu(&self) -> Gpu {
        self.memory.gpu()
    }

    /// Copies bytes out, from `offset` in the region on.
    ///
    /// # Errors
    /// They pass the end, or CUDA's answer.
    pub fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        super::memory::check_range(offset, dst.len(), self.len())?;
        self.memory.read(self.start + offset, dst)
    }

    /// Copies bytes in, at `offset` in the region.
    ///
    /// # Errors
    /// They pass the end, or CUDA's answer.
    pub fn write(&self, offset: u64, src: &[u8]) -> Result<(), Error> {
        super::memory::check_range(offset, src.len(), self.len())?;
        self.memory.write(self.start + offset, src)
    }
}

/// A piece of GPU memory, as a software device reaches it.
struct Window {
    memory: GpuMemory,
    start: u64,
    len: usize,
}

impl Backing for Window {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        told(self.memory.read(self.start + offset as u64, dst))
    }

    fn write(&self, offset: usize, src: &[u8]) -> bool {
        told(self.memory.write(self.start + offset as u64, src))
    }
}

/// Whether it went well. If not, the device fails the request.
fn told(outcome: Result<(), Error>) -> bool {
    let log = |error: &Error| contained(|| tracing::error!(%error, "a software device cannot reach GPU memory"));
    outcome.inspect_err(log).is_ok()
}
