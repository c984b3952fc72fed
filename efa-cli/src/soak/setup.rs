//! The objects of a node: its device, queue pairs and memory, and the other node's addresses.

use crate::node::qkey;
use anyhow::{Context, Result};
use efa_direct::*;
use efa_io::{SendWqe, Wqe};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The number of reliable queue pairs, which have the first indices.
pub(super) const RELIABLE: usize = 3;
/// The index of the queue pair with 128-byte WQEs, at which writes with immediate consume no receive.
pub(super) const WIDE: usize = 1;
/// The index of the queue pair with completion counters.
pub(super) const COUNTED: usize = 2;
/// The index of the queue pair for unreliable datagrams.
pub(super) const UNRELIABLE: usize = 3;

/// The number of sends that each queue pair may have outstanding.
const SENDS: u32 = 128;
/// The number of receives that each queue pair has posted.
const RECEIVES: u32 = 64;
/// The number of entries of a completion queue: enough for all sends and receives there, and for a write with immediate
/// into every slot.
const COMPLETIONS: u32 = 1024;
/// The number of buffers for sends.
pub(super) const LETTERS: u16 = 192;

/// The number of slots of the memory that the other node writes and reads. The small slots come first, then the large
/// ones.
pub(super) const SLOTS: u8 = 255;
const SMALL_SLOTS: u8 = 240;
pub(super) const SMALL: usize = 8 << 10;
pub(super) const LARGE: usize = 1 << 20;

/// Returns `true` if a slot is a large one.
pub(super) fn is_large(slot: u8) -> bool {
    slot >= SMALL_SLOTS
}

/// Returns the offset and the length of a slot, in bytes.
pub(super) fn place(slot: u8) -> (u64, usize) {
    let small = u64::from(slot.min(SMALL_SLOTS)) * SMALL as u64;
    match slot.checked_sub(SMALL_SLOTS) {
        None => (small, SMALL),
        Some(large) => (small + u64::from(large) * LARGE as u64, LARGE),
    }
}

/// The addresses of a node, for the other node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    gid: String,
    /// The numbers and queue keys of the queue pairs.
    qps: Vec<(u16, u32)>,
    /// The address, the remote key and the length of the board.
    board: (u64, u32, u64),
}

/// A send queue of either WQE size.
pub(super) enum SendRing {
    Narrow(CpuSendQueue<8>),
    Wide(CpuSendQueue<16>),
}

/// Calls a method that both kinds of send queues have.
macro_rules! either {
    ($ring:expr, $sq:ident => $call:expr) => {
        match $ring {
            SendRing::Narrow($sq) => $call,
            SendRing::Wide($sq) => $call,
        }
    };
}

/// A queue pair.
pub(super) struct Qp {
    pub(super) endpoint: Endpoint,
    pub(super) sq: SendRing,
    pub(super) rq: CpuRecvQueue,
}

impl Qp {
    fn new<const W: usize>(qp: ActiveQueuePair<W>, ring: impl FnOnce(CpuSendQueue<W>) -> SendRing) -> Self
    where
        Wqe<W>: SendWqe,
    {
        Self { endpoint: qp.endpoint, sq: ring(qp.send.into_cpu()), rq: qp.recv.into_cpu() }
    }

    pub(super) fn room(&self) -> bool {
        either!(&self.sq, sq => sq.room() > 0)
    }

    pub(super) fn outstanding(&self) -> u32 {
        either!(&self.sq, sq => sq.outstanding())
    }

    /// Returns the maximum length of an inline message in bytes.
    pub(super) fn inline_bytes(&self, attributes: &DeviceAttributes) -> usize {
        match self.sq {
            SendRing::Narrow(_) => attributes.inline_bytes.into(),
            SendRing::Wide(_) => attributes.inline_bytes_ex.into(),
        }
    }

    pub(super) fn post(
        &mut self,
        peer: &Peer,
        request: impl Request<8> + Request<16>,
        id: u64,
    ) -> Result<(), PostError> {
        either!(&mut self.sq, sq => sq.post(peer, request, id))
    }

    /// Rings the doorbells for everything that was posted.
    pub(super) fn ring(&mut self) {
        either!(&mut self.sq, sq => sq.ring());
        self.rq.ring();
    }
}

/// A completion counter, and the value that it should have.
pub(super) struct Tally {
    pub(super) counter: CompletionCounter,
    pub(super) kind: CounterOps,
    pub(super) expected: u64,
}

impl Tally {
    /// Returns the difference between the counter and its expected value.
    pub(super) fn ahead(&self) -> u64 {
        self.counter.completions_since(self.expected & COUNTER_MAX)
    }
}

/// All objects of a node.
pub(super) struct Objects {
    pub(super) device: Device,
    pub(super) cqs: [CpuCompletionQueue; 2],
    pub(super) qps: Vec<Qp>,
    /// The counters of queue pair [`COUNTED`].
    pub(super) tallies: Vec<Tally>,
    /// The source of sends, in pieces of one MTU.
    pub(super) letters: Region<'static>,
    /// The source of writes, by slot.
    pub(super) stage: Region<'static>,
    /// The memory that the other node writes and reads, by slot.
    pub(super) board: Region<'static>,
    /// The target of reads, by slot.
    pub(super) shelf: Region<'static>,
    /// The buffers of receives, in pieces of `piece` bytes.
    tray: Region<'static>,
    piece: u64,
    pd: Arc<ProtectionDomain>,
}

impl Objects {
    pub(super) fn new(node: usize, seed: u64) -> Result<Self> {
        // The two devices have request ids of different sizes.
        let ids = ["off", "on"][node % 2];
        let device =
            Device::open(&format!("soft:udp=127.0.0.1:0,seed={},reqid64={ids}", seed.wrapping_add(node as u64)))?;
        let pd = Arc::new(device.alloc_pd()?);
        let cq = || device.create_cq(CqConfig::new(COMPLETIONS).events());
        let cqs = [cq()?, cq()?];
        let narrow = QpConfig::new(SENDS, RECEIVES).recv_bufs(2);
        let qkey = |q: u64| qkey(seed.wrapping_add(4 * node as u64 + q));
        // Each queue pair has a different combination of completion queues.
        let plain = pd.create_qp(&cqs[0], &cqs[0], narrow)?.activate(qkey(0))?;
        let wide = pd.create_qp(&cqs[0], &cqs[1], narrow.wqe_128().unsolicited_write_recv())?.activate(qkey(1))?;
        let counted = pd.create_qp(&cqs[1], &cqs[0], narrow)?;
        let tallies = [
            CounterOps::SEND,
            CounterOps::RECV,
            CounterOps::RDMA_READ,
            CounterOps::RDMA_WRITE,
            CounterOps::REMOTE_RDMA_READ,
            CounterOps::REMOTE_RDMA_WRITE,
        ]
        .into_iter()
        .map(|kind| {
            let counter = device.create_counter()?;
            counted.attach_counter(&counter, kind)?;
            Ok(Tally { counter, kind, expected: 0 })
        })
        .collect::<Result<_>>()?;
        let counted = counted.activate(qkey(2))?;
        let unreliable = pd.create_qp(&cqs[1], &cqs[1], narrow.unreliable())?.activate(qkey(3))?;
        let qps = vec![
            Qp::new(plain, SendRing::Narrow),
            Qp::new(wide, SendRing::Wide),
            Qp::new(counted, SendRing::Narrow),
            Qp::new(unreliable, SendRing::Narrow),
        ];
        let region = |len: u64, access| -> Result<Region<'static>> {
            let region = pd.allocate_shared(len as usize, access)?;
            // Every page is touched now, so that none looks like growth later.
            for page in (0..len).step_by(4096) {
                region.write(page, &[0xff])?;
            }
            Ok(region)
        };
        let mtu = u64::from(device.attributes().mtu);
        let piece = mtu + u64::from(UD_PREFIX);
        let (start, len) = place(SLOTS - 1);
        let slots = start + len as u64;
        let mut objects = Self {
            cqs: cqs.map(CompletionQueue::into_cpu),
            qps,
            tallies,
            letters: region(mtu * u64::from(LETTERS), Access::LOCAL_READ)?,
            stage: region(slots, Access::LOCAL_READ)?,
            board: region(slots, Access::REMOTE_READ | Access::REMOTE_WRITE)?,
            shelf: region(slots, Access::LOCAL_WRITE)?,
            tray: region(piece * u64::from(RECEIVES) * 4, Access::LOCAL_WRITE)?,
            piece,
            device,
            pd,
        };
        for q in 0..objects.qps.len() {
            (0..u64::from(RECEIVES)).try_for_each(|receive| objects.post_receive(q, receive, 0))?;
            objects.qps[q].ring();
        }
        Ok(objects)
    }

    /// Returns the addresses for the other node.
    pub(super) fn hello(&self) -> Hello {
        let qps: Vec<Endpoint> = self.qps.iter().map(|qp| qp.endpoint).collect();
        let board = self.board.remote();
        Hello {
            gid: qps[0].gid.to_string(),
            qps: qps.iter().map(|endpoint| (endpoint.qpn, endpoint.qkey)).collect(),
            board: (board.addr, board.rkey, board.len),
        }
    }

    /// Creates peers for the other node's queue pairs. Returns them with the other node's board.
    pub(super) fn meet(&self, hello: &Hello) -> Result<(Vec<(Peer, u16)>, RemoteRegion)> {
        let gid = hello.gid.parse().with_context(|| format!("the GID {:?}", hello.gid))?;
        let peer = |&(qpn, qkey): &(u16, u32)| Ok((self.pd.peer(&Endpoint { gid, qpn, qkey })?, qpn));
        let (addr, rkey, len) = hello.board;
        Ok((hello.qps.iter().map(peer).collect::<Result<_>>()?, RemoteRegion { addr, rkey, len }))
    }

    fn piece(&self, q: usize, receive: u64) -> u64 {
        (q as u64 * u64::from(RECEIVES) + receive) * self.piece
    }

    /// Posts a receive with two buffers to queue pair `q`. The first buffer has `cut` bytes.
    pub(super) fn post_receive(&mut self, q: usize, receive: u64, cut: u32) -> Result<()> {
        let start = self.piece(q, receive);
        let (head, tail) = self.tray.slice(start..start + self.piece)?.split_at(cut);
        Ok(self.qps[q].rq.post(&[head, tail], receive)?)
    }

    /// Copies the bytes of a receive to `into`.
    pub(super) fn read_receive(&self, q: usize, receive: u64, into: &mut [u8]) -> Result<()> {
        Ok(self.tray.read(self.piece(q, receive), into)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_each_other() {
        for slot in 1..SLOTS {
            let ((before, len), (start, _)) = (place(slot - 1), place(slot));
            assert_eq!(before + len as u64, start);
            assert_eq!(is_large(slot), place(slot).1 == LARGE);
        }
    }
}
