//! Tests of the host API's promises on simulated devices: limits, ownership, completions and statuses.

mod common;

use efa_direct::sim::{Node, NodeConfig, Sim};
use efa_direct::*;
use std::sync::Arc;
use std::time::Duration;

/// Adds a node. Its queue pair retransmits a message three times if the receiver is not ready.
fn node(sim: &mut Sim, name: &str, qp: QpConfig<8>, cq_entries: u32, req_id_64: bool) -> Node {
    let device = sim.device(name, |config| config.req_id_64 = req_id_64).unwrap();
    let config = NodeConfig { cq: CqConfig::new(cq_entries), qp: qp.rnr_retry(3), ..NodeConfig::default() };
    Node::new(device, config).unwrap()
}

/// Creates two nodes that have met, with queue pairs of this configuration.
fn pair_with(qp: QpConfig<8>, cq_entries: u32) -> (Sim, Node, Node) {
    let mut sim = common::sim();
    let [mut a, mut b] = ["a", "b"].map(|name| node(&mut sim, name, qp, cq_entries, false));
    a.meet(&mut b).unwrap();
    (sim, a, b)
}

/// Creates two nodes that have met.
fn pair() -> (Sim, Node, Node) {
    pair_with(QpConfig::new(16, 16), 64)
}

/// Checks that a queue refused a request for this reason.
fn assert_refused(answer: Result<(), Error>, reason: PostError) {
    assert!(matches!(answer, Err(Error::Post(error)) if error == reason), "{answer:?}");
}

/// Writes the first `length` bytes of a's memory to this range of a region at b. Returns the status.
fn status_of_write(
    sim: &mut Sim,
    a: &mut Node,
    b: &Node,
    length: u64,
    remote: RemoteRegion,
    at: std::ops::Range<u64>,
) -> Status {
    let write = RdmaWrite::new(a.memory.slice(..length).unwrap(), remote.slice(at).unwrap());
    a.sq.post(&a.peers[&b.endpoint], write, 7).unwrap();
    a.sq.ring();
    let completion = sim.completion(&mut a.cq).unwrap();
    assert_eq!((completion.wr_id, completion.kind), (7, CompletionKind::Send(OpCode::RdmaWrite)));
    completion.status
}

#[test]
fn a_full_ring_refuses_with_the_numbers_and_takes_more_once_completions_were_polled() {
    let (mut sim, mut a, mut b) = pair();
    for i in 0..16 {
        a.post(&b, SendInline::new(b"x"), i).unwrap();
    }
    let full = PostError::RingFull { entries: 16, outstanding: 16 };
    assert_refused(a.post(&b, SendInline::new(b"x"), 16), full);
    assert_eq!(full.to_string(), "the ring holds 16, 16 are outstanding: poll completions and try again");
    for _ in 0..16 {
        b.receive(..64).unwrap();
    }
    a.sq.ring();
    assert_eq!(a.sq.room(), 0);
    sim.completion(&mut a.cq).unwrap();
    assert_eq!(a.sq.room(), 1);
    a.post(&b, SendInline::new(b"x"), 16).unwrap();
    assert_refused(a.post(&b, SendInline::new(b"x"), 17), full);
}

#[test]
fn a_ring_stops_at_its_share_of_the_completion_queue() {
    let (_sim, mut a, b) = pair_with(QpConfig::new(16, 4).send_share(5), 16);
    for i in 0..5 {
        a.post(&b, SendInline::new(b"x"), i).unwrap();
    }
    let refused = a.post(&b, SendInline::new(b"x"), 5);
    assert_refused(refused, PostError::CompletionQueueFull { share: 5, outstanding: 5 });
}

#[test]
fn rings_that_a_completion_queue_cannot_hold_are_not_created() {
    let mut sim = common::sim();
    let device = sim.device("a", |_| ()).unwrap();
    let pd = device.alloc_pd().unwrap();
    let cq = device.create_cq(CqConfig::new(32)).unwrap();
    let first = pd.create_qp(&cq, &cq, QpConfig::new(16, 8)).unwrap();
    let refused = pd.create_qp(&cq, &cq, QpConfig::new(16, 8)).err().unwrap();
    assert!(refused.to_string().contains("holds 32 entries, 24 are promised to other rings, 16 more"), "{refused}");
    drop(first);
    pd.create_qp(&cq, &cq, QpConfig::new(16, 8)).unwrap();
}

#[test]
fn a_request_that_cannot_be_is_refused_before_anything_is_written() {
    let (_sim, mut a, b) = pair();
    let foreign_pd = a.device.alloc_pd().unwrap();
    let foreign = foreign_pd.allocate(64, Access::ALL).unwrap();
    let foreign_peer = foreign_pd.peer(&b.endpoint).unwrap();
    let remote = b.memory.remote();
    let mtu = u64::from(a.device.attributes().mtu);

    let own = |length| a.memory.slice(..length).unwrap();
    let to_b = &a.peers[&b.endpoint];
    let errors = [
        a.sq.post(to_b, Send::new(&[foreign.slice(..).unwrap()]), 1),
        a.sq.post(&foreign_peer, SendInline::new(b"x"), 1),
        a.sq.post(to_b, RdmaWrite::new(own(8), remote.slice(..9).unwrap()), 1),
        a.sq.post(to_b, SendInline::new(&[0; 33]), 1),
        a.sq.post(to_b, Send::new(&[own(mtu + 1)]), 1),
        a.sq.post(to_b, Send::new(&[own(1); 3]), 1),
    ];
    let texts = [
        "the region belongs to protection domain",
        "the peer belongs to protection domain",
        "the local slice has 8 bytes, the remote one 9",
        "33 bytes inline, 32 fit",
        "send of 8929 bytes, the device takes 8928",
        "3 buffers in one WQE, this queue takes 2",
    ];
    for (error, text) in errors.into_iter().zip(texts) {
        let error = error.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    assert_eq!((a.sq.outstanding(), a.sq.room()), (0, 16));
    a.sq.ring();
    assert_eq!(a.sq.doorbell().value(), 0, "nothing was posted, so nothing is rung");
    let too_far = a.memory.slice(0..(1 << 20) + 1).unwrap_err().to_string();
    assert_eq!(too_far, "bytes 0..1048577 are out of range: the memory has 1048576 bytes");
}

#[test]
fn a_receive_that_cannot_be_is_refused_before_anything_is_written() {
    let (_sim, _a, mut b) = pair();
    let refused = [
        b.rq.post(&[], 1),
        b.rq.post(&[b.memory.slice(..8).unwrap(); 2], 1),
        b.rq.post(&[b.memory.slice(..65536).unwrap()], 1),
    ];
    assert_eq!(refused[0], Err(PostError::ReceiveBuffers { given: 0, max: 1 }));
    assert_eq!(refused[1], Err(PostError::ReceiveBuffers { given: 2, max: 1 }));
    assert_eq!(refused[2], Err(PostError::ReceiveTooLong { given: 65536 }));
    for i in 0..16 {
        b.rq.post(&[b.memory.slice(..8).unwrap()], i).unwrap();
    }
    let full = b.rq.post(&[b.memory.slice(..8).unwrap()], 16);
    assert_eq!(full, Err(PostError::RingFull { entries: 16, outstanding: 16 }));
}

#[test]
fn a_full_batch_rings_by_itself() {
    let (_sim, mut a, b) = pair_with(QpConfig::new(256, 4), 512);
    let batch = a.sq.max_batch();
    assert!(batch < 256);
    for i in 0..batch - 1 {
        a.post(&b, SendInline::new(b"x"), i.into()).unwrap();
        assert_eq!(a.sq.doorbell().value(), 0);
    }
    a.post(&b, SendInline::new(b"x"), 0).unwrap();
    assert_eq!(a.sq.doorbell().value(), batch);
}

#[test]
fn a_ring_changes_hands_only_when_drained_and_keeps_its_counter() {
    let (mut sim, mut a, mut b) = pair();
    for _ in 0..3 {
        b.receive(..8).unwrap();
        a.post(&b, SendInline::new(b"x"), 1).unwrap();
    }
    let Node { sq, mut cq, peers, .. } = a;
    let refused = sq.into_idle().unwrap_err();
    assert_eq!(refused.error, HandOverError::Outstanding { outstanding: 3 });
    assert_eq!(refused.to_string(), "3 work requests are outstanding: poll their completions first");
    for _ in 0..3 {
        sim.completion(&mut cq).unwrap();
    }
    let gpu = refused.value.into_idle().unwrap().into_gpu();
    let handle = gpu.handle();
    assert_eq!((handle.producer, handle.mask, handle.credits, handle.wqe_size), (3, 15, 16, 64));
    // SAFETY: no GPU uses the ring, and the doorbell was not rung after the three requests that have completed. The
    // positions are wrong on purpose; they are refused before they are used.
    let gpu = unsafe { gpu.into_idle(10, 9) }.unwrap_err().value;
    // SAFETY: no GPU uses the ring, and nothing is outstanding.
    let mut sq = unsafe { gpu.into_idle(10, 10) }.unwrap().into_cpu();
    assert_eq!(sq.room(), 16);
    sq.post(&peers[&b.endpoint], SendInline::new(b"x"), 1).unwrap();
    sq.ring();
    assert_eq!(sq.doorbell().value(), 11);
}

#[test]
fn a_number_is_not_given_out_again_while_completions_of_its_last_life_lie_unpolled() {
    for wide_ids in [false, true] {
        let mut sim = common::sim();
        let device = sim
            .device("a", |config| {
                config.req_id_64 = wide_ids;
                // A number has two bits left to distinguish queue pairs of one index.
                config.attributes.max_qp = 1 << 14;
            })
            .unwrap();
        let pd = device.alloc_pd().unwrap();
        let nobody = pd.peer(&Endpoint { gid: Gid::local(99), qpn: 5, qkey: 5 }).unwrap();
        let mut cq = device.create_cq(CqConfig::new(64)).unwrap().into_cpu();
        let life = |cq: &CpuCompletionQueue, completes: bool| {
            let qp = pd.create_qp(cq, cq, QpConfig::new(2, 1)).unwrap().activate(1).unwrap();
            let mut sq = qp.send.into_cpu();
            if completes {
                sq.post(&nobody, SendInline::new(b"x"), 111).unwrap();
                sq.ring();
                qp.control.fail().unwrap();
            }
            qp.endpoint.qpn
        };
        let mut numbers = vec![life(&cq, true), life(&cq, true), life(&cq, true)];
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 3, "each completion is of a number of its own");

        let qp = pd.create_qp(&cq, &cq, QpConfig::new(2, 1)).unwrap().activate(1).unwrap();
        assert!(!numbers.contains(&qp.endpoint.qpn));
        let mut sq = qp.send.into_cpu();
        sq.post(&nobody, SendInline::new(b"x"), 222).unwrap();
        sq.ring();
        assert_eq!((cq.poll_one(), cq.skipped(), sq.outstanding(), sq.room()), (None, 3, 1, 1));
        // The ring was empty, so the numbers are free, and a device with no other numbers uses them again.
        assert!(device.attributes().max_qp != 1 << 14 || numbers.contains(&life(&cq, false)));
        qp.control.fail().unwrap();
        let done = cq.poll_one().unwrap();
        assert_eq!((done.wr_id, done.status, done.qpn), (222, Status::Flushed, qp.endpoint.qpn));
    }
}

#[test]
fn a_completion_ring_changes_hands_only_when_everything_in_it_was_polled() {
    let (mut sim, mut a, mut b) = pair();
    b.receive(..8).unwrap();
    let id = a.send_inline(b"x").to(&b).unwrap();
    sim.advance(Duration::from_millis(5));
    let refused = a.cq.into_idle().unwrap_err();
    assert_eq!(refused.error, HandOverError::Unpolled);
    let mut cq = refused.value;
    assert_eq!(cq.poll_one().map(|completion| completion.wr_id), Some(id));
    assert_eq!(cq.into_idle().unwrap().into_gpu().unwrap().handle().consumer, 1);
}

#[test]
fn ids_of_64_bits_come_back_on_devices_of_either_kind_over_many_laps() {
    for req_id_64 in [[false, true], [true, false]] {
        let mut sim = common::sim();
        let mut a = node(&mut sim, "a", QpConfig::new(16, 16), 64, req_id_64[0]);
        let mut b = node(&mut sim, "b", QpConfig::new(16, 16), 64, req_id_64[1]);
        a.meet(&mut b).unwrap();
        let id = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for lap in 0..100u64 {
            for i in 0..16 {
                b.rq.post(&[b.memory.slice(..8).unwrap()], !id(lap * 16 + i)).unwrap();
                a.post(&b, SendInline::new(b"x"), id(lap * 16 + i)).unwrap();
            }
            b.rq.ring();
            a.sq.ring();
            let mut sent: Vec<u64> = (0..16).map(|_| sim.completion(&mut a.cq).unwrap().wr_id).collect();
            let mut received: Vec<u64> = (0..16).map(|_| sim.completion(&mut b.cq).unwrap().wr_id).collect();
            let mut expected: Vec<u64> = (lap * 16..lap * 16 + 16).map(id).collect();
            for ids in [&mut sent, &mut received, &mut expected] {
                ids.sort();
            }
            assert_eq!(sent, expected);
            received.reverse();
            assert_eq!(received.iter().map(|id| !id).collect::<Vec<_>>(), expected);
        }
    }
}

#[test]
fn a_small_message_overtakes_a_stalled_large_one() {
    let (mut sim, mut a, b) = pair();
    let large = a.write(..1 << 19).to(&b, 0).unwrap();
    let small = a.write(..8).to(&b, 1 << 19).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().wr_id, small);
    assert_eq!(sim.completion(&mut a.cq).unwrap().wr_id, large);
}

#[test]
fn an_access_that_the_remote_region_does_not_allow_is_refused_there_and_touches_nothing() {
    let (mut sim, mut a, b) = pair();
    a.memory.write(0, &[0xff; 64]).unwrap();
    let read_only = b.pd.allocate_shared(64, Access::REMOTE_READ).unwrap();
    let target = b.pd.allocate_shared(64, Access::REMOTE_WRITE).unwrap();
    let good = target.remote();
    assert_eq!(status_of_write(&mut sim, &mut a, &b, 64, good, 0..64), Status::Ok);
    assert_eq!(target.read_vec(..).unwrap(), [0xff; 64]);
    a.memory.write(0, &[0xaa; 64]).unwrap();

    let longer = RemoteRegion { len: 65, ..good };
    assert_eq!(
        status_of_write(&mut sim, &mut a, &b, 64, longer, 1..65),
        Status::RemoteBadAddress,
        "one byte past the end"
    );
    let earlier = RemoteRegion { addr: good.addr - 1, ..good };
    assert_eq!(
        status_of_write(&mut sim, &mut a, &b, 64, earlier, 0..64),
        Status::RemoteBadAddress,
        "one byte before the start"
    );
    let wrapping = RemoteRegion { addr: u64::MAX - 7, ..good };
    assert_eq!(
        status_of_write(&mut sim, &mut a, &b, 64, wrapping, 0..64),
        Status::RemoteBadAddress,
        "around the end of memory"
    );
    let guessed = RemoteRegion { rkey: good.rkey ^ 1, ..good };
    assert_eq!(status_of_write(&mut sim, &mut a, &b, 64, guessed, 0..64), Status::RemoteBadAddress, "another key");
    assert_eq!(
        status_of_write(&mut sim, &mut a, &b, 64, read_only.remote(), 0..64),
        Status::RemoteBadAddress,
        "no right to write"
    );
    assert_eq!(target.read_vec(..).unwrap(), [0xff; 64]);
    assert_eq!(read_only.read_vec(..).unwrap(), [0; 64]);
    drop(target);
    assert_eq!(status_of_write(&mut sim, &mut a, &b, 64, good, 0..64), Status::RemoteBadAddress, "deregistered");
}

#[test]
fn a_region_may_go_while_requests_are_under_way_and_they_fail() {
    let (mut sim, mut a, b) = pair();
    let source = a.pd.allocate_shared(1 << 19, Access::LOCAL_READ).unwrap();
    let write = RdmaWrite::new(source.slice(..).unwrap(), b.memory.remote().slice(..1 << 19).unwrap());
    a.post(&b, write, 5).unwrap();
    a.sq.ring();
    sim.step(Duration::from_micros(1));
    drop(source);
    let completion = sim.completion(&mut a.cq).unwrap();
    assert_eq!((completion.wr_id, completion.status), (5, Status::InvalidLkey));
}

#[test]
fn a_destination_that_is_not_there_says_so() {
    let (mut sim, mut a, b) = pair();
    let mut ask = |endpoint| {
        let peer = a.pd.peer(&endpoint).unwrap();
        a.sq.post(&peer, SendInline::new(b"x"), 1).unwrap();
        a.sq.ring();
        sim.completion(&mut a.cq).unwrap().status
    };
    let there = b.endpoint;
    assert_eq!(ask(Endpoint { qpn: there.qpn + 1, ..there }), Status::RemoteBadDestQpn);
    assert_eq!(ask(Endpoint { qkey: there.qkey + 1, ..there }), Status::RemoteBadDestQpn);
    assert_eq!(ask(Endpoint { gid: Gid::local(77), ..there }), Status::UnreachableRemote);
    assert_eq!(ask(there), Status::RemoteRnr, "nothing was posted to receive it");
    assert_eq!(ask(a.endpoint), Status::UnreachableRemote, "the hardware does not deliver to itself");
}

#[test]
fn rdma_needs_an_address_handle_on_both_sides() {
    let (mut sim, mut a, mut b) = pair();
    b.peers.clear();
    a.write(..8).to(&b, 0).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::RemoteUnknownPeer);
    // A send does not need one. The receiver then gets the sender's GID instead of a handle.
    b.receive(..8).unwrap();
    a.send_inline(b"hi").to(&b).unwrap();
    let CompletionKind::Receive(received) = sim.completion(&mut b.cq).unwrap().kind else { panic!() };
    assert_eq!((received.ah, received.src_gid), (None, Some(a.endpoint.gid.0)));
}

#[test]
fn a_message_longer_than_the_receive_fails_on_both_sides() {
    let (mut sim, mut a, mut b) = pair();
    let receive = b.receive(..3).unwrap();
    a.send_inline(b"four").to(&b).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::RemoteBadLength);
    let completion = sim.completion(&mut b.cq).unwrap();
    assert_eq!((completion.wr_id, completion.status), (receive, Status::BadLength));
    assert_eq!(b.memory.read_vec(..4).unwrap(), [0; 4]);
}

#[test]
fn failing_a_queue_pair_flushes_what_is_outstanding_and_lets_its_rings_go() {
    let (mut sim, mut a, b) = pair();
    for i in 0..4 {
        a.rq.post(&[a.memory.slice(..8).unwrap()], 100 + i).unwrap();
        a.post(&b, SendInline::new(b"x"), i).unwrap();
    }
    a.rq.ring();
    a.sq.ring();
    sim.step(Duration::from_micros(1)); // outstanding, without a receive
    a.control.fail().unwrap();
    let mut ids: Vec<u64> = (0..8)
        .map(|_| {
            let completion = sim.completion(&mut a.cq).unwrap();
            assert_eq!(completion.status, Status::Flushed);
            completion.wr_id
        })
        .collect();
    ids.sort();
    assert_eq!(ids, [0, 1, 2, 3, 100, 101, 102, 103]);
    a.send_inline(b"x").to(&b).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::Flushed);
    a.sq.into_idle().unwrap();
    a.rq.into_idle().unwrap();
}

#[test]
fn completions_of_a_queue_pair_that_is_gone_are_skipped() {
    let (mut sim, mut a, mut b) = pair();
    b.receive(..8).unwrap();
    a.send_inline(b"x").to(&b).unwrap();
    sim.advance(Duration::from_millis(5));
    let Node { pd, mut cq, sq, rq, control, endpoint, .. } = a;
    drop((sq, rq, control));
    let again = pd.create_qp(&cq, &cq, QpConfig::new(16, 16)).unwrap();
    assert_ne!(again.qpn(), endpoint.qpn, "a number does not come back at once");
    assert_eq!((cq.poll_one(), cq.skipped()), (None, 1));
}

#[test]
fn reads_of_any_length_bring_exactly_their_bytes() {
    let (mut sim, mut a, b) = pair();
    for (length, at) in [(0, 5), (1, 5), (4097, 3)] {
        b.memory.write(0, &[7; 5000]).unwrap();
        a.read(..length).from(&b, at).unwrap();
        assert!(sim.completion(&mut a.cq).unwrap().status.is_ok());
        assert_eq!(a.memory.read_vec(..length).unwrap(), vec![7; length as usize]);
        assert_eq!(a.memory.read_vec(length..length + 8).unwrap(), [0; 8]);
    }
}

#[test]
fn an_operation_that_the_device_lacks_is_refused_when_posted() {
    let mut sim = common::sim();
    let device = sim.device("a", |config| config.attributes.rdma_read = false).unwrap();
    assert!(!device.attributes().rdma_read);
    let pd = device.alloc_pd().unwrap();
    let cq = device.create_cq(CqConfig::new(16)).unwrap();
    let qp = pd.create_qp(&cq, &cq, QpConfig::new(4, 4)).unwrap().activate(1).unwrap();
    let peer = pd.peer(&Endpoint { gid: Gid::local(1), qpn: 1, qkey: 1 }).unwrap();
    let memory = pd.allocate(8, Access::ALL).unwrap();
    let remote = memory.remote().slice(..).unwrap();
    let refused = qp.send.into_cpu().post(&peer, RdmaRead::new(memory.slice(..).unwrap(), remote), 1).unwrap_err();
    assert!(refused.to_string().contains("RDMA read is not available on this queue"), "{refused}");
}

#[test]
fn a_peer_that_stops_answering_is_told_from_one_that_never_did() {
    let (mut sim, mut a, b) = pair();
    a.write(..8).to(&b, 0).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::Ok);
    sim.kill("b").unwrap();
    let before = sim.now();
    a.write(..8).to(&b, 0).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::UnresponsiveRemote);
    let patience = sim.now() - before;
    assert!(patience >= Duration::from_secs(5) && patience < Duration::from_secs(6), "{patience:?}");
    assert_eq!(a.device.counters().unresponsive_remote_events, 1);
}

#[test]
fn what_was_under_way_to_a_peer_that_restarts_is_aborted_and_what_follows_works() {
    let (mut sim, mut a, b) = pair();
    a.write(..8).to(&b, 0).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::Ok);
    // A write that the peer's first life does not finish, and that its second life does not know.
    let id = a.write(..1 << 19).to(&b, 0).unwrap();
    sim.step(Duration::from_nanos(100));
    sim.kill("b").unwrap();
    let mut b = sim.node("b").unwrap();
    let completion = sim.completion(&mut a.cq).unwrap();
    assert_eq!((completion.wr_id, completion.status), (id, Status::RemoteAbort));

    a.meet(&mut b).unwrap();
    a.memory.write(0, &[3; 64]).unwrap();
    a.write(..64).to(&b, 0).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::Ok);
    assert_eq!(b.memory.read_vec(..64).unwrap(), [3; 64]);
}

#[test]
fn a_partition_that_heals_in_time_costs_retransmissions_and_nothing_else() {
    let (mut sim, mut a, b) = pair();
    a.write(..8).to(&b, 0).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::Ok);
    sim.network(|link| link.cut = true).unwrap();
    let id = a.write(..40_000).to(&b, 0).unwrap();
    assert!(!sim.run_until(Duration::from_secs(2), || a.cq.poll_one().is_some()));
    sim.network(|link| link.cut = false).unwrap();
    let completion = sim.completion(&mut a.cq).unwrap();
    assert_eq!((completion.wr_id, completion.status), (id, Status::Ok));
    assert!(a.device.counters().retrans_timeout_events > 0);
}

#[test]
fn packets_that_are_silently_dropped_show_in_the_counters_of_one_side_only() {
    let (mut sim, mut a, b) = pair();
    sim.network(|link| link.cut = true).unwrap(); // like a security group without the self-referencing rule
    a.write(..8).to(&b, 0).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::UnreachableRemote);
    assert!(a.device.counters().tx_pkts > 1);
    assert_eq!(b.device.counters().rx_pkts, 0);
}

#[test]
fn a_damaged_packet_is_never_delivered() {
    let (mut sim, mut a, b) = pair();
    sim.network(|link| link.corrupt = 0.5).unwrap();
    let pattern: Vec<u8> = (0..200_000u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    a.memory.write(0, &pattern).unwrap();
    a.write(..200_000).to(&b, 0).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::Ok);
    assert!(b.memory.read_vec(..200_000).unwrap() == pattern);
    sim.settle().unwrap(); // until the last acknowledgement has arrived
    let (a, b) = (a.device.counters(), b.device.counters());
    assert!(b.corrupt_pkts > 5 && a.retrans_pkts > 5, "{a:?} {b:?}");
    assert_eq!(a.rx_drops + b.rx_drops, sim.link_counters().corrupted);
}

#[test]
fn the_share_of_a_queue_pair_that_is_gone_is_free_once_its_completions_were_polled() {
    let (mut sim, mut a, b) = pair_with(QpConfig::new(16, 1), 17);
    for _ in 0..16 {
        a.write(..0).to(&b, 0).unwrap();
    }
    sim.advance(Duration::from_millis(5));
    let Node { pd, mut cq, sq, rq, control, .. } = a;
    drop((sq, rq, control));
    let next = || pd.create_qp(&cq, &cq, QpConfig::new(16, 1));
    let refused = next().err().unwrap().to_string();
    assert!(refused.contains("holds 32 entries, 17 are promised"), "{refused}");
    while cq.poll_one().is_some() {}
    assert_eq!(cq.skipped(), 16);
    pd.create_qp(&cq, &cq, QpConfig::new(16, 16)).unwrap();
}

#[test]
fn a_preview_shows_the_wqe_and_changes_nothing() {
    let (mut sim, mut a, mut b) = pair_with(QpConfig::new(4, 8), 64);
    for _ in 0..8 {
        b.receive(..8).unwrap();
    }
    for i in 1..=4 {
        a.post(&b, SendInline::new(b"x"), i).unwrap();
    }
    let preview = a.sq.preview(a.peer(&b).unwrap(), SendInline::new(b"y").imm(3), 99).unwrap();
    assert!(preview.phase(), "the fifth WQE of a ring of four");
    assert_eq!(preview.decode().unwrap().op.imm(), Some(3));
    a.sq.ring();
    let mut ids: Vec<u64> = (0..4).map(|_| sim.completion(&mut a.cq).unwrap().wr_id).collect();
    ids.sort();
    assert_eq!(ids, [1, 2, 3, 4]);
}

#[test]
fn wide_wqes_need_a_device_that_has_them() {
    let mut sim = common::sim();
    let device = sim
        .device("a", |config| {
            config.attributes.inline_bytes_ex = 32;
            config.attributes.rdma_write = false;
        })
        .unwrap();
    let pd = device.alloc_pd().unwrap();
    let cq = device.create_cq(CqConfig::new(16)).unwrap();
    let refused = pd.create_qp(&cq, &cq, QpConfig::new(4, 4).wqe_128()).err().unwrap().to_string();
    assert!(refused.contains("WQEs of 64 bytes, 128 were asked for"), "{refused}");
    pd.create_qp(&cq, &cq, QpConfig::new(4, 4)).unwrap();
}

#[test]
fn a_completion_queue_whose_events_cannot_be_had_leaves_nothing_behind() {
    let mut sim = common::sim();
    let device = sim.device("a", |config| config.max_cq = 4).unwrap();
    for _ in 0..5 {
        let refused = device.create_cq(CqConfig::new(16).events()).unwrap_err();
        assert!(refused.to_string().contains("simulated time"), "{refused}");
    }
    device.create_cq(CqConfig::new(16)).unwrap();
}

#[test]
fn a_region_larger_than_memory_is_refused() {
    let mut sim = common::sim();
    let pd = sim.device("a", |_| ()).unwrap().alloc_pd().unwrap();
    for len in [usize::MAX, usize::MAX - 4096, isize::MAX as usize] {
        assert!(matches!(pd.allocate(len, Access::ALL), Err(SetupError::Io { .. })), "{len}");
    }
}

#[test]
fn borrowed_bytes_are_out_of_reach_after_the_call_even_of_a_device_that_was_put_aside() {
    use efa_soft::LinkConfig;
    use efa_soft::driver::{DeviceHandle, IdleMode, LocalNetwork};
    use efa_soft::wire::{Body, Data, Envelope, MessageHeader, Packet, WireOp};
    let config = efa_soft::DeviceConfig::new(Gid::local(77));
    let port: Arc<dyn DeviceHandle> =
        LocalNetwork::start(LinkConfig::default(), IdleMode::Nap).unwrap().add(config.clone());
    let pd = Device::from_soft_device("aside", port.clone()).unwrap().alloc_pd().unwrap();
    let (mut bytes, mut aside) = ([0; 64], None);
    let remote = pd
        .with_borrowed(&mut bytes, Access::ALL, |region| {
            port.with(&mut |device| aside = Some(std::mem::replace(device, efa_soft::Device::new(config.clone()))));
            region.remote()
        })
        .unwrap();
    let mut device = aside.unwrap();
    let cq = efa_soft::CqAttributes { entries: 16, entry_size: efa_soft::CqeSize::Large, events: false };
    let cqn = device.create_cq(cq).unwrap().cqn;
    let qp = device
        .create_qp(efa_soft::QpAttributes {
            transport: efa_soft::Transport::Srd,
            pd: 1,
            send_cq: cqn,
            recv_cq: cqn,
            send_entries: 1,
            recv_entries: 1,
            recv_sge: 1,
            inline_bytes: 32,
            inline_write: false,
            unsolicited_write_recv: false,
            rnr_retry: None,
        })
        .unwrap();
    device.modify_qp(qp.qpn, efa_soft::QpState::Init, Some(0)).unwrap();
    device.modify_qp(qp.qpn, efa_soft::QpState::ReadyToReceive, None).unwrap();
    device.create_ah(1, Gid::local(5)).unwrap();
    let (src, dst) = (Gid::local(5), Gid::local(77));
    let envelope = Envelope { src, dst, src_incarnation: 1, dst_incarnation: config.incarnation_for(src), path: 0 };
    let header = MessageHeader {
        rkey: remote.rkey,
        remote_addr: remote.addr,
        ..MessageHeader::new(WireOp::Write, 1, qp.qpn, 8)
    };
    let data = Data { message: 0, base: 0, header, stride: 64, packet: 0 };
    let packet = Packet { envelope, body: Body::Data(data, [0xee; 8][..].into()) };
    device.handle_packet(efa_soft::Time::from_nanos(5), &packet);
    assert_eq!(device.counters().rdma_write_recv_bytes, 0, "nothing was written");
    assert_eq!(bytes, [0; 64]);
}

#[test]
fn a_software_device_that_cannot_start_keeps_the_operating_system_s_error() {
    // An address of documentation (RFC 5737), which no machine has.
    let error = Device::open("soft:udp=192.0.2.1:0").unwrap_err();
    let OpenError::CannotStart { name, source } = &error else { panic!("{error}") };
    assert_eq!((name.as_str(), source.kind()), ("soft:udp=192.0.2.1:0", std::io::ErrorKind::AddrNotAvailable));
    assert!(error.to_string().starts_with("software device \"soft:udp=192.0.2.1:0\" cannot be started: "), "{error}");
}
