//! Registered regions of GPU memory.

use super::driver::catch_panic;
use super::gpu::Gpu;
use super::memory::GpuMemory;
use super::order_check::{ActiveUse, Use};
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

/// A registered region of GPU memory, which it keeps allocated.
///
/// A NIC reads and writes it on the GPU. A software device uses CUDA, also while kernels run.
///
/// Dropping it deregisters the memory: the device accesses it no more, and requests that still name it fail with a
/// status.
#[derive(Debug)]
pub struct GpuRegion {
    // Dropped in this order: the memory stays allocated until it is deregistered.
    region: ExternalRegion,
    memory: GpuMemory,
    start: u64,
    _written: Option<ActiveUse>,
}

impl ProtectionDomain {
    /// Registers bytes of GPU memory. A NIC gets them as a DMA-BUF or, if the GPU or the NIC's driver refuses that, by
    /// address, which needs a peer-memory module (`nvidia_peermem`). A software device accesses them by CUDA's copies.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`](crate::RangeError::OutOfRange), or
    /// [`SetupError::ExternalMemory`](crate::SetupError::ExternalMemory) with the reasons against both ways.
    /// [`GpuError::Unordered`](super::GpuError::Unordered) if a NIC would write the memory while kernels of the GPU
    /// poll for a NIC's completions, and the GPU does not order the two.
    pub fn register_gpu(
        &self,
        memory: &GpuMemory,
        range: impl RangeBounds<u64>,
        access: Access,
    ) -> Result<GpuRegion, Error> {
        let (start, end) = resolve_range(range, memory.len())?;
        let written = if access.allows(Access::LOCAL_WRITE) || access.allows(Access::REMOTE_WRITE) {
            memory.gpu().context.order_check.begin(Use::NicsWrite, &*self.inner.provider)?
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
        // SAFETY: the owner given above keeps the bytes allocated. They are on the GPU: this process accesses them only
        // by CUDA's copies, and has no reference to them.
        let external = unsafe { external.by_address() };
        let region = self.register_external(external, access)?;
        Ok(GpuRegion { region, memory: memory.clone(), start, _written: written })
    }
}

/// The methods `slice`, `addr`, `len`, `keys` and `remote` are those of [`ExternalRegion`].
impl Deref for GpuRegion {
    type Target = ExternalRegion;

    fn deref(&self) -> &ExternalRegion {
        &self.region
    }
}

impl GpuRegion {
    /// Returns the memory that contains the region.
    pub fn memory(&self) -> &GpuMemory {
        &self.memory
    }

    /// Returns the region's offset in the memory, in bytes.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Returns the GPU that the memory is on.
    pub fn gpu(&self) -> Gpu {
        self.memory.gpu()
    }

    /// Copies bytes into `dst`, from `offset` in the region on.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`](crate::RangeError::OutOfRange), or CUDA's answer.
    pub fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        super::memory::check_range(offset, dst.len(), self.len())?;
        self.memory.read(self.start + offset, dst)
    }

    /// Copies `src` into the region, at `offset`.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`](crate::RangeError::OutOfRange), or CUDA's answer.
    pub fn write(&self, offset: u64, src: &[u8]) -> Result<(), Error> {
        super::memory::check_range(offset, src.len(), self.len())?;
        self.memory.write(self.start + offset, src)
    }
}

/// A piece of GPU memory that a software device accesses, by CUDA's copies.
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
        ok_or_log(self.memory.read(self.start + offset as u64, dst))
    }

    fn write(&self, offset: usize, src: &[u8]) -> bool {
        ok_or_log(self.memory.write(self.start + offset as u64, src))
    }
}

/// Logs a failure. Returns `true` if there is none; otherwise the device fails the request.
fn ok_or_log(outcome: Result<(), Error>) -> bool {
    let log = |error: &Error| catch_panic(|| tracing::error!(%error, "a software device cannot access GPU memory"));
    outcome.inspect_err(log).is_ok()
}
