//! The check that a kernel which sees a completion also sees the bytes that the NIC wrote before it.
//!
//! A NIC writes a message's bytes first and its completion afterwards, and the PCI bus keeps that order if both take
//! the same way. Bytes for a GPU and a completion for the host do not. And a running kernel may see late what has
//! arrived at its GPU. The GPU reports whether it may: [`Gpu::rdma_writes_ordering`](super::Gpu::rdma_writes_ordering).
//! A kernel that is *launched* after the CPU has seen the completion sees the bytes on every GPU, and so does a copy
//! ([`GpuMemory::read`](super::GpuMemory::read)): CUDA orders its own work behind what has arrived ("GPUDirect RDMA",
//! "Synchronization and Memory Ordering").
//!
//! So on a GPU without that order either its kernels poll for completions, or NICs write into its memory: the second of
//! the two is refused ([`GpuError::Unordered`]). A program can let the CPU poll,
//! [flush](super::Gpu::flush_rdma_writes), and only then signal the kernel. A program that does so declares it
//! ([`Gpu::assume_rdma_writes_flushed`](super::Gpu::assume_rdma_writes_flushed)). Software devices write through CUDA,
//! and are ordered on every GPU.

use super::error::GpuError;
use super::ordering::RdmaWritesOrdering;
use crate::provider::Provider;
use parking_lot::Mutex;
use std::sync::Arc;

/// The uses of a GPU that exclude each other unless the GPU orders what NICs write.
pub(super) struct OrderCheck {
    gpu: String,
    ordering: RdmaWritesOrdering,
    uses: Mutex<Uses>,
}

/// The uses that there are.
#[derive(Default)]
struct Uses {
    /// Number of rings and counters that the GPU's kernels poll.
    polled: usize,
    /// Number of pieces of the GPU's memory that a NIC writes.
    written: usize,
    /// `true` if the program flushes what NICs write.
    flushed: bool,
}

/// A kind of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Kernels poll for a device's completions.
    KernelsPoll,
    /// A device writes into the GPU's memory.
    NicsWrite,
}

/// A use of a GPU, until this is dropped.
#[must_use = "the use ends when this is dropped"]
pub(super) struct ActiveUse {
    check: Arc<OrderCheck>,
    kind: Use,
}

impl Uses {
    fn count(&mut self, kind: Use) -> &mut usize {
        match kind {
            Use::KernelsPoll => &mut self.polled,
            Use::NicsWrite => &mut self.written,
        }
    }
}

impl OrderCheck {
    pub(super) fn new(gpu: &str, ordering: RdmaWritesOrdering) -> Arc<Self> {
        Arc::new(Self { gpu: gpu.into(), ordering, uses: Mutex::default() })
    }

    /// Begins a use, of memory that `provider`'s device writes. Returns `None` if that device orders its writes itself.
    ///
    /// # Errors
    /// [`GpuError::Unordered`] if the GPU has uses of the other kind, and does not order what NICs write.
    pub(super) fn begin(self: &Arc<Self>, kind: Use, provider: &dyn Provider) -> Result<Option<ActiveUse>, GpuError> {
        if provider.orders_gpu_writes() { Ok(None) } else { self.begin_of_nic(kind).map(Some) }
    }

    fn begin_of_nic(self: &Arc<Self>, kind: Use) -> Result<ActiveUse, GpuError> {
        let mut uses = self.uses.lock();
        let other = if kind == Use::KernelsPoll { uses.written } else { uses.polled };
        if self.ordering < RdmaWritesOrdering::Owner && other != 0 && !uses.flushed {
            return Err(GpuError::Unordered { gpu: self.gpu.clone() });
        }
        *uses.count(kind) += 1;
        Ok(ActiveUse { check: self.clone(), kind })
    }
}

impl OrderCheck {
    /// Allows both kinds of use: the program flushes what NICs write.
    pub(super) fn assume_flushed(&self) {
        self.uses.lock().flushed = true;
    }
}

impl Drop for ActiveUse {
    fn drop(&mut self) {
        *self.check.uses.lock().count(self.kind) -= 1;
    }
}

impl std::fmt::Debug for ActiveUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ActiveUse({:?})", self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_without_order_polls_completions_or_is_written_by_nics_but_not_both() {
        let check = OrderCheck::new("an old GPU", RdmaWritesOrdering::None);
        for (first, second) in [(Use::KernelsPoll, Use::NicsWrite), (Use::NicsWrite, Use::KernelsPoll)] {
            let one = [first, first].map(|kind| check.begin_of_nic(kind).unwrap());
            let error = check.begin_of_nic(second).unwrap_err();
            assert_eq!(error, GpuError::Unordered { gpu: "an old GPU".into() });
            let [one, another] = one;
            drop(one);
            assert!(check.begin_of_nic(second).is_err(), "one is left");
            drop(another);
            drop(check.begin_of_nic(second).unwrap());
        }
        let uses = check.uses.lock();
        assert_eq!((uses.polled, uses.written), (0, 0));
    }

    #[test]
    fn a_gpu_with_order_or_a_program_that_flushes_may_have_both() {
        for (ordering, flushes) in [
            (RdmaWritesOrdering::Owner, false),
            (RdmaWritesOrdering::AllDevices, false),
            (RdmaWritesOrdering::None, true),
        ] {
            let check = OrderCheck::new("a GPU", ordering);
            check.uses.lock().flushed = flushes;
            let _both =
                [Use::KernelsPoll, Use::NicsWrite, Use::KernelsPoll].map(|kind| check.begin_of_nic(kind).unwrap());
        }
    }
}
