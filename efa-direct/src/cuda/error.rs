//! What can go wrong with a GPU, with the numbers and what to do about it.

use super::ordering::RdmaWritesOrdering;
use efa_gpu_device::TimeoutReport;
use std::time::Duration;

/// What a call into CUDA's driver answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {name} ({text}){}", hint(name))]
pub struct CudaError {
    /// The function.
    pub call: &'static str,
    /// Its answer (`CUresult`).
    pub code: u32,
    /// The answer's name, as `CUDA_ERROR_OUT_OF_MEMORY`.
    pub name: String,
    /// CUDA's words for it.
    pub text: String,
}

/// Why something with a GPU did not go.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// There is no CUDA.
    #[error(
        "CUDA's driver library, libcuda.so.1, cannot be loaded: install NVIDIA's driver; a container must be started with the GPU in it \
         (docker run --gpus all)"
    )]
    NoCuda,
    /// A driver that is older than what is asked of it.
    #[error("NVIDIA's driver is for CUDA {}.{}, {}.{} is needed: install a newer driver", found.0, found.1, needed.0, needed.1)]
    DriverTooOld {
        /// The CUDA release that the driver is of.
        found: (u32, u32),
        /// The release that is needed.
        needed: (u32, u32),
    },
    /// A GPU that is not there.
    #[error("there is no GPU {ordinal}: CUDA sees {count}, numbered from 0 (CUDA_VISIBLE_DEVICES hides GPUs)")]
    NoGpu {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// Two GPUs that do not reach each other's memory.
    #[error(
        "GPU {from} does not reach the memory of GPU {to}: it takes NVLink or a common PCIe root, and an IOMMU that lets it (nvidia-smi topo -p2p r)"
    )]
    NoPeer {
        /// Whose kernels would.
        from: usize,
        /// Whose memory.
        to: usize,
    },
    /// A call into CUDA failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// Device memory, or a register of a device, that CUDA does not take.
    #[error(
        "{len} bytes of device memory at {addr:#x} cannot be mapped into the GPU: registering device memory with CUDA needs root, or the \
         driver's peer mapping setting (NVreg_RegistryDwords=\"PeerMappingOverride=1;\" for the nvidia module); {source}"
    )]
    IoMemory {
        /// Its address in this process.
        addr: u64,
        /// Bytes, in whole pages.
        len: u64,
        /// CUDA's answer.
        source: CudaError,
    },
    /// Pages that the GPU sees at addresses without order.
    #[error(
        "{len} bytes at {addr:#x} were registered with CUDA in pieces, which the GPU does not see one behind the other: map the larger of \
         the queues that share these pages first"
    )]
    Scattered {
        /// Address in this process.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// A GPU whose memory cannot be exported.
    #[error(
        "{gpu} exports no DMA-BUF of its memory: that takes a data centre or workstation GPU, NVIDIA's open kernel modules, and Linux 5.12 or newer"
    )]
    NoDmabuf {
        /// The GPU's name.
        gpu: String,
    },
    /// Kernels would see completions of a NIC before the bytes that they stand for.
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
    /// A GPU that cannot be made to show what a NIC wrote into its memory.
    #[error(
        "{gpu} cannot flush what a NIC wrote into its memory (it orders: {ordering:?}): a kernel launched after the \
         CPU has seen the completion sees it all the same"
    )]
    NoFlush {
        /// The GPU's name.
        gpu: String,
        /// What it orders by itself.
        ordering: RdmaWritesOrdering,
    },
    /// A GPU that no version of the kernels is for.
    #[error(
        "the GPU is of architecture sm_{gpu}, the kernels were compiled for {}: compile them for sm_{gpu} or older",
        list("sm_", have)
    )]
    NoArchitecture {
        /// The GPU's compute capability, times ten.
        gpu: u32,
        /// Those of the kernels.
        have: Vec<u32>,
    },
    /// PTX that the driver does not compile.
    #[error("the driver does not compile the kernels for sm_{arch}: {source}\n{log}")]
    Compile {
        /// The architecture of the PTX.
        arch: u32,
        /// What the compiler said.
        log: String,
        /// CUDA's answer.
        source: CudaError,
    },
    /// A kernel that a module has not.
    #[error("the module has no kernel {name:?}: {source}")]
    NoKernel {
        /// Its name.
        name: String,
        /// CUDA's answer.
        source: CudaError,
    },
    /// Arguments that are not the kernel's.
    #[error("kernel {kernel} takes arguments of {} bytes, given are {}", list("", takes), list("", given))]
    Arguments {
        /// The kernel.
        kernel: String,
        /// Bytes of each argument that it takes.
        takes: Vec<usize>,
        /// Bytes of each argument given.
        given: Vec<usize>,
    },
    /// A stream of another GPU.
    #[error("kernel {kernel} is loaded on another GPU than the stream is of")]
    ForeignStream {
        /// The kernel.
        kernel: String,
    },
    /// A kernel that could not be started.
    #[error("kernel {kernel} was not launched: {source}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// CUDA's answer.
        source: CudaError,
    },
    /// A kernel that did something forbidden, or one before it. The process has lost the GPU.
    #[error(
        "kernel {kernel}, or one before it, failed: {source}; every call into CUDA fails from here on: end the process \
         (compute-sanitizer finds the place)"
    )]
    KernelFailed {
        /// The kernel.
        kernel: String,
        /// CUDA's answer.
        source: CudaError,
    },
    /// A kernel that has ended, and left word of what it waited for in vain.
    #[error("kernel {kernel} waited {} s in vain for {waited}", timeout.as_secs_f64())]
    KernelTimedOut {
        /// The kernel.
        kernel: String,
        /// How long it was to wait.
        timeout: Duration,
        /// What for.
        waited: TimeoutReport,
    },
    /// A kernel that runs on although it should have given up.
    #[error(
        "kernel {kernel} runs on after {:.1} s, although its watchdog was set to {} s: it waits without looking at the watchdog, or for a place on the \
         GPU, or the GPU hangs. What it can reach must stay where it is; end the process, and if the GPU is still busy then (nvidia-smi), \
         reset it (nvidia-smi --gpu-reset)",
        after.as_secs_f64(), timeout.as_secs_f64()
    )]
    KernelHangs {
        /// The kernel.
        kernel: String,
        /// How long ago it was launched.
        after: Duration,
        /// The watchdog's time.
        timeout: Duration,
    },
}

fn list<T: std::fmt::Display>(prefix: &str, items: &[T]) -> String {
    if items.is_empty() {
        return "nothing".into();
    }
    items.iter().map(|item| format!("{prefix}{item}")).collect::<Vec<_>>().join(", ")
}

/// The usual cause of an answer, to be appended.
fn hint(name: &str) -> &'static str {
    match name {
        "CUDA_ERROR_OUT_OF_MEMORY" => {
            ": the GPU's memory is full (nvidia-smi), or locked memory is limited (ulimit -l)"
        }
        "CUDA_ERROR_NO_DEVICE" => {
            ": no GPU is visible; a container must be given it, and CUDA_VISIBLE_DEVICES hides GPUs"
        }
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" => {
            ": libcuda and the nvidia module are of different releases; reload the module"
        }
        "CUDA_ERROR_SYSTEM_NOT_READY" => ": the fabric manager (nvidia-fabricmanager) must run first",
        "CUDA_ERROR_STUB_LIBRARY" => ": the toolkit's stub was loaded; take its folder out of LD_LIBRARY_PATH",
        "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED" => ": somebody else in this process has registered these pages",
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
        assert_eq!(error.to_string(), "kernel post takes arguments of 64, 8 bytes, given are nothing");
    }

    #[test]
    fn an_answer_of_cuda_carries_its_usual_cause() {
        let error = cuda("cuMemAlloc", 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory");
        assert!(error.to_string().contains("nvidia-smi"), "{error}");
    }
}
