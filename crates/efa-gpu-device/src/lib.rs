//! EFA queues for GPU kernels.
//!
//! A kernel builds a work request in its registers, stores it into the NIC's ring, rings the doorbell and polls for the completion: no
//! processor has a part in it. The host makes the queues, and hands them over as `into_gpu()` of `efa-direct` gives them: a
//! [`SendRingHandle`](efa_io::SendRingHandle) and a [`CompletionRingHandle`](efa_io::CompletionRingHandle), plain data that a kernel takes as
//! arguments.
//!
//! Who posts to a queue is chosen by its type, since each way has another price:
//!
//! | type | who posts | what it takes |
//! | --- | --- | --- |
//! | [`ThreadSendQueue`] | one thread | counters in registers; one fence for each doorbell |
//! | [`WarpSendQueue`] | a warp, each lane a request or none | one reservation, one fence and one doorbell for all lanes |
//!
//! ```
//! use efa_gpu_device::{CompletionQueue, PostError, ThreadSendQueue};
//! use efa_io::{Destination, LocalBuf, RdmaWrite, RemoteBuf};
//!
//! /// What a kernel does with its queues, as one thread.
//! fn write(
//!     sq: &mut ThreadSendQueue<8>, cq: &mut CompletionQueue, peer: Destination, local: LocalBuf, remote: RemoteBuf,
//! ) -> Result<bool, PostError> {
//!     sq.post(peer, &RdmaWrite::new(local, remote), 7)?;
//!     sq.ring();
//!     let done = loop {
//!         if let Some(entry) = cq.poll() {
//!             break entry;
//!         }
//!     };
//!     let good = done.status().is_ok();
//!     sq.settle(done);
//!     Ok(good)
//! }
//! ```
//!
//! What would overflow the ring or its completion queue is refused before a byte is written, and nothing is rung over `max_batch`: a queue
//! counts what is outstanding, and only a completion that was polled, [settled](ThreadSendQueue::settle) once, makes room.
//!
//! The same source compiles for the host, where a kernel is a function: queues work on the rings of a software device, and a warp has one lane.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `arch/` | what a GPU can do and a processor does otherwise: stores, fences, clocks, lanes |
//! | `thread.rs`, `warp.rs` | who am I, and what do the others have |
//! | `send/` | send queues by who posts |
//! | `completion.rs` | completion queues |

#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(asm_experimental_arch, stdarch_nvptx))]
#![deny(missing_docs)]

mod arch;
mod completion;
mod counter;
pub mod mem;
mod recv;
mod send;
#[cfg(not(target_arch = "nvptx64"))]
pub mod simt;
pub mod thread;
mod time;
pub mod warp;

pub use efa_gpu_macros::kernel;

pub use completion::{CompletionQueue, Entry};
pub use counter::{CompletionCounter, CounterError};
pub use recv::RecvQueue;
pub use send::{Placed, PostError, SharedSendQueue, ThreadSendQueue, WarpSendQueue, shared_state};
pub use time::{Deadline, TimedOut, Watchdog, globaltimer};
