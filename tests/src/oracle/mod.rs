//! A simulation of random operations between nodes, and an oracle that knows the correct result of each.
//!
//! Every node has four regions: a *stage* (the source of sends and writes), a *board* (peers write and read it), a
//! *shelf* (the target of reads) and a *tray* (the buffers of receives). Stage, board and shelf consist of slots. An
//! operation has its slots for itself while it is outstanding, because SRD guarantees no order. When it completes, the
//! slot must have exactly the expected bytes, also around those that were written. A message must arrive exactly once;
//! its number is in its immediate or in its first bytes.
//!
//! Meanwhile faults come and go (`weather.rs`): the network loses, delays, damages or stops packets, receivers and
//! devices are slow, ports go down. Queue pairs fail and are replaced. Nodes die and come back; each period is a *life*
//! of the node. After such an event, an outstanding operation may or may not have been executed. It is then *doomed*:
//! every status is correct, its message arrives once or not at all, and its slots rest until no late packet can reach
//! them.
//!
//! With *churn*, queue pairs exist for a few messages only and are destroyed with completions unpolled. Devices then
//! have few queue pair numbers, and completion queues are polled rarely. So a number is reused while completions of its
//! previous queue pair are still in the queue.

mod node;
mod op;
mod sizes;
mod weather;

use efa_direct::sim::{LinkConfig, Sim};
use efa_direct::*;
use efa_io::{SendWqe, Wqe};
use node::{Room, SendQ, SimNode};
use op::{Bad, Kind, Op, content};
use sizes::{DEATH_NOTICE, NODES, QPS, REST, SLOT, SQ, UD};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use weather::Weather;

/// The parameters of a simulation.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The seed of the operations and of the network.
    pub seed: u64,
    /// The number of operations.
    pub operations: u64,
    /// The configuration of the network when there are no further faults.
    pub link: LinkConfig,
    /// `true` if further faults come and go, queue pairs fail and nodes die.
    pub chaos: bool,
    /// `true` if queue pairs exist for a few messages only.
    pub churn: bool,
}

/// The result of a simulation. All fields are numbers of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Posted sends.
    pub sends: u64,
    /// Posted RDMA writes.
    pub writes: u64,
    /// Posted RDMA reads.
    pub reads: u64,
    /// Posted unreliable datagrams.
    pub datagrams: u64,
    /// Posted operations with an error, which failed as they must.
    pub refused: u64,
    /// Operations whose result a failed queue pair or a dead node left open.
    pub doomed: u64,
    /// Reliable messages that arrived.
    pub arrivals: u64,
    /// Datagrams that arrived.
    pub datagram_arrivals: u64,
    /// Retransmitted packets.
    pub resent: u64,
    /// Packets that arrived twice.
    pub duplicates: u64,
    /// Damaged packets that were dropped.
    pub corrupt: u64,
    /// Messages for which a receiver was not ready.
    pub not_ready: u64,
    /// Posts that found their ring full.
    pub full: u64,
    /// Queue pairs that failed and were replaced.
    pub qp_failures: u64,
    /// Nodes that died and came back.
    pub deaths: u64,
    /// Queue pairs that were dropped with requests outstanding.
    pub dropped: u64,
    /// Queue pairs that got the number of an earlier one.
    pub numbers_again: u64,
    /// Completions of queue pairs that did not exist any more.
    pub skipped: u64,
}

/// An outstanding operation.
#[derive(Clone, Copy, Debug)]
struct Pending {
    op: Op,
    stage: Option<usize>,
    board: Option<usize>,
    shelf: Option<usize>,
    /// The lives of the poster and of its peer when the operation was posted.
    lives: [u64; 2],
    posted_at: Duration,
    completed: bool,
    /// `true` while its message has not arrived.
    expected: bool,
    /// `true` if its result is open.
    doomed: bool,
}

/// A slot that rests before it can be used again.
struct Resting {
    until: Duration,
    node: usize,
    life: u64,
    room: Room,
    slot: usize,
}

/// The state of a running simulation.
struct Simulation {
    seed: u64,
    operations: u64,
    chaos: bool,
    churn: bool,
    sim: Sim,
    weather: Weather,
    rng: fastrand::Rng,
    nodes: Vec<SimNode>,
    pending: BTreeMap<u64, Pending>,
    resting: VecDeque<Resting>,
    /// The messages of doomed operations that have ended, with the time until which they may still arrive.
    late_messages: BTreeMap<u64, Duration>,
    /// The next operation to post.
    next: Op,
    outcome: Outcome,
    /// A buffer for expected bytes.
    expected: Vec<u8>,
    /// A buffer for the bytes that were found.
    found: Vec<u8>,
}

/// Runs a simulation.
///
/// # Panics
/// Something is wrong. The plan is printed.
pub fn run(plan: Plan) -> Outcome {
    let guard = PrintOnPanic(plan);
    let outcome = Simulation::new(&plan).run();
    std::mem::forget(guard);
    outcome
}

/// Prints the plan when it is dropped, which happens only if the simulation panics.
struct PrintOnPanic(Plan);

impl Drop for PrintOnPanic {
    fn drop(&mut self) {
        eprintln!("to see this again: EFA_SIM_SEED={} EFA_SIM_OPS={}; {:?}", self.0.seed, self.0.operations, self.0);
    }
}

impl Simulation {
    fn new(plan: &Plan) -> Self {
        let mut sim = Sim::with_seed(plan.link.seed);
        sim.network(|link| *link = plan.link).unwrap();
        let nodes: Vec<SimNode> = (0..NODES).map(|n| SimNode::new(&mut sim, n, 0, plan.churn)).collect();
        let mut simulation = Self {
            seed: plan.seed,
            operations: plan.operations,
            chaos: plan.chaos,
            churn: plan.churn,
            sim,
            weather: Weather::new(plan.link),
            rng: fastrand::Rng::with_seed(plan.seed),
            nodes,
            pending: BTreeMap::new(),
            resting: VecDeque::new(),
            late_messages: BTreeMap::new(),
            next: Op::new(plan.seed, 1),
            outcome: Outcome::default(),
            expected: Vec::new(),
            found: Vec::new(),
        };
        for n in 0..NODES {
            simulation.introduce(n);
        }
        simulation
    }

    /// Creates the peers between node `n` and every other node, in both directions.
    fn introduce(&mut self, n: usize) {
        for other in (0..NODES).filter(|&other| other != n) {
            for (here, there) in [(n, other), (other, n)] {
                for q in 0..QPS {
                    let endpoint = self.nodes[there].qps[q].endpoint;
                    let node = &mut self.nodes[here];
                    let peer = node.pd.peer(&endpoint).unwrap();
                    node.peers.insert((there, q), peer);
                }
            }
        }
    }

    fn run(mut self) -> Outcome {
        let mut last_progress = self.sim.now();
        while self.next.id <= self.operations || !self.pending.is_empty() {
            let posting = self.next.id <= self.operations;
            if self.chaos && posting {
                self.weather.pass(&self.sim, &self.nodes, &mut self.rng);
                self.inject_failures();
            } else if self.chaos {
                self.weather.clear(&self.sim, &self.nodes);
            }
            if self.churn && posting && self.rng.u8(..) < 32 {
                self.drop_qp();
            }
            for _ in 0..self.rng.usize(..8) {
                if self.next.id > self.operations || !self.post_next() {
                    break;
                }
            }
            let receives = self.rng.u8(..) < 2;
            for node in &mut self.nodes {
                node.qps.iter_mut().for_each(|qp| qp.sq.ring());
                if receives {
                    node.post_receives(&mut self.rng);
                }
            }
            self.sim.step(Duration::from_micros(200));
            let mut progress = false;
            for n in 0..NODES {
                // With churn the queue is polled rarely, so that queue pairs are destroyed while their completions are
                // in it.
                let looks = !(self.churn && posting) || self.rng.u8(..) < 16;
                let most = if looks { usize::MAX } else { 0 };
                for _ in 0..most {
                    let Some(completion) = self.nodes[n].cq.poll_one() else { break };
                    progress = true;
                    self.handle(n, completion);
                }
            }
            self.release_slots();
            if progress {
                last_progress = self.sim.now();
            }
            let stalled = self.sim.now() - last_progress > Duration::from_secs(30);
            assert!(!stalled, "nothing happens any more; under way: {:#?}", self.pending);
        }
        self.drain_and_check()
    }

    /// Waits until no packets are left, and checks everything a last time.
    fn drain_and_check(mut self) -> Outcome {
        let late = self.sim.now() + Duration::from_secs(10);
        while self.sim.now() < late {
            self.sim.step(Duration::from_millis(10));
            for n in 0..NODES {
                while let Some(completion) = self.nodes[n].cq.poll_one() {
                    self.handle(n, completion);
                }
            }
        }
        self.release_slots();
        assert!(self.resting.is_empty());
        for n in 0..NODES {
            self.nodes[n].check(n);
            self.add_counters(n);
        }
        self.outcome
    }

    fn add_counters(&mut self, n: usize) {
        let counters = self.nodes[n].device.counters();
        self.outcome.resent += counters.retrans_pkts;
        self.outcome.duplicates += counters.duplicate_pkts;
        self.outcome.corrupt += counters.corrupt_pkts;
        self.outcome.not_ready += counters.rnr_sent;
        self.outcome.skipped += self.nodes[n].cq.skipped();
        self.outcome.numbers_again += self.nodes[n].numbers_again;
    }

    /// Drops a random queue pair, with everything that is outstanding or unpolled, and creates another in its place.
    fn drop_qp(&mut self) {
        let (n, q) = (self.rng.usize(..NODES), self.rng.usize(..QPS));
        self.outcome.dropped += 1;
        self.doom(|op| op.involves(n, q));
        self.nodes[n].replace_qp(q);
        self.introduce(n);
        // The completions of its own operations will be skipped, so these operations end here.
        let own = |p: &Pending| !p.completed && (p.op.from, p.op.qp_index()) == (n, q);
        let own: Vec<u64> = self.pending.iter().filter(|(_, p)| own(p)).map(|(&id, _)| id).collect();
        for id in own {
            if let Some(pending) = self.pending.get_mut(&id) {
                (pending.completed, pending.doomed) = (true, true);
            }
            self.finish(id);
        }
    }

    /// Makes a queue pair fail or a node die, rarely. Replaces failed queue pairs that have drained.
    fn inject_failures(&mut self) {
        if self.rng.u32(..) < u32::MAX / 2000 {
            let (n, q) = (self.rng.usize(..NODES), self.rng.usize(..QPS));
            if !self.nodes[n].qps[q].failed {
                self.nodes[n].qps[q].control.fail().unwrap();
                self.nodes[n].qps[q].failed = true;
                self.outcome.qp_failures += 1;
                self.doom(|op| op.involves(n, q));
            }
        }
        if self.rng.u32(..) < u32::MAX / 20_000 {
            let n = self.rng.usize(..NODES);
            self.kill(n);
        }
        for n in 0..NODES {
            for q in 0..QPS {
                let qp = &self.nodes[n].qps[q];
                let busy = |p: &Pending| !p.completed && (p.op.from, p.op.qp_index()) == (n, q);
                if qp.failed && qp.is_drained() && !self.pending.values().any(busy) {
                    self.nodes[n].replace_qp(q);
                    self.introduce(n);
                }
            }
        }
    }

    /// Marks all operations for which `which` returns `true` as doomed.
    fn doom(&mut self, which: impl Fn(&Op) -> bool) {
        for pending in self.pending.values_mut().filter(|pending| which(&pending.op)) {
            self.outcome.doomed += u64::from(!pending.doomed);
            pending.doomed = true;
        }
        // Completed operations were only waiting for their message, which may now be missing: they end here.
        let over: Vec<u64> = self.pending.iter().filter(|(_, p)| p.doomed && p.completed).map(|(&id, _)| id).collect();
        for id in over {
            self.finish(id);
        }
    }

    /// Kills a node with all its objects, and starts it again.
    fn kill(&mut self, n: usize) {
        self.outcome.deaths += 1;
        self.add_counters(n);
        self.doom(|op| op.to == n || op.from == n);
        self.sim.kill(self.nodes[n].device.name()).unwrap();
        // The dead node's objects are dropped before the new node exists, so that they cannot affect it.
        let life = self.nodes.remove(n).life + 1;
        self.nodes.insert(n, SimNode::new(&mut self.sim, n, life, self.churn));
        self.introduce(n);
        // Nobody polls the completions of the dead node's own operations, so these operations end here.
        let own: Vec<u64> = self.pending.iter().filter(|(_, p)| p.op.from == n).map(|(&id, _)| id).collect();
        own.into_iter().for_each(|id| self.finish(id));
    }

    /// Posts the next operation, if there is room for it.
    fn post_next(&mut self) -> bool {
        let op = self.next;
        let failed = |n: usize, q: usize| self.nodes[n].qps[q].failed;
        if failed(op.from, op.qp_index()) || failed(op.to, op.peer_qp_index()) {
            return false;
        }
        let Some(pending) = self.take_slots(op) else { return false };
        match self.post(&pending) {
            Ok(()) => {
                *match op.kind {
                    Kind::Send | Kind::SendInline => &mut self.outcome.sends,
                    Kind::Write | Kind::WriteInline => &mut self.outcome.writes,
                    Kind::Read => &mut self.outcome.reads,
                    Kind::Datagram => &mut self.outcome.datagrams,
                    Kind::Bad(_) => &mut self.outcome.refused,
                } += 1;
                self.pending.insert(op.id, pending);
                self.next = Op::new(self.seed, op.id + 1);
                true
            }
            Err(PostError::RingFull { entries, outstanding }) => {
                assert_eq!((entries, outstanding), (SQ, SQ));
                self.outcome.full += 1;
                self.free_slots(&pending);
                false
            }
            Err(error) => panic!("{error}: {pending:?}"),
        }
    }

    fn post(&mut self, pending: &Pending) -> Result<(), PostError> {
        let op = pending.op;
        op.content(&mut self.expected);
        let range = |slot: usize, offset: usize| (slot * SLOT + offset) as u64..(slot * SLOT + offset + op.len) as u64;
        let mut board = self.nodes[op.to].board.region.remote();
        let mut to = self.nodes[op.to].qps[op.peer_qp_index()].endpoint;
        let remote = match op.kind {
            Kind::Bad(bad) => {
                match bad {
                    Bad::Rkey => board.rkey ^= 0x40,
                    Bad::Bounds => board.len += 1,
                    Bad::Qkey => to.qkey ^= 1 << 31, // no queue pair, not even a later one, has such a key
                    Bad::Number => to.qpn ^= 0x1000,
                }
                Some(board.slice(board.len - op.len as u64..).unwrap())
            }
            _ => pending.board.map(|slot| board.slice(range(slot, op.offset)).unwrap()),
        };
        let SimNode { qps, peers, pd, stage, shelf, .. } = &mut self.nodes[op.from];
        let local = match (pending.stage, pending.shelf) {
            (Some(slot), _) => {
                let range = range(slot, op.local_offset);
                stage.region.write(range.start, &self.expected).unwrap();
                Some(stage.region.slice(range).unwrap())
            }
            (None, Some(slot)) => Some(shelf.region.slice(range(slot, op.offset)).unwrap()),
            (None, None) => None,
        };
        let stranger = matches!(op.kind, Kind::Bad(_)).then(|| pd.peer(&to).unwrap());
        let peer = stranger.as_ref().unwrap_or(&peers[&(op.to, op.peer_qp_index())]);
        let imm = op.imm.then_some(op.id as u32);
        match (&mut qps[op.qp_index()].sq, remote) {
            (SendQ::Wide(sq), Some(remote)) if op.kind == Kind::WriteInline => {
                let write = RdmaWriteInline::new(&self.expected, remote);
                sq.post(peer, if let Some(imm) = imm { write.imm(imm) } else { write }, op.id)
            }
            (SendQ::Wide(sq), _) => post(sq, peer, &op, &self.expected, local, remote, imm),
            (SendQ::Narrow(sq), _) => post(sq, peer, &op, &self.expected, local, remote, imm),
        }
    }

    /// Takes the slots that an operation needs. Returns `None` if one of them is not available.
    fn take_slots(&mut self, op: Op) -> Option<Pending> {
        let needs = |room| match (room, op.kind) {
            (Room::Stage, Kind::Send | Kind::Write | Kind::Datagram | Kind::Bad(_)) => Some(op.from),
            (Room::Board, Kind::Write | Kind::WriteInline | Kind::Read) => Some(op.to),
            (Room::Shelf, Kind::Read) => Some(op.from),
            _ => None,
        };
        let rooms = [Room::Stage, Room::Board, Room::Shelf];
        if rooms.iter().any(|&room| needs(room).is_some_and(|n| self.nodes[n].slots(room).free.is_empty())) {
            return None;
        }
        let [stage, board, shelf] = rooms.map(|room| {
            // A random slot, so that its old bytes are of different ages.
            let free = &mut self.nodes[needs(room)?].slots(room).free;
            Some(free.swap_remove(self.rng.usize(..free.len())))
        });
        let expected = op.arrives();
        let lives = [op.from, op.to].map(|n| self.nodes[n].life);
        let posted_at = self.sim.now();
        Some(Pending { op, stage, board, shelf, lives, posted_at, completed: false, expected, doomed: false })
    }

    /// Returns the slots of an operation.
    fn slots_of(pending: &Pending) -> impl Iterator<Item = (usize, Room, usize)> {
        let Op { from, to, .. } = pending.op;
        let all =
            [(from, Room::Stage, pending.stage), (to, Room::Board, pending.board), (from, Room::Shelf, pending.shelf)];
        all.into_iter().filter_map(|(node, room, slot)| Some((node, room, slot?)))
    }

    fn free_slots(&mut self, pending: &Pending) {
        for (node, room, slot) in Self::slots_of(pending) {
            self.nodes[node].slots(room).free.push(slot);
        }
    }

    /// Frees the slots that have rested long enough, and forgets messages that cannot arrive any more.
    fn release_slots(&mut self) {
        let now = self.sim.now();
        while self.resting.front().is_some_and(|resting| resting.until <= now)
            && let Some(Resting { node, life, room, slot, .. }) = self.resting.pop_front()
        {
            if self.nodes[node].life == life {
                let slots = self.nodes[node].slots(room);
                slots.accept_content(slot);
                slots.free.push(slot);
            }
        }
        self.late_messages.retain(|_, until| *until > now);
    }

    fn handle(&mut self, n: usize, completion: Completion) {
        let node = &mut self.nodes[n];
        let q = node.qps.iter().position(|qp| qp.endpoint.qpn == completion.qpn).unwrap();
        node.qps[q].count(completion.status.is_ok());
        match completion.kind {
            CompletionKind::Send(code) => {
                let id = completion.wr_id;
                let pending = self.pending.get_mut(&id).unwrap_or_else(|| panic!("nobody posted {completion:?}"));
                assert_eq!((pending.op.from, pending.completed), (n, false), "{pending:?} completed by {completion:?}");
                assert_eq!(code, pending.op.kind.op_code());
                pending.completed = true;
                // A sender that does not know yet that its peer died may still post to the peer's previous life.
                let reborn_at = self.nodes[pending.op.to].born_at;
                let to_the_dead =
                    completion.status == Status::RemoteAbort && pending.posted_at < reborn_at + DEATH_NOTICE;
                self.outcome.doomed += u64::from(to_the_dead && !pending.doomed);
                pending.doomed |= to_the_dead;
                let pending = *pending;
                if !pending.doomed {
                    assert_eq!(completion.status, pending.op.kind.status(), "{pending:?}");
                    self.check_landed(&pending);
                }
                self.finish(id);
            }
            CompletionKind::Receive(received) if completion.status.is_ok() => {
                self.arrived(n, q, &completion, &received)
            }
            CompletionKind::Receive(_) => {
                assert_eq!((completion.status, node.qps[q].failed), (Status::Flushed, true));
                node.qps[q].idle.push(completion.wr_id);
            }
        }
    }

    fn arrived(&mut self, n: usize, q: usize, completion: &Completion, received: &Received) {
        let is_write = received.op == OpCode::RdmaWrite;
        let node = &mut self.nodes[n];
        assert_eq!(received.unsolicited, is_write && q == 1);
        if !received.unsolicited {
            node.qps[q].idle.push(completion.wr_id);
        }
        if !is_write {
            node.received(completion.wr_id, received.length as usize, &mut self.found);
        }
        if q == UD {
            self.datagram_arrived();
            return;
        }
        let id = match received.imm {
            Some(imm) => u64::from(imm),
            None => u64::from_le_bytes(self.found[..8].try_into().unwrap()),
        };
        self.outcome.arrivals += 1;
        if self.late_messages.remove(&id).is_some() {
            return;
        }
        let pending = self.pending.get_mut(&id).unwrap_or_else(|| panic!("message {id} arrived from nowhere"));
        assert!(std::mem::take(&mut pending.expected), "message {id} arrived again: {pending:?}");
        let (op, doomed) = (pending.op, pending.doomed);
        assert_eq!((op.to, op.peer_qp, is_write, received.length as usize), (n, q, op.kind.is_write(), op.len));
        let ah = self.nodes[n].peers[&(op.from, 0)].ah();
        assert_eq!(received.ah, Some(ah));
        if is_write {
            // The receive completes only after every byte has been written.
            let pending = *pending;
            self.check_landed(&pending);
        } else {
            op.content(&mut self.expected);
            assert!(self.found == self.expected, "message {id} arrived altered");
        }
        let sender = &self.nodes[op.from];
        assert!(doomed || sender.qps[op.qp].endpoint.qpn == received.src_qpn);
        self.finish(id);
    }

    /// Checks the bytes of a datagram that has arrived.
    fn datagram_arrived(&mut self) {
        self.outcome.datagram_arrivals += 1;
        let (prefix, message) = self.found.split_at(UD_PREFIX as usize);
        assert!(prefix.iter().all(|&byte| byte == 0));
        let id = u64::from_le_bytes(message[..8].try_into().unwrap());
        content(id, message.len(), &mut self.expected);
        assert!(self.expected == message && id < self.next.id, "datagram {id} arrived altered");
    }

    /// Checks that the operation's bytes are in their place, and that the rest of the slot is unchanged.
    fn check_landed(&mut self, pending: &Pending) {
        let op = pending.op;
        let (slots, slot) = match (op.kind, pending.board, pending.shelf) {
            (Kind::Write | Kind::WriteInline, Some(slot), _) => {
                op.content(&mut self.expected);
                (&mut self.nodes[op.to].board, slot)
            }
            (Kind::Read, Some(board), Some(shelf)) => {
                let from = board * SLOT + op.offset;
                self.expected.clear();
                self.expected.extend_from_slice(&self.nodes[op.to].board.expected[from..from + op.len]);
                (&mut self.nodes[op.from].shelf, shelf)
            }
            _ => return,
        };
        let from = slot * SLOT + op.offset;
        slots.expected[from..from + op.len].copy_from_slice(&self.expected);
        // Every time the bytes around them, rarely the whole slot. Everything is checked at the end.
        let guard = if self.rng.u8(..) < 4 { SLOT } else { 32 };
        let (start, end) =
            ((slot * SLOT).max(from.saturating_sub(guard)), ((slot + 1) * SLOT).min(from + op.len + guard));
        self.found.resize(end - start, 0);
        slots.region.read(start as u64, &mut self.found).unwrap();
        assert!(self.found == slots.expected[start..end], "slot {slot} after {pending:?}");
    }

    /// Removes an operation if it has ended at both nodes.
    fn finish(&mut self, id: u64) {
        let Some(&pending) = self.pending.get(&id) else { return };
        if pending.doomed && (pending.completed || self.nodes[pending.op.from].life != pending.lives[0]) {
            let until = self.sim.now() + REST;
            for (node, room, slot) in Self::slots_of(&pending) {
                let life = pending.lives[usize::from(node != pending.op.from)];
                self.resting.push_back(Resting { until, node, life, room, slot });
            }
            if pending.expected {
                self.late_messages.insert(id, until);
            }
            self.pending.remove(&id);
        } else if pending.completed && !pending.expected {
            self.free_slots(&pending);
            self.pending.remove(&id);
        }
    }
}

fn post<const W: usize>(
    sq: &mut CpuSendQueue<W>,
    peer: &Peer,
    op: &Op,
    data: &[u8],
    local: Option<LocalSlice<'_>>,
    remote: Option<RemoteSlice>,
    imm: Option<u32>,
) -> Result<(), PostError>
where
    Wqe<W>: SendWqe,
{
    match (op.kind, local, remote) {
        (Kind::SendInline, None, _) => {
            let send = SendInline::new(data);
            sq.post(peer, if let Some(imm) = imm { send.imm(imm) } else { send }, op.id)
        }
        (Kind::Send | Kind::Datagram, Some(local), _) => {
            let (head, tail) = local.split_at(op.cut);
            let bufs = [head, tail];
            let send = Send::new(if op.len == 0 { &[] } else { &bufs });
            sq.post(peer, if let Some(imm) = imm { send.imm(imm) } else { send }, op.id)
        }
        (Kind::Write | Kind::Bad(_), Some(local), Some(remote)) => {
            let write = RdmaWrite::new(local, remote);
            sq.post(peer, if let Some(imm) = imm { write.imm(imm) } else { write }, op.id)
        }
        (Kind::Read, Some(local), Some(remote)) => sq.post(peer, RdmaRead::new(local, remote), op.id),
        _ => unreachable!("{op:?} without its slots"),
    }
}
