//! Completion queues that a GPU polls, in GPU or host memory.

use super::gpu::Gpu;
use super::mapped::Mapped;
use super::memory::GpuMemory;
use super::order_check::{ActiveUse, Use};
use crate::cq::{CqConfig, GpuCompletionQueue};
use crate::device::Device;
use crate::error::{Error, HandOverError, Refused};
use crate::external::DmabufRange;
use crate::external_cq::ExternalCompletionQueue;
use crate::shared::cq::{CompletionTarget, CqShared, HasCq};
use efa_io::{Cqe32, handle::CompletionRingHandle};
use std::os::fd::AsFd;
use std::sync::Arc;

/// The place of a completion ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CqPlace {
    /// Memory of the GPU that polls: fast to poll, and written by the NIC across the PCI bus. The CPU never sees it.
    /// Some NICs do not support it, and no software device does.
    GpuMemory,
    /// Host memory, mapped into the GPU. Every device supports it.
    PinnedHost,
}

/// A completion queue that a GPU polls.
#[derive(Debug)]
pub struct PlacedCompletionQueue {
    inner: Storage,
}

/// A completion queue, by its place.
#[derive(Debug)]
enum Storage {
    Gpu { queue: ExternalCompletionQueue, memory: GpuMemory, _polled: Option<ActiveUse> },
    Host(Mapped<GpuCompletionQueue>),
}

/// Returns the size in bytes of a ring of at least this many entries. Libraries and devices round the number up to a
/// power of two.
fn ring_bytes(entries: u32) -> u64 {
    u64::from(entries.max(1)).next_power_of_two() * Cqe32::SIZE as u64
}

impl Device {
    /// Creates a completion queue that `gpu` polls, in the place of the caller's choice. There is no fallback to the
    /// other place.
    ///
    /// # Errors
    /// The device refused; it cannot write completions into GPU memory; the GPU cannot export memory
    /// ([`GpuError::NoDmabuf`](super::GpuError::NoDmabuf)); or CUDA does not map the queue.
    /// [`GpuError::Unordered`](super::GpuError::Unordered) as for [`Gpu::map`].
    pub fn create_cq_on(&self, gpu: &Gpu, config: CqConfig, place: CqPlace) -> Result<PlacedCompletionQueue, Error> {
        let inner = match place {
            CqPlace::PinnedHost => Storage::Host(gpu.map(self.create_cq(config)?.into_gpu()?)?),
            CqPlace::GpuMemory => {
                let provider = &*self.provider;
                let _polled = gpu.context.order_check.begin(Use::KernelsPoll, provider)?;
                let memory = gpu.allocate(ring_bytes(config.entries()))?;
                let dmabuf = memory.dmabuf()?;
                // The ring is at the start of the memory. The length must be a whole number of pages.
                let range = DmabufRange { fd: dmabuf.as_fd(), offset: 0, len: memory.len().next_multiple_of(4096) };
                let queue = self.create_cq_in(config, range, Some(Arc::new(memory.clone())))?;
                Storage::Gpu { queue, memory, _polled }
            }
        };
        Ok(PlacedCompletionQueue { inner })
    }
}

impl PlacedCompletionQueue {
    /// Returns what a kernel needs to know of the queue, with addresses as the GPU sees them. The handle begins at the
    /// first entry. A kernel that continues where another has stopped gets the position from the caller, in `consumer`.
    pub fn handle(&self) -> CompletionRingHandle {
        match &self.inner {
            Storage::Gpu { queue, memory, .. } => queue.handle_at(memory.addr()),
            Storage::Host(queue) => queue.handle(),
        }
    }

    /// Returns the ring's place.
    pub fn place(&self) -> CqPlace {
        match self.inner {
            Storage::Gpu { .. } => CqPlace::GpuMemory,
            Storage::Host(_) => CqPlace::PinnedHost,
        }
    }

    /// Returns the number of entries.
    pub fn entries(&self) -> u32 {
        self.handle().size().entries()
    }

    /// Returns the mapped queue, which the CPU can take back.
    ///
    /// # Errors
    /// [`HandOverError::InGpuMemory`], with this queue.
    pub fn into_mapped(self) -> Result<Mapped<GpuCompletionQueue>, Refused<Self>> {
        match self.inner {
            Storage::Host(queue) => Ok(queue),
            inner => Err(Refused { value: Self { inner }, error: HandOverError::InGpuMemory }),
        }
    }
}

impl CompletionTarget for PlacedCompletionQueue {}
impl HasCq for PlacedCompletionQueue {
    fn shared(&self) -> &Arc<CqShared> {
        match &self.inner {
            Storage::Gpu { queue, .. } => queue.shared(),
            Storage::Host(queue) => queue.shared(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_has_room_for_a_power_of_two_of_entries() {
        assert_eq!(ring_bytes(0), 32);
        assert_eq!(ring_bytes(100), 128 * 32);
        assert_eq!(ring_bytes(u32::MAX), (1 << 32) * 32);
    }
}
