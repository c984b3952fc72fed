//! Windows, laps of rings, and limits of tables.

mod common;

use common::world::*;
use common::{data, header};
use efa_io::*;
use efa_soft::trace::{TraceEvent, Traced};
use efa_soft::wire::{Envelope, WireOp};
use efa_soft::*;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

fn statuses(world: &mut World) -> Vec<Status> {
    world.hosts[A].cq.drain().iter().map(|completion| completion.status).collect()
}

#[test]
fn more_reads_than_a_window_of_answers_all_succeed() {
    for loss in [0.0, 0.01] {
        let mut world = World::with(|setup| (setup.cq.entries, setup.qp.send_entries) = (16_384, 4096));
        world.set_link(|link| (link.jitter, link.loss) = (50 * MS / 1000, loss));
        let read = world.read(A, B, 60_000);
        (0..64).for_each(|_| world.post(A, [read; 64]));
        world.run(Duration::from_secs(20));
        assert_eq!(statuses(&mut world), vec![Status::Ok; 4096]);
    }
}

#[test]
fn a_doorbell_rung_in_the_middle_of_a_failure_completes_each_wqe_once() {
    let mut world = World::with(|setup| (setup.cq.entries, setup.qp.send_entries) = (32_768, 16));
    let info = world.hosts[A].qp.info.clone();
    let (good, seen) = (world.write(A, B, 8), world.watch(A));
    world.hosts[A].qp.put_raw(Wqe64::from_words([u64::MAX; 8]));
    world.hosts[A].qp.ring();
    (0..2).for_each(|_| world.hosts[A].qp.put(good));
    world.device(A).subscribe(Box::new(move |event: &TraceEvent| {
        if let Traced::Wqe { status: Status::QpInternal, .. } = event.what {
            info.sq.doorbell.store_doorbell(info.sq.doorbell_offset, 3);
        }
    }));
    world.run(MS);
    let completions = seen.lock().iter().filter(|event| matches!(event.what, Traced::Completion { .. })).count();
    assert_eq!(completions, 3);
}

#[test]
fn a_receiver_that_was_very_slow_is_well_again_at_once() {
    let mut world = World::pair();
    world.acquaint(A, B);
    world.set_faults(B, |faults| faults.rx_rate = Some(1000));
    let write = world.write(A, B, 8000);
    world.post(A, [write; 15]);
    world.run(20 * MS);
    world.set_faults(B, |faults| faults.rx_rate = None);
    world.run(Duration::from_secs(1));
    assert_eq!(statuses(&mut world), vec![Status::Ok; 15]);
}

/// Returns a packet of a stranger to a queue pair that does not exist.
fn from_stranger(world: &World, number: u32) -> Vec<u8> {
    let (src, config) = (Gid::local(1000 + number), &world.hosts[A].setup.device);
    let dst_incarnation = config.incarnation_for(src);
    let envelope = Envelope { src, dst: config.attributes.gid, src_incarnation: 1, dst_incarnation, path: 0 };
    data(&envelope, header(WireOp::Send, 1, 0), 0, 0, 64)
}

fn meet_strangers(world: &mut World) {
    let now = world.now;
    for number in 0..5000 {
        let packet = from_stranger(world, number);
        world.device(A).handle(now, &packet);
        while world.device(A).poll_transmit(now).is_some() {}
    }
}

#[test]
fn any_number_of_strangers_leaves_room_for_peers() {
    let mut world = World::pair();
    meet_strangers(&mut world);
    world.acquaint(A, B);
    meet_strangers(&mut world);
    world.acquaint(A, B);
}

#[test]
fn a_peer_that_was_forgotten_is_met_anew() {
    for seed in 0..6 {
        let mut world = World::with(|setup| setup.device.seed += seed * 100);
        world.acquaint(A, B);
        // Its place goes to others after a long silence, whichever of both sides remembers.
        world.run(Duration::from_secs(11));
        meet_strangers(&mut world);
        world.run(Duration::from_secs(11));
        world.acquaint(A, B);
        world.acquaint(A, B);
    }
}

#[test]
fn more_wqes_than_the_ring_holds_fail_the_queue_pair() {
    let mut world = World::with(|setup| setup.qp.send_entries = 16);
    world.set_link(|link| link.cut = true);
    let write = world.write(A, B, 8);
    let qpn = world.hosts[A].qp.qpn();
    for lap in 0..2 {
        world.post(A, [write; 16]);
        let now = world.now;
        world.device(A).poll_doorbells(now);
        let expected = if lap == 0 { QpState::ReadyToSend } else { QpState::Error };
        assert_eq!(world.device(A).query_qp(qpn), Ok(expected));
    }
    assert_eq!(statuses(&mut world).len(), 32, "nothing is forgotten");
}

#[test]
fn a_peer_that_is_never_ready_is_not_taken_for_dead_however_patient_its_sender_is() {
    let mut world = World::with(|setup| setup.device.rnr_delay = Duration::from_millis(200));
    world.acquaint(A, B);
    let send = world.send(A, B, 8);
    world.post(A, [send]);
    world.run(Duration::from_secs(60));
    assert!(statuses(&mut world).is_empty());
    world.receive(B, 100);
    assert_eq!(world.completion(A).status, Status::Ok);
}
