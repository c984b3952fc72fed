//! Kernels on this processor, in the executor.

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

/// Runs kernels in the executor, each run with another seed.
pub struct OnExecutor {
    seed: u64,
    report: Option<u64>,
}

impl OnExecutor {
    /// From this seed on.
    pub fn new(seed: u64) -> Self {
        Self { seed, report: None }
    }
}

impl KernelRunner for OnExecutor {
    fn allocate(&mut self, bytes: usize) -> u64 {
        // For ever: queues and kernels know it by its address.
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
            // SAFETY: all addresses are those of memory and queues that live on, and are the kernels' own.
            .launch(blocks, threads, move || unsafe { post(sending) })
            // SAFETY: as above.
            .launch(1, 1, move || unsafe { receive(receiving) });
        executor.run().map_err(|fault| fault.to_string())?;
        let [waited]: [TimeoutReport; 1] = super::load(sending.watchdog.report, 1).try_into().expect("one");
        if waited.what == TimeoutReport::NOTHING { Ok(()) } else { Err(format!("waited in vain for {waited}")) }
    }
}
