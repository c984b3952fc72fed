//! Completion counters in GPU memory.

use super::arrivals::{Claim, Role};
use super::gpu::Gpu;
use super::memory::GpuMemory;
use crate::counter::ExternalCompletionCounter;
use crate::device::Device;
use crate::error::Error;
use crate::shared::counter::{AttachableCounter, CounterShared, HasCounter};
use efa_io::handle::CounterHandle;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Where a counter's number of errors is: on a cache line of its own.
const ERRORS: u64 = 64;

/// A completion counter in GPU memory, which kernels read and the CPU does not. (One in host memory that both read is a
/// [`CompletionCounter`](crate::CompletionCounter), [mapped](Gpu::map).)
#[derive(Debug)]
pub struct PlacedCompletionCounter {
    counter: ExternalCompletionCounter,
    memory: GpuMemory,
    _polled: Option<Claim>,
}

impl Device {
    /// Creates a completion counter in memory of `gpu`.
    ///
    /// # Errors
    /// The device refused, or cannot; or the GPU exports no memory ([`GpuError::NoDmabuf`](super::GpuError::NoDmabuf)).
    /// [`GpuError::Unordered`](super::GpuError::Unordered) as for [`Gpu::map`].
    pub fn create_counter_on(&self, gpu: &Gpu) -> Result<PlacedCompletionCounter, Error> {
        let _polled = gpu.context.arrivals.claim(Role::Polled, &*self.provider)?;
        let memory = gpu.allocate(ERRORS + 8)?;
        let dmabuf = memory.dmabuf()?;
        let counter = self.create_counter_in(dmabuf.as_fd(), 0, ERRORS, Some(Arc::new(memory.clone())))?;
        Ok(PlacedCompletionCounter { counter, memory, _polled })
    }
}

impl PlacedCompletionCounter {
    /// What a kernel needs to know, with addresses as the GPU sees them.
    pub fn handle(&self) -> CounterHandle {
        CounterHandle { completions: self.memory.addr(), errors: self.memory.addr() + ERRORS }
    }
}

impl AttachableCounter for PlacedCompletionCounter {}
impl HasCounter for PlacedCompletionCounter {
    fn inner(&self) -> &Arc<CounterShared> {
        self.counter.inner()
    }
}
