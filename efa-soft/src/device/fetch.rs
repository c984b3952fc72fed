//! From a doorbell to a message: which WQEs were posted, what they ask for, and whether the device may do it.
//!
//! A doorbell holds the number of WQEs posted since the queue pair was created or reset, modulo 2^16
//! ([`efa_io::Doorbell`]). So the device needs nothing but its own count of the WQEs that it fetched to know which are
//! new, and a doorbell that is missed costs nothing.

use super::Device;
use super::datagrams::{DATAGRAM_WINDOW, Datagram};
use super::event::DeviceEvent;
use crate::Time;
use crate::contain::log;
use crate::qp::QueuePair;
use crate::srd::{Memory, Message, Origin};
use crate::trace::Traced;
use crate::wire::{MessageHeader, WireOp};
use efa_io::op::Bufs;
use efa_io::{LocalBuf, Op, OpCode, RemoteBuf, SendRequest, Status};
use efa_types::{Access, Gid, QpState, Transport};

/// # Input from the program
impl Device {
    /// Looks at every doorbell, and does what was asked for since the last look. Returns `true` if there was anything
    /// to do.
    ///
    /// A program may ring several times between two looks. Hardware sees each of them; a look sees only the last, so it
    /// cannot notice a batch of more than `max_batch` WQEs. [`ring_send_doorbell`](Self::ring_send_doorbell) can.
    pub fn poll_doorbells(&mut self, now: Time) -> bool {
        self.objects.tracer.now = now;
        self.fetch_is_due = false;
        let mut progress = false;
        for i in 0..self.objects.live.len() {
            let Some(qp) = &self.objects.qps[self.objects.live[i]] else { continue };
            let (qpn, state, value) = (qp.qpn, qp.state, qp.sq.doorbell());
            // In Reset the rings belong to the program: it may be writing them anew.
            if qp.sq.rung(value) != 0 && state != QpState::Reset {
                progress |= self.fetch_wqes(now, qpn, value, u32::MAX);
            }
            if state == QpState::Error {
                self.flush_receives(qpn); // those that were posted since
            }
        }
        if self.fetch_is_due {
            self.objects.live.rotate_left(1); // on a slow device queue pairs take turns
        }
        let due = self.objects.cqs.iter_mut().filter_map(|(&cqn, cq)| cq.poll_doorbell(now).then_some(cqn));
        for cqn in due.collect::<Vec<_>>() {
            self.objects.tell(DeviceEvent::Completion(cqn));
        }
        progress
    }

    /// Stores `value` in the send doorbell of queue pair `qpn`, as a program does, and does what it asks for at once.
    pub fn ring_send_doorbell(&mut self, now: Time, qpn: u16, value: u32) {
        self.objects.tracer.now = now;
        if let Ok(qp) = self.objects.qp(qpn) {
            let max_batch = qp.sq.max_batch;
            qp.sq.store_doorbell(value);
            self.fetch_wqes(now, qpn, value, max_batch);
        }
    }
}

impl Device {
    /// Notes the value of a send doorbell. Returns the number of WQEs since the last value.
    pub(super) fn note_doorbell(&mut self, qpn: u16, doorbell: u32) -> u32 {
        let batch = self.objects.qp(qpn).map_or(0, |qp| qp.sq.note_doorbell(doorbell));
        if batch != 0 {
            self.objects.tracer.emit(|| Traced::Doorbell { qpn, value: doorbell, wqes: batch });
        }
        batch
    }

    /// Fetches the WQEs up to a doorbell. Returns `true` if there were any.
    fn fetch_wqes(&mut self, now: Time, qpn: u16, doorbell: u32, max_batch: u32) -> bool {
        let Ok(qp) = self.objects.qp(qpn) else { return false };
        let (rung, entries, state) = (qp.sq.rung(doorbell), qp.sq.entries(), qp.state);
        let batch = self.note_doorbell(qpn, doorbell);
        // Verbs allows no sends before ReadyToSend. And no more WQEs can have been posted than the ring has entries:
        // the program has overwritten some, or the doorbell is garbage.
        if rung > entries || !matches!(state, QpState::ReadyToSend | QpState::Error) {
            if state != QpState::Error && self.may_complain() {
                log!(warn, qpn, rung, ?state, "invalid doorbell: the queue pair goes to the error state");
            }
            self.fail_qp_with_event(qpn);
            return true;
        }
        if state == QpState::Error {
            return self.flush_sends(qpn, doorbell);
        }
        // libefa never posts more at once (`efa_sq_initialize`, `max_batch_wr`). What hardware does with such a batch
        // is not public; here its first WQE counts as malformed (assumed).
        let is_too_long = batch > max_batch;
        let mut progress = false;
        while let Ok(qp) = self.objects.qp(qpn)
            && qp.sq.rung(doorbell) != 0
        {
            // Enough of its datagrams wait already. The WQEs of the others wait in its ring, where they cost nothing.
            if qp.datagrams >= DATAGRAM_WINDOW {
                self.fetch_is_due = true;
                return progress;
            }
            if !self.faults.wqe_time.is_zero() && !is_too_long {
                if now < self.next_fetch_at {
                    self.fetch_is_due = true;
                    return progress;
                }
                self.next_fetch_at = now + self.faults.wqe_time;
            }
            progress = true;
            // A program that posts more than the ring holds without completions has overwritten some that were under
            // way.
            let is_overrun = qp.outstanding >= qp.sq.entries();
            let wqe = qp.take_wqe();
            match wqe.decode().filter(|_| !is_too_long && !is_overrun) {
                Some(request) => self.take_request(now, qpn, &request),
                None => {
                    // This also flushes the WQEs behind it.
                    self.fail_at_wqe(qpn, wqe.req_id());
                    return progress;
                }
            }
        }
        progress
    }

    /// Completes a malformed WQE with an error, and fails its queue pair: nothing behind it in the ring can be trusted.
    fn fail_at_wqe(&mut self, qpn: u16, req_id: u64) {
        if self.may_complain() {
            log!(warn, qpn, req_id, "malformed WQE: the queue pair goes to the error state");
        }
        let (op, status) = (OpCode::Send, Status::QpInternal);
        self.objects.tracer.emit(|| Traced::Wqe { qpn, req_id, op, bytes: 0, status });
        self.objects.complete_send(qpn, req_id, op, status);
        self.fail_qp_with_event(qpn);
    }

    /// Makes a message of what a WQE asks for, or completes the WQE with an error.
    fn take_request(&mut self, now: Time, qpn: u16, request: &SendRequest<'_>) {
        let (req_id, op, bytes) = (request.req_id, request.op.code(), request.op.total_bytes() as u32);
        let message = self.check_request(qpn, request);
        let status = message.as_ref().err().copied().unwrap_or(Status::Ok);
        self.objects.tracer.emit(|| Traced::Wqe { qpn, req_id, op, bytes, status });
        // The hardware's counters of work requests leave out those that fail here (assumed).
        let queued = message.and_then(|(dst, message)| {
            self.count_request(op, bytes.into());
            self.queue(now, qpn, dst, message)
        });
        if let Err(status) = queued {
            self.count_error(op);
            self.objects.complete_send(qpn, req_id, op, status);
        }
    }

    /// Queues a message for its destination.
    fn queue(&mut self, now: Time, qpn: u16, dst: Gid, message: Message) -> Result<(), Status> {
        if let Ok(qp) = self.objects.qp(qpn)
            && qp.transport == Transport::Ud
        {
            qp.datagrams += 1;
            self.datagrams.push(Datagram { dst, message });
            return Ok(());
        }
        // There is no status for too many peers, and no public source says how many a device has.
        let peer = self.peers.find_or_add(now, dst, &self.config, &mut self.rng).ok_or(Status::QpInternal)?;
        let state = &mut self.peers[peer];
        if state.is_idle() {
            state.heard_at = now; // its silence counts from here on
        }
        state.is_stranger = false;
        state.send_lanes.requests.push(message);
        self.peers.wake(peer);
        Ok(())
    }

    /// Checks all that the device checks before anything leaves it, and returns the destination and the message.
    ///
    /// The statuses of failed checks are those whose descriptions fit (`enum efa_io_comp_status` in the vendor's
    /// `efa_io_defs.h`). In which order hardware checks is not public.
    fn check_request(&mut self, qpn: u16, request: &SendRequest<'_>) -> Result<(Gid, Message), Status> {
        let limits = &self.config.attributes;
        let objects = &mut self.objects;
        let Ok(&mut QueuePair { pd, inline_bytes, inline_write, transport, rnr_retries, .. }) = objects.qp(qpn) else {
            return Err(Status::QpInternal);
        };
        let inline_bytes = usize::from(inline_bytes);
        let is_srd = transport == Transport::Srd;
        let (enabled, max) = match request.op.code() {
            OpCode::Send => (true, limits.mtu),
            OpCode::RdmaRead => (is_srd && limits.rdma_read, limits.max_rdma_bytes),
            OpCode::RdmaWrite => (is_srd && limits.rdma_write, limits.max_rdma_bytes),
        };
        // A send is one packet, on SRD as on UD: the kernel driver reports the MTU as the port's `max_msg_sz`
        // (`efa_query_port`).
        if !enabled {
            return Err(Status::UnsupportedOp);
        }
        if request.op.total_bytes() > max.into() {
            return Err(Status::BadLength);
        }
        let dest = request.dest;
        // A number that belongs to another domain is invalid like one that belongs to nobody: numbers are easy to
        // guess.
        let gid = objects.ah(dest.ah).filter(|ah| ah.pd == pd).map(|ah| ah.gid).ok_or(Status::InvalidAh)?;
        let bytes = request.op.total_bytes() as u32;
        let header = |op, remote: RemoteBuf| MessageHeader {
            op,
            src_qpn: qpn,
            dst_qpn: dest.qpn,
            qkey: dest.qkey,
            imm: request.op.imm(),
            bytes,
            rkey: remote.rkey,
            remote_addr: remote.addr,
            reply_to: 0,
            placed: false,
        };
        // The same check is made again for every packet. This one tells the program of a wrong key before anything has
        // left.
        let check = |buf: &LocalBuf, need| match objects.local(pd, buf, need) {
            Some(_) => Ok(()),
            None => Err(Status::InvalidLkey),
        };
        // Inline bytes are copied now: the program may reuse their place in the ring once the doorbell is read.
        let inline = |data: &[u8]| {
            if data.len() <= inline_bytes { Ok(Memory::Inline(data.into())) } else { Err(Status::BadLength) }
        };
        let (header, memory) = match request.op {
            Op::Send(send) => {
                send.bufs.as_slice().iter().try_for_each(|buf| check(buf, Access::LOCAL_READ))?;
                (header(WireOp::Send, RemoteBuf::default()), Memory::Gather { pd, bufs: send.bufs })
            }
            Op::SendInline(send) => (header(WireOp::Send, RemoteBuf::default()), inline(send.data)?),
            Op::RdmaWrite(write) => {
                check(&write.local, Access::LOCAL_READ)?;
                let bufs = Bufs::new(&[write.local]).map_err(|_| Status::QpInternal)?;
                (header(WireOp::Write, write.remote), Memory::Gather { pd, bufs })
            }
            Op::RdmaWriteInline(write) => {
                if !inline_write {
                    return Err(Status::UnsupportedOp);
                }
                (header(WireOp::Write, write.remote), inline(write.data)?)
            }
            Op::RdmaRead(read) => {
                check(&read.local, Access::LOCAL_WRITE)?;
                (header(WireOp::ReadRequest, read.remote), Memory::Scatter { pd, buf: read.local })
            }
        };
        let origin = Origin::Wqe { qpn, req_id: request.req_id, op: request.op.code() };
        Ok((gid, Message { header, origin, memory, ah: Some(dest.ah), rnr_retries, refusals: 0 }))
    }

    /// Counts a work request that passed the checks, under the kernel driver's names (`efa_verbs.c`).
    fn count_request(&mut self, op: OpCode, bytes: u64) {
        let c = &mut self.counters;
        let (wrs, total) = match op {
            OpCode::Send => (&mut c.send_wrs, &mut c.send_bytes),
            OpCode::RdmaRead => (&mut c.rdma_read_wrs, &mut c.rdma_read_bytes),
            OpCode::RdmaWrite => (&mut c.rdma_write_wrs, &mut c.rdma_write_bytes),
        };
        *wrs += 1;
        *total += bytes;
    }
}
