//! EFA direct verbs in safe Rust.
//!
//! A program writes work requests into the NIC's rings itself and reads completions from them: no library between, no
//! system call, no copy. This crate owns the rings, so that nothing can go wrong with them that a compiler or a compare
//! can prevent.
//!
//! ```
//! use efa_direct::{Access, CqConfig, Device, QpConfig, RdmaWrite};
//! use std::time::Duration;
//!
//! // Two nodes. Software devices here; the code is the same for a real one, `Device::open("rdmap79s0")`.
//! let (a, b) = (Device::open("soft0")?, Device::open("soft1")?);
//! let (pd_a, pd_b) = (a.alloc_pd()?, b.alloc_pd()?);
//! let (cq_a, cq_b) = (a.create_cq(CqConfig::new(512))?, b.create_cq(CqConfig::new(512))?);
//! let qp_a = pd_a.create_qp(&cq_a, &cq_a, QpConfig::new(256, 16))?.activate(0x1234)?;
//! let qp_b = pd_b.create_qp(&cq_b, &cq_b, QpConfig::new(256, 16).unsolicited_write_recv())?.activate(0x5678)?;
//!
//! // What the nodes tell each other, over TCP for example: where the queue pair is, and where the memory.
//! let target = pd_b.allocate(4096, Access::REMOTE_WRITE)?;
//! let (peer_b, remote) = (pd_a.peer(&qp_b.endpoint)?, target.remote());
//! let _peer_a = pd_b.peer(&qp_a.endpoint)?; // RDMA needs an address handle on both sides
//!
//! // Post. From here on the GPU could not: `into_cpu` has consumed the ring.
//! let source = pd_a.allocate(4096, Access::LOCAL_READ)?;
//! source.write(0, b"hello")?;
//! let mut sq = qp_a.send.into_cpu();
//! sq.post(&peer_b, RdmaWrite::new(source.slice(..)?, remote.slice(..)?).imm(7), 42)?;
//! sq.ring();
//!
//! // Learn of it, on both sides.
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
//! | device | [`Device`], [`devices`], [`hardware_devices`], [`DeviceAttributes`] |
//! | protection domain, peers | [`ProtectionDomain`], [`Endpoint`], [`Peer`] |
//! | memory | [`Region`], [`LocalSlice`], [`RemoteRegion`], [`RemoteSlice`] |
//! | memory of others, by DMA-BUF | [`ExternalMemory`], [`ExternalRegion`], [`ExternalCompletionQueue`], [`ExternalCompletionCounter`] |
//! | queue pair | [`QueuePair`], [`ActiveQueuePair`], [`QpConfig`], [`QpControl`] |
//! | send ring | [`SendQueue`], then [`CpuSendQueue`] or [`GpuSendQueue`] |
//! | receive ring | [`RecvQueue`], then [`CpuRecvQueue`] or [`GpuRecvQueue`] |
//! | completion ring | [`CompletionQueue`], then [`CpuCompletionQueue`] or [`GpuCompletionQueue`] |
//! | requests | [`Send`], [`SendInline`], [`RdmaWrite`], [`RdmaWriteInline`], [`RdmaRead`] |
//! | control path | [`Provider`](provider::Provider) |
#![cfg_attr(
    feature = "cuda",
    doc = "| GPU | [`cuda::Gpu`], [`cuda::Mapped`], [`cuda::GpuMemory`], [`cuda::GpuRegion`], [`cuda::Kernel`], [`cuda::Watchdog`] |"
)]
#![cfg_attr(not(feature = "cuda"), doc = "| GPU | module `cuda`, with the feature `cuda` |")]
//!
//! # Promises
//!
//! - **A ring has one owner.** Its modes are types, each with its own methods only; the way back needs a drained ring.
//! - **Overflow is an error.** A request that does not fit is refused before a byte is written. A completion queue
//!   cannot overflow either: every ring has a share of it, fixed at creation, and may not have more outstanding; the
//!   share of a queue pair that is gone is free once its completions have been polled. (Unsolicited receives are the
//!   exception, since nothing here can hold them back.)
//! - **A completion counts for the queue pair that it is of.** A queue pair number is not used again in a completion
//!   queue while completions of its last life may lie there unpolled, on the CPU and in kernels, on every device,
//!   whatever room its request ids have.
//! - **Batches are as short as the device wants them.** No more than its `max_batch` WQEs reach it between two
//!   doorbells, however stores overtake each other on their way.
//! - **Posting costs stores.** No lock, no allocation, no atomic read-modify-write, no reference count.
//! - **Registered memory is copied, not referenced**, since a peer may write it at any time.
//! - **Nothing here leads to undefined behaviour.** A program need not write `unsafe`, but for these: launching a
//!   kernel, registering memory of others by its address, and saying what a GPU did with a ring that is taken back from
//!   it; whoever brings a provider of their own vouches for it.
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
