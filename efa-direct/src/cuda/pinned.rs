//! Pinned host memory, which GPUs access.

use super::context::Context;
use super::driver::{cuda, log_failure};
use super::error::GpuError;
use super::gpu::Gpu;
use super::memory::check_range;
use crate::error::RangeError;
use cudarc::driver::sys;
use efa_memory::{copy_in, copy_out};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// Host memory that a GPU can access (pinned and mapped), zeroed when it was allocated. Both sides may access it at any
/// time, so its bytes are copied, never referenced.
///
/// To wait for a word that a kernel writes, or to let a kernel wait for one, use [`PinnedWords`].
pub struct PinnedMemory {
    ptr: NonNull<u8>,
    addr: u64,
    len: usize,
    context: Arc<Context>,
}

/// Pinned host memory as 32-bit words, each of which is loaded and stored whole.
pub struct PinnedWords {
    memory: PinnedMemory,
}

// SAFETY: `ptr` is memory that only this value frees, so it moves along. This file accesses it only atomically.
unsafe impl Send for PinnedMemory {}
// SAFETY: a shared reference allows only atomic accesses: `copy_in` and `copy_out` for bytes, `AtomicU32` for words. A
// value is one or the other, since `PinnedWords` does not give its memory out.
unsafe impl Sync for PinnedMemory {}

impl Gpu {
    /// Allocates `len` zeroed bytes of host memory that kernels can access, in whole pages.
    ///
    /// # Errors
    /// CUDA's answer, usually that there is no memory.
    pub fn pinned(&self, len: usize) -> Result<PinnedMemory, GpuError> {
        let context = &self.context;
        let _current = context.enter()?;
        let (mut ptr, mut addr) = (std::ptr::null_mut(), 0);
        // SAFETY: `ptr` is valid for the call, which writes it.
        unsafe {
            let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
            // A number that exceeds every host's memory stays one.
            cuda!(cuMemHostAlloc(&mut ptr, len.clamp(1, 1 << 60).next_multiple_of(4096), flags))?;
        }
        let ptr = NonNull::new(ptr.cast::<u8>()).unwrap_or(NonNull::dangling());
        let mut memory = PinnedMemory { ptr, addr: 0, len, context: context.clone() };
        // SAFETY: the allocation has at least `len` bytes, and nobody else has its address yet. `addr` is valid for the
        // call, which writes it.
        unsafe {
            std::ptr::write_bytes(ptr.as_ptr(), 0, len);
            cuda!(cuMemHostGetDevicePointer_v2(&mut addr, ptr.as_ptr().cast(), 0))?;
        }
        memory.addr = addr;
        Ok(memory)
    }

    /// Allocates `count` zeroed 32-bit words of host memory that kernels can access.
    ///
    /// # Errors
    /// As for [`pinned`](Self::pinned).
    pub fn pinned_words(&self, count: usize) -> Result<PinnedWords, GpuError> {
        Ok(PinnedWords { memory: self.pinned(count.saturating_mul(4))? })
    }
}

impl PinnedMemory {
    /// Returns the address of the first byte, for kernels.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Returns `true` if the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes into `dst`, from `offset` on.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`].
    pub fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), RangeError> {
        check_range(offset, dst.len(), self.len())?;
        // SAFETY: `check_range` found the range inside the memory, which `self` owns. Everybody in this process
        // accesses a `PinnedMemory` as atomic bytes.
        unsafe { copy_out(self.ptr.as_ptr().add(offset as usize), dst) };
        Ok(())
    }

    /// Copies `src` into the memory, at `offset`.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`].
    pub fn write(&self, offset: u64, src: &[u8]) -> Result<(), RangeError> {
        check_range(offset, src.len(), self.len())?;
        // SAFETY: as in `read`.
        unsafe { copy_in(src, self.ptr.as_ptr().add(offset as usize)) };
        Ok(())
    }

    /// Returns a copy of `len` bytes, from `offset` on.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`].
    pub fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>, RangeError> {
        check_range(offset, len, self.len())?;
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

impl PinnedWords {
    /// Returns the address of the first word, for kernels.
    pub fn addr(&self) -> u64 {
        self.memory.addr
    }
}

impl std::ops::Deref for PinnedWords {
    type Target = [AtomicU32];

    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: the memory has this many words, is aligned to a page and zeroed when allocated, and `self` owns it.
        // Everybody in this process accesses the words of a `PinnedWords` only through these atomics.
        unsafe { std::slice::from_raw_parts(self.memory.ptr.as_ptr().cast(), self.memory.len / 4) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let freed = self.context.enter().and_then(|_current| {
            // SAFETY: `pinned` allocated this memory, and `self` is its only owner. Kernels that know the address have
            // ended: that is the promise of whoever launched them.
            unsafe { cuda!(cuMemFreeHost(self.ptr.as_ptr().cast())) }
        });
        log_failure("freeing pinned memory", freed);
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
