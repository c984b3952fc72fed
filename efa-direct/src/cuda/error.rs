//! Errors of calls concerning a GPU.

use super::ordering::RdmaWritesOrdering;
use efa_gpu_device::TimeoutReport;
use std::time::Duration;

/// The answer of a failed call into CUDA's driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {name} ({text}){}", hint(name))]
pub struct CudaError {
    /// The function that was called.
    pub call: &'static str,
    /// The answer (`CUresult`).
    pub code: u32,
    /// The answer's name, such as `CUDA_ERROR_OUT_OF_MEMORY`.
    pub name: String,
    /// CUDA's description of the answer.
    pub text: String,
}

/// An error of a call concerning a GPU.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// CUDA's driver is not installed.
    #[error(
        "CUDA's driver library, libcuda.so.1, cannot be loaded: install NVIDIA's driver; a container must be started with the GPU in it \
         (docker run --gpus all)"
    )]
    NoCuda,
    /// The driver is too old.
    #[error(
        "NVIDIA's driver is for CUDA {}.{}, {}.{} is needed: install a newer driver",
        found.0, found.1, needed.0, needed.1
    )]
    DriverTooOld {
        /// The CUDA release of the driver.
        found: (u32, u32),
        /// The release that is needed.
        needed: (u32, u32),
    },
    /// The GPU does not exist.
    #[error("there is no GPU {ordinal}: CUDA sees {count}, numbered from 0 (CUDA_VISIBLE_DEVICES hides GPUs)")]
    NoGpu {
        /// The number asked for.
        ordinal: usize,
        /// The number of GPUs.
        count: usize,
    },
    /// Two GPUs cannot access each other's memory.
    #[error(
        "GPU {from} cannot access the memory of GPU {to}: this takes NVLink or a common PCIe root, and an IOMMU that allows it (nvidia-smi topo -p2p r)"
    )]
    NoPeer {
        /// The GPU whose kernels would access the memory.
        from: usize,
        /// The GPU that has the memory.
        to: usize,
    },
    /// A call into CUDA failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// CUDA does not map device memory, or a device's register.
    #[error(
        "{len} bytes of device memory at {addr:#x} cannot be mapped into the GPU: registering device memory with CUDA needs root, or the \
         driver's peer mapping setting (NVreg_RegistryDwords=\"PeerMappingOverride=1;\" for the nvidia module); {source}"
    )]
    IoMemory {
        /// The address in this process.
        addr: u64,
        /// Length in bytes, in whole pages.
        len: u64,
        /// CUDA's answer.
        source: CudaError,
    },
    /// The GPU sees neighbouring pages at addresses that are not neighbours.
    #[error(
        "{len} bytes at {addr:#x} were registered with CUDA in pieces, which the GPU sees at addresses that do not join: map the larger of \
         the queues that share these pages first"
    )]
    Scattered {
        /// The address in this process.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The GPU's memory cannot be exported.
    #[error(
        "{gpu} cannot export its memory as a DMA-BUF: this takes a data centre or workstation GPU, NVIDIA's open kernel modules, and Linux 5.12 or newer"
    )]
    NoDmabuf {
        /// The GPU's name.
        gpu: String,
    },
    /// Kernels might see completions of a NIC before the bytes that they stand for.
    #[error(
        "{gpu} does not order what a NIC writes into its memory: a kernel that sees a completion may not see the \
         bytes, so it has either rings and counters of NICs that its kernels poll, or memory that NICs write. Have the \
         CPU poll for what arrives and call `Gpu::flush_rdma_writes` before it tells a kernel, and say so with \
         `Gpu::assume_rdma_writes_flushed`; or have it arrive in host memory"
    )]
    Unordered {
        /// The GPU's name.
        gpu: String,
    },
    /// The GPU has no operation that makes running kernels see what a NIC wrote into its memory.
    #[error(
        "{gpu} cannot flush what a NIC wrote into its memory (its order: {ordering:?}): a kernel launched after the \
         CPU has seen the completion sees it all the same"
    )]
    NoFlush {
        /// The GPU's name.
        gpu: String,
        /// The order that it keeps by itself.
        ordering: RdmaWritesOrdering,
    },
    /// No version of the kernels runs on the GPU.
    #[error(
        "the GPU is of architecture sm_{gpu}, the kernels were compiled for {}: compile them for sm_{gpu} or older",
        list("sm_", have)
    )]
    NoArchitecture {
        /// The GPU's compute capability, times 10.
        gpu: u32,
        /// The architectures that the kernels were compiled for.
        have: Vec<u32>,
    },
    /// The driver does not compile the PTX.
    #[error("the driver does not compile the kernels for sm_{arch}: {source}\n{log}")]
    Compile {
        /// The architecture of the PTX.
        arch: u32,
        /// The compiler's messages.
        log: String,
        /// CUDA's answer.
        source: CudaError,
    },
    /// The module has no kernel with this name.
    #[error("the module has no kernel {name:?}: {source}")]
    NoKernel {
        /// The name asked for.
        name: String,
        /// CUDA's answer.
        source: CudaError,
    },
    /// The arguments do not fit the kernel.
    #[error(
        "kernel {kernel} takes arguments of these sizes in bytes: {}; given were: {}",
        list("", takes),
        list("", given)
    )]
    Arguments {
        /// The kernel's name.
        kernel: String,
        /// Bytes of each argument that it takes.
        takes: Vec<usize>,
        /// Bytes of each argument given.
        given: Vec<usize>,
    },
    /// The stream belongs to another GPU than the kernel.
    #[error("kernel {kernel} is loaded on another GPU than the stream's: launch it on a stream of its own GPU")]
    ForeignStream {
        /// The kernel's name.
        kernel: String,
    },
    /// The kernel was not started.
    #[error("kernel {kernel} was not launched: {source}")]
    Launch {
        /// The kernel's name.
        kernel: String,
        /// CUDA's answer.
        source: CudaError,
    },
    /// The kernel, or one before it, did something forbidden. The process has lost the GPU.
    #[error(
        "kernel {kernel}, or one before it, failed: {source}; every call into CUDA fails from here on: end the process \
         (compute-sanitizer finds the place)"
    )]
    KernelFailed {
        /// The kernel's name.
        kernel: String,
        /// CUDA's answer.
        source: CudaError,
    },
    /// The kernel has ended, and reported what it waited for too long.
    #[error("kernel {kernel} waited {} s in vain for {waited}", timeout.as_secs_f64())]
    KernelTimedOut {
        /// The kernel's name.
        kernel: String,
        /// The longest time that it was to wait.
        timeout: Duration,
        /// What it waited for.
        waited: TimeoutReport,
    },
    /// The kernel still runs, although it should have given up.
    #[error(
        "kernel {kernel} still runs after {:.1} s, although its watchdog was set to {} s: it waits without checking the watchdog, or for a \
         place on the GPU, or the GPU hangs. Keep everything that it can access, and end the process. If the GPU is still busy then \
         (nvidia-smi), reset it (nvidia-smi --gpu-reset)",
        after.as_secs_f64(), timeout.as_secs_f64()
    )]
    KernelHangs {
        /// The kernel's name.
        kernel: String,
        /// The time since it was launched.
        after: Duration,
        /// The watchdog's time.
        timeout: Duration,
    },
}

/// Lists items for a message.
fn list<T: std::fmt::Display>(prefix: &str, items: &[T]) -> String {
    if items.is_empty() {
        return "none".into();
    }
    items.iter().map(|item| format!("{prefix}{item}")).collect::<Vec<_>>().join(", ")
}

/// Returns the usual cause of an answer, to append to it.
fn hint(name: &str) -> &'static str {
    match name {
        "CUDA_ERROR_OUT_OF_MEMORY" => {
            ": the GPU's memory is full (nvidia-smi), or locked memory is limited (ulimit -l)"
        }
        "CUDA_ERROR_NO_DEVICE" => {
            ": no GPU is visible; pass it into the container, and check CUDA_VISIBLE_DEVICES, which hides GPUs"
        }
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" => {
            ": libcuda and the nvidia module are of different releases; reload the module"
        }
        "CUDA_ERROR_SYSTEM_NOT_READY" => ": the fabric manager (nvidia-fabricmanager) must run first",
        "CUDA_ERROR_STUB_LIBRARY" => {
            ": the stub of the CUDA toolkit was loaded; remove its folder from LD_LIBRARY_PATH"
        }
        "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED" => ": other code in this process has registered these pages",
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" => ": the driver is older than the PTX; compile it for an older release",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuda(call: &'static str, code: u32, name: &str, text: &str) -> CudaError {
        CudaError { call, code, name: name.into(), text: text.into() }
    }

    #[test]
    fn refused_device_memory_says_what_to_set_and_what_cuda_answered() {
        let source = cuda("cuMemHostRegister", 800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted");
        let error = GpuError::IoMemory { addr: 0x7f00_0000_1000, len: 4096, source };
        assert_eq!(
            error.to_string(),
            "4096 bytes of device memory at 0x7f0000001000 cannot be mapped into the GPU: registering device memory with CUDA needs \
             root, or the driver's peer mapping setting (NVreg_RegistryDwords=\"PeerMappingOverride=1;\" for the nvidia module); \
             cuMemHostRegister: CUDA_ERROR_NOT_PERMITTED (operation not permitted)"
        );
    }

    #[test]
    fn a_kernel_that_timed_out_is_told_with_what_it_waited_for() {
        let waited = TimeoutReport { what: TimeoutReport::COMPLETION, number: 0, seen: 16, wanted: 17 };
        let error = GpuError::KernelTimedOut { kernel: "post".into(), timeout: Duration::from_secs(2), waited };
        assert_eq!(
            error.to_string(),
            "kernel post waited 2 s in vain for completion 17 of a completion queue, of which 16 have come"
        );
    }

    #[test]
    fn wrong_arguments_are_told_with_both_lists() {
        let error = GpuError::Arguments { kernel: "post".into(), takes: vec![64, 8], given: vec![] };
        assert_eq!(error.to_string(), "kernel post takes arguments of these sizes in bytes: 64, 8; given were: none");
    }

    #[test]
    fn an_answer_of_cuda_carries_its_usual_cause() {
        let error = cuda("cuMemAlloc", 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory");
        assert!(error.to_string().contains("nvidia-smi"), "{error}");
    }
}
