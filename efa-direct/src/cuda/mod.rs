//! GPUs: queues, memory and kernels on them.
//!
//! A queue that was given to a GPU (`into_gpu()`) is [mapped](Gpu::map) into it, so that kernels reach its ring; memory
//! on the GPU is [allocated](Gpu::allocate) and registered with a NIC; kernels are [loaded](Gpu::load),
//! [launched](Kernel::launch) and watched over.
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
//! // SAFETY: the kernel takes these three handles, and all that they stand for lives until it is over.
//! let running = unsafe { kernel.launch(&stream, Shape::new(1, 32), (send.handle(), cq.handle(), watchdog.handle())) }?;
//! let outcome = running.wait_watched(&watchdog);
//! if !running.is_done() {
//!     // It hangs, and may still reach what it was given: nothing of that may go away.
//!     eprintln!("{outcome:?}");
//!     std::process::exit(1);
//! }
//! outcome?;
//! # Ok::<(), efa_direct::Error>(())
//! ```
//!
//! CUDA's driver is loaded when the first GPU is opened: a program with this module builds, and starts, where there is
//! none.
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
//! in functions of other libraries. While a kernel runs that waits for the program, do none of that; copies to and from
//! [`GpuMemory`], launches and waiting are free of it.
//!
//! A kernel that has seen a completion sees the bytes that it stands for, in memory of its GPU too, if the GPU
//! [orders](Gpu::rdma_writes_ordering) what NICs write. Where it does not, a GPU has either rings and counters of a NIC
//! that its kernels poll, or memory that a NIC writes: what comes second is refused with [`GpuError::Unordered`], which
//! says what to do. Bytes in another GPU's memory nobody checks: see there.
//!
//! What a kernel does nobody can check, so launching one is `unsafe`; its documentation says what the caller vouches
//! for. Everything else is safe.

mod arrivals;
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
