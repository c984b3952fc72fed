//! What the others misuse, used rightly: so that they fail for their own reason and no other. Without a GPU it stops at
//! the first line.

use efa_direct::cuda::{CqPlace, Gpu, Shape};
use efa_direct::*;
use std::time::Duration;

fn run(gpu: &Gpu, ptx: &[(u32, &str)]) -> Result<(), Error> {
    let device = Device::open("soft0")?;
    let pd = device.alloc_pd()?;
    let cq = device.create_cq_on(gpu, CqConfig::new(64), CqPlace::PinnedHost)?;
    let qp = pd.create_qp(&cq, &cq, QpConfig::new(16, 16))?.activate(1)?;
    let (send, recv) = (gpu.map(qp.send.into_gpu())?, gpu.map(qp.recv.into_gpu())?);
    let memory = gpu.allocate(4096)?;
    let region = pd.register_gpu(&memory, .., Access::ALL)?;
    let (kernel, stream) = (gpu.load(ptx)?.kernel("post")?, gpu.stream()?);
    let watchdog = gpu.watchdog(Duration::from_secs(2))?;
    let args = (send.handle(), recv.handle(), cq.handle(), memory.addr(), region.keys().lkey, watchdog.handle());
    // SAFETY: it is never run.
    let running = unsafe { kernel.launch(&stream, Shape::new(1, 32), args) }?;
    running.wait_watched(&watchdog)?;
    // SAFETY: the kernel is over, and posted nothing.
    let idle = unsafe { send.unmap().into_idle(0, 0) }?;
    drop(idle.into_cpu());
    Ok(())
}

fn main() {
    if let Ok(gpu) = Gpu::open(0) {
        // Loading nothing fails in front of the launch.
        let _ = run(&gpu, &[]);
    }
}
