use efa_direct::*;

fn send(send: SendQueue<8>) {
    let cpu = send.into_cpu();
    let gpu = send.into_gpu();
    drop((cpu, gpu));
}

fn send_twice(send: SendQueue<8>) {
    let one = send.into_cpu();
    let two = send.into_cpu();
    drop((one, two));
}

fn copy(send: CpuSendQueue<8>) {
    let copy = send.clone();
    drop((send, copy));
}

fn receive(recv: RecvQueue) {
    let cpu = recv.into_cpu();
    let gpu = recv.into_gpu();
    drop((cpu, gpu));
}

fn complete(cq: CompletionQueue) {
    let cpu = cq.into_cpu();
    let gpu = cq.into_gpu().unwrap();
    drop((cpu, gpu));
}

fn main() {}
