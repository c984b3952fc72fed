//! Copies between the program and a GPU, on streams of their own.

use super::driver::{Current, create_stream, cuda, log};
use super::error::CudaError;
use cudarc::driver::sys;
use parking_lot::{Condvar, Mutex};
use std::ptr::NonNull;

/// Bytes that are copied at a time.
const STAGING: usize = 256 << 10;

/// A stream to copy on, and pinned memory to copy through: memory that is not pinned CUDA might copy on a stream of its
/// own choice.
pub(super) struct Copier {
    stream: sys::CUstream,
    staging: NonNull<u8>,
}

// SAFETY: CUDA's functions may be called from any thread; the staging memory is this value's alone.
unsafe impl Send for Copier {}

/// Those that nobody copies with now. They are made when the GPU is opened: to make one later could wait for a kernel,
/// which may wait for the copy.
#[derive(Default)]
pub(super) struct Copiers {
    idle: Mutex<Vec<Copier>>,
    came_back: Condvar,
}

impl Copiers {
    /// How many there are: as many copies go on at a time.
    pub(super) const COUNT: usize = 4;

    pub(super) fn put(&self, copier: Copier) {
        self.idle.lock().push(copier);
        self.came_back.notify_one();
    }

    /// All that are idle.
    pub(super) fn take(&self) -> Vec<Copier> {
        std::mem::take(&mut *self.idle.lock())
    }
}

impl Copiers {
    /// Calls `f` with a copier that nobody else uses meanwhile. The context has been entered.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Copier) -> Result<T, CudaError>) -> Result<T, CudaError> {
        let mut copier = {
            let mut idle = self.idle.lock();
            loop {
                match idle.pop() {
                    Some(copier) => break copier,
                    None => self.came_back.wait(&mut idle),
                }
            }
        };
        let outcome = f(&mut copier);
        self.put(copier);
        outcome
    }
}

impl Copier {
    pub(super) fn new(_current: &Current<'_>) -> Result<Self, CudaError> {
        let mut staging = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the call.
        unsafe { cuda!(cuMemHostAlloc(&mut staging, STAGING, 0)) }?;
        let staging = NonNull::new(staging.cast()).unwrap_or(NonNull::dangling());
        match create_stream() {
            Ok(stream) => Ok(Self { stream, staging }),
            Err(error) => {
                // SAFETY: it was just allocated.
                log("freeing pinned memory", unsafe { cuda!(cuMemFreeHost(staging.as_ptr().cast())) });
                Err(error)
            }
        }
    }

    pub(super) fn free(self, _current: &Current<'_>) {
        // SAFETY: both live, nothing is under way, and neither is used again.
        unsafe {
            log("destroying a stream", cuda!(cuStreamDestroy_v2(self.stream)));
            log("freeing pinned memory", cuda!(cuMemFreeHost(self.staging.as_ptr().cast())));
        }
    }

    fn finish(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives.
        unsafe { cuda!(cuStreamSynchronize(self.stream)) }
    }

    /// Copies bytes to the GPU's address `to`, which the caller vouches for.
    pub(super) fn copy_in(&mut self, mut to: u64, src: &[u8]) -> Result<(), CudaError> {
        for chunk in src.chunks(STAGING) {
            // SAFETY: the staging memory is as long as a chunk at most, this value's own, and no copy is under way. The
            // copy is over before it is used again.
            unsafe {
                std::ptr::copy_nonoverlapping(chunk.as_ptr(), self.staging.as_ptr(), chunk.len());
                cuda!(cuMemcpyHtoDAsync_v2(to, self.staging.as_ptr().cast(), chunk.len(), self.stream))?;
            }
            self.finish()?;
            to += chunk.len() as u64;
        }
        Ok(())
    }

    /// Copies bytes from the GPU's address `from`, which the caller vouches for.
    pub(super) fn copy_out(&mut self, mut from: u64, dst: &mut [u8]) -> Result<(), CudaError> {
        for chunk in dst.chunks_mut(STAGING) {
            // SAFETY: as in `copy_in`.
            unsafe { cuda!(cuMemcpyDtoHAsync_v2(self.staging.as_ptr().cast(), from, chunk.len(), self.stream)) }?;
            self.finish()?;
            // SAFETY: as in `copy_in`; the copy is over.
            unsafe { std::ptr::copy_nonoverlapping(self.staging.as_ptr(), chunk.as_mut_ptr(), chunk.len()) };
            from += chunk.len() as u64;
        }
        Ok(())
    }

    pub(super) fn zero(&mut self, addr: u64, bytes: u64) -> Result<(), CudaError> {
        // SAFETY: the caller has just allocated these bytes.
        unsafe { cuda!(cuMemsetD8Async(addr, 0, bytes as usize, self.stream)) }?;
        self.finish()
    }
}
