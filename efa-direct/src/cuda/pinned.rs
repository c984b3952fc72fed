//! Host memory that GPUs reach.

use super::context::Context;
use super::driver::{cuda, log};
use super::error::GpuError;
use super::gpu::Gpu;
use super::memory::check_range;
use crate::error::RangeError;
use cudarc::driver::sys;
use efa_memory::{copy_in, copy_out};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// Host memory that a GPU reaches (pinned, mapped), zeroed when it was allocated. Both sides may touch it at any time,
/// so it is copied, never referenced.
///
/// A program that lets a kernel wait for a word of it, or waits for one of a kernel's, uses a [`PinnedWords`].
pub struct PinnedMemory {
    ptr: NonNull<u8>,
    addr: u64,
    len: usize,
    context: Arc<Context>,
}

/// The same as 32-bit words, each of which is loaded and stored whole.
pub struct PinnedWords {
    memory: PinnedMemory,
}

// SAFETY: the memory is only accessed atomically, and lives as long as the value.
unsafe impl Send for PinnedMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for PinnedMemory {}

impl Gpu {
    /// Allocates `len` zeroed bytes of host memory that kernels reach, in whole pages.
    ///
    /// # Errors
    /// What CUDA answers, mostly that there is no memory.
    pub fn pinned(&self, len: usize) -> Result<PinnedMemory, GpuError> {
        let context = &self.context;
        let _current = context.enter()?;
        let (mut ptr, mut addr) = (std::ptr::null_mut(), 0);
        // SAFETY: the pointer is valid for the call.
        unsafe {
            let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
            // More than any host has stays more than any has.
            cuda!(cuMemHostAlloc(&mut ptr, len.clamp(1, 1 << 60).next_multiple_of(4096), flags))?;
        }
        let ptr = NonNull::new(ptr.cast::<u8>()).unwrap_or(NonNull::dangling());
        let mut memory = PinnedMemory { ptr, addr: 0, len, context: context.clone() };
        // SAFETY: the memory is this long and nobody else's yet; the number is valid for the call.
        unsafe {
            std::ptr::write_bytes(ptr.as_ptr(), 0, len);
            cuda!(cuMemHostGetDevicePointer_v2(&mut addr, ptr.as_ptr().cast(), 0))?;
        }
        memory.addr = addr;
        Ok(memory)
    }

    /// Allocates so many zeroed 32-bit words of host memory that kernels reach.
    ///
    /// # Errors
    /// As for [`pinned`](Self::pinned).
    pub fn pinned_words(&self, count: usize) -> Result<PinnedWords, GpuError> {
        Ok(PinnedWords { memory: self.pinned(count.saturating_mul(4))? })
    }
}

impl PinnedMemory {
    /// Address of the first byte, as kernels name it.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// They pass the end.
    pub fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), RangeError> {
        check_range(offset, dst.len(), self.len())?;
        // SAFETY: in bounds; the bytes live as long as `self` and are only accessed atomically.
        unsafe { copy_out(self.ptr.as_ptr().add(offset as usize), dst) };
        Ok(())
    }

    /// Copies bytes in, at `offset`.
    ///
    /// # Errors
    /// They pass the end.
    pub fn write(&self, offset: u64, src: &[u8]) -> Result<(), RangeError> {
        check_range(offset, src.len(), self.len())?;
        // SAFETY: as in `read`.
        unsafe { copy_in(src, self.ptr.as_ptr().add(offset as usize)) };
        Ok(())
    }

    /// A copy of `len` bytes, from `offset` on.
    ///
    /// # Errors
    /// They pass the end.
    pub fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>, RangeError> {
        check_range(offset, len, self.len())?;
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

impl PinnedWords {
    /// Address of the first word, as kernels name it.
    pub fn addr(&self) -> u64 {
        self.memory.addr
    }
}

impl std::ops::Deref for PinnedWords {
    type Target = [AtomicU32];

    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: as many words, aligned to a page, zeroed once and only accessed atomically since; they live as long
        // as `self`.
        unsafe { std::slice::from_raw_parts(self.memory.ptr.as_ptr().cast(), self.memory.len / 4) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let freed = self.context.enter().and_then(|_current| {
            // SAFETY: it was allocated, and nobody can name it any more; kernels that know the address are over, which
            // launching them asked for.
            unsafe { cuda!(cuMemFreeHost(self.ptr.as_ptr().cast())) }
        });
        log("freeing pinned memory", freed);
    }
}

impl std::fmt::Debug for PinnedMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PinnedMemory({} bytes at {:#x})", self.len, self.addr)
    }
}

impl std::fmt::Debug for PinnedWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PinnedWords({} words at {:#x})", self.len(), self.addr())
    }
}
