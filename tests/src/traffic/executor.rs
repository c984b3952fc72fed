//! Running kernels on this processor, in the executor.

use super::{KernelRunner, Poster};
use efa_gpu_device::simt::Executor;
use efa_gpu_device::{TimeoutReport, WatchdogHandle};
use efa_gpu_kernels::traffic::{
    Receiving, Sending, receive, send_by_many, send_by_thread, send_by_thread_128, send_by_warp,
};

#[derive(Clone)]
#[repr(align(128))]
struct Line {
    _words: [u64; 16],
}

/// A runner of kernels in the executor. Each run has another seed.
pub struct OnExecutor {
    seed: u64,
    report: Option<u64>,
}

impl OnExecutor {
    /// Creates a runner. Its first run has the seed after this one.
    pub fn new(seed: u64) -> Self {
        Self { seed, report: None }
    }
}

impl KernelRunner for OnExecutor {
    fn allocate(&mut self, bytes: usize) -> u64 {
        // Leaked, because queues and kernels have its address.
        Box::leak(vec![Line { _words: [0; 16] }; bytes.div_ceil(size_of::<Line>())].into_boxed_slice()).as_mut_ptr()
            as u64
    }

    fn state(&mut self, words: &[u32]) -> u64 {
        let at = self.allocate(4 * words.len());
        super::store(at, words);
        at
    }

    fn watchdog(&mut self) -> WatchdogHandle {
        let report = self.report.unwrap_or_else(|| self.allocate(size_of::<TimeoutReport>()));
        self.report = Some(report);
        WatchdogHandle { report, timeout_ns: 20_000_000_000 }
    }

    fn run(&mut self, poster: Poster, sending: Sending, receiving: Receiving) -> Result<(), String> {
        self.seed += 1;
        let (_, blocks, threads) = poster.kernel();
        let post = match poster {
            Poster::Thread => send_by_thread,
            Poster::Wide => send_by_thread_128,
            Poster::Warp => send_by_warp,
            Poster::Many(..) => send_by_many,
        };
        let executor = Executor::new(self.seed)
            // SAFETY: `Traffic` passes addresses of memory that this runner has leaked, and of queues that `Traffic`
            // owns. Only these two kernels use them until `run` returns.
            .launch(blocks, threads, move || unsafe { post(sending) })
            // SAFETY: the same holds for the receiving kernel.
            .launch(1, 1, move || unsafe { receive(receiving) });
        executor.run().map_err(|fault| fault.to_string())?;
        let [waited]: [TimeoutReport; 1] = super::load(sending.watchdog.report, 1).try_into().expect("one");
        if waited.what == TimeoutReport::NOTHING { Ok(()) } else { Err(format!("waited in vain for {waited}")) }
    }
}
