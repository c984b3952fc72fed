//! The warp's loop: it polls doorbells, takes WQEs, executes them and completes them.

use crate::complete::{Entry, has};
use crate::lookup::Lookup;
use crate::receive::{Descs, Receive, Taken, sender_status};
use crate::request::{decode, phase_and_id};
use crate::tables::{Control, Progress, QueuePair, Tables};
use crate::transfer::Transfer;
use efa_gpu_device::warp::{self, ALL, LANES, Warp};
use efa_gpu_device::{Deadline, mem, thread};
use efa_io::cqe::Received;
use efa_io::{Destination, Doorbell, Event, FlatRequest, LocalBuf, OpCode, RemoteBuf, Status};

/// Polls without result after which a warp sleeps between two polls.
const PATIENCE: u32 = 64;
/// Length of that sleep in nanoseconds.
const NAP: u32 = 200;
/// Rounds between two looks at the stop word, which may be in the host's memory.
const STOP_EVERY: u32 = 16;

/// Runs the NIC until the host stops it. A warp returns earlier if its queue pairs had nothing to do for
/// [`Tables::idle_timeout_ns`]. All threads of the grid call this. With a `seed` other than zero the NIC executes and
/// completes requests in another order than they were posted in.
///
/// # Safety
/// `tables` and all that it names is as [`tables`](crate::tables) describes it, and stays so until the launch is over;
/// nobody else writes the NIC's rows, except for a queue pair's state. Blocks consist of whole warps. The memory of
/// every region is reachable by this GPU. Programs may write anything into rings and doorbells, at any time.
#[inline(always)]
pub unsafe fn run(tables: *const Tables, seed: u64) {
    // SAFETY: the caller's promise.
    let (tables, warp) = unsafe { (&*tables, Warp::whole()) };
    // SAFETY: the caller's promise.
    let lookup = unsafe { Lookup::new(tables) };
    #[cfg(not(target_arch = "nvptx64"))]
    // SAFETY: the caller's promise.
    unsafe {
        lookup.lend();
    }
    let nic = Nic { lookup, warp, seed };
    let me = thread::index_1d() / LANES;
    let warps = thread::grid_dim_x() * thread::block_dim_x() / LANES;
    let control = tables.control as *mut Control;
    let (mut round, mut quiet) = (0u32, 0u32);
    let mut deadline = Deadline::after(tables.idle_timeout_ns);
    if me >= tables.queue_pair_count {
        return;
    }
    loop {
        let (mut index, mut busy) = (me, false);
        while let Some(qp) = lookup.queue_pair(index) {
            busy |= nic.serve(index, qp, round & 1 != 0);
            index += warps;
        }
        // SAFETY: the control words, which `run`'s caller keeps valid, and which are only accessed atomically. All
        // lanes come here together, since every condition above is the same for all lanes.
        unsafe {
            if round.is_multiple_of(STOP_EVERY)
                && nic.uniform(|| mem::load_acquire_system_u32(&raw const (*control).stop)) != 0
            {
                return;
            }
            if !busy && quiet > PATIENCE && warp::warp_vote_ballot(ALL, deadline.passed()) != 0 {
                mem::store_relaxed_system_u32(&raw mut (*control).timed_out, 1);
                return;
            }
        }
        round = round.wrapping_add(1);
        if busy {
            quiet = 0;
        } else if quiet <= PATIENCE {
            if quiet == 0 {
                deadline = Deadline::after(tables.idle_timeout_ns);
            }
            quiet += 1;
        } else {
            thread::nanosleep(NAP);
        }
    }
}

/// The NIC as a warp sees it.
#[derive(Clone, Copy)]
struct Nic<'a> {
    lookup: Lookup<'a>,
    warp: Warp,
    seed: u64,
}

/// WQEs that the lanes of a warp take, one each.
#[derive(Clone, Copy)]
struct Batch {
    /// `true` for parked WQEs, `false` for those at the ring's consumer counter.
    parked: bool,
    /// Counter of the first, and how many.
    at: u32,
    count: u32,
    /// WQEs taken earlier that have not completed.
    outstanding: u32,
}

/// A placeholder for a lane without a request.
const NOTHING: FlatRequest = {
    let buf = LocalBuf::from_words([0, 0]);
    FlatRequest {
        dest: Destination { ah: 0, qpn: 0, qkey: 0 },
        op: OpCode::Send,
        imm: None,
        inline: false,
        bufs: 0,
        first: buf,
        second: buf,
        remote: RemoteBuf::from_words([0, 0]),
    }
};

/// The outcome of a lane's request.
struct Outcome {
    /// `None` as long as there is no receive for it.
    status: Option<Status>,
    transfer: Transfer,
    receive: Option<Entry>,
}

impl Nic<'_> {
    /// Returns what lane 0 sees, in all lanes: a condition that the warp's path depends on must be the same for all
    /// lanes.
    #[inline(always)]
    fn uniform(self, look: impl FnOnce() -> u32) -> u32 {
        let seen = if warp::lane_id() == 0 { look() } else { 0 };
        // SAFETY: all lanes of a whole warp come here together, which `run`'s caller sees to. What lane 0 has acquired,
        // the others see behind the barrier.
        unsafe {
            warp::sync_warp(ALL);
            warp::warp_shuffle_idx(ALL, seen, 0)
        }
    }

    /// Serves queue pair `index` once: up to 32 WQEs. Returns `true` if there was anything to do. Parked requests are
    /// tried when it is `their_turn`, or when there is nothing else.
    #[inline(always)]
    fn serve(self, index: u32, qp: &QueuePair, their_turn: bool) -> bool {
        let progress = self.lookup.progress(index);
        // SAFETY: words of the row and the doorbell, which `run`'s caller keeps valid, and which are only accessed
        // atomically. Only this warp stores the three counters: lane 0 does, after all lanes have loaded them here and
        // met.
        let (consumer, head, tail, doorbell, ready) = unsafe {
            (
                mem::load_relaxed_device(&raw const (*progress).send_consumer),
                mem::load_relaxed_device(&raw const (*progress).parked_head),
                mem::load_relaxed_device(&raw const (*progress).parked_tail),
                self.uniform(|| mem::load_acquire_system_u32(qp.send_doorbell as *const u32)),
                self.uniform(|| self.lookup.is_ready(index).into()) != 0,
            )
        };
        let next = qp.send_at(consumer);
        let rung = next.until(Doorbell::new(doorbell));
        let outstanding = tail.wrapping_sub(head);
        if rung == 0 && outstanding == 0 && ready {
            return false;
        }
        if rung > next.size().entries() {
            // The doorbell is invalid, and so is whatever the ring holds.
            self.lookup.fail(index);
            self.advance(progress, next.ahead(rung).counter(), head, tail);
            return true;
        }
        let parked = outstanding != 0 && (rung == 0 || their_turn);
        let (at, there) = if parked { (head, outstanding) } else { (consumer, rung) };
        let count = there.min(LANES);
        let batch = Batch { parked, at, count, outstanding };
        let (waiting, anything) = self.work(index, qp, batch, ready, tail);
        let (taken, retried) = if parked { (0, count) } else { (count, 0) };
        let (consumer, head) = (consumer.wrapping_add(taken), head.wrapping_add(retried));
        self.advance(progress, consumer, head, tail.wrapping_add(waiting));
        anything || taken != 0
    }

    /// Stores the counters of a queue pair.
    #[inline(always)]
    fn advance(self, progress: *mut Progress, consumer: u32, head: u32, tail: u32) {
        // SAFETY: words of the row, which `run`'s caller keeps valid; they are only accessed atomically, and stored by
        // this warp alone. All lanes of a whole warp come here together.
        unsafe {
            if warp::lane_id() == 0 {
                mem::store_relaxed_system_u32(&raw mut (*progress).send_consumer, consumer);
                mem::store_relaxed_system_u32(&raw mut (*progress).parked_head, head);
                mem::store_relaxed_system_u32(&raw mut (*progress).parked_tail, tail);
            }
            warp::sync_warp(ALL);
        }
    }

    /// Takes a batch of WQEs, executes and completes them; in the error state flushes them, and receives with them.
    /// Returns how many were parked from `tail` on, and `true` if anything completed.
    #[inline(always)]
    fn work(self, index: u32, qp: &QueuePair, batch: Batch, ready: bool, tail: u32) -> (u32, bool) {
        let lane = warp::lane_id();
        let active = lane < batch.count;
        let number = if batch.parked { lane } else { shuffled(lane, batch.count, self.seed, qp.qpn ^ batch.at) };
        let (ring, first) =
            if batch.parked { (qp.parked, qp.parked_at(batch.at)) } else { (qp.send_ring, qp.send_at(batch.at)) };
        let at = first.ahead(number);
        let entry = ring + u64::from(at.slot()) * u64::from(qp.wqe_size);
        let words = if active { load(entry) } else { [0; 8] };

        let (phase, req_id) = phase_and_id(words);
        let ids = if qp.req_id_64 != 0 { u64::MAX } else { 0xffff };
        let right_lap = phase == at.phase();
        // More WQEs without completion than the ring holds: some of them are overwritten.
        let room = batch.outstanding + number <= qp.send_mask;
        let (fine, request) = match decode(words, qp.wqe_size == 128, entry) {
            Some(request) => (active && (batch.parked || right_lap && req_id <= ids && room), request),
            None => (false, NOTHING),
        };
        // SAFETY: all lanes of a whole warp come here together, which `run`'s caller sees to.
        let [all, fine] = unsafe { [warp::warp_vote_ballot(ALL, active), warp::warp_vote_ballot(ALL, fine)] };
        let mut good = if ready { batch.count } else { 0 };
        let mut first_bad = u32::MAX;
        if fine != all && ready {
            first_bad = self.least(all & !fine, number);
            good = first_bad;
            self.lookup.fail(index);
        }

        let executed = has(all) && number < good;
        let Outcome { status, transfer, receive } = if executed {
            self.execute(qp, &request)
        } else {
            let receive = if ready { None } else { self.flush_receive(index, qp) };
            let status = Some(if number == first_bad { Status::QpInternal } else { Status::Flushed });
            Outcome { status, transfer: Transfer::NONE, receive }
        };
        // SAFETY: `execute` has checked the memory that the requests name against the regions, which `run`'s caller
        // keeps reachable. All lanes come here together.
        unsafe { transfer.run(self.warp) };

        // SAFETY: all lanes of a whole warp come here together, which `run`'s caller sees to.
        let [ended, receives] =
            unsafe { [warp::warp_vote_ballot(ALL, status.is_some()), warp::warp_vote_ballot(ALL, receive.is_some())] };
        let (sends, waiting) = (all & ended, all & !ended);
        if has(waiting) {
            let before = (waiting & ((1u32 << lane) - 1)).count_ones();
            let place = qp.parked_at(tail.wrapping_add(before)).slot();
            let place = u64::from(place) * u64::from(qp.wqe_size);
            park(words, entry, qp.parked + place, qp.wqe_size);
        }
        let op = if has(fine) { request.op } else { OpCode::Send };
        let status = status.unwrap_or(Status::Ok);
        let send = Entry::new(qp.send_cq, req_id & ids, status, qp.qpn as u16, Event::Send { op });
        self.lookup.complete(self.warp, receives, receive.unwrap_or(Entry::NONE), sends, send);
        (waiting.count_ones(), receives | sends != 0)
    }

    /// Returns the least `value` of these lanes.
    #[inline(always)]
    fn least(self, mut lanes: u32, value: u32) -> u32 {
        let mut least = u32::MAX;
        while lanes != 0 {
            // SAFETY: all lanes of a whole warp come here together: `lanes` is the same for them.
            least = least.min(unsafe { warp::warp_shuffle_idx(ALL, value, lanes.trailing_zeros()) });
            lanes &= lanes - 1;
        }
        least
    }

    /// Executes a request, except for moving its bytes.
    #[inline(always)]
    fn execute(self, qp: &QueuePair, request: &FlatRequest) -> Outcome {
        let lookup = self.lookup;
        let ended = |status| Outcome { status, transfer: Transfer::NONE, receive: None };
        let checked =
            lookup.check_at_sender(qp, request).and_then(|device| lookup.check_at_receiver(qp, request, device));
        let (index, target) = match checked {
            Ok(target) => target,
            Err(status) => return ended(Some(status)),
        };
        let is_send = request.op == OpCode::Send;
        if !is_send && request.imm.is_none() {
            return Outcome { status: Some(Status::Ok), transfer: Transfer::new(request, None), receive: None };
        }
        let unsolicited = !is_send && target.flags & QueuePair::UNSOLICITED_WRITE_RECV != 0;
        let taken = if unsolicited {
            Taken::Receive(Receive { descs: Descs::NONE, req_id: 0 })
        } else {
            lookup.take_receive(index, target, qp)
        };
        let receive = match taken {
            Taken::Receive(receive) => receive,
            Taken::Nothing => return ended(None),
            Taken::Malformed => {
                lookup.fail(index);
                return ended(Some(Status::RemoteBadDestQpn));
            }
        };
        let length = request.first.length + request.second.length;
        let fits = if is_send { lookup.fits(target, receive, length) } else { Ok(()) };
        let transfer = match fits {
            Ok(()) => Transfer::new(request, Some(receive)),
            Err(_) => Transfer::NONE,
        };
        let status = fits.err().unwrap_or(Status::Ok);
        let received = Received {
            op: request.op,
            length,
            ah: lookup.ah_for(target.pd, qp.device),
            src_qpn: qp.qpn as u16,
            imm: request.imm,
            unsolicited,
            src_gid: None,
        };
        let receive = Some(entry_of(target, receive.req_id, status, received));
        Outcome { status: Some(sender_status(status)), transfer, receive }
    }

    /// Takes a receive of a queue pair in the error state, to flush it.
    #[inline(always)]
    fn flush_receive(self, index: u32, qp: &QueuePair) -> Option<Entry> {
        match self.lookup.take_receive(index, qp, qp) {
            Taken::Receive(receive) => {
                let (op, length, ah, src_qpn, imm) = (OpCode::Send, 0, None, 0, None);
                let received = Received { op, length, ah, src_qpn, imm, unsolicited: false, src_gid: None };
                Some(entry_of(qp, receive.req_id, Status::Flushed, received))
            }
            Taken::Nothing => None,
            Taken::Malformed => {
                self.lookup.drop_receives(index, qp);
                None
            }
        }
    }
}

/// Makes the completion of a receive.
#[inline(always)]
fn entry_of(qp: &QueuePair, req_id: u16, status: Status, received: Received) -> Entry {
    Entry::new(qp.recv_cq, req_id.into(), status, qp.qpn as u16, Event::Receive(received))
}

/// Loads the first 64 bytes of the WQE at `entry`.
#[inline(always)]
fn load(entry: u64) -> [u64; 8] {
    let from = entry as *const u64;
    // SAFETY: an entry of a ring, of 64 bytes or more; `run`'s caller keeps rings valid. Entries are only accessed
    // atomically.
    let pair = |at| unsafe { mem::load_pair_system(from.add(at)) };
    let ([a, b], [c, d], [e, f], [g, h]) = (pair(0), pair(2), pair(4), pair(6));
    [a, b, c, d, e, f, g, h]
}

/// Parks a WQE of `size` bytes: copies it from `entry` to `place`. It began with `words` when it was read; the rest of
/// it is inline bytes.
#[inline(always)]
fn park(words: [u64; 8], entry: u64, place: u64, size: u32) {
    let (from, to) = (entry as *const u64, place as *mut u64);
    // SAFETY: entries of the send ring and the parked ring, of `size` bytes, 64 at least; `run`'s caller keeps both
    // valid.
    unsafe {
        mem::store_pair(to, [words[0], words[1]]);
        mem::store_pair(to.add(2), [words[2], words[3]]);
        mem::store_pair(to.add(4), [words[4], words[5]]);
        mem::store_pair(to.add(6), [words[6], words[7]]);
    }
    let mut word = 8;
    while word < size as usize / 8 {
        // SAFETY: as above.
        unsafe { mem::store_pair(to.add(word), mem::load_pair_system(from.add(word))) };
        word += 2;
    }
}

/// Returns the number of the request that lane `lane` takes, of a batch's `count`: each is taken once. Without a seed
/// they are taken in order.
#[inline(always)]
fn shuffled(lane: u32, count: u32, seed: u64, salt: u32) -> u32 {
    if seed == 0 || lane >= count {
        return lane;
    }
    let mut mixed = (seed ^ u64::from(salt)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    // Steps of a prime over 32 meet every number once, for every count.
    const PRIMES: u64 = 37 | 41 << 8 | 43 << 16 | 47 << 24 | 53 << 32 | 59 << 40 | 61 << 48 | 67 << 56;
    let step = (PRIMES >> (mixed >> 61 << 3)) as u32 & 0xff;
    (lane * step + (mixed >> 32 & 0xff) as u32) % count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_of_a_batch_is_taken_once_in_every_order() {
        let mut orders = std::collections::HashSet::new();
        for count in 1..=32 {
            for seed in 0..200 {
                let taken: Vec<_> = (0..count).map(|lane| shuffled(lane, count, seed, 5)).collect();
                let mut sorted = taken.clone();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..count));
                assert!(seed != 0 || taken.is_sorted());
                orders.insert(taken);
            }
        }
        assert!(orders.len() > 1000);
    }
}
