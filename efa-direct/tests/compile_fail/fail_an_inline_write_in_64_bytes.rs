use efa_direct::*;

fn post(narrow: &mut CpuSendQueue<8>, peer: &Peer, remote: RemoteSlice) {
    let _ = narrow.post(peer, RdmaWriteInline::new(b"no room", remote), 1);
}

fn main() {}
