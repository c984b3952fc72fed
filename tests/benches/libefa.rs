//! A benchmark of posting one RDMA write and polling one completion: this project's queues and the vendor's libefa, in
//! one process, in turn, on the same rings.
//!
//! `cargo xtask bench libefa` starts it. It starts itself again on a software device, through the packaged loader,
//! because libefa needs a device to create a queue pair. Then it maps rings of plain memory over those that libefa has
//! mapped, so that both write and read the same pages. No device is behind the rings; between samples, the benchmark
//! plays the device, untimed. A sample is 4096 entries, once around the ring. The floor of a post is a ready-made WQE
//! stored in eight words, with the doorbell; that of a poll is loading the entry.
//!
//! Both order stores to the send ring before the doorbell by a fence, once per batch, as for a ring in device memory.

#[allow(dead_code, reason = "another bench uses the rest")]
#[path = "../../efa-direct/benches/plain/mod.rs"]
mod plain;

use divan::black_box;
use efa_io::Cqe32;
use efa_memory::{Shared, Unit};
use efa_sys::sys::*;
use efa_sys::{Ah, Cq, CqAttr, DeviceList, Mr, Pd, Qp, QpAttr};
use efa_tests::vendor::{EfaRun, Vendor};
use plain::{LAP, REQUESTS, Rig, Rings, complete};
use std::env::{current_exe, var_os};
use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The number of samples of each case.
const SAMPLES: usize = 400;

fn main() -> ExitCode {
    if var_os("EFA_NODE").is_none() {
        let this = current_exe().expect("a program has a path");
        let status = EfaRun::new(&[]).command(&Vendor::get().loaded(&this)).status().expect("efa run starts");
        return ExitCode::from(status.code().unwrap_or(1) as u8);
    }
    let rings = Rings::shareable().expect("memory");
    let mut theirs = Libefa::new(&rings);
    let mut ours = Rig::new(false, rings);
    // Now both are at the beginning of the ring for the second time.
    ours.finish();
    theirs.post(LAP, REQUESTS);
    theirs.finish();

    println!("posting one RDMA write, ns (median of {SAMPLES} samples of {LAP})");
    println!("{:28} {:>7} {:>7} {:>7} {:>14}", "", "floor", "ours", "libefa", "ours / libefa");
    for batch in [1, 8, 32] {
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..SAMPLES {
            times[1].push(timed(|| ours.post(LAP, batch).expect("the ring was drained")));
            ours.finish();
            times[2].push(timed(|| theirs.post(LAP, batch)));
            theirs.finish();
            times[0].push(timed(|| ours.floor_8(LAP, batch)));
        }
        row(&format!("batches of {batch}"), times);
    }
    println!("\npolling one completion, ns");
    println!("{:28} {:>7} {:>7} {:>7} {:>14}", "", "floor", "ours", "libefa", "ours / libefa");
    type Poll = (&'static str, fn(&mut Rig), fn(&mut Libefa));
    let polls: [Poll; 3] = [
        ("one at a time: ibv_poll_cq", |rig| rig.poll_one(LAP), |theirs| theirs.poll(1)),
        ("32 at a time: ibv_poll_cq", |rig| rig.poll_32(LAP), |theirs| theirs.poll(32)),
        ("32 at a time: ibv_start_poll", |rig| rig.poll_32(LAP), |theirs| theirs.poll_extended(32)),
    ];
    for (name, our_poll, their_poll) in polls {
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..SAMPLES {
            ours.post(LAP, REQUESTS).expect("the ring was drained");
            ours.complete();
            times[0].push(timed(|| ours.poll_floor(LAP)));
            times[1].push(timed(|| our_poll(&mut ours)));
            theirs.post(LAP, REQUESTS);
            theirs.complete();
            times[2].push(timed(|| their_poll(&mut theirs)));
        }
        row(name, times);
    }
    ExitCode::SUCCESS
}

fn timed(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

fn row(name: &str, times: [Vec<Duration>; 3]) {
    let [floor, ours, theirs] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_nanos() as f64 / LAP as f64
    });
    println!("{name:28} {floor:7.2} {ours:7.2} {theirs:7.2} {:14.2}", ours / theirs);
}

/// A request in the form that libefa takes.
struct Request {
    ah: *mut ibv_ah,
    qpn: u32,
    rkey: u32,
    remote: u64,
    lkey: u32,
    local: u64,
}

/// A queue pair and a completion queue of libefa, on our rings.
struct Libefa {
    rings: Rings,
    qp: Arc<Qp>,
    cq: Arc<Cq>,
    qpx: *mut ibv_qp_ex,
    requests: Vec<Request>,
    posted: u32,
    written: u32,
    _objects: (Vec<Ah>, Mr),
}

impl Libefa {
    fn new(rings: &Rings) -> Self {
        let libraries = Libraries::get().expect("libibverbs and libefa");
        let devices = DeviceList::get(libraries).expect("devices");
        let device = devices.iter().next().expect("a device").open().expect("an open device");
        let context = Arc::new(device);
        let pd = Arc::new(Pd::alloc(&context).expect("a domain"));
        let attr = CqAttr { entries: LAP as u32, ..Default::default() };
        let cq = Arc::new(Cq::create(&context, &attr).expect("a completion queue"));
        let attr = QpAttr {
            send_wr: LAP as u32,
            recv_wr: 1,
            send_sge: 1,
            recv_sge: 1,
            send_ops: IBV_QP_EX_WITH_RDMA_WRITE.into(),
            ..Default::default()
        };
        let qp = Arc::new(Qp::create(&pd, &cq, &cq, &attr).expect("a queue pair"));
        let (sq, _) = qp.query_wqs().expect("its rings");
        let ring = cq.query().expect("its ring");
        assert_eq!((sq.num_entries, ring.num_entries), (LAP as u32, LAP as u32));
        lay_over(sq.buffer, &rings.send, LAP * 64);
        lay_over(ring.buffer, &rings.completions, LAP * Cqe32::SIZE);
        lay_over(sq.doorbell.cast(), &rings.registers, 4096);
        // libefa posts only in this state. The device's queue pair stays in Reset, so the device does not read the
        // ring. SAFETY: `qp` keeps the queue pair alive, and no other thread uses it.
        unsafe { (*qp.as_ptr()).state = IBV_QPS_RTS };

        let memory = Box::leak(vec![0u8; REQUESTS * 8192].into_boxed_slice());
        let start = NonNull::from(&mut *memory).cast::<u8>();
        // SAFETY: the memory is leaked, so it is never freed, and nothing reads or writes it.
        let mr = unsafe { Mr::register(&pd, start, memory.len(), IBV_ACCESS_LOCAL_WRITE) }.expect("a region");
        let ahs: Vec<_> = (1..=4).map(|i| Ah::create(&pd, [i; 16]).expect("an address handle")).collect();
        let requests = (0..REQUESTS as u64).map(|i| Request {
            ah: ahs[i as usize % ahs.len()].as_ptr(),
            qpn: 17 + i as u32 % 4,
            rkey: 0x2002,
            remote: i * 16384 + 64,
            lkey: mr.lkey(),
            local: start.as_ptr() as u64 + i * 8192,
        });
        let qpx = qp.as_ex().expect("a queue pair with operations").as_ptr();
        let (requests, rings) = (requests.collect(), rings.clone());
        Self { rings, qp, cq, qpx, requests, posted: 0, written: 0, _objects: (ahs, mr) }
    }

    /// Posts `count` RDMA writes, `batch` for each doorbell.
    #[inline(never)]
    fn post(&mut self, count: usize, batch: usize) {
        let qp = self.qpx;
        for _ in 0..count / REQUESTS {
            for batch in black_box(&self.requests[..]).chunks(batch) {
                // SAFETY: `self` keeps the queue pair alive. It was created for RDMA writes, and the calls are in the
                // order of the manual page.
                unsafe {
                    ibv_wr_start(qp);
                    for request in batch {
                        (*qp).wr_id = u64::from(self.posted);
                        (*qp).wr_flags = IBV_SEND_SIGNALED;
                        ibv_wr_rdma_write(qp, request.rkey, request.remote);
                        ibv_wr_set_ud_addr(qp, request.ah, request.qpn, 0x1234);
                        ibv_wr_set_sge(qp, request.lkey, request.local, 4096);
                        self.posted = self.posted.wrapping_add(1);
                    }
                    assert_eq!(ibv_wr_complete(qp), 0);
                }
            }
        }
    }

    /// Plays the device: writes completions for everything that was posted.
    fn complete(&mut self) {
        complete(&self.rings, &mut self.written, self.posted, self.qp.number() as u16);
    }

    /// Polls all entries once with `ibv_poll_cq`, `n` at a time.
    #[inline(never)]
    fn poll(&mut self, n: usize) {
        let cq = ibv_cq_ex_to_cq(self.cq.as_ptr());
        let (mut ids, mut into) = (0, [ibv_wc::default(); 32]);
        for _ in 0..LAP / n {
            // SAFETY: `self` keeps the queue alive, and the array has room for `n` completions.
            let got = unsafe { ibv_poll_cq(cq, n as i32, into.as_mut_ptr()) };
            assert_eq!(got, n as i32, "the ring was filled");
            for completion in &into[..n] {
                assert_eq!(completion.status, IBV_WC_SUCCESS);
                ids ^= completion.wr_id;
            }
        }
        black_box(ids);
    }

    /// Polls all entries once with the extended calls (`ibv_start_poll` and so on).
    #[inline(never)]
    fn poll_extended(&mut self, n: usize) {
        let cq = self.cq.as_ptr();
        let mut ids = 0;
        for _ in 0..LAP / n {
            let mut attr = ibv_poll_cq_attr::default();
            // SAFETY: `self` keeps the queue alive, and the calls are in the order of the manual page.
            unsafe {
                assert_eq!(ibv_start_poll(cq, &mut attr), 0, "the ring was filled");
                for i in 0..n {
                    assert_eq!((*cq).status, IBV_WC_SUCCESS);
                    ids ^= (*cq).wr_id;
                    if i + 1 < n {
                        assert_eq!(ibv_next_poll(cq), 0, "the ring was filled");
                    }
                }
                ibv_end_poll(cq);
            }
        }
        black_box(ids);
    }

    fn finish(&mut self) {
        self.complete();
        self.poll(32);
    }
}

/// Maps `memory` over what libefa has mapped at `at`.
fn lay_over<U: Unit>(at: *mut u8, memory: &Shared<U>, len: usize) {
    let file = memory.file().expect("it was made so that it can be mapped");
    let page: *mut c_void = at.cast();
    assert_eq!(page as usize & 4095, 0, "libefa's mapping begins with a page");
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
    // SAFETY: the pages are a mapping of libefa's with at least this length. libefa uses only their addresses, so it
    // then uses the new pages. No Rust object is in them.
    let mapped = unsafe { libc::mmap(page, len, protection, flags, file.as_raw_fd(), 0) };
    assert_eq!(mapped, page, "mapping over libefa's ring");
}
