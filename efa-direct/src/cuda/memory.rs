//! Memory on a GPU.

use super::context::Context;
use super::driver::{check, cuda, log};
use super::error::{CudaError, GpuError};
use super::gpu::Gpu;
use crate::error::{Error, RangeError};
use cudarc::driver::sys;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

/// What memory is allocated, and exported, in units of: the largest page of a host that runs CUDA. So an export shows
/// nothing else's bytes.
const GRANULE: u64 = 64 << 10;
/// The GPU's own large page: from this size on, memory is made of whole ones.
const LARGE: u64 = 2 << 20;

/// Memory on a GPU, zeroed when it was allocated. Clones are the same memory; it is freed when the last is gone.
///
/// Copies are made by the GPU's copy engines, on streams of their own: they do not wait for kernels, nor kernels for
/// them.
#[derive(Clone)]
pub struct GpuMemory {
    inner: Arc<Allocation>,
}

struct Allocation {
    /// What CUDA gave.
    base: u64,
    /// The first granule in it.
    addr: u64,
    len: u64,
    context: Arc<Context>,
}

/// Bytes to allocate for `len`: whole granules. More than any GPU has stays more than any has.
fn rounded(len: u64) -> u64 {
    let unit = if len >= LARGE { LARGE } else { GRANULE };
    len.clamp(1, 1 << 60).next_multiple_of(unit)
}

/// That `count` bytes at `offset` are inside `len`.
pub(super) fn check_range(offset: u64, count: usize, len: u64) -> Result<(), RangeError> {
    let end = offset.saturating_add(count as u64);
    if end <= len { Ok(()) } else { Err(RangeError::OutOfRange { start: offset, end, len }) }
}

impl Gpu {
    /// Allocates `len` zeroed bytes on the GPU, aligned to 64 KiB.
    ///
    /// # Errors
    /// What CUDA answers, mostly that there is no memory.
    pub fn allocate(&self, len: u64) -> Result<GpuMemory, GpuError> {
        let context = &self.context;
        let _current = context.enter()?;
        let bytes = rounded(len);
        let mut base = allocate(bytes)?;
        if base % GRANULE != 0 {
            // SAFETY: it was just allocated.
            log("freeing GPU memory", unsafe { cuda!(cuMemFree_v2(base)) });
            base = allocate(bytes + GRANULE)?;
        }
        let addr = base.next_multiple_of(GRANULE);
        let inner = Allocation { base, addr, len, context: context.clone() };
        context.copiers.with(|copier| copier.zero(addr, bytes))?;
        Ok(GpuMemory { inner: Arc::new(inner) })
    }
}

fn allocate(bytes: u64) -> Result<u64, CudaError> {
    let mut base = 0;
    // SAFETY: the caller has entered a context; the number is valid for the call.
    unsafe { cuda!(cuMemAlloc_v2(&mut base, bytes as usize)) }?;
    Ok(base)
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let freed = self.context.enter().and_then(|_current| {
            // SAFETY: it was allocated, and nobody can name it any more; kernels that know the address are over, which
            // launching them asked for.
            unsafe { cuda!(cuMemFree_v2(self.base)) }
        });
        log("freeing GPU memory", freed);
    }
}

impl GpuMemory {
    /// Address of the first byte, as kernels and work requests name it.
    pub fn addr(&self) -> u64 {
        self.inner.addr
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.inner.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The GPU that it is on.
    pub fn gpu(&self) -> Gpu {
        Gpu { context: self.inner.context.clone() }
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// They pass the end, or CUDA's answer.
    pub fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        check_range(offset, dst.len(), self.len())?;
        let context = &self.inner.context;
        let _current = context.enter()?;
        Ok(context.copiers.with(|copier| copier.copy_out(self.addr() + offset, dst))?)
    }

    /// Copies bytes in, at `offset`. They are there when this returns.
    ///
    /// # Errors
    /// They pass the end, or CUDA's answer.
    pub fn write(&self, offset: u64, src: &[u8]) -> Result<(), Error> {
        check_range(offset, src.len(), self.len())?;
        let context = &self.inner.context;
        let _current = context.enter()?;
        Ok(context.copiers.with(|copier| copier.copy_in(self.addr() + offset, src))?)
    }

    /// A copy of `len` bytes, from `offset` on.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        check_range(offset, len, self.len())?;
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Exports the memory as a DMA-BUF, whose first byte is that of the memory. It has whole granules of 64 KiB, or 2
    /// MiB. Keep the memory as long as anybody uses it.
    ///
    /// # Errors
    /// [`GpuError::NoDmabuf`], or what CUDA answers.
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
            // SAFETY: the range is this allocation's; the number is valid for the call.
            let answer = unsafe {
                sys::cuMemGetHandleForAddressRange((&raw mut fd).cast(), *addr, bytes as usize, DMA_BUF, flags)
            };
            // SAFETY: CUDA has just opened it, for us.
            check("cuMemGetHandleForAddressRange", answer).map(|()| unsafe { OwnedFd::from_raw_fd(fd) })
        };
        // Where processor and GPU share page tables, CUDA exports addresses of the link between the two unless asked
        // for those on the PCI bus.
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
