use efa_direct::cuda::Mapped;
use efa_direct::*;

fn copy(mapped: Mapped<GpuRecvQueue>) {
    let copy = mapped.clone();
    drop((mapped, copy));
}

fn main() {}
