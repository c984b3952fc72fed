//! A world of nodes in the host's memory, with a NIC that runs as long as a test needs it.

#![allow(dead_code)]

use efa_gpu_device::CompletionQueue;
use efa_gpu_device::simt::Executor;
use efa_gpu_nic::Tables;
use efa_gpu_nic::host::*;
use efa_io::rx::RxBuf;
use efa_io::*;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

/// Bytes of a node's memory.
pub(crate) const BYTES: usize = 1 << 18;
pub(crate) const QKEY: u32 = 7;
pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;

/// What a node is to be like.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) device: DeviceConfig,
    pub(crate) send_entries: u32,
    pub(crate) recv_entries: u32,
    pub(crate) recv_bufs: u32,
    pub(crate) inline_bytes: u16,
    pub(crate) inline_write: bool,
    pub(crate) unsolicited: bool,
    pub(crate) access: Access,
    /// Knows the other nodes.
    pub(crate) acquainted: bool,
    /// Queue pairs, all on one completion queue.
    pub(crate) queue_pairs: usize,
    /// Entries of the completion queue beyond what queue pairs need.
    pub(crate) more_entries: u32,
    /// Where counters begin, and how patient the NIC is; the first node's count.
    pub(crate) first_counter: u32,
    pub(crate) idle_timeout_ns: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            device: DeviceConfig::default(),
            send_entries: 64,
            recv_entries: 64,
            recv_bufs: 3,
            inline_bytes: 32,
            inline_write: false,
            unsolicited: false,
            access: Access::ALL,
            acquainted: true,
            queue_pairs: 1,
            more_entries: 0,
            first_counter: 0,
            idle_timeout_ns: u64::MAX,
        }
    }
}

/// A device with a domain, registered memory, a completion queue and queue pairs.
pub(crate) struct Node {
    pub(crate) id: DeviceId,
    pub(crate) pd: Domain,
    pub(crate) addr: u64,
    pub(crate) keys: RegionKeys,
    /// Keys of the same memory in another domain of the device.
    pub(crate) other_keys: RegionKeys,
    /// Number of an address handle of that domain, to the first other node.
    pub(crate) other_ah: u16,
    pub(crate) completions: CompletionRingHandle,
    pub(crate) queues: Vec<Queues>,
    /// Address handles by node.
    pub(crate) ahs: Vec<u16>,
}

pub(crate) struct TestWorld {
    pub(crate) memory: HostMemory,
    pub(crate) nodes: Vec<Node>,
    pub(crate) placed: Placed,
    pub(crate) control: u64,
}

impl TestWorld {
    pub(crate) fn pair() -> Self {
        Self::of(2, |_, _| ())
    }

    pub(crate) fn of(count: usize, change: impl Fn(usize, &mut Setup)) -> Self {
        let mut memory = HostMemory::default();
        let mut world = Builder::new(5);
        let setups: Vec<Setup> = (0..count)
            .map(|index| {
                let mut setup = Setup::default();
                change(index, &mut setup);
                setup
            })
            .collect();
        world.idle_timeout_ns(setups[0].idle_timeout_ns).first_counter(setups[0].first_counter);
        let ids: Vec<_> = setups.iter().map(|setup| world.device(setup.device)).collect();
        let mut nodes = vec![];
        for (setup, &id) in setups.iter().zip(&ids) {
            let pd = world.domain(id).unwrap();
            let other = world.domain(id).unwrap();
            let addr = memory.allocate(BYTES, 64).unwrap();
            let keys = world.region(pd, addr, BYTES as u64, setup.access).unwrap();
            let other_keys = world.region(other, addr, BYTES as u64, Access::ALL).unwrap();
            let entries = (setup.send_entries.next_power_of_two() + setup.recv_entries) * setup.queue_pairs as u32
                + setup.more_entries;
            let cq = world.completion_queue(&mut memory, entries).unwrap();
            let config = QpConfig {
                recv_bufs: setup.recv_bufs,
                inline_bytes: setup.inline_bytes,
                inline_write: setup.inline_write,
                unsolicited_write_recv: setup.unsolicited,
                ..QpConfig::new(setup.send_entries, setup.recv_entries, cq, cq, QKEY)
            };
            let queues = (0..setup.queue_pairs).map(|_| world.queue_pair(&mut memory, pd, config).unwrap()).collect();
            let ahs = if setup.acquainted {
                ids.iter().map(|&to| world.address_handle(pd, to).unwrap()).collect()
            } else {
                vec![]
            };
            let other_ah = world.address_handle(other, ids[(nodes.len() + 1) % count]).unwrap();
            let completions = world.completions(cq).unwrap();
            nodes.push(Node { id, pd, addr, keys, other_keys, other_ah, completions, queues, ahs });
        }
        let control = memory.allocate(8, 64).unwrap();
        let placed = world.place_with_control(&mut memory, control).unwrap();
        Self { memory, nodes, placed, control }
    }

    /// Runs `test` beside a NIC.
    pub(crate) fn run<T>(&self, seed: u64, test: impl FnOnce() -> T) -> T {
        /// Stops the NIC, also if the test panics.
        struct Stop(u64);
        impl Drop for Stop {
            fn drop(&mut self) {
                word(self.0).store(1, Release);
            }
        }
        let world = self.placed.tables;
        word(self.control).store(0, Release);
        std::thread::scope(|scope| {
            let _stop = Stop(self.control);
            scope.spawn(move || {
                // SAFETY: the world was placed in memory that outlives the scope.
                let nic = || unsafe { efa_gpu_nic::run(world as *const Tables, seed) };
                Executor::new(seed).launch(1, 64, nic).run().unwrap();
            });
            test()
        })
    }

    pub(crate) fn timed_out(&self) -> bool {
        word(self.control + 4).load(Acquire) != 0
    }

    pub(crate) fn fail(&self, qpn: u16) {
        word(self.placed.state_of(qpn)).store(1, Release);
    }

    pub(crate) fn state(&self, qpn: u16) -> u32 {
        word(self.placed.state_of(qpn)).load(Acquire)
    }

    pub(crate) fn to(&self, from: usize, to: usize) -> Destination {
        Destination { ah: self.nodes[from].ahs[to], qpn: self.nodes[to].queues[0].qpn, qkey: QKEY }
    }

    /// `length` bytes of a node's memory from `offset` on.
    pub(crate) fn local(&self, node: usize, offset: usize, length: u32) -> LocalBuf {
        let Node { addr, keys, .. } = &self.nodes[node];
        LocalBuf { addr: addr + offset as u64, lkey: Lkey::new(keys.lkey).unwrap(), length }
    }

    pub(crate) fn remote(&self, node: usize, offset: usize) -> RemoteBuf {
        let Node { addr, keys, .. } = &self.nodes[node];
        RemoteBuf { addr: addr + offset as u64, rkey: keys.rkey }
    }

    pub(crate) fn fill(&mut self, node: usize, bytes: &[u8]) {
        let addr = self.nodes[node].addr;
        self.memory.write(addr, bytes).unwrap();
    }

    pub(crate) fn bytes(&mut self, node: usize, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let addr = self.nodes[node].addr + offset as u64;
        self.memory.read(addr, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn poster(&self, node: usize) -> Poster {
        Poster::new(&self.nodes[node].queues[0], &self.nodes[node].completions)
    }
}

fn word(addr: u64) -> &'static AtomicU32 {
    // SAFETY: a word of the test's own memory.
    unsafe { AtomicU32::from_ptr(addr as *mut u32) }
}

fn store(addr: u64, words: &[u64]) {
    for (i, value) in words.iter().enumerate() {
        // SAFETY: a slot of a ring.
        unsafe { AtomicU64::from_ptr((addr as *mut u64).add(i)) }.store(*value, Relaxed);
    }
}

/// A program that writes rings itself, whatever the NIC will say to it.
pub(crate) struct Poster {
    send: SendRingHandle,
    recv: RecvRingHandle,
    pub(crate) cq: CompletionQueue,
    pub(crate) sent: u32,
    received: u32,
    receives: u16,
}

impl Poster {
    pub(crate) fn new(queues: &Queues, completions: &CompletionRingHandle) -> Self {
        // SAFETY: the handle of a queue that the test has, and nobody else.
        let cq = unsafe { CompletionQueue::new(completions) }.unwrap();
        let (send, recv) = (queues.send, queues.recv);
        Self { send, recv, cq, sent: send.producer, received: recv.producer, receives: 0 }
    }

    /// Writes a WQE with the next request id and the right phase.
    pub(crate) fn put<const W: usize>(&mut self, wqe: Wqe<W>) {
        let phase = self.send.size().wq_phase(self.sent);
        self.put_raw(wqe.with_req_id(self.sent as u16).with_phase(phase));
    }

    /// Writes a WQE as it is.
    pub(crate) fn put_raw<const W: usize>(&mut self, wqe: Wqe<W>) {
        assert_eq!(W * 8, usize::from(self.send.wqe_size));
        let slot = self.send.size().slot(self.sent);
        store(self.send.ring + u64::from(slot) * W as u64 * 8, wqe.words());
        self.sent += 1;
    }

    pub(crate) fn ring(&self) {
        word(self.send.doorbell).store(self.sent, Release);
    }

    pub(crate) fn ring_value(&self, value: u32) {
        word(self.send.doorbell).store(value, Release);
    }

    pub(crate) fn put_descriptor(&mut self, desc: RxDesc) {
        let slot = self.recv.size().slot(self.received);
        store(self.recv.ring + u64::from(slot) * 16, desc.words());
        self.received += 1;
    }

    pub(crate) fn ring_receives(&self) {
        word(self.recv.doorbell).store(self.received, Release);
    }

    /// Posts a receive of these buffers.
    pub(crate) fn receive(&mut self, bufs: &[LocalBuf]) {
        for (i, &LocalBuf { addr, lkey, length }) in bufs.iter().enumerate() {
            let (first, last) = (i == 0, i + 1 == bufs.len());
            let (req_id, length) = (if first { self.receives } else { 0 }, length as u16);
            self.put_descriptor(RxDesc::new(RxBuf { req_id, addr, lkey, length, first, last }));
        }
        self.receives += 1;
        self.ring_receives();
    }

    /// The next completion.
    pub(crate) fn completion(&mut self) -> Completion {
        let start = Instant::now();
        loop {
            if let Some(entry) = self.cq.poll() {
                return entry.completion().unwrap();
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no completion");
            std::thread::yield_now();
        }
    }

    /// Whether nothing completes for a while.
    pub(crate) fn is_quiet(&mut self) -> bool {
        std::thread::sleep(Duration::from_millis(20));
        self.cq.poll().is_none()
    }

    /// Posts a WQE and gives the status of the next completion, which is its own.
    pub(crate) fn status_of<const W: usize>(&mut self, wqe: Wqe<W>) -> Status {
        self.put(wqe);
        self.ring();
        let completion = self.completion();
        assert!(matches!(completion.event, Event::Send { .. }), "{completion:?}");
        assert_eq!(completion.req_id as u16, (self.sent - 1) as u16);
        completion.status
    }
}

/// The WQE of an operation, whatever the NIC will say to it.
pub(crate) fn wqe<const W: usize>(op: impl Operation<W>, dest: Destination) -> Wqe<W>
where
    Wqe<W>: SendWqe,
{
    op.encode(&Limits::of_queue(u32::MAX, u32::MAX), dest).unwrap()
}
