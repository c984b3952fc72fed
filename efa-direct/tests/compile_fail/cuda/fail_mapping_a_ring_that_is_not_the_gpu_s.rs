use efa_direct::cuda::Gpu;
use efa_direct::*;

fn idle(gpu: &Gpu, send: SendQueue<8>) {
    let _ = gpu.map(send);
}

fn cpu(gpu: &Gpu, cq: CpuCompletionQueue) {
    let _ = gpu.map(cq);
}

fn main() {}
