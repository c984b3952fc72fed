//! The shared send queue: warps and lanes of several blocks post to one ring, while another launch plays the NIC and
//! checks all that it sees.

use efa_gpu_device::simt::Executor;
use efa_gpu_device::warp::{self, Warp};
use efa_gpu_device::{CompletionQueue, Deadline, PostError, SharedSendQueue, mem, shared_state, thread};
use efa_io::{
    Completion, CompletionRingHandle, Destination, EncodeError, Event, Limits, Lkey, LocalBuf, Op, OpCode, RdmaWrite,
    RemoteBuf, SendRingHandle, Status, Wqe64,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const QPN: u16 = 7;

/// A ring, its doorbell and its completion queue, as a test wants them.
#[derive(Clone, Copy, Debug)]
struct Config {
    seed: u64,
    shift: u32,
    max_batch: u32,
    credits: u32,
    producer: u32,
    blocks: u32,
    /// Of a block: whole warps, or fewer than one.
    threads: u32,
    rounds: u32,
}

#[derive(Default)]
#[repr(align(64))]
struct Slot([AtomicU64; 8]);

#[derive(Default)]
#[repr(align(128))]
struct Line([AtomicU32; 32]);

/// What the NIC and the kernels have in common.
struct Memory {
    ring: Vec<Slot>,
    doorbell: AtomicU32,
    /// Two entries to a slot.
    completions: Vec<Slot>,
    reader: AtomicU32,
    state: Vec<Line>,
}

impl Config {
    fn entries(&self) -> u32 {
        1 << self.shift
    }

    fn memory(&self) -> Memory {
        let words: Vec<u32> = shared_state(&self.handle(None)).collect();
        let line = |words: &[u32]| Line(std::array::from_fn(|i| words.get(i).copied().unwrap_or(0).into()));
        Memory {
            ring: (0..self.entries()).map(|_| Slot::default()).collect(),
            doorbell: self.producer.into(),
            completions: (0..self.entries() / 2).map(|_| Slot::default()).collect(),
            reader: 0.into(),
            state: words.chunks(32).map(line).collect(),
        }
    }

    fn handle(&self, memory: Option<&Memory>) -> SendRingHandle {
        SendRingHandle {
            ring: memory.map_or(0, |memory| memory.ring.as_ptr() as u64),
            doorbell: memory.map_or(0, |memory| memory.doorbell.as_ptr() as u64),
            mask: self.entries() - 1,
            shift: self.shift,
            wqe_size: 64,
            qpn: QPN,
            cq: 1,
            max_batch: self.max_batch,
            producer: self.producer,
            credits: self.credits,
            req_id_64: 1,
            limits: Limits::of_queue(4096, 1 << 20),
        }
    }

    fn completion_handle(&self, memory: &Memory) -> CompletionRingHandle {
        CompletionRingHandle {
            ring: memory.completions.as_ptr() as u64,
            doorbell: memory.reader.as_ptr() as u64,
            mask: self.entries() - 1,
            shift: self.shift as u16,
            cqe_size: 32,
            consumer: 0,
            tag: 1,
        }
    }
}

/// What a thread does in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Nothing,
    Write,
    /// A write that is too long.
    Refused,
}

fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ x >> 31
}

impl Config {
    /// How a warp posts in a round: 0 and 1 together, 2 and 3 each lane for itself.
    fn way(&self, warp: u32, round: u32) -> u64 {
        let way = mix(mix(self.seed, warp.into()), round.into()) % 4;
        if self.threads < 32 { 2 | way } else { way }
    }

    fn want(&self, thread: u32, round: u32) -> Want {
        // Half of the room at most, all of which a warp together has to get at once.
        let most = u64::from(self.credits / 2).min(32);
        let offset = mix(self.seed, u64::from(thread / 32) << 32 | u64::from(round)) % 32;
        if (u64::from(thread) + offset) % 32 >= most {
            return Want::Nothing;
        }
        match mix(mix(self.seed, thread.into()), round.into()) >> 8 & 15 {
            0..5 => Want::Nothing,
            5 => Want::Refused,
            _ => Want::Write,
        }
    }

    fn id(&self, thread: u32, round: u32) -> u64 {
        u64::from(thread) << 24 | u64::from(round) << 8 | 0xa5
    }

    fn ids(&self) -> BTreeSet<u64> {
        let all = (0..self.blocks * self.threads).flat_map(|thread| (0..self.rounds).map(move |round| (thread, round)));
        all.filter(|&(thread, round)| self.want(thread, round) == Want::Write).map(|(t, r)| self.id(t, r)).collect()
    }

    /// A write that carries its id everywhere.
    fn write(&self, id: u64, want: Want) -> RdmaWrite {
        let length = if want == Want::Refused { u32::MAX } else { id as u32 & 0xfffff };
        let local = LocalBuf { addr: id, lkey: Lkey::new(3).unwrap(), length };
        RdmaWrite::new(local, RemoteBuf { addr: !id, rkey: id as u32 }).imm(id as u32)
    }
}

impl Config {
    /// The id of WQE `number`, which is as it should be.
    fn check(&self, number: u32, words: [u64; 8]) -> u64 {
        let wqe = Wqe64::from_words(words);
        let request = wqe.decode().unwrap_or_else(|error| panic!("WQE {number}: {error}: {wqe:?}"));
        assert_eq!(request.phase, number >> self.shift & 1 != 0, "WQE {number}");
        assert_eq!((request.dest, request.op), (TO, Op::RdmaWrite(self.write(request.req_id, Want::Write))));
        request.req_id
    }
}

impl Memory {
    /// WQE `number` as it is in memory at this moment.
    fn wqe(&self, number: u32, config: &Config) -> [u64; 8] {
        let slot = &self.ring[(number & (config.entries() - 1)) as usize].0;
        std::array::from_fn(|i| slot[i].load(Ordering::Relaxed))
    }
}

const TO: Destination = Destination { ah: 1, qpn: 2, qkey: 3 };

/// Waits a bit where there was no room; whether to try again.
fn again(result: Result<(), PostError>, want: Want) -> bool {
    match (result, want) {
        (Ok(()), Want::Nothing | Want::Write) => false,
        (Err(PostError::Encode(EncodeError::MessageTooLong { .. })), Want::Refused) => false,
        (Err(PostError::Full), Want::Nothing | Want::Write) => {
            thread::nanosleep(500);
            true
        }
        (result, want) => panic!("{result:?} for {want:?}"),
    }
}

/// The kernel that posts.
fn post(config: &Config, memory: &Memory) {
    let handle = config.handle(Some(memory));
    // SAFETY: all that posts to this ring has such a value; the memory lives as long as the run.
    let queue = unsafe { SharedSendQueue::<8>::new(&handle, memory.state[0].0[0].as_ptr()) }.unwrap();
    // SAFETY: blocks are made of whole warps, and `post_together` is called by all lanes of one.
    let whole = unsafe { Warp::whole() };
    let me = thread::index_1d();
    for round in 0..config.rounds {
        let (want, id) = (config.want(me, round), config.id(me, round));
        let write = config.write(id, want);
        let request = (want != Want::Nothing).then_some((TO, &write));
        match config.way(me / 32, round) {
            0 => {
                let mut wanted = want;
                loop {
                    let result = queue.post_warp(whole, request, id);
                    // Who is refused is so each time, and the others' answer is the same for all.
                    let again = again(result, wanted);
                    // SAFETY: the whole warp is here.
                    if unsafe { warp::warp_vote_ballot(warp::ALL, again) } == 0 {
                        break;
                    }
                    wanted = want;
                }
            }
            1 => loop {
                let (placed, result) = queue.place_warp(whole, request, id);
                let (some, again) = (placed.is_some(), again(result, want));
                thread::nanosleep(300);
                if let Some(placed) = placed {
                    placed.ring();
                }
                // SAFETY: the whole warp is here.
                let [some, again] = [some, again].map(|any| unsafe { warp::warp_vote_ballot(warp::ALL, any) });
                assert!(some == 0 || some == warp::ALL, "{some:#x}");
                assert!(some == 0 || again == 0);
                if again == 0 {
                    break;
                }
            },
            2 => while request.is_some() && again(queue.post(TO, &write, id), want) {},
            _ if request.is_none() => {}
            _ => {
                // Once at least without patience.
                let mut deadline = Deadline::after(0);
                loop {
                    match queue.post_until(TO, &write, id, deadline) {
                        Err(PostError::TimedOut(_)) => deadline = Deadline::after(1_000_000),
                        result => break assert!(!again(result, want), "post_until waits for room"),
                    }
                }
            }
        }
    }
}

/// The kernel that polls, as one warp.
fn poll(config: &Config, memory: &Memory, total: u32, settled: &RefCell<BTreeSet<u64>>) {
    let handle = config.handle(Some(memory));
    // SAFETY: as in `post`; and nobody else polls.
    let (queue, mut cq) = unsafe {
        let cq = CompletionQueue::new(&config.completion_handle(memory)).unwrap();
        (SharedSendQueue::<8>::new(&handle, memory.state[0].0[0].as_ptr()).unwrap(), cq)
    };
    // SAFETY: one warp, whose lanes all do the same.
    let whole = unsafe { Warp::whole() };
    let mut taken = 0;
    while taken < total {
        let entry = cq.poll_warp(whole);
        if let Some(entry) = &entry {
            assert!(entry.status().is_ok());
            assert!(settled.borrow_mut().insert(entry.completion().unwrap().req_id), "settled twice");
        }
        // SAFETY: the whole warp is here.
        taken += unsafe { warp::warp_vote_ballot(warp::ALL, entry.is_some()) }.count_ones();
        assert_eq!(queue.release_warp(whole, entry), None);
    }
    assert_eq!(cq.consumed(), total);
}

/// The NIC: fetches in order what it is told of, completes in any order.
fn serve(config: &Config, memory: &Memory, total: u32, fetched: &RefCell<BTreeSet<u64>>) {
    let (size, mut rng) = (config.entries(), fastrand::Rng::with_seed(config.seed));
    let (mut next, mut completed) = (config.producer, 0u32);
    let mut in_flight = Vec::new();
    while completed < total {
        // SAFETY: the doorbell, and entries of rings, which live as long as the run.
        unsafe {
            let rung = mem::load_acquire_system_u32(memory.doorbell.as_ptr());
            while next != rung {
                let slot = &memory.ring[(next & (size - 1)) as usize].0;
                let mut words = [0; 8];
                for i in [6, 2, 0, 4] {
                    [words[i], words[i + 1]] = mem::load_pair_system(slot[i].as_ptr());
                }
                // What nobody has written again is no WQE any more.
                slot.iter().for_each(|word| word.store(0, Ordering::Relaxed));
                let req_id = config.check(next, words);
                assert!(fetched.borrow_mut().insert(req_id), "posted twice");
                in_flight.push(req_id);
                next = next.wrapping_add(1);
                assert!(in_flight.len() <= config.credits as usize, "more outstanding than there is room for");
            }
            let reader = mem::load_acquire_system_u32(memory.reader.as_ptr());
            let is_full = (completed.wrapping_sub(reader) & 0xffff) >= size;
            if in_flight.is_empty() || is_full || rng.u32(..4) == 0 {
                continue;
            }
            let req_id = in_flight.swap_remove(rng.usize(..in_flight.len()));
            let phase = completed >> config.shift & 1 == 0;
            let event = Event::Send { op: OpCode::RdmaWrite };
            let done = Completion { req_id, status: Status::Ok, qpn: QPN, phase, event };
            let at = completed & (size - 1);
            let entry = &memory.completions[at as usize / 2].0[at as usize % 2 * 4..][..4];
            let words: [u64; 4] = bytemuck::cast(done.encode::<4>().unwrap());
            (1..4).for_each(|i| entry[i].store(words[i], Ordering::Relaxed));
            mem::store_release_system(entry[0].as_ptr(), words[0]);
            completed += 1;
        }
    }
}

fn run(config: Config) {
    let (memory, ids) = (config.memory(), config.ids());
    let total = ids.len() as u32;
    let (fetched, settled) = (RefCell::default(), RefCell::default());
    let last = Cell::new(config.producer);
    let result = Executor::new(config.seed)
        .lends(&memory.completions[..])
        .watch_store(memory.doorbell.as_ptr(), |value| {
            let before = last.replace(value);
            let more = value.wrapping_sub(before);
            assert!((1..=config.max_batch).contains(&more), "a doorbell that tells of {more} WQEs");
            // What is stored ahead of the last doorbell is a batch at most.
            (config.max_batch..config.entries()).map(|ahead| before.wrapping_add(ahead)).for_each(|at| {
                let word = memory.ring[(at & (config.entries() - 1)) as usize].0[0].load(Ordering::Relaxed);
                let is_of_this_lap = (word >> 24 & 1 != 0) == (at >> config.shift & 1 != 0);
                assert!(word == 0 || !is_of_this_lap, "WQE {at} was stored after doorbell {before}");
            });
            // A NIC may look at this very moment.
            (0..more)
                .for_each(|i| _ = config.check(before.wrapping_add(i), memory.wqe(before.wrapping_add(i), &config)));
        })
        .launch(config.blocks, config.threads, || post(&config, &memory))
        .launch(1, 32, || poll(&config, &memory, total, &settled))
        .launch_on(1, 1, 1, || serve(&config, &memory, total, &fetched));
    if let Err(fault) = result.run() {
        panic!("{config:?}: {fault}");
    }
    assert!(fetched.take() == ids && settled.take() == ids, "{config:?}");
    let end = config.producer.wrapping_add(total);
    assert_eq!((last.get(), memory.doorbell.load(Ordering::Relaxed)), (end, end));
    // SAFETY: the run is over.
    let queue = unsafe { SharedSendQueue::<8>::new(&config.handle(Some(&memory)), memory.state[0].0[0].as_ptr()) };
    let queue = queue.unwrap();
    assert_eq!((queue.posted(), queue.room()), (end, config.credits));
}

#[test]
fn every_request_is_rung_for_and_completes_once_however_the_posters_interleave() {
    for seed in 0..60 {
        let shift = 4 + seed as u32 % 5;
        let max_batch = [32, 40][seed as usize / 5 % 2];
        let producer = [0, 5, 3 << shift, 0u32.wrapping_sub(21)][seed as usize % 4];
        let (blocks, threads) = [(1, 32), (2, 64), (3, 32), (1, 96)][seed as usize / 2 % 4];
        run(Config { seed, shift, max_batch, credits: 1 << shift, producer, blocks, threads, rounds: 8 });
    }
}

#[test]
fn credits_that_are_fewer_than_the_ring_has_slots_are_never_exceeded() {
    for seed in 100..120 {
        run(Config { seed, shift: 5, max_batch: 32, credits: 11, producer: 30, blocks: 2, threads: 32, rounds: 8 });
    }
}

#[test]
fn posters_that_ring_for_each_other_tell_the_nic_of_nothing_that_is_not_there() {
    // Few lanes and many seeds: what happens between two accesses is rare.
    for seed in 200..1000 {
        let blocks = 3 + seed as u32 % 4;
        run(Config { seed, shift: 6, max_batch: 32, credits: 64, producer: 0, blocks, threads: 3, rounds: 8 });
    }
}

#[test]
fn a_lane_rings_for_what_other_lanes_of_its_warp_saw_of_other_blocks() {
    // The doorbell has to overtake a WQE that was marked between two lanes' looks: one of 30 seeds, if they do not
    // acquire.
    for seed in 2000..2200 {
        let (shift, max_batch, credits, producer) = (8, 128, 256, 0);
        run(Config { seed, shift, max_batch, credits, producer, blocks: 3, threads: 32, rounds: 4 });
    }
}
