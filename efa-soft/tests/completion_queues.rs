//! Completion queues that overflow, that have small entries, or that have several sub-queues.

mod common;

use common::world::*;
use efa_io::*;
use efa_memory::RingMemory;
use efa_soft::*;
use std::time::Duration;

/// Has node A write this often, and lets time pass until all writes have completed.
fn write(world: &mut World, count: usize) {
    let write = world.write(A, B, 8);
    world.post(A, vec![write; count]);
    world.run(Duration::from_millis(2));
}

fn ids(completions: &[Completion]) -> Vec<u64> {
    let mut ids: Vec<_> = completions.iter().map(|completion| completion.req_id).collect();
    ids.sort();
    ids
}

#[test]
fn completions_that_do_not_fit_are_lost_and_later_ones_are_written_again() {
    let mut world = World::with(|setup| (setup.cq.entries, setup.cq.events) = (16, true));
    let cqn = world.hosts[A].cq.info.cqn;
    for lap in 0..3 {
        write(&mut world, 16);
        assert_eq!(world.event(A), None);
        write(&mut world, 10);
        assert_eq!(
            (world.event(A), world.event(A)),
            (Some(AsyncEvent::CqError(cqn)), None),
            "one event for all of them"
        );
        let there = world.hosts[A].cq.drain();
        assert_eq!(ids(&there), (lap * 42..lap * 42 + 16).collect::<Vec<_>>());
        world.hosts[A].cq.report();
        write(&mut world, 16);
        let there = world.hosts[A].cq.drain();
        assert_eq!(ids(&there), (lap * 42 + 26..lap * 42 + 42).collect::<Vec<_>>());
        world.hosts[A].cq.report();
    }
    assert_eq!(world.device(A).counters().rdma_write_wrs, 3 * 42, "what is lost was done all the same");
}

#[test]
fn a_queue_without_a_doorbell_overwrites_what_nobody_took() {
    let mut world = World::with(|setup| setup.cq.entries = 16);
    write(&mut world, 32);
    assert_eq!(
        (world.event(A), world.hosts[A].cq.take()),
        (None, None),
        "two laps on, the phase is as if nothing had come"
    );
    write(&mut world, 16);
    assert_eq!(ids(&world.hosts[A].cq.drain()), (32..48).collect::<Vec<_>>());
}

#[test]
fn an_armed_queue_tells_once_of_what_comes_and_at_once_of_what_was_missed() {
    let mut world = World::with(|setup| setup.cq.events = true);
    let cqn = world.hosts[A].cq.info.cqn;
    let arm = |world: &World, taken, sequence| {
        let value = ring::CqDoorbell::arm(taken, sequence).value();
        world.hosts[A].cq.info.doorbell.as_ref().unwrap().store_doorbell(0, value);
    };
    let told = |world: &mut World| std::iter::from_fn(|| world.device(A).poll_event()).collect::<Vec<_>>();
    arm(&world, 0, 0);
    write(&mut world, 3);
    assert_eq!(told(&mut world), [DeviceEvent::Completion(cqn)]);
    arm(&world, 2, 1);
    world.step();
    assert_eq!(told(&mut world), [DeviceEvent::Completion(cqn)], "one was not seen");
    arm(&world, 3, 2);
    world.step();
    assert_eq!(told(&mut world), []);
    write(&mut world, 1);
    assert_eq!(told(&mut world), [DeviceEvent::Completion(cqn)]);
}

#[test]
fn an_arming_that_was_overwritten_before_the_device_looked_is_answered_all_the_same_but_once() {
    let mut world = World::with(|setup| setup.cq.events = true);
    let cqn = world.hosts[A].cq.info.cqn;
    let told = |world: &mut World| std::iter::from_fn(|| world.device(A).poll_event()).collect::<Vec<_>>();
    let event = [DeviceEvent::Completion(cqn)];
    for sequence in 0..6 {
        // What libefa stores after a poll, over the request that came before it.
        let value = ring::CqDoorbell::consumed(sequence, sequence).value();
        world.hosts[A].cq.info.doorbell.as_ref().unwrap().store_doorbell(0, value);
        world.run(Duration::from_micros(500));
        assert_eq!(told(&mut world), [], "everything was seen");
        write(&mut world, 1);
        assert_eq!(told(&mut world), event, "round {sequence}");
        world.run(Duration::from_millis(1));
        assert_eq!(told(&mut world), [], "an event is not repeated");
    }
}

#[test]
fn asking_again_before_an_event_is_taken_asks_for_no_other() {
    let mut world = World::with(|setup| setup.cq.events = true);
    let cqn = world.hosts[A].cq.info.cqn;
    let told = |world: &mut World| std::iter::from_fn(|| world.device(A).poll_event()).collect::<Vec<_>>();
    let store = |world: &World, value: ring::CqDoorbell| {
        world.hosts[A].cq.info.doorbell.as_ref().unwrap().store_doorbell(0, value.value());
    };
    for taken in 0..4 {
        store(&world, ring::CqDoorbell::arm(taken, 0));
        write(&mut world, 1);
        assert_eq!(told(&mut world).len(), usize::from(taken == 0));
    }
    // It has taken the event, and its next request is overwritten before the device looks: four numbers on the counting
    // starts again.
    for sequence in 1..9 {
        store(&world, ring::CqDoorbell::consumed(3 + sequence, sequence));
        write(&mut world, 1);
        assert_eq!(told(&mut world), [DeviceEvent::Completion(cqn)], "number {sequence}");
    }
}

#[test]
fn a_ring_may_lie_in_memory_of_the_program() {
    let mut device = Device::new(DeviceConfig { sub_cqs: 2, ..DeviceConfig::new(Gid::local(1)) });
    let config = CqAttributes { entries: 16, entry_size: CqeSize::Large, events: false };
    let memory = RingMemory::zeroed(4096).unwrap();
    for offset in [3080, 4, 4096, usize::MAX & !7] {
        assert!(device.create_cq_in(config, Some((memory.clone(), offset))).is_err(), "{offset}");
    }
    let info = device.create_cq_in(config, Some((memory.clone(), 3072))).unwrap();
    assert!(std::sync::Arc::ptr_eq(&info.ring, &memory));
    assert_eq!(info.offset, 3072);
}

#[test]
fn a_small_entry_says_as_much_as_it_has_room_for() {
    let mut world = World::with(|setup| (setup.cq.entries, setup.cq.entry_size) = (16, CqeSize::Small));
    let source = world.hosts[A].qp.qpn();
    for _ in 0..20 {
        world.receive(B, 8);
        let send = world.send(A, B, 8);
        assert_eq!(world.status_of(A, send), Status::Ok);
        let Event::Receive(received) = world.completion(B).event else { panic!() };
        let ah = Some(world.hosts[B].ahs[A]);
        assert_eq!((received.length, received.ah, received.src_qpn, received.src_gid), (8, ah, source, None));
    }
    // Where 32 bytes hold the rest: a length over 16 bits, and an address that has no handle.
    world.receive(B, 8);
    let long = RdmaWrite::new(world.local(A, 0x1_2345), world.remote(B)).imm(3);
    let long: Wqe64 = wqe(long, world.to(A, B));
    assert_eq!(world.status_of(A, long), Status::Ok);
    let Event::Receive(received) = world.completion(B).event else { panic!() };
    assert_eq!((received.op, received.length, received.imm), (OpCode::RdmaWrite, 0x2345, Some(3)));
    let (pd, ah) = (world.hosts[B].pd, world.hosts[B].ahs[A]);
    world.device(B).destroy_ah(pd, ah).unwrap();
    world.receive(B, 8);
    let send = world.send(A, B, 8);
    assert_eq!(world.status_of(A, send), Status::Ok);
    let Event::Receive(received) = world.completion(B).event else { panic!() };
    assert_eq!((received.ah, received.src_qpn, received.src_gid), (None, source, None));
}

#[test]
fn work_queues_take_turns_among_the_rings_of_a_queue_each_with_its_own_phase() {
    let mut world = World::with(|setup| (setup.cq.entries, setup.device.sub_cqs) = (16, 4));
    assert_eq!(world.hosts[A].cq.info.sub_queues, 4);
    let mut second = world.active_qp(A, |_| ());
    // Sends of the first queue pair go to ring 0, its receives to ring 1, those of the second to 2 and 3.
    for lap in 0..5 {
        write(&mut world, 16);
        let write = world.write(A, B, 8);
        for _ in 0..lap {
            second.put(write);
            second.ring();
            world.run(Duration::from_millis(1));
        }
        let mut taken = |ring| std::iter::from_fn(|| world.hosts[A].cq.take_from(ring)).collect::<Vec<_>>();
        let [first, second] = [taken(0), taken(2)];
        assert_eq!((first.len(), second.len(), taken(1).len(), taken(3).len()), (16, lap, 0, 0));
        assert!(first.iter().chain(&second).all(|completion| completion.status.is_ok()));
    }
    world.receive(A, 8);
    let send = world.send(B, A, 8);
    assert_eq!(world.status_of(B, send), Status::Ok);
    assert!(world.hosts[A].cq.take_from(1).is_some());
}
