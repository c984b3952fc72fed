//! What posting and polling cost a GPU, by who does it.
//!
//! Rings lie in pinned host memory, where a NIC's would be behind the same PCIe link, or in the GPU's own; nothing is behind them. Each kernel times itself
//! by the GPU's clock; a figure is the median of several launches. After each launch the ring's bytes are decoded on the host and compared with what
//! should be there. The floor is the same without the fence in front of the doorbell, which no NIC could do with.
//!
//! ```text
//! gpu KERNELS.ptx [RESULTS.json]
//! ```

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg, result};
use cudarc::nvrtc::Ptx;
use efa_io::*;
use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;

/// Entries of a send ring.
const ENTRIES: usize = 4096;
/// Launches of each case.
const LAUNCHES: usize = 9;
/// Queues at most: a warp on each multiprocessor.
const QUEUES: usize = 132;
/// Completion entries: kernels poll one lap.
const CQES: usize = 32768;

/// Memory that kernels and this process reach under one address, or kernels alone.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Host,
    Gpu,
}

impl Place {
    /// Zeroed memory, never freed.
    fn allocate(self, bytes: usize) -> Result<u64, Box<dyn Error>> {
        // SAFETY: the memory is zeroed before anyone looks, and lives as long as the process.
        unsafe {
            match self {
                // Portable, mapped.
                Self::Host => {
                    let memory = result::malloc_host(bytes, 3)?;
                    std::ptr::write_bytes(memory.cast::<u8>(), 0, bytes);
                    Ok(memory as u64)
                }
                Self::Gpu => {
                    let memory = result::malloc_sync(bytes)?;
                    result::memset_d8_sync(memory, 0, bytes)?;
                    Ok(memory)
                }
            }
        }
    }

    fn write<T: bytemuck::Pod>(self, to: u64, values: &[T]) -> Result<(), Box<dyn Error>> {
        // SAFETY: `to` is such memory, with room for the values, and no kernel runs.
        unsafe {
            match self {
                Self::Host => std::ptr::copy_nonoverlapping(values.as_ptr(), to as *mut T, values.len()),
                Self::Gpu => result::memcpy_htod_sync(to, values)?,
            }
        }
        Ok(())
    }

    fn read<T: bytemuck::Pod>(self, from: u64, len: usize) -> Result<Vec<T>, Box<dyn Error>> {
        let mut values = vec![T::zeroed(); len];
        // SAFETY: `from` is such memory, with as many values, and no kernel runs.
        unsafe {
            match self {
                Self::Host => std::ptr::copy_nonoverlapping(from as *const T, values.as_mut_ptr(), len),
                Self::Gpu => result::memcpy_dtoh_sync(&mut values, from)?,
            }
        }
        Ok(values)
    }
}

/// `Work` of the kernels.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Work {
    ah: u32,
    qpn: u32,
    qkey: u32,
    lkey: u32,
    rkey: u32,
    length: u32,
    local: u64,
    remote: u64,
}

const WORK: Work =
    Work { ah: 3, qpn: 17, qkey: 0x1234, lkey: 0x42, rkey: 0x99, length: 4096, local: 1 << 40, remote: 1 << 41 };

struct Rig {
    stream: Arc<CudaStream>,
    kernels: [CudaFunction; 4],
    work: u64,
    elapsed: u64,
    handles: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo adds an argument of its own.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(ptx) = args.next() else {
        println!("gpu: nothing to run: the first argument is the kernels' PTX");
        return Ok(());
    };
    let context = CudaContext::new(0)?;
    let module = context.load_module(Ptx::from_src(std::fs::read_to_string(ptx)?))?;
    let names = ["post_thread", "post_warp", "poll_thread", "poll_warp"];
    let [a, b, c, d] = names.map(|name| module.load_function(name));
    let rig = Rig {
        stream: context.default_stream(),
        kernels: [a?, b?, c?, d?],
        work: Place::Host.allocate(size_of::<Work>())?,
        elapsed: Place::Host.allocate(8 * QUEUES)?,
        handles: Place::Host.allocate(64 * QUEUES)?,
    };
    Place::Host.write(rig.work, &[WORK])?;

    let mut rows = Vec::new();
    for place in [Place::Host, Place::Gpu] {
        for (batch, unfenced) in [(1, 0), (16, 0), (32, 0), (1, 1), (32, 1)] {
            rows.push(rig.posts(place, Poster::Thread { batch, unfenced })?);
        }
        for (rounds, queues) in [(1, 1), (2, 1), (4, 1), (8, 1), (4, 16), (4, QUEUES)] {
            rows.push(rig.posts(place, Poster::Warp { rounds, queues })?);
        }
        for warp in [false, true] {
            rows.push(rig.polls(place, warp)?);
        }
    }
    println!("{}", context.name()?);
    println!("{:52} {:>10} {:>10}", "", "ns each", "M/s");
    for (name, ns) in &rows {
        println!("{name:52} {ns:10.2} {:10.1}", 1e3 / ns);
    }
    if let Some(path) = args.next() {
        let mut json = format!("{{\n  \"device\": {:?},\n  \"ns\": {{\n", context.name()?);
        for (i, (name, ns)) in rows.iter().enumerate() {
            let comma = if i + 1 < rows.len() { "," } else { "" };
            writeln!(json, "    {name:?}: {ns:.2}{comma}")?;
        }
        std::fs::write(path, json + "  }\n}\n")?;
    }
    Ok(())
}

/// Who posts.
#[derive(Clone, Copy)]
enum Poster {
    /// One thread, so many WQEs to a doorbell, with a fence before that or not.
    Thread { batch: u32, unfenced: u32 },
    /// Warps, each with a queue of its own, so many times 32 WQEs to a doorbell.
    Warp { rounds: u32, queues: usize },
}

impl Place {
    fn name(self) -> &'static str {
        if self == Self::Host { "host memory" } else { "GPU memory" }
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

impl Rig {
    /// Nanoseconds for a WQE, over all queues.
    fn posts(&self, place: Place, poster: Poster) -> Result<(String, f64), Box<dyn Error>> {
        let (queues, count) = match poster {
            Poster::Thread { .. } => (1, 4 * ENTRIES as u32),
            Poster::Warp { queues, .. } => (queues, 16 * ENTRIES as u32 / 32),
        };
        let rings = (0..queues).map(|_| Ok((place.allocate(ENTRIES * 64)?, place.allocate(4096)?)));
        let rings = rings.collect::<Result<Vec<_>, Box<dyn Error>>>()?;
        let mut times = Vec::new();
        for _ in 0..LAUNCHES {
            let handles: Vec<_> = rings
                .iter()
                .map(|&(ring, doorbell)| SendRingHandle {
                    ring,
                    doorbell,
                    mask: ENTRIES as u32 - 1,
                    shift: ENTRIES.ilog2(),
                    wqe_size: 64,
                    max_batch: 512,
                    producer: 0,
                    credits: ENTRIES as u32,
                    qpn: 5,
                    req_id_64: 0,
                    limits: Limits::of_queue(8192, 1 << 30),
                })
                .collect();
            Place::Host.write(self.handles, &handles)?;
            Place::Host.write(self.elapsed, &[0u64; QUEUES])?;
            let [thread, warp, ..] = &self.kernels;
            let mut launch =
                self.stream.launch_builder(if matches!(poster, Poster::Thread { .. }) { thread } else { warp });
            launch.arg(&self.handles).arg(&self.work).arg(&count);
            let mut config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
            match &poster {
                Poster::Thread { batch, unfenced } => {
                    launch.arg(batch).arg(unfenced);
                }
                Poster::Warp { rounds, queues } => {
                    launch.arg(rounds);
                    (config.grid_dim.0, config.block_dim.0) = (*queues as u32, 32);
                }
            }
            launch.arg(&self.elapsed);
            // SAFETY: the kernel takes these arguments, and what they point to is there.
            unsafe { launch.launch(config)? };
            self.stream.synchronize()?;
            let elapsed: Vec<u64> = Place::Host.read(self.elapsed, queues)?;
            assert!(elapsed.iter().all(|&ns| ns != 0), "a request was refused");
            let each = if matches!(poster, Poster::Thread { .. }) { count } else { count * 32 };
            times.push(*elapsed.iter().max().unwrap() as f64 / f64::from(each) / queues as f64);
            for &(ring, doorbell) in &rings {
                self.check(place, ring, doorbell, each)?;
            }
        }
        let name = match poster {
            Poster::Thread { batch, unfenced: 0 } => format!("one thread, {batch} per doorbell"),
            Poster::Thread { batch, .. } => format!("one thread, {batch} per doorbell, no fence (floor)"),
            Poster::Warp { rounds, queues: 1 } => format!("one warp, {} per doorbell", rounds * 32),
            Poster::Warp { rounds, queues } => format!("{queues} warps and queues, {} per doorbell", rounds * 32),
        };
        Ok((format!("{}: {name}", place.name()), median(times)))
    }

    /// The last lap of a ring is what was posted last.
    fn check(&self, place: Place, ring: u64, doorbell: u64, posted: u32) -> Result<(), Box<dyn Error>> {
        let rung: Vec<u32> = place.read(doorbell, 1)?;
        assert_eq!(rung[0], posted, "the doorbell");
        let words: Vec<[u64; 8]> = place.read(ring, ENTRIES)?;
        let size = RingSize::new(ENTRIES as u32)?;
        for number in posted - ENTRIES as u32..posted {
            let wqe = Wqe64::from_words(words[size.slot(number) as usize]);
            let at = u64::from(number) * 64;
            let local = LocalBuf { addr: WORK.local + at, lkey: Lkey::new(WORK.lkey)?, length: WORK.length };
            let remote = RemoteBuf { addr: WORK.remote + at, rkey: WORK.rkey };
            let to = Destination { ah: WORK.ah as u16, qpn: WORK.qpn as u16, qkey: WORK.qkey };
            let expected: Wqe64 = RdmaWrite::new(local, remote).encode(&Limits::of_queue(8192, 1 << 30), to)?;
            let expected = expected.with_req_id(number as u16).with_phase(size.wq_phase(number));
            assert_eq!(wqe, expected, "WQE {number}");
        }
        Ok(())
    }

    /// Nanoseconds for a completion.
    fn polls(&self, place: Place, warp: bool) -> Result<(String, f64), Box<dyn Error>> {
        let size = RingSize::new(CQES as u32)?;
        let entry = |i: u32| {
            let (status, event) = (Status::Ok, Event::Send { op: OpCode::RdmaWrite });
            let entry = Completion { req_id: u64::from(i & 0xffff), status, qpn: 5, phase: size.cq_phase(i), event };
            entry.encode::<4>().map(|cqe| *cqe.words())
        };
        let entries = (0..CQES as u32).map(entry).collect::<Result<Vec<_>, _>>()?;
        let ring = place.allocate(CQES * 32)?;
        place.write(ring, &entries)?;
        let mut times = Vec::new();
        for _ in 0..LAUNCHES {
            let handle = CompletionRingHandle {
                ring,
                doorbell: 0,
                mask: CQES as u32 - 1,
                shift: CQES.ilog2(),
                cqe_size: 32,
                consumer: 0,
            };
            Place::Host.write(self.handles, &[handle])?;
            Place::Host.write(self.elapsed, &[0u64])?;
            let count = CQES as u32;
            let mut launch = self.stream.launch_builder(&self.kernels[2 + usize::from(warp)]);
            launch.arg(&self.handles).arg(&count).arg(&self.elapsed);
            let threads = if warp { 32 } else { 1 };
            let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
            // SAFETY: the kernel takes these arguments, and what they point to is there.
            unsafe { launch.launch(config)? };
            self.stream.synchronize()?;
            let elapsed: Vec<u64> = Place::Host.read(self.elapsed, 1)?;
            assert_ne!(elapsed[0], 0, "a completion is missing, or no good");
            times.push(elapsed[0] as f64 / CQES as f64);
        }
        let who = if warp { "a warp" } else { "a thread" };
        Ok((format!("{}: polled by {who}", place.name()), median(times)))
    }
}
