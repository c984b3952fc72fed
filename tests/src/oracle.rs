//! Random operations between simulated nodes, and an oracle that knows what must come of them.
//!
//! Every node has a *stage* (bytes to send and write from), a *board* (peers write and read it), a *shelf* (reads land
//! there) and a *tray* (receives). Board and shelf are cut into slots. An operation has its slot to itself while it is under way,
//! since SRD orders nothing; when it completes, the slot must hold exactly what it should, on both sides of the bytes that
//! were meant, too. A message must arrive once: its number is in its immediate or in its first bytes.

use crate::Sim;
use efa_direct::*;
use efa_io::{SendWqe, Wqe};
use efa_soft::LinkConfig;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

const NODES: usize = 3;
const SLOTS: usize = 24;
const SLOT: usize = 40_000;
const RECEIVES: usize = 6;
const MTU: usize = 2048;
const SQ: u32 = 16;

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Seed of the operations, and of the network.
    pub seed: u64,
    /// Number of operations.
    pub operations: u64,
    /// Faults.
    pub link: LinkConfig,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Operations by kind: sends, writes, reads.
    pub sends: u64,
    /// RDMA writes.
    pub writes: u64,
    /// RDMA reads.
    pub reads: u64,
    /// Messages that arrived.
    pub arrivals: u64,
    /// Packets sent again.
    pub resent: u64,
    /// Packets that arrived twice.
    pub duplicates: u64,
    /// Times a receiver was not ready.
    pub not_ready: u64,
    /// Times a post found its ring full.
    pub full: u64,
}

enum SendQ {
    Narrow(CpuSendQueue<8>),
    Wide(CpuSendQueue<16>),
}

struct Qp {
    sq: SendQ,
    rq: CpuRecvQueue,
    endpoint: Endpoint,
    unsolicited: bool,
    /// Receive slots that are not posted.
    idle: Vec<u64>,
    _control: QpControl,
}

struct Node {
    device: Device,
    pd: Arc<ProtectionDomain>,
    cq: CpuCompletionQueue,
    qps: Vec<Qp>,
    peers: HashMap<(usize, usize), Peer>,
    stage: Region<'static>,
    board: Region<'static>,
    shelf: Region<'static>,
    tray: Region<'static>,
    /// What board and shelf must hold.
    board_truth: Vec<u8>,
    shelf_truth: Vec<u8>,
    board_free: Vec<usize>,
    shelf_free: Vec<usize>,
    stage_free: Vec<usize>,
}

/// An operation under way.
#[derive(Clone, Debug)]
struct Pending {
    from: usize,
    to: usize,
    stage: Option<usize>,
    board: Option<usize>,
    shelf: Option<usize>,
    /// Offset in the slot, and the bytes that belong there.
    offset: usize,
    data: Vec<u8>,
    kind: Kind,
    completed: bool,
    /// Arrivals to come: 1 for messages and writes with immediate.
    arrivals: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Send,
    Write,
    Read,
}

struct World {
    seed: u64,
    sim: Sim,
    rng: fastrand::Rng,
    nodes: Vec<Node>,
    pending: HashMap<u64, Pending>,
    next: u64,
    outcome: Outcome,
}

/// Runs a plan.
///
/// # Panics
/// With the plan, if anything went otherwise than it must.
pub fn run(plan: Plan) -> Outcome {
    let guard = PrintOnPanic(plan);
    let outcome = World::new(&plan).run(plan.operations);
    std::mem::forget(guard);
    outcome
}

struct PrintOnPanic(Plan);

impl Drop for PrintOnPanic {
    fn drop(&mut self) {
        eprintln!("to see this again: EFA_SIM_SEED={} EFA_SIM_OPS={}; {:?}", self.0.seed, self.0.operations, self.0);
    }
}

impl World {
    fn new(plan: &Plan) -> Self {
        let sim = Sim::new(plan.link);
        let mut nodes: Vec<Node> = (0..NODES).map(|n| Node::new(&sim, n)).collect();
        let endpoints: Vec<Vec<Endpoint>> =
            nodes.iter().map(|node| node.qps.iter().map(|qp| qp.endpoint).collect()).collect();
        for (n, node) in nodes.iter_mut().enumerate() {
            for (m, theirs) in endpoints.iter().enumerate().filter(|(m, _)| *m != n) {
                for (q, endpoint) in theirs.iter().enumerate() {
                    node.peers.insert((m, q), node.pd.peer(endpoint).unwrap());
                }
            }
        }
        let rng = fastrand::Rng::with_seed(plan.seed);
        Self { seed: plan.seed, sim, rng, nodes, pending: HashMap::new(), next: 1, outcome: Outcome::default() }
    }

    fn run(mut self, operations: u64) -> Outcome {
        let mut last_progress = self.sim.now();
        while self.next <= operations || !self.pending.is_empty() {
            for _ in 0..self.rng.usize(..8) {
                if self.next <= operations {
                    self.post_something();
                }
            }
            for node in &mut self.nodes {
                for qp in &mut node.qps {
                    match &mut qp.sq {
                        SendQ::Narrow(sq) => sq.ring(),
                        SendQ::Wide(sq) => sq.ring(),
                    }
                }
            }
            if self.rng.u8(..) < 2 {
                self.post_receives();
            }
            self.sim.step(Duration::from_micros(200));
            let mut progress = false;
            for n in 0..NODES {
                while let Some(completion) = self.nodes[n].cq.poll_one() {
                    progress = true;
                    self.take(n, completion);
                }
            }
            if progress {
                last_progress = self.sim.now();
            }
            let stalled = self.sim.now().since(last_progress) > Duration::from_secs(30);
            assert!(!stalled, "nothing happens any more; under way: {:#?}", self.pending);
        }
        for (n, node) in self.nodes.iter().enumerate() {
            assert!(node.board.read_vec(..).unwrap() == node.board_truth, "board of node {n}");
            assert!(node.shelf.read_vec(..).unwrap() == node.shelf_truth, "shelf of node {n}");
            assert_eq!(node.cq.skipped(), 0);
            let counters = node.device.counters();
            self.outcome.resent += counters.retrans_pkts;
            self.outcome.duplicates += counters.duplicate_pkts;
            self.outcome.not_ready += counters.rnr_sent;
        }
        self.outcome
    }

    fn post_receives(&mut self) {
        for node in &mut self.nodes {
            for qp in &mut node.qps {
                while let Some(slot) = qp.idle.pop() {
                    // One to three buffers that hold an MTU together.
                    let base = slot * MTU as u64;
                    let mut cuts = [0, self.rng.u64(..MTU as u64 + 1), self.rng.u64(..MTU as u64 + 1), MTU as u64];
                    cuts.sort();
                    let bufs: Vec<_> =
                        cuts.windows(2).map(|w| node.tray.slice(base + w[0]..base + w[1]).unwrap()).collect();
                    qp.rq.post(&bufs, slot).unwrap();
                }
                qp.rq.ring();
            }
        }
    }

    /// Posts a random operation, if there is room for it.
    fn post_something(&mut self) {
        // The operation follows from its number alone: one that finds no room is tried again, not exchanged for an easier one.
        let id = self.next;
        let mut rng = fastrand::Rng::with_seed(self.seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let from = rng.usize(..NODES);
        let to = (from + rng.usize(1..NODES)) % NODES;
        let q = rng.usize(..self.nodes[from].qps.len());
        let peer_q = rng.usize(..self.nodes[to].qps.len());
        let kind = [Kind::Send, Kind::Write, Kind::Write, Kind::Read][rng.usize(..4)];
        let with_imm = kind != Kind::Read && rng.bool();
        let inline = match (kind, &self.nodes[from].qps[q].sq) {
            (Kind::Read, _) | (Kind::Write, SendQ::Narrow(_)) => false, // no such thing
            _ => rng.u8(..) < 64,
        };
        let most = match (kind, inline) {
            (Kind::Send, false) => MTU,
            (Kind::Send, true) => 32,
            (Kind::Write, true) => 80,
            _ => [8, 100, MTU, 3 * MTU, SLOT][rng.usize(..5)],
        };
        // A message without immediate is known by its first bytes.
        let least = if kind == Kind::Send && !with_imm { 8 } else { 0 };
        let len = rng.usize(least..=most);
        let offset = rng.usize(..=SLOT - len);
        let mut data = vec![0; len];
        rng.fill(&mut data);
        if least == 8 {
            data[..8].copy_from_slice(&id.to_le_bytes());
        }
        let local_offset = rng.usize(..=SLOT - len);

        let mut pending = Pending {
            from,
            to,
            stage: None,
            board: None,
            shelf: None,
            offset,
            data,
            kind,
            completed: false,
            arrivals: u32::from(kind == Kind::Send || with_imm),
        };
        if !self.take_slots(&mut pending, inline) {
            return;
        }
        let at = |slot: usize, offset: usize| (slot * SLOT + offset) as u64..(slot * SLOT + offset + len) as u64;
        let remote = pending.board.map(|slot| self.nodes[to].board.remote().slice(at(slot, offset)).unwrap());
        let Node { qps, peers, stage, shelf, .. } = &mut self.nodes[from];
        let local = match (pending.stage, pending.shelf) {
            (Some(slot), _) => {
                let range = at(slot, local_offset);
                stage.write(range.start, &pending.data).unwrap();
                Some(stage.slice(range).unwrap())
            }
            (None, Some(slot)) => Some(shelf.slice(at(slot, offset)).unwrap()),
            (None, None) => None,
        };
        let peer = &peers[&(to, peer_q)];
        let imm = with_imm.then_some(id as u32);
        let cut = rng.u32(..=len as u32);
        let posted = match (&mut qps[q].sq, remote) {
            (SendQ::Wide(sq), Some(remote)) if kind == Kind::Write && inline => {
                let op = RdmaWriteInline::new(&pending.data, remote);
                sq.post(peer, if let Some(imm) = imm { op.imm(imm) } else { op }, id)
            }
            (SendQ::Wide(sq), _) => post(sq, peer, &pending, local, remote, imm, cut, id),
            (SendQ::Narrow(sq), _) => post(sq, peer, &pending, local, remote, imm, cut, id),
        };
        match posted {
            Ok(()) => {
                match kind {
                    Kind::Send => self.outcome.sends += 1,
                    Kind::Write => self.outcome.writes += 1,
                    Kind::Read => self.outcome.reads += 1,
                }
                self.pending.insert(id, pending);
                self.next += 1;
            }
            Err(PostError::RingFull { entries, outstanding }) => {
                assert_eq!((entries, outstanding), (SQ, SQ));
                self.outcome.full += 1;
                self.give_slots(&pending);
            }
            Err(error) => panic!("{error}: {pending:?}"),
        }
    }

    fn take_slots(&mut self, pending: &mut Pending, inline: bool) -> bool {
        if !inline && pending.kind != Kind::Read {
            pending.stage = self.nodes[pending.from].stage_free.pop();
        }
        if pending.kind != Kind::Send {
            pending.board = self.nodes[pending.to].board_free.pop();
        }
        if pending.kind == Kind::Read {
            pending.shelf = self.nodes[pending.from].shelf_free.pop();
            if let Some(board) = pending.board {
                // What the read must bring.
                let from = board * SLOT + pending.offset;
                let truth = &self.nodes[pending.to].board_truth;
                pending.data = truth[from..from + pending.data.len()].to_vec();
            }
        }
        let complete = match pending.kind {
            Kind::Send => inline || pending.stage.is_some(),
            Kind::Write => pending.board.is_some() && (inline || pending.stage.is_some()),
            Kind::Read => pending.board.is_some() && pending.shelf.is_some(),
        };
        if !complete {
            self.give_slots(pending);
        }
        complete
    }

    fn give_slots(&mut self, pending: &Pending) {
        self.nodes[pending.from].stage_free.extend(pending.stage);
        self.nodes[pending.to].board_free.extend(pending.board);
        self.nodes[pending.from].shelf_free.extend(pending.shelf);
        // Any slot may be next, so that stale bytes of every age are around.
        self.rng.shuffle(&mut self.nodes[pending.to].board_free);
    }

    fn take(&mut self, n: usize, completion: Completion) {
        assert!(completion.status.is_ok(), "node {n}: {completion:?}");
        match completion.kind {
            CompletionKind::Send(op) => {
                let id = completion.wr_id;
                let pending = self.pending.get_mut(&id).unwrap_or_else(|| panic!("nobody posted {completion:?}"));
                assert_eq!((pending.from, pending.completed), (n, false), "{pending:?} completed by {completion:?}");
                let expected = match pending.kind {
                    Kind::Send => OpCode::Send,
                    Kind::Write => OpCode::RdmaWrite,
                    Kind::Read => OpCode::RdmaRead,
                };
                assert_eq!(op, expected);
                pending.completed = true;
                let pending = pending.clone();
                self.check_landed(&pending);
                self.finish(id);
            }
            CompletionKind::Receive(received) => self.arrived(n, &completion, &received),
        }
    }

    fn arrived(&mut self, n: usize, completion: &Completion, received: &Received) {
        let node = &mut self.nodes[n];
        let q = node.qps.iter().position(|qp| qp.endpoint.qpn == completion.qpn).unwrap();
        let is_write = received.op == OpCode::RdmaWrite;
        assert_eq!(received.unsolicited, is_write && node.qps[q].unsolicited);
        let mut bytes = Vec::new();
        if !received.unsolicited {
            node.qps[q].idle.push(completion.wr_id);
            if !is_write {
                let base = completion.wr_id * MTU as u64;
                bytes = node.tray.read_vec(base..base + u64::from(received.length)).unwrap();
            }
        }
        let id = match received.imm {
            Some(imm) => u64::from(imm),
            None => u64::from_le_bytes(bytes[..8].try_into().unwrap()),
        };
        let pending = self.pending.get_mut(&id).unwrap_or_else(|| panic!("message {id} arrived from nowhere"));
        assert_eq!((pending.to, pending.arrivals), (n, 1), "message {id}: {pending:?}");
        assert_eq!(is_write, pending.kind == Kind::Write);
        assert_eq!(received.length as usize, pending.data.len());
        pending.arrivals = 0;
        self.outcome.arrivals += 1;
        let sender = &self.nodes[pending.from];
        assert!(sender.qps.iter().any(|qp| qp.endpoint.qpn == received.src_qpn));
        let ah = self.nodes[n].peers[&(pending.from, 0)].ah();
        assert_eq!(received.ah, Some(ah));
        if is_write {
            // An immediate is delivered only after every byte has been placed.
            let pending = pending.clone();
            self.check_landed(&pending);
        } else {
            assert!(bytes == pending.data, "message {id} arrived altered");
        }
        self.finish(id);
    }

    /// The operation's bytes are where they should be, and nowhere else in the slot.
    fn check_landed(&mut self, pending: &Pending) {
        let (region, truth, slot) = match pending.kind {
            Kind::Send => return,
            Kind::Write => {
                let node = &mut self.nodes[pending.to];
                (&node.board, &mut node.board_truth, pending.board)
            }
            Kind::Read => {
                let node = &mut self.nodes[pending.from];
                (&node.shelf, &mut node.shelf_truth, pending.shelf)
            }
        };
        let start = slot.unwrap() * SLOT;
        let from = start + pending.offset;
        truth[from..from + pending.data.len()].copy_from_slice(&pending.data);
        let is = region.read_vec(start as u64..(start + SLOT) as u64).unwrap();
        assert!(
            is == truth[start..start + SLOT],
            "slot {slot:?} after {:?} of {} bytes",
            pending.kind,
            pending.data.len()
        );
    }

    /// Forgets an operation that has ended at both ends.
    fn finish(&mut self, id: u64) {
        let pending = &self.pending[&id];
        if pending.completed && pending.arrivals == 0 {
            let pending = pending.clone();
            self.pending.remove(&id);
            self.give_slots(&pending);
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "one operation, spelled out")]
fn post<const W: usize>(
    sq: &mut CpuSendQueue<W>,
    peer: &Peer,
    pending: &Pending,
    local: Option<LocalSlice<'_>>,
    remote: Option<RemoteSlice>,
    imm: Option<u32>,
    cut: u32,
    id: u64,
) -> Result<(), PostError>
where
    Wqe<W>: SendWqe,
{
    match (pending.kind, local, remote) {
        (Kind::Send, None, _) => {
            let op = SendInline::new(&pending.data);
            sq.post(peer, if let Some(imm) = imm { op.imm(imm) } else { op }, id)
        }
        (Kind::Send, Some(local), _) => {
            let (head, tail) = local.split_at(cut);
            let bufs = [head, tail];
            let op = Send::new(if pending.data.is_empty() { &[] } else { &bufs });
            sq.post(peer, if let Some(imm) = imm { op.imm(imm) } else { op }, id)
        }
        (Kind::Write, Some(local), Some(remote)) => {
            let op = RdmaWrite::new(local, remote);
            sq.post(peer, if let Some(imm) = imm { op.imm(imm) } else { op }, id)
        }
        (Kind::Read, Some(local), Some(remote)) => sq.post(peer, RdmaRead::new(local, remote), id),
        (kind, ..) => unreachable!("{kind:?} without its slots"),
    }
}

impl Node {
    fn new(sim: &Sim, n: usize) -> Self {
        // Every kind of device and queue pair meets every other: 16- and 64-bit request ids, 64- and 128-byte WQEs,
        // solicited and unsolicited writes with immediate.
        let device = sim.add(n as u32, |config| {
            config.mtu = MTU as u32;
            config.req_id_64 = n == 1;
        });
        let pd = Arc::new(device.alloc_pd().unwrap());
        let cq = device.create_cq(CqConfig::new(4096)).unwrap();
        let narrow = QpConfig::new(SQ, RECEIVES as u32).recv_bufs(3);
        let wide = narrow.wide().unsolicited_write_recv();
        let narrow = pd.create_qp(&cq, &cq, narrow).unwrap().activate(0x1000 + n as u32).unwrap();
        let wide = pd.create_qp(&cq, &cq, wide).unwrap().activate(0x2000 + n as u32).unwrap();
        let receives = |q: usize| (0..RECEIVES).map(|i| (q * RECEIVES + i) as u64).collect();
        let qps = vec![
            Qp {
                sq: SendQ::Narrow(narrow.send.into_cpu()),
                rq: narrow.recv.into_cpu(),
                endpoint: narrow.endpoint,
                unsolicited: false,
                idle: receives(0),
                _control: narrow.control,
            },
            Qp {
                sq: SendQ::Wide(wide.send.into_cpu()),
                rq: wide.recv.into_cpu(),
                endpoint: wide.endpoint,
                unsolicited: true,
                idle: receives(1),
                _control: wide.control,
            },
        ];
        let all = SLOTS * SLOT;
        Self {
            cq: cq.into_cpu(),
            qps,
            peers: HashMap::new(),
            stage: pd.allocate_shared(all, Access::LOCAL_READ).unwrap(),
            board: pd.allocate_shared(all, Access::REMOTE_READ | Access::REMOTE_WRITE).unwrap(),
            shelf: pd.allocate_shared(all, Access::LOCAL_WRITE).unwrap(),
            tray: pd.allocate_shared(2 * RECEIVES * MTU, Access::LOCAL_WRITE).unwrap(),
            board_truth: vec![0; all],
            shelf_truth: vec![0; all],
            board_free: (0..SLOTS).collect(),
            shelf_free: (0..SLOTS).collect(),
            stage_free: (0..SLOTS).collect(),
            device,
            pd,
        }
    }
}
