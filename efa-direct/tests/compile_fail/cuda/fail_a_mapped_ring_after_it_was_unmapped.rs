use efa_direct::cuda::{Gpu, Mapped};
use efa_direct::*;

fn unmapped(mapped: Mapped<GpuSendQueue<8>>) {
    let queue = mapped.unmap();
    let handle = mapped.handle();
    drop((queue, handle));
}

fn mapped(gpu: &Gpu, recv: GpuRecvQueue) {
    let mapped = gpu.map(recv).unwrap();
    drop((recv, mapped));
}

fn mapped_twice(one: &Gpu, other: &Gpu, send: GpuSendQueue<16>) {
    let mapped = (one.map(send).unwrap(), other.map(send).unwrap());
    drop(mapped);
}

fn main() {}
