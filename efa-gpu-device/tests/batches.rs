//! Batches: when a doorbell arrives, a device never has more than `max_batch` WQEs since the doorbell before.
//!
//! The executor delays a lane's stores, each by a time of its own, until a fence. So a doorbell arrives as late here as
//! on hardware.

use efa_gpu_device::simt::Executor;
use efa_gpu_device::warp::Warp;
use efa_gpu_device::{SharedSendQueue, ThreadSendQueue, WarpSendQueue, shared_state};
use efa_io::{Destination, EncodeError, Limits, SendInline, SendRingHandle};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

const ENTRIES: u32 = 256;
const TO: Destination = Destination { ah: 16, qpn: 7, qkey: 9 };

#[repr(align(128))]
struct Ring([AtomicU64; ENTRIES as usize * 8]);

/// A shared queue's words, on lines of 128 bytes.
#[derive(Clone)]
#[repr(align(128))]
struct State([u32; 512]);

fn request() -> SendInline<'static> {
    SendInline::new(b"0123456789abcdef")
}

/// What was seen at the doorbells of many runs.
#[derive(Debug, Default)]
struct Seen {
    doorbells: u32,
    /// Doorbells that WQEs behind them had overtaken.
    overtaken: u32,
    /// Most WQEs since the last doorbell.
    most: u32,
}

/// Runs `kernel` on an empty ring, by as many seeds.
fn watch(max_batch: u32, seeds: u64, threads: u32, kernel: impl Fn(&SendRingHandle, *mut u32)) -> Seen {
    let mut seen = Seen::default();
    for seed in 0..seeds {
        let ring = Box::new(Ring([const { AtomicU64::new(0) }; ENTRIES as usize * 8]));
        let bell = AtomicU32::new(0);
        let handle = handle(&ring, &bell, max_batch);
        let mut state = Box::new(State([0; 512]));
        state.0.iter_mut().zip(shared_state(&handle)).for_each(|(word, first)| *word = first);
        let state = state.0.as_mut_ptr();
        let mut before = 0;
        let mut arrives = |value: u32| {
            // No lap is begun twice here, so whatever is not zero has arrived.
            let is_there = |slot: &u32| (0..8).any(|w| ring.0[*slot as usize * 8 + w].load(Relaxed) != 0);
            let beyond = (value..ENTRIES).filter(is_there).count() as u32;
            seen.doorbells += 1;
            seen.overtaken += u32::from(beyond != 0);
            seen.most = seen.most.max(value - before + beyond);
            before = value;
        };
        let executor = Executor::new(seed).watch_store(bell.as_ptr(), &mut arrives);
        executor.launch(1, threads, || kernel(&handle, state)).run().unwrap_or_else(|fault| panic!("{seed}: {fault}"));
        assert_eq!(before, bell.load(Relaxed));
    }
    seen
}

fn handle(ring: &Ring, bell: &AtomicU32, max_batch: u32) -> SendRingHandle {
    SendRingHandle {
        ring: ring.0.as_ptr() as u64,
        doorbell: bell.as_ptr() as u64,
        mask: ENTRIES - 1,
        shift: ENTRIES.ilog2(),
        wqe_size: 64,
        qpn: 5,
        cq: 1,
        max_batch,
        producer: 0,
        credits: ENTRIES,
        req_id_64: 0,
        limits: Limits::of_queue(8192, 1 << 20),
    }
}

/// Two requests at a time or one, a doorbell after each `every` or only those of the queue itself.
fn by_thread(handle: &SendRingHandle, every: u32, pairs: bool) {
    // SAFETY: one thread, whose ring it is, and the ring outlives the run.
    let mut sq = unsafe { ThreadSendQueue::<8>::new(handle) }.unwrap();
    let mut placed = 0;
    while placed < 192 {
        if pairs {
            sq.post_many(2, |i| (TO, request(), u64::from(placed + i))).unwrap();
            placed += 2;
        } else {
            sq.post(TO, &request(), placed.into()).unwrap();
            placed += 1;
        }
        if placed % every == 0 {
            sq.ring();
        }
    }
    sq.ring();
}

#[test]
fn a_thread_never_has_more_than_max_batch_before_the_device() {
    for (max_batch, every, pairs) in
        [(32, 1000, false), (32, 32, false), (32, 24, true), (8, 5, false), (4, 6, true), (2, 1, false), (1, 1, false)]
    {
        let seen = watch(max_batch, 100, 1, |handle, _| by_thread(handle, every, pairs));
        assert_eq!(seen.most.max(max_batch), max_batch, "max_batch {max_batch}, rung each {every}: {seen:?}");
    }
}

#[test]
fn a_warp_never_has_more_than_max_batch_before_the_device() {
    for (max_batch, lanes, every) in [(32, 32, 1), (32, 32, 100), (64, 32, 1), (64, 23, 2), (48, 32, 1), (33, 7, 3)] {
        let seen = watch(max_batch, 100, 32, |handle, _| {
            // SAFETY: one warp, whose ring it is, and the ring outlives the run.
            let mut sq = unsafe { WarpSendQueue::<8>::new(handle) }.unwrap();
            for round in 1..=6 {
                let mine = efa_gpu_device::warp::lane_id() < lanes;
                sq.post(mine.then(|| (TO, request())), round).unwrap();
                if round % every == 0 {
                    sq.ring();
                }
            }
            sq.ring();
        });
        assert_eq!(seen.most.max(max_batch), max_batch, "max_batch {max_batch}, {lanes} lanes: {seen:?}");
    }
}

#[test]
fn posters_of_a_shared_queue_never_have_more_than_max_batch_before_the_device() {
    for warps in [1, 2, 3] {
        let seen = watch(32, 60, warps * 32, |handle, state| {
            // SAFETY: the state is this ring's, and both outlive the run.
            let (sq, warp) = unsafe { (SharedSendQueue::<8>::new(handle, state).unwrap(), Warp::whole()) };
            for round in 0..2 {
                while sq.post_warp(warp, Some((TO, request())), round).is_err() {
                    efa_gpu_device::thread::nanosleep(100);
                }
            }
        });
        assert_eq!(seen.most.max(32), 32, "{warps} warps: {seen:?}");
    }
}

/// The executor would not notice a fence that is missing if it had no doorbell overtaken.
#[test]
fn doorbells_are_overtaken_where_batches_leave_room_for_it() {
    let seen = watch(64, 100, 1, |handle, _| by_thread(handle, 32, false));
    assert!(seen.overtaken > 100 && seen.most > 32, "{seen:?}");
}

#[test]
fn a_closure_that_panics_in_the_middle_of_many_requests_leaves_room_for_fewer_not_for_more() {
    let (ring, bell) = (Box::new(Ring([const { AtomicU64::new(0) }; ENTRIES as usize * 8])), AtomicU32::new(0));
    let handle = SendRingHandle { credits: 8, ..handle(&ring, &bell, 32) };
    // SAFETY: this thread's ring, which outlives the queue.
    let mut sq = unsafe { ThreadSendQueue::<8>::new(&handle) }.unwrap();
    let mut placed = 0;
    for _ in 0..6 {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            sq.post_many(4, |i| if i == 2 { panic!("the caller's code") } else { (TO, request(), i.into()) })
        }));
        match outcome {
            Err(_) => placed += 2,
            Ok(refused) => assert_eq!(refused, Err(efa_gpu_device::PostError::Full)),
        }
    }
    while sq.post(TO, &request(), 0).is_ok() {
        placed += 1;
    }
    assert_eq!((placed, sq.room()), (8, 0));
}

#[test]
fn many_requests_of_which_one_is_refused_keep_the_room_of_those_that_were_not_placed() {
    let (ring, bell) = (Box::new(Ring([const { AtomicU64::new(0) }; ENTRIES as usize * 8])), AtomicU32::new(0));
    let handle = SendRingHandle { credits: 8, ..handle(&ring, &bell, 32) };
    for bad in 0..5 {
        // SAFETY: this thread's ring, which outlives the queue.
        let mut sq = unsafe { ThreadSendQueue::<8>::new(&handle) }.unwrap();
        let long = [0; 33];
        let outcome = sq.post_many(5, |i| (TO, SendInline::new(if i == bad { &long } else { &long[..8] }), i.into()));
        assert!(matches!(outcome, Err(efa_gpu_device::PostError::Encode(EncodeError::InlineTooLong { .. }))));
        let left = (0..20).take_while(|_| sq.post(TO, &request(), 0).is_ok()).count() as u32;
        assert_eq!(bad + left, 8, "request {bad} was refused");
    }
}
