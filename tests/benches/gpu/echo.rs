//! The time from a post to its completion.
//!
//! The kernel posts itself, or through a proxy: a thread of the processor that takes requests from a queue in host
//! memory and posts them. In both cases, the NIC is another thread, which completes every WQE at once when it is rung
//! for. The third case is the NIC that runs as a kernel, with everything in the GPU's memory; it also moves the bytes.

use crate::gpu::Arg::{Address, Completions, Number, Send};
use crate::gpu::{Gpu, Place, Plain};
use crate::posts::{ENTRIES, Ring, WORK, Work};
use crate::{Row, median};
use efa_io::op::RdmaHead;
use efa_io::*;
use efa_tests::traffic::KernelNic;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};
use std::thread;

/// The number of requests of a launch.
const COUNT: u32 = 4096;
const LAUNCHES: usize = 9;
/// The number of entries of the queue between a kernel and its proxy.
const FIFO: u32 = 1024;
const FIFO_WORDS: u64 = 8;
/// The number of requests that a kernel passes at a time when the proxy's rate is measured; below it the number of WQEs
/// for which the proxy rings once.
const BATCH: u32 = 512;
const PROXY_BATCH: u32 = 32;

fn word(at: u64) -> &'static AtomicU64 {
    // SAFETY: the callers pass addresses of aligned words in pinned memory that is never freed. While threads and
    // kernels run, all of them access it only atomically.
    unsafe { AtomicU64::from_ptr(at as *mut u64) }
}

fn half(at: u64) -> &'static AtomicU32 {
    // SAFETY: the callers pass addresses of aligned words in pinned memory that is never freed. While threads and
    // kernels run, all of them access it only atomically.
    unsafe { AtomicU32::from_ptr(at as *mut u32) }
}

/// A ring, a completion ring and the proxy's queue, all in host memory.
struct Bench<'a> {
    gpu: &'a Gpu,
    send: SendRingHandle,
    cq: CompletionRingHandle,
    fifo: u64,
    completed: u64,
    /// `true` if the proxy waits for completions; `false` if it only counts what it has posted.
    completes: bool,
    stop: AtomicBool,
}

pub(crate) fn all(gpu: &Gpu, kernels: &str) -> Result<Vec<Row>, Box<dyn Error>> {
    let host = Place::Host;
    let (mask, shift) = (ENTRIES as u32 - 1, ENTRIES.ilog2());
    let bench = |completes: bool| -> Result<Bench<'_>, Box<dyn Error>> {
        Ok(Bench {
            gpu,
            send: Ring::new(host)?.handle(),
            cq: CompletionRingHandle {
                ring: host.allocate(ENTRIES * 32)?,
                doorbell: 0,
                mask,
                shift: shift as u16,
                cqe_size: 32,
                tag: 1,
                consumer: 0,
            },
            fifo: host.allocate((FIFO as u64 * FIFO_WORDS * 8) as usize)?,
            completed: host.allocate(64)?,
            completes,
            stop: AtomicBool::new(false),
        })
    };
    let direct = bench(true)?.direct()?;
    let proxied = bench(true)?.proxied(1)?;
    let rate = bench(false)?.proxied(BATCH)?;
    let nic = through_the_nic(gpu, kernels)?;
    Ok(vec![
        Row::new(Place::Gpu, "post to completion, 64 bytes through the NIC kernel", nic),
        Row::new(host, "post to completion, by the kernel", direct),
        Row { ours: Some(direct), ..Row::new(host, "post to completion, by way of a proxy", proxied) },
        Row::new(host, format!("handed to a proxy that posts, {BATCH} at a time"), rate),
    ])
}

/// Measures the nanoseconds from a post to its completion, through the NIC that runs as a kernel.
fn through_the_nic(gpu: &Gpu, kernels: &str) -> Result<f64, Box<dyn Error>> {
    let ours = efa_direct::cuda::Gpu::open(0)?;
    let module = ours.load(&[(ours.info().arch(), std::fs::read_to_string(kernels)?)])?;
    let (elapsed, work) = (Place::Host.allocate(8)?, Place::Host.allocate(size_of::<Work>())?);
    let mut world = KernelNic::start([&ours, &ours], &module, 0, false, [1024, 64], 1 << 20);
    let ends = world.ends();
    let (ah, qpn, qkey) = ends.to;
    let told = Work {
        ah: ah.into(),
        qpn: qpn.into(),
        qkey,
        lkey: ends.source.lkey,
        rkey: ends.target.rkey,
        length: 64,
        local: ends.source.addr,
        remote: ends.target.addr,
    };
    Place::Host.write(work, &[told])?;
    let (mut send, mut cq) = (ends.send, ends.send_cq);
    let mut times = Vec::new();
    for _ in 0..LAUNCHES {
        let args = [Send(Plain(send)), Completions(Plain(cq)), Address(work), Number(COUNT), Address(elapsed)];
        gpu.start("post_and_wait", 1, 1, &args)?;
        // It waits for this stream only, because the NIC's kernel goes on.
        gpu.finish()?;
        let ns = word(elapsed).load(Acquire);
        assert_ne!(ns, 0, "a completion is missing, or no good");
        times.push(ns as f64 / f64::from(COUNT));
        (send.producer, cq.consumer) = (send.producer.wrapping_add(COUNT), cq.consumer.wrapping_add(COUNT));
    }
    world.stop();
    drop(ends);
    Ok(median(times))
}

impl Bench<'_> {
    /// Measures the nanoseconds for a request.
    fn direct(&self) -> Result<f64, Box<dyn Error>> {
        self.measure(|base| {
            let (producer, consumer) = (base, base);
            let send = Send(Plain(SendRingHandle { producer, ..self.send }));
            let cq = Completions(Plain(CompletionRingHandle { consumer, ..self.cq }));
            Ok(("post_and_wait", vec![send, cq, WORK.place()?, Number(COUNT)]))
        })
    }

    /// Measures the nanoseconds for a request, `batch` at a time.
    fn proxied(&self, batch: u32) -> Result<f64, Box<dyn Error>> {
        thread::scope(|scope| {
            scope.spawn(|| self.proxy());
            let each = self.measure(|_| {
                // The kernel counts from zero in each launch, and so does the proxy, which recognizes a launch's first
                // request.
                for place in 0..u64::from(FIFO) {
                    word(self.fifo + place * FIFO_WORDS * 8).store(0, Relaxed);
                }
                half(self.completed).store(0, Release);
                let args =
                    [Address(self.fifo), Number(FIFO - 1), Address(self.completed), WORK.place()?, Number(COUNT)];
                Ok(("proxy_and_wait", args.into_iter().chain([Number(batch)]).collect()))
            });
            self.stop.store(true, Relaxed);
            each
        })
    }

    /// Runs a kernel several times with the NIC behind it. `prepare` returns the kernel and its arguments, given the
    /// number of earlier requests.
    fn measure(
        &self,
        mut prepare: impl FnMut(u32) -> Result<(&'static str, Vec<crate::gpu::Arg>), Box<dyn Error>>,
    ) -> Result<f64, Box<dyn Error>> {
        let elapsed = Place::Host.allocate(8)?;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| self.nic(&done));
            let mut times = Vec::new();
            let mut run = || -> Result<(), Box<dyn Error>> {
                for launch in 0..LAUNCHES as u32 {
                    let (kernel, mut args) = prepare(launch * COUNT)?;
                    args.push(Address(elapsed));
                    self.gpu.run(kernel, 1, 1, &args)?;
                    let ns = word(elapsed).load(Acquire);
                    if ns == 0 {
                        return Err(format!("{kernel} waited in vain").into());
                    }
                    times.push(ns as f64 / f64::from(COUNT));
                }
                Ok(())
            };
            let outcome = run();
            done.store(true, Relaxed);
            outcome.map(|()| median(times))
        })
    }

    /// Plays the NIC: completes every WQE that it is rung for.
    fn nic(&self, done: &AtomicBool) {
        let (size, mut consumer, mut entries) = (self.send.size(), 0u32, 0u32);
        while !done.load(Relaxed) {
            let rung = Doorbell::new(half(self.send.doorbell).load(Acquire));
            for _ in 0..rung.entries_since(Doorbell::new(consumer)) {
                let wqe = Wqe64::from_words([
                    word(self.send.ring + u64::from(size.slot(consumer)) * 64).load(Relaxed),
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ]);
                let completion = Completion {
                    req_id: wqe.words()[0] & 0xffff,
                    status: Status::Ok,
                    qpn: 5,
                    phase: self.cq.size().cq_phase(entries),
                    event: Event::Send { op: OpCode::RdmaWrite },
                };
                let cqe: Cqe32 = completion.encode().expect("a send's completion fits");
                let at = self.cq.ring + u64::from(self.cq.size().slot(entries)) * 32;
                word(at).store(cqe.words()[0], Release);
                (consumer, entries) = (consumer.wrapping_add(1), entries.wrapping_add(1));
            }
        }
    }

    /// Plays the proxy: takes requests and posts them.
    fn proxy(&self) {
        let (mut next, mut placed, mut rung, mut polled, mut counted) = (0u32, 0u32, 0u32, 0u32, 0u32);
        let (sq, cq) = (self.send.size(), self.cq.size());
        while !self.stop.load(Relaxed) {
            // A launch begins with request 0.
            if next != 0 && word(self.fifo).load(Acquire) == 1 && half(self.completed).load(Relaxed) == 0 {
                (next, counted) = (0, 0);
            }
            let place = self.fifo + u64::from(next & (FIFO - 1)) * FIFO_WORDS * 8;
            let fresh = word(place).load(Acquire) == u64::from(next) + 1;
            if fresh {
                let at = |index: u64| word(place + index * 8).load(Relaxed);
                let dest = Destination { ah: at(2) as u16, qpn: (at(2) >> 32) as u16, qkey: at(3) as u32 };
                let head = RdmaHead::new(OpCode::RdmaWrite);
                let wqe: Wqe64 = head.wqe(&dest.words(), [at(6), at(7)], [at(4), at(5)]);
                let wqe = wqe.with_req_id(next as u16).with_phase(sq.wq_phase(placed));
                for (i, value) in wqe.words().iter().enumerate() {
                    word(self.send.ring + u64::from(sq.slot(placed)) * 64 + i as u64 * 8).store(*value, Relaxed);
                }
                (next, placed) = (next + 1, placed.wrapping_add(1));
            }
            if placed != rung && (!fresh || placed.wrapping_sub(rung) == PROXY_BATCH) {
                half(self.send.doorbell).store(Doorbell::new(placed).value(), Release);
                rung = placed;
                if !self.completes {
                    half(self.completed).store(next, Release);
                }
            }
            if self.completes {
                let entry = self.cq.ring + u64::from(cq.slot(polled)) * 32;
                if Cqe32::from_words([word(entry).load(Acquire), 0, 0, 0]).phase() == cq.cq_phase(polled) {
                    (polled, counted) = (polled.wrapping_add(1), counted + 1);
                    half(self.completed).store(counted, Release);
                }
            }
        }
    }
}
