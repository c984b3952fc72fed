//! A node: a device with every kind of object, and what its memory must hold.

use super::sizes::{MTU, QPS, RECEIVES, SLOT, SLOTS, SQ};
use crate::Sim;
use efa_direct::*;
use efa_io::{SendWqe, Wqe};
use efa_soft::Time;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Bytes of a receive.
const TRAY: usize = MTU + UD_PREFIX as usize;

/// A send queue of either size.
pub(super) enum SendQ {
    Narrow(CpuSendQueue<8>),
    Wide(CpuSendQueue<16>),
}

impl SendQ {
    pub(super) fn ring(&mut self) {
        match self {
            Self::Narrow(sq) => sq.ring(),
            Self::Wide(sq) => sq.ring(),
        }
    }
}

pub(super) struct Qp {
    pub(super) sq: SendQ,
    pub(super) rq: CpuRecvQueue,
    pub(super) endpoint: Endpoint,
    pub(super) control: QpControl,
    /// Receives that are not posted, by number.
    pub(super) idle: Vec<u64>,
    /// It is in the error state, to be replaced once nothing of it is outstanding.
    pub(super) failed: bool,
    /// Its completions, and what they come to.
    pub(super) counter: CompletionCounter,
    pub(super) good: u64,
    pub(super) bad: u64,
}

/// The slots of a region, and which of them are not in use.
pub(super) struct Slots {
    pub(super) region: Region<'static>,
    pub(super) free: Vec<usize>,
    /// What the region must hold, where that is known.
    pub(super) expected: Vec<u8>,
}

impl Slots {
    fn new(pd: &Arc<ProtectionDomain>, access: Access, with_expected: bool) -> Self {
        let region = pd.allocate_shared(SLOTS * SLOT, access).unwrap();
        let expected = vec![0; if with_expected { SLOTS * SLOT } else { 0 }];
        Self { region, free: (0..SLOTS).collect(), expected }
    }

    /// A slot whose bytes became anything they like: from here on they are what they are.
    pub(super) fn accept_content(&mut self, slot: usize) {
        if !self.expected.is_empty() {
            let at = slot * SLOT;
            self.region.read(at as u64, &mut self.expected[at..at + SLOT]).unwrap();
        }
    }
}

/// Which of a node's regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Bytes to send and write from.
    Stage,
    /// Peers write and read it.
    Board,
    /// Reads land there.
    Shelf,
}

pub(super) struct SimNode {
    pub(super) device: Device,
    pub(super) pd: Arc<ProtectionDomain>,
    pub(super) cq: CpuCompletionQueue,
    pub(super) qps: [Qp; QPS],
    /// By node and queue pair.
    pub(super) peers: HashMap<(usize, usize), Peer>,
    pub(super) stage: Slots,
    pub(super) board: Slots,
    pub(super) shelf: Slots,
    tray: Region<'static>,
    /// How often the node was born before.
    pub(super) life: u64,
    pub(super) born_at: Time,
    /// Numbers that queue pairs had, and how often one came again.
    numbers: HashSet<u16>,
    pub(super) numbers_again: u64,
}

impl SimNode {
    /// SimNode number `n`, in its life number `life`. With few numbers, those of its queue pairs come round after some lives.
    pub(super) fn new(sim: &Sim, n: usize, life: u64, few_numbers: bool) -> Self {
        // Every kind of device meets every other: 16- and 64-bit request ids, one and several sub-queues, one and several paths.
        let device = sim.add(n as u32, |config| {
            config.attributes.mtu = MTU as u32;
            config.incarnation = life + 1;
            config.req_id_64 = n == 1;
            config.sub_cqs = [1, 1, 3][n];
            config.paths = [4, 1, 2][n];
            if few_numbers {
                config.attributes.max_qp = 1 << 14; // which leaves two bits to tell lives apart by
            }
        });
        let pd = Arc::new(device.alloc_pd().unwrap());
        let cq = device.create_cq(CqConfig::new(4096)).unwrap().into_cpu();
        let qps = std::array::from_fn(|q| Qp::new(&device, &pd, &cq, q));
        Self {
            numbers: qps.iter().map(|qp| qp.endpoint.qpn).collect(),
            numbers_again: 0,
            qps,
            cq,
            peers: HashMap::new(),
            stage: Slots::new(&pd, Access::LOCAL_READ, false),
            board: Slots::new(&pd, Access::REMOTE_READ | Access::REMOTE_WRITE, true),
            shelf: Slots::new(&pd, Access::LOCAL_WRITE, true),
            tray: pd.allocate_shared(QPS * RECEIVES * TRAY, Access::LOCAL_WRITE).unwrap(),
            device,
            pd,
            life,
            born_at: sim.now(),
        }
    }

    /// Puts a new queue pair in the place of another.
    pub(super) fn replace_qp(&mut self, q: usize) {
        let (device, pd, cq) = (&self.device, &self.pd, &self.cq);
        let new = Qp::new(device, pd, cq, q);
        self.numbers_again += u64::from(!self.numbers.insert(new.endpoint.qpn));
        let old = std::mem::replace(&mut self.qps[q], new);
        // Of one that goes with completions unpolled, nobody knows how many there were.
        if old.failed {
            old.check_counter();
        }
    }

    /// Calls `f` with the device itself.
    pub(super) fn with_soft(&self, f: impl Fn(&mut efa_soft::Device)) {
        self.device.soft_port().unwrap().with(&mut |device| f(device));
    }

    pub(super) fn slots(&mut self, room: Room) -> &mut Slots {
        match room {
            Room::Stage => &mut self.stage,
            Room::Board => &mut self.board,
            Room::Shelf => &mut self.shelf,
        }
    }

    /// Posts what receives are not posted.
    pub(super) fn post_receives(&mut self, rng: &mut fastrand::Rng) {
        for qp in self.qps.iter_mut().filter(|qp| !qp.failed) {
            while let Some(slot) = qp.idle.pop() {
                // One to three buffers that hold a message together.
                let base = slot * TRAY as u64;
                let mut cuts = [0, rng.u64(..=TRAY as u64), rng.u64(..=TRAY as u64), TRAY as u64];
                cuts.sort_unstable();
                let buf = |i: usize| self.tray.slice(base + cuts[i]..base + cuts[i + 1]).unwrap();
                qp.rq.post(&[buf(0), buf(1), buf(2)], slot).unwrap();
            }
            qp.rq.ring();
        }
    }

    /// The bytes that receive number `slot` got.
    pub(super) fn received(&self, slot: u64, len: usize, into: &mut Vec<u8>) {
        into.resize(len, 0);
        self.tray.read(slot * TRAY as u64, into).unwrap();
    }

    /// Everything is where it must be, and nothing elsewhere.
    pub(super) fn check(&self, n: usize) {
        for (name, slots) in [("board", &self.board), ("shelf", &self.shelf)] {
            assert!(slots.region.read_vec(..).unwrap() == slots.expected, "{name} of node {n}");
        }
        self.qps.iter().for_each(Qp::check_counter);
    }
}

impl Qp {
    fn new(device: &Device, pd: &ProtectionDomain, cq: &CpuCompletionQueue, q: usize) -> Self {
        let config = QpConfig::new(SQ, RECEIVES as u32).recv_bufs(3);
        let counter = device.create_counter().unwrap();
        let (sq, rq, endpoint, control) = match q {
            0 => {
                let (sq, rq, endpoint, control) = Self::activate(pd, cq, config, &counter, q);
                (SendQ::Narrow(sq), rq, endpoint, control)
            }
            1 => {
                let (sq, rq, endpoint, control) =
                    Self::activate(pd, cq, config.wqe_128().unsolicited_write_recv(), &counter, q);
                (SendQ::Wide(sq), rq, endpoint, control)
            }
            _ => {
                let (sq, rq, endpoint, control) = Self::activate(pd, cq, config.unreliable(), &counter, q);
                (SendQ::Narrow(sq), rq, endpoint, control)
            }
        };
        let idle = (0..RECEIVES).map(|i| (q * RECEIVES + i) as u64).collect();
        Self { sq, rq, endpoint, control, idle, failed: false, counter, good: 0, bad: 0 }
    }

    fn activate<const W: usize>(
        pd: &ProtectionDomain,
        cq: &CpuCompletionQueue,
        config: QpConfig<W>,
        counter: &CompletionCounter,
        q: usize,
    ) -> (CpuSendQueue<W>, CpuRecvQueue, Endpoint, QpControl)
    where
        Wqe<W>: SendWqe,
    {
        let qp = pd.create_qp(cq, cq, config).unwrap();
        let local = CounterOps::SEND | CounterOps::RECV | CounterOps::RDMA_READ | CounterOps::RDMA_WRITE;
        qp.attach_counter(counter, local).unwrap();
        let qp = qp.activate(0x1000 + q as u32).unwrap();
        (qp.send.into_cpu(), qp.recv.into_cpu(), qp.endpoint, qp.control)
    }

    /// Notes a completion.
    pub(super) fn count(&mut self, ok: bool) {
        if ok {
            self.good += 1;
        } else {
            self.bad += 1;
        }
    }

    /// Nothing of it is outstanding.
    pub(super) fn is_drained(&self) -> bool {
        let sends = match &self.sq {
            SendQ::Narrow(sq) => sq.outstanding(),
            SendQ::Wide(sq) => sq.outstanding(),
        };
        sends == 0 && self.rq.outstanding() == 0
    }

    fn check_counter(&self) {
        // Receives may have been flushed or filled that nobody has polled.
        assert!(self.counter.completions() >= self.good && self.counter.errors() >= self.bad, "{:?}", self.counter);
        if self.is_drained() {
            assert_eq!((self.counter.completions(), self.counter.errors()), (self.good, self.bad));
        }
    }
}
