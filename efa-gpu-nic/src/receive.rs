//! The receive ring: takes a receive from it, and checks that a message fits.
//!
//! Several warps may want a receive of one queue pair. Each reads the descriptors at the consumer counter and then
//! moves the counter on by a compare-and-exchange. If that succeeds, nobody else has these descriptors.
//!
//! The ring is the program's memory, and a program may write there at any time. So a descriptor is read once, into the
//! NIC's own memory. That copy is checked and used.

use crate::lookup::Lookup;
use crate::tables::{MAX_RECV_BUFS, QueuePair, Region};
use efa_gpu_device::{mem, warp};
use efa_io::rx::RxBuf;
use efa_io::{Doorbell, LocalBuf, RxDesc, Status, WqCursor};

/// A receive that was taken from its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receive {
    /// Its descriptors.
    pub(crate) descs: Descs,
    pub(crate) req_id: u16,
}

/// The descriptors of a receive, one after the other in the NIC's own memory, as they were read from the ring. They
/// belong to this lane until it takes another receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descs {
    /// Where the next one is, and how many there are.
    at: u64,
    count: u32,
}

impl Descs {
    /// No descriptors.
    pub(crate) const NONE: Self = Self { at: 0, count: 0 };

    /// Takes the buffer of the next descriptor.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<LocalBuf> {
        if self.count == 0 {
            return None;
        }
        // SAFETY: one of the copies, which only this lane stores, and has stored (`read`); `run`'s caller keeps them
        // valid.
        let desc = RxDesc::from_words(unsafe { mem::load_pair_system(self.at as *const u64) });
        self.at += RxDesc::SIZE as u64;
        self.count -= 1;
        Some(match desc.decode() {
            Ok(RxBuf { addr, lkey, length, .. }) => LocalBuf { addr, lkey, length: length.into() },
            // `read` has decoded it.
            Err(_) => LocalBuf::default(),
        })
    }
}

/// The result of taking a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Receive(Receive),
    Nothing,
    /// The ring holds invalid descriptors.
    Malformed,
}

/// Reads the receive whose descriptors begin at `at`, of `rung` that were rung for: each descriptor once, with a copy
/// at `copies`. Returns `None` if the descriptors are invalid.
#[inline(always)]
fn read(qp: &QueuePair, at: WqCursor, rung: u32, copies: u64) -> Option<Receive> {
    if rung > at.size().entries() {
        return None;
    }
    let (ring, mut copy) = (qp.recv_ring as *const u64, copies as *mut u64);
    let (mut count, mut id) = (0, 0);
    while count < rung && count < MAX_RECV_BUFS {
        let slot = at.ahead(count).slot();
        // SAFETY: a slot of the ring, which `run`'s caller keeps valid; descriptors are only accessed atomically.
        let desc = RxDesc::from_words(unsafe { mem::load_pair_system(ring.add(slot as usize * 2)) });
        let RxBuf { req_id, first, last, .. } = desc.decode().ok()?;
        if first != (count == 0) {
            return None;
        }
        // SAFETY: this lane's place for copies has room for `MAX_RECV_BUFS`, which the builder has allocated.
        unsafe {
            mem::store_pair(copy, *desc.words());
            copy = copy.add(2);
        }
        id = if first { req_id } else { id };
        count += 1;
        if last {
            return Some(Receive { descs: Descs { at: copies, count }, req_id: id });
        }
    }
    None
}

impl Lookup<'_> {
    /// Takes the next receive of queue pair `index`, which is `qp`, for the warp that serves `server`. It replaces the
    /// receive that this lane took before.
    #[inline(always)]
    pub(crate) fn take_receive(self, index: u32, qp: &QueuePair, server: &QueuePair) -> Taken {
        let copies = server.taken + u64::from(warp::lane_id() * MAX_RECV_BUFS) * RxDesc::SIZE as u64;
        // SAFETY: a word of the row, which `run`'s caller keeps valid, and which is only accessed atomically.
        let consumer = unsafe { &raw mut (*self.progress(index)).recv_consumer };
        loop {
            // SAFETY: as above, and the ring's doorbell. The consumer is loaded first: the doorbell is then never
            // behind it, and `rung` is what the ring holds, or more.
            let (at, doorbell) = unsafe {
                (mem::load_acquire_system_u32(consumer), mem::load_acquire_system_u32(qp.recv_doorbell as *const u32))
            };
            let first = qp.recv_at(at);
            let rung = first.until(Doorbell::new(doorbell));
            if rung == 0 {
                return Taken::Nothing;
            }
            let receive = read(qp, first, rung, copies);
            let next = first.ahead(receive.map_or(0, |receive| receive.descs.count)).counter();
            // SAFETY: as above.
            if unsafe { mem::compare_exchange_device(consumer, at, next) } == at {
                return receive.map_or(Taken::Malformed, Taken::Receive);
            }
        }
    }

    /// Drops all receives in the ring of queue pair `index`, which is `qp`.
    #[inline(always)]
    pub(crate) fn drop_receives(self, index: u32, qp: &QueuePair) {
        // SAFETY: a word of the row and the ring's doorbell, which `run`'s caller keeps valid; both are only accessed
        // atomically.
        unsafe {
            let consumer = &raw mut (*self.progress(index)).recv_consumer;
            let at = mem::load_acquire_system_u32(consumer);
            let doorbell = mem::load_acquire_system_u32(qp.recv_doorbell as *const u32);
            let first = qp.recv_at(at);
            let rung = first.until(Doorbell::new(doorbell));
            mem::compare_exchange_device(consumer, at, first.ahead(rung).counter());
        }
    }

    /// Checks that `total` bytes fit a receive of `qp`.
    ///
    /// # Errors
    /// The status of the receiver's completion.
    #[inline(always)]
    pub(crate) fn fits(self, qp: &QueuePair, receive: Receive, total: u32) -> Result<(), Status> {
        let (mut left, mut descs) = (total, receive.descs);
        while left != 0
            && let Some(buf) = descs.next()
        {
            // The key of an empty buffer is not checked.
            if buf.length != 0 {
                if !self.allows_local(qp.pd, buf, Region::LOCAL_WRITE) {
                    return Err(Status::InvalidLkey);
                }
                left -= left.min(buf.length);
            }
        }
        if left == 0 { Ok(()) } else { Err(Status::BadLength) }
    }
}

/// Returns the status of the sender's completion, given that of the receiver's.
#[inline(always)]
pub(crate) fn sender_status(received: Status) -> Status {
    match received {
        Status::Ok => Status::Ok,
        Status::BadLength => Status::RemoteBadLength,
        _ => Status::RemoteBadStatus,
    }
}
