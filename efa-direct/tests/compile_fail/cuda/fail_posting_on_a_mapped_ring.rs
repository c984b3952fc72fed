use efa_direct::cuda::Gpu;
use efa_direct::*;

fn post(gpu: &Gpu, send: SendQueue<8>, recv: RecvQueue, cq: CompletionQueue, peer: &Peer, slice: LocalSlice<'_>) {
    let send = send.into_gpu();
    let mut mapped = gpu.map(send).unwrap();
    mapped.post(peer, Send::new(&[slice]), 1);
    mapped.queue().post(peer, Send::new(&[slice]), 1);
    mapped.into_idle(0, 0);

    let mut recv = gpu.map(recv.into_gpu()).unwrap();
    recv.post(&[slice], 2);

    let mut cq = gpu.map(cq.into_gpu().unwrap()).unwrap();
    cq.poll_one();
}

fn main() {}
