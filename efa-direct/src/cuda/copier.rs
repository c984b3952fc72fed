//! Copies between the program and a GPU, on streams of their own.
//!
//! A copy must not wait for a kernel, because a kernel may wait for the copy. So copies use neither the default stream
//! nor memory that CUDA would stage by itself, and everything that they need is made when the GPU is opened.

use super::driver::{Current, create_stream, cuda, log_failure};
use super::error::CudaError;
use cudarc::driver::sys;
use parking_lot::{Condvar, Mutex};
use std::ptr::NonNull;

/// Most bytes that are copied at a time.
const STAGING: usize = 256 << 10;

/// A stream to copy on, and pinned memory to copy through. With memory that is not pinned, CUDA may choose another
/// stream.
pub(super) struct Copier {
    stream: sys::CUstream,
    staging: NonNull<u8>,
}

// SAFETY: CUDA's functions may be called from any thread. Only this value has the staging memory, and it moves along.
unsafe impl Send for Copier {}

/// The copiers that are idle. All are made when the GPU is opened: to make one later could wait for a kernel, which may
/// wait for the copy.
#[derive(Default)]
pub(super) struct Copiers {
    idle: Mutex<Vec<Copier>>,
    returned: Condvar,
}

impl Copiers {
    /// Number of copiers, and so of copies at a time.
    pub(super) const COUNT: usize = 4;

    /// Adds a copier to the idle ones.
    pub(super) fn give_back(&self, copier: Copier) {
        self.idle.lock().push(copier);
        self.returned.notify_one();
    }

    /// Takes all copiers that are idle.
    pub(super) fn take_idle(&self) -> Vec<Copier> {
        std::mem::take(&mut *self.idle.lock())
    }
}

impl Copiers {
    /// Calls `f` with a copier that nobody else uses meanwhile; waits for one if all are busy. The caller has entered
    /// the context.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Copier) -> Result<T, CudaError>) -> Result<T, CudaError> {
        let mut copier = {
            let mut idle = self.idle.lock();
            loop {
                match idle.pop() {
                    Some(copier) => break copier,
                    None => self.returned.wait(&mut idle),
                }
            }
        };
        let outcome = f(&mut copier);
        self.give_back(copier);
        outcome
    }
}

impl Copier {
    /// Makes a copier in the current context.
    pub(super) fn new(_current: &Current<'_>) -> Result<Self, CudaError> {
        let mut staging = std::ptr::null_mut();
        // SAFETY: `staging` is valid for the call, which writes it.
        unsafe { cuda!(cuMemHostAlloc(&mut staging, STAGING, 0)) }?;
        let staging = NonNull::new(staging.cast()).unwrap_or(NonNull::dangling());
        match create_stream() {
            Ok(stream) => Ok(Self { stream, staging }),
            Err(error) => {
                // SAFETY: it was allocated above, and nobody else has the address.
                log_failure("freeing pinned memory", unsafe { cuda!(cuMemFreeHost(staging.as_ptr().cast())) });
                Err(error)
            }
        }
    }

    /// Destroys the stream and frees the memory.
    pub(super) fn free(self, _current: &Current<'_>) {
        // SAFETY: this value made both and is consumed here, so neither is used again. No copy is under way: `copy_in`,
        // `copy_out` and `zero` wait for theirs.
        unsafe {
            log_failure("destroying a stream", cuda!(cuStreamDestroy_v2(self.stream)));
            log_failure("freeing pinned memory", cuda!(cuMemFreeHost(self.staging.as_ptr().cast())));
        }
    }

    /// Waits for the copies on the stream.
    fn finish(&self) -> Result<(), CudaError> {
        // SAFETY: `self` owns the stream, which `free` destroys.
        unsafe { cuda!(cuStreamSynchronize(self.stream)) }
    }

    /// Copies bytes to the GPU's address `to`. The caller has checked that the range is allocated.
    pub(super) fn copy_in(&mut self, mut to: u64, src: &[u8]) -> Result<(), CudaError> {
        for chunk in src.chunks(STAGING) {
            // SAFETY: `chunk` has at most `STAGING` bytes, the length of the staging memory, which only this value has.
            // No earlier copy uses it: `finish` waited for that one. The caller has checked the GPU's range.
            unsafe {
                std::ptr::copy_nonoverlapping(chunk.as_ptr(), self.staging.as_ptr(), chunk.len());
                cuda!(cuMemcpyHtoDAsync_v2(to, self.staging.as_ptr().cast(), chunk.len(), self.stream))?;
            }
            self.finish()?;
            to += chunk.len() as u64;
        }
        Ok(())
    }

    /// Copies bytes from the GPU's address `from`. The caller has checked that the range is allocated.
    pub(super) fn copy_out(&mut self, mut from: u64, dst: &mut [u8]) -> Result<(), CudaError> {
        for chunk in dst.chunks_mut(STAGING) {
            // SAFETY: as in `copy_in`, in the other direction.
            unsafe { cuda!(cuMemcpyDtoHAsync_v2(self.staging.as_ptr().cast(), from, chunk.len(), self.stream)) }?;
            self.finish()?;
            // SAFETY: `chunk` is as long as the bytes copied, at most `STAGING`, and `finish` has waited for the copy.
            unsafe { std::ptr::copy_nonoverlapping(self.staging.as_ptr(), chunk.as_mut_ptr(), chunk.len()) };
            from += chunk.len() as u64;
        }
        Ok(())
    }

    /// Fills memory that was just allocated with zeros.
    pub(super) fn zero(&mut self, addr: u64, bytes: u64) -> Result<(), CudaError> {
        // SAFETY: the caller allocated these bytes, and nobody else has their address yet.
        unsafe { cuda!(cuMemsetD8Async(addr, 0, bytes as usize, self.stream)) }?;
        self.finish()
    }
}
