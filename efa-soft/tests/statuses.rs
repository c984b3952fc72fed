//! Every status that a completion can have, provoked as it would be on hardware.

mod common;

use common::world::*;
use common::{bytes, packet};
use efa_io::*;
use efa_soft::wire::{Body, Packet};
use efa_soft::*;
use std::time::Duration;

/// What provokes each status: tests that take the status they are to see as an argument.
macro_rules! statuses {
    ($($status:ident: $($test:ident),+;)+) => {
        const PROVOKED: &[Status] = &[$(Status::$status),+];

        mod status {
            $($(
                #[test]
                fn $test() {
                    super::$test(efa_io::Status::$status);
                }
            )+)+
        }
    };
}

statuses! {
    Ok: whatever_is_right_succeeds_on_both_sides, a_receiver_that_is_ready_late_gets_the_message_at_last;
    Flushed: work_of_a_queue_pair_that_fails_is_flushed, work_towards_an_address_handle_that_is_destroyed_is_flushed;
    QpInternal: a_wqe_of_another_lap_is_noticed, a_reserved_bit_is_noticed, a_batch_over_the_maximum_is_noticed;
    UnsupportedOp: rdma_on_an_unreliable_queue_pair_is_refused, rdma_that_the_device_lacks_is_refused,
        an_inline_write_on_a_queue_pair_without_is_refused;
    InvalidAh: an_address_handle_that_does_not_exist_is_refused, an_address_handle_of_another_domain_is_refused;
    InvalidLkey: a_key_that_does_not_exist_is_refused, a_key_of_another_domain_is_refused,
        a_buffer_that_passes_its_region_by_a_byte_is_refused, reading_into_a_region_without_the_right_is_refused;
    BadLength: inline_bytes_over_what_the_queue_pair_takes_are_refused, a_send_over_the_mtu_is_refused,
        rdma_over_the_maximum_is_refused;
    RemoteBadAddress: a_remote_key_that_does_not_exist_is_refused, a_remote_key_of_another_domain_is_refused,
        remote_bytes_one_outside_the_region_are_refused, a_right_that_peers_lack_is_refused;
    RemoteAbort: a_peer_that_restarts_aborts_what_was_under_way;
    RemoteBadDestQpn: a_number_that_is_not_there_is_refused, a_wrong_qkey_is_refused,
        a_queue_pair_that_does_not_receive_yet_is_no_destination, an_unreliable_queue_pair_is_no_destination;
    RemoteRnr: a_receiver_that_is_never_ready_is_asked_as_often_as_was_said;
    RemoteBadLength: a_receive_one_byte_too_short_fails_on_both_sides;
    RemoteBadStatus: packets_of_one_message_that_contradict_each_other_end_it,
        a_receive_without_a_good_key_fails_on_both_sides;
    UnresponsiveRemote: a_peer_that_falls_silent_is_unresponsive;
    RemoteUnknownPeer: rdma_from_a_stranger_is_refused_and_a_send_is_not;
    UnreachableRemote: a_peer_that_never_answered_is_unreachable, a_device_does_not_reach_itself;
    RemoteFeatureMismatch: a_peer_without_rdma_says_so;
}

#[test]
fn every_status_with_a_name_was_provoked() {
    assert_eq!(PROVOKED, Status::named());
}

/// What a host's device does as [`World::pair`]'s do, but for this.
fn without(change: fn(&mut DeviceConfig)) -> World {
    World::with(|setup| change(&mut setup.device))
}

/// Has node A send these, and sees each end like this.
fn refused<const W: usize>(world: &mut World, wqes: impl IntoIterator<Item = Wqe<W>>, expected: Status) {
    for wqe in wqes {
        assert_eq!(world.status_of(A, wqe), expected);
    }
}

/// The receive that completes next at node B.
fn received(world: &mut World) -> Status {
    let completion = world.completion(B);
    assert!(matches!(completion.event, Event::Receive(_)));
    completion.status
}

fn whatever_is_right_succeeds_on_both_sides(expected: Status) {
    let mut world = World::pair();
    world.receive(B, 8);
    let wqes = [world.send(A, B, 8), world.write(A, B, 100_000), world.read(A, B, 100_000)];
    refused(&mut world, wqes, expected);
    assert_eq!(received(&mut world), expected);
}

fn a_receiver_that_is_ready_late_gets_the_message_at_last(expected: Status) {
    let mut world = World::with(|setup| setup.qp.rnr_retry = Some(7));
    let send = world.send(A, B, 8);
    world.post(A, [send]);
    world.run(Duration::from_secs(30));
    assert_eq!(world.hosts[A].cq.take(), None);
    assert!(world.device(B).counters().rnr_sent > 1000);
    world.receive(B, 8);
    assert_eq!((world.completion(A).status, received(&mut world)), (expected, expected));
}

fn work_of_a_queue_pair_that_fails_is_flushed(expected: Status) {
    let mut world = World::pair();
    world.receive(A, 8);
    let writes = [100_000, 8].map(|length| world.write(A, B, length));
    world.post(A, writes);
    world.step();
    let qpn = world.hosts[A].qp.qpn();
    world.device(A).modify_qp(qpn, QpState::Error, None).unwrap();
    assert_eq!(world.hosts[A].cq.drain().iter().map(|c| c.status).collect::<Vec<_>>(), [expected; 3]);
    let later = world.write(A, B, 8);
    refused(&mut world, [later], expected);
    assert_eq!(world.event(A), None, "the program itself did it");
}

fn work_towards_an_address_handle_that_is_destroyed_is_flushed(expected: Status) {
    let mut world = World::of(3, |_, _| ());
    let writes = [B, 2].map(|peer| world.write(A, peer, 100_000));
    world.post(A, writes);
    world.step();
    let (pd, ah) = (world.hosts[A].pd, world.hosts[A].ahs[B]);
    world.device(A).destroy_ah(pd, ah).unwrap();
    let (flushed, other) = (world.completion(A), world.completion(A));
    assert_eq!((flushed.req_id, flushed.status), (0, expected));
    assert_eq!((other.req_id, other.status), (1, Status::Ok), "towards another peer");
    let late = world.write(A, B, 8);
    refused(&mut world, [late], Status::InvalidAh);
}

/// Has node A's device read a WQE that makes no sense, and sees that this is the end of its queue pair.
fn fatal(world: &mut World, expected: Status) {
    world.hosts[A].qp.ring();
    assert_eq!(world.completion(A).status, expected);
    let qpn = world.hosts[A].qp.qpn();
    assert_eq!(world.device(A).query_qp(qpn), Ok(QpState::Error));
    assert_eq!((world.event(A), world.event(A)), (Some(AsyncEvent::QpFatal(qpn)), None));
}

fn a_wqe_of_another_lap_is_noticed(expected: Status) {
    let mut world = World::pair();
    let send = world.send(A, B, 8).with_phase(true);
    world.hosts[A].qp.put_raw(send);
    fatal(&mut world, expected);
}

fn a_reserved_bit_is_noticed(expected: Status) {
    // Those of the metadata, the last being a request id of more bits than this device has, and those of a buffer.
    let reserved =
        [(0, 22), (0, 25), (0, 29), (0, 31), (1, 50), (1, 55), (1, 56), (1, 63), (2, 32), (3, 0), (3, 16), (4, 56)];
    for (word, bit) in reserved {
        let mut world = World::pair();
        let mut words = *world.send(A, B, 8).words();
        words[word] |= 1 << bit;
        world.hosts[A].qp.put_raw(Wqe64::from_words(words));
        fatal(&mut world, expected);
    }
}

fn a_batch_over_the_maximum_is_noticed(expected: Status) {
    let mut world = World::pair();
    let most = world.hosts[A].qp.info.sq.max_batch;
    for batch in [most, most + 1] {
        let write = world.write(A, B, 8);
        world.post(A, vec![write; batch as usize]);
        let (now, qpn, value) = (world.now, world.hosts[A].qp.qpn(), world.hosts[A].qp.sent);
        world.device(A).ring_send_doorbell(now, qpn, value);
        if batch == most {
            for _ in 0..batch {
                assert_eq!(world.completion(A).status, Status::Ok);
            }
        }
    }
    fatal(&mut world, expected);
    let flushed = world.hosts[A].cq.drain();
    assert!(flushed.len() == most as usize && flushed.iter().all(|c| c.status == Status::Flushed));
}

fn rdma_on_an_unreliable_queue_pair_is_refused(expected: Status) {
    let mut world = World::with(|setup| setup.qp.transport = Transport::Ud);
    let wqes = [world.write(A, B, 8), world.read(A, B, 8)];
    refused(&mut world, wqes, expected);
    let errors = world.device(A).counters();
    assert_eq!((errors.rdma_write_wr_err, errors.rdma_read_wr_err, errors.tx_pkts), (1, 1, 0));
}

fn rdma_that_the_device_lacks_is_refused(expected: Status) {
    let mut world = without(|device| (device.attributes.rdma_read, device.attributes.rdma_write) = (false, false));
    let wqes = [world.write(A, B, 8), world.read(A, B, 8)];
    refused(&mut world, wqes, expected);
}

fn an_inline_write_on_a_queue_pair_without_is_refused(expected: Status) {
    let mut world = World::with(|setup| setup.qp.inline_bytes = 80);
    let write = wqe(RdmaWriteInline::new(b"hello", world.remote(B)), world.to(A, B));
    refused(&mut world, [write], expected);
}

fn an_address_handle_that_does_not_exist_is_refused(expected: Status) {
    let mut world = World::pair();
    for ah in [0, world.hosts[A].ahs[B] + 1, u16::MAX] {
        let dest = Destination { ah, ..world.to(A, B) };
        let send: Wqe64 = wqe(SendInline::new(b"hello"), dest);
        refused(&mut world, [send], expected);
    }
}

fn an_address_handle_of_another_domain_is_refused(expected: Status) {
    let mut world = World::pair();
    let there = world.gid(B);
    let pd = world.device(A).alloc_pd().unwrap();
    let ah = world.device(A).create_ah(pd, there).unwrap();
    let send: Wqe64 = wqe(SendInline::new(b"hello"), Destination { ah, ..world.to(A, B) });
    refused(&mut world, [send], expected);
}

/// A send, a write and a read whose local side is this.
fn with_local(world: &World, local: LocalBuf) -> [Wqe64; 3] {
    let (to, remote) = (world.to(A, B), world.remote(B));
    let (send, write, read) =
        (Send::new(&[local]).unwrap(), RdmaWrite::new(local, remote), RdmaRead::new(local, remote));
    [wqe(send, to), wqe(write, to), wqe(read, to)]
}

fn a_key_that_does_not_exist_is_refused(expected: Status) {
    let mut world = World::pair();
    let wrong = Lkey::new(world.hosts[A].keys.lkey ^ 1).unwrap();
    let wqes = with_local(&world, LocalBuf { lkey: wrong, ..world.local(A, 8) });
    refused(&mut world, wqes, expected);
}

/// The keys that a host's memory has in a domain of its own.
fn keys_of_another_domain(world: &mut World, host: usize) -> RegionKeys {
    let memory = world.hosts[host].memory.clone();
    let pd = world.device(host).alloc_pd().unwrap();
    world.device(host).register(pd, memory, ADDR, Access::ALL).unwrap()
}

fn a_key_of_another_domain_is_refused(expected: Status) {
    let mut world = World::pair();
    let foreign = Lkey::new(keys_of_another_domain(&mut world, A).lkey).unwrap();
    let wqes = with_local(&world, LocalBuf { lkey: foreign, ..world.local(A, 8) });
    refused(&mut world, wqes, expected);
}

fn a_buffer_that_passes_its_region_by_a_byte_is_refused(expected: Status) {
    let mut world = World::pair();
    for addr in [ADDR - 1, ADDR + BYTES as u64 - 7] {
        let wqes = with_local(&world, LocalBuf { addr, ..world.local(A, 8) });
        refused(&mut world, wqes, expected);
    }
    let touching_the_end = with_local(&world, LocalBuf { addr: ADDR + BYTES as u64 - 8, ..world.local(A, 8) });
    world.receive(B, 8);
    refused(&mut world, touching_the_end, Status::Ok);
}

fn reading_into_a_region_without_the_right_is_refused(expected: Status) {
    let mut world = World::with(|setup| setup.access = Access::REMOTE_READ);
    let read = world.read(A, B, 8);
    refused(&mut world, [read], expected);
}

fn inline_bytes_over_what_the_queue_pair_takes_are_refused(expected: Status) {
    let mut world = World::with(|setup| (setup.qp.inline_bytes, setup.qp.inline_write) = (40, true));
    let (dest, remote) = (world.to(A, B), world.remote(B));
    let wqes = |length| -> [Wqe128; 2] {
        let data = &[1; 80][..length];
        [wqe(SendInline::new(data), dest), wqe(RdmaWriteInline::new(data, remote), dest)]
    };
    refused(&mut world, wqes(41), expected);
    world.receive(B, 40);
    refused(&mut world, wqes(40), Status::Ok);
}

fn a_send_over_the_mtu_is_refused(expected: Status) {
    let mut world = without(|device| device.attributes.mtu = 1000);
    let send = world.send(A, B, 1001);
    refused(&mut world, [send], expected);
}

fn rdma_over_the_maximum_is_refused(expected: Status) {
    let mut world = without(|device| device.attributes.max_rdma_bytes = 1000);
    let wqes = [world.write(A, B, 1001), world.read(A, B, 1001)];
    refused(&mut world, wqes, expected);
}

/// A write and a read whose remote side is this.
fn with_remote(world: &World, remote: RemoteBuf) -> [Wqe64; 2] {
    let (local, to) = (world.local(A, 8), world.to(A, B));
    [wqe(RdmaWrite::new(local, remote), to), wqe(RdmaRead::new(local, remote), to)]
}

fn a_remote_key_that_does_not_exist_is_refused(expected: Status) {
    let mut world = World::pair();
    let rkey = world.hosts[B].keys.rkey ^ 1;
    let wqes = with_remote(&world, RemoteBuf { rkey, addr: ADDR });
    refused(&mut world, wqes, expected);
}

fn a_remote_key_of_another_domain_is_refused(expected: Status) {
    let mut world = World::pair();
    let rkey = keys_of_another_domain(&mut world, B).rkey;
    let wqes = with_remote(&world, RemoteBuf { rkey, addr: ADDR });
    refused(&mut world, wqes, expected);
}

fn remote_bytes_one_outside_the_region_are_refused(expected: Status) {
    let mut world = World::pair();
    for addr in [ADDR - 1, ADDR + BYTES as u64 - 7, u64::MAX - 3] {
        let wqes = with_remote(&world, RemoteBuf { addr, ..world.remote(B) });
        refused(&mut world, wqes, expected);
    }
    let touching_the_end = with_remote(&world, RemoteBuf { addr: ADDR + BYTES as u64 - 8, ..world.remote(B) });
    refused(&mut world, touching_the_end, Status::Ok);
}

fn a_right_that_peers_lack_is_refused(expected: Status) {
    for (access, refused_one) in [(Access::REMOTE_READ, 0), (Access::REMOTE_WRITE, 1)] {
        let mut world = World::with(|setup| setup.access = access | Access::LOCAL_WRITE);
        let wqes = with_remote(&world, world.remote(B));
        refused(&mut world, [wqes[refused_one]], expected);
        refused(&mut world, [wqes[1 - refused_one]], Status::Ok);
    }
}

fn a_peer_that_restarts_aborts_what_was_under_way(expected: Status) {
    let mut world = World::pair();
    let nothing = world.write(A, B, 0);
    refused(&mut world, [nothing], Status::Ok); // the two have met
    let wqes = [world.write(A, B, 100_000), world.read(A, B, 100_000)];
    world.post(A, wqes);
    world.step();
    world.restart(B);
    assert_eq!([world.completion(A).status, world.completion(A).status], [expected; 2]);
    assert_eq!(world.device(A).counters().impaired_remote_conn_events, 1);
}

/// Everything that node A can ask of this destination.
fn asked_of(world: &World, dest: Destination) -> [Wqe64; 3] {
    let (local, remote) = (world.local(A, 8), world.remote(B));
    [
        wqe(SendInline::new(b"hello"), dest),
        wqe(RdmaWrite::new(local, remote), dest),
        wqe(RdmaRead::new(local, remote), dest),
    ]
}

fn a_number_that_is_not_there_is_refused(expected: Status) {
    let mut world = World::pair();
    let there = world.to(A, B);
    // The second is in the place of the one that is there, of which it would be a later use.
    for qpn in [there.qpn + 1, there.qpn + 512, 0] {
        let wqes = asked_of(&world, Destination { qpn, ..there });
        refused(&mut world, wqes, expected);
    }
}

fn a_wrong_qkey_is_refused(expected: Status) {
    let mut world = World::pair();
    world.receive(B, 8);
    let wqes = asked_of(&world, Destination { qkey: QKEY + 1, ..world.to(A, B) });
    refused(&mut world, wqes, expected);
    assert_eq!(world.hosts[B].cq.take(), None, "the receive is still there");
}

fn a_queue_pair_that_does_not_receive_yet_is_no_destination(expected: Status) {
    let mut world = World::pair();
    let qp = world.create_qp(B, |_| ());
    let wqes = asked_of(&world, Destination { qpn: qp.qpn(), ..world.to(A, B) });
    refused(&mut world, wqes, expected);
    world.device(B).modify_qp(qp.qpn(), QpState::Init, Some(QKEY)).unwrap();
    refused(&mut world, wqes, expected);
    world.device(B).modify_qp(qp.qpn(), QpState::ReadyToReceive, None).unwrap();
    refused(&mut world, wqes[1..].iter().copied(), Status::Ok);
    world.device(B).modify_qp(qp.qpn(), QpState::Error, None).unwrap();
    refused(&mut world, wqes, expected);
}

fn an_unreliable_queue_pair_is_no_destination(expected: Status) {
    let mut world = World::of(2, |host, setup| {
        setup.qp.transport = if host == A { Transport::Srd } else { Transport::Ud };
    });
    world.receive(B, 100);
    let wqes = asked_of(&world, world.to(A, B));
    refused(&mut world, wqes, expected);
    assert_eq!(world.hosts[B].cq.take(), None, "the receive is still there");
}

fn a_receiver_that_is_never_ready_is_asked_as_often_as_was_said(expected: Status) {
    for retry in [0, 1, 3, 6] {
        let mut world = World::with(|setup| setup.qp.rnr_retry = Some(retry));
        let write = RdmaWrite::new(world.local(A, 8), world.remote(B)).imm(1);
        let (send, write): (_, Wqe64) = (world.send(A, B, 8), wqe(write, world.to(A, B)));
        refused(&mut world, [send], expected);
        assert_eq!(world.device(B).counters().rnr_sent, u64::from(retry) + 1);
        // A write with immediate needs a receive as well.
        refused(&mut world, [write], expected);
        assert_eq!(world.device(B).counters().rnr_sent, 2 * (u64::from(retry) + 1));
        assert_eq!(world.hosts[B].cq.take(), None);
    }
}

fn a_receive_one_byte_too_short_fails_on_both_sides(expected: Status) {
    let mut world = World::pair();
    assert!(efa_memory::Backing::write(&*world.hosts[A].memory, 0, &[9; 100]));
    let Host { qp, keys, .. } = &mut world.hosts[B];
    qp.receive(keys.lkey, ADDR, &[50, 49]);
    let send = world.send(A, B, 100);
    refused(&mut world, [send], expected);
    assert_eq!(received(&mut world), Status::BadLength);
    assert_eq!(world.bytes(B, 100), [0; 100], "nothing of it was placed");
}

fn packets_of_one_message_that_contradict_each_other_end_it(expected: Status) {
    let mut world = World::pair();
    world.acquaint(A, B);
    let (write, now) = (world.write(A, B, 10_000), world.now);
    world.post(A, [write]);
    world.device(A).poll_doorbells(now);
    let packets: Vec<_> = std::iter::from_fn(|| world.device(A).poll_transmit(now)).collect();
    assert_eq!(packets.len(), 2);
    let first = bytes(&packets[0]);
    let Ok(Packet { envelope, body: Body::Data(mut data, payload) }) = Packet::parse(&first) else { panic!() };
    data.header.rkey ^= 1 << 8;
    world.device(B).handle(now, &bytes(&packets[1]));
    world.device(B).handle(now, &packet(&envelope, Body::Data(data, payload)));
    assert_eq!(world.completion(A).status, expected);
}

fn a_receive_without_a_good_key_fails_on_both_sides(expected: Status) {
    let mut world = World::pair();
    let Host { qp, keys, .. } = &mut world.hosts[B];
    qp.receive(keys.lkey ^ 1, ADDR, &[100]);
    let send = world.send(A, B, 100);
    refused(&mut world, [send], expected);
    assert_eq!(received(&mut world), Status::InvalidLkey);
}

fn a_peer_that_falls_silent_is_unresponsive(expected: Status) {
    let mut world = World::pair();
    let wqes = [world.write(A, B, 8), world.read(A, B, 8)];
    refused(&mut world, wqes, Status::Ok);
    world.set_link(|link| link.cut = true);
    refused(&mut world, wqes, expected);
    assert_eq!(world.device(A).counters().unresponsive_remote_events, 2);
}

fn rdma_from_a_stranger_is_refused_and_a_send_is_not(expected: Status) {
    let mut world = World::pair();
    let (pd, ah) = (world.hosts[B].pd, world.hosts[B].ahs[A]);
    world.device(B).destroy_ah(pd, ah).unwrap();
    let (wqes, send) = ([world.write(A, B, 8), world.read(A, B, 8)], world.send(A, B, 8));
    refused(&mut world, wqes, expected);
    world.receive(B, 8);
    refused(&mut world, [send], Status::Ok);
}

fn a_peer_that_never_answered_is_unreachable(expected: Status) {
    let mut world = World::pair();
    world.set_link(|link| link.cut = true);
    let wqes = [world.send(A, B, 8), world.write(A, B, 8), world.read(A, B, 8)];
    refused(&mut world, wqes, expected);
    assert_eq!(world.device(A).counters().unresponsive_remote_events, 0);
}

fn a_device_does_not_reach_itself(expected: Status) {
    let mut world = World::pair();
    let write = world.write(A, A, 8);
    refused(&mut world, [write], expected);
    let mut world = without(|device| device.loopback = true);
    refused(&mut world, [write], Status::Ok);
}

fn a_peer_without_rdma_says_so(expected: Status) {
    let mut world = World::of(2, |host, setup| {
        (setup.device.attributes.rdma_read, setup.device.attributes.rdma_write) = (host == A, host == A);
    });
    let wqes = [world.write(A, B, 8), world.read(A, B, 8)];
    refused(&mut world, wqes, expected);
}
