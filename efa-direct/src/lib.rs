//! EFA direct verbs in safe Rust.
//!
//! A program writes work requests into the NIC's rings itself, and reads completions from them itself: without a
//! library in between, without a system call, without a copy. This crate owns the rings, and its types and checks
//! refuse what would corrupt them.
//!
//! ```
//! use efa_direct::{Access, CqConfig, Device, QpConfig, RdmaWrite};
//! use std::time::Duration;
//!
//! // Two nodes, with software devices. A real device differs in its name only: `Device::open("rdmap79s0")`.
//! let (a, b) = (Device::open("soft0")?, Device::open("soft1")?);
//! let (pd_a, pd_b) = (a.alloc_pd()?, b.alloc_pd()?);
//! let (cq_a, cq_b) = (a.create_cq(CqConfig::new(512))?, b.create_cq(CqConfig::new(512))?);
//! let qp_a = pd_a.create_qp(&cq_a, &cq_a, QpConfig::new(256, 16))?.activate(0x1234)?;
//! let qp_b = pd_b.create_qp(&cq_b, &cq_b, QpConfig::new(256, 16).unsolicited_write_recv())?.activate(0x5678)?;
//!
//! // What the nodes exchange, over TCP for example: the addresses of queue pair and memory.
//! let target = pd_b.allocate(4096, Access::REMOTE_WRITE)?;
//! let (peer_b, remote) = (pd_a.peer(&qp_b.endpoint)?, target.remote());
//! let _peer_a = pd_b.peer(&qp_a.endpoint)?; // RDMA needs an address handle on both sides
//!
//! // Post. A GPU cannot post to this ring any more: `into_cpu` has consumed it.
//! let source = pd_a.allocate(4096, Access::LOCAL_READ)?;
//! source.write(0, b"hello")?;
//! let mut sq = qp_a.send.into_cpu();
//! sq.post(&peer_b, RdmaWrite::new(source.slice(..)?, remote.slice(..)?).imm(7), 42)?;
//! sq.ring();
//!
//! // Poll, on both sides.
//! let sent = cq_a.into_cpu().wait(Duration::from_secs(5)).expect("the write completes");
//! assert_eq!((sent.wr_id, sent.status.is_ok()), (42, true));
//! let _arrived = cq_b.into_cpu().wait(Duration::from_secs(5)).expect("the immediate arrives");
//! assert_eq!(target.read_vec(..5)?, b"hello");
//! # Ok::<(), efa_direct::Error>(())
//! ```
//!
//! # Where things are
//!
//! | noun | type |
//! | --- | --- |
//! | device | [`Device`], [`devices`], [`hardware_devices`], [`DeviceInfo`], [`DeviceAttributes`], [`Counters`], [`AsyncEvent`] |
//! | protection domain, peers | [`ProtectionDomain`], [`Endpoint`], [`Peer`], [`Gid`] |
//! | memory | [`Region`], [`LocalSlice`], [`RemoteRegion`], [`RemoteSlice`], [`Access`] |
//! | memory that the CPU cannot access | [`ExternalMemory`], [`DmabufRange`], [`ExternalRegion`], [`ExternalCompletionQueue`], [`ExternalCompletionCounter`] |
//! | queue pair | [`QpConfig`], [`QueuePair`], [`ActiveQueuePair`], [`QpControl`], [`Transport`] |
//! | send ring | [`SendQueue`], then [`CpuSendQueue`] or [`GpuSendQueue`] |
//! | receive ring | [`RecvQueue`], then [`CpuRecvQueue`] or [`GpuRecvQueue`] |
//! | completion ring | [`CqConfig`], [`CompletionQueue`], then [`CpuCompletionQueue`] or [`GpuCompletionQueue`] |
//! | requests | [`Send`], [`SendInline`], [`RdmaWrite`], [`RdmaWriteInline`], [`RdmaRead`], [`Hints`] |
//! | completions | [`Completion`], [`CompletionKind`], [`Received`], [`Status`] |
//! | completion counter | [`CompletionCounter`], [`CounterOps`], [`CounterValue`] |
//! | errors, by the kind of call | [`Error`], [`OpenError`], [`SetupError`], [`RangeError`], [`PostError`], [`EventError`], [`HandOverError`], [`Refused`] |
//! | control path | [`Provider`](provider::Provider), [`RawRing`] |
#![cfg_attr(feature = "soft", doc = "| software device | [`SoftSpec`], [`LinkCounters`], [`Device::soft_device`] |")]
#![cfg_attr(
    feature = "cuda",
    doc = "| GPU | [`cuda::Gpu`], [`cuda::Mapped`], [`cuda::GpuMemory`], [`cuda::GpuRegion`], [`cuda::Kernel`], [`cuda::Watchdog`] |"
)]
#![cfg_attr(feature = "soft", doc = "| tests with several nodes, in simulated time | [`sim`] |")]
#![cfg_attr(not(feature = "cuda"), doc = "| GPU | module `cuda`, with the feature `cuda` |")]
//!
//! # Features
//!
//! - `soft` (default): EFA devices in software, which need no hardware and no library.
//! - `verbs` (default): EFA devices, through libibverbs and libefa, which are loaded at run time.
//! - `cuda`: NVIDIA GPUs: rings mapped into them, memory on them, kernels. CUDA's driver is loaded at run time.
//!
//! # Promises
//!
//! - **A ring has one owner.** Its modes are types, each with only its own methods. The way back needs a drained ring.
//! - **Overflow is an error.** A request that does not fit is refused before a byte is written. A completion queue
//!   cannot overflow either: each ring has a share of it, which is fixed at creation, and may not have more requests
//!   outstanding. The share of a queue pair that is gone becomes free once its completions have been polled.
//!   (Unsolicited receives are the exception, since nothing on this side can hold them back.)
//! - **A completion counts for its own queue pair.** While completions of a queue pair may be unpolled in a completion
//!   queue, its number is not used again there. This holds on the CPU and in kernels, on every device, with 16-bit and
//!   64-bit request ids.
//! - **Batches are as short as the device needs them.** At most `max_batch` WQEs reach the device between two
//!   doorbells, even if stores overtake each other on their way.
//! - **Posting costs stores.** No lock, no allocation, no atomic read-modify-write, no reference count.
//! - **Registered memory is copied, not referenced**, since a peer may write it at any time.
//! - **Safe code cannot cause undefined behaviour.** A program needs `unsafe` only to launch a kernel, to register
//!   external memory by its address, and to state what a GPU did with a ring that is taken back from it. A provider
//!   from outside this crate implements an `unsafe` trait.
//!
//! Unsafe code: `ring.rs` (ring memory), `barrier.rs` (fences), `region.rs` (registered memory), `external.rs`,
//! `external_cq.rs`, `send.rs`, `recv.rs` and `cq.rs` (declare what it takes to register by address, and to take a ring
//! back), `provider/` (hands over rings and registered memory, asks libibverbs for them), `cuda/` (calls into CUDA).

#![deny(missing_docs)]

mod barrier;
mod counter;
mod cq;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod error;
mod external;
mod external_cq;
mod external_region;
mod ledger;
mod op;
#[cfg(all(test, any(feature = "cuda", feature = "verbs")))]
mod panics;
mod pd;
mod peer;
mod promises;
pub mod provider;
mod qp;
mod recv;
mod region;
mod ring;
mod send;
mod shared;
#[cfg(feature = "soft")]
pub mod sim;

pub use counter::{CompletionCounter, ExternalCompletionCounter};
pub use cq::{Completion, CompletionKind, CompletionQueue, CpuCompletionQueue, CqConfig, GpuCompletionQueue, Received};
pub use device::{Device, devices, hardware_devices};
pub use error::{Error, EventError, HandOverError, OpenError, PostError, RangeError, Refused, SetupError};
pub use external::{DmabufRange, ExternalMemory};
pub use external_cq::ExternalCompletionQueue;
pub use external_region::ExternalRegion;
pub use op::{RdmaRead, RdmaWrite, RdmaWriteInline, Request, Send, SendInline};
pub use pd::ProtectionDomain;
pub use peer::{Endpoint, Peer};
pub use provider::DeviceInfo;
pub use qp::{ActiveQueuePair, QpConfig, QpControl, QueuePair};
pub use recv::{CpuRecvQueue, GpuRecvQueue, RecvQueue};
pub use region::{LocalSlice, Region, RemoteRegion, RemoteSlice};
pub use ring::RawRing;
pub use send::{CpuSendQueue, GpuSendQueue, SendQueue};
pub use shared::counter::AttachableCounter;
pub use shared::cq::CompletionTarget;

pub use efa_io::{Hints, OpCode, Status};
#[cfg(feature = "soft")]
pub use efa_soft::{LinkCounters, driver::SoftSpec};
pub use efa_types::{
    Access, AsyncEvent, COUNTER_MAX, ControlError, CounterOps, CounterValue, Counters, DeviceAttributes, Gid,
    Transport, UD_PREFIX,
};
