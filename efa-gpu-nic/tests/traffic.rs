//! Kernels that post, kernels that receive, and the NIC, side by side on the executor. Every byte and every completion
//! is compared with a model.

mod common;

use common::*;
use efa_gpu_device::simt::Executor;
use efa_gpu_device::warp::{self, Warp};
use efa_gpu_device::{
    CompletionQueue, PostError, RecvQueue, SharedSendQueue, ThreadSendQueue, WarpSendQueue, mem, shared_state, thread,
};
use efa_gpu_nic::host::Memory;
use efa_io::op::Bufs;
use efa_io::*;
use std::cell::{Cell, RefCell};

/// A request, by offsets in the nodes' memories. Node A asks, node B answers.
#[derive(Clone, Debug)]
enum Ask {
    Send { pieces: Vec<(usize, u32)> },
    SendInline { data: Vec<u8> },
    Write { from: usize, to: usize, len: u32, imm: bool },
    WriteInline { data: Vec<u8>, to: usize, imm: bool },
    Read { from: usize, to: usize, len: u32 },
}

impl Ask {
    fn takes_receive(&self, unsolicited: bool) -> bool {
        match self {
            Self::Send { .. } | Self::SendInline { .. } => true,
            Self::Write { imm, .. } | Self::WriteInline { imm, .. } => *imm && !unsolicited,
            Self::Read { .. } => false,
        }
    }

    fn announces(&self) -> bool {
        self.takes_receive(false)
    }
}

/// Most bytes of a send here.
const MOST: u32 = 300;
/// Where in a node's memory reads and writes go to, and receives.
const TARGETS: usize = 64 << 10;
const RECEIVES: usize = 192 << 10;

/// A place of `len` bytes, odd ones between them.
fn place(rng: &mut fastrand::Rng, next: &mut usize, len: u32) -> usize {
    let at = *next + rng.usize(..20);
    *next = at + len as usize;
    assert!(*next <= RECEIVES);
    at
}

fn asks(rng: &mut fastrand::Rng, count: usize, wide: bool) -> Vec<Ask> {
    let (mut at_a, mut at_b) = (TARGETS, TARGETS);
    let mut ask = || {
        let len = match rng.u32(..20) {
            0 => rng.u32(..3000),
            1..5 => rng.u32(..MOST),
            _ => rng.u32(..60),
        };
        let from = rng.usize(..TARGETS - 3000);
        let inline = rng.usize(..if wide { 81 } else { 33 });
        match rng.u32(..if wide { 8 } else { 7 }) {
            0 | 1 => {
                let first = (from, len.min(MOST / 2));
                let second = (rng.usize(..TARGETS - 3000), rng.u32(..MOST / 2));
                let pieces = [first, second].into_iter().take(rng.usize(..3)).collect();
                Ask::Send { pieces }
            }
            2 => Ask::SendInline { data: (0..inline).map(|_| rng.u8(..)).collect() },
            3 | 4 => Ask::Write { from, to: place(rng, &mut at_b, len), len, imm: rng.bool() },
            7 => {
                let data: Vec<_> = (0..inline).map(|_| rng.u8(..)).collect();
                Ask::WriteInline { to: place(rng, &mut at_b, inline as u32), data, imm: rng.bool() }
            }
            _ => Ask::Read { from, to: place(rng, &mut at_a, len), len },
        }
    };
    (0..count).map(|_| ask()).collect()
}

/// A queue that a lane, or all lanes of a warp, post to.
trait Post<const W: usize>
where
    Wqe<W>: SendWqe,
{
    /// Posts the request of this lane, if it has one.
    fn put(&mut self, to: Destination, op: Option<&impl Operation<W>>, req_id: u64);
}

impl<const W: usize> Post<W> for ThreadSendQueue<W>
where
    Wqe<W>: SendWqe,
{
    fn put(&mut self, to: Destination, op: Option<&impl Operation<W>>, req_id: u64) {
        if let Some(op) = op {
            self.post(to, op, req_id).unwrap();
        }
    }
}

impl<const W: usize> Post<W> for WarpSendQueue<W>
where
    Wqe<W>: SendWqe,
{
    fn put(&mut self, to: Destination, op: Option<&impl Operation<W>>, req_id: u64) {
        self.post(op.map(|op| (to, op)), req_id).unwrap();
    }
}

impl<const W: usize> Post<W> for SharedSendQueue<W>
where
    Wqe<W>: SendWqe,
{
    fn put(&mut self, to: Destination, op: Option<&impl Operation<W>>, req_id: u64) {
        // SAFETY: whole warps post to such queues here.
        let warp = unsafe { Warp::whole() };
        loop {
            match self.post_warp(warp, op.map(|op| (to, op)), req_id) {
                Err(PostError::Full) => thread::nanosleep(100),
                answer => return answer.unwrap(),
            }
        }
    }
}

/// Inline writes exist in WQEs of 128 bytes alone.
trait InlineWrite<const W: usize>
where
    Wqe<W>: SendWqe,
{
    fn put_inline(queue: &mut impl Post<W>, to: Destination, op: Option<&RdmaWriteInline<'_>>, req_id: u64);
}

struct Sizes;

impl InlineWrite<8> for Sizes {
    fn put_inline(_: &mut impl Post<8>, _: Destination, op: Option<&RdmaWriteInline<'_>>, _: u64) {
        assert!(op.is_none());
    }
}

impl InlineWrite<16> for Sizes {
    fn put_inline(queue: &mut impl Post<16>, to: Destination, op: Option<&RdmaWriteInline<'_>>, req_id: u64) {
        queue.put(to, op, req_id);
    }
}

/// Who posts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Poster {
    /// One thread, to two queue pairs with one completion queue.
    Thread,
    Warp,
    /// Two blocks of a warp each, to one queue.
    Shared,
}

/// A world in traffic.
struct Traffic {
    world: TestWorld,
    asks: Vec<Ask>,
    /// The nodes' memories as they were.
    before: [Vec<u8>; 2],
    unsolicited: bool,
    /// Completions of each request, at its sender, and at its receiver.
    sent: RefCell<Vec<u32>>,
    received: RefCell<Vec<u32>>,
    finished: Cell<u32>,
}

impl Traffic {
    /// The bytes of request `id` where they come from.
    fn payload(&self, id: usize) -> Vec<u8> {
        let [a, b] = &self.before;
        match &self.asks[id] {
            Ask::Send { pieces } => pieces.iter().flat_map(|&(at, len)| a[at..][..len as usize].to_vec()).collect(),
            Ask::SendInline { data } | Ask::WriteInline { data, .. } => data.clone(),
            &Ask::Write { from, len, .. } => a[from..][..len as usize].to_vec(),
            &Ask::Read { from, len, .. } => b[from..][..len as usize].to_vec(),
        }
    }

    /// Where they go to, unless to a receive.
    fn target(&self, id: usize) -> Option<(usize, usize)> {
        match self.asks[id] {
            Ask::Write { to, .. } | Ask::WriteInline { to, .. } => Some((B, to)),
            Ask::Read { to, .. } => Some((A, to)),
            _ => None,
        }
    }

    /// Whether the bytes of request `id` are in their place at this moment.
    fn is_there(&self, id: usize, node: usize, at: usize) -> bool {
        let payload = self.payload(id);
        // SAFETY: inside the node's memory, which outlives this.
        let bytes = unsafe {
            std::slice::from_raw_parts((self.world.nodes[node].addr as usize + at) as *const u8, payload.len())
        };
        bytes == payload
    }

    /// Looks at a completion of node A's.
    fn check_sent(&self, completion: Completion) {
        let id = completion.req_id as usize;
        assert_eq!(completion.status, Status::Ok, "{:?}", self.asks[id]);
        let op = match self.asks[id] {
            Ask::Send { .. } | Ask::SendInline { .. } => OpCode::Send,
            Ask::Write { .. } | Ask::WriteInline { .. } => OpCode::RdmaWrite,
            Ask::Read { .. } => OpCode::RdmaRead,
        };
        assert_eq!(completion.event, Event::Send { op });
        if let Some((node, at)) = self.target(id) {
            assert!(self.is_there(id, node, at), "request {id}, {:?}, is done and not there", self.asks[id]);
        }
        self.sent.borrow_mut()[id] += 1;
    }

    /// Looks at a completion of node B's, where receive `r` has its memory from `place(r)` on.
    fn check_received(&self, completion: Completion) {
        let Event::Receive(received) = completion.event else { panic!("node B sends nothing") };
        let id = received.imm.unwrap() as usize;
        let ask = &self.asks[id];
        assert_eq!((completion.status, received.length as usize), (Status::Ok, self.payload(id).len()), "{ask:?}");
        assert_eq!(received.ah, Some(self.world.nodes[B].ahs[A]));
        assert!(self.world.nodes[A].queues.iter().any(|queues| queues.qpn == received.src_qpn));
        assert_eq!(received.unsolicited, !ask.takes_receive(self.unsolicited));
        let (node, at) = self.target(id).unwrap_or((B, receive_at(completion.req_id as usize)));
        assert!(self.is_there(id, node, at), "request {id}, {ask:?}, was received and is not there");
        self.received.borrow_mut()[id] += 1;
    }

    /// Posts request `id`, or none.
    fn put<const W: usize>(&self, queue: &mut impl Post<W>, id: usize)
    where
        Wqe<W>: SendWqe,
        Sizes: InlineWrite<W>,
    {
        let (world, to, imm, hints) = (&self.world, self.world.to(A, B), Some(id as u32), Hints::NONE);
        let local = |at, len| world.local(A, at, len);
        let ask = self.asks.get(id);
        let id = id as u64;
        let send = match ask {
            Some(Ask::Send { pieces }) => {
                let bufs: Vec<_> = pieces.iter().map(|&(at, len)| local(at, len)).collect();
                Some(Send { bufs: Bufs::new(&bufs).unwrap(), imm, hints })
            }
            _ => None,
        };
        queue.put(to, send.as_ref(), id);
        let inline = match ask {
            Some(Ask::SendInline { data }) => Some(SendInline { data, imm, hints }),
            _ => None,
        };
        queue.put(to, inline.as_ref(), id);
        let write = match ask {
            Some(&Ask::Write { from, to, len, imm: with }) => {
                let (local, remote) = (local(from, len), world.remote(B, to));
                Some(RdmaWrite { local, remote, imm: imm.filter(|_| with), hints })
            }
            _ => None,
        };
        queue.put(to, write.as_ref(), id);
        let inline = match ask {
            Some(Ask::WriteInline { data, to, imm: with }) => {
                Some(RdmaWriteInline { data, remote: world.remote(B, *to), imm: imm.filter(|_| *with), hints })
            }
            _ => None,
        };
        Sizes::put_inline(queue, to, inline.as_ref(), id);
        let read = match ask {
            Some(&Ask::Read { from, to, len }) => {
                Some(RdmaRead { local: local(to, len), remote: world.remote(B, from), hints })
            }
            _ => None,
        };
        queue.put(to, read.as_ref(), id);
    }

    fn cq(&self, node: usize) -> CompletionQueue {
        // SAFETY: only one kernel polls each.
        unsafe { CompletionQueue::new(&self.world.nodes[node].completions) }.unwrap()
    }

    fn finish(&self) {
        self.finished.set(self.finished.get() + 1);
    }

    fn by_thread<const W: usize>(&self)
    where
        Wqe<W>: SendWqe,
        Sizes: InlineWrite<W>,
    {
        let mut cq = self.cq(A);
        let queue = |queues: &efa_gpu_nic::host::Queues| {
            // SAFETY: nobody else posts there.
            unsafe { ThreadSendQueue::<W>::new(&queues.send) }.unwrap()
        };
        let mut queues: Vec<_> = self.world.nodes[A].queues.iter().map(queue).collect();
        let (mut next, mut done) = (0, 0);
        while done < self.asks.len() {
            for queue in &mut queues {
                let batch = (self.asks.len() - next).min(queue.room() as usize).min(1 + next % 7);
                for id in next..next + batch {
                    self.put(queue, id);
                }
                next += batch;
                queue.ring();
            }
            while let Some(entry) = cq.poll() {
                self.check_sent(entry.completion().unwrap());
                done += 1;
                let left = queues.iter_mut().try_fold(entry, |entry, queue| queue.release(entry));
                assert!(left.is_none());
            }
        }
        self.finish();
    }

    fn by_warp<const W: usize>(&self)
    where
        Wqe<W>: SendWqe,
        Sizes: InlineWrite<W>,
    {
        let handle = &self.world.nodes[A].queues[0].send;
        let mut cq = self.cq(A);
        // SAFETY: nobody else posts there; a whole warp.
        let mut queue = unsafe { WarpSendQueue::<W>::new(handle) }.unwrap();
        let forever = efa_gpu_device::Deadline::after(u64::MAX);
        let mut first = 0;
        while first < self.asks.len() + 32 {
            // The last time only to wait for everything.
            queue
                .wait_for_room(&mut cq, handle.credits, forever, |entry| {
                    if let Some(entry) = &entry {
                        self.check_sent(entry.completion().unwrap());
                    }
                    entry
                })
                .unwrap();
            self.put(&mut queue, first + warp::lane_id() as usize);
            queue.ring();
            first += 32;
        }
        if warp::lane_id() == 0 {
            self.finish();
        }
    }

    fn by_blocks<const W: usize>(&self, state: u64)
    where
        Wqe<W>: SendWqe,
        Sizes: InlineWrite<W>,
    {
        let handle = &self.world.nodes[A].queues[0].send;
        // SAFETY: the queue's state; nobody else posts there.
        let mut queue = unsafe { SharedSendQueue::<W>::new(handle, state as *mut u32) }.unwrap();
        let mut first = thread::block_idx_x() as usize * 32;
        while first < self.asks.len() {
            self.put(&mut queue, first + warp::lane_id() as usize);
            first += thread::grid_dim_x() as usize * 32;
        }
    }

    /// Polls what several blocks have posted.
    fn release<const W: usize>(&self, state: u64)
    where
        Wqe<W>: SendWqe,
    {
        let mut cq = self.cq(A);
        // SAFETY: as in `by_blocks`.
        let queue =
            unsafe { SharedSendQueue::<W>::new(&self.world.nodes[A].queues[0].send, state as *mut u32) }.unwrap();
        let mut done = 0;
        while done < self.asks.len() {
            if let Some(entry) = cq.poll() {
                self.check_sent(entry.completion().unwrap());
                assert!(queue.release(entry).is_none());
                done += 1;
            }
        }
        self.finish();
    }

    /// Receives what is announced, a few receives at a time.
    fn receive(&self, rng: &mut fastrand::Rng) {
        // SAFETY: nobody else receives there.
        let mut queue = unsafe { RecvQueue::new(&self.world.nodes[B].queues[0].recv) };
        let mut cq = self.cq(B);
        let mut free: Vec<usize> = (0..RECEIVES_AT_ONCE).collect();
        let mut due = self.asks.iter().filter(|ask| ask.announces()).count();
        // Senders are there first.
        thread::nanosleep(100_000);
        while due > 0 {
            while rng.u8(..) < 100
                && let Some(slot) = free.pop()
            {
                let cut = rng.u32(..MOST);
                let mut lengths = vec![cut, MOST - cut, rng.u32(..9)];
                lengths.truncate(if cut == 0 { 1 } else { rng.usize(2..4) });
                lengths[0] = if lengths.len() == 1 { MOST } else { lengths[0] };
                let mut at = receive_at(slot);
                let bufs: Vec<_> = lengths
                    .iter()
                    .map(|&length| {
                        at += length as usize;
                        self.world.local(B, at - length as usize, length)
                    })
                    .collect();
                queue.post(&bufs, slot as u16).unwrap();
            }
            queue.ring();
            while let Some(entry) = cq.poll() {
                let completion = entry.completion().unwrap();
                self.check_received(completion);
                if queue.release(entry).is_none() {
                    free.push(completion.req_id as usize);
                }
                due -= 1;
            }
        }
        self.finish();
    }
}

/// Seeds that each test goes through; `EFA_NIC_SEEDS` asks for more.
fn seeds() -> u64 {
    std::env::var("EFA_NIC_SEEDS").map_or(3, |seeds| seeds.parse().expect("a number"))
}

const RECEIVES_AT_ONCE: usize = 8;

/// Where receive `slot` has its memory.
fn receive_at(slot: usize) -> usize {
    RECEIVES + slot * 400
}

/// Has `count` requests go from node A to node B.
fn traffic<const W: usize>(poster: Poster, unsolicited: bool, count: usize, seed: u64)
where
    Wqe<W>: SendWqe,
    Sizes: InlineWrite<W>,
{
    let mut rng = fastrand::Rng::with_seed(seed);
    let wide = W == 16;
    let mut world = TestWorld::of(2, |_, setup| {
        setup.queue_pairs = if poster == Poster::Thread { 2 } else { 1 };
        setup.send_entries = if poster == Poster::Thread { 16 } else { 32 };
        setup.recv_entries = RECEIVES_AT_ONCE as u32;
        setup.unsolicited = unsolicited;
        // Counters of 16 and of 32 bits wrap.
        setup.first_counter = 100u32.wrapping_neg();
        // Nobody counts these.
        setup.more_entries = if unsolicited { count as u32 } else { 0 };
        (setup.inline_bytes, setup.inline_write) = if wide { (80, true) } else { (32, false) };
    });
    let before = [A, B].map(|node| {
        let bytes: Vec<u8> = (0..BYTES).map(|_| rng.u8(..)).collect();
        world.fill(node, &bytes);
        bytes
    });
    let state = world.memory.allocate(4 * 1024, 128).unwrap();
    let words: Vec<u32> = shared_state(&world.nodes[A].queues[0].send).collect();
    world.memory.write(state, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let asks = asks(&mut rng, count, wide);
    let zero = || RefCell::new(vec![0; count]);
    let (sent, received, finished) = (zero(), zero(), Cell::new(0));
    let mut traffic = Traffic { world, asks, before, unsolicited, sent, received, finished };
    let t = &traffic;
    let (world, control) = (t.world.placed.tables as *const efa_gpu_nic::Tables, t.world.control as *mut u32);
    let receiver = RefCell::new(rng);
    let executor = Executor::new(seed)
        // SAFETY: the world outlives the run.
        .launch_on(1, 2, 32, || unsafe { efa_gpu_nic::run(world, seed) })
        .launch(1, 1, || t.receive(&mut receiver.borrow_mut()))
        .launch(1, 1, || {
            while t.finished.get() < 2 {
                thread::nanosleep(1000);
            }
            // SAFETY: the stop word.
            unsafe { mem::store_relaxed_system_u32(control, 1) };
        });
    let executor = match poster {
        Poster::Thread => executor.launch(1, 1, || t.by_thread::<W>()),
        Poster::Warp => executor.launch(1, 32, || t.by_warp::<W>()),
        Poster::Shared => executor.launch(2, 32, || t.by_blocks::<W>(state)).launch(1, 1, || t.release::<W>(state)),
    };
    let stats = executor.run().unwrap_or_else(|fault| panic!("{poster:?}, seed {seed}: {fault}"));
    if std::env::var_os("STATS").is_some() {
        println!("{poster:?} {W} {seed}: {stats:?}");
    }
    assert_eq!(*traffic.sent.borrow(), vec![1; count]);
    let announced: Vec<_> = traffic.asks.iter().map(|ask| u32::from(ask.announces())).collect();
    assert_eq!(*traffic.received.borrow(), announced);
    // Nothing beside what was asked for has changed.
    let mut expected = traffic.before.clone();
    for id in 0..count {
        if let Some((node, at)) = traffic.target(id) {
            let payload = traffic.payload(id);
            expected[node][at..][..payload.len()].copy_from_slice(&payload);
        }
    }
    assert!(traffic.world.bytes(A, 0, BYTES) == expected[A]);
    let after_receives = receive_at(RECEIVES_AT_ONCE);
    assert!(traffic.world.bytes(B, 0, RECEIVES) == expected[B][..RECEIVES]);
    assert!(traffic.world.bytes(B, after_receives, BYTES - after_receives) == expected[B][after_receives..]);
    assert!(!traffic.world.timed_out());
}

#[test]
fn what_a_thread_posts_to_two_queue_pairs_arrives() {
    for seed in 0..seeds() {
        traffic::<8>(Poster::Thread, false, 500, seed);
        traffic::<16>(Poster::Thread, true, 500, seed);
    }
}

#[test]
fn what_a_warp_posts_arrives() {
    for seed in 0..seeds() {
        traffic::<8>(Poster::Warp, true, 640, seed);
        traffic::<16>(Poster::Warp, false, 640, seed);
    }
}

#[test]
fn what_blocks_post_to_one_queue_arrives() {
    for seed in 0..seeds() {
        traffic::<8>(Poster::Shared, false, 640, seed);
        traffic::<16>(Poster::Shared, true, 640, seed);
    }
}
