//! The requests of a node, and the checks of their results.
//!
//! Sends and writes with immediate are *messages*: the other node learns of each exactly once, and compares its bytes.
//!
//! A write goes into a *slot* of the other node's board. Nothing else accesses the slot until the write has completed.
//! If the write had an immediate, the other node must also check the slot and *release* it; the release is in the
//! immediate of one of its messages. Then the slot is read back. This checks the read and, for a write without
//! immediate, the write. After that, the slot is free again.

use super::content::{Content, Seen, Series};
use super::report::{Arrivals, Operations};
use super::setup::*;
use anyhow::{Context, Result, bail, ensure};
use efa_direct::*;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The longest time that a request may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The slot in the immediate of a message that releases none.
const NO_SLOT: u8 = SLOTS;
/// The number of bits of an immediate that contain the message's number. The other bits are a slot.
const NUMBER_BITS: u32 = 24;
/// The number of datagrams by which one may be behind the newest.
const DATAGRAM_SPAN: u64 = 1 << 16;
/// The maximum number of completions of one poll.
const BATCH: usize = 64;

/// Returns the immediate of a message.
fn imm(slot: u8, number: u64) -> u32 {
    u32::from(slot) << NUMBER_BITS | (number as u32 & ((1 << NUMBER_BITS) - 1))
}

/// An outstanding request.
#[derive(Clone, Copy, Debug)]
struct Pending {
    what: What,
    /// The index of the queue pair.
    q: usize,
    len: usize,
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// A send, with its buffer if it is not inline.
    Send(Option<u16>),
    Datagram(Option<u16>),
    Write {
        slot: u8,
        inline: bool,
        silent: bool,
    },
    Read {
        slot: u8,
    },
}

/// The state of a slot of the other node's board.
#[derive(Clone, Copy, Debug)]
struct Slot {
    content: Content,
    /// `true` after the write has completed.
    completed: bool,
    /// `true` after the other node has released the slot, or from the start if the write had no immediate.
    released: bool,
}

/// The numbers of everything that a node has sent, which the other node compares with what has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Totals {
    messages: u64,
    bytes: u64,
    datagrams: u64,
    /// The number of RDMA reads from the other node's queue pair with counters.
    reads_counted: u64,
    writes_counted: u64,
}

/// A node's requests, and what it knows about the other node's.
pub(super) struct Traffic {
    pub(super) objects: Objects,
    peers: Vec<(Peer, u16)>,
    remote: RemoteRegion,
    seed: u64,
    node: usize,
    rng: fastrand::Rng,
    pending: HashMap<u64, Pending>,
    next_id: u64,
    letters: Vec<u16>,
    slots: Vec<Option<Slot>>,
    /// The free slots, small and large ones.
    free: [Vec<u8>; 2],
    /// The slots to read back.
    written: Vec<u8>,
    /// The slots of this node's board to release.
    releases: VecDeque<u8>,
    silent_writes: u64,
    sent: Totals,
    seen: Seen,
    seen_datagrams: Seen,
    scratch: Vec<u8>,
    pub(super) done: Operations,
    pub(super) arrivals: Arrivals,
}

impl Traffic {
    pub(super) fn new(objects: Objects, hello: &Hello, node: usize, seed: u64) -> Result<Self> {
        let (peers, remote) = objects.meet(hello)?;
        let (large, small) = (0..SLOTS).partition(|&slot| is_large(slot));
        Ok(Self {
            objects,
            peers,
            remote,
            seed,
            node,
            rng: fastrand::Rng::with_seed(seed.wrapping_mul(2).wrapping_add(node as u64)),
            pending: HashMap::new(),
            next_id: 0,
            letters: (0..LETTERS).collect(),
            slots: vec![None; SLOTS.into()],
            free: [small, large],
            written: Vec::with_capacity(SLOTS.into()),
            releases: VecDeque::new(),
            silent_writes: 0,
            sent: Totals::default(),
            seen: Seen::default(),
            seen_datagrams: Seen::default(),
            scratch: vec![0xff; LARGE],
            done: Operations::default(),
            arrivals: Arrivals::default(),
        })
    }

    /// Posts a random request. Returns `false` if there was no room for it.
    pub(super) fn post_any(&mut self) -> Result<bool> {
        match self.rng.u8(..16) {
            0..3 => self.post_write(),
            3..6 => self.post_read(),
            6..8 => self.post_send(Series::Datagram),
            _ => self.post_send(Series::Message),
        }
    }

    /// Posts a request that finishes the traffic: a message with a release, or a read. Returns `false` if there is
    /// none, or no room for it.
    pub(super) fn post_last(&mut self) -> Result<bool> {
        if self.releases.is_empty() { self.post_read() } else { self.post_send(Series::Message) }
    }

    /// Chooses a queue pair. Returns `None` if its send ring is full.
    fn queue(&mut self, series: Series) -> Option<usize> {
        let q = if series == Series::Datagram { UNRELIABLE } else { self.rng.usize(..RELIABLE) };
        self.objects.qps[q].room().then_some(q)
    }

    /// Chooses the other node's queue pair that a request goes to.
    fn target(&mut self, series: Series) -> usize {
        if series == Series::Datagram { UNRELIABLE } else { self.rng.usize(..RELIABLE) }
    }

    fn content(&self, series: Series, number: u64, len: usize) -> Content {
        Content::new(self.seed, self.node, series, number, len)
    }

    /// Returns the content that the other node sends.
    fn their_content(&self, series: Series, number: u64, len: usize) -> Content {
        Content::new(self.seed, 1 - self.node, series, number, len)
    }

    fn note(&mut self, what: What, q: usize, len: usize) {
        self.pending.insert(self.next_id, Pending { what, q, len, since: Instant::now() });
        self.next_id += 1;
    }

    fn post_send(&mut self, series: Series) -> Result<bool> {
        let Some(q) = self.queue(series) else { return Ok(false) };
        let target = self.target(series);
        let letter = if self.rng.bool() { self.letters.pop() } else { None };
        let attributes = self.objects.device.attributes();
        let most = match letter {
            None => self.objects.qps[q].inline_bytes(attributes),
            Some(_) if self.rng.bool() => 256,
            Some(_) => attributes.mtu as usize,
        };
        let len = self.rng.usize(..=most);
        let is_message = series == Series::Message;
        let number = if is_message { self.sent.messages } else { self.sent.datagrams };
        let release = if is_message { self.releases.pop_front() } else { None };
        // The message's number is in the immediate or in the first bytes.
        let with_imm = release.is_some() || len < 8 || self.rng.bool();
        let imm = with_imm.then(|| imm(release.unwrap_or(NO_SLOT), number));
        let content = self.content(series, number, len);
        let bytes = content.fill(&mut self.scratch);
        let (qp, peer) = (&mut self.objects.qps[q], &self.peers[target].0);
        match letter {
            None => {
                let send = SendInline::new(bytes);
                qp.post(peer, imm.map_or(send, |imm| send.imm(imm)), self.next_id)?;
            }
            Some(letter) => {
                let start = u64::from(letter) * u64::from(attributes.mtu);
                let letters = &self.objects.letters;
                letters.write(start, bytes)?;
                let cut = if self.rng.bool() { len } else { self.rng.usize(..=len) };
                let (head, tail) = letters.slice(start..start + len as u64)?.split_at(cut as u32);
                let bufs = [head, tail];
                let send = Send::new(if cut == len { &bufs[..1] } else { &bufs });
                qp.post(peer, imm.map_or(send, |imm| send.imm(imm)), self.next_id)?;
            }
        }
        if is_message {
            self.sent.messages += 1;
            self.sent.bytes += len as u64;
        } else {
            self.sent.datagrams += 1;
        }
        self.note(if is_message { What::Send(letter) } else { What::Datagram(letter) }, q, len);
        Ok(true)
    }

    fn post_write(&mut self) -> Result<bool> {
        let Some(q) = self.queue(Series::Message) else { return Ok(false) };
        let target = self.target(Series::Message);
        let large = self.rng.u8(..100) == 0;
        let free = &mut self.free[usize::from(large)];
        if free.is_empty() {
            return Ok(false);
        }
        let slot = free.swap_remove(self.rng.usize(..free.len()));
        let inline = q == WIDE && !large && self.rng.bool();
        let len = match (large, inline) {
            (true, _) => self.rng.usize(SMALL..=LARGE),
            (_, true) => self.rng.usize(8..=self.objects.qps[q].inline_bytes(self.objects.device.attributes())),
            _ if self.rng.bool() => self.rng.usize(8..=256),
            _ => self.rng.usize(8..=SMALL),
        };
        let silent = self.rng.bool();
        let (series, number) =
            if silent { (Series::SilentWrite, self.silent_writes) } else { (Series::Message, self.sent.messages) };
        let content = self.content(series, number, len);
        let bytes = content.fill(&mut self.scratch);
        let remote = self.remote.slice(extent(slot, &content))?;
        let (qp, peer) = (&mut self.objects.qps[q], &self.peers[target].0);
        match &mut qp.sq {
            SendRing::Wide(sq) if inline => {
                let write = RdmaWriteInline::new(bytes, remote);
                sq.post(peer, if silent { write } else { write.imm(imm(slot, number)) }, self.next_id)?;
            }
            _ => {
                let (start, _) = place(slot);
                self.objects.stage.write(start, bytes)?;
                let write = RdmaWrite::new(self.objects.stage.slice(start..start + len as u64)?, remote);
                qp.post(peer, if silent { write } else { write.imm(imm(slot, number)) }, self.next_id)?;
            }
        }
        if silent {
            self.silent_writes += 1;
        } else {
            self.sent.messages += 1;
            self.sent.bytes += len as u64;
        }
        self.sent.writes_counted += u64::from(target == COUNTED);
        self.slots[usize::from(slot)] = Some(Slot { content, completed: false, released: silent });
        self.note(What::Write { slot, inline, silent }, q, len);
        Ok(true)
    }

    fn post_read(&mut self) -> Result<bool> {
        let Some(q) = self.queue(Series::Message) else { return Ok(false) };
        if self.written.is_empty() {
            return Ok(false);
        }
        let target = self.target(Series::Message);
        let slot = self.written.swap_remove(self.rng.usize(..self.written.len()));
        let content = self.slot(slot)?.content;
        let (start, len) = (place(slot).0, content.len());
        let local = self.objects.shelf.slice(start..start + len as u64)?;
        let read = RdmaRead::new(local, self.remote.slice(extent(slot, &content))?);
        self.objects.qps[q].post(&self.peers[target].0, read, self.next_id)?;
        self.sent.reads_counted += u64::from(target == COUNTED);
        self.note(What::Read { slot }, q, len);
        Ok(true)
    }

    fn slot(&mut self, slot: u8) -> Result<&mut Slot> {
        let known = self.slots.get_mut(usize::from(slot)).and_then(Option::as_mut);
        known.with_context(|| format!("slot {slot} has nothing in it"))
    }

    /// Rings the doorbells for everything that was posted.
    pub(super) fn ring(&mut self) {
        self.objects.qps.iter_mut().for_each(Qp::ring);
    }

    /// Polls the completion queues and checks each completion. Returns `true` if there was one.
    pub(super) fn poll(&mut self) -> Result<bool> {
        let mut any = false;
        for cq in 0..self.objects.cqs.len() {
            let mut batch = [Completion::default(); BATCH];
            let count = self.objects.cqs[cq].poll(&mut batch);
            for completion in &batch[..count] {
                self.handle(completion).with_context(|| format!("{completion:?}"))?;
            }
            any |= count > 0;
        }
        Ok(any)
    }

    fn handle(&mut self, completion: &Completion) -> Result<()> {
        let Completion { wr_id, status, qpn, kind } = *completion;
        ensure!(status.is_ok(), "{status}; {}", status.usual_cause());
        match kind {
            CompletionKind::Send(op) => {
                let pending = self.pending.remove(&wr_id).context("a request that is not under way has completed")?;
                ensure!(self.objects.qps[pending.q].endpoint.qpn == qpn, "the request was of another queue pair");
                self.completed(&pending, op)
            }
            CompletionKind::Receive(received) => {
                let q = self.objects.qps.iter().position(|qp| qp.endpoint.qpn == qpn);
                let q = q.context("no such queue pair")?;
                self.arrived(q, &received, wr_id)?;
                self.count(q, CounterOps::RECV);
                if received.unsolicited {
                    return Ok(());
                }
                let cut = self.rng.u32(..=self.objects.device.attributes().mtu);
                self.objects.post_receive(q, wr_id, cut)
            }
        }
    }

    /// Adds one to the expected value of a counter.
    fn count(&mut self, q: usize, kind: CounterOps) {
        if q == COUNTED {
            let tally = self.objects.tallies.iter_mut().find(|tally| tally.kind == kind);
            tally.into_iter().for_each(|tally| tally.expected += 1);
        }
    }

    /// Handles the completion of a request of this node.
    fn completed(&mut self, pending: &Pending, op: OpCode) -> Result<()> {
        let (expected, kind) = match pending.what {
            What::Send(_) | What::Datagram(_) => (OpCode::Send, CounterOps::SEND),
            What::Write { .. } => (OpCode::RdmaWrite, CounterOps::RDMA_WRITE),
            What::Read { .. } => (OpCode::RdmaRead, CounterOps::RDMA_READ),
        };
        ensure!(op == expected, "the request was {expected:?}");
        self.count(pending.q, kind);
        let done = &mut self.done;
        done.bytes += pending.len as u64;
        match pending.what {
            What::Send(letter) => {
                *if letter.is_some() { &mut done.sends } else { &mut done.inline_sends } += 1;
                self.letters.extend(letter);
            }
            What::Datagram(letter) => {
                done.datagrams += 1;
                self.letters.extend(letter);
            }
            What::Write { slot, inline, silent } => {
                *match (inline, silent) {
                    (true, _) => &mut done.inline_writes,
                    (_, false) => &mut done.writes_with_immediate,
                    _ => &mut done.writes,
                } += 1;
                self.slot(slot)?.completed = true;
                self.queue_if_done(slot)?;
            }
            What::Read { slot } => {
                done.reads += 1;
                let content = self.slot(slot)?.content;
                let bytes = &mut self.scratch[..content.len()];
                self.objects.shelf.read(place(slot).0, bytes)?;
                content.check(bytes).with_context(|| format!("a read of slot {slot}"))?;
                self.slots[usize::from(slot)] = None;
                self.free[usize::from(is_large(slot))].push(slot);
            }
        }
        Ok(())
    }

    /// Queues a slot to be read back if its write has ended at both nodes.
    fn queue_if_done(&mut self, slot: u8) -> Result<()> {
        let Slot { completed, released, .. } = *self.slot(slot)?;
        if completed && released {
            self.written.push(slot);
        }
        Ok(())
    }

    /// Handles the arrival of a message or datagram of the other node.
    fn arrived(&mut self, q: usize, received: &Received, receive: u64) -> Result<()> {
        let from_known =
            self.peers.iter().any(|(peer, qpn)| *qpn == received.src_qpn && Some(peer.ah()) == received.ah);
        ensure!(from_known, "from nobody that is known");
        match received.op {
            OpCode::Send => self.arrived_send(q, received, receive),
            OpCode::RdmaWrite => {
                ensure!(received.unsolicited == (q == WIDE), "queue pair {q}: unsolicited or not, it is the other");
                self.arrived_write(received)
            }
            OpCode::RdmaRead => bail!("a read does not arrive"),
        }
    }

    fn arrived_send(&mut self, q: usize, received: &Received, receive: u64) -> Result<()> {
        ensure!(!received.unsolicited, "a send that consumed no receive");
        let unreliable = q == UNRELIABLE;
        let prefix = if unreliable { UD_PREFIX as usize } else { 0 };
        let end = received.length as usize;
        let bytes = self.scratch.get_mut(..end).context("longer than any receive")?;
        self.objects.read_receive(q, receive, bytes)?;
        let bytes = bytes.get(prefix..).context("a datagram that is shorter than its prefix")?;
        let (first, len) = (bytes.first_chunk().copied(), bytes.len());
        let (series, seen) =
            if unreliable { (Series::Datagram, &self.seen_datagrams) } else { (Series::Message, &self.seen) };
        let number = match (received.imm, first) {
            (Some(imm), _) => seen.complete(imm & ((1 << NUMBER_BITS) - 1), NUMBER_BITS),
            (None, Some(first)) => u64::from_le_bytes(first),
            (None, None) => bail!("a short send without immediate"),
        };
        self.their_content(series, number, len).check(&self.scratch[prefix..end])?;
        if unreliable {
            return self.note_datagram(number);
        }
        self.note_message(number, len)?;
        match received.imm.map(|imm| (imm >> NUMBER_BITS) as u8) {
            None | Some(NO_SLOT) => Ok(()),
            Some(slot) => {
                let was = std::mem::replace(&mut self.slot(slot)?.released, true);
                ensure!(!was, "slot {slot} was released already");
                self.queue_if_done(slot)
            }
        }
    }

    fn arrived_write(&mut self, received: &Received) -> Result<()> {
        let imm = received.imm.context("a write without immediate does not arrive")?;
        let slot = (imm >> NUMBER_BITS) as u8;
        ensure!(slot < SLOTS, "a write into no slot");
        let number = self.seen.complete(imm & ((1 << NUMBER_BITS) - 1), NUMBER_BITS);
        let len = received.length as usize;
        ensure!(len <= place(slot).1, "{len} bytes in slot {slot}");
        let content = self.their_content(Series::Message, number, len);
        let bytes = &mut self.scratch[..len];
        self.objects.board.read(extent(slot, &content).start, bytes)?;
        content.check(bytes).with_context(|| format!("a write into slot {slot}"))?;
        self.releases.push_back(slot);
        self.note_message(number, len)
    }

    fn note_message(&mut self, number: u64, len: usize) -> Result<()> {
        let new = self.seen.insert(number).with_context(|| {
            format!("message {number} came while {} is missing, which is {} behind", self.seen.low(), Seen::SPAN)
        })?;
        ensure!(new, "message {number} came twice");
        self.arrivals.messages += 1;
        self.arrivals.bytes += len as u64;
        Ok(())
    }

    fn note_datagram(&mut self, number: u64) -> Result<()> {
        let new = self.seen_datagrams.insert(number).with_context(|| format!("datagram {number} is of the future"))?;
        self.seen_datagrams.give_up(number, DATAGRAM_SPAN);
        *if new { &mut self.arrivals.datagrams } else { &mut self.arrivals.datagrams_again } += 1;
        Ok(())
    }

    /// Checks what must hold at any time: no request takes too long, no counter is behind, and the device reports no
    /// errors.
    pub(super) fn check(&mut self) -> Result<()> {
        while let Some(event) = self.objects.device.next_event() {
            ensure!(matches!(event, AsyncEvent::PortActive | AsyncEvent::PortError), "the device says {event:?}");
        }
        if let Some(oldest) = self.oldest()
            && oldest.since.elapsed() > PATIENCE
        {
            bail!("a request takes longer than {PATIENCE:?}: {}", self.outstanding());
        }
        self.sync_counters();
        for Tally { counter, kind, .. } in &self.objects.tallies {
            ensure!(counter.errors() == 0, "{counter:?} for {kind:?}, but nothing has failed");
        }
        for tally in &self.objects.tallies[..4] {
            let Tally { counter, kind, expected } = tally;
            ensure!(tally.ahead() <= 1024, "{counter:?} for {kind:?}, but {expected} were polled");
        }
        let skipped = self.objects.cqs.iter().map(CpuCompletionQueue::skipped).sum::<u64>();
        ensure!(skipped == 0, "{skipped} completions of nobody");
        Ok(())
    }

    /// Waits until the device has counted every completion that was polled. The device counts in the same step in which
    /// it writes the entry, and a call of the device waits until that step is over.
    fn sync_counters(&self) {
        if let Some(handle) = self.objects.device.soft_device() {
            handle.with(&mut |_| {});
        }
    }

    /// Returns `true` if none of this node's requests are outstanding and no slot waits for the other node.
    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_empty() && self.releases.is_empty() && self.slots.iter().all(Option::is_none)
    }

    /// Returns the numbers of everything that was sent.
    pub(super) fn sent(&self) -> Totals {
        self.sent
    }

    /// Returns `true` if everything that the other node sent has arrived and has been counted.
    pub(super) fn has_all(&mut self, theirs: &Totals) -> Result<bool> {
        self.arrivals.datagrams_lost = theirs.datagrams.saturating_sub(self.arrivals.datagrams);
        ensure!(self.arrivals.messages <= theirs.messages, "{} messages came, {theirs:?}", self.arrivals.messages);
        for tally in &mut self.objects.tallies {
            match tally.kind {
                CounterOps::REMOTE_RDMA_READ => tally.expected = theirs.reads_counted,
                CounterOps::REMOTE_RDMA_WRITE => tally.expected = theirs.writes_counted,
                _ => {}
            }
        }
        self.sync_counters();
        let counted = self.objects.tallies.iter().all(|tally| tally.ahead() == 0);
        Ok(counted && self.seen.is_exactly(theirs.messages) && self.arrivals.bytes == theirs.bytes)
    }

    fn oldest(&self) -> Option<&Pending> {
        self.pending.values().min_by_key(|pending| pending.since)
    }

    /// Describes what is outstanding, for error messages.
    pub(super) fn outstanding(&self) -> String {
        let rings: Vec<_> = self.objects.qps.iter().map(Qp::outstanding).collect();
        let oldest = self.oldest().map_or("none".into(), |Pending { what, q, len, since }| {
            format!("{what:?} of {len} bytes in queue pair {q} since {:.1?}", since.elapsed())
        });
        let unreleased = self.slots.iter().flatten().filter(|slot| slot.completed && !slot.released).count();
        let counters: Vec<_> = self.objects.tallies.iter().map(|t| (t.counter.completions(), t.expected)).collect();
        format!(
            "{} requests under way (by queue pair {rings:?}), the oldest: {oldest}; {unreleased} slots not released by the other \
             node, {} to be read back, {} to be released; {} messages came, the first missing is {}; counters and what they \
             should say: {counters:?}; {:?}",
            self.pending.len(),
            self.written.len(),
            self.releases.len(),
            self.arrivals.messages,
            self.seen.low(),
            self.objects.device.counters(),
        )
    }
}

/// Returns the range of the board that content in a slot takes.
fn extent(slot: u8, content: &Content) -> std::ops::Range<u64> {
    let (start, room) = place(slot);
    let at = start + content.choose(room - content.len()) as u64;
    at..at + content.len() as u64
}
