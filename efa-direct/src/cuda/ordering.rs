//! Whether a kernel that has seen a completion sees what the NIC wrote before it.
//!
//! A NIC writes a message's bytes first and its completion afterwards, and the PCI bus keeps that order as far as the
//! two go the same way. Bytes for a GPU and a completion for the host do not; and what has come to a GPU a kernel that
//! runs there may still see late. Whether it may, the GPU tells: [`Gpu::rdma_writes_ordering`]. A kernel that is
//! *launched* after the CPU has seen the completion sees the bytes on every GPU, and so does a copy
//! ([`GpuMemory::read`](super::GpuMemory::read)): CUDA orders its own work behind what has arrived ("GPUDirect RDMA",
//! "Synchronization and Memory Ordering").
//!
//! So on a GPU without that order either its kernels poll for completions, or NICs write into its memory: whatever
//! comes second is refused ([`GpuError::Unordered`]). What goes is to have the CPU poll,
//! [flush](Gpu::flush_rdma_writes), and only then tell the kernel; a program that does that says so
//! ([`Gpu::assume_rdma_writes_flushed`]). Software devices write through CUDA, and are ordered everywhere.

use super::driver::cuda;
use super::error::GpuError;
use super::gpu::Gpu;
use crate::error::Error;
use crate::provider::Provider;
use cudarc::driver::sys;
use parking_lot::Mutex;
use std::sync::Arc;

/// Which kernels see what a NIC writes into a GPU's memory in the order in which it was written
/// (`CUGPUDirectRDMAWritesOrdering` of CUDA's driver). Each is more than the one before.
///
/// Where NICs reach a GPU's memory in several ways ([`GpuInfo::coherent`](super::GpuInfo::coherent)), each way has an
/// order of its own. This module exports memory for one of them, the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RdmaWritesOrdering {
    /// None, until the CPU has [flushed](Gpu::flush_rdma_writes) or launched another kernel. Also what a driver cannot
    /// tell.
    None,
    /// Those of the GPU whose memory it is.
    Owner,
    /// Those of every GPU.
    AllDevices,
}

impl RdmaWritesOrdering {
    /// What CUDA says. A scope that is yet to be invented between two of these is the smaller one.
    pub(super) fn of(attribute: i32) -> Self {
        match attribute {
            200.. => Self::AllDevices,
            100.. => Self::Owner,
            _ => Self::None,
        }
    }
}

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
        // A software device's bytes are there, by a copy that CUDA has finished, before it writes their completion.
        if provider.soft_port().is_some() { Ok(None) } else { self.claim_of_nic(role).map(Some) }
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

impl Gpu {
    /// Which kernels see what a NIC writes into this GPU's memory in the order in which it was written. A kernel that
    /// polls for completions needs [`Owner`](RdmaWritesOrdering::Owner) for bytes in its own GPU's memory, and
    /// [`AllDevices`](RdmaWritesOrdering::AllDevices), of the other GPU, for bytes in memory that it
    /// [reaches](Self::reach).
    pub fn rdma_writes_ordering(&self) -> RdmaWritesOrdering {
        self.info().rdma_writes_ordering
    }

    /// Waits until kernels that run, on every GPU, see what NICs wrote into this GPU's memory before completions that
    /// the caller has seen. Nothing is to be done, nor is it, where GPUs [see that
    /// anyway](RdmaWritesOrdering::AllDevices).
    ///
    /// # Errors
    /// [`GpuError::NoFlush`] if the GPU cannot, or what CUDA answers.
    pub fn flush_rdma_writes(&self) -> Result<(), Error> {
        let info = self.info();
        if info.rdma_writes_ordering >= RdmaWritesOrdering::AllDevices {
            return Ok(());
        }
        if !info.rdma_flush {
            return Err(GpuError::NoFlush { gpu: info.name.clone(), ordering: info.rdma_writes_ordering }.into());
        }
        let (target, scope) = (
            sys::CUflushGPUDirectRDMAWritesTarget::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX,
            sys::CUflushGPUDirectRDMAWritesScope::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_ALL_DEVICES,
        );
        let _current = self.context.enter()?;
        // SAFETY: takes two numbers, for the context that was just made current.
        Ok(unsafe { cuda!(cuFlushGPUDirectRDMAWrites(target, scope)) }?)
    }

    /// From here on the GPU's kernels may poll for completions while NICs write into its memory, although it
    /// [orders](Self::rdma_writes_ordering) neither: the program sees to it that no kernel reads what a NIC wrote
    /// before the CPU has seen its completion and [flushed](Self::flush_rdma_writes). A program that does not will find
    /// old bytes where new ones should be, now and then.
    pub fn assume_rdma_writes_flushed(&self) {
        self.context.arrivals.there.lock().flushed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cuda_says_of_its_order_is_one_of_three() {
        let of = |attribute| RdmaWritesOrdering::of(attribute);
        assert_eq!([-1, 0, 1].map(of), [RdmaWritesOrdering::None; 3]);
        assert_eq!([100, 150].map(of), [RdmaWritesOrdering::Owner; 2]);
        assert_eq!([200, 300].map(of), [RdmaWritesOrdering::AllDevices; 2]);
        use sys::CUGPUDirectRDMAWritesOrdering as Cuda;
        assert_eq!(of(Cuda::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_NONE as i32), RdmaWritesOrdering::None);
        assert_eq!(of(Cuda::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER as i32), RdmaWritesOrdering::Owner);
        assert_eq!(of(Cuda::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_ALL_DEVICES as i32), RdmaWritesOrdering::AllDevices);
    }

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
