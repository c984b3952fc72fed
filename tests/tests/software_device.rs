//! Tests of the host API with features of software devices: completion queues with several sub-queues, datagrams,
//! counters, events, and programs that fork.

use efa_direct::sim::{Node, NodeConfig, Sim};
use efa_direct::*;
use efa_soft::driver::{IdleMode, LocalNetwork};
use efa_soft::{DeviceConfig, LinkConfig};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

fn node(device: Device, qp: QpConfig<8>) -> Node {
    Node::new(device, NodeConfig { cq: CqConfig::new(32), qp, ..NodeConfig::default() }).unwrap()
}

/// Creates two devices with a network of their own, in real time. The first device's completion queues have
/// this many sub-queues.
fn local(sub_cqs: u16) -> (LocalNetwork, [Device; 2]) {
    let network = LocalNetwork::start(LinkConfig::default(), IdleMode::Nap).unwrap();
    let devices = [(0, sub_cqs), (1, 1)].map(|(index, sub_cqs)| {
        let config = DeviceConfig { sub_cqs, ..DeviceConfig::new(Gid::local(index)) };
        Device::from_soft_device("local", network.add(config)).unwrap()
    });
    (network, devices)
}

/// Posts a write of eight bytes, and rings.
fn write(sq: &mut CpuSendQueue<8>, peer: &Peer, from: &Region<'_>, to: &Region<'_>, wr_id: u64) {
    let write = RdmaWrite::new(from.slice(..8).unwrap(), to.remote().slice(..8).unwrap());
    sq.post(peer, write, wr_id).unwrap();
    sq.ring();
}

/// Creates further queue pairs of a node and returns their send queues.
fn more_rings<const N: usize>(node: &Node) -> [CpuSendQueue<8>; N] {
    [(); N].map(|()| {
        let qp = node.pd.create_qp(&node.cq, &node.cq, QpConfig::new(8, 1)).unwrap();
        qp.activate(5).unwrap().send.into_cpu()
    })
}

#[test]
fn a_completion_queue_of_several_rings_is_read_as_one() {
    let mut sim = Sim::with_seed(1);
    let mut a = node(sim.device("a", |config| config.sub_cqs = 4).unwrap(), QpConfig::new(1, 1));
    let mut b = sim.node("b").unwrap();
    a.meet(&mut b).unwrap();
    let refused = a.device.create_cq(CqConfig::new(32)).unwrap().into_gpu().err().unwrap();
    assert_eq!(refused.error, HandOverError::SubQueues { count: 4 }, "{refused}");
    let mut rings: [_; 3] = more_rings(&a);
    let Node { mut cq, peers, memory, pd: _pd, .. } = a;
    let peer = &peers[&b.endpoint];
    for lap in 0..40 {
        // Different numbers of entries in each sub-queue, so that they wrap at different times.
        for (i, ring) in (0..).zip(&mut rings) {
            (0..=2 * i).for_each(|wr_id| write(ring, peer, &memory, &b.memory, lap * 100 + 10 * i + wr_id));
        }
        let mut ids: Vec<u64> = (0..9).map(|_| sim.completion(&mut cq).unwrap().wr_id).collect();
        ids.sort();
        assert_eq!(ids, [0, 10, 11, 12, 20, 21, 22, 23, 24].map(|id| lap * 100 + id));
        cq = cq.into_idle().unwrap().into_cpu(); // the position in each sub-queue is kept
    }
    assert_eq!((cq.poll_one(), cq.skipped()), (None, 0));
}

#[test]
fn a_sleeper_is_woken_by_a_completion_in_any_ring() {
    let (_network, [a, b]) = local(4);
    let cq = CqConfig::new(32).events();
    let mut a = Node::new(a, NodeConfig { cq, qp: QpConfig::new(1, 1), ..NodeConfig::default() }).unwrap();
    let mut b = node(b, QpConfig::new(1, 1));
    a.meet(&mut b).unwrap();
    let mut rings: [_; 2] = more_rings(&a);
    for i in 0..100 {
        write(&mut rings[i as usize % 2], &a.peers[&b.endpoint], &a.memory, &b.memory, i);
        let completion = loop {
            assert!(a.cq.wait_event(PATIENCE).unwrap(), "write {i} woke nobody");
            if let Some(completion) = a.cq.poll_one() {
                break completion;
            }
        };
        assert_eq!((completion.wr_id, completion.status), (i, Status::Ok));
    }
}

#[test]
fn a_datagram_arrives_behind_its_prefix_and_rdma_is_refused_before_it_is_posted() {
    let mut sim = Sim::with_seed(1);
    let config = QpConfig::new(4, 4).unreliable().recv_bufs(2);
    let [mut a, mut b] = ["a", "b"].map(|name| node(sim.device(name, |_| ()).unwrap(), config));
    a.learn(b.endpoint).unwrap();
    let buffers = [b.memory.slice(..u64::from(UD_PREFIX)).unwrap(), b.memory.slice(100..200).unwrap()];
    b.rq.post(&buffers, 3).unwrap();
    b.rq.ring();
    let id = a.send_inline(b"hello").imm(9).to(&b).unwrap();
    let sent = sim.completion(&mut a.cq).unwrap();
    assert_eq!((sent.wr_id, sent.status, sent.kind), (id, Status::Ok, CompletionKind::Send(OpCode::Send)));
    let completion = sim.completion(&mut b.cq).unwrap();
    let CompletionKind::Receive(received) = completion.kind else { panic!("{completion:?}") };
    assert_eq!((completion.wr_id, received.length, received.imm), (3, UD_PREFIX + 5, Some(9)));
    assert_eq!((received.ah, received.src_gid), (None, Some(a.endpoint.gid.0)), "nobody made a handle for the sender");
    assert_eq!(b.memory.read_vec(100..105).unwrap(), b"hello");

    for (refused, what) in [
        (a.write(..8).to(&b, 0), "RDMA write is not available on this queue"),
        (a.read(..8).from(&b, 0), "RDMA read is not available on this queue"),
    ] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(what), "{refused}");
    }
    for impossible in [config.unsolicited_write_recv(), config.rnr_retry(3)] {
        assert!(matches!(b.pd.create_qp(&b.cq, &b.cq, impossible).err(), Some(SetupError::Control(_))));
    }
    b.pd.create_qp(&b.cq, &b.cq, config.wqe_128()).unwrap();
}

#[test]
fn a_counter_counts_for_as_long_as_a_queue_pair_has_it() {
    let mut sim = Sim::with_seed(1);
    let device = sim.device("a", |config| config.attributes.max_counters = 1).unwrap();
    let counter = device.create_counter().unwrap();
    let mut b = sim.node("b").unwrap();
    let foreign = b.device.create_counter().unwrap();
    let mut a = Node::prepared(device.clone(), NodeConfig::default(), |qp| {
        qp.attach_counter(&counter, CounterOps::RDMA_WRITE)?;
        assert!(matches!(qp.attach_counter(&counter, CounterOps::RDMA_WRITE), Err(SetupError::Control(_))));
        assert!(matches!(qp.attach_counter(&foreign, CounterOps::SEND), Err(SetupError::ForeignCounter)));
        Ok(())
    })
    .unwrap();
    a.meet(&mut b).unwrap();
    counter.set(CounterValue::Completions, COUNTER_MAX).unwrap();
    let earlier = counter.completions();
    for _ in 0..3 {
        a.write(..8).to(&b, 0).unwrap();
    }
    sim.settle().unwrap();
    assert_eq!(counter.completions_since(earlier), 3);
    assert_eq!((counter.completions(), counter.errors()), (2, 0), "it wrapped");
    b.peers.clear();
    a.write(..8).to(&b, 0).unwrap();
    sim.settle().unwrap();
    assert_eq!((counter.completions(), counter.errors()), (2, 1));
    drop(counter);
    assert!(device.create_counter().is_err(), "the queue pair has the only one there is");
    drop(a);
    device.create_counter().unwrap();
}

#[test]
fn a_port_that_goes_down_is_an_event() {
    let mut sim = Sim::with_seed(1);
    let device = sim.device("a", |_| ()).unwrap();
    assert_eq!(device.next_event(), None);
    for up in [false, true] {
        device.soft_device().unwrap().with(&mut |device| device.set_port(up));
    }
    let events: Vec<_> = std::iter::from_fn(|| device.next_event()).collect();
    assert_eq!(events, [AsyncEvent::PortError, AsyncEvent::PortActive]);
}

#[test]
fn a_program_may_fork_in_the_middle_of_its_traffic() {
    let (_network, devices) = local(1);
    let [mut a, mut b] = devices.map(|device| node(device, QpConfig::new(16, 1)));
    a.meet(&mut b).unwrap();
    for round in 0..20u64 {
        a.memory.write(0, &round.to_le_bytes()).unwrap();
        for _ in 0..16 {
            a.write(..8).to(&b, 0).unwrap();
        }
        // SAFETY: the child calls only `_exit`, which is safe whatever the other threads of the parent were doing.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: `_exit` ends the child without running anything else of it.
            unsafe { libc::_exit(7) };
        }
        assert!(child > 0);
        for _ in 0..16 {
            assert_eq!(a.cq.wait(PATIENCE).unwrap().status, Status::Ok);
        }
        assert_eq!(b.memory.read_vec(..8).unwrap(), round.to_le_bytes());
        let mut status = 0;
        // SAFETY: `status` is a local to write to.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 7));
    }
}
