//! The GPU, its kernels, and memory for them.

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, result, sys,
};
use cudarc::nvrtc::Ptx;
use efa_io::{CompletionRingHandle, SendRingHandle};
use std::error::Error;
use std::sync::Arc;

/// The kernels that the benchmark launches or whose registers it reports.
const KERNELS: &[&str] = &[
    "post_one",
    "post_thread",
    "post_warp",
    "post_warps",
    "post_shared",
    "poll_thread",
    "poll_warp",
    "poll_warp_many",
    "post_and_wait",
    "proxy_and_wait",
    "compute",
    "dormant",
];

/// The place of memory: host memory, which kernels access at the same address, or the GPU's memory.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Place {
    Host,
    Gpu,
}

impl Place {
    pub(crate) fn name(self) -> &'static str {
        if self == Self::Host { "host memory" } else { "GPU memory" }
    }

    /// Allocates zeroed memory that is never freed.
    pub(crate) fn allocate(self, bytes: usize) -> Result<u64, Box<dyn Error>> {
        // SAFETY: the memory was just allocated with this size, and nothing else uses it yet.
        unsafe {
            match self {
                // Flags: portable (1) and mapped (2).
                Self::Host => {
                    let memory = result::malloc_host(bytes, 3)?;
                    std::ptr::write_bytes(memory.cast::<u8>(), 0, bytes);
                    Ok(memory as u64)
                }
                Self::Gpu => {
                    let memory = result::malloc_sync(bytes)?;
                    result::memset_d8_sync(memory, 0, bytes)?;
                    Ok(memory)
                }
            }
        }
    }

    pub(crate) fn write<T: bytemuck::Pod>(self, to: u64, values: &[T]) -> Result<(), Box<dyn Error>> {
        // SAFETY: the callers pass an address in memory of `allocate` with room for the values, and no kernel runs.
        unsafe {
            match self {
                Self::Host => std::ptr::copy_nonoverlapping(values.as_ptr(), to as *mut T, values.len()),
                Self::Gpu => result::memcpy_htod_sync(to, values)?,
            }
        }
        Ok(())
    }

    pub(crate) fn read<T: bytemuck::Pod>(self, from: u64, len: usize) -> Result<Vec<T>, Box<dyn Error>> {
        let mut values = vec![T::zeroed(); len];
        // SAFETY: the callers pass an address in memory of `allocate` with this many values, and no kernel runs.
        unsafe {
            match self {
                Self::Host => std::ptr::copy_nonoverlapping(from as *const T, values.as_mut_ptr(), len),
                Self::Gpu => result::memcpy_dtoh_sync(&mut values, from)?,
            }
        }
        Ok(values)
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Arg {
    Address(u64),
    Number(u32),
    Send(Plain<SendRingHandle>),
    Completions(Plain<CompletionRingHandle>),
}

/// Plain data that kernels take by value. It is in constant memory then, and needs no registers.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Plain<T>(pub(crate) T);

// SAFETY: plain data (`Pod`, `#[repr(transparent)]`) has the same layout on the GPU as here.
unsafe impl<T: bytemuck::Pod> DeviceRepr for Plain<T> {}

/// The registers and the bytes of local memory that a kernel needs for each thread.
pub(crate) struct Usage {
    pub(crate) name: &'static str,
    pub(crate) registers: i32,
    pub(crate) local: i32,
}

pub(crate) struct Gpu {
    pub(crate) name: String,
    pub(crate) driver: String,
    stream: Arc<CudaStream>,
    ours: Arc<CudaModule>,
    /// The vendor's library, if it was given.
    vendor: Option<Arc<CudaModule>>,
}

impl Gpu {
    pub(crate) fn new(kernels: &str, vendor: Option<&str>) -> Result<Self, Box<dyn Error>> {
        let context = CudaContext::new(0)?;
        let load = |path: &str| -> Result<_, Box<dyn Error>> {
            Ok(context.load_module(Ptx::from_src(std::fs::read_to_string(path)?))?)
        };
        let driver = std::fs::read_to_string("/sys/module/nvidia/version").unwrap_or_else(|_| "unknown".into());
        Ok(Self {
            name: context.name()?,
            driver: driver.trim().into(),
            stream: context.new_stream()?,
            ours: load(kernels)?,
            vendor: vendor.map(load).transpose()?,
        })
    }

    pub(crate) fn has_vendor(&self) -> bool {
        self.vendor.is_some()
    }

    /// Returns one of our kernels or of the vendor's by its name.
    fn kernel(&self, name: &str) -> Result<CudaFunction, Box<dyn Error>> {
        let module =
            if name.starts_with("dp_") { self.vendor.as_ref().ok_or("no kernels of the vendor")? } else { &self.ours };
        Ok(module.load_function(name)?)
    }

    /// Starts a kernel.
    pub(crate) fn start(&self, name: &str, blocks: u32, threads: u32, args: &[Arg]) -> Result<(), Box<dyn Error>> {
        let kernel = self.kernel(name)?;
        let mut launch = self.stream.launch_builder(&kernel);
        for arg in args {
            match arg {
                Arg::Address(address) => launch.arg(address),
                Arg::Number(number) => launch.arg(number),
                Arg::Send(handle) => launch.arg(handle),
                Arg::Completions(handle) => launch.arg(handle),
            };
        }
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the callers pass the arguments that the kernel takes. All addresses are in memory of `allocate`,
        // which is never freed.
        unsafe { launch.launch(config)? };
        Ok(())
    }

    /// Waits for all kernels.
    pub(crate) fn finish(&self) -> Result<(), Box<dyn Error>> {
        Ok(self.stream.synchronize()?)
    }

    /// Runs a kernel and waits for it.
    pub(crate) fn run(&self, name: &str, blocks: u32, threads: u32, args: &[Arg]) -> Result<(), Box<dyn Error>> {
        self.start(name, blocks, threads, args)?;
        self.finish()
    }

    /// Returns the resources of each kernel, as the driver has compiled it.
    pub(crate) fn usage(&self) -> Result<Vec<Usage>, Box<dyn Error>> {
        use sys::CUfunction_attribute_enum::{CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, CU_FUNC_ATTRIBUTE_NUM_REGS};
        let usage = KERNELS.iter().map(|&name| {
            let kernel = self.kernel(name)?;
            let registers = kernel.get_attribute(CU_FUNC_ATTRIBUTE_NUM_REGS)?;
            Ok(Usage { name, registers, local: kernel.get_attribute(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)? })
        });
        usage.collect()
    }
}
