//! Messages overtake others: those that nobody receives, and those that take long.

mod common;

use common::world::*;
use efa_io::*;
use efa_memory::SharedMemory;
use efa_soft::*;
use std::time::Duration;

/// Has these queue pairs of node A do this `count` times together, while `others` sees what else completes. Returns
/// `true` if all of it completed.
fn keep_doing(
    world: &mut World,
    qps: &mut [Qp],
    wqe: Wqe64,
    count: u32,
    mut others: impl FnMut(Completion, u32),
) -> bool {
    let mut done = vec![0; qps.len()];
    world.run_until(Duration::from_secs(60), |world| {
        for completion in world.hosts[A].cq.drain() {
            match qps.iter().position(|qp| qp.qpn() == completion.qpn) {
                Some(qp) => {
                    assert_eq!(completion.status, Status::Ok);
                    done[qp] += 1;
                }
                None => others(completion, done.iter().sum()),
            }
        }
        let share = count / qps.len() as u32;
        for (qp, done) in qps.iter_mut().zip(&done) {
            while qp.sent < share && qp.sent - done < 256 {
                qp.put(wqe);
            }
            qp.ring();
        }
        done.iter().all(|&done| done == share)
    })
}

#[test]
fn a_message_that_nobody_receives_holds_up_no_other() {
    let mut world = World::with(|setup| setup.qp.rnr_retry = Some(7));
    let deaf = world.active_qp(B, |_| ()).qpn();
    let unheard = wqe(SendInline::new(b"x"), Destination { qpn: deaf, ..world.to(A, B) });
    world.post::<8>(A, [unheard]);
    let mut busy = [world.active_qp(A, |_| ())];
    let write = world.write(A, B, 8);
    assert!(keep_doing(&mut world, &mut busy, write, 100_000, |other, _| panic!("{other:?}")));
    assert!(world.device(B).counters().rnr_sent > 0, "it was offered meanwhile");
}

#[test]
fn a_long_write_is_overtaken_by_short_ones_as_far_as_numbers_reach() {
    const LONG: u32 = 64 << 20;
    let mut world = World::pair();
    let mut register = |host: usize| {
        let (pd, memory) = (world.hosts[host].pd, SharedMemory::zeroed(LONG as usize).unwrap());
        world.device(host).register(pd, memory, 0, Access::ALL).unwrap()
    };
    let (near, far) = (register(A), register(B));
    let local = LocalBuf { addr: 0, lkey: Lkey::new(near.lkey).unwrap(), length: LONG };
    let long = wqe(RdmaWrite::new(local, RemoteBuf { addr: 0, rkey: far.rkey }), world.to(A, B));
    world.post::<8>(A, [long]);
    // Queue pairs take turns, so the long write's gets a twelfth.
    let mut short: Vec<Qp> = (0..11).map(|_| world.active_qp(A, |_| ())).collect();
    let write = world.write(A, B, 8);
    let mut overtook = None;
    let all_done = keep_doing(&mut world, &mut short, write, 77_000, |other, done| {
        assert_eq!((other.req_id, other.status), (0, Status::Ok));
        overtook = Some(done);
    });
    assert!(all_done);
    // Those beyond the 65536 numbers that may be under way at once come after it.
    assert!(overtook.is_some_and(|overtook| overtook >= 60_000), "{overtook:?}");
    assert_eq!(world.device(B).counters().rdma_write_recv_bytes, u64::from(LONG) + 77_000 * 8);
}

#[test]
fn a_queue_pair_gets_its_turn_however_many_long_writes_another_has_posted() {
    const LONG: u32 = 16 << 20;
    let mut world = World::with(|setup| setup.qp.send_entries = 4096);
    let mut register = |host: usize| {
        let (pd, memory) = (world.hosts[host].pd, SharedMemory::zeroed(LONG as usize).unwrap());
        world.device(host).register(pd, memory, 0, Access::ALL).unwrap()
    };
    let (near, far) = (register(A), register(B));
    let local = LocalBuf { addr: 0, lkey: Lkey::new(near.lkey).unwrap(), length: LONG };
    let long: Wqe64 = wqe(RdmaWrite::new(local, RemoteBuf { addr: 0, rkey: far.rkey }), world.to(A, B));
    let mut hog = world.active_qp(A, |_| ());
    (0..4000).for_each(|_| hog.put(long));
    hog.ring();
    let mut other = [world.active_qp(A, |_| ())];
    let write = world.write(A, B, 4096);
    let before = world.device(A).counters().tx_pkts;
    assert!(keep_doing(&mut world, &mut other, write, 100, |other, _| panic!("{other:?}")));
    // One of the other's for each of these, and what was under way already.
    let packets = world.device(A).counters().tx_pkts - before;
    assert!(packets < 2000, "{packets} packets left for 100 short writes");
}
