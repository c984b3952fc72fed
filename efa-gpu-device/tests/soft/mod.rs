//! Two queue pairs on software devices, whose queues are kernels', and what tests do with them.

#![allow(dead_code, reason = "not every test needs everything")]

use efa_direct::{
    CqConfig, Device, GpuCompletionQueue, GpuRecvQueue, GpuSendQueue, Peer, ProtectionDomain, QpConfig, QpControl,
    Region,
};
use efa_gpu_device::{Deadline, Entry, warp};
use efa_io::{Destination, Event, Lkey, LocalBuf, OpCode, RemoteBuf, SendWqe, Status, Wqe};

/// A queue pair whose queues are a kernel's, with completion queues for each.
pub(crate) struct Side<const W: usize>
where
    Wqe<W>: SendWqe,
{
    pub(crate) pd: ProtectionDomain,
    pub(crate) send: GpuSendQueue<W>,
    pub(crate) recv: GpuRecvQueue,
    pub(crate) sent: GpuCompletionQueue,
    pub(crate) received: GpuCompletionQueue,
    _control: QpControl,
    pub(crate) endpoint: efa_direct::Endpoint,
}

pub(crate) fn side<const W: usize>(device: &str, config: QpConfig<W>, cqs: CqConfig) -> Side<W>
where
    Wqe<W>: SendWqe,
{
    let device = Device::open(device).unwrap();
    let pd = device.alloc_pd().unwrap();
    let [sent, received] = [cqs, cqs].map(|cq| device.create_cq(cq).unwrap());
    let qp = pd.create_qp(&sent, &received, config).unwrap().activate(5).unwrap();
    let [sent, received] = [sent, received].map(|cq| cq.into_gpu().unwrap());
    let (send, recv) = (qp.send.into_gpu(), qp.recv.into_gpu());
    Side { pd, send, recv, sent, received, _control: qp.control, endpoint: qp.endpoint }
}

/// Two queue pairs on two devices, which know each other.
pub(crate) struct Pair<const W: usize>
where
    Wqe<W>: SendWqe,
{
    pub(crate) sides: [Side<W>; 2],
    pub(crate) peers: [Peer; 2],
}

impl<const W: usize> Pair<W>
where
    Wqe<W>: SendWqe,
{
    pub(crate) fn new(first: u32, config: QpConfig<W>) -> Self {
        Self::with_cqs(first, config, CqConfig::new(256))
    }

    pub(crate) fn with_cqs(first: u32, config: QpConfig<W>, cqs: CqConfig) -> Self {
        let sides = [first, first + 1].map(|i| side(&format!("soft{i}"), config, cqs));
        let peers = [0, 1].map(|i| sides[i].pd.peer(&sides[1 - i].endpoint).unwrap());
        Self { sides, peers }
    }

    /// Where side 0 sends to.
    pub(crate) fn to(&self) -> Destination {
        let endpoint = &self.sides[1].endpoint;
        Destination { ah: self.peers[0].ah(), qpn: endpoint.qpn, qkey: endpoint.qkey }
    }
}

pub(crate) const WORDS: u64 = 500;

pub(crate) fn words() -> Vec<u8> {
    (0..WORDS).flat_map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

pub(crate) fn local(region: &Region<'_>, word: u64, length: u32) -> LocalBuf {
    LocalBuf { addr: region.addr() + 8 * word, lkey: Lkey::new(region.keys().lkey).unwrap(), length }
}

pub(crate) fn remote(region: &Region<'_>, word: u64) -> RemoteBuf {
    RemoteBuf { addr: region.addr() + 8 * word, rkey: region.keys().rkey }
}

/// A time that nothing here takes.
pub(crate) fn soon() -> Deadline {
    Deadline::after(30_000_000_000)
}

pub(crate) fn ballot(vote: bool) -> u32 {
    // SAFETY: the executor says if not all lanes come.
    unsafe { warp::warp_vote_ballot(warp::ALL, vote) }
}

pub(crate) fn sent(entry: &Entry, op: OpCode) -> u64 {
    assert_eq!(entry.status(), Status::Ok);
    let completion = entry.completion().unwrap();
    assert_eq!(completion.event, Event::Send { op });
    completion.req_id
}
