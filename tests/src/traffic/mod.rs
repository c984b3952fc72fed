//! Traffic that GPU kernels post between two nodes, with a check of every byte and every completion.
//!
//! | file | contents |
//! | --- | --- |
//! | `mod.rs` | jobs of kernels, and the check of their results |
//! | `nodes.rs` | two nodes on software devices |
//! | `kernel_nic.rs` | two nodes on the NIC that runs as a kernel |
//! | `executor.rs` | kernels on this processor |
//! | `gpu.rs` | kernels on a GPU |

mod executor;
mod gpu;
mod kernel_nic;
mod nodes;

pub use executor::OnExecutor;
pub use gpu::{OnGpu, kernels};
pub use kernel_nic::KernelNic;
pub use nodes::{Nodes, Place};

use efa_gpu_device::WatchdogHandle;
use efa_gpu_kernels::traffic::{Arrival, Job, Receiving, Sending, Sent, Taken};
use efa_io::{CompletionRingHandle, RecvRingHandle, SendRingHandle};
use std::collections::HashMap;

/// The kernel that posts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Poster {
    /// One thread.
    Thread,
    /// One thread, on a queue with 128-byte WQEs.
    Wide,
    /// One warp.
    Warp,
    /// This many blocks of this many warps, at one shared queue. The last warp polls.
    Many(u32, u32),
}

impl Poster {
    /// Returns the name of the kernel, its number of blocks and the number of threads of a block.
    pub fn kernel(self) -> (&'static str, u32, u32) {
        match self {
            Self::Thread => ("send_by_thread", 1, 1),
            Self::Wide => ("send_by_thread_128", 1, 1),
            Self::Warp => ("send_by_warp", 1, 32),
            Self::Many(blocks, warps) => ("send_by_many", blocks, 32 * warps),
        }
    }
}

/// The bytes of a node's registered memory.
pub trait Bytes {
    /// Writes bytes to the memory.
    fn write(&self, offset: u64, bytes: &[u8]);
    /// Reads bytes from the memory.
    fn read(&self, offset: u64, into: &mut [u8]);
}

/// A piece of registered memory.
pub struct Area {
    /// The address of its first byte.
    pub addr: u64,
    /// Its local key.
    pub lkey: u32,
    /// Its remote key.
    pub rkey: u32,
    /// Its length in bytes.
    pub len: u64,
    /// Its bytes.
    pub bytes: Box<dyn Bytes>,
}

/// The queues and memory of node A, which posts, and of node B, which receives.
pub struct Ends {
    /// A's send queue.
    pub send: SendRingHandle,
    /// The completion queue of A's send queue.
    pub send_cq: CompletionRingHandle,
    /// B's receive queue.
    pub recv: RecvRingHandle,
    /// The completion queue of B's receive queue.
    pub recv_cq: CompletionRingHandle,
    /// B's address in A's requests: address handle, queue pair number and queue key.
    pub to: (u16, u16, u32),
    /// The number of A's queue pair, which B's completions contain.
    pub from_qpn: u16,
    /// A's source of sends and writes.
    pub source: Area,
    /// A's target of reads.
    pub sink: Area,
    /// B's target of writes.
    pub target: Area,
    /// B's source of reads.
    pub origin: Area,
    /// B's receive buffers.
    pub inbox: Area,
    /// The maximum length of a send in bytes.
    pub mtu: u32,
    /// The maximum length of an inline message in bytes.
    pub inline: u32,
}

/// A place where kernels run: a GPU, or the executor.
pub trait KernelRunner {
    /// Allocates zeroed memory that kernels and this process access at the same address. It lives as long as the
    /// runner.
    fn allocate(&mut self, bytes: usize) -> u64;

    /// Stores the words of a shared queue's state where the kernels' atomics work, and returns their address.
    fn state(&mut self, words: &[u32]) -> u64;

    /// Returns the watchdog, which limits how long a kernel may wait.
    fn watchdog(&mut self) -> WatchdogHandle;

    /// Runs both kernels side by side until both have ended.
    ///
    /// # Errors
    /// A kernel timed out or failed.
    fn run(&mut self, poster: Poster, sending: Sending, receiving: Receiving) -> Result<(), String>;
}

/// The number and sizes of jobs.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// The maximum number of jobs of a round.
    pub jobs: usize,
    /// One of this many reads and writes is `long`.
    pub rarely: u32,
    /// The length of long reads and writes in bytes.
    pub long: u32,
}

/// Rounds of jobs over two nodes.
pub struct Traffic<'m> {
    runner: &'m mut dyn KernelRunner,
    ends: Ends,
    rng: fastrand::Rng,
    /// The addresses of the kernels' inputs and outputs, from here to `inline`.
    jobs: u64,
    statuses: u64,
    arrivals: u64,
    sent: u64,
    taken: u64,
    inline: u64,
    /// The expected contents of the areas, from here to `origin`.
    source: Vec<u8>,
    sink: Vec<u8>,
    target: Vec<u8>,
    origin: Vec<u8>,
    /// The number of jobs done so far.
    pub done: u64,
    /// The number of bytes that they moved.
    pub moved: u64,
}

/// A message that must arrive: `true` if it is a write, its immediate, its length, and its bytes if it is a send.
type Message = (bool, Option<u32>, u32, Vec<u8>);

/// The size of the buffer for each job's inline message, in bytes.
const INLINE: u64 = 80;
/// The maximum number of jobs of a round. Request ids have 16 bits.
const MAX_JOBS: usize = 1 << 14;

fn random(rng: &mut fastrand::Rng, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    rng.fill(&mut bytes);
    bytes
}

/// Reads values from a runner's memory.
fn load<T: bytemuck::Pod>(at: u64, count: usize) -> Vec<T> {
    // SAFETY: the callers pass addresses of memory that the runner has allocated with this size, and call this only
    // while no kernel runs.
    (0..count).map(|i| unsafe { std::ptr::read_volatile((at as *const T).add(i)) }).collect()
}

/// Writes values to a runner's memory.
fn store<T: bytemuck::Pod>(at: u64, values: &[T]) {
    for (i, value) in values.iter().enumerate() {
        // SAFETY: the callers pass addresses of memory that the runner has allocated with this size, and call this only
        // while no kernel runs.
        unsafe { std::ptr::write_volatile((at as *mut T).add(i), *value) };
    }
}

impl<'m> Traffic<'m> {
    /// Creates traffic between these two nodes, by kernels of this runner.
    pub fn new(runner: &'m mut dyn KernelRunner, ends: Ends, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let [jobs, statuses, arrivals, sent, taken, inline] = [
            MAX_JOBS * size_of::<Job>(),
            MAX_JOBS * 4,
            MAX_JOBS * size_of::<Arrival>(),
            size_of::<Sent>(),
            size_of::<Taken>(),
            MAX_JOBS * INLINE as usize,
        ]
        .map(|bytes| runner.allocate(bytes));
        let [source, sink, target, origin] = [&ends.source, &ends.sink, &ends.target, &ends.origin].map(|area| {
            let bytes = random(&mut rng, area.len);
            area.bytes.write(0, &bytes);
            bytes
        });
        let (done, moved) = (0, 0);
        Self {
            runner,
            ends,
            rng,
            jobs,
            statuses,
            arrivals,
            sent,
            taken,
            inline,
            source,
            sink,
            target,
            origin,
            done,
            moved,
        }
    }

    /// Returns the ends with the current positions of their queues.
    pub fn into_ends(self) -> Ends {
        self.ends
    }

    /// Runs a round of random jobs and checks all results.
    pub fn round(&mut self, poster: Poster, mix: Mix) {
        let (jobs, messages) = self.plan(mix);
        store(self.jobs, &jobs);
        store(self.statuses, &vec![0u32; jobs.len()]);
        let state = match poster {
            Poster::Many(..) => self.runner.state(&efa_gpu_device::shared_state(&self.ends.send).collect::<Vec<_>>()),
            _ => 0,
        };
        let (ah, qpn, qkey) = self.ends.to;
        let watchdog = self.runner.watchdog();
        let sending = Sending {
            send: self.ends.send,
            cq: self.ends.send_cq,
            watchdog,
            state,
            jobs: self.jobs,
            statuses: self.statuses,
            outcome: self.sent,
            count: jobs.len() as u32,
            batch: self.rng.u32(1..40),
            ah: ah.into(),
            qpn: qpn.into(),
            qkey,
            reserved: 0,
        };
        let receiving = Receiving {
            recv: self.ends.recv,
            cq: self.ends.recv_cq,
            watchdog,
            buffers: self.ends.inbox.addr,
            arrivals: self.arrivals,
            outcome: self.taken,
            lkey: self.ends.inbox.lkey,
            stride: self.stride(),
            count: messages.len() as u32,
            reserved: 0,
        };
        if let Err(problem) = self.runner.run(poster, sending, receiving) {
            let done = load::<u32>(self.statuses, jobs.len()).iter().filter(|&&status| status != 0).count();
            panic!("{poster:?}, after {} jobs and {done} of {}: {problem}", self.done, jobs.len());
        }
        self.check(&jobs, messages);
        self.done += jobs.len() as u64;
        self.moved += jobs.iter().map(|job| u64::from(job.length)).sum::<u64>();
    }

    /// Returns the size of a receive buffer in bytes.
    fn stride(&self) -> u32 {
        (self.ends.inbox.len / u64::from(self.ends.recv.credits)).min(self.ends.mtu.into()) as u32
    }

    /// Chooses random jobs, and computes the expected `sink`, `target` and messages.
    fn plan(&mut self, mix: Mix) -> (Vec<Job>, Vec<Message>) {
        let (mut jobs, mut messages) = (Vec::new(), Vec::new());
        let (mut at_sink, mut at_target) = (0, 0);
        let ends = &self.ends;
        let stride = self.stride();
        while jobs.len() < mix.jobs.min(MAX_JOBS) {
            let rng = &mut self.rng;
            let mut kind = rng.u32(..Job::KINDS);
            let is_message = matches!(kind, Job::SEND | Job::SEND_IMM | Job::INLINE | Job::WRITE_IMM);
            if is_message && messages.len() as u32 == ends.recv.credits {
                kind = Job::WRITE;
            }
            let most = match kind {
                Job::INLINE => ends.inline,
                Job::SEND | Job::SEND_IMM => stride,
                _ if rng.u32(..mix.rarely) == 0 => mix.long,
                _ => 9000,
            };
            let length = match rng.u32(..8) {
                0 => most,
                1..4 => rng.u32(..=most.min(4096)),
                _ => rng.u32(..=most.min(256)),
            };
            let length = if most == mix.long { most } else { length };
            let imm = rng.u32(..);
            let end = u64::from(length);
            let mut job = Job { kind, imm, length, ..Job::default() };
            let from = rng.u64(..=ends.source.len - end);
            let source = from as usize..(from + end) as usize;
            (job.local, job.lkey) = (ends.source.addr + from, ends.source.lkey);
            match kind {
                Job::READ => {
                    let (to, from) = (at_sink + rng.u64(..16), rng.u64(..=ends.origin.len - end));
                    if to + end > ends.sink.len {
                        break;
                    }
                    at_sink = to + end;
                    (job.local, job.lkey) = (ends.sink.addr + to, ends.sink.lkey);
                    (job.remote, job.rkey) = (ends.origin.addr + from, ends.origin.rkey);
                    self.sink[to as usize..(to + end) as usize]
                        .copy_from_slice(&self.origin[from as usize..(from + end) as usize]);
                }
                Job::WRITE | Job::WRITE_IMM => {
                    let to = at_target + rng.u64(..16);
                    if to + end > ends.target.len {
                        break;
                    }
                    at_target = to + end;
                    (job.remote, job.rkey) = (ends.target.addr + to, ends.target.rkey);
                    self.target[to as usize..(to + end) as usize].copy_from_slice(&self.source[source]);
                    if kind == Job::WRITE_IMM {
                        messages.push((true, Some(imm), length, Vec::new()));
                    }
                }
                Job::INLINE => {
                    job.local = self.inline + jobs.len() as u64 * INLINE;
                    store(job.local, &self.source[source.clone()]);
                    messages.push((false, None, length, self.source[source].to_vec()));
                }
                _ => {
                    job.split = if length > 1 && rng.bool() { rng.u32(1..length) } else { 0 };
                    let imm = (kind == Job::SEND_IMM).then_some(imm);
                    messages.push((false, imm, length, self.source[source].to_vec()));
                }
            }
            jobs.push(job);
        }
        (jobs, messages)
    }

    /// Compares everything with the expected values, and updates the positions of the queues.
    fn check(&mut self, jobs: &[Job], messages: Vec<Message>) {
        let statuses: Vec<u32> = load(self.statuses, jobs.len());
        for (number, (job, status)) in jobs.iter().zip(statuses).enumerate() {
            assert_eq!(status, 1, "job {number}, {job:?}: 0 has not completed, else its status plus 1");
        }
        let same = |area: &Area, should: &[u8], name: &str| {
            let mut is = vec![0; area.len as usize];
            area.bytes.read(0, &mut is);
            if is != should {
                let at = is.iter().zip(should).position(|(is, should)| is != should).unwrap_or_default();
                panic!("{name}: byte {at} is {:#x}, not {:#x}", is[at], should[at]);
            }
        };
        same(&self.ends.sink, &self.sink, "where reads go to");
        same(&self.ends.target, &self.target, "where writes go to");

        let mut expected: HashMap<Message, u32> = HashMap::new();
        let count = messages.len();
        for message in messages {
            *expected.entry(message).or_default() += 1;
        }
        let stride = u64::from(self.stride());
        let mut receives = vec![false; count];
        for arrival in load::<Arrival>(self.arrivals, count) {
            assert_eq!((arrival.status, arrival.src_qpn), (0, self.ends.from_qpn.into()), "{arrival:?}");
            assert!(!std::mem::replace(&mut receives[arrival.receive as usize], true), "{arrival:?} twice");
            let mut bytes = vec![0; if arrival.write != 0 { 0 } else { arrival.length as usize }];
            self.ends.inbox.bytes.read(u64::from(arrival.receive) * stride, &mut bytes);
            let imm = (arrival.has_imm != 0).then_some(arrival.imm);
            let message = (arrival.write != 0, imm, arrival.length, bytes);
            let left = expected.get_mut(&message).unwrap_or_else(|| panic!("{arrival:?} was not sent, or not so"));
            *left = left.checked_sub(1).unwrap_or_else(|| panic!("{arrival:?} more often than it was sent"));
        }

        let [sent]: [Sent; 1] = load(self.sent, 1).try_into().expect("one");
        let [taken]: [Taken; 1] = load(self.taken, 1).try_into().expect("one");
        let Ends { send, send_cq, recv, recv_cq, .. } = &mut self.ends;
        assert_eq!(sent.posted, send.producer.wrapping_add(jobs.len() as u32));
        assert_eq!(taken.counters, [recv.producer, recv.posted, recv.posted].map(|at| at.wrapping_add(count as u32)));
        (send.producer, send_cq.consumer) = (sent.posted, sent.consumed);
        ([recv.producer, recv.posted, _], recv_cq.consumer) = (taken.counters, taken.consumed);
    }
}
