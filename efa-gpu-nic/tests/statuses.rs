//! Every status that the NIC reports, provoked as in the software device's own tests.

mod common;

use common::*;
use efa_gpu_nic::host::Access;
use efa_io::*;

/// A world that differs from an ordinary pair in this.
fn with(change: impl Fn(&mut Setup)) -> TestWorld {
    TestWorld::of(2, |_, setup| change(setup))
}

/// Has node A send these, and sees each end like this.
fn ends<const W: usize>(world: &TestWorld, wqes: impl IntoIterator<Item = Wqe<W>>, expected: Status) {
    world.run(1, || {
        let mut poster = world.poster(A);
        for wqe in wqes {
            assert_eq!(poster.status_of(wqe), expected);
        }
    });
}

/// A send, a write and a read with this local side.
fn with_local(world: &TestWorld, local: LocalBuf) -> [Wqe64; 3] {
    let (to, remote) = (world.to(A, B), world.remote(B, 0));
    [
        wqe(Send::new(&[local]).unwrap(), to),
        wqe(RdmaWrite::new(local, remote), to),
        wqe(RdmaRead::new(local, remote), to),
    ]
}

/// A write and a read with this remote side.
fn with_remote(world: &TestWorld, remote: RemoteBuf) -> [Wqe64; 2] {
    let (local, to) = (world.local(A, 0, 8), world.to(A, B));
    [wqe(RdmaWrite::new(local, remote), to), wqe(RdmaRead::new(local, remote), to)]
}

/// A send, a write and a read to this destination.
fn asked_of(world: &TestWorld, dest: Destination) -> [Wqe64; 3] {
    let [write, read] = with_remote(world, world.remote(B, 0));
    let set = |wqe: Wqe64| {
        let mut words = *wqe.words();
        for (word, (theirs, ours)) in words.iter_mut().zip(world.to(A, B).words().into_iter().zip(dest.words())) {
            *word = *word & !theirs | ours;
        }
        Wqe64::from_words(words)
    };
    [wqe(SendInline::new(b"hello"), dest), set(write), set(read)]
}

#[test]
fn rdma_that_the_device_lacks_is_unsupported() {
    let world = with(|setup| (setup.device.rdma_read, setup.device.rdma_write) = (false, false));
    ends(&world, with_remote(&world, world.remote(B, 0)), Status::UnsupportedOp);
}

#[test]
fn rdma_that_the_peer_lacks_is_a_feature_mismatch() {
    let world =
        TestWorld::of(2, |node, setup| (setup.device.rdma_read, setup.device.rdma_write) = (node == A, node == A));
    ends(&world, with_remote(&world, world.remote(B, 0)), Status::RemoteFeatureMismatch);
}

#[test]
fn an_inline_write_on_a_queue_pair_without_is_unsupported() {
    let world = with(|setup| setup.inline_bytes = 80);
    let write: Wqe128 = wqe(RdmaWriteInline::new(b"hello", world.remote(B, 0)), world.to(A, B));
    ends(&world, [write], Status::UnsupportedOp);
}

#[test]
fn an_address_handle_that_is_not_there_or_of_another_domain_is_invalid() {
    let world = TestWorld::pair();
    let numbers = [0, 15, world.nodes[A].other_ah, 1000, u16::MAX];
    let wqes = numbers.map(|ah| asked_of(&world, Destination { ah, ..world.to(A, B) }));
    ends(&world, wqes.into_iter().flatten(), Status::InvalidAh);
}

#[test]
fn a_local_key_that_is_not_there_or_of_another_domain_is_invalid() {
    let world = TestWorld::pair();
    let keys = [world.nodes[A].keys.lkey ^ 1, world.nodes[A].other_keys.lkey, 0, 0xff_ffff];
    let wqes = keys.map(|lkey| with_local(&world, LocalBuf { lkey: Lkey::new(lkey).unwrap(), ..world.local(A, 0, 8) }));
    ends(&world, wqes.into_iter().flatten(), Status::InvalidLkey);
}

#[test]
fn a_buffer_that_passes_its_region_by_a_byte_is_invalid() {
    let world = TestWorld::pair();
    let start = world.nodes[A].addr;
    let at = |addr| with_local(&world, LocalBuf { addr, ..world.local(A, 0, 8) });
    let wqes = [start - 1, start + BYTES as u64 - 7, u64::MAX - 3].map(at);
    let touching_the_end = at(start + BYTES as u64 - 8);
    world.run(1, || {
        let (mut poster, mut peer) = (world.poster(A), world.poster(B));
        wqes.into_iter().flatten().for_each(|wqe| assert_eq!(poster.status_of(wqe), Status::InvalidLkey));
        peer.receive(&[world.local(B, 0, 8)]);
        touching_the_end.into_iter().for_each(|wqe| assert_eq!(poster.status_of(wqe), Status::Ok));
    });
}

#[test]
fn reading_into_a_region_without_the_right_is_invalid() {
    let world = with(|setup| setup.access = Access::REMOTE_READ | Access::REMOTE_WRITE);
    let [write, read] = with_remote(&world, world.remote(B, 0));
    world.run(1, || {
        let mut poster = world.poster(A);
        assert_eq!((poster.status_of(read), poster.status_of(write)), (Status::InvalidLkey, Status::Ok));
    });
}

#[test]
fn what_is_too_long_is_refused() {
    let world = with(|setup| (setup.device.mtu, setup.device.max_rdma_bytes) = (1000, 2000));
    let (to, remote) = (world.to(A, B), world.remote(B, 0));
    let halves = [world.local(A, 0, 500), world.local(A, 0, 501)];
    let long = world.local(A, 0, 2001);
    let wqes = [
        wqe(Send::new(&[world.local(A, 0, 1001)]).unwrap(), to),
        wqe(Send::new(&halves).unwrap(), to),
        wqe(RdmaWrite::new(long, remote), to),
        wqe(RdmaRead::new(long, remote), to),
    ];
    ends::<8>(&world, wqes, Status::BadLength);
}

#[test]
fn inline_bytes_over_what_the_queue_pair_takes_are_refused() {
    let world = with(|setup| (setup.inline_bytes, setup.inline_write) = (40, true));
    let (to, remote) = (world.to(A, B), world.remote(B, 0));
    let wqes = |length| -> [Wqe128; 2] {
        let data = &[1; 80][..length];
        [wqe(SendInline::new(data), to), wqe(RdmaWriteInline::new(data, remote), to)]
    };
    world.run(1, || {
        let (mut poster, mut peer) = (world.poster(A), world.poster(B));
        wqes(41).into_iter().for_each(|wqe| assert_eq!(poster.status_of(wqe), Status::BadLength));
        peer.receive(&[world.local(B, 0, 40)]);
        wqes(40).into_iter().for_each(|wqe| assert_eq!(poster.status_of(wqe), Status::Ok));
    });
}

#[test]
fn a_remote_key_that_is_not_there_or_of_another_domain_is_refused() {
    let world = TestWorld::pair();
    let keys = [world.nodes[B].keys.rkey ^ 1, world.nodes[B].other_keys.rkey, world.nodes[A].keys.rkey, 0, u32::MAX];
    let wqes = keys.map(|rkey| with_remote(&world, RemoteBuf { rkey, ..world.remote(B, 0) }));
    ends(&world, wqes.into_iter().flatten(), Status::RemoteBadAddress);
}

#[test]
fn remote_bytes_one_outside_the_region_are_refused() {
    let world = TestWorld::pair();
    let start = world.nodes[B].addr;
    let at = |addr| with_remote(&world, RemoteBuf { addr, ..world.remote(B, 0) });
    let wqes = [start - 1, start + BYTES as u64 - 7, u64::MAX - 3].map(at);
    world.run(1, || {
        let mut poster = world.poster(A);
        wqes.into_iter().flatten().for_each(|wqe| assert_eq!(poster.status_of(wqe), Status::RemoteBadAddress));
        at(start + BYTES as u64 - 8).into_iter().for_each(|wqe| assert_eq!(poster.status_of(wqe), Status::Ok));
    });
}

#[test]
fn a_right_that_peers_lack_is_refused() {
    for (access, refused) in [(Access::REMOTE_READ, 0), (Access::REMOTE_WRITE, 1)] {
        let world = with(|setup| setup.access = access | Access::LOCAL_WRITE);
        let wqes = with_remote(&world, world.remote(B, 0));
        world.run(1, || {
            let mut poster = world.poster(A);
            assert_eq!(poster.status_of(wqes[refused]), Status::RemoteBadAddress);
            assert_eq!(poster.status_of(wqes[1 - refused]), Status::Ok);
        });
    }
}

#[test]
fn a_destination_that_is_not_there_or_with_another_qkey_is_bad() {
    let world = TestWorld::pair();
    let there = world.to(A, B);
    let numbers = [there.qpn + 1, 0, 255, u16::MAX, world.nodes[A].queues[0].qpn];
    let wrong = numbers.map(|qpn| Destination { qpn, ..there });
    let dests = wrong.into_iter().chain([Destination { qkey: QKEY + 1, ..there }]);
    ends(&world, dests.flat_map(|dest| asked_of(&world, dest)), Status::RemoteBadDestQpn);
}

#[test]
fn a_destination_in_the_error_state_is_bad() {
    let world = TestWorld::pair();
    world.fail(world.nodes[B].queues[0].qpn);
    ends(&world, asked_of(&world, world.to(A, B)), Status::RemoteBadDestQpn);
}

#[test]
fn a_device_reaches_itself_only_if_it_was_made_so() {
    for loopback in [false, true] {
        let world = with(|setup| setup.device.loopback = loopback);
        let local = world.local(A, 0, 8);
        let write: Wqe64 = wqe(RdmaWrite::new(local, world.remote(A, 64)), world.to(A, A));
        ends(&world, [write], if loopback { Status::Ok } else { Status::UnreachableRemote });
    }
}

#[test]
fn rdma_from_a_stranger_is_refused_and_a_send_is_not() {
    let world = TestWorld::of(2, |node, setup| setup.acquainted = node == A);
    let [send, write, read] = with_local(&world, world.local(A, 0, 8));
    world.run(1, || {
        let (mut poster, mut peer) = (world.poster(A), world.poster(B));
        assert_eq!([poster.status_of(write), poster.status_of(read)], [Status::RemoteUnknownPeer; 2]);
        peer.receive(&[world.local(B, 0, 8)]);
        assert_eq!(poster.status_of(send), Status::Ok);
        let Event::Receive(received) = peer.completion().event else { panic!("a receive") };
        assert_eq!(received.ah, None);
    });
}

#[test]
fn a_receive_one_byte_too_short_fails_on_both_sides_and_nothing_is_placed() {
    let mut world = TestWorld::pair();
    world.fill(A, &[9; 100]);
    let send: Wqe64 = wqe(Send::new(&[world.local(A, 0, 100)]).unwrap(), world.to(A, B));
    world.run(1, || {
        let (mut poster, mut peer) = (world.poster(A), world.poster(B));
        peer.receive(&[world.local(B, 0, 50), world.local(B, 50, 49)]);
        assert_eq!(poster.status_of(send), Status::RemoteBadLength);
        assert_eq!(peer.completion().status, Status::BadLength);
    });
    assert_eq!(world.bytes(B, 0, 100), [0; 100]);
}

#[test]
fn a_receive_without_a_good_key_fails_on_both_sides() {
    let world = TestWorld::pair();
    let [send, ..] = with_local(&world, world.local(A, 0, 100));
    let lkey = Lkey::new(world.nodes[B].keys.lkey ^ 1).unwrap();
    world.run(1, || {
        let (mut poster, mut peer) = (world.poster(A), world.poster(B));
        peer.receive(&[LocalBuf { lkey, ..world.local(B, 0, 100) }]);
        assert_eq!(poster.status_of(send), Status::RemoteBadStatus);
        assert_eq!(peer.completion().status, Status::InvalidLkey);
    });
}

#[test]
fn a_malformed_receive_ring_is_the_end_of_its_queue_pair() {
    let world = TestWorld::pair();
    let [send, ..] = with_local(&world, world.local(A, 0, 100));
    world.run(1, || {
        let (mut poster, mut peer) = (world.poster(A), world.poster(B));
        peer.put_descriptor(RxDesc::from_words([0, 1 << 62]));
        peer.ring_receives();
        assert_eq!(poster.status_of(send), Status::RemoteBadDestQpn);
        assert_eq!(world.state(world.nodes[B].queues[0].qpn), 1);
    });
}

#[test]
fn a_wqe_that_makes_no_sense_is_the_end_of_its_queue_pair_and_the_rest_is_flushed() {
    let spoil: [fn(&mut [u64; 8]); 4] = [
        |words| words[0] ^= 1 << 24,
        |words| words[0] |= 1 << 22,
        |words| words[4] |= 1 << 56,
        |words| words[0] |= 15 << 16,
    ];
    for spoil in spoil {
        let world = TestWorld::pair();
        let [send, write, _] = with_local(&world, world.local(A, 0, 8));
        let mut words = *send.with_req_id(1).words();
        spoil(&mut words);
        world.run(1, || {
            let mut poster = world.poster(A);
            poster.receive(&[world.local(A, 0, 8)]);
            poster.put(write);
            poster.put_raw(Wqe64::from_words(words));
            poster.put(write);
            poster.ring();
            let mut done: Vec<_> = (0..4).map(|_| poster.completion()).collect();
            done.sort_by_key(|done| (matches!(done.event, Event::Receive(_)), done.req_id));
            let statuses: Vec<_> = done.iter().map(|done| done.status).collect();
            assert_eq!(statuses, [Status::Ok, Status::QpInternal, Status::Flushed, Status::Flushed]);
            assert_eq!(poster.status_of(write), Status::Flushed);
            poster.receive(&[world.local(A, 0, 8)]);
            assert_eq!(poster.completion().status, Status::Flushed);
        });
        assert_eq!(world.state(world.nodes[A].queues[0].qpn), 1);
    }
}

#[test]
fn a_doorbell_past_the_ring_is_the_end_of_its_queue_pair() {
    let world = TestWorld::pair();
    world.run(1, || {
        let mut poster = world.poster(A);
        poster.ring_value(65);
        assert!(poster.is_quiet());
        assert_eq!(world.state(world.nodes[A].queues[0].qpn), 1);
    });
}

#[test]
fn sends_that_wait_are_flushed_when_their_queue_pair_fails() {
    let world = TestWorld::pair();
    let [send, ..] = with_local(&world, world.local(A, 0, 8));
    world.run(1, || {
        let mut poster = world.poster(A);
        (0..40).for_each(|_| poster.put(send));
        poster.ring();
        assert!(poster.is_quiet());
        world.fail(world.nodes[A].queues[0].qpn);
        let mut done: Vec<_> = (0..40).map(|_| poster.completion()).map(|done| (done.req_id, done.status)).collect();
        done.sort_by_key(|done| done.0);
        assert!(done.into_iter().eq((0..40).map(|id| (id, Status::Flushed))));
    });
}
