//! Receives, counters and watchdogs in kernels of many lanes, against software devices.

mod soft;

use efa_direct::{Access, CqConfig, QpConfig};
use efa_gpu_device::simt::Executor;
use efa_gpu_device::warp::{self, Warp};
use efa_gpu_device::{
    CompletionCounter, CompletionQueue, CounterError, Deadline, Entry, PostError, RecvQueue, ThreadSendQueue, TimedOut,
    TimeoutReport, Watchdog, WatchdogHandle, mem, thread,
};
use efa_io::cqe::Received;
use efa_io::{CompletionRingHandle, CounterHandle, Cqe32, Event, OpCode, RdmaWrite, RemoteBuf, Send};
use soft::{Pair, WORDS, local, remote, soon, words};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

fn sync_threads() {
    // SAFETY: the executor says if not all threads come.
    unsafe { thread::sync_threads() };
}

#[test]
fn receives_are_posted_and_settled_lap_after_lap() {
    const MESSAGES: u64 = 120;
    for seed in 0..20 {
        let pair = Pair::new(106, QpConfig::new(16, 16).recv_bufs(2));
        let [a, b] = &pair.sides;
        let source = a.pd.allocate(8 * WORDS as usize, Access::LOCAL_READ).unwrap();
        let target = b.pd.allocate(16 * WORDS as usize, Access::ALL).unwrap();
        source.write(0, &words()).unwrap();
        let length = |i: u64| 8 * (1 + i as u32 % 3);
        let sender = || {
            // SAFETY: only this thread has the queues, which outlive the run.
            let (mut sq, mut cq) = unsafe {
                (ThreadSendQueue::<8>::new(&a.send.handle()).unwrap(), CompletionQueue::new(&a.sent.handle()).unwrap())
            };
            for i in 0..MESSAGES {
                sq.wait_for_room(&mut cq, 1, soon(), Some).unwrap();
                let from = local(&source, i, length(i));
                match i % 4 {
                    // Writes take a receive if they have an immediate.
                    0 => sq.post(pair.to(), &RdmaWrite::new(from, remote(&target, WORDS + 4 * i)).imm(i as u32), i),
                    _ => sq.post(pair.to(), &Send::new(&[from]).unwrap().imm(i as u32), i),
                }
                .unwrap();
                sq.ring();
            }
            sq.wait_for_room(&mut cq, 16, soon(), Some).unwrap();
        };
        let messages = RefCell::new(Vec::new());
        let receiver = || {
            // SAFETY: only this thread has the queues, which outlive the run.
            let (mut rq, mut cq) =
                unsafe { (RecvQueue::new(&b.recv.handle()), CompletionQueue::new(&b.received.handle()).unwrap()) };
            assert_eq!(rq.post(&[], 0), Err(PostError::ReceiveBuffers { given: 0, max: 2 }));
            assert_eq!(rq.post(&[local(&target, 0, 8); 3], 0), Err(PostError::ReceiveBuffers { given: 3, max: 2 }));
            let long = local(&target, 0, 1 << 16);
            assert_eq!(rq.post(&[long], 0), Err(PostError::ReceiveTooLong { given: 1 << 16 }));
            let mut next = 0;
            for _ in 0..MESSAGES {
                while rq.room() > 0 {
                    // Two buffers of 8 and 16 bytes, or one of 24: receive `n` has four words.
                    let bufs = [local(&target, 4 * next, 8), local(&target, 4 * next + 1, 16)];
                    let whole = [local(&target, 4 * next, 24)];
                    rq.post(if next % 2 == 0 { &bufs } else { &whole }, next as u16).unwrap();
                    next += 1;
                }
                assert_eq!(rq.post(&[local(&target, 0, 8)], 0), Err(PostError::Full));
                rq.ring();
                let entry = cq.wait(soon()).unwrap();
                let completion = entry.completion().unwrap();
                let Event::Receive(received) = completion.event else { panic!("{completion:?}") };
                messages.borrow_mut().push((completion.req_id, received));
                assert_eq!(rq.release(entry), None);
            }
            let [rung, posted, settled] = rq.counters();
            assert!(rung >= posted && posted - settled <= 16 && u64::from(settled) == MESSAGES);
        };
        Executor::new(seed).launch(1, 1, sender).launch(1, 1, receiver).run().unwrap();
        let mut messages = messages.into_inner();
        messages.sort_by_key(|(_, received)| received.imm);
        for (i, (receive, received)) in (0..).zip(&messages) {
            let op = if i % 4 == 0 { OpCode::RdmaWrite } else { OpCode::Send };
            let Received { op: was, imm, length: bytes, src_qpn, .. } = *received;
            assert_eq!((was, imm, bytes, src_qpn), (op, Some(i as u32), length(i), a.endpoint.qpn));
            let at = if i % 4 == 0 { None } else { Some(32 * receive) };
            let expected = &words()[8 * i as usize..][..bytes as usize];
            if let Some(at) = at {
                assert!(target.read_vec(at..at + u64::from(bytes)).unwrap() == expected, "message {i}");
            }
        }
    }
}

#[test]
fn counters_are_waited_for_until_enough_is_done_or_something_failed_or_it_takes_too_long() {
    let pair = Pair::new(110, QpConfig::new(16, 1));
    let source = pair.sides[0].pd.allocate(64, Access::LOCAL_READ).unwrap();
    let target = pair.sides[1].pd.allocate(64, Access::ALL).unwrap();
    // A counter as the device has it in memory: a thread keeps it, by the completions that it polls from the software
    // device.
    let (words, over) = ([const { AtomicU64::new((1 << 31) - 3) }; 2], AtomicBool::new(false));
    let handle = CounterHandle { completions: words[0].as_ptr() as u64, errors: words[1].as_ptr() as u64 };
    let count = |word: &AtomicU64| word.store((word.load(Ordering::Relaxed) + 1) & 0x7fff_ffff, Ordering::Release);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: only this thread polls.
            let mut cq = unsafe { CompletionQueue::new(&pair.sides[0].sent.handle()) }.unwrap();
            while !over.load(Ordering::Relaxed) {
                match cq.poll() {
                    Some(entry) => count(&words[usize::from(!entry.status().is_ok())]),
                    None => std::thread::yield_now(),
                }
            }
        });
        let kernel = || {
            // SAFETY: the words outlive the run; only thread 0 has the queue.
            let counter = unsafe { CompletionCounter::new(&handle) };
            let start = (1u32 << 31) - 3;
            if thread::thread_idx_x() == 0 {
                // SAFETY: as above.
                let mut sq = unsafe { ThreadSendQueue::<8>::new(&pair.sides[0].send.handle()) }.unwrap();
                let write = RdmaWrite::new(local(&source, 0, 8), remote(&target, 0));
                for i in 0..8 {
                    sq.post(pair.to(), &write, i).unwrap();
                }
                sq.ring();
            }
            // 8 more, beyond where it begins again.
            counter.wait_until(start.wrapping_add(8), soon()).unwrap();
            assert_eq!(counter.completions(), 5);
            counter.wait_until(4, Deadline::after(0)).unwrap();
            sync_threads();
            let waited = TimeoutReport { what: TimeoutReport::COUNTER, number: 0, seen: 5, wanted: 6 };
            let late = counter.wait_until(6, Deadline::after(10_000));
            assert_eq!(late, Err(CounterError::TimedOut(TimedOut(waited))));
            sync_threads();
            if thread::thread_idx_x() == 0 {
                // SAFETY: nobody else has a value any more, but for the hand-over's counters: 8 were posted, and are
                // done.
                let mut sq = unsafe {
                    let handle = pair.sides[0].send.handle();
                    ThreadSendQueue::<8>::new(&efa_io::SendRingHandle { producer: 8, ..handle }).unwrap()
                };
                let wrong = RemoteBuf { rkey: !target.keys().rkey, ..remote(&target, 0) };
                thread::nanosleep(100_000);
                sq.post(pair.to(), &RdmaWrite::new(local(&source, 0, 8), wrong), 0).unwrap();
                sq.ring();
                assert_eq!(counter.wait_until(6, soon()), Err(CounterError::Failed(1)));
            }
        };
        let result = Executor::new(4).launch(1, 40, kernel).run();
        over.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}

#[test]
fn a_watchdog_ends_what_waits_in_vain_and_its_first_report_stays() {
    let pair = Pair::new(112, QpConfig::new(16, 16));
    let mut reports = BTreeSet::new();
    for seed in 0..30 {
        let report: [AtomicU32; 4] = Default::default();
        let handle = WatchdogHandle { report: report[0].as_ptr() as u64, timeout_ns: 200_000 };
        let qpn = pair.sides[0].send.handle().qpn;
        let kernel = || {
            // SAFETY: the words outlive the run.
            let watchdog = unsafe { Watchdog::new(&handle) };
            // SAFETY: nothing is posted, and nothing completes.
            let (mut sq, mut cq) = unsafe {
                let sq = ThreadSendQueue::<8>::new(&pair.sides[0].send.handle()).unwrap();
                (sq, CompletionQueue::new(&pair.sides[0].sent.handle()).unwrap())
            };
            if thread::thread_idx_x() & 1 == 0 {
                let Err(timed_out) = cq.wait(watchdog.deadline()) else { panic!("nothing was posted") };
                watchdog.report(timed_out);
            } else {
                let Err(PostError::TimedOut(timed_out)) = sq.wait_for_room(&mut cq, 17, watchdog.deadline(), Some)
                else {
                    panic!("the ring has 16 entries");
                };
                watchdog.report(timed_out);
            }
        };
        let stats = Executor::new(seed).launch(2, 6, kernel).run().unwrap();
        assert!(stats.nanoseconds >= 200_000);
        let [what, number, seen, wanted] = report.map(AtomicU32::into_inner);
        let waited = TimeoutReport { what, number, seen, wanted };
        let room = TimeoutReport { what: TimeoutReport::SEND_ROOM, number: qpn.into(), seen: 16, wanted: 17 };
        assert!(
            waited == room
                || waited == TimeoutReport { what: TimeoutReport::COMPLETION, number: 0, seen: 0, wanted: 1 },
            "{waited:?}"
        );
        reports.insert(what);
    }
    assert_eq!(reports.len(), 2, "now one is first, now the other");
}

#[test]
fn an_entry_is_settled_with_the_queue_pair_that_completes_there_and_not_with_one_of_another_device_that_has_its_number()
{
    // The first queue pairs of two devices.
    let [a, b] = [130, 132].map(|first| Pair::new(first, QpConfig::new(16, 16)));
    let [ours, theirs] = [&a, &b].map(|pair| pair.sides[0].send.handle());
    assert_eq!(ours.qpn, theirs.qpn);
    assert_eq!((ours.cq, ours.cq == theirs.cq), (a.sides[0].sent.handle().tag, false));
    let ring = Ring([const { AtomicU64::new(0) }; 64]);
    for (i, word) in ring.0.iter().step_by(4).enumerate() {
        // Completions of sends by that queue pair, of the first lap: phase, and the queue's kind in the flags.
        word.store(i as u64 | 3 << 24 | u64::from(ours.qpn) << 32, Ordering::Relaxed);
    }
    let handle = CompletionRingHandle { ring: ring.0.as_ptr() as u64, mask: 15, shift: 4, ..a.sides[0].sent.handle() };
    let kernel = || {
        // SAFETY: one thread has the queues, whose memory outlives the run.
        let (mut sq, mut other, mut cq) = unsafe {
            (
                ThreadSendQueue::<8>::new(&ours).unwrap(),
                ThreadSendQueue::<8>::new(&theirs).unwrap(),
                CompletionQueue::new(&CompletionRingHandle { doorbell: 0, ..handle }).unwrap(),
            )
        };
        for (sq, pair) in [(&mut sq, &a), (&mut other, &b)] {
            sq.post(pair.to(), &efa_io::SendInline::new(b"x"), 0).unwrap();
        }
        let entry = cq.poll().unwrap();
        let entry = other.release(entry).expect("another queue's, though the number is the same");
        assert_eq!((sq.room(), other.room()), (15, 15));
        assert_eq!((sq.release(entry), sq.room()), (None, 16));
    };
    Executor::new(1).launch(1, 1, kernel).run().unwrap();
}

/// A completion queue's ring of 16 entries.
#[repr(align(128))]
struct Ring([AtomicU64; 64]);

#[test]
fn a_warp_takes_no_entry_twice_from_a_ring_of_fewer_entries_than_lanes() {
    for (seed, many) in (0..300).flat_map(|seed| [(seed, false), (seed, true)]) {
        let ring = Ring([const { AtomicU64::new(0) }; 64]);
        let words = |i: usize| ring.0[4 * i].as_ptr();
        let handle = CompletionRingHandle {
            ring: words(0) as u64,
            doorbell: 0,
            mask: 15,
            shift: 4,
            cqe_size: Cqe32::SIZE as u16,
            consumer: 0,
            tag: 1,
        };
        let taken = Cell::new(0);
        let device = || {
            for i in 0..16 {
                // A send's completion, of the first lap.
                // SAFETY: a word of the ring.
                unsafe { mem::store_release_system(words(i), 3 << 24) };
            }
        };
        let poller = || {
            // SAFETY: one warp, which has the queue alone.
            let (mut cq, whole) = unsafe { (CompletionQueue::new(&handle).unwrap(), Warp::whole()) };
            let count = |entry: Option<Entry>| taken.set(taken.get() + u32::from(entry.is_some()));
            while cq.consumed() < 16 {
                if warp::lane_id() < 16 {
                    // The others look earlier.
                    thread::nanosleep(500);
                }
                if many {
                    cq.poll_many_warp::<2>(whole, count);
                } else {
                    count(cq.poll_warp(whole));
                }
            }
            assert_eq!(cq.consumed(), 16, "entries that nobody wrote");
        };
        Executor::new(seed).launch(1, 1, device).launch(1, 32, poller).run().unwrap();
        assert_eq!(taken.get(), 16);
    }
}

#[test]
fn what_is_posted_while_completions_are_handed_out_finds_room_in_their_queue() {
    const WRITES: u32 = 400;
    // A queue with events drops what its device thinks it has no room for.
    let pair = Pair::with_cqs(112, QpConfig::<8>::new(16, 1), CqConfig::new(16).events());
    let [a, b] = &pair.sides;
    let source = a.pd.allocate(8, Access::LOCAL_READ).unwrap();
    let target = b.pd.allocate(8, Access::ALL).unwrap();
    assert_ne!(a.sent.handle().doorbell, 0);
    let kernel = || {
        // SAFETY: only this thread has the queues, which outlive the run.
        let (mut sq, mut cq) = unsafe {
            (ThreadSendQueue::<8>::new(&a.send.handle()).unwrap(), CompletionQueue::new(&a.sent.handle()).unwrap())
        };
        let write = RdmaWrite::new(local(&source, 0, 8), remote(&target, 0));
        let (mut posted, mut done) = (sq.room(), 0);
        sq.post_many(posted, |_| (pair.to(), write, 0)).unwrap();
        sq.ring();
        let end = soon();
        while done < WRITES && !end.passed() {
            done += cq.poll_many(u32::MAX, |entry| {
                assert_eq!(sq.release(entry), None);
                if posted < WRITES {
                    sq.post(pair.to(), &write, 0).unwrap();
                    sq.ring();
                    posted += 1;
                    thread::nanosleep(2000);
                }
            });
        }
        assert_eq!((posted, done), (WRITES, WRITES));
    };
    Executor::new(1).launch(1, 1, kernel).run().unwrap();
}
