//! Streams: what runs one after the other; and events, which tell how far a stream is.

use super::context::Context;
use super::driver::{create_stream, cuda, log};
use super::error::{CudaError, GpuError};
use super::gpu::Gpu;
use cudarc::driver::sys;
use std::sync::Arc;

/// Kernels launched on one stream run one after the other; those of several run together. A stream does not wait for
/// CUDA's default stream, nor that for it.
///
/// Dropping it does not wait for what runs on it.
pub struct Stream {
    raw: sys::CUstream,
    pub(super) context: Arc<Context>,
}

/// A place in a stream.
pub(super) struct Event {
    raw: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: CUDA's functions may be called from any thread, for any object, but for destroying one, which takes the only
// handle there is.
unsafe impl Send for Stream {}
// SAFETY: as for `Send`.
unsafe impl Sync for Stream {}
// SAFETY: as for `Stream`.
unsafe impl Send for Event {}
// SAFETY: as for `Stream`.
unsafe impl Sync for Event {}

impl Gpu {
    /// Makes a stream.
    ///
    /// # Errors
    /// What CUDA answers.
    pub fn stream(&self) -> Result<Stream, GpuError> {
        let _current = self.context.enter()?;
        Ok(Stream { raw: create_stream()?, context: self.context.clone() })
    }
}

impl Stream {
    /// The stream, for functions of CUDA's driver (`CUstream`). It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut std::ffi::c_void {
        self.raw.cast()
    }

    /// Waits for everything launched so far.
    ///
    /// # Errors
    /// What CUDA answers, for example that a kernel failed.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        let _current = self.context.enter()?;
        // SAFETY: the stream lives.
        Ok(unsafe { cuda!(cuStreamSynchronize(self.raw)) }?)
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|_current| {
            // SAFETY: it lives, and is not used again; CUDA keeps it until what runs on it is over.
            unsafe { cuda!(cuStreamDestroy_v2(self.raw)) }
        });
        log("destroying a stream", destroyed);
    }
}

impl Event {
    /// One that is nowhere yet.
    pub(super) fn create(context: &Arc<Context>) -> Result<Self, CudaError> {
        let _current = context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the call.
        unsafe { cuda!(cuEventCreate(&mut raw, sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32)) }?;
        Ok(Self { raw, context: context.clone() })
    }

    /// From here on it is behind everything launched so far.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        let _current = self.context.enter()?;
        // SAFETY: both live, and are of one context.
        unsafe { cuda!(cuEventRecord(self.raw, stream.raw)) }
    }

    /// Whether the stream is past it.
    pub(super) fn is_past(&self) -> Result<bool, CudaError> {
        let _current = self.context.enter()?;
        // SAFETY: it lives.
        match unsafe { sys::cuEventQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => super::driver::check("cuEventQuery", answer).map(|()| true),
        }
    }

    /// Waits until the stream is past it.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        let _current = self.context.enter()?;
        // SAFETY: it lives.
        unsafe { cuda!(cuEventSynchronize(self.raw)) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|_current| {
            // SAFETY: it lives, and is not used again; CUDA keeps it until the stream is past it.
            unsafe { cuda!(cuEventDestroy_v2(self.raw)) }
        });
        log("destroying an event", destroyed);
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream(of GPU {})", self.context.info.ordinal)
    }
}
