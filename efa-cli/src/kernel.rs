//! RDMA writes posted by a kernel, which runs on a GPU if there is one and in the executor otherwise.

use anyhow::{Context, Result, anyhow, ensure};
use efa_direct::cuda::{Gpu, Module, PinnedMemory, Shape};
use efa_direct::{Error, GpuCompletionQueue, GpuSendQueue};
use efa_gpu_device::simt::Executor;
use efa_gpu_device::{TimeoutReport, WatchdogHandle};
use efa_gpu_kernels::traffic::{Job, Sending, Sent, send_by_thread};
use efa_io::{CompletionRingHandle, Destination, SendRingHandle};
use std::time::Duration;

/// The maximum number of jobs of a launch. The timeout holds for each launch.
const MAX_JOBS: usize = 1 << 10;

/// The place where kernels run on this machine.
pub(crate) enum Launcher {
    Gpu(Box<(Gpu, Module)>),
    /// The executor, with the reason why there is no GPU.
    Executor(String),
}

/// The result of a kernel's jobs.
pub(crate) struct Outcome {
    /// For each job 0 if it did not complete, or else its status plus 1.
    pub(crate) statuses: Vec<u32>,
    /// The positions of the queues after the kernel.
    pub(crate) sent: Sent,
}

/// The queues that a kernel uses.
pub(crate) struct Queues {
    pub(crate) send: GpuSendQueue<8>,
    pub(crate) cq: GpuCompletionQueue,
}

impl Launcher {
    /// Finds a GPU and loads the kernels, or else chooses the executor.
    pub(crate) fn find() -> Self {
        let gpu = || -> Result<(Gpu, Module)> {
            let gpu = Gpu::open(0)?;
            let module = gpu.load(&efa_gpu_kernels::ptx().map_err(|problem| anyhow!(problem))?)?;
            Ok((gpu, module))
        };
        gpu().map_or_else(|error| Self::Executor(format!("{error:#}")), |found| Self::Gpu(Box::new(found)))
    }

    /// Returns a phrase for the report that says where the kernel runs.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Gpu(found) => format!("a kernel on the GPU, {}", found.0.info().name),
            Self::Executor(why) => format!("a kernel in the executor, on this processor: {why}"),
        }
    }

    /// Runs a kernel that posts all jobs, `batch` for each doorbell, and polls their completions. Returns the queues
    /// with the result.
    pub(crate) fn run(
        &self,
        queues: Queues,
        to: Destination,
        jobs: &[Job],
        batch: u32,
        patience: Duration,
    ) -> Result<(Queues, Outcome)> {
        let Queues { send, cq } = queues;
        match self {
            Self::Gpu(found) => {
                let (gpu, module) = &**found;
                let (send, cq) = (gpu.map(send).map_err(Error::from)?, gpu.map(cq).map_err(Error::from)?);
                let run = OnGpu::new(gpu, module, jobs.len())?;
                let arguments = arguments_of(send.handle(), cq.handle(), to, batch);
                let done = in_rounds(jobs, arguments, |arguments, jobs| run.round(arguments, jobs, patience))?;
                drop(run);
                Ok((Queues { send: send.unmap(), cq: cq.unmap() }, done))
            }
            Self::Executor(_) => {
                let arguments = arguments_of(send.handle(), cq.handle(), to, batch);
                let done = in_rounds(jobs, arguments, |arguments, jobs| in_executor(arguments, jobs, patience))?;
                Ok((Queues { send, cq }, done))
            }
        }
    }
}

/// Calls `round` with up to [`MAX_JOBS`] jobs at a time, until all are done or one has failed.
fn in_rounds(
    jobs: &[Job],
    mut arguments: Sending,
    mut round: impl FnMut(Sending, &[Job]) -> Result<Outcome>,
) -> Result<Outcome> {
    let sent = Sent { posted: arguments.send.producer, consumed: arguments.cq.consumer };
    let mut all = Outcome { statuses: Vec::new(), sent };
    for jobs in jobs.chunks(MAX_JOBS) {
        arguments.count = jobs.len() as u32;
        let done = round(arguments, jobs)?;
        (arguments.send.producer, arguments.cq.consumer) = (done.sent.posted, done.sent.consumed);
        let good = done.statuses.iter().all(|&status| status == 1);
        all.statuses.extend(done.statuses);
        all.sent = done.sent;
        if !good {
            break;
        }
    }
    Ok(all)
}

/// Returns the kernel's arguments without jobs and addresses.
fn arguments_of(send: SendRingHandle, cq: CompletionRingHandle, to: Destination, batch: u32) -> Sending {
    let watchdog = WatchdogHandle { report: 0, timeout_ns: 0 };
    let (ah, qpn, qkey) = (to.ah.into(), to.qpn.into(), to.qkey);
    Sending {
        send,
        cq,
        watchdog,
        state: 0,
        jobs: 0,
        statuses: 0,
        outcome: 0,
        count: 0,
        batch,
        ah,
        qpn,
        qkey,
        reserved: 0,
    }
}

/// Runs the kernel once in the executor.
fn in_executor(arguments: Sending, jobs: &[Job], patience: Duration) -> Result<Outcome> {
    let (mut statuses, mut sent, mut waited) = (vec![0u32; jobs.len()], Sent::default(), [0u32; 4]);
    let arguments = Sending {
        watchdog: WatchdogHandle { report: waited.as_mut_ptr() as u64, timeout_ns: patience.as_nanos() as u64 },
        jobs: jobs.as_ptr() as u64,
        statuses: statuses.as_mut_ptr() as u64,
        outcome: &raw mut sent as u64,
        ..arguments
    };
    // SAFETY: the addresses are those of locals with the sizes that the kernel expects, which outlive the run, and of
    // rings in `queues` that only this kernel uses.
    let run = Executor::new(1).timeout(patience * 2).launch(1, 1, || unsafe { send_by_thread(arguments) }).run();
    run.context("the executor")?;
    let waited: TimeoutReport = bytemuck::cast(waited);
    ensure!(waited.what == TimeoutReport::NOTHING, "the kernel waited {patience:?} in vain for {waited}");
    Ok(Outcome { statuses, sent })
}

/// A kernel on a GPU, and pinned memory for its jobs and results.
struct OnGpu<'a> {
    gpu: &'a Gpu,
    module: &'a Module,
    jobs: PinnedMemory,
    statuses: PinnedMemory,
    sent: PinnedMemory,
}

impl<'a> OnGpu<'a> {
    fn new(gpu: &'a Gpu, module: &'a Module, jobs: usize) -> Result<Self> {
        let jobs = jobs.min(MAX_JOBS);
        Ok(Self {
            gpu,
            module,
            jobs: gpu.pinned(jobs * size_of::<Job>())?,
            statuses: gpu.pinned(jobs * 4)?,
            sent: gpu.pinned(size_of::<Sent>())?,
        })
    }

    /// Runs the kernel once.
    fn round(&self, arguments: Sending, jobs: &[Job], patience: Duration) -> Result<Outcome> {
        let mut statuses = vec![0u32; jobs.len()];
        self.jobs.write(0, bytemuck::cast_slice(jobs))?;
        self.statuses.write(0, bytemuck::cast_slice(&statuses))?;
        let (watchdog, stream) = (self.gpu.watchdog(patience)?, self.gpu.stream()?);
        let arguments = Sending {
            watchdog: watchdog.handle(),
            jobs: self.jobs.addr(),
            statuses: self.statuses.addr(),
            outcome: self.sent.addr(),
            ..arguments
        };
        let kernel = self.module.kernel("send_by_thread")?;
        // SAFETY: `send_by_thread` takes a `Sending`. The addresses are those of pinned memory with the sizes that the
        // kernel expects, and of rings that only this kernel uses. All of it lives until the kernel has ended: below,
        // the process exits if it has not.
        let running = unsafe { kernel.launch(&stream, Shape::new(1, 1), (arguments,)) }?;
        let outcome = running.wait_watched(&watchdog);
        if !running.is_done() {
            // The kernel may still access the memory and the rings, so none of it can be freed. The only way out is to
            // exit.
            eprintln!("efa: {:#}", anyhow!(outcome.unwrap_err()));
            std::process::exit(1);
        }
        outcome?;
        let mut sent = Sent::default();
        self.statuses.read(0, bytemuck::cast_slice_mut(&mut statuses))?;
        self.sent.read(0, bytemuck::bytes_of_mut(&mut sent))?;
        Ok(Outcome { statuses, sent })
    }
}
