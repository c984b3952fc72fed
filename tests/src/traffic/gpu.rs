//! Running kernels on a GPU.

use super::{KernelRunner, Poster};
use efa_direct::cuda::{Gpu, GpuMemory, Kernel, Module, PinnedMemory, Shape, Stream, Watchdog};
use efa_gpu_device::WatchdogHandle;
use efa_gpu_kernels::traffic::{Receiving, Sending};
use std::collections::HashMap;
use std::time::Duration;

/// Loads the project's kernels, which [`efa_gpu_kernels::ptx`] finds.
///
/// # Panics
/// There are no kernels, or they do not load.
pub fn kernels(gpu: &Gpu) -> Module {
    gpu.load(&efa_gpu_kernels::ptx().unwrap_or_else(|problem| panic!("{problem}"))).expect("the kernels load")
}

/// A runner of kernels on a GPU.
pub struct OnGpu {
    gpu: Gpu,
    kernels: HashMap<&'static str, Kernel>,
    streams: [Stream; 2],
    watchdogs: [Watchdog; 2],
    memory: Vec<PinnedMemory>,
    state: Option<GpuMemory>,
}

impl OnGpu {
    /// Creates a runner with the project's kernels. `patience` is how long they may wait.
    ///
    /// # Panics
    /// A call of CUDA fails.
    pub fn new(gpu: &Gpu, patience: Duration) -> Self {
        let stream = || gpu.stream().expect("a stream");
        let module = kernels(gpu);
        // All kernels are loaded now: CUDA loads a kernel at its first use, and may wait for running kernels to end.
        let names = ["send_by_thread", "send_by_thread_128", "send_by_warp", "send_by_many", "receive"];
        let kernels = names.map(|name| (name, module.kernel(name).expect("a kernel of ours"))).into();
        Self {
            gpu: gpu.clone(),
            kernels,
            streams: [stream(), stream()],
            watchdogs: [(); 2].map(|()| gpu.watchdog(patience).expect("a watchdog")),
            memory: Vec::new(),
            state: None,
        }
    }
}

impl KernelRunner for OnGpu {
    fn allocate(&mut self, bytes: usize) -> u64 {
        self.memory.push(self.gpu.pinned(bytes.next_multiple_of(128)).expect("pinned memory"));
        self.memory.last().expect("it was pushed").addr()
    }

    fn state(&mut self, words: &[u32]) -> u64 {
        let words: &[u8] = bytemuck::cast_slice(words);
        let memory = self.state.get_or_insert_with(|| self.gpu.allocate(words.len() as u64).expect("GPU memory"));
        memory.write(0, words).expect("it fits: a machine is for one traffic");
        memory.addr()
    }

    fn watchdog(&mut self) -> WatchdogHandle {
        self.watchdogs[0].handle()
    }

    fn run(&mut self, poster: Poster, sending: Sending, mut receiving: Receiving) -> Result<(), String> {
        let (name, blocks, threads) = poster.kernel();
        let [sender, receiver] = [name, "receive"].map(|name| &self.kernels[name]);
        receiving.watchdog = self.watchdogs[1].handle();
        // SAFETY: the kernels take these arguments. `Traffic` passes addresses of memory that this runner keeps, and of
        // queues that `Traffic` owns. Only these two kernels use them until both have ended, which `wait_watched` below
        // waits for. If a kernel hangs, it returns an error, and efa-direct frees no memory while a kernel runs.
        let running = unsafe {
            [
                sender.launch(&self.streams[0], Shape::new(blocks, threads), (sending,)),
                receiver.launch(&self.streams[1], Shape::new(1, 1), (receiving,)),
            ]
        };
        let running = running.map(|running| running.expect("it starts"));
        let outcomes =
            [0, 1].map(|of| running[of].wait_watched(&self.watchdogs[of]).map_err(|error| error.to_string()));
        match outcomes {
            [Ok(()), Ok(())] => Ok(()),
            [sent, received] => Err(format!("posting: {sent:?}; receiving: {received:?}")),
        }
    }
}
