//! Rings without a device: in plain memory, where the bench itself plays the device between measurements.

use divan::black_box;
use efa_direct::provider::{
    ControlError, CqAttributes, HostRange, Provider, QpAttributes, RawCq, RawQp, RegionKeys, Registration,
};
use efa_direct::{
    Access, Completion, Counters, CpuCompletionQueue, CpuSendQueue, CqConfig, Device, DeviceAttributes, Endpoint, Gid,
    OpCode, Peer, PostError, QpConfig, RawRing, RdmaWrite, SetupError, Status,
};
use efa_io::{Cqe32, Event, Limits, RingSize, Wqe64};
use efa_memory::{DoorbellMemory, RingMemory};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

/// Entries of the send ring and of the completion ring, which is what one sample covers.
pub(crate) const LAP: usize = 4096;
/// Number of different requests, which are posted in turn; also the largest batch.
pub(crate) const REQUESTS: usize = 32;
/// The queue pair's number.
const QPN: u16 = 5;

/// The memory of a queue pair's rings.
#[derive(Clone)]
pub(crate) struct Rings {
    pub(crate) send: Arc<RingMemory>,
    pub(crate) completions: Arc<RingMemory>,
    /// The page whose first word is the doorbell.
    pub(crate) registers: Arc<DoorbellMemory>,
    /// `true` to treat the send ring as device memory, so that stores are fenced before a doorbell.
    pub(crate) write_combining: bool,
}

impl Rings {
    /// Returns rings of [`LAP`] entries in memory of this process.
    #[allow(dead_code, reason = "one bench uses the one, one the other")]
    pub(crate) fn private() -> io::Result<Self> {
        Ok(Self {
            send: RingMemory::zeroed(LAP * 64)?,
            completions: RingMemory::zeroed(LAP * Cqe32::SIZE)?,
            registers: DoorbellMemory::zeroed(4096)?,
            write_combining: false,
        })
    }

    /// Returns rings of [`LAP`] entries in memory that other processes can map. The send ring is treated as device
    /// memory.
    #[allow(dead_code, reason = "one bench uses the one, one the other")]
    pub(crate) fn shareable() -> io::Result<Self> {
        Ok(Self {
            send: RingMemory::shareable(LAP * 64)?,
            completions: RingMemory::shareable(LAP * Cqe32::SIZE)?,
            registers: DoorbellMemory::shareable(4096)?,
            write_combining: true,
        })
    }
}

/// A provider without a device.
struct Plain {
    attributes: DeviceAttributes,
    req_id_64: bool,
    rings: Rings,
}

/// A ring of [`LAP`] entries; its doorbell is the first word of `registers`.
fn ring(memory: &Arc<RingMemory>, rings: &Rings, entry_size: usize) -> RawRing {
    assert!(LAP * entry_size <= memory.len());
    let base = NonNull::new(memory.as_ptr()).expect("a mapping has an address");
    let doorbell = NonNull::new(rings.registers.as_ptr().cast());
    let owner = Arc::new((memory.clone(), rings.registers.clone()));
    let size = RingSize::new(LAP as u32).expect("a power of two");
    // SAFETY: the memory is page-aligned, long enough, lives as long as `owner`, and one thread has it all, as words
    // and doorbells.
    unsafe { RawRing::new(base, doorbell, size, entry_size, rings.write_combining, owner) }
}

// SAFETY: this provider has no device, so nobody accesses registered bytes.
unsafe impl Provider for Plain {
    fn name(&self) -> &str {
        "plain"
    }

    fn attributes(&self) -> &DeviceAttributes {
        &self.attributes
    }

    fn alloc_pd(&self) -> Result<u32, SetupError> {
        Ok(1)
    }

    fn dealloc_pd(&self, _: u32) {}

    fn register(&self, _: u32, _: HostRange, _: Access) -> Result<Registration, SetupError> {
        Ok(Registration { keys: RegionKeys { lkey: 0x1001, rkey: 0x2002 }, token: None })
    }

    fn deregister(&self, _: &Registration) {}

    fn create_cq(&self, _: CqAttributes) -> Result<RawCq, SetupError> {
        Ok(RawCq { cqn: 1, rings: vec![ring(&self.rings.completions, &self.rings, Cqe32::SIZE)], events: None })
    }

    fn destroy_cq(&self, _: u32) {}

    fn create_qp(&self, request: QpAttributes) -> Result<RawQp, SetupError> {
        let unused = RingMemory::zeroed(LAP * 16)
            .map_err(|_| ControlError::NoMemory { what: "a receive ring", bytes: LAP * 16 })?;
        Ok(RawQp {
            qpn: QPN,
            generation: 3,
            send: ring(&self.rings.send, &self.rings, 64),
            send_max_batch: 64,
            req_id_64: self.req_id_64,
            recv: ring(&unused, &self.rings, 16),
            recv_max_batch: 64,
            limits: Limits { max_inline_bytes: request.inline_bytes, ..Limits::of_queue(8192, 1 << 30) },
        })
    }

    fn activate_qp(&self, _: u16, _: u32) -> Result<(), SetupError> {
        Ok(())
    }

    fn fail_qp(&self, _: u16) -> Result<(), SetupError> {
        Ok(())
    }

    fn destroy_qp(&self, _: u16) {}

    fn create_ah(&self, _: u32, _: Gid) -> Result<u16, SetupError> {
        Ok(9)
    }

    fn destroy_ah(&self, _: u32, _: u16) {}

    fn counters(&self) -> Counters {
        Counters::default()
    }
}

/// Plays the device: completes the WQEs of a queue pair from `written` on up to `posted`, a little out of order, as SRD
/// does.
pub(crate) fn complete(rings: &Rings, written: &mut u32, posted: u32, qpn: u16) {
    let size = RingSize::new(LAP as u32).expect("a power of two");
    let first = *written;
    for i in 0..posted.wrapping_sub(first) {
        let counter = first.wrapping_add(i ^ 5);
        let wqe = Wqe64::from_words(rings.send.load_entry(size.slot(counter) as usize * 64));
        assert_eq!(wqe.phase(), size.wq_phase(counter), "a WQE of this lap");
        assert_eq!(wqe.decode().map(|request| request.op.code()), Ok(OpCode::RdmaWrite));
        let (status, event) = (Status::Ok, Event::Send { op: OpCode::RdmaWrite });
        let phase = size.cq_phase(*written);
        let entry = efa_io::Completion { req_id: wqe.req_id(), status, qpn, phase, event };
        let entry: Cqe32 = entry.encode().expect("a send's completion fits");
        rings.completions.publish_entry(size.slot(*written) as usize * Cqe32::SIZE, entry.words());
        *written = written.wrapping_add(1);
    }
}

/// Keeps the requests from lying in steps of 64 bytes as the ring does. Loads and stores in step always meet, or always
/// miss, the same address bits, which changes the floor by a fifth, by chance.
struct Spaced<T>(T, #[expect(dead_code, reason = "only there to take space")] u64);

/// A send ring and its completion ring as a program has them, the requests to post, and the device's side of both
/// rings.
pub(crate) struct Rig {
    plain: Arc<Plain>,
    sq: CpuSendQueue<8>,
    cq: CpuCompletionQueue,
    requests: Vec<Spaced<(&'static Peer, RdmaWrite<'static>)>>,
    /// The WQEs of `requests`, for the floor.
    wqes: Vec<Spaced<Wqe64>>,
    /// Requests posted so far, and the `wr_id` of the next.
    next: u64,
    /// Entries that the "device" has written and the program has taken.
    written: u32,
    taken: u32,
    /// Producer counter of the floor.
    floor: u32,
}

impl Rig {
    /// Creates a queue pair with 16-bit or 64-bit request ids. Regions and peers are leaked, because they have to
    /// outlive it.
    pub(crate) fn new(req_id_64: bool, rings: Rings) -> Self {
        let attributes = DeviceAttributes { inline_bytes: 32, max_qp: 512, ..DeviceAttributes::default() };
        let plain = Arc::new(Plain { attributes, req_id_64, rings });
        let device = Device::from_provider(plain.clone());
        let pd = Arc::new(device.alloc_pd().expect("a domain"));
        let region = &*Box::leak(Box::new(pd.allocate_shared(1 << 20, Access::ALL).expect("a region")));
        let cq = device.create_cq(CqConfig::new(LAP as u32)).expect("a completion queue");
        let qp = pd.create_qp(&cq, &cq, QpConfig::new(LAP as u32, 1).recv_share(0)).expect("a queue pair");
        let sq = qp.activate(1).expect("an active queue pair").send.into_cpu();
        let peers: Vec<&_> = (0..4)
            .map(|i| Endpoint { gid: plain.attributes.gid, qpn: 17 + i, qkey: 0x1234 })
            .map(|endpoint| &*Box::leak(Box::new(pd.peer(&endpoint).expect("a peer"))))
            .collect();
        let requests: Vec<_> = (0..REQUESTS as u64)
            .map(|i| {
                let (at, to) = (i * 8192, i * 16384 + 64);
                let local = region.slice(at..at + 4096).expect("in the region");
                let remote = region.remote().slice(to..to + 4096).expect("in the region");
                Spaced((peers[i as usize % peers.len()], RdmaWrite::new(local, remote)), 0)
            })
            .collect();
        let (cq, wqes) = (cq.into_cpu(), Vec::new());
        let mut rig = Self { plain, sq, cq, requests, wqes, next: 0, written: 0, taken: 0, floor: 0 };
        rig.refill();
        rig.wqes =
            (0..REQUESTS).map(|i| Spaced(Wqe64::from_words(rig.plain.rings.send.load_entry(i * 64)), 0)).collect();
        rig
    }

    /// Posts `count` RDMA writes, a doorbell after each `batch`.
    #[inline(never)]
    pub(crate) fn post(&mut self, count: usize, batch: usize) -> Result<(), PostError> {
        let mut wr_id = self.next;
        for _ in 0..count / REQUESTS {
            for batch in black_box(&self.requests[..]).chunks(batch) {
                for Spaced((peer, request), _) in batch {
                    self.sq.post(peer, *request, wr_id)?;
                    wr_id += 1;
                }
                self.sq.ring();
            }
        }
        self.next = wr_id;
        Ok(())
    }

    /// The floor of [`post`](Self::post): ready-made WQEs stored by `store`, and the doorbell.
    #[inline(always)]
    fn floor(&mut self, count: usize, batch: usize, store: impl Fn(*mut u64, &[u64; 8])) {
        let (ring, doorbell) = (self.plain.rings.send.as_ptr(), self.plain.rings.registers.as_ptr().cast());
        let (mask, mut producer) = (black_box(LAP as u32 - 1), self.floor);
        for _ in 0..count / REQUESTS {
            for batch in black_box(&self.wqes[..]).chunks(batch) {
                for Spaced(wqe, _) in batch {
                    store(ring.wrapping_add((producer & mask) as usize * 64).cast(), wqe.words());
                    producer = producer.wrapping_add(1);
                }
                // SAFETY: `rings` keeps the page of the register, which is accessed only as an `AtomicU32`.
                unsafe { AtomicU32::from_ptr(doorbell) }.store(producer, Release);
            }
        }
        self.floor = producer;
    }

    /// The floor with eight stores of 8 bytes, atomic as ring memory requires.
    #[inline(never)]
    pub(crate) fn floor_8(&mut self, count: usize, batch: usize) {
        self.floor(count, batch, |slot, words| {
            for (i, word) in words.iter().enumerate() {
                // SAFETY: `floor` gives a slot of the ring, 64 bytes long.
                unsafe { AtomicU64::from_ptr(slot.add(i)) }.store(*word, Relaxed);
            }
        });
    }

    /// The floor with four stores of 16 bytes, for which Rust has no atomics.
    #[cfg(target_arch = "x86_64")]
    #[inline(never)]
    pub(crate) fn floor_16(&mut self, count: usize, batch: usize) {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_store_si128};
        self.floor(count, batch, |slot, words| {
            for i in 0..4 {
                // SAFETY: `floor` gives a slot of the ring, 64 bytes long and as aligned; this thread alone has the
                // ring.
                unsafe {
                    let half = _mm_loadu_si128(words.as_ptr().cast::<__m128i>().add(i));
                    _mm_store_si128(slot.cast::<__m128i>().add(i), half);
                }
            }
        });
    }

    /// Plays the device: completes all requests that were posted.
    pub(crate) fn complete(&mut self) {
        complete(&self.plain.rings, &mut self.written, self.next as u32, QPN);
    }

    /// Empties the rings, before [`post`](Self::post).
    pub(crate) fn drain(&mut self) {
        self.complete();
        let (first, count) = (self.taken, self.written.wrapping_sub(self.taken));
        for i in 0..count {
            let completion = self.cq.poll_one().expect("the device wrote it");
            assert_eq!(completion.wr_id as u32, first.wrapping_add(i ^ 5), "the id it was posted with");
        }
        assert_eq!((self.cq.poll_one(), self.cq.skipped(), self.sq.outstanding()), (None, 0, 0));
        self.taken = self.written;
    }

    /// Completes all posted requests and takes their completions, untimed and unchecked.
    pub(crate) fn finish(&mut self) {
        self.complete();
        self.poll_32(self.written.wrapping_sub(self.taken) as usize);
    }

    /// Fills the ring with [`LAP`] completions, before polls.
    pub(crate) fn refill(&mut self) {
        self.drain();
        self.post(LAP, REQUESTS).expect("an empty ring has room");
        self.complete();
    }

    /// Polls `count` completions one by one.
    #[inline(never)]
    pub(crate) fn poll_one(&mut self, count: usize) {
        let mut ids = 0;
        for _ in 0..count {
            let completion = self.cq.poll_one().expect("the ring was filled");
            assert!(completion.status.is_ok());
            ids ^= completion.wr_id;
        }
        black_box(ids);
        self.taken = self.taken.wrapping_add(count as u32);
    }

    /// Polls `count` completions, 32 at a time.
    #[inline(never)]
    pub(crate) fn poll_32(&mut self, count: usize) {
        let (mut ids, mut into) = (0, [Completion::default(); 32]);
        for _ in 0..count / into.len() {
            assert_eq!(self.cq.poll(&mut into), into.len(), "the ring was filled");
            for completion in &into {
                assert!(completion.status.is_ok());
                ids ^= completion.wr_id;
            }
        }
        black_box(ids);
        self.taken = self.taken.wrapping_add(count as u32);
    }

    /// The floor of the polls: one look at the phase bit, and a load of all words of the entry.
    #[inline(never)]
    pub(crate) fn poll_floor(&mut self, count: usize) {
        let ring = self.plain.rings.completions.as_ptr().cast::<u64>();
        let mask = black_box(LAP as u32 - 1);
        let fresh = Cqe32::from_words([self.load(self.taken), 0, 0, 0]).phase();
        let mut ids = 0;
        for i in 0..count as u32 {
            let entry = ring.wrapping_add(((self.taken.wrapping_add(i)) & mask) as usize * 4);
            // SAFETY: an entry of the ring, 32 bytes long, only accessed atomically.
            let word = |i, order| unsafe { AtomicU64::from_ptr(entry.add(i)) }.load(order);
            let first = word(0, Acquire);
            assert!(Cqe32::from_words([first, 0, 0, 0]).phase() == fresh, "the ring was filled");
            ids ^= first ^ word(1, Relaxed) ^ word(2, Relaxed) ^ word(3, Relaxed);
        }
        black_box(ids);
    }

    fn load(&self, counter: u32) -> u64 {
        let [word] = self.plain.rings.completions.load_entry(counter as usize % LAP * Cqe32::SIZE);
        word
    }
}
