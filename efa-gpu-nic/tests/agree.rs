//! NIC and software device agree: given the same requests, valid and invalid, both report the same statuses and leave
//! the same bytes.

mod common;
#[path = "../../efa-soft/tests/common/mod.rs"]
mod soft;

use common::{A, B, QKEY, TestWorld, wqe};
use efa_io::cqe::Received;
use efa_io::op::Bufs;
use efa_io::*;
use efa_memory::Backing;
use soft::world;

/// An address in a region: bytes from its start, or from its end.
#[derive(Clone, Copy, Debug)]
enum Place {
    Start(i64),
    End(i64),
}

/// A request, and what is wrong with it.
#[derive(Clone, Debug)]
struct Ask {
    kind: u8,
    bufs: Vec<(Place, u32)>,
    remote: Place,
    imm: Option<u32>,
    wrong_ah: bool,
    wrong_qpn: bool,
    wrong_qkey: bool,
    wrong_lkey: bool,
    wrong_rkey: bool,
    /// The receive that is there: lengths, and whether its keys are wrong.
    receive: Vec<u16>,
    wrong_receive: bool,
}

/// What a program knows of one of the two worlds.
struct Names {
    to: Destination,
    local: (u64, u64, u32),
    remote: (u64, u64, u32),
}

fn place((start, len, _): (u64, u64, u32), place: Place) -> u64 {
    match place {
        Place::Start(at) => start.wrapping_add_signed(at),
        Place::End(at) => (start + len).wrapping_add_signed(at),
    }
}

impl Ask {
    fn random(rng: &mut fastrand::Rng) -> Self {
        // Mostly right, else any.
        let odd = |rng: &mut fastrand::Rng| rng.u8(..12) == 0;
        let at = |rng: &mut fastrand::Rng| match rng.u8(..12) {
            0 => Place::Start(-1),
            1 => Place::End(-(rng.i64(..20))),
            _ => Place::Start(rng.i64(2000..4000)),
        };
        let lengths = [0, 1, 7, 20, 100, 500, 999, 1000, 1001, 3999, 4000, 4001];
        let len = |rng: &mut fastrand::Rng| {
            let short = rng.bool();
            lengths[rng.usize(..if short { 6 } else { lengths.len() })]
        };
        let kind = rng.u8(..4);
        let bufs = if kind == 0 { rng.usize(..3) } else { 1 };
        Self {
            kind,
            bufs: (0..bufs).map(|_| (at(rng), len(rng))).collect(),
            remote: at(rng),
            imm: rng.bool().then(|| rng.u32(..)),
            wrong_ah: odd(rng),
            wrong_qpn: odd(rng),
            wrong_qkey: odd(rng),
            wrong_lkey: odd(rng),
            wrong_rkey: odd(rng),
            receive: (0..rng.usize(1..4)).map(|_| len(rng).min(1000) as u16).collect(),
            wrong_receive: odd(rng),
        }
    }

    fn wqe(&self, names: &Names) -> Wqe64 {
        let Destination { ah, qpn, qkey } = names.to;
        let to = Destination {
            ah: if self.wrong_ah { 0 } else { ah },
            qpn: if self.wrong_qpn { 0 } else { qpn },
            qkey: qkey ^ u32::from(self.wrong_qkey),
        };
        let lkey = Lkey::new(names.local.2 ^ u32::from(self.wrong_lkey)).unwrap();
        let local = |(at, length): (Place, u32)| LocalBuf { addr: place(names.local, at), lkey, length };
        let remote =
            RemoteBuf { addr: place(names.remote, self.remote), rkey: names.remote.2 ^ u32::from(self.wrong_rkey) };
        let (imm, hints) = (self.imm, Hints::NONE);
        match self.kind {
            0 => {
                let bufs: Vec<_> = self.bufs.iter().copied().map(local).collect();
                wqe(Send { bufs: Bufs::new(&bufs).unwrap(), imm, hints }, to)
            }
            1 => {
                let data = [7; 32];
                wqe(SendInline { data: &data[..self.bufs[0].1 as usize % 33], imm, hints }, to)
            }
            2 => wqe(RdmaWrite { local: local(self.bufs[0]), remote, imm, hints }, to),
            _ => wqe(RdmaRead { local: local(self.bufs[0]), remote, hints }, to),
        }
    }

    /// Whether it takes a receive, should nothing else be wrong with it.
    fn wants_receive(&self) -> bool {
        self.kind < 2 || self.kind == 2 && self.imm.is_some()
    }
}

/// What of a completion both must agree about.
fn essence(completion: Completion, sent: u32) -> String {
    let event = match completion.event {
        Event::Send { op } => format!("{op} {}", completion.req_id as u16 == (sent - 1) as u16),
        Event::Receive(received) => {
            let Received { op, length, ah, imm, unsolicited, .. } = received;
            format!("receive {} of {op}, {length}, {}, {imm:?}, {unsolicited}", completion.req_id, ah.is_some())
        }
    };
    format!("{}, {event}", completion.status)
}

/// One request in fresh worlds of both kinds; gives its status.
fn agree(ask: &Ask, unsolicited: bool, known: bool) -> Status {
    let note = |completions: &mut Vec<String>, completion, sent| {
        completions.push(essence(completion, sent));
        completions.sort();
    };
    let bytes = |node: usize| -> Vec<u8> {
        (0..16_384u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ node as u8).collect()
    };
    // The software device.
    let mut theirs = world::World::with(|setup| {
        (setup.device.attributes.mtu, setup.device.attributes.max_rdma_bytes) = (1000, 4000);
        setup.qp.unsolicited_write_recv = unsolicited;
    });
    for node in [A, B] {
        assert!(theirs.hosts[node].memory.write(0, &bytes(node)));
    }
    if !known {
        let (pd, ah) = (theirs.hosts[B].pd, theirs.hosts[B].ahs[A]);
        theirs.device(B).destroy_ah(pd, ah).unwrap();
    }
    let region = |world: &world::World, node: usize, rkey: bool| {
        let keys = world.hosts[node].keys;
        (world::ADDR, world::BYTES as u64, if rkey { keys.rkey } else { keys.lkey })
    };
    let names = Names { to: theirs.to(A, B), local: region(&theirs, A, false), remote: region(&theirs, B, true) };
    let lkey = theirs.hosts[B].keys.lkey ^ u32::from(ask.wrong_receive);
    theirs.hosts[B].qp.receive(lkey, world::ADDR, &ask.receive);
    theirs.post(A, [ask.wqe(&names)]);
    let (mut expected, completion) = (vec![], theirs.completion(A));
    note(&mut expected, completion, 1);
    let status = completion.status;
    while let Some(completion) = theirs.hosts[B].cq.take() {
        note(&mut expected, completion, 0);
    }
    // The NIC.
    let mut ours = TestWorld::of(2, |node, setup| {
        (setup.device.mtu, setup.device.max_rdma_bytes) = (1000, 4000);
        setup.unsolicited = unsolicited;
        setup.acquainted = known || node == A;
    });
    for node in [A, B] {
        ours.fill(node, &bytes(node));
    }
    let region = |node: usize, rkey: bool| {
        let keys = ours.nodes[node].keys;
        (ours.nodes[node].addr, common::BYTES as u64, if rkey { keys.rkey } else { keys.lkey })
    };
    let names = Names { to: ours.to(A, B), local: region(A, false), remote: region(B, true) };
    let lkey = Lkey::new(ours.nodes[B].keys.lkey ^ u32::from(ask.wrong_receive)).unwrap();
    let mut seen = vec![];
    ours.run(1, || {
        let (mut a, mut b) = (ours.poster(A), ours.poster(B));
        let mut at = 0;
        let bufs: Vec<_> = ask
            .receive
            .iter()
            .map(|&length| {
                at += length as usize;
                LocalBuf { lkey, ..ours.local(B, at - length as usize, length.into()) }
            })
            .collect();
        b.receive(&bufs);
        a.put(ask.wqe(&names));
        a.ring();
        note(&mut seen, a.completion(), 1);
        if expected.len() > 1 {
            note(&mut seen, b.completion(), 0);
        }
        assert!(b.cq.poll().is_none());
    });
    assert_eq!(seen, expected, "{ask:?}");
    for node in [A, B] {
        assert!(ours.bytes(node, 0, 16_384) == theirs.bytes(node, 16_384), "memory of node {node}: {ask:?}");
    }
    status
}

#[test]
fn nic_and_software_device_agree_about_requests_right_and_wrong() {
    let mut rng = fastrand::Rng::with_seed(9);
    let mut statuses = std::collections::BTreeMap::<_, u32>::new();
    for _ in 0..500 {
        let ask = Ask::random(&mut rng);
        let (unsolicited, known) = (rng.bool() && ask.wants_receive(), rng.u8(..8) != 0);
        *statuses.entry(agree(&ask, unsolicited, known).code()).or_default() += 1;
    }
    // Everything that one request can be answered with here was.
    assert!([0, 4, 5, 6, 7, 9, 11, 12, 14].iter().all(|code| statuses.contains_key(code)), "{statuses:?}");
    assert_eq!(QKEY, world::QKEY);
}
