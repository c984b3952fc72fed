//! Memory and devices that go away in the middle of their work.

mod common;

use common::world::*;
use efa_io::*;
use std::time::Duration;

/// Deregisters a host's memory.
fn deregister(world: &mut World, host: usize) {
    let lkey = world.hosts[host].keys.lkey;
    world.device(host).deregister(lkey).unwrap();
}

#[test]
fn rdma_fails_when_either_side_of_it_is_deregistered_under_way() {
    type Ask = fn(&World, usize, usize, u32) -> Wqe64;
    let cases = [
        (World::write as Ask, A, Status::InvalidLkey),
        (World::write, B, Status::RemoteBadAddress),
        (World::read, A, Status::InvalidLkey),
        (World::read, B, Status::RemoteBadAddress),
    ];
    for (case, (ask, host, expected)) in cases.into_iter().enumerate() {
        // A moment before anything left, and later ones.
        for steps in [0, 1, 2, 3, 5] {
            let mut world = World::pair();
            let wqe = ask(&world, A, B, 500_000);
            world.post(A, [wqe]);
            let now = world.now;
            world.device(A).poll_doorbells(now);
            (0..steps).for_each(|_| world.step());
            assert_eq!(world.hosts[A].cq.take(), None);
            deregister(&mut world, host);
            let bytes = [A, B].map(|host| world.bytes(host, BYTES));
            assert_eq!(world.completion(A).status, expected, "case {case}, after {steps} steps");
            assert!(bytes[host] == world.bytes(host, BYTES), "it was written after it was deregistered");
            world.run(Duration::from_secs(20));
            assert_eq!(world.hosts[A].cq.take(), None, "it ends once");
        }
    }
}

#[test]
fn a_send_whose_bytes_are_deregistered_before_its_receiver_is_ready_fails() {
    let mut world = World::pair();
    let send = world.send(A, B, 1000);
    world.post(A, [send]);
    world.run(Duration::from_millis(10));
    deregister(&mut world, A);
    assert_eq!(world.completion(A).status, Status::InvalidLkey);
    world.receive(B, 1000);
    world.run(Duration::from_secs(1));
    assert_eq!(world.hosts[B].cq.take(), None, "the receive waits for another message");
}

#[test]
fn a_receive_whose_buffer_was_deregistered_fails_on_both_sides() {
    let mut world = World::pair();
    world.receive(B, 1000);
    let send = world.send(A, B, 1000);
    world.post(A, [send]);
    world.step();
    deregister(&mut world, B);
    assert_eq!(
        (world.completion(A).status, world.completion(B).status),
        (Status::RemoteBadStatus, Status::InvalidLkey)
    );
    assert_eq!(world.bytes(B, 1000), [0; 1000]);
}

#[test]
fn a_device_that_goes_with_work_under_way_leaves_its_peers_and_the_network_in_order() {
    let mut world = World::of(3, |_, _| ());
    for (from, to) in [(A, B), (B, A), (B, 2), (2, B)] {
        let wqes = [world.write(from, to, 500_000), world.read(from, to, 500_000)];
        world.post(from, wqes);
    }
    (0..3).for_each(|_| world.step());
    world.restart(B);
    for survivor in [A, 2] {
        let ends = [(); 2].map(|()| world.completion(survivor).status);
        assert_eq!(ends, [Status::RemoteAbort; 2]);
    }
    world.run(Duration::from_secs(20));
    assert!([A, B, 2].iter().all(|&host| world.hosts[host].cq.take().is_none()), "the dead complete nothing");
    let between = world.write(A, 2, 500_000);
    assert_eq!(world.status_of(A, between), Status::Ok);
    assert_eq!(world.device(B).counters().rdma_write_recv_bytes, 0);
}
