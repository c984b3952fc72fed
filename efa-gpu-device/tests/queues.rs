//! Send queues in kernels of many lanes, against software devices: many laps, lanes without a request, refused
//! requests.

mod soft;

use efa_direct::{Access, QpConfig};
use efa_gpu_device::simt::{Executor, Fault};
use efa_gpu_device::warp::{self, Warp};
use efa_gpu_device::{
    CompletionQueue, Entry, PostError, RecvQueue, SharedSendQueue, ThreadSendQueue, WarpSendQueue, shared_state, thread,
};
use efa_io::cqe::Received;
use efa_io::{
    Destination, EncodeError, Event, LocalBuf, OpCode, Operation, RdmaRead, RdmaWrite, RdmaWriteInline, RemoteBuf,
    SendInline, SendWqe, Status, Wqe,
};
use soft::{Pair, WORDS, ballot, local, remote, sent, soon, words};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU32;

/// Words of a shared queue's state.
#[repr(align(128))]
struct Line([AtomicU32; 32]);

fn is_too_long(result: Result<(), PostError>) -> bool {
    matches!(result, Err(PostError::Encode(EncodeError::MessageTooLong { .. })))
}

/// Has `post` write all words from side 0 to side 1, and checks them and that each was once told to be done.
fn writes<const W: usize>(
    first: u32,
    seeds: u64,
    config: QpConfig<W>,
    post: impl Fn(Executor<'_>, &Pair<W>, &dyn Fn(u64) -> RdmaWrite, &dyn Fn(&Entry)) -> Result<(), Fault>,
) where
    Wqe<W>: SendWqe,
{
    for seed in 0..seeds {
        let pair = Pair::new(first, config);
        let source = pair.sides[0].pd.allocate(8 * WORDS as usize, Access::LOCAL_READ).unwrap();
        let target = pair.sides[1].pd.allocate(8 * WORDS as usize, Access::ALL).unwrap();
        source.write(0, &words()).unwrap();
        let write = |i: u64| RdmaWrite::new(local(&source, i, 8), remote(&target, i));
        let done = RefCell::new(BTreeSet::new());
        let settled = |entry: &Entry| assert!(done.borrow_mut().insert(sent(entry, OpCode::RdmaWrite)), "done twice");
        post(Executor::new(seed), &pair, &write, &settled).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        assert!(done.into_inner().into_iter().eq(0..WORDS));
        assert!(target.read_vec(..).unwrap() == words());
    }
}

#[test]
fn a_thread_writes_many_laps_and_waits_for_room() {
    writes(100, 20, QpConfig::new(16, 1), |executor, pair, write, settled| {
        let side = &pair.sides[0];
        let kernel = || {
            if thread::thread_idx_x() != 3 {
                return;
            }
            // SAFETY: only this thread has the queues, which outlive the run.
            let (mut sq, mut cq) = unsafe {
                (
                    ThreadSendQueue::<8>::new(&side.send.handle()).unwrap(),
                    CompletionQueue::new(&side.sent.handle()).unwrap(),
                )
            };
            let mut each = |entry: Entry| {
                settled(&entry);
                Some(entry)
            };
            for i in 0..WORDS {
                sq.wait_for_room(&mut cq, 1, soon(), &mut each).unwrap();
                if i % 7 == 0 {
                    let long = RdmaWrite { local: LocalBuf { length: u32::MAX, ..write(i).local }, ..write(i) };
                    assert!(is_too_long(sq.post(pair.to(), &long, i)));
                }
                sq.post(pair.to(), &write(i), i).unwrap();
                if i % 3 == 0 {
                    sq.ring();
                }
            }
            sq.wait_for_room(&mut cq, 16, soon(), &mut each).unwrap();
            assert_eq!((sq.posted(), u64::from(cq.consumed())), (WORDS as u32, WORDS));
        };
        executor.launch(1, 5, kernel).run().map(drop)
    });
}

#[test]
fn a_warp_writes_many_laps_with_lanes_that_have_nothing_and_lanes_that_are_refused() {
    writes(102, 30, QpConfig::new(64, 1), |executor, pair, write, settled| {
        let side = &pair.sides[0];
        let kernel = || {
            // SAFETY: one warp, whose lanes all do the same with the queues, which are no other's.
            let (mut sq, mut cq, whole) = unsafe {
                (
                    WarpSendQueue::<8>::new(&side.send.handle()).unwrap(),
                    CompletionQueue::new(&side.sent.handle()).unwrap(),
                    Warp::whole(),
                )
            };
            let lane = u64::from(warp::lane_id());
            let mut each = |entry: Option<Entry>| entry.inspect(|entry| settled(entry));
            let (mut next, mut round) = (0, 0);
            while next < WORDS {
                round += 1;
                // Some lanes have a word each, in the order of lanes; one of the others asks for too much.
                let has_one = ballot((lane * 7 + round * 5) % 11 < 8);
                let i = next + u64::from((has_one & ((1 << lane) - 1)).count_ones());
                let mine = has_one >> lane & 1 != 0 && i < WORDS;
                let long = RdmaWrite { local: LocalBuf { length: u32::MAX, ..write(0).local }, ..write(0) };
                let refused = !mine && lane == round % 32;
                let request = if refused { long } else { write(i.min(WORDS - 1)) };
                let result = sq.post((mine || refused).then_some((pair.to(), &request)), i);
                let full = ballot(result == Err(PostError::Full));
                assert!(full == 0 && is_too_long(result) == refused || full == warp::ALL, "{result:?}");
                let posted = ballot(mine && full == 0);
                next += u64::from(posted.count_ones());
                if posted == 0 || round % 3 == 0 {
                    sq.wait_for_room(&mut cq, 32, soon(), &mut each).unwrap();
                }
            }
            sq.wait_for_room(&mut cq, 64, soon(), &mut each).unwrap();
            assert!(cq.poll_warp(whole).is_none());
            assert_eq!((u64::from(sq.posted()), u64::from(cq.consumed())), (WORDS, WORDS));
        };
        executor.launch(1, 32, kernel).run().map(drop)
    });
}

#[test]
fn a_warp_places_many_requests_together_or_those_before_one_that_is_refused() {
    writes(110, 20, QpConfig::new(128, 1), |executor, pair, write, settled| {
        let side = &pair.sides[0];
        let kernel = || {
            // SAFETY: one warp, whose lanes all do the same with the queues, which are no other's.
            let (mut sq, mut cq) = unsafe {
                (
                    WarpSendQueue::<8>::new(&side.send.handle()).unwrap(),
                    CompletionQueue::new(&side.sent.handle()).unwrap(),
                )
            };
            let lane = u64::from(warp::lane_id());
            let mut each = |entry: Option<Entry>| entry.inspect(|entry| settled(entry));
            let (mut next, mut round) = (0, 0);
            for too_many in [5, 1 << 27, u32::MAX] {
                let refused = sq.post_many(too_many, |_| (pair.to(), write(0), 0));
                assert_eq!((refused, sq.room()), (Err(PostError::Full), 128));
            }
            while WORDS - next >= 32 {
                round += 1;
                let count = (round % 4 + 1).min((WORDS - next) / 32) as u32;
                // Every third time, one lane's last request is too long.
                let refused = if round % 3 == 0 { round % 32 } else { 32 };
                let request = |number: u32| {
                    let i = next + 32 * u64::from(number) + lane;
                    let one = write(i);
                    let is_long = lane == refused && number + 1 == count;
                    let length = if is_long { u32::MAX } else { one.local.length };
                    (pair.to(), RdmaWrite { local: LocalBuf { length, ..one.local }, ..one }, i)
                };
                let before = sq.room();
                let result = sq.post_many(count, request);
                let placed = before - sq.room();
                match result {
                    Err(PostError::Full) => {
                        assert_eq!((ballot(true), placed), (warp::ALL, 0));
                        sq.wait_for_room(&mut cq, 32 * count, soon(), &mut each).unwrap();
                    }
                    Ok(()) => assert_eq!((refused, placed), (32, 32 * count)),
                    Err(error) => {
                        assert_eq!(placed, 32 * (count - 1));
                        assert_eq!(is_too_long(Err(error)), lane == refused);
                        assert_eq!(error == PostError::OtherLane, lane != refused);
                    }
                }
                next += u64::from(placed);
            }
            sq.wait_for_room(&mut cq, 32, soon(), &mut each).unwrap();
            let last = next + lane;
            let request = (last < WORDS).then(|| write(last));
            sq.post(request.as_ref().map(|request| (pair.to(), request)), last).unwrap();
            sq.wait_for_room(&mut cq, 128, soon(), &mut each).unwrap();
            assert_eq!((u64::from(sq.posted()), u64::from(cq.consumed())), (WORDS, WORDS));
        };
        executor.launch(1, 32, kernel).run().map(drop)
    });
}

#[test]
fn warps_of_several_blocks_write_through_one_queue_and_another_polls() {
    writes(104, 30, QpConfig::new(64, 1), |executor, pair, write, settled| {
        let handle = pair.sides[0].send.handle();
        let words: Vec<u32> = shared_state(&handle).collect();
        let line = |words: &[u32]| Line(std::array::from_fn(|i| words.get(i).copied().unwrap_or(0).into()));
        let state: Vec<Line> = words.chunks(32).map(line).collect();
        // SAFETY: all that posts has such a value; state and queue outlive the run.
        let queue = || unsafe { SharedSendQueue::<8>::new(&handle, state[0].0[0].as_ptr()) }.unwrap();
        let posters = || {
            let queue = queue();
            // SAFETY: blocks are made of whole warps.
            let whole = unsafe { Warp::whole() };
            let threads = thread::grid_dim_x() * thread::block_dim_x();
            let mut i = u64::from(thread::index_1d());
            while ballot(i < WORDS) != 0 {
                let request = write(i.min(WORDS - 1));
                let request = (i < WORDS).then_some((pair.to(), &request));
                match queue.post_warp(whole, request, i) {
                    Ok(()) => i += u64::from(threads),
                    Err(error) => {
                        assert_eq!(error, PostError::Full);
                        thread::nanosleep(1000);
                    }
                }
            }
        };
        let poller = || {
            let queue = queue();
            // SAFETY: one warp, which alone polls.
            let (mut cq, whole) =
                unsafe { (CompletionQueue::new(&pair.sides[0].sent.handle()).unwrap(), Warp::whole()) };
            let release = |entry: Option<Entry>| assert_eq!(queue.release_warp(whole, entry.inspect(settled)), None);
            let mut round = 0;
            while u64::from(cq.consumed()) < WORDS {
                round += 1;
                if round % 2 == 0 {
                    release(cq.poll_warp(whole));
                } else {
                    let before = cq.consumed();
                    assert_eq!(cq.poll_many_warp::<2>(whole, release), cq.consumed() - before);
                }
            }
            // SAFETY: the whole warp is here.
            unsafe { warp::sync_warp(warp::ALL) };
            assert_eq!((queue.room(), u64::from(queue.posted())), (64, WORDS));
        };
        executor.launch(2, 64, posters).launch(1, 32, poller).run().map(drop)
    });
}

#[test]
fn every_operation_takes_wqes_of_128_bytes() {
    for seed in 0..20 {
        let pair = Pair::new(108, QpConfig::new(32, 32).wqe_128());
        let [a, b] = &pair.sides;
        let near = a.pd.allocate(8 * WORDS as usize, Access::ALL).unwrap();
        let far = b.pd.allocate(8 * WORDS as usize, Access::ALL).unwrap();
        let inbox = b.pd.allocate(128 * 32, Access::ALL).unwrap();
        far.write(0, &words()).unwrap();
        let done = Cell::new(0);
        let kernel = || {
            // SAFETY: one warp, whose lanes all do the same with the queues, which are no other's.
            let (mut sq, mut cq) = unsafe {
                (WarpSendQueue::<16>::new(&a.send.handle()).unwrap(), CompletionQueue::new(&a.sent.handle()).unwrap())
            };
            // SAFETY: as above.
            assert!(unsafe { WarpSendQueue::<8>::new(&a.send.handle()) }.is_none(), "its WQEs have 128 bytes");
            let lane = u64::from(warp::lane_id());
            let bytes: [u8; 80] = std::array::from_fn(|i| (i as u64 * 3 + lane) as u8);
            let data = &bytes[..40 + lane as usize];
            // Words 0 to 255 come here; the far words from 256 on are overwritten, four bytes more in each lane.
            for i in (0..256).step_by(32) {
                place(
                    &mut sq,
                    &mut cq,
                    pair.to(),
                    &RdmaRead::new(local(&near, i + lane, 8), remote(&far, i + lane)),
                    &done,
                );
            }
            let to = RemoteBuf { addr: far.addr() + 2048 + 4 * lane, rkey: far.keys().rkey };
            place(&mut sq, &mut cq, pair.to(), &RdmaWriteInline::new(&bytes[..4], to), &done);
            place(&mut sq, &mut cq, pair.to(), &SendInline::new(data).imm(lane as u32), &done);
            let long = [0; 81];
            let refused = sq.post(Some((pair.to(), &SendInline::new(&long))), 0);
            let too_long = EncodeError::InlineTooLong { given: 81, max: 80 };
            assert_eq!(refused, Err(PostError::Encode(too_long)));
            assert_eq!(sq.room(), 32);
        };
        let receiver = || {
            // SAFETY: only this thread has the queues, which outlive the run.
            let (mut rq, mut cq) =
                unsafe { (RecvQueue::new(&b.recv.handle()), CompletionQueue::new(&b.received.handle()).unwrap()) };
            for i in 0..32 {
                rq.post(&[local(&inbox, 16 * i, 128)], i as u16).unwrap();
            }
            rq.ring();
            let mut lanes = BTreeSet::new();
            for _ in 0..32 {
                let entry = cq.wait(soon()).unwrap();
                let completion = entry.completion().unwrap();
                let Event::Receive(Received { imm: Some(lane), length, .. }) = completion.event else { panic!() };
                assert_eq!(length, 40 + lane);
                let at = 128 * completion.req_id;
                let bytes = inbox.read_vec(at..at + u64::from(length)).unwrap();
                assert!((0..).zip(bytes).all(|(i, byte)| byte == (i * 3 + lane) as u8));
                assert!(lanes.insert(lane));
                assert_eq!(rq.release(entry), None);
            }
        };
        Executor::new(seed).launch(1, 32, kernel).launch(1, 1, receiver).run().unwrap();
        assert_eq!(done.get(), 10 * 32);
        assert!(near.read_vec(..2048).unwrap() == words()[..2048]);
        let overwritten: Vec<u8> = (0..32).flat_map(|lane| [0, 3, 6, 9].map(|i| i + lane)).collect();
        assert!(far.read_vec(2048..2176).unwrap() == overwritten);
    }
}

/// Posts a request in each lane, rings, and waits for all to be done.
fn place(
    sq: &mut WarpSendQueue<16>,
    cq: &mut CompletionQueue,
    to: Destination,
    request: &impl Operation<16>,
    done: &Cell<u32>,
) {
    sq.post(Some((to, request)), 0).unwrap();
    sq.ring();
    let each = |entry: Option<Entry>| {
        entry.inspect(|entry| {
            assert_eq!(entry.status(), Status::Ok);
            done.set(done.get() + 1);
        })
    };
    sq.wait_for_room(cq, 32, soon(), each).unwrap();
}
