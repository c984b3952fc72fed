//! Tests with a C program on libefa at one end of the wire and `efa_direct` at the other.

use efa_direct::sim::{Node, NodeConfig};
use efa_direct::*;
use efa_tests::vendor::{EfaRun, Peer, QueuePairInfo, WorkCompletion, pattern};
use std::time::Duration;

/// Values of `enum ibv_wc_opcode`.
const RECV: u32 = 128;
const RECV_RDMA_WITH_IMM: u32 = 129;

pub(crate) const QKEY: u32 = 0x1234_5678;
pub(crate) const PEER_QKEY: u32 = 0x7654_3210;
/// The size of the peer's memory in bytes.
pub(crate) const MEMORY: usize = 1 << 20;
/// The offset at which this side receives. The memory in front of it is for sending.
const INBOX: u64 = 512 << 10;

/// The peer and this side, which know each other.
pub(crate) struct Pair {
    pub(crate) peer: Peer,
    pub(crate) queue: QueuePairInfo,
    /// The peer's memory: its address, local key and remote key.
    pub(crate) memory: (u64, u32, u32),
    /// The number of the peer's address handle for this side.
    pub(crate) ah: u16,
    pub(crate) side: Node,
    pub(crate) to_peer: efa_direct::Peer,
}

impl Pair {
    /// Creates a peer under this `efa run`, and this side on a device of this name. The options are those of the peer's
    /// queue pair, and `channel` for a completion channel or `counter` for a completion counter.
    pub(crate) fn new(node: &EfaRun, device: &str, options: &str) -> Self {
        Self::prepared(node, device, options, |peer| {
            peer.ask(if options.contains("channel") { "cq entries=256 channel" } else { "cq entries=256" });
            if options.contains("counter") {
                peer.ask("counter");
            }
            peer.create_memory(MEMORY)
        })
    }

    /// Creates both sides. `prepare` creates the peer's completion queue and memory.
    pub(crate) fn prepared(
        node: &EfaRun,
        device: &str,
        options: &str,
        prepare: impl FnOnce(&mut Peer) -> (u64, u32, u32),
    ) -> Self {
        let (mut peer, gid) = Peer::start(node);
        let memory = prepare(&mut peer);
        Self::of(peer, gid, memory, device, options)
    }

    /// Creates both sides with a peer that has opened the device with this GID and has everything but a queue pair.
    pub(crate) fn of(mut peer: Peer, gid: Gid, memory: (u64, u32, u32), device: &str, options: &str) -> Self {
        let side = Self::side(device, options);
        let queue = peer.create_qp(&format!("{options} qkey={PEER_QKEY}"));
        let ah = peer.meet(&side.endpoint);
        let to_peer = side.pd.peer(&Endpoint { gid, qpn: queue.qpn, qkey: PEER_QKEY }).unwrap();
        Self { peer, queue, memory, ah, side, to_peer }
    }

    /// Creates this side, for a peer whose queue pair has these options.
    pub(crate) fn side(device: &str, options: &str) -> Node {
        let qp = QpConfig::new(64, 64);
        let qp = if options.contains("ud ") { qp.unreliable() } else { qp };
        let qp = if options.contains("unsolicited") { qp.unsolicited_write_recv() } else { qp };
        let config = NodeConfig { qp, qkey: QKEY, ..NodeConfig::default() };
        Node::new(Device::open(device).unwrap(), config).unwrap()
    }

    /// Creates both sides on a good network.
    pub(crate) fn good(options: &str) -> Self {
        Self::new(&EfaRun::new(&[]), "soft:udp=127.0.0.1:0", options)
    }

    /// Creates both sides on a network that loses a tenth of all packets in both directions and reorders them.
    fn bad(options: &str) -> Self {
        let node = EfaRun::new(&["--soft", "loss=0.1,jitter=500us,seed=5"]);
        Self::new(&node, "soft:udp=127.0.0.1:0,loss=0.1,jitter=500us,seed=6", options)
    }

    /// Returns the peer's memory as the target of this side's requests.
    pub(crate) fn remote(&self) -> RemoteRegion {
        RemoteRegion { addr: self.memory.0, rkey: self.memory.2, len: MEMORY as u64 }
    }

    /// Posts a receive of 16 KiB on this side.
    pub(crate) fn post_recv(&mut self, wr_id: u64) {
        let inbox = self.side.memory.slice(INBOX..INBOX + (16 << 10)).unwrap();
        self.side.rq.post(&[inbox], wr_id).unwrap();
        self.side.rq.ring();
    }

    /// Posts a request to the peer and waits until it has completed.
    pub(crate) fn post(
        &mut self,
        post: impl FnOnce(&mut CpuSendQueue<8>, &efa_direct::Peer, &Region<'_>) -> Result<(), PostError>,
    ) -> Completion {
        let Node { sq, memory, cq, .. } = &mut self.side;
        post(sq, &self.to_peer, memory).unwrap();
        sq.ring();
        cq.wait(Duration::from_secs(30)).expect("the request completes")
    }

    /// Returns what this side receives next.
    pub(crate) fn received(&mut self) -> Received {
        let completion = self.side.cq.wait(Duration::from_secs(30)).expect("a message arrives");
        assert!(completion.status.is_ok(), "{completion:?}");
        match completion.kind {
            CompletionKind::Receive(received) => received,
            CompletionKind::Send(_) => panic!("no receive: {completion:?}"),
        }
    }

    /// Returns the peer's next completion and asserts that it belongs to this request.
    pub(crate) fn peer_done(&mut self, wr_id: u64) {
        let wc = self.peer.poll();
        assert_eq!((wc.wr_id, wc.status, wc.qp_num), (wr_id, 0, self.queue.qpn), "{wc:?}");
    }

    /// Fills this side's memory from `at` on.
    pub(crate) fn fill(&self, at: u64, len: usize, seed: u64) {
        self.side.memory.write(at, &pattern(seed, len)).unwrap();
    }

    pub(crate) fn assert_here(&self, at: u64, len: usize, seed: u64) {
        assert!(self.side.memory.read_vec(at..at + len as u64).unwrap() == pattern(seed, len), "{len} bytes of {seed}");
    }

    pub(crate) fn assert_there(&mut self, at: u64, len: usize, seed: u64) {
        assert_eq!(self.peer.ask(&format!("check at={at} len={len} seed={seed}")), "match", "{len} bytes of {seed}");
    }

    /// Sends a message of this length and with this immediate from the peer to this side.
    pub(crate) fn send_from_peer(&mut self, len: usize, imm: Option<u32>, how: &str, seed: u64) {
        self.post_recv(seed);
        self.peer.ask(&format!("fill at=100 len={len} seed={seed}"));
        let imm_word = imm.map(|imm| format!("imm={imm}")).unwrap_or_default();
        // Two buffers next to each other make one message.
        let (head, tail) = (len / 3, len - len / 3);
        let place = match how.contains("inline") {
            true => format!("at=100 len={len}"),
            false => format!("at=100 len={head} at2={} len2={tail}", 100 + head),
        };
        self.peer.ask(&format!("send id={seed} {place} {imm_word} {how}"));
        let received = self.received();
        assert_eq!((received.length, received.imm, received.src_qpn), (len as u32, imm, self.queue.qpn));
        self.assert_here(INBOX, len, seed);
        self.peer_done(seed);
    }

    /// Sends a message from this side to the peer.
    pub(crate) fn send_to_peer(&mut self, len: usize, imm: Option<u32>, inline: bool, seed: u64) {
        let at = 256 << 10;
        self.peer.ask(&format!("recv id={seed} at={at} len=5 at2={} len2=9000", at + 5));
        self.fill(0, len, seed);
        let data = pattern(seed, len);
        let done = self.post(|sq, peer, memory| {
            let slices = [memory.slice(..len as u64).unwrap()];
            let (message, small) = (Send::new(&slices), SendInline::new(&data));
            match (inline, imm) {
                (true, None) => sq.post(peer, small, seed),
                (true, Some(imm)) => sq.post(peer, small.imm(imm), seed),
                (false, None) => sq.post(peer, message, seed),
                (false, Some(imm)) => sq.post(peer, message.imm(imm), seed),
            }
        });
        assert_eq!((done.wr_id, done.status), (seed, Status::Ok));
        let wc = self.peer.poll();
        let expected = WorkCompletion {
            wr_id: seed,
            opcode: RECV,
            qp_num: self.queue.qpn,
            byte_len: len as u32,
            src_qp: self.side.endpoint.qpn,
            slid: self.ah,
            imm,
            ..Default::default()
        };
        assert_eq!(wc, expected);
        self.assert_there(at, len, seed);
    }

    /// Writes from the peer into this side's memory.
    pub(crate) fn write_from_peer(&mut self, len: usize, imm: Option<u32>, how: &str, seed: u64) {
        if imm.is_some() {
            self.post_recv(seed);
        }
        self.peer.ask(&format!("fill at=0 len={len} seed={seed}"));
        let remote = self.side.memory.remote();
        let imm_word = imm.map(|imm| format!("imm={imm}")).unwrap_or_default();
        self.peer
            .ask(&format!("write id={seed} at=0 len={len} to={} rkey={} {imm_word} {how}", remote.addr, remote.rkey));
        self.peer_done(seed);
        if imm.is_some() {
            let received = self.received();
            assert_eq!((received.imm, received.length), (imm, len as u32));
        }
        self.assert_here(0, len, seed);
    }

    /// Writes from this side into the peer's memory.
    pub(crate) fn write_to_peer(&mut self, len: usize, imm: Option<u32>, seed: u64) {
        if imm.is_some() {
            self.peer.ask(&format!("recv id={seed} at=0 len=0"));
        }
        self.fill(0, len, seed);
        let remote = self.remote().slice(..len as u64).unwrap();
        let done = self.post(|sq, peer, memory| {
            let write = RdmaWrite::new(memory.slice(..len as u64).unwrap(), remote);
            let write = imm.map_or(write, |imm| write.imm(imm));
            sq.post(peer, write, seed)
        });
        assert_eq!((done.wr_id, done.status), (seed, Status::Ok));
        if imm.is_some() {
            let wc = self.peer.poll();
            assert_eq!(
                (wc.wr_id, wc.opcode, wc.imm, wc.byte_len),
                (seed, RECV_RDMA_WITH_IMM, imm, len as u32),
                "{wc:?}"
            );
        }
        self.assert_there(0, len, seed);
    }

    /// Reads the other side's memory from both sides.
    pub(crate) fn read_both_ways(&mut self, len: usize, seed: u64) {
        self.fill(0, len, seed);
        let remote = self.side.memory.remote();
        self.peer.ask(&format!("read id={seed} at=0 len={len} to={} rkey={}", remote.addr, remote.rkey));
        self.peer_done(seed);
        self.assert_there(0, len, seed);

        self.peer.ask(&format!("fill at=0 len={len} seed={}", seed + 1));
        let remote = self.remote().slice(..len as u64).unwrap();
        let done = self.post(|sq, peer, memory| {
            let read = RdmaRead::new(memory.slice(..len as u64).unwrap(), remote);
            sq.post(peer, read, seed)
        });
        assert_eq!((done.wr_id, done.status), (seed, Status::Ok));
        self.assert_here(0, len, seed + 1);
    }

    /// Runs every operation once, in sizes around that of a packet.
    pub(crate) fn exchange_all(&mut self, seed: u64) {
        for (i, len) in [0, 1, 33, 4096, 8192].into_iter().enumerate() {
            let seed = seed + 10 * i as u64;
            self.send_from_peer(len, None, "", seed);
            self.send_from_peer(len, Some(seed as u32), "plain", seed + 1);
            self.send_to_peer(len, Some(u32::MAX - seed as u32), false, seed + 2);
            self.send_to_peer(len.min(32), None, true, seed + 3);
            self.send_from_peer(len.min(32), None, "inline", seed + 4);
        }
        for (i, len) in [1, 4096, 8929, 100_000, 500_000].into_iter().enumerate() {
            let seed = 1000 + seed + 10 * i as u64;
            self.write_from_peer(len, None, "", seed);
            self.write_from_peer(len, Some(seed as u32), "", seed + 1);
            self.write_to_peer(len, None, seed + 2);
            self.write_to_peer(len, Some(!seed as u32), seed + 3);
            self.read_both_ways(len, seed + 4);
        }
    }

    /// Makes the peer destroy all its objects, and asserts that each is destroyed without an error.
    pub(crate) fn close(mut self) {
        assert_eq!(self.peer.ask("close"), "ok");
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn everything_arrives_whole_in_both_directions() {
    let mut pair = Pair::good("sq=64 rq=64");
    pair.exchange_all(1);
    pair.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn everything_arrives_whole_over_a_bad_network() {
    let mut pair = Pair::bad("sq=64 rq=64");
    pair.exchange_all(1);
    let link = pair.side.device.link_counters().unwrap();
    assert!(link.lost > 0, "{link:?}");
    pair.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn wide_queue_pairs_carry_more_inline_and_write_inline() {
    let mut pair = Pair::good("sq=64 rq=64 wide");
    for (seed, len) in [(1, 33), (2, 80)] {
        pair.send_from_peer(len, Some(7), "inline", seed);
        pair.write_from_peer(len, None, "inline", seed + 10);
        pair.write_from_peer(len, Some(8), "inline", seed + 20);
    }
    pair.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn unsolicited_receives_consume_no_receive_on_either_side() {
    let mut pair = Pair::good("sq=64 rq=64 unsolicited");
    let remote = pair.side.memory.remote();
    pair.peer.ask(&format!("write id=1 at=0 len=64 to={} rkey={} imm=5", remote.addr, remote.rkey));
    pair.peer_done(1);
    assert_eq!(pair.received().imm, Some(5));

    let there = pair.remote().slice(..64).unwrap();
    pair.post(|sq, peer, memory| {
        let write = RdmaWrite::new(memory.slice(..64).unwrap(), there).imm(6);
        sq.post(peer, write, 2)
    });
    let wc = pair.peer.poll();
    assert_eq!((wc.status, wc.opcode, wc.imm, wc.unsolicited), (0, RECV_RDMA_WITH_IMM, Some(6), true), "{wc:?}");
    pair.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn datagrams_go_both_ways_with_room_for_a_header_in_front() {
    let mut pair = Pair::good("ud sq=64 rq=64");
    let (len, prefix) = (1000, UD_PREFIX as usize);
    pair.peer.ask(&format!("fill at=0 len={len} seed=1"));
    pair.post_recv(1);
    pair.peer.ask(&format!("send id=1 at=0 len={len}"));
    pair.peer_done(1);
    assert_eq!(pair.received().length as usize, len + prefix);
    pair.assert_here(INBOX + prefix as u64, len, 1);

    pair.peer.ask("recv id=2 at=0 len=8192");
    pair.fill(0, len, 2);
    pair.post(|sq, peer, memory| {
        let slices = [memory.slice(..len as u64).unwrap()];
        sq.post(peer, Send::new(&slices), 2)
    });
    let wc = pair.peer.poll_plain();
    assert_eq!((wc.wr_id, wc.status, wc.opcode, wc.byte_len as usize), (2, 0, RECV, len + prefix), "{wc:?}");
    pair.assert_there(prefix as u64, len, 2);
    pair.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn completion_channels_tell_of_arrivals() {
    let mut pair = Pair::good("sq=64 rq=64 channel");
    for seed in 1..4 {
        pair.peer.ask(&format!("recv id={seed} at=0 len=4096"));
        pair.peer.ask("arm");
        assert_eq!(pair.peer.ask("event ms=50"), "none");
        pair.post(|sq, peer, _| sq.post(peer, SendInline::new(b"wake up"), seed));
        assert_eq!(pair.peer.ask("event ms=10000"), "event");
        assert_eq!(pair.peer.poll().wr_id, seed);
        assert_eq!(pair.peer.ask("event ms=50"), "none");
    }
    pair.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn completion_counters_count_what_completes() {
    let mut pair = Pair::good("sq=64 rq=64 counter");
    assert_eq!(pair.peer.ask("count"), "count 0 0");
    pair.send_from_peer(100, None, "", 1);
    pair.send_to_peer(100, None, false, 2);
    assert_eq!(pair.peer.ask("count"), "count 2 0");
    let remote = pair.side.memory.remote();
    pair.peer.ask(&format!("write id=3 at=0 len=8 to={} rkey={}", remote.addr, remote.rkey ^ 0xffff));
    let wc = pair.peer.poll();
    assert_eq!((wc.wr_id, wc.vendor_err), (3, 7), "bad remote address or key: {wc:?}");
    assert_eq!(pair.peer.ask("count"), "count 2 1");
    pair.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn failures_have_the_status_that_the_hardware_gives_them() {
    let mut pair = Pair::good("sq=64 rq=64");
    let here = pair.side.endpoint;
    let remote = pair.side.memory.remote();
    // An invalid key, at both ends.
    pair.peer.ask(&format!("write id=1 at=0 len=8 to={} rkey={}", remote.addr, remote.rkey ^ 0xffff));
    assert_eq!(pair.peer.poll_plain().vendor_err, 7);
    let wrong = RemoteRegion { rkey: pair.memory.2 ^ 0xffff, ..pair.remote() }.slice(..8).unwrap();
    let done = pair.post(|sq, peer, memory| {
        let write = RdmaWrite::new(memory.slice(..8).unwrap(), wrong);
        sq.post(peer, write, 1)
    });
    assert_eq!(done.status, Status::RemoteBadAddress);
    // A message that is longer than the receive.
    pair.peer.ask("recv id=2 at=0 len=4");
    let done = pair.post(|sq, peer, _| sq.post(peer, SendInline::new(b"five!"), 2));
    assert_eq!(done.status, Status::RemoteBadLength);
    let wc = pair.peer.poll();
    assert_eq!((wc.wr_id, wc.vendor_err), (2, 6), "bad length: {wc:?}");
    // A queue pair that does not exist.
    pair.peer.meet(&Endpoint { qpn: here.qpn ^ 0xff, ..here });
    pair.peer.ask("send id=3 at=0 len=8");
    let wc = pair.peer.poll();
    assert_eq!((wc.wr_id, wc.vendor_err), (3, 9), "bad destination QP: {wc:?}");
    pair.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn a_message_from_a_stranger_has_its_address_instead_of_a_handle() {
    let device = Device::open("soft:udp=127.0.0.1:0").unwrap();
    let mut side = Node::new(device, NodeConfig { qkey: QKEY, ..NodeConfig::default() }).unwrap();
    let (mut peer, gid) = Peer::start(&EfaRun::new(&[]));
    peer.ask("cq entries=64");
    peer.create_memory(4096);
    let queue = peer.create_qp(&format!("sq=16 rq=16 qkey={PEER_QKEY}"));
    peer.ask("recv id=1 at=0 len=4096");
    let to_peer = side.pd.peer(&Endpoint { gid, qpn: queue.qpn, qkey: PEER_QKEY }).unwrap();
    side.sq.post(&to_peer, SendInline::new(b"hello"), 1).unwrap();
    side.sq.ring();
    let wc = peer.poll();
    assert_eq!((wc.slid, wc.sgid, wc.src_qp), (0xffff, Some(side.endpoint.gid), side.endpoint.qpn), "{wc:?}");
}
