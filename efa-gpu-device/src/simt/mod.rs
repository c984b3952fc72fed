//! Kernels on a processor: lanes, warps and blocks that run side by side, as one seed has it.
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
//! crate's functions, sleeps, looks at the clock, or waits for others; who is next is drawn. The seed also sets how
//! often lanes change and how long stores linger, so that different seeds are different machines. A seed repeats a run,
//! as far as nothing but the run's own kernels is in it: no other thread, such as a software device. Code between two
//! such places is not interrupted, and a lane that never comes to one cannot be stopped.
//!
//! **Together.** What takes several lanes waits until all of them are there: [`ballot`](crate::warp::warp_vote_ballot),
//! [`shuffle`](crate::warp::warp_shuffle_idx), [`sync_warp`](crate::warp::sync_warp),
//! [`sync_threads`](crate::thread::sync_threads). Where that can never be, or would not be defined on a GPU, the run
//! ends with a [`Fault`] that says who and where. This is stricter than hardware, which goes on without lanes that have
//! exited. [`activemask`](crate::warp::activemask) gives this lane and any of those that ask for it at the same time,
//! all of which get the same answer: a GPU promises no more.
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
//! A store that is on its way needs memory at the end of it. So this is how it goes with memory that was *lent* until
//! the run is over, and with no other: what [`lends`](Executor::lends) names, or [`lend`], and the rings, doorbells and
//! states of the queues of this crate, whose constructors ask for just that. What a kernel stores elsewhere, in memory
//! of its own perhaps, is there at once: its missing fences are not found. A run that ends by a fault stores nothing
//! any more.
//!
//! With half of the seeds a fence waits with that until its lane stores again or meets others: it orders what one lane
//! does, and is no news for anybody else.
//!
//! A lane has acquired what it could see when it last looked at memory before a fence, or by a load or an atomic that
//! acquires; and what others had acquired that it has met since, at `sync_warp` or `sync_threads`. A ballot or a
//! shuffle hands nothing on.
//!
//! So a missing or too narrow fence before a doorbell is found by a launch that [plays the NIC](Executor::launch_on),
//! given seeds enough; so is one that is missing between a look at what another block did and the barrier behind which
//! another lane rings. What is *not* found: a load that would be early for want of an acquire (none is), a fence that
//! would have to be sequentially consistent (all are here), a barrier or an acquire that is missing between lanes of
//! one block, and the order of plain Rust accesses, which happen at once.
//!
//! **Time.** [`globaltimer`](crate::globaltimer) is a clock of the run, which moves with it, at about the speed of a
//! real one; a deadline costs no waiting. When all lanes only look, the thread is given away, so that other threads get
//! on.
//!
//! **Faults.** Stores that are on their way are forgotten. Other lanes are then unwound, as by a panic: what their
//! destructors do to memory happens, and nobody is waited for: a ballot has no votes, a shuffle gives `u32::MAX`. A
//! lane that catches this is unwound again wherever it would lose its turn; one that catches it for ever cannot be
//! ended.
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
