//! Hostile programs, which overwrite their rings while the NIC reads them.

mod common;

use common::*;
use efa_gpu_device::simt::Executor;
use efa_gpu_device::{mem, thread};
use efa_gpu_nic::Tables;
use efa_io::rx::RxBuf;
use efa_io::{RxDesc, Send, Wqe64};
use std::sync::atomic::{AtomicU64, Ordering::*};

const SEEDS: u64 = 100;

#[test]
fn a_descriptor_that_is_written_over_lets_nothing_outside_of_regions_be_written() {
    let outside: [AtomicU64; 8] = Default::default();
    let mut placed = 0;
    for seed in 0..SEEDS {
        let mut world = TestWorld::pair();
        world.fill(A, &[0xaa; 64]);
        let (mut a, mut b) = (world.poster(A), world.poster(B));
        let sends: u32 = 16;
        for _ in 0..sends {
            a.put(wqe(Send::new(&[world.local(A, 0, 64)]).unwrap(), world.to(A, B)) as Wqe64);
            b.receive(&[world.local(B, 0, 64)]);
        }
        a.ring();
        let ring = world.nodes[B].queues[0].recv.ring;
        let (good, bad) = (world.nodes[B].addr, outside.as_ptr() as u64);
        let control = world.control as *mut u32;
        let nic = world.placed.tables as *const Tables;
        let result = Executor::new(seed)
            // SAFETY: the world outlives the run.
            .launch(1, 64, || unsafe { efa_gpu_nic::run(nic, seed) })
            .launch_on(1, 1, 1, || {
                // SAFETY: words of the ring and of the world, which outlive the run.
                unsafe {
                    for addr in [bad, good].into_iter().cycle().take(40) {
                        for slot in 0..u64::from(sends) {
                            mem::store_relaxed_system((ring + slot * RxDesc::SIZE as u64) as *mut u64, addr);
                        }
                        thread::system_fence();
                    }
                    thread::nanosleep(10_000);
                    mem::store_relaxed_system_u32(control, 1);
                }
            })
            .run();
        result.unwrap();
        placed += (0..sends).filter(|_| a.completion().status.is_ok()).count();
        assert!(outside.iter().all(|word| word.load(Relaxed) == 0), "seed {seed}");
    }
    assert!(placed > 0, "some were taken while they were good");
}

#[test]
fn a_receive_of_more_buffers_than_there_can_be_is_malformed() {
    let world = TestWorld::pair();
    world.run(1, || {
        let (mut a, mut b) = (world.poster(A), world.poster(B));
        let piece = world.local(B, 0, 4);
        for i in 0..17 {
            let (first, last) = (i == 0, i == 16);
            b.put_descriptor(RxDesc::new(RxBuf {
                req_id: 0,
                addr: piece.addr,
                lkey: piece.lkey,
                length: 4,
                first,
                last,
            }));
        }
        b.ring_receives();
        let status = a.status_of(wqe(Send::new(&[world.local(A, 0, 4)]).unwrap(), world.to(A, B)) as Wqe64);
        assert_eq!(status, efa_io::Status::RemoteBadDestQpn);
        assert_eq!(world.state(world.nodes[B].queues[0].qpn), 1);
    });
}
