//! Memory on a GPU.

use super::context::Context;
use super::driver::{check, cuda, log_failure};
use super::error::{CudaError, GpuError};
use super::gpu::Gpu;
use crate::error::{Error, RangeError};
use cudarc::driver::sys;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

/// The unit in which memory is allocated and exported: the largest page size of a host that runs CUDA. An export
/// consists of whole pages, so it shows no bytes of other allocations.
const GRANULE: u64 = 64 << 10;
/// The GPU's own large page: memory of this size or more consists of whole ones.
const LARGE: u64 = 2 << 20;

/// Memory on a GPU, zeroed when it was allocated. Clones refer to the same memory. It is freed when the last is gone.
///
/// The GPU's copy engines copy to and from it, on streams of their own: copies do not wait for kernels, nor kernels for
/// copies.
#[derive(Clone)]
pub struct GpuMemory {
    inner: Arc<Allocation>,
}

/// An allocation of CUDA, freed when this is dropped.
struct Allocation {
    /// The address that CUDA returned.
    base: u64,
    /// The first address from `base` on that is aligned to a granule.
    addr: u64,
    len: u64,
    context: Arc<Context>,
}

/// Returns the bytes to allocate for `len`: whole granules. A number that exceeds every GPU's memory stays one.
fn rounded(len: u64) -> u64 {
    let unit = if len >= LARGE { LARGE } else { GRANULE };
    len.clamp(1, 1 << 60).next_multiple_of(unit)
}

/// Checks that `count` bytes at `offset` are inside memory of `len` bytes.
pub(super) fn check_range(offset: u64, count: usize, len: u64) -> Result<(), RangeError> {
    let end = offset.saturating_add(count as u64);
    if end <= len { Ok(()) } else { Err(RangeError::OutOfRange { start: offset, end, len }) }
}

impl Gpu {
    /// Allocates `len` zeroed bytes on the GPU, aligned to 64 KiB.
    ///
    /// # Errors
    /// CUDA's answer, usually that there is no memory.
    pub fn allocate(&self, len: u64) -> Result<GpuMemory, GpuError> {
        let context = &self.context;
        let _current = context.enter()?;
        let bytes = rounded(len);
        let mut base = allocate(bytes)?;
        if base % GRANULE != 0 {
            // SAFETY: `allocate` returned this address, and nobody else has it.
            log_failure("freeing GPU memory", unsafe { cuda!(cuMemFree_v2(base)) });
            base = allocate(bytes + GRANULE)?;
        }
        let addr = base.next_multiple_of(GRANULE);
        let inner = Allocation { base, addr, len, context: context.clone() };
        context.copiers.with(|copier| copier.zero(addr, bytes))?;
        Ok(GpuMemory { inner: Arc::new(inner) })
    }
}

/// Allocates bytes in the current context, and returns their address.
fn allocate(bytes: u64) -> Result<u64, CudaError> {
    let mut base = 0;
    // SAFETY: the caller entered a context. `base` is valid for the call, which writes it.
    unsafe { cuda!(cuMemAlloc_v2(&mut base, bytes as usize)) }?;
    Ok(base)
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let freed = self.context.enter().and_then(|_current| {
            // SAFETY: `allocate` returned this address. The last handle to it is gone. Kernels that know the address
            // have ended: that is the promise of whoever launched them.
            unsafe { cuda!(cuMemFree_v2(self.base)) }
        });
        log_failure("freeing GPU memory", freed);
    }
}

impl GpuMemory {
    /// Returns the address of the first byte, for kernels and work requests.
    pub fn addr(&self) -> u64 {
        self.inner.addr
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        self.inner.len
    }

    /// Returns `true` if the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the GPU that the memory is on.
    pub fn gpu(&self) -> Gpu {
        Gpu { context: self.inner.context.clone() }
    }

    /// Copies bytes into `dst`, from `offset` on.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`], or CUDA's answer.
    pub fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        check_range(offset, dst.len(), self.len())?;
        let context = &self.inner.context;
        let _current = context.enter()?;
        Ok(context.copiers.with(|copier| copier.copy_out(self.addr() + offset, dst))?)
    }

    /// Copies `src` into the memory, at `offset`. The bytes have arrived when this returns.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`], or CUDA's answer.
    pub fn write(&self, offset: u64, src: &[u8]) -> Result<(), Error> {
        check_range(offset, src.len(), self.len())?;
        let context = &self.inner.context;
        let _current = context.enter()?;
        Ok(context.copiers.with(|copier| copier.copy_in(self.addr() + offset, src))?)
    }

    /// Returns a copy of `len` bytes, from `offset` on.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        check_range(offset, len, self.len())?;
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Exports the memory as a DMA-BUF that begins at the memory's first byte. It consists of whole granules of 64 KiB,
    /// or of 2 MiB. Keep the memory as long as anybody uses the DMA-BUF.
    ///
    /// # Errors
    /// [`GpuError::NoDmabuf`], or CUDA's answer.
    pub fn dmabuf(&self) -> Result<OwnedFd, GpuError> {
        use sys::CUmemRangeHandleType_enum::CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD as DMA_BUF;
        let Allocation { addr, len, context, .. } = &*self.inner;
        if !context.info.dmabuf {
            return Err(GpuError::NoDmabuf { gpu: context.info.name.clone() });
        }
        let bytes = rounded(*len);
        let _current = context.enter()?;
        let export = |flags| {
            let mut fd = -1i32;
            // SAFETY: the range is this allocation, which `rounded` gave the same length. `fd` is valid for the call,
            // which writes a descriptor there.
            let answer = unsafe {
                sys::cuMemGetHandleForAddressRange((&raw mut fd).cast(), *addr, bytes as usize, DMA_BUF, flags)
            };
            // SAFETY: CUDA reported success, so it opened this descriptor for the caller, who closes it.
            check("cuMemGetHandleForAddressRange", answer).map(|()| unsafe { OwnedFd::from_raw_fd(fd) })
        };
        // If processor and GPU share page tables, CUDA exports addresses of the link between them, unless it is asked
        // for those on the PCI bus. NICs use the latter.
        let pcie = sys::CUmemRangeFlags_enum::CU_MEM_RANGE_FLAG_DMA_BUF_MAPPING_TYPE_PCIE as u64;
        if context.info.coherent
            && let Ok(fd) = export(pcie)
        {
            return Ok(fd);
        }
        Ok(export(0)?)
    }
}

impl std::fmt::Debug for GpuMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GpuMemory({} bytes at {:#x} of GPU {})", self.len(), self.addr(), self.inner.context.info.ordinal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_allocated_in_whole_granules() {
        assert_eq!(rounded(0), GRANULE);
        assert_eq!(rounded(1), GRANULE);
        assert_eq!(rounded(GRANULE + 1), 2 * GRANULE);
        assert_eq!(rounded(LARGE), LARGE);
        assert_eq!(rounded(LARGE + 1), 2 * LARGE);
        assert_eq!(rounded(u64::MAX), 1 << 60);
    }

    #[test]
    fn a_copy_past_the_end_is_told_with_its_range() {
        assert!(check_range(10, 6, 16).is_ok());
        let error = check_range(10, 7, 16).unwrap_err().to_string();
        assert_eq!(error, "bytes 10..17 are out of range: the memory has 16 bytes");
        assert!(check_range(u64::MAX, 2, 16).is_err());
    }
}
