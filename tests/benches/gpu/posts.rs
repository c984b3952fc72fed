//! The time for posting, with no NIC behind the rings.

use crate::gpu::Arg::{Address, Number, Send};
use crate::gpu::{Arg, Gpu, Place, Plain};
use crate::{Row, median};
use efa_io::*;
use std::error::Error;

/// The number of entries of a send ring.
pub(crate) const ENTRIES: usize = 4096;
/// The number of launches of each case.
const LAUNCHES: usize = 9;
/// The maximum number of queues: one warp on each multiprocessor.
const QUEUES: usize = 132;
/// The maximum number of WQEs between two doorbells: the size of the ring. libefa reports this for a device that states
/// no limit.
const MAX_BATCH: u32 = ENTRIES as u32;

/// The argument `Work` of the kernels.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Work {
    pub(crate) ah: u32,
    pub(crate) qpn: u32,
    pub(crate) qkey: u32,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
    pub(crate) length: u32,
    pub(crate) local: u64,
    pub(crate) remote: u64,
}

pub(crate) const WORK: Work =
    Work { ah: 3, qpn: 17, qkey: 0x1234, lkey: 0x42, rkey: 0x99, length: 4096, local: 1 << 40, remote: 1 << 41 };

impl Work {
    /// Copies the argument to memory that kernels can access.
    pub(crate) fn place(self) -> Result<Arg, Box<dyn Error>> {
        let at = Place::Host.allocate(size_of::<Self>())?;
        Place::Host.write(at, &[self])?;
        Ok(Address(at))
    }

    /// Returns the WQE of a request without the fields that depend on its place in the ring.
    fn wqe(&self, number: u32) -> Result<Wqe64, EncodeError> {
        let at = u64::from(number) * 64;
        let local = LocalBuf { addr: self.local + at, lkey: Lkey::new(self.lkey)?, length: self.length };
        let remote = RemoteBuf { addr: self.remote + at, rkey: self.rkey };
        let to = Destination { ah: self.ah as u16, qpn: self.qpn as u16, qkey: self.qkey };
        RdmaWrite::new(local, remote).encode(&Limits::of_queue(8192, 1 << 30), to)
    }
}

/// The send ring of a queue pair without a NIC.
pub(crate) struct Ring {
    place: Place,
    ring: u64,
    doorbell: u64,
}

impl Ring {
    pub(crate) fn new(place: Place) -> Result<Self, Box<dyn Error>> {
        Ok(Self { place, ring: place.allocate(ENTRIES * 64)?, doorbell: place.allocate(4096)? })
    }

    pub(crate) fn handle(&self) -> SendRingHandle {
        SendRingHandle {
            ring: self.ring,
            doorbell: self.doorbell,
            mask: ENTRIES as u32 - 1,
            shift: ENTRIES.ilog2(),
            wqe_size: 64,
            max_batch: MAX_BATCH,
            producer: 0,
            credits: ENTRIES as u32,
            qpn: 5,
            cq: 1,
            req_id_64: 0,
            limits: Limits::of_queue(8192, 1 << 30),
        }
    }

    fn wqes(&self, posted: u32) -> Result<Vec<Wqe64>, Box<dyn Error>> {
        let rung: Vec<u32> = self.place.read(self.doorbell, 1)?;
        assert_eq!(rung[0], posted, "the doorbell");
        Ok(self.place.read::<[u64; 8]>(self.ring, ENTRIES)?.into_iter().map(Wqe64::from_words).collect())
    }

    /// Checks that the ring contains the requests that were posted last, in order.
    fn check(&self, posted: u32) -> Result<(), Box<dyn Error>> {
        let (wqes, size) = (self.wqes(posted)?, RingSize::new(ENTRIES as u32)?);
        for number in posted - ENTRIES as u32..posted {
            let expected = WORK.wqe(number)?.with_req_id(number as u16).with_phase(size.wq_phase(number));
            assert_eq!(wqes[size.slot(number) as usize], expected, "WQE {number}");
        }
        Ok(())
    }

    /// Checks that the ring contains requests that were posted, in any order, none twice.
    fn check_shared(&self, posted: u32) -> Result<(), Box<dyn Error>> {
        let mut seen = std::collections::HashSet::new();
        let (wqes, size) = (self.wqes(posted)?, RingSize::new(ENTRIES as u32)?);
        for at in posted - ENTRIES as u32..posted {
            let wqe = wqes[size.slot(at) as usize];
            let Op::RdmaWrite(write) = wqe.decode()?.op else { panic!("slot {at} holds no write") };
            let number = ((write.local.addr - WORK.local) / 64) as u32;
            assert!(number < posted && seen.insert(number), "request {number} stands there twice");
            assert_eq!(wqe, WORK.wqe(number)?.with_req_id(number as u16).with_phase(size.wq_phase(at)), "WQE {at}");
        }
        Ok(())
    }
}

/// Measures the nanoseconds for a WQE: the median over launches of a kernel that posts `each` WQEs to every ring and
/// writes the time for each ring.
#[expect(clippy::too_many_arguments, reason = "a case is what it is made of")]
fn posts(
    gpu: &Gpu,
    place: Place,
    queues: usize,
    max_batch: u32,
    each: u32,
    kernel: &str,
    threads: u32,
    args: &[Arg],
) -> Result<f64, Box<dyn Error>> {
    let rings = (0..queues).map(|_| Ring::new(place)).collect::<Result<Vec<_>, _>>()?;
    let (handles, elapsed) = (Place::Host.allocate(64 * queues)?, Place::Host.allocate(8 * queues)?);
    let (vendor, queue) = (kernel.starts_with("dp_"), Place::Gpu.allocate(4096)?);
    let work = WORK.place()?;
    let mut times = Vec::new();
    for _ in 0..LAUNCHES {
        let handle = |ring: &Ring| SendRingHandle { max_batch, ..ring.handle() };
        Place::Host.write(handles, &rings.iter().map(handle).collect::<Vec<_>>())?;
        Place::Host.write(elapsed, &vec![0u64; queues])?;
        if vendor {
            gpu.run("dp_create", 1, 1, &[Address(queue), Address(handles)])?;
        }
        let first = match (vendor, queues) {
            (true, _) => [Address(queue), work],
            (false, 1) => [Send(Plain(handle(&rings[0]))), work],
            (false, _) => [Address(handles), work],
        };
        let args: Vec<Arg> = first.iter().chain(args).copied().chain([Address(elapsed)]).collect();
        gpu.run(kernel, queues as u32, threads, &args)?;
        let elapsed: Vec<u64> = Place::Host.read(elapsed, queues)?;
        assert!(elapsed.iter().all(|&ns| ns != 0), "a request was refused");
        times.push(*elapsed.iter().max().unwrap() as f64 / f64::from(each) / queues as f64);
        for ring in &rings {
            ring.check(each)?;
        }
    }
    Ok(median(times))
}

/// Measures one thread and one warp with one queue, and the vendor's library.
pub(crate) fn alone(gpu: &Gpu, place: Place) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut rows = Vec::new();
    let (count, lanes) = (4 * ENTRIES as u32, 16 * ENTRIES as u32 / 32);
    let mut beside = |ours: Row, kernel: &str, threads: u32, args: &[Arg]| -> Result<(), Box<dyn Error>> {
        let peer = gpu.has_vendor().then(|| {
            let each = if threads == 1 { count } else { lanes * 32 };
            let ns = posts(gpu, place, 1, MAX_BATCH, each, kernel, threads, args)?;
            Ok::<_, Box<dyn Error>>(Row {
                ours: Some(ours.ns),
                ..Row::new(place, format!("{}, efa-dp-direct", ours.what), ns)
            })
        });
        rows.push(ours);
        rows.extend(peer.transpose()?);
        Ok(())
    };
    let host = place == Place::Host;
    let one = posts(gpu, place, 1, MAX_BATCH, count, "post_one", 1, &[Number(count)])?;
    let one = Row::new(place, "one thread, 1 per doorbell", one);
    beside(if host { one.aim(640.0) } else { one }, "dp_post_thread", 1, &[Number(count), Number(1)])?;
    for batch in [16, 32] {
        let args = [Number(count), Number(batch)];
        let row = posts(gpu, place, 1, MAX_BATCH, count, "post_thread", 1, &args)?;
        let row = Row::new(place, format!("one thread, {batch} per doorbell"), row);
        beside(if host && batch == 32 { row.aim(60.0) } else { row }, "dp_post_thread", 1, &args)?;
    }
    for rounds in [1, 2, 4, 8] {
        let args = [Number(lanes), Number(rounds)];
        let row = Row::new(
            place,
            format!("one warp, {} per doorbell", 32 * rounds),
            posts(gpu, place, 1, MAX_BATCH, lanes * 32, "post_warp", 32, &args)?,
        );
        let row = match (host, rounds) {
            (true, 1) => row.aim_rate(45.0),
            (true, 4) => row.aim_rate(140.0),
            _ => row,
        };
        beside(row, "dp_post_warp", 32, &args)?;
    }
    // If two batches exceed the device's limit, a second fence orders the doorbell between them.
    for (batch, max_batch) in [(1, 32), (32, 64), (32, 32)] {
        let ns = posts(gpu, place, 1, max_batch, count, "post_thread", 1, &[Number(count), Number(batch)])?;
        rows.push(Row::new(place, format!("one thread, {batch} per doorbell, batches of {max_batch}"), ns));
    }
    for max_batch in [64, 32] {
        let ns = posts(gpu, place, 1, max_batch, lanes * 32, "post_warp", 32, &[Number(lanes), Number(1)])?;
        rows.push(Row::new(place, format!("one warp, 32 per doorbell, batches of {max_batch}"), ns));
    }
    for batch in [1, 32] {
        let ns = posts(gpu, place, 1, MAX_BATCH, count, "post_unfenced", 1, &[Number(count), Number(batch)])?;
        rows.push(Row::new(place, format!("one thread, {batch} per doorbell, no fence (floor)"), ns));
    }
    Ok(rows)
}

/// Measures warps with one queue each.
pub(crate) fn many_queues(gpu: &Gpu, place: Place) -> Result<Vec<Row>, Box<dyn Error>> {
    let lanes = 16 * ENTRIES as u32 / 32;
    let row = |queues: usize| {
        let ns = posts(gpu, place, queues, MAX_BATCH, lanes * 32, "post_warps", 32, &[Number(lanes), Number(4)])?;
        let row = Row::new(place, format!("{queues} warps, each its queue, 128 per doorbell"), ns);
        Ok(if place == Place::Host && queues == QUEUES { row.aim_rate(760.0) } else { row })
    };
    [16, QUEUES].map(row).into_iter().collect()
}

/// Measures many warps that post to one queue.
pub(crate) fn shared(gpu: &Gpu, place: Place) -> Result<Vec<Row>, Box<dyn Error>> {
    let (ring, work) = (Ring::new(place)?, WORK.place()?);
    let mut rows = Vec::new();
    let cases = [(1, 1), (1, 2), (1, 8), (1, 32), (8, 1), (32, 1)].map(|(blocks, warps)| (blocks, warps, MAX_BATCH));
    for (blocks, warps, max_batch) in cases.into_iter().chain([(1, 8, 512), (32, 1, 512)]) {
        let all = blocks * warps;
        let count = 8 * ENTRIES as u32 / 32;
        let handle = SendRingHandle { max_batch, ..ring.handle() };
        let state: Vec<u32> = efa_gpu_device::shared_state(&handle).collect();
        let (at, times) = (Place::Gpu.allocate(4 * state.len())?, Place::Host.allocate(16 * all as usize)?);
        let posted = all * count * 32;
        let mut each = Vec::new();
        for _ in 0..LAUNCHES {
            Place::Gpu.write(at, &state)?;
            place.write(ring.doorbell, &[0u32])?;
            let args = [Send(Plain(handle)), Address(at), work, Number(count), Address(times)];
            // One more block, which releases completed entries.
            gpu.run("post_shared", blocks + 1, 32 * warps, &args)?;
            let times: Vec<[u64; 2]> = Place::Host.read(times, all as usize)?;
            let start = times.iter().map(|&[start, _]| start).min().unwrap();
            let end = times.iter().map(|&[_, end]| end).max().unwrap();
            each.push((end - start) as f64 / f64::from(posted));
            ring.check_shared(posted)?;
        }
        let who = match (blocks, warps) {
            (1, 1) => "one warp".into(),
            (1, warps) => format!("{warps} warps of a block"),
            (blocks, _) => format!("{blocks} blocks of a warp"),
        };
        let batches = if max_batch == MAX_BATCH { String::new() } else { format!(", batches of {max_batch}") };
        let row = Row::new(place, format!("one queue shared by {who}{batches}"), median(each));
        rows.push(match (place, blocks, warps, max_batch) {
            (Place::Host, 1, 8, MAX_BATCH) => row.aim_rate(80.0),
            (Place::Host, 32, _, MAX_BATCH) => row.aim_rate(340.0),
            _ => row,
        });
    }
    Ok(rows)
}
