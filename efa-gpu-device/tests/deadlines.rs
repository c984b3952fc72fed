//! Waits end at their deadline, also while other queues' completions come one after the other.

use efa_gpu_device::simt::Executor;
use efa_gpu_device::{CompletionQueue, Deadline, PostError, ThreadSendQueue, TimeoutReport, WarpSendQueue, warp};
use efa_io::{
    Completion, CompletionRingHandle, Destination, Event, Limits, OpCode, SendInline, SendRingHandle, Status,
};
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// The queue pair that waits, and the other one.
const MINE: u16 = 7;
const OTHER: u16 = 8;
/// Entries of the send ring and of the completion queue, as powers of two.
const SENDS: u32 = 5;
const COMPLETIONS: u32 = 13;
/// Nanoseconds of the run: much less than it takes to poll all that is there.
const PATIENCE: u64 = 10_000;

#[repr(align(16))]
struct Pair([AtomicU64; 2]);

struct Memory {
    ring: Vec<Pair>,
    doorbell: AtomicU32,
    completions: Vec<Pair>,
}

impl Memory {
    /// An empty send ring, and a completion queue full of completions, of the queue pairs that `of` gives by number.
    fn new(of: impl Fn(u32) -> u16) -> Self {
        let entries = (0..1 << COMPLETIONS).flat_map(|number| {
            let event = Event::Send { op: OpCode::Send };
            let entry = Completion { req_id: 1, status: Status::Ok, qpn: of(number), phase: true, event };
            let words: [u64; 4] = bytemuck::cast(entry.encode::<4>().unwrap());
            words.chunks(2).map(|pair| Pair([pair[0].into(), pair[1].into()])).collect::<Vec<_>>()
        });
        let ring = (0..4 << SENDS).map(|_| Pair(Default::default())).collect();
        Self { ring, doorbell: 0.into(), completions: entries.collect() }
    }

    fn send_handle(&self) -> SendRingHandle {
        SendRingHandle {
            ring: self.ring[0].0[0].as_ptr() as u64,
            doorbell: self.doorbell.as_ptr() as u64,
            mask: (1 << SENDS) - 1,
            shift: SENDS,
            wqe_size: 64,
            max_batch: 1 << SENDS,
            producer: 0,
            credits: 1 << SENDS,
            qpn: MINE,
            cq: 1,
            req_id_64: 1,
            limits: Limits::of_queue(4096, 4096),
        }
    }

    fn completion_handle(&self) -> CompletionRingHandle {
        CompletionRingHandle {
            ring: self.completions[0].0[0].as_ptr() as u64,
            doorbell: 0,
            mask: (1 << COMPLETIONS) - 1,
            shift: COMPLETIONS as u16,
            cqe_size: 32,
            consumer: 0,
            tag: 1,
        }
    }
}

const TO: Destination = Destination { ah: 1, qpn: 2, qkey: 3 };

/// Fills the ring as a thread and waits for room; what came of it, and how many completions were taken.
fn by_thread(seed: u64, memory: &Memory, count: u32, patience: u64) -> (Result<(), PostError>, u32) {
    let answer = Cell::new((Ok(()), 0));
    let kernel = || {
        // SAFETY: only this thread has the queues, which outlive the run.
        let (mut sq, mut cq) = unsafe {
            let sq = ThreadSendQueue::<8>::new(&memory.send_handle()).unwrap();
            (sq, CompletionQueue::new(&memory.completion_handle()).unwrap())
        };
        (0..1 << SENDS).for_each(|i| sq.post(TO, &SendInline::new(b"x"), i).unwrap());
        let result = sq.wait_for_room(&mut cq, count, Deadline::after(patience), Some);
        answer.set((result, cq.consumed()));
    };
    Executor::new(seed).launch(1, 1, kernel).run().unwrap();
    answer.into_inner()
}

/// The same as a warp.
fn by_warp(seed: u64, memory: &Memory, count: u32, patience: u64) -> (Result<(), PostError>, u32) {
    let answer = Cell::new(None);
    let kernel = || {
        // SAFETY: one warp, whose lanes all do the same with the queues, which are no other's.
        let (mut sq, mut cq) = unsafe {
            let sq = WarpSendQueue::<8>::new(&memory.send_handle()).unwrap();
            (sq, CompletionQueue::new(&memory.completion_handle()).unwrap())
        };
        let inline = SendInline::new(b"x");
        sq.post(Some((TO, &inline)), warp::lane_id().into()).unwrap();
        let result = sq.wait_for_room(&mut cq, count, Deadline::after(patience), |entry| entry);
        let same = answer.replace(Some((result, cq.consumed())));
        assert!(same.is_none_or(|same| same == (result, cq.consumed())), "all lanes get the same");
    };
    Executor::new(seed).launch(1, 32, kernel).run().unwrap();
    answer.into_inner().unwrap()
}

type Wait = fn(u64, &Memory, u32, u64) -> (Result<(), PostError>, u32);

#[test]
fn a_wait_for_room_ends_at_its_deadline_while_completions_of_other_queues_keep_coming() {
    for wait in [by_thread as Wait, by_warp] {
        for seed in 0..20 {
            let (result, taken) = wait(seed, &Memory::new(|_| OTHER), 1, PATIENCE);
            let Err(PostError::TimedOut(timed_out)) = result else { panic!("{result:?}") };
            assert_eq!(
                timed_out.0,
                TimeoutReport { what: TimeoutReport::SEND_ROOM, number: MINE.into(), seen: 0, wanted: 1 }
            );
            assert!((1..1 << COMPLETIONS).contains(&taken), "seed {seed}: {taken} completions were taken");
        }
    }
}

#[test]
fn a_wait_for_room_whose_deadline_has_passed_still_takes_its_own_completions_that_are_there() {
    for wait in [by_thread as Wait, by_warp] {
        for seed in 0..20 {
            assert_eq!(wait(seed, &Memory::new(|_| MINE), 1 << SENDS, 0), (Ok(()), 1 << SENDS), "seed {seed}");
        }
    }
}
