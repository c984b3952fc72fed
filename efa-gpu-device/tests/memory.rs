//! The executor's memory: a launch that plays the device finds fences that are missing before a doorbell.

use efa_gpu_device::simt::{Executor, Fault};
use efa_gpu_device::{RecvQueue, ThreadSendQueue, WarpSendQueue, mem, thread, warp};
use efa_io::{Destination, Limits, Lkey, LocalBuf, RdmaWrite, RecvRingHandle, RemoteBuf, SendRingHandle};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const SEEDS: u64 = 200;

/// A ring of a warp's entries, 16 bytes each, and its doorbell.
#[derive(Default)]
struct Ring {
    entries: [Entry; 32],
    doorbell: AtomicU32,
}

#[derive(Default)]
#[repr(align(16))]
struct Entry([AtomicU64; 2]);

/// How many seeds have a device see a doorbell before the entries that it tells of. A warp of another block than those
/// that help posts.
fn too_early(device_gpu: u32, order: impl Fn()) -> usize {
    let early = |seed: &u64| {
        let (ring, early) = (Ring::default(), Cell::new(false));
        let doorbell = ring.doorbell.as_ptr();
        let result = Executor::new(*seed)
            .lends(&ring)
            .launch(1, 32, || {
                let lane = u64::from(warp::lane_id());
                let entry = &ring.entries[lane as usize];
                // SAFETY: an entry, which lives long enough.
                unsafe { mem::store_pair(entry.0[0].as_ptr(), [lane + 1; 2]) };
                order();
                if lane == 0 {
                    // SAFETY: as good as a register.
                    unsafe { mem::store_mmio(doorbell, 32) };
                }
            })
            .launch_on(device_gpu, 1, 1, || {
                // SAFETY: words that live long enough.
                unsafe {
                    while mem::load_acquire_system_u32(doorbell) != 32 {}
                    for (i, entry) in ring.entries.iter().enumerate() {
                        early.set(early.get() | (mem::load_pair_system(entry.0[0].as_ptr()) != [i as u64 + 1; 2]));
                    }
                }
            });
        result.run().unwrap();
        early.get()
    };
    (0..SEEDS).filter(early).count()
}

fn sync_warp() {
    // SAFETY: the whole warp comes here.
    unsafe { warp::sync_warp(warp::ALL) };
}

fn sync_threads() {
    // SAFETY: the executor says if not all threads come.
    unsafe { thread::sync_threads() };
}

#[test]
fn a_doorbell_without_a_fence_is_seen_before_its_entries() {
    assert!(too_early(1, || ()) > 20);
    assert!(too_early(1, sync_warp) > 20, "lanes of a warp see each other's, and nobody else does");
    assert!(too_early(1, sync_threads) > 20);
}

#[test]
fn a_fence_of_the_gpu_is_enough_for_the_gpu_and_not_for_a_device() {
    let fence = || {
        thread::device_fence();
        sync_warp();
    };
    assert!(too_early(1, fence) > 20);
    assert_eq!(too_early(0, fence), 0);
}

#[test]
fn a_system_fence_of_each_lane_or_of_one_behind_a_barrier_is_enough() {
    let each = || {
        thread::system_fence();
        sync_warp();
    };
    assert_eq!(too_early(1, each), 0);
    let one = || {
        sync_warp();
        thread::system_fence();
    };
    assert_eq!(too_early(1, one), 0);
}

#[test]
fn lanes_that_fence_without_meeting_are_not_enough() {
    assert!(too_early(1, thread::system_fence) > 20);
}

#[test]
fn a_release_brings_what_was_stored_before_and_a_relaxed_store_does_not() {
    let early = |release: bool| {
        let early = |seed: &u64| {
            let (entry, flag, early) = (Entry::default(), Entry::default(), Cell::new(false));
            let result = Executor::new(*seed)
                .lends(&entry)
                .lends(&flag)
                .launch(1, 1, || {
                    // SAFETY: words that live long enough.
                    unsafe {
                        mem::store_pair(entry.0[0].as_ptr(), [1, 2]);
                        if release {
                            mem::store_release_system(flag.0[0].as_ptr(), 1);
                        } else {
                            mem::store_pair(flag.0[0].as_ptr(), [1, 1]);
                        }
                    }
                })
                .launch_on(1, 1, 1, || {
                    // SAFETY: words that live long enough.
                    unsafe {
                        while mem::load_acquire_system(flag.0[0].as_ptr()) != 1 {}
                        early.set(mem::load_pair_system(entry.0[0].as_ptr()) != [1, 2]);
                    }
                });
            result.run().unwrap();
            early.get()
        };
        (0..SEEDS).filter(early).count()
    };
    assert_eq!(early(true), 0);
    assert!(early(false) > 20);
}

#[test]
fn a_lane_sees_its_own_stores_and_atomics_count_them() {
    for seed in 0..SEEDS {
        let (word, sum) = (AtomicU32::new(0), AtomicU32::new(0));
        let result = Executor::new(seed).lends(&word).lends(&sum).launch(2, 32, || {
            // SAFETY: words that live long enough.
            unsafe {
                if thread::first() {
                    for i in 1..50 {
                        mem::store_mmio(word.as_ptr(), 2 * i);
                        assert_eq!(mem::load_relaxed_device(word.as_ptr()), 2 * i);
                        assert_eq!(mem::compare_exchange_device(word.as_ptr(), 2 * i, 2 * i + 1), 2 * i);
                    }
                }
                mem::fetch_add_device(sum.as_ptr(), thread::index_1d());
            }
        });
        result.run().unwrap();
        assert_eq!((word.load(Ordering::Relaxed), sum.load(Ordering::Relaxed)), (99, 63 * 64 / 2));
    }
}

#[test]
fn a_watch_sees_every_store_in_order_though_others_miss_some() {
    for seed in 0..SEEDS {
        let (doorbell, seen) = (AtomicU32::new(0), RefCell::new(Vec::new()));
        let result = Executor::new(seed)
            .lends(&doorbell)
            .watch_store(doorbell.as_ptr(), |value| {
                assert_eq!(doorbell.load(Ordering::Relaxed), value);
                seen.borrow_mut().push(value);
            })
            .launch(1, 1, || {
                for i in 0..40 {
                    // SAFETY: as good as a register.
                    unsafe { mem::store_mmio(doorbell.as_ptr(), i) };
                }
            });
        result.run().unwrap();
        assert!(seen.take().into_iter().eq(0..40));
    }
}

#[test]
fn a_watch_may_object() {
    let doorbell = AtomicU32::new(0);
    for seed in 0..SEEDS {
        let result = Executor::new(seed)
            .lends(&doorbell)
            .watch_store(doorbell.as_ptr(), |value| assert!(value < 2, "{value} is too much"));
        let kernel = || {
            for i in 0..3 {
                // SAFETY: as good as a register.
                unsafe { mem::store_mmio(doorbell.as_ptr(), i) };
            }
        };
        let fault = result.launch(1, 1, kernel).run();
        assert!(matches!(&fault, Err(Fault::Panicked { message, .. }) if message == "2 is too much"), "{fault:?}");
    }
}

/// How many seeds have a doorbell of a queue get to memory before what it tells of, in a ring of 32 entries of `size`
/// bytes. `post` gets the addresses of ring and doorbell, and runs as a warp.
fn untold(size: usize, post: impl Fn(u64, u64)) -> usize {
    let early = |seed: &u64| {
        let entries: Vec<Entry> = std::iter::repeat_with(Entry::default).take(32 * size / 16).collect();
        let (doorbell, early, last) = (AtomicU32::new(0), Cell::new(false), Cell::new(0));
        let result = Executor::new(*seed)
            .lends(&entries[..])
            .lends(&doorbell)
            .watch_store(doorbell.as_ptr(), |value| {
                last.set(value);
                let told = &entries[..value as usize * size / 16];
                // Each starts with a word that is not zero.
                let is_there = |entry: &Entry| entry.0[0].load(Ordering::Relaxed) != 0;
                early.set(early.get() || !told.iter().step_by(size / 16).all(is_there));
            })
            .launch(1, 32, || post(entries.as_ptr() as u64, doorbell.as_ptr() as u64));
        result.run().unwrap();
        assert_eq!(last.get(), 32);
        early.get()
    };
    (0..SEEDS).filter(early).count()
}

fn send_handle(ring: u64, doorbell: u64) -> SendRingHandle {
    let limits = Limits::of_queue(4096, 4096);
    let (mask, shift, wqe_size, max_batch, credits) = (31, 5, 64, 32, 32);
    SendRingHandle {
        ring,
        doorbell,
        mask,
        shift,
        wqe_size,
        qpn: 1,
        cq: 1,
        max_batch,
        producer: 0,
        credits,
        req_id_64: 1,
        limits,
    }
}

const TO: Destination = Destination { ah: 1, qpn: 2, qkey: 3 };

fn buf() -> LocalBuf {
    LocalBuf { addr: 1, lkey: Lkey::new(2).unwrap_or_default(), length: 3 }
}

fn write() -> RdmaWrite {
    RdmaWrite::new(buf(), RemoteBuf { addr: 4, rkey: 5 })
}

#[test]
fn the_queues_ring_behind_what_they_ring_for() {
    let by_thread = |fenced: bool| {
        move |ring, doorbell| {
            if warp::lane_id() == 0 {
                // SAFETY: the ring lives as long as the run, and is this thread's.
                let mut sq = unsafe { ThreadSendQueue::<8>::new(&send_handle(ring, doorbell)) }.unwrap();
                for i in 1..=32 {
                    sq.post(TO, &write(), i).unwrap();
                    match i % 4 {
                        0 if fenced => sq.ring(),
                        // SAFETY: a test of what comes of it.
                        0 => unsafe { sq.ring_unfenced() },
                        _ => {}
                    }
                }
            }
        }
    };
    assert_eq!(untold(64, by_thread(true)), 0);
    assert!(untold(64, by_thread(false)) > 20);
    let by_warp = |ring, doorbell| {
        // SAFETY: the ring lives as long as the run, and is this warp's, whose lanes all do the same.
        let mut sq = unsafe { WarpSendQueue::<8>::new(&send_handle(ring, doorbell)) }.unwrap();
        for third in 0..3 {
            let write = write();
            sq.post((warp::lane_id() % 3 == third).then_some((TO, &write)), 7).unwrap();
            sq.ring();
        }
    };
    assert_eq!(untold(64, by_warp), 0);
    let receives = |ring, doorbell| {
        if warp::lane_id() == 0 {
            let (mask, shift, max_batch, max_bufs, credits) = (31, 5, 5, 2, 16);
            let handle = RecvRingHandle {
                ring,
                doorbell,
                mask,
                shift,
                max_batch,
                producer: 0,
                credits,
                max_bufs,
                qpn: 1,
                cq: 1,
                posted: 0,
            };
            // SAFETY: as for the thread's send queue.
            let mut rq = unsafe { RecvQueue::new(&handle) };
            (1..=16).for_each(|i| rq.post(&[buf(); 2], i).unwrap());
            rq.ring();
        }
    };
    assert_eq!(untold(16, receives), 0);
}

/// How many seeds have a device see a doorbell before entries that a thread of another block stored and marked. Of the
/// two lanes that ring together one waits for the mark, and then executes `acquire`; the other one executes the fence
/// and rings.
fn untold_by_another(acquire: impl Fn()) -> usize {
    let early = |seed: &u64| {
        let (ring, mark, early) = (Ring::default(), AtomicU32::new(0), Cell::new(false));
        let (entries, doorbell) = (&ring.entries, &ring.doorbell);
        let result = Executor::new(*seed)
            .lends(&ring)
            .lends(&mark)
            .watch_store(doorbell.as_ptr(), |_| {
                early.set(!entries.iter().all(|entry| entry.0[0].load(Ordering::Relaxed) == 1));
            })
            .launch(1, 1, || {
                // SAFETY: words that live long enough.
                unsafe {
                    entries.iter().for_each(|entry| mem::store_relaxed_system(entry.0[0].as_ptr(), 1));
                    thread::device_fence();
                    mem::store_relaxed_system_u32(mark.as_ptr(), 1);
                }
            })
            .launch(1, 2, || {
                // SAFETY: words that live long enough; both lanes meet.
                unsafe {
                    if warp::lane_id() == 1 {
                        while mem::load_relaxed_device(mark.as_ptr()) != 1 {}
                        acquire();
                    }
                    warp::sync_warp(0b11);
                    if warp::lane_id() == 0 {
                        thread::system_fence();
                        mem::store_mmio(doorbell.as_ptr(), 1);
                    }
                }
            });
        result.run().unwrap();
        early.get()
    };
    (0..SEEDS).filter(early).count()
}

#[test]
fn what_one_lane_has_seen_another_rings_for_only_if_that_one_acquired_it_before_they_met() {
    let without = untold_by_another(|| ());
    assert!(without > 20, "{without}");
    assert_eq!(untold_by_another(thread::device_fence), 0);
    assert_eq!(untold_by_another(thread::system_fence), 0);
    // A look at something else that acquires does as well, as all that comes before it.
    let other = AtomicU32::new(0);
    // SAFETY: a word that lives long enough.
    assert_eq!(untold_by_another(|| _ = unsafe { mem::fetch_add_device(other.as_ptr(), 1) }), 0);
}
