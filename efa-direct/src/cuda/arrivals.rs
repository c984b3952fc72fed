//! Whether a kernel that has seen a completion sees what the NIC wrote before it.
//!
//! A NIC writes a message's bytes first and its completion afterwards, and the PCI bus keeps that order as far as the
//! two go the same way. Bytes for a GPU and a completion for the host do not; and what has come to a GPU a kernel that
//! runs there may still see late. Whether it may, the GPU tells:
//! [`Gpu::rdma_writes_ordering`](super::Gpu::rdma_writes_ordering). A kernel that is *launched* after the CPU has seen
//! the completion sees the bytes on every GPU, and so does a copy ([`GpuMemory::read`](super::GpuMemory::read)): CUDA
//! orders its own work behind what has arrived ("GPUDirect RDMA", "Synchronization and Memory Ordering").
//!
//! So on a GPU without that order either its kernels poll for completions, or NICs write into its memory: whatever
//! comes second is refused ([`GpuError::Unordered`]). What goes is to have the CPU poll,
//! [flush](super::Gpu::flush_rdma_writes), and only then tell the kernel; a program that does that says so
//! ([`Gpu::assume_rdma_writes_flushed`]). Software devices write through CUDA, and are ordered everywhere.

use super::error::GpuError;
use super::ordering::RdmaWritesOrdering;
use crate::provider::Provider;
use parking_lot::Mutex;
use std::sync::Arc;

/// Which of the two there are on a GPU that do not go together without order.
pub(super) struct Arrivals {
    gpu: String,
    ordering: RdmaWritesOrdering,
    there: Mutex<There>,
}

#[derive(Default)]
struct There {
    /// Rings and counters that the GPU's kernels poll.
    polled: usize,
    /// Pieces of the GPU's memory that a NIC writes.
    written: usize,
    /// The program sees to the order itself.
    flushed: bool,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Kernels poll for a device's completions.
    Polled,
    /// A device writes into the GPU's memory.
    Written,
}

/// There is one more of its kind, until it is dropped.
pub(super) struct Claim {
    arrivals: Arc<Arrivals>,
    role: Role,
}

impl There {
    fn count(&mut self, role: Role) -> &mut usize {
        match role {
            Role::Polled => &mut self.polled,
            Role::Written => &mut self.written,
        }
    }
}

impl Arrivals {
    pub(super) fn new(gpu: &str, ordering: RdmaWritesOrdering) -> Arc<Self> {
        Arc::new(Self { gpu: gpu.into(), ordering, there: Mutex::default() })
    }

    /// That there is one more of this kind, which `provider`'s device writes.
    ///
    /// # Errors
    /// [`GpuError::Unordered`]: there is one of the other kind, and no order.
    pub(super) fn claim(self: &Arc<Self>, role: Role, provider: &dyn Provider) -> Result<Option<Claim>, GpuError> {
        if provider.orders_gpu_writes() { Ok(None) } else { self.claim_of_nic(role).map(Some) }
    }

    fn claim_of_nic(self: &Arc<Self>, role: Role) -> Result<Claim, GpuError> {
        let mut there = self.there.lock();
        let other = if role == Role::Polled { there.written } else { there.polled };
        if self.ordering < RdmaWritesOrdering::Owner && other != 0 && !there.flushed {
            return Err(GpuError::Unordered { gpu: self.gpu.clone() });
        }
        *there.count(role) += 1;
        Ok(Claim { arrivals: self.clone(), role })
    }
}

impl Arrivals {
    /// From here on both kinds may be there: the program flushes what NICs write.
    pub(super) fn assume_flushed(&self) {
        self.there.lock().flushed = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        *self.arrivals.there.lock().count(self.role) -= 1;
    }
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claim({:?})", self.role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_without_order_polls_completions_or_is_written_by_nics_but_not_both() {
        let arrivals = Arrivals::new("an old GPU", RdmaWritesOrdering::None);
        for (first, second) in [(Role::Polled, Role::Written), (Role::Written, Role::Polled)] {
            let one = [first, first].map(|role| arrivals.claim_of_nic(role).unwrap());
            let error = arrivals.claim_of_nic(second).unwrap_err();
            assert_eq!(error, GpuError::Unordered { gpu: "an old GPU".into() });
            let [one, another] = one;
            drop(one);
            assert!(arrivals.claim_of_nic(second).is_err(), "one is left");
            drop(another);
            arrivals.claim_of_nic(second).unwrap();
        }
        let there = arrivals.there.lock();
        assert_eq!((there.polled, there.written), (0, 0));
    }

    #[test]
    fn a_gpu_with_order_or_a_program_that_flushes_may_have_both() {
        for (ordering, flushes) in [
            (RdmaWritesOrdering::Owner, false),
            (RdmaWritesOrdering::AllDevices, false),
            (RdmaWritesOrdering::None, true),
        ] {
            let arrivals = Arrivals::new("a GPU", ordering);
            arrivals.there.lock().flushed = flushes;
            let _both = [Role::Polled, Role::Written, Role::Polled].map(|role| arrivals.claim_of_nic(role).unwrap());
        }
    }
}
