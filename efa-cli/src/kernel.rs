//! Writes that a kernel posts: on a GPU if there is one, in the executor otherwise.

use anyhow::{Context, Result, anyhow, ensure};
use efa_direct::cuda::{Gpu, Module, PinnedMemory, Shape};
use efa_direct::{Error, GpuCompletionQueue, GpuSendQueue};
use efa_gpu_device::simt::Executor;
use efa_gpu_device::{TimeoutReport, WatchdogHandle};
use efa_gpu_kernels::traffic::{Job, Sending, Sent, send_by_thread};
use efa_io::{CompletionRingHandle, Destination, SendRingHandle};
use std::time::Duration;

/// Jobs of a launch, at most. Each launch has the time of one completion.
const MAX_JOBS: usize = 1 << 10;

/// Whoever runs kernels here.
pub(crate) enum Launcher {
    Gpu(Box<(Gpu, Module)>),
    /// None, and why.
    Executor(String),
}

/// What came of jobs.
pub(crate) struct Outcome {
    /// By job: 0 if it did not complete, else its status plus 1.
    pub(crate) statuses: Vec<u32>,
    /// How far the queues are.
    pub(crate) sent: Sent,
}

/// Queues that a kernel has.
pub(crate) struct Queues {
    pub(crate) send: GpuSendQueue<8>,
    pub(crate) cq: GpuCompletionQueue,
}

impl Launcher {
    /// A GPU with kernels for it, or the executor.
    pub(crate) fn find() -> Self {
        let gpu = || -> Result<(Gpu, Module)> {
            let gpu = Gpu::open(0)?;
            let module = gpu.load(&efa_gpu_kernels::ptx().map_err(|problem| anyhow!(problem))?)?;
            Ok((gpu, module))
        };
        gpu().map_or_else(|error| Self::Executor(format!("{error:#}")), |found| Self::Gpu(Box::new(found)))
    }

    /// Which it is.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Gpu(found) => format!("a kernel on the GPU, {}", found.0.info().name),
            Self::Executor(why) => format!("a kernel in the executor, on this processor: {why}"),
        }
    }

    /// Has a kernel post all jobs, `batch` to a doorbell, and take their completions.
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

/// Has `round` do the jobs, some at a time, until one fails.
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

/// What the kernel is arguments, but for jobs and addresses.
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

fn in_executor(arguments: Sending, jobs: &[Job], patience: Duration) -> Result<Outcome> {
    let (mut statuses, mut sent, mut waited) = (vec![0u32; jobs.len()], Sent::default(), [0u32; 4]);
    let arguments = Sending {
        watchdog: WatchdogHandle { report: waited.as_mut_ptr() as u64, timeout_ns: patience.as_nanos() as u64 },
        jobs: jobs.as_ptr() as u64,
        statuses: statuses.as_mut_ptr() as u64,
        outcome: &raw mut sent as u64,
        ..arguments
    };
    // SAFETY: the addresses are those of values that live on in this function, and of rings that were handed over to this kernel alone.
    let run = Executor::new(1).timeout(patience * 2).launch(1, 1, || unsafe { send_by_thread(arguments) }).run();
    run.context("the executor")?;
    let waited: TimeoutReport = bytemuck::cast(waited);
    ensure!(waited.what == TimeoutReport::NOTHING, "the kernel waited {patience:?} in vain for {waited}");
    Ok(Outcome { statuses, sent })
}

/// A kernel on a GPU, and memory for what it is arguments and says.
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
        // SAFETY: the kernel takes this; the addresses are those of memory that lives on until it is over, and of rings that were handed over to it alone.
        let running = unsafe { kernel.launch(&stream, Shape::new(1, 1), (arguments,)) }?;
        let outcome = running.wait_watched(&watchdog);
        if !running.is_done() {
            // It may still reach all of that: none of it can be taken back, and nothing be done but to end.
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
