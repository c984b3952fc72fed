//! Order: which requests wait for a receive, which pass them, and when the NIC ends.

mod common;

use common::*;
use efa_gpu_device::simt::Executor;
use efa_gpu_nic::host::{Access, Builder, DeviceConfig, Error, HostMemory, QpConfig};
use efa_io::*;

fn write(world: &TestWorld, from: usize, to: usize) -> Wqe64 {
    wqe(RdmaWrite::new(world.local(from, 0, 8), world.remote(to, 64)), world.to(from, to))
}

fn send(world: &TestWorld, from: usize, to: usize) -> Wqe64 {
    wqe(Send::new(&[world.local(from, 0, 8)]).unwrap(), world.to(from, to))
}

#[test]
fn a_send_without_a_receive_waits_and_holds_nothing_up() {
    let world = TestWorld::of(3, |_, _| ());
    world.run(3, || {
        let [mut a, mut b, mut c] = [A, B, 2].map(|node| world.poster(node));
        a.put(send(&world, A, B));
        let announced: Wqe64 = wqe(RdmaWrite::new(world.local(A, 0, 8), world.remote(B, 0)).imm(7), world.to(A, B));
        a.put(announced);
        a.ring();
        // Many laps of the ring behind them, of the same queue pair and of another, which goes to the same peer.
        for _ in 0..300 {
            a.put(write(&world, A, B));
            a.ring();
            let done = a.completion();
            assert!(done.status.is_ok() && done.event == Event::Send { op: OpCode::RdmaWrite } && done.req_id > 1);
            assert_eq!(c.status_of(write(&world, 2, B)), Status::Ok);
        }
        assert!(b.is_quiet());
        b.receive(&[world.local(B, 0, 8)]);
        b.receive(&[world.local(B, 8, 8)]);
        let mut ids = [a.completion(), a.completion()].map(|done| (done.req_id, done.status));
        ids.sort_by_key(|id| id.0);
        assert_eq!(ids, [(0, Status::Ok), (1, Status::Ok)]);
        assert_eq!([b.completion().status, b.completion().status], [Status::Ok; 2]);
    });
}

#[test]
fn a_full_ring_of_sends_that_wait_arrives_once_there_are_receives() {
    let world = TestWorld::pair();
    world.run(4, || {
        let (mut a, mut b) = (world.poster(A), world.poster(B));
        (0..64).for_each(|_| a.put(send(&world, A, B)));
        a.ring();
        assert!(a.is_quiet());
        for _ in 0..64 {
            b.receive(&[world.local(B, 0, 8)]);
            assert!(b.completion().status.is_ok());
        }
        let mut ids: Vec<_> = (0..64).map(|_| a.completion().req_id).collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..64));
    });
}

/// Request ids in the order in which 64 writes, rung for together, complete.
fn order(seed: u64) -> Vec<u64> {
    let world = TestWorld::pair();
    world.run(seed, || {
        let mut a = world.poster(A);
        (0..64).for_each(|_| a.put(write(&world, A, B)));
        a.ring();
        (0..64).map(|_| a.completion().req_id).collect()
    })
}

#[test]
fn requests_complete_in_another_order_by_every_seed_and_in_order_without() {
    assert!(order(0).into_iter().eq(0..64));
    let orders: std::collections::HashSet<_> = (1..20).map(order).collect();
    assert!(orders.len() > 10 && !orders.contains(&(0..64).collect::<Vec<_>>()));
}

#[test]
fn a_nic_without_work_ends_by_itself_also_if_a_send_waits_for_ever() {
    for waiting in [false, true] {
        let world = TestWorld::of(2, |_, setup| setup.idle_timeout_ns = 1_000_000);
        if waiting {
            let mut a = world.poster(A);
            a.put(send(&world, A, B));
            a.ring();
        }
        let placed = world.placed.tables as *const efa_gpu_nic::Tables;
        // SAFETY: the world outlives the run.
        Executor::new(1).launch(1, 32, || unsafe { efa_gpu_nic::run(placed, 1) }).run().unwrap();
        assert!(world.timed_out());
    }
}

#[test]
fn warps_beyond_the_queue_pairs_end_at_once_and_fewer_warps_serve_them_all() {
    for (blocks, threads) in [(1, 32), (3, 128)] {
        let world = TestWorld::of(2, |_, setup| (setup.idle_timeout_ns, setup.queue_pairs) = (1_000_000, 3));
        let mut a: Vec<_> = world.nodes[A].queues.iter().map(|q| Poster::new(q, &world.nodes[A].completions)).collect();
        for poster in &mut a {
            poster.put(write(&world, A, B));
            poster.ring();
        }
        let placed = world.placed.tables as *const efa_gpu_nic::Tables;
        // SAFETY: the world outlives the run.
        Executor::new(1).launch(blocks, threads, || unsafe { efa_gpu_nic::run(placed, 1) }).run().unwrap();
        let mut qpns: Vec<_> = (0..3).map(|_| a[0].completion().qpn).collect();
        qpns.sort_unstable();
        assert!(qpns.into_iter().eq(world.nodes[A].queues.iter().map(|queues| queues.qpn)));
    }
}

#[test]
fn what_cannot_be_in_a_world_is_refused() {
    let mut memory = HostMemory::default();
    let mut world = Builder::new(1);
    let device = world.device(DeviceConfig { rdma_write: false, ..DeviceConfig::default() });
    let pd = world.domain(device).unwrap();
    let cq = world.completion_queue(&mut memory, 50).unwrap();
    let ok = QpConfig::new(16, 16, cq, cq, 1);
    assert!(world.queue_pair(&mut memory, pd, ok).is_ok());
    let too_many = world.queue_pair(&mut memory, pd, QpConfig { send_entries: 33, ..ok });
    assert!(matches!(too_many, Err(Error::CqTooSmall { cq: 0, holds: 64, needs: 96 })), "{too_many:?}");
    assert!(world.queue_pair(&mut memory, pd, ok).is_ok(), "what was refused counts for nothing");
    let large = world.completion_queue(&mut memory, 1 << 20).unwrap();
    let ok = QpConfig::new(16, 16, large, large, 1);
    let refused = [
        QpConfig { send_entries: (1 << 15) + 1, ..ok },
        QpConfig { recv_entries: 1 << 15, recv_bufs: 2, ..ok },
        QpConfig { inline_bytes: 81, ..ok },
        QpConfig { recv_bufs: 17, ..ok },
        QpConfig { inline_write: true, ..ok },
    ];
    for config in refused {
        assert!(world.queue_pair(&mut memory, pd, config).is_err(), "{config:?}");
    }
    assert!(world.completion_queue(&mut memory, 0).is_err());
    assert!(world.region(pd, u64::MAX - 5, 7, Access::ALL).is_err());
    let [first, again] = [(); 2].map(|()| world.address_handle(pd, device).unwrap());
    assert_eq!(first, again);
}
