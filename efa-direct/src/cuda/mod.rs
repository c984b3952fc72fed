//! GPUs: queues, memory and kernels on them.
//!
//! A queue that was handed to a GPU (`into_gpu()`) is [mapped](Gpu::map) into it, so that kernels access its ring.
//! Memory on the GPU is [allocated](Gpu::allocate) and registered with a NIC. Kernels are [loaded](Gpu::load),
//! [launched](Kernel::launch) and watched.
//!
//! ```no_run
//! use efa_direct::cuda::{Gpu, Shape};
//! use efa_direct::{Access, CqConfig, Device, QpConfig};
//! use std::time::Duration;
//!
//! # const PTX: &[(u32, &str)] = &[];
//! let (gpu, device) = (Gpu::open(0)?, Device::open("soft0")?);
//! let pd = device.alloc_pd()?;
//! let cq = gpu.map(device.create_cq(CqConfig::new(256))?.into_gpu()?)?;
//! let qp = pd.create_qp(&cq, &cq, QpConfig::new(256, 16))?.activate(0x1234)?;
//! let send = gpu.map(qp.send.into_gpu())?;
//!
//! let (kernel, stream) = (gpu.load(PTX)?.kernel("post")?, gpu.stream()?);
//! let watchdog = gpu.watchdog(Duration::from_secs(2))?;
//! // SAFETY: the kernel takes these three handles, and all that they refer to lives until it has ended.
//! let args = (send.handle(), cq.handle(), watchdog.handle());
//! let running = unsafe { kernel.launch(&stream, Shape::new(1, 32), args) }?;
//! let outcome = running.wait_watched(&watchdog);
//! if !running.is_done() {
//!     // It hangs, and may still access what it was given: none of that may go away.
//!     eprintln!("{outcome:?}");
//!     std::process::exit(1);
//! }
//! outcome?;
//! # Ok::<(), efa_direct::Error>(())
//! ```
//!
//! CUDA's driver is loaded when the first GPU is opened. A program with this module builds and starts without CUDA.
//!
//! | noun | type |
//! | --- | --- |
//! | GPU | [`Gpu`], [`GpuInfo`] |
//! | queue on a GPU | [`Mapped`], [`PlacedCompletionQueue`], [`PlacedCompletionCounter`] |
//! | memory | [`GpuMemory`], [`GpuRegion`], [`PinnedMemory`], [`PinnedWords`], [`RdmaWritesOrdering`] |
//! | kernel | [`Module`], [`Kernel`], [`Shape`], [`Stream`], [`Running`], [`Watchdog`] |
//! | what goes wrong | [`GpuError`], [`CudaError`] |
//!
//! CUDA may wait for running kernels when memory is allocated, freed, mapped or unmapped, when kernels are loaded, and
//! in functions of other libraries. Do none of that while a kernel runs that waits for the program. Copies to and from
//! [`GpuMemory`], launches and waiting are safe to use.
//!
//! A kernel that sees a completion also sees the bytes that it stands for, in memory of its own GPU, if the GPU
//! [orders](Gpu::rdma_writes_ordering) what NICs write. A GPU that does not has either rings and counters of a NIC that
//! its kernels poll, or memory that a NIC writes. The second of the two is refused with [`GpuError::Unordered`], which
//! says what to do. Nobody checks this for bytes in another GPU's memory: see [`Gpu::rdma_writes_ordering`].
//!
//! Nobody can check what a kernel does, so launching one is `unsafe`. Its documentation lists what the caller promises.
//! Everything else is safe.

mod context;
mod copier;
mod counter;
mod cq;
mod driver;
mod error;
mod gpu;
mod info;
mod launch;
mod mapped;
mod memory;
mod module;
mod order_check;
mod ordering;
mod pages;
mod pinned;
mod region;
mod stream;
mod watchdog;

pub use counter::PlacedCompletionCounter;
pub use cq::{CqPlace, PlacedCompletionQueue};
pub use error::{CudaError, GpuError};
pub use gpu::Gpu;
pub use info::GpuInfo;
pub use launch::{KernelArgs, Running, Shape};
pub use mapped::{Mappable, Mapped};
pub use memory::GpuMemory;
pub use module::{Kernel, Module};
pub use ordering::RdmaWritesOrdering;
pub use pinned::{PinnedMemory, PinnedWords};
pub use region::GpuRegion;
pub use stream::Stream;
pub use watchdog::Watchdog;
