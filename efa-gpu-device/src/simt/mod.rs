//! Runs kernels on the host: lanes, warps and blocks side by side, in an order that a seed decides.
//!
//! ```
//! use efa_gpu_device::simt::Executor;
//! use efa_gpu_device::{thread, warp};
//! use std::cell::Cell;
//!
//! let sum = Cell::new(0);
//! let stats = Executor::new(1).launch(2, 64, || {
//!     // SAFETY: all lanes of the warp come here.
//!     let odd = unsafe { warp::warp_vote_ballot(warp::ALL, thread::thread_idx_x() % 2 == 1) };
//!     sum.set(sum.get() + odd.count_ones());
//! });
//! assert_eq!(stats.run().map(|stats| stats.lanes), Ok(128));
//! assert_eq!(sum.get(), 128 * 16);
//! ```
//!
//! **Lanes.** Each lane is a coroutine on the calling thread. It can lose its turn wherever it accesses memory by this
//! crate's functions, sleeps, reads the clock, or waits for others; the next lane is drawn at random. The seed also
//! decides how often lanes change and how long stores linger, so that different seeds are different machines. The same
//! seed repeats a run, if no other thread takes part, such as a software device. Code between two such places is not
//! interrupted, and a lane that never reaches one cannot be stopped.
//!
//! **Together.** Operations of several lanes wait until all of them are there:
//! [`ballot`](crate::warp::warp_vote_ballot), [`shuffle`](crate::warp::warp_shuffle_idx),
//! [`sync_warp`](crate::warp::sync_warp), [`sync_threads`](crate::thread::sync_threads). Where that can never be, or is
//! undefined on a GPU, the run ends with a [`Fault`] that says who and where. This is stricter than hardware, which
//! goes on without lanes that have exited. [`activemask`](crate::warp::activemask) returns this lane and any of those
//! that ask for it at the same time, all of which get the same answer: a GPU promises no more.
//!
//! **Memory.** Stores do not arrive at once. They go from a lane to its block, from there to its GPU, and on to memory,
//! one by one, in any order, except that stores to the same address stay in order. Some linger while others pass. A
//! lane sees what is on its way from itself, from its block or from its GPU.
//!
//! | what | makes go on at once |
//! | --- | --- |
//! | `sync_warp`, `sync_threads` | the stores of all lanes that meet, as far as their block |
//! | `device_fence`, atomics that release | the lane's stores and its block's, as far as the GPU |
//! | `system_fence`, `store_release_system` | those and other blocks' that the lane has acquired, as far as memory |
//! | any atomic | what the lane sees on its way to the same address, as far as memory |
//! | the end of the run | all that is left, as far as memory |
//!
//! A delayed store needs memory that is still there when it arrives. So only stores to memory that was *lent* until the
//! run is over are delayed: what [`lends`](Executor::lends) or [`lend`] names, and the rings, doorbells and states of
//! this crate's queues, whose constructors demand just that. Other stores, to a kernel's own memory for example, are
//! complete at once: fences that are missing there are not found. After a fault no delayed store arrives any more.
//!
//! With half of the seeds a fence takes effect only when its lane stores again or meets others: it orders what one lane
//! does, and makes nothing visible by itself.
//!
//! A lane has acquired what it could see when it last looked at memory before a fence, or by a load or an atomic that
//! acquires; and what other lanes had acquired that it has met since, at `sync_warp` or `sync_threads`. A ballot or a
//! shuffle passes nothing on.
//!
//! So with enough seeds a launch that [plays the NIC](Executor::launch_on) finds a fence that is missing before a
//! doorbell, or too narrow; also one that is missing between a look at what another block did and the barrier behind
//! which another lane rings. It does *not* find: a load that is early because an acquire is missing (no load is early
//! here), a fence that has to be sequentially consistent (all are here), a barrier or an acquire that is missing
//! between lanes of one block, and the order of plain Rust accesses, which happen at once.
//!
//! **Time.** [`globaltimer`](crate::globaltimer) is a clock of the run, at about the speed of a real one; a deadline
//! costs no real waiting. When all lanes only poll, the executor yields the thread, so that other threads make
//! progress.
//!
//! **Faults.** A fault drops delayed stores. Other lanes are then unwound, as by a panic. Memory accesses of their
//! destructors happen, and nobody waits: a ballot has no votes, a shuffle returns `u32::MAX`. A lane that catches this
//! is unwound again wherever it would lose its turn; one that catches it forever cannot be ended.
//!
//! Outside an executor a thread is the only lane of a block of one thread, and memory is accessed at once.

mod converge;
mod current;
mod executor;
mod fault;
mod machine;
mod memory;
mod run;

pub use current::lend;
pub(crate) use current::*;
pub use executor::Executor;
pub use fault::{Doing, Fault, LaneId, Primitive, Waiting};
pub use machine::Stats;
