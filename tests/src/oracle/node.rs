//! A node: a device with objects of every kind, and the expected content of its memory.

use super::sizes::{MTU, QPS, RECEIVES, SLOT, SLOTS, SQ};
use efa_direct::sim::Sim;
use efa_direct::*;
use efa_io::{SendWqe, Wqe};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// The size of a receive in bytes.
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

/// An active queue pair with its counter.
pub(super) struct Qp {
    pub(super) sq: SendQ,
    pub(super) rq: CpuRecvQueue,
    pub(super) endpoint: Endpoint,
    pub(super) control: QpControl,
    /// The numbers of receives that are not posted.
    pub(super) idle: Vec<u64>,
    /// `true` if it is in the error state. It is replaced when nothing is outstanding.
    pub(super) failed: bool,
    /// The device's counter of its completions. `good` and `bad` are the polled ones.
    pub(super) counter: CompletionCounter,
    pub(super) good: u64,
    pub(super) bad: u64,
}

/// The slots of a region, and the free ones among them.
pub(super) struct Slots {
    pub(super) region: Region<'static>,
    pub(super) free: Vec<usize>,
    /// The expected content of the region, unless it is not known.
    pub(super) expected: Vec<u8>,
}

impl Slots {
    fn new(pd: &Arc<ProtectionDomain>, access: Access, with_expected: bool) -> Self {
        let region = pd.allocate_shared(SLOTS * SLOT, access).unwrap();
        let expected = vec![0; if with_expected { SLOTS * SLOT } else { 0 }];
        Self { region, free: (0..SLOTS).collect(), expected }
    }

    /// Takes the current bytes of a slot as the expected ones, after an operation with an open result.
    pub(super) fn accept_content(&mut self, slot: usize) {
        if !self.expected.is_empty() {
            let at = slot * SLOT;
            self.region.read(at as u64, &mut self.expected[at..at + SLOT]).unwrap();
        }
    }
}

/// Selects one of a node's regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// The source of sends and writes.
    Stage,
    /// The region that peers write and read.
    Board,
    /// The target of reads.
    Shelf,
}

/// A node of the simulation.
pub(super) struct SimNode {
    pub(super) device: Device,
    pub(super) pd: Arc<ProtectionDomain>,
    pub(super) cq: CpuCompletionQueue,
    pub(super) qps: [Qp; QPS],
    /// The peers by node and queue pair.
    pub(super) peers: HashMap<(usize, usize), Peer>,
    pub(super) stage: Slots,
    pub(super) board: Slots,
    pub(super) shelf: Slots,
    tray: Region<'static>,
    /// The number of the node's previous lives.
    pub(super) life: u64,
    pub(super) born_at: Duration,
    /// The numbers that its queue pairs have had.
    numbers: HashSet<u16>,
    /// How often a queue pair got a number again.
    pub(super) numbers_again: u64,
}

impl SimNode {
    /// Creates node `n` in this life. With `few_numbers`, queue pair numbers are soon reused.
    pub(super) fn new(sim: &mut Sim, n: usize, life: u64, few_numbers: bool) -> Self {
        // The devices differ: 16- and 64-bit request ids, one and several sub-queues, one and several paths.
        let device = sim.device(&format!("node {n}"), |config| {
            config.attributes.mtu = MTU as u32;
            config.seed = n as u64;
            config.req_id_64 = n == 1;
            config.sub_cqs = [1, 1, 3][n];
            config.paths = [4, 1, 2][n];
            if few_numbers {
                config.attributes.max_qp = 1 << 14; // leaves two bits to distinguish queue pairs of one index
            }
        });
        let device = device.unwrap();
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
        // The number of completions is not known if some were unpolled.
        if old.failed {
            old.check_counter();
        }
    }

    /// Calls `f` with the device itself.
    pub(super) fn with_soft(&self, f: impl Fn(&mut efa_soft::Device)) {
        self.device.soft_device().unwrap().with(&mut |device| f(device));
    }

    pub(super) fn slots(&mut self, room: Room) -> &mut Slots {
        match room {
            Room::Stage => &mut self.stage,
            Room::Board => &mut self.board,
            Room::Shelf => &mut self.shelf,
        }
    }

    /// Posts all receives that are not posted.
    pub(super) fn post_receives(&mut self, rng: &mut fastrand::Rng) {
        for qp in self.qps.iter_mut().filter(|qp| !qp.failed) {
            while let Some(slot) = qp.idle.pop() {
                // Three buffers, some of which may be empty, hold a message together.
                let base = slot * TRAY as u64;
                let mut cuts = [0, rng.u64(..=TRAY as u64), rng.u64(..=TRAY as u64), TRAY as u64];
                cuts.sort_unstable();
                let buf = |i: usize| self.tray.slice(base + cuts[i]..base + cuts[i + 1]).unwrap();
                qp.rq.post(&[buf(0), buf(1), buf(2)], slot).unwrap();
            }
            qp.rq.ring();
        }
    }

    /// Reads the bytes that receive `slot` got.
    pub(super) fn received(&self, slot: u64, len: usize, into: &mut Vec<u8>) {
        into.resize(len, 0);
        self.tray.read(slot * TRAY as u64, into).unwrap();
    }

    /// Checks the whole board and shelf, and all counters.
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

    /// Counts a polled completion.
    pub(super) fn count(&mut self, ok: bool) {
        if ok {
            self.good += 1;
        } else {
            self.bad += 1;
        }
    }

    /// Returns `true` if nothing is outstanding.
    pub(super) fn is_drained(&self) -> bool {
        let sends = match &self.sq {
            SendQ::Narrow(sq) => sq.outstanding(),
            SendQ::Wide(sq) => sq.outstanding(),
        };
        sends == 0 && self.rq.outstanding() == 0
    }

    fn check_counter(&self) {
        // Completions of receives may be unpolled.
        assert!(self.counter.completions() >= self.good && self.counter.errors() >= self.bad, "{:?}", self.counter);
        if self.is_drained() {
            assert_eq!((self.counter.completions(), self.counter.errors()), (self.good, self.bad));
        }
    }
}
