//! The orders in which kernels see what NICs write into a GPU's memory.

/// The kernels that see what a NIC writes into a GPU's memory in the order in which it was written
/// (`CUGPUDirectRDMAWritesOrdering` of CUDA's driver). Each value includes the one before.
///
/// If NICs reach a GPU's memory in several ways ([`GpuInfo::coherent`](super::GpuInfo::coherent)), each way has an
/// order of its own. This module exports memory for one of them, the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RdmaWritesOrdering {
    /// No kernel, until the CPU has [flushed](super::Gpu::flush_rdma_writes) or launched another kernel. Also the value
    /// for a driver that reports nothing.
    None,
    /// Kernels of the GPU that has the memory.
    Owner,
    /// Kernels of every GPU.
    AllDevices,
}

impl RdmaWritesOrdering {
    /// Converts CUDA's answer. A future value between two known ones counts as the smaller one.
    pub(super) fn of(attribute: i32) -> Self {
        match attribute {
            200.. => Self::AllDevices,
            100.. => Self::Owner,
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::driver::sys::CUGPUDirectRDMAWritesOrdering as Cuda;

    #[test]
    fn what_cuda_says_of_its_order_is_one_of_three() {
        let of = |attribute| RdmaWritesOrdering::of(attribute);
        assert_eq!([-1, 0, 1].map(of), [RdmaWritesOrdering::None; 3]);
        assert_eq!([100, 150].map(of), [RdmaWritesOrdering::Owner; 2]);
        assert_eq!([200, 300].map(of), [RdmaWritesOrdering::AllDevices; 2]);
        assert_eq!(of(Cuda::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_NONE as i32), RdmaWritesOrdering::None);
        assert_eq!(of(Cuda::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER as i32), RdmaWritesOrdering::Owner);
        assert_eq!(of(Cuda::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_ALL_DEVICES as i32), RdmaWritesOrdering::AllDevices);
    }
}
