//! Faults of devices and paths: what they cost, and that they cost no more.

mod common;

use common::world::*;
use common::*;
use efa_io::*;
use efa_soft::trace::{TraceEvent, Traced};
use efa_soft::wire::Ack;
use efa_soft::*;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

/// Takes the completions of a host, which must all be successful. Returns their number.
fn take(world: &mut World, host: usize) -> u64 {
    let there = world.hosts[host].cq.drain();
    assert!(there.iter().all(|completion| completion.status.is_ok()), "{there:?}");
    there.len() as u64
}

/// Has `count` hosts write to host `A`, which takes in a gigabit a second.
fn share_a_slow_receiver(count: usize) {
    const WRITES: u64 = 1000;
    const BYTES_EACH: u32 = 8192;
    let mut world = World::of(1 + count, |_, _| ());
    (1..=count).for_each(|sender| world.acquaint(sender, A));
    world.set_faults(A, |faults| faults.rx_rate = Some(125_000_000));
    for sender in 1..=count {
        let write = world.write(sender, A, BYTES_EACH);
        world.post(sender, vec![write; WRITES as usize]);
    }
    let mut done = vec![0; 1 + count];
    let mut run = |world: &mut World, time, enough: u64| {
        world.run_until(time, |world| {
            (1..=count).for_each(|sender| done[sender] += take(world, sender));
            done[1..].iter().all(|&done| done >= enough)
        });
        done[1..].to_vec()
    };
    let bytes =
        run(&mut world, 100 * MS, WRITES).iter().map(|&done| (done * u64::from(BYTES_EACH)) as f64).collect::<Vec<_>>();
    let sum = bytes.iter().sum::<f64>();
    let fairness = sum.powi(2) / (count as f64 * bytes.iter().map(|bytes| bytes.powi(2)).sum::<f64>());
    assert!(fairness > 0.9, "Jain's index of {bytes:?} is {fairness}");
    assert!(sum > 0.7 * 12_500_000.0, "{sum} bytes in 100 ms");
    assert_eq!(run(&mut world, Duration::from_secs(10), WRITES), vec![WRITES; count]);
    let Counters { rx_pkts, rx_drops, .. } = world.device(A).counters();
    assert!(rx_drops * 4 < rx_pkts, "{rx_drops} of {rx_pkts} packets were dropped");
}

#[test]
fn two_senders_share_a_slow_receiver_fairly() {
    share_a_slow_receiver(2);
}

#[test]
fn four_senders_share_a_slow_receiver_fairly() {
    share_a_slow_receiver(4);
}

#[test]
fn a_receiver_that_is_slow_no_more_takes_in_what_waits_and_goes_on() {
    let mut world = World::pair();
    world.set_faults(B, |faults| faults.rx_rate = Some(1_000_000));
    let write = world.write(A, B, 8192);
    world.post(A, [write; 10]);
    world.run(MS);
    world.set_faults(B, |faults| faults.rx_rate = None);
    assert!(
        world.run_until(Duration::from_secs(1), |world| world.device(B).counters().rdma_write_recv_bytes == 10 * 8192)
    );
    world.run(Duration::from_secs(1));
    assert_eq!(take(&mut world, A), 10);
}

#[test]
fn word_of_congestion_makes_a_sender_hold_back() {
    let let_out_after = |congested: &[bool]| {
        let mut node = Node::new(HERE, THERE, 4096);
        (0..4000).for_each(|_| node.put(node.send(600)));
        node.ring(at(1));
        let mut packets = node.packets(at(1));
        let mut first = first_message(&packets);
        for (round, &congested) in (1..).zip(congested) {
            let done = Ack::Done { first, count: packets.len() as u16, status: Status::Ok };
            first = first.wrapping_add(packets.len() as u32);
            let told = acks_from(&from_there(), congested, &[done]);
            let now = at(round * 20_000);
            node.device.handle(now, &told);
            packets = node.packets(now);
        }
        packets.len()
    };
    let (start, free, once, ever) = (
        let_out_after(&[]),
        let_out_after(&[false; 4]),
        let_out_after(&[false, false, false, true]),
        let_out_after(&[true; 40]),
    );
    assert!(start < once && once < free && ever < start, "{start}, {once}, {free}, {ever} packets");
    assert!(ever > 0, "a sender that holds back still sends");
}

#[test]
fn a_slow_device_fetches_a_wqe_at_a_time() {
    let mut world = World::pair();
    let seen = world.watch(A);
    let interval = Duration::from_micros(10);
    world.set_faults(A, |faults| faults.wqe_time = interval);
    let write = world.write(A, B, 8);
    for _ in 0..2 {
        world.post(A, [write; 50]); // the doorbell is rung again before the first batch is through
        world.run(interval * 20);
    }
    world.run(2 * MS);
    assert_eq!(take(&mut world, A), 100);
    let fetched: Vec<Time> =
        seen.lock().iter().filter(|event| matches!(event.what, Traced::Wqe { .. })).map(|event| event.at).collect();
    assert_eq!(fetched.len(), 100);
    assert!(fetched.windows(2).all(|two| two[1].since(two[0]) == interval), "{fetched:?}");
}

#[test]
fn queue_pairs_of_a_slow_device_take_turns() {
    let mut world = World::pair();
    let seen = world.watch(A);
    let mut other = world.active_qp(A, |_| ());
    world.set_faults(A, |faults| faults.wqe_time = Duration::from_micros(10));
    let write = world.write(A, B, 8);
    (0..16).for_each(|_| other.put(write));
    other.ring();
    world.post(A, [write; 16]);
    world.run(MS);
    let fetched_from = |event: &TraceEvent| match event.what {
        Traced::Wqe { qpn, .. } => Some(qpn),
        _ => None,
    };
    let order: Vec<u16> = seen.lock().iter().filter_map(fetched_from).collect();
    assert_eq!(order.len(), 32);
    let of_other = order[..16].iter().filter(|&&qpn| qpn == other.qpn()).count();
    assert!((4..=12).contains(&of_other), "{order:?}");
}

#[test]
fn work_under_way_outlives_a_port_that_is_down_for_a_while() {
    for down in [A, B] {
        let mut world = World::pair();
        let writes = [world.write(A, B, 8), world.write(A, B, 100_000), world.read(A, B, 100_000)];
        world.post(A, writes);
        world.step();
        world.device(down).set_port(false);
        world.device(down).set_port(false);
        assert_eq!((world.event(down), world.event(down)), (Some(AsyncEvent::PortError), None));
        assert!(!world.device(down).port_is_up());
        let before = world.device(down).counters();
        world.run(Duration::from_secs(2));
        let after = world.device(down).counters();
        assert_eq!((before.tx_pkts, before.rx_pkts), (after.tx_pkts, after.rx_pkts), "nothing leaves, nothing arrives");
        assert_eq!(world.hosts[A].cq.take(), None);
        world.device(down).set_port(true);
        assert_eq!(world.event(down), Some(AsyncEvent::PortActive));
        assert_eq!([(); 3].map(|()| world.completion(A).status), [Status::Ok; 3]);
    }
}

#[test]
fn work_under_way_is_given_up_when_a_port_stays_down() {
    for down in [A, B] {
        let mut world = World::pair();
        let write = world.write(A, B, 8);
        assert_eq!(world.status_of(A, write), Status::Ok);
        world.device(down).set_port(false);
        let before = world.now;
        assert_eq!(world.status_of(A, write), Status::UnresponsiveRemote);
        assert!(world.now.since(before) >= world.device(A).config().peer_timeout);
    }
}

#[test]
fn what_goes_to_another_subnet_leaves_and_arrives_nowhere() {
    let mut world =
        World::of(2, |host, setup| setup.device.attributes.gid = setup.device.attributes.gid.in_subnet(host as u16));
    let wqes = [world.send(A, B, 8), world.write(A, B, 8), world.read(A, B, 8)];
    for wqe in wqes {
        assert_eq!(world.status_of(A, wqe), Status::UnreachableRemote);
    }
    assert!(world.device(A).counters().tx_pkts > 3);
    assert_eq!(world.device(B).counters().rx_pkts, 0);
}

/// Returns how many bytes a second node A writes to node B over `paths`, and what A counted.
fn goodput(paths: [PathConfig; 4]) -> (f64, Counters) {
    const WRITES: u64 = 1000;
    let mut world = World::pair();
    world.set_link(|link| link.paths = paths);
    world.set_faults(B, |faults| (faults.rx_rate, faults.rx_buffer) = (Some(1_250_000_000), 1 << 20));
    let write = world.write(A, B, 65_536);
    world.post(A, vec![write; WRITES as usize]);
    let mut done = 0;
    assert!(world.run_until(Duration::from_secs(60), |world| {
        done += take(world, A);
        done == WRITES
    }));
    let seconds = world.now.since(Time::ZERO).as_secs_f64();
    (65_536.0 * WRITES as f64 / seconds, world.device(A).counters())
}

#[test]
fn one_bad_path_in_four_costs_little() {
    let healthy = PathConfig::default();
    let (best, counters) = goodput([healthy; 4]);
    assert!(counters.retrans_pkts * 100 < counters.tx_pkts, "{counters:?}");
    let dead = PathConfig { cut: true, ..healthy };
    for (bad, what) in [
        (dead, "dead"),
        (PathConfig { delay: 5 * MS, ..healthy }, "slow"),
        (PathConfig { loss: 0.3, ..healthy }, "lossy"),
    ] {
        let (bytes, counters) = goodput([healthy, healthy, bad, healthy]);
        assert!(bytes > best * 0.8, "{bytes:.0} of {best:.0} bytes a second with a path that is {what}: {counters:?}");
        assert!(bad != dead || counters.retrans_timeout_events > 0, "{counters:?}");
    }
}
