//! The time for polling a full completion ring.

use crate::gpu::Arg::{Address, Completions, Number};
use crate::gpu::{Gpu, Place, Plain};
use crate::{Row, median};
use efa_io::*;
use std::error::Error;

/// The number of completion entries. Kernels poll the whole ring once.
const CQES: usize = 32768;
/// The number of launches of each case.
const LAUNCHES: usize = 9;

/// Measures polling by a thread and by a warp, and by the vendor's library.
pub(crate) fn all(gpu: &Gpu, place: Place) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut rows = Vec::new();
    for (who, threads) in [("thread", 1), ("warp", 32)] {
        let row = Row::new(place, format!("polled by a {who}"), polls(gpu, place, &format!("poll_{who}"), threads)?);
        let ours = row.ns;
        rows.push(row);
        if gpu.has_vendor() {
            let ns = polls(gpu, place, &format!("dp_poll_{who}"), threads)?;
            rows.push(Row { ours: Some(ours), ..Row::new(place, format!("polled by a {who}, efa-dp-direct"), ns) });
        }
    }
    let many = Row::new(place, "polled by a warp, 256 at a time", polls(gpu, place, "poll_warp_many", 32)?);
    rows.push(if place == Place::Gpu { many.aim_rate(200.0) } else { many });
    Ok(rows)
}

/// Measures the nanoseconds for a completion.
fn polls(gpu: &Gpu, place: Place, kernel: &str, threads: u32) -> Result<f64, Box<dyn Error>> {
    let size = RingSize::new(CQES as u32)?;
    let entry = |i: u32| {
        let (status, event) = (Status::Ok, Event::Send { op: OpCode::RdmaWrite });
        let entry = Completion { req_id: u64::from(i & 0xffff), status, qpn: 5, phase: size.cq_phase(i), event };
        entry.encode::<4>().map(|cqe| *cqe.words())
    };
    let entries = (0..CQES as u32).map(entry).collect::<Result<Vec<_>, _>>()?;
    let (ring, handle, elapsed) = (place.allocate(CQES * 32)?, Place::Host.allocate(64)?, Place::Host.allocate(8)?);
    place.write(ring, &entries)?;
    let (mask, shift) = (CQES as u32 - 1, CQES.ilog2() as u16);
    let queue = CompletionRingHandle { ring, doorbell: 0, mask, shift, cqe_size: 32, consumer: 0, tag: 1 };
    Place::Host.write(handle, &[queue])?;
    let first = if kernel.starts_with("dp_") { Address(handle) } else { Completions(Plain(queue)) };
    let mut times = Vec::new();
    for _ in 0..LAUNCHES {
        Place::Host.write(elapsed, &[0u64])?;
        gpu.run(kernel, 1, threads, &[first, Number(CQES as u32), Address(elapsed)])?;
        let elapsed: Vec<u64> = Place::Host.read(elapsed, 1)?;
        assert_ne!(elapsed[0], 0, "a completion is missing, or no good");
        times.push(elapsed[0] as f64 / CQES as f64);
    }
    Ok(median(times))
}
