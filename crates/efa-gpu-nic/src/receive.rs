//! The receive ring: taking a receive from it, and whether a message fits.
//!
//! Several warps may want a receive of one queue pair. Each reads the descriptors at the consumer counter and then moves that on, if it is still where it
//! was: then nobody else has these descriptors, and what was read is what was posted, since nobody writes a slot again before its
//! receive is completed.

use crate::lookup::Tables;
use crate::tables::{QueuePair, Region};
use efa_gpu_device::mem;
use efa_io::rx::RxBuf;
use efa_io::{Doorbell, LocalBuf, RxDesc, Status};

/// A receive that was taken from its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receive {
    /// Counter of its first descriptor.
    pub(crate) at: u32,
    /// Descriptors.
    pub(crate) count: u32,
    pub(crate) req_id: u16,
}

/// What there was to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Receive(Receive),
    Nothing,
    /// The ring holds no proper descriptors.
    Malformed,
}

/// The descriptor that counter `at` of a queue pair's receive ring stands at.
#[inline(always)]
pub(crate) fn descriptor(qp: &QueuePair, at: u32) -> RxDesc {
    let ring = qp.recv_ring as *const u64;
    // SAFETY: a slot of the ring.
    RxDesc::from_words(unsafe { mem::load_pair_system(ring.add((at & qp.recv_mask) as usize * 2)) })
}

/// The receive whose descriptors begin at `at`, of `rung` that were rung for.
#[inline(always)]
fn read(qp: &QueuePair, at: u32, rung: u32) -> Option<Receive> {
    if rung > qp.recv_mask + 1 {
        return None;
    }
    let (mut count, mut id) = (0, 0);
    while count < rung {
        let RxBuf { req_id, first, last, .. } = descriptor(qp, at.wrapping_add(count)).decode().ok()?;
        if first != (count == 0) {
            return None;
        }
        id = if first { req_id } else { id };
        count += 1;
        if last {
            return Some(Receive { at, count, req_id: id });
        }
    }
    None
}

impl Tables<'_> {
    /// Takes the next receive of queue pair `index`, which is `qp`.
    #[inline(always)]
    pub(crate) fn take_receive(self, index: u32, qp: &QueuePair) -> Taken {
        // SAFETY: a word of the row, only accessed atomically.
        let consumer = unsafe { &raw mut (*self.progress(index)).recv_consumer };
        loop {
            // SAFETY: as above, and the ring's doorbell. The consumer is loaded first: what was rung can only be more than thought.
            let (at, doorbell) = unsafe {
                (mem::load_acquire_system_u32(consumer), mem::load_acquire_system_u32(qp.recv_doorbell as *const u32))
            };
            let rung = Doorbell::new(doorbell).entries_since(Doorbell::new(at));
            if rung == 0 {
                return Taken::Nothing;
            }
            let receive = read(qp, at, rung);
            let next = at.wrapping_add(receive.map_or(0, |receive| receive.count));
            // SAFETY: as above.
            if unsafe { mem::compare_exchange_device(consumer, at, next) } == at {
                return receive.map_or(Taken::Malformed, Taken::Receive);
            }
        }
    }

    /// Gives up what is in the receive ring of queue pair `index`, which is `qp`.
    #[inline(always)]
    pub(crate) fn drop_receives(self, index: u32, qp: &QueuePair) {
        // SAFETY: a word of the row, only accessed atomically, and the ring's doorbell.
        unsafe {
            let consumer = &raw mut (*self.progress(index)).recv_consumer;
            let at = mem::load_acquire_system_u32(consumer);
            let doorbell = mem::load_acquire_system_u32(qp.recv_doorbell as *const u32);
            let rung = Doorbell::new(doorbell).entries_since(Doorbell::new(at));
            mem::compare_exchange_device(consumer, at, at.wrapping_add(rung));
        }
    }

    /// Whether `total` bytes go into a receive of `qp`; otherwise what the receiver's completion says.
    #[inline(always)]
    pub(crate) fn fits(self, qp: &QueuePair, receive: Receive, total: u32) -> Result<(), Status> {
        let (mut left, mut i) = (total, 0);
        while left != 0 && i < receive.count {
            let buf = buffer(qp, receive.at.wrapping_add(i));
            // A buffer of no bytes is not looked at.
            if buf.length != 0 {
                if !self.allows_local(qp.pd, buf, Region::LOCAL_WRITE) {
                    return Err(Status::InvalidLkey);
                }
                left -= left.min(buf.length);
            }
            i += 1;
        }
        if left == 0 { Ok(()) } else { Err(Status::BadLength) }
    }
}

/// The buffer that a descriptor describes, which was read before.
#[inline(always)]
pub(crate) fn buffer(qp: &QueuePair, at: u32) -> LocalBuf {
    match descriptor(qp, at).decode() {
        Ok(RxBuf { addr, lkey, length, .. }) => LocalBuf { addr, lkey, length: length.into() },
        Err(_) => LocalBuf::default(),
    }
}

/// What the sender is told if this is what the receiver's completion says.
#[inline(always)]
pub(crate) fn told(received: Status) -> Status {
    match received {
        Status::Ok => Status::Ok,
        Status::BadLength => Status::RemoteBadLength,
        _ => Status::RemoteBadStatus,
    }
}
