//! Unreliable datagrams: what arrives, what is lost silently, and what is refused.

mod common;

use common::world::*;
use efa_io::cqe::Received;
use efa_io::*;
use efa_memory::Backing;
use efa_soft::*;
use std::time::Duration;

fn world() -> World {
    let world = World::with(|setup| setup.qp.transport = Transport::Ud);
    assert!(world.hosts[A].memory.write(0, &(0..100).map(|i| i + 100).collect::<Vec<u8>>()));
    assert!(world.hosts[B].memory.write(0, &[0xee; 200]));
    world
}

/// Has node A send a datagram, which succeeds whatever becomes of it. Returns what node B received.
fn received(world: &mut World, wqe: Wqe64) -> Option<Received> {
    assert_eq!(world.status_of(A, wqe), Status::Ok);
    world.run(Duration::from_millis(1));
    let completion = world.hosts[B].cq.take()?;
    let Event::Receive(received) = completion.event else { panic!("{completion:?}") };
    assert_eq!(completion.status, Status::Ok);
    Some(received)
}

#[test]
fn a_datagram_lies_behind_forty_bytes_that_its_length_counts() {
    let mut world = world();
    world.receive(B, 200);
    let send: Wqe64 = wqe(Send { imm: Some(5), ..Send::new(&[world.local(A, 100)]).unwrap() }, world.to(A, B));
    let received = received(&mut world, send).unwrap();
    let expected = Received {
        op: OpCode::Send,
        length: 140,
        ah: Some(world.hosts[B].ahs[A]),
        src_qpn: world.hosts[A].qp.qpn(),
        imm: Some(5),
        unsolicited: false,
        src_gid: None,
    };
    assert_eq!(received, expected);
    let sent = world.bytes(A, 100);
    assert_eq!(world.bytes(B, 150), [&[0; 40][..], &sent, &[0xee; 10]].concat());
}

#[test]
fn a_datagram_fills_one_buffer_after_the_other_wherever_the_cuts_are() {
    for lengths in [[1, 38, 101], [39, 1, 100], [40, 99, 1], [10, 31, 99], [139, 1, 9], [0, 41, 99], [60, 0, 80]] {
        let mut world = world();
        let Host { qp, keys, .. } = &mut world.hosts[B];
        qp.receive(keys.lkey, ADDR, &lengths);
        let send = world.send(A, B, 100);
        assert_eq!(received(&mut world, send).unwrap().length, 140);
        let sent = world.bytes(A, 100);
        assert_eq!(world.bytes(B, 150), [&[0; 40][..], &sent, &[0xee; 10]].concat(), "cut into {lengths:?}");
    }
}

#[test]
fn a_receive_with_no_room_for_the_prefix_fails_and_the_sender_does_not_learn_of_it() {
    let mut world = world();
    world.receive(B, 139);
    let send = world.send(A, B, 100);
    assert_eq!(world.status_of(A, send), Status::Ok);
    assert_eq!(world.completion(B).status, Status::BadLength);
    assert_eq!(world.bytes(B, 200), [0xee; 200]);
}

#[test]
fn a_datagram_that_nobody_takes_is_lost_without_a_word() {
    let mut world = world();
    let there = world.to(A, B);
    let reliable = world.active_qp(B, |qp| qp.transport = Transport::Srd).qpn();
    let idle = world.create_qp(B, |_| ()).qpn();
    let unwanted = [
        there, // no receive is posted
        Destination { qkey: QKEY + 1, ..there },
        Destination { qpn: there.qpn + 100, ..there },
        Destination { qpn: reliable, ..there },
        Destination { qpn: idle, ..there },
    ];
    for (drops, dest) in (1..).zip(unwanted) {
        assert_eq!(received(&mut world, wqe(SendInline::new(b"hello"), dest)), None);
        assert_eq!(world.device(B).counters().rx_drops, drops);
        if drops == 1 {
            world.receive(B, 200);
        }
    }
    assert_eq!(world.device(B).counters().rnr_sent, 0);
    assert_eq!(received(&mut world, wqe(SendInline::new(b"hello"), there)).unwrap().length, 45);
}

#[test]
fn a_datagram_that_the_network_loses_is_not_sent_again() {
    let mut world = world();
    world.set_link(|link| link.cut = true);
    let send = world.send(A, B, 100);
    assert_eq!(received(&mut world, send), None);
    world.set_link(|link| link.cut = false);
    world.run(Duration::from_secs(10));
    assert_eq!((world.device(A).counters().tx_pkts, world.device(B).counters().rx_pkts), (1, 0));
}

#[test]
fn a_datagram_is_one_packet() {
    let mut world = world();
    let mtu = world.device(A).config().attributes.mtu;
    let (fits, too_long) = (world.send(A, B, mtu), world.send(A, B, mtu + 1));
    assert_eq!((world.status_of(A, fits), world.status_of(A, too_long)), (Status::Ok, Status::BadLength));
    assert_eq!(world.device(A).counters().tx_pkts, 1);
}

#[test]
fn a_stranger_is_known_by_its_address() {
    let mut world = world();
    let (pd, ah, gid) = (world.hosts[B].pd, world.hosts[B].ahs[A], world.gid(A));
    world.device(B).destroy_ah(pd, ah).unwrap();
    world.receive(B, 200);
    let send = world.send(A, B, 8);
    let Received { ah, src_gid, .. } = received(&mut world, send).unwrap();
    assert_eq!((ah, src_gid), (None, Some(gid.0)));
}

#[test]
fn the_bytes_are_those_of_the_moment_of_completion() {
    let mut world = world();
    world.receive(B, 200);
    let send = world.send(A, B, 100);
    assert_eq!(world.status_of(A, send), Status::Ok);
    assert_eq!(world.device(B).counters().rx_pkts, 0, "it is under way");
    assert!(world.hosts[A].memory.write(0, &[1; 100]));
    let lkey = world.hosts[A].keys.lkey;
    world.device(A).deregister(lkey).unwrap();
    assert_eq!(world.completion(B).status, Status::Ok);
    assert_eq!(world.bytes(B, 141)[40..], [(100..200).collect::<Vec<u8>>(), vec![0xee]].concat());
}

#[test]
fn a_queue_pair_of_datagrams_has_neither_rdma_nor_retries() {
    let mut world = world();
    let qpn = world.create_qp(A, |_| ()).qpn();
    assert!(matches!(world.device(A).set_rnr_retry(qpn, 3), Err(ControlError::Unsupported(_))));
    let config = world.hosts[A].setup.qp;
    for config in [
        QpAttributes { inline_write: true, inline_bytes: 80, ..config },
        QpAttributes { unsolicited_write_recv: true, ..config },
    ] {
        assert!(matches!(world.device(A).create_qp(config), Err(ControlError::Unsupported(_))));
    }
}

#[test]
fn datagrams_that_have_not_left_are_flushed_with_their_queue_pair() {
    let mut world = world();
    let send = world.send(A, B, 100);
    world.post(A, [send]);
    let (now, qpn) = (world.now, world.hosts[A].qp.qpn());
    world.device(A).poll_doorbells(now);
    world.device(A).modify_qp(qpn, QpState::Error, None).unwrap();
    assert_eq!(world.completion(A).status, Status::Flushed);
    world.run(Duration::from_millis(1));
    assert_eq!((world.hosts[A].cq.take(), world.device(A).counters().tx_pkts), (None, 0));
}

#[test]
fn datagrams_posted_without_end_leave_room_for_what_others_send() {
    let mut world = world();
    let (mut hog, mut other) = (world.active_qp(A, |_| ()), world.active_qp(A, |qp| qp.transport = Transport::Srd));
    let target = world.active_qp(B, |qp| qp.transport = Transport::Srd).qpn();
    let datagram: Wqe64 = world.send(A, B, 8);
    let send: Wqe64 = wqe(SendInline::new(b"x"), Destination { qpn: target, ..world.to(A, B) });
    (0..1024).for_each(|_| hog.put(datagram));
    other.put(send);
    hog.ring();
    other.ring();
    let now = world.now;
    world.device(A).poll_doorbells(now);
    let mut packets = 0;
    while world.device(A).poll_transmit(now).is_some() {
        packets += 1;
    }
    assert!((2..20).contains(&packets), "{packets} packets left at one look at the doorbells");
    // The rest is not forgotten, though no doorbell is rung any more.
    assert!(world.device(A).poll_timeout().is_some_and(|due| due <= now));
    world.run(Duration::from_millis(100));
    assert_eq!(world.device(A).counters().send_wrs, 1025);
    assert!(world.device(A).counters().tx_pkts >= 1025);
}
