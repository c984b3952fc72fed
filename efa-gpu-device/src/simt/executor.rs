//! The executor: what a run consists of.

use super::fault::Fault;
use super::machine::Stats;
use super::memory::{Lent, Watch};
use super::run::{Launch, run};
use std::time::Duration;

/// Runs kernels on the host. See the [module](crate::simt).
#[must_use = "nothing runs before `run`"]
pub struct Executor<'env> {
    seed: u64,
    timeout: Duration,
    launches: Vec<Launch<'env>>,
    watches: Vec<Watch<'env>>,
    lent: Lent,
}

impl<'env> Executor<'env> {
    /// An executor with this seed, and a minute for the run; see [`timeout`](Self::timeout).
    pub fn new(seed: u64) -> Self {
        let (launches, watches, lent) = Default::default();
        Self { seed, timeout: Duration::from_secs(60), launches, watches, lent }
    }

    /// Adds a kernel: `blocks` of `threads` each. A block's last warp has fewer lanes if `threads` is no multiple
    /// of 32. All launches run side by side, on the same GPU.
    pub fn launch(self, blocks: u32, threads: u32, kernel: impl Fn() + 'env) -> Self {
        self.launch_on(0, blocks, threads, kernel)
    }

    /// Adds a kernel on another GPU; [`launch`](Self::launch) adds on GPU 0. What passes between two GPUs takes fences
    /// of system scope. A launch that plays a NIC belongs on another GPU.
    ///
    /// # Panics
    /// No blocks, no threads, or more than 1024 threads in a block.
    pub fn launch_on(mut self, gpu: u32, blocks: u32, threads: u32, kernel: impl Fn() + 'env) -> Self {
        assert!(blocks > 0, "a launch has blocks");
        assert!((1..=1024).contains(&threads), "a block has 1 to 1024 threads, not {threads}");
        self.launches.push(Launch { gpu, blocks, threads, kernel: Box::new(kernel) });
        self
    }

    /// Lends memory to the kernels: the bytes of this value, not of what it points to. Only stores to lent memory are
    /// delayed; see the [module](crate::simt).
    pub fn lends<T: ?Sized>(mut self, memory: &'env T) -> Self {
        self.lent.add(std::ptr::from_ref(memory).addr(), size_of_val(memory));
        self
    }

    /// Calls `seen` with every value that a store brings to the 32 bits of memory at `addr`, in order: what a device
    /// sees of its doorbell, without missing any. `seen` runs inside the store, and calls no function of this crate.
    pub fn watch_store(mut self, addr: *const u32, seen: impl FnMut(u32) + 'env) -> Self {
        self.watches.push(Watch { addr: addr as usize, seen: Box::new(seen) });
        self
    }

    /// Ends the run with [`Fault::TimedOut`] if it takes longer than this by a real clock.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs everything to its end.
    ///
    /// # Errors
    /// The first [`Fault`] of a kernel; a panic of a lane is one. All other lanes are unwound.
    ///
    /// # Panics
    /// Inside a kernel.
    pub fn run(self) -> Result<Stats, Fault> {
        let Self { seed, timeout, launches, watches, lent } = self;
        run(seed, timeout, &launches, watches, lent)
    }
}
