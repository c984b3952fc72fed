//! Streams, which order kernels; and events, which mark a position in a stream.

use super::context::Context;
use super::driver::{create_stream, cuda, log_failure};
use super::error::{CudaError, GpuError};
use super::gpu::Gpu;
use cudarc::driver::sys;
use std::sync::Arc;

/// A stream of kernels. Kernels on one stream run one after the other; kernels on several streams may run together. A
/// stream does not wait for CUDA's default stream, nor the default stream for it.
///
/// Dropping it does not wait for the kernels on it.
pub struct Stream {
    raw: sys::CUstream,
    pub(super) context: Arc<Context>,
}

/// A position in a stream.
pub(super) struct Event {
    raw: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: `raw` is a handle of CUDA's driver. Its functions may be called from any thread with any handle, except that
// a handle must not be used after it was destroyed. Only `drop` destroys it, which has the value to itself.
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
    /// CUDA's answer.
    pub fn stream(&self) -> Result<Stream, GpuError> {
        let _current = self.context.enter()?;
        Ok(Stream { raw: create_stream()?, context: self.context.clone() })
    }
}

impl Stream {
    /// Returns the stream, for functions of CUDA's driver (`CUstream`). It is valid as long as `self` lives.
    pub fn as_ptr(&self) -> *mut std::ffi::c_void {
        self.raw.cast()
    }

    /// Waits until all kernels launched so far have ended.
    ///
    /// # Errors
    /// CUDA's answer, for example that a kernel failed.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        let _current = self.context.enter()?;
        // SAFETY: `self` owns the stream.
        Ok(unsafe { cuda!(cuStreamSynchronize(self.raw)) }?)
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|_current| {
            // SAFETY: `self` owns the stream and is being dropped. CUDA frees it when the kernels on it have ended.
            unsafe { cuda!(cuStreamDestroy_v2(self.raw)) }
        });
        log_failure("destroying a stream", destroyed);
    }
}

impl Event {
    /// Creates an event without a position.
    pub(super) fn create(context: &Arc<Context>) -> Result<Self, CudaError> {
        let _current = context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is valid for the call, which writes it.
        unsafe { cuda!(cuEventCreate(&mut raw, sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32)) }?;
        Ok(Self { raw, context: context.clone() })
    }

    /// Sets the position: behind everything launched on the stream so far.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        let _current = self.context.enter()?;
        // SAFETY: `self` owns the event, and the stream is borrowed. If they belonged to two contexts, CUDA would
        // refuse.
        unsafe { cuda!(cuEventRecord(self.raw, stream.raw)) }
    }

    /// Returns `true` if the stream has passed the position.
    pub(super) fn is_past(&self) -> Result<bool, CudaError> {
        let _current = self.context.enter()?;
        // SAFETY: `self` owns the event.
        match unsafe { sys::cuEventQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => super::driver::check("cuEventQuery", answer).map(|()| true),
        }
    }

    /// Waits until the stream has passed the position.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        let _current = self.context.enter()?;
        // SAFETY: `self` owns the event.
        unsafe { cuda!(cuEventSynchronize(self.raw)) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|_current| {
            // SAFETY: `self` owns the event and is being dropped. CUDA frees it when the stream has passed it.
            unsafe { cuda!(cuEventDestroy_v2(self.raw)) }
        });
        log_failure("destroying an event", destroyed);
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream(of GPU {})", self.context.info.ordinal)
    }
}
