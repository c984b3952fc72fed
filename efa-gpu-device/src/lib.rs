//! EFA queues for GPU kernels.
//!
//! A kernel builds a work request in its registers, stores it into the NIC's ring, rings the doorbell and polls for the
//! completion, without any CPU. The host creates the queues, and hands them over with `into_gpu()` of `efa-direct`: as
//! a [`SendRingHandle`](efa_io::SendRingHandle) and a [`CompletionRingHandle`](efa_io::CompletionRingHandle), plain
//! data that a kernel takes as arguments.
//!
//! The type of a queue says who posts to it, since each way has another price:
//!
//! | type | who posts | what it takes |
//! | --- | --- | --- |
//! | [`ThreadSendQueue`] | one thread | counters in registers; one fence for each doorbell |
//! | [`WarpSendQueue`] | a warp, each lane a request or none | one reservation, one fence and one doorbell for all lanes |
//! | [`SharedSendQueue`] | any number of threads, warps and blocks | counters in memory; atomics for each post; one doorbell for as many as come meanwhile |
//! | [`RecvQueue`] | one thread | counters in registers; one fence for each doorbell |
//!
//! A [`CompletionQueue`], polled by one thread or a warp, reports which requests are done; a [`CompletionCounter`]
//! reports how many.
//!
//! ```
//! use efa_gpu_device::{CompletionQueue, Deadline, ThreadSendQueue, kernel};
//! use efa_io::{CompletionRingHandle, Destination, RdmaWrite, SendRingHandle};
//!
//! /// Writes, and stores the [`Status`](efa_io::Status); nothing if there was no room, or no answer within a second.
//! ///
//! /// # Safety
//! /// One thread; the queues were handed over to it, and `status` is valid for writes.
//! #[kernel]
//! pub unsafe fn write(
//!     sq: SendRingHandle,
//!     cq: CompletionRingHandle,
//!     to: Destination,
//!     request: RdmaWrite,
//!     status: *mut u32,
//! ) {
//!     let Some(mut sq) = (unsafe { ThreadSendQueue::<8>::new(&sq) }) else { return };
//!     let Some(mut cq) = (unsafe { CompletionQueue::new(&cq) }) else { return };
//!     if sq.post(to, &request, 7).is_ok() {
//!         sq.ring();
//!         if let Ok(done) = cq.wait(Deadline::after(1_000_000_000)) {
//!             unsafe { *status = u32::from(done.status().code()) };
//!             sq.release(done);
//!         }
//!     }
//! }
//! ```
//!
//! A kernel that takes handles by value has them in constant memory, where they cost no registers.
//! [`post_many`](ThreadSendQueue::post_many) places several requests in fewer instructions, and
//! [`poll_many_warp`](CompletionQueue::poll_many_warp) takes the most completions per second.
//!
//! A request that would overflow the ring or its completion queue is refused before a byte is written, and `max_batch`
//! is never exceeded. A queue counts its outstanding requests. Only a completion that was polled, and
//! [released](ThreadSendQueue::release) once, makes room.
//!
//! # On the host
//!
//! The same source compiles for the host, where a kernel is a function, and queues work on the rings of a software
//! device. A plain call runs it as a single thread. An [`Executor`](simt::Executor) runs it as a grid, with all its
//! lanes, warps and blocks, together with other kernels:
//!
//! ```
//! use efa_gpu_device::{simt::Executor, thread, warp};
//!
//! let kernel = || {
//!     if warp::lane_id() < 31 {
//!         // SAFETY: a lie, since one lane does not come.
//!         unsafe { warp::sync_warp(warp::ALL) };
//!     }
//! };
//! for seed in 0..10 {
//!     let fault = Executor::new(seed).launch(4, 64, kernel).run().unwrap_err();
//!     assert!(fault.to_string().contains("has returned"));
//! }
//! ```
//!
//! Each seed interleaves the lanes in another way. The executor reports deadlocks, and calls of lanes that are
//! undefined on a GPU. It delays stores as the scopes of fences allow, so that a test finds a doorbell that overtakes
//! its WQE.
//!
//! # Files
//!
//! | file | what is in it |
//! | --- | --- |
//! | `arch/` | stores, fences, clocks, lanes: GPU instructions, and what stands for them on the host |
//! | `thread.rs`, `warp.rs` | this thread's place, fences, and what lanes do together |
//! | `mem.rs` | memory that others see while a kernel runs |
//! | `time.rs` | the clock and deadlines |
//! | `watchdog.rs` | a kernel's time limit, and its report to the host |
//! | `send/` | send queues by who posts |
//! | `recv.rs` | receive queues |
//! | `completion.rs`, `counter.rs` | completion queues and counters |
//! | `simt/` | on the host only: the executor, which runs kernels as a GPU would |
//!
//! Unsafe code: `arch/` (instructions), `mem.rs`, `send/`, `recv.rs`, `completion.rs`, `counter.rs`, `watchdog.rs`
//! (memory by the addresses that a kernel was given), `warp.rs` and `thread.rs` (what a whole warp, or block, has to
//! do), `simt/` (coroutines, and memory on behalf of lanes).

#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", allow(internal_features))]
#![cfg_attr(target_arch = "nvptx64", feature(asm_experimental_arch, link_llvm_intrinsics, stdarch_nvptx))]
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
mod watchdog;

pub use efa_gpu_macros::kernel;

pub use completion::{CompletionQueue, Entry};
pub use counter::{CompletionCounter, CounterError};
pub use recv::RecvQueue;
pub use send::{Placed, PostError, SharedSendQueue, ThreadSendQueue, WarpSendQueue, shared_state};
pub use time::{Deadline, globaltimer};
pub use watchdog::{TimedOut, TimeoutReport, Watchdog, WatchdogHandle};
