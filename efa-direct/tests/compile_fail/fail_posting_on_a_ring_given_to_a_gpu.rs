use efa_direct::*;

fn post(send: SendQueue<8>, recv: RecvQueue, cq: CompletionQueue, peer: &Peer, slice: LocalSlice<'_>) {
    let mut send = send.into_gpu();
    send.post(peer, Send::new(&[slice]), 1);
    send.ring();

    let mut recv = recv.into_gpu();
    recv.post(&[slice], 2);

    let mut cq = cq.into_gpu().unwrap();
    cq.poll_one();
}

fn main() {}
