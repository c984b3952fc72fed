//! From a doorbell to a packet.

use super::{Device, Objects, Transmit};
use crate::mr::Access;
use crate::qp::QpState;
use crate::srd::rx::Slot;
use crate::srd::tx::{Due, Finished, Memory, Message, Origin, TxFlow};
use crate::wire::{self, Data, Envelope, Lane, MessageHeader, WireOp};
use crate::{Gid, Time};
use efa_io::{Completion, Event, LocalBuf, Op, OpCode, RemoteBuf, SendRequest, Status, Wqe64, Wqe128};

impl Device {
    /// Looks at every doorbell, and does what was asked for since the last look.
    ///
    /// Between two looks a program may have rung several times, so this cannot notice a batch over `max_batch`;
    /// [`ring_send_doorbell`](Self::ring_send_doorbell) does. Returns whether there was anything to do.
    pub fn poll_doorbells(&mut self, now: Time) -> bool {
        let mut progress = false;
        for i in 0..self.objects.live.len() {
            let Some(qp) = &self.objects.qps[self.objects.live[i]] else { continue };
            let (qpn, state, value) = (qp.qpn, qp.state, qp.sq.doorbell());
            if qp.sq.rung(value) != 0 && state != QpState::Reset {
                self.ring_sq(now, qpn, value, u32::MAX);
                progress = true;
            }
            if state == QpState::Error {
                self.flush_receives(qpn);
            }
        }
        for (&cqn, cq) in &mut self.objects.cqs {
            if cq.poll_doorbell() {
                self.objects.events.push_back(super::DeviceEvent::Completion(cqn));
            }
        }
        progress
    }

    /// The program stored `value` in the send doorbell of queue pair `qpn`.
    pub fn ring_send_doorbell(&mut self, now: Time, qpn: u16, value: u32) {
        if let Ok(qp) = self.objects.qp(qpn) {
            let max_batch = qp.sq.max_batch;
            self.ring_sq(now, qpn, value, max_batch);
        }
    }

    fn ring_sq(&mut self, now: Time, qpn: u16, doorbell: u32, max_batch: u32) {
        let Ok(qp) = self.objects.qp(qpn) else { return };
        let rung = qp.sq.rung(doorbell);
        if rung > qp.sq.size.entries() || rung > max_batch || !matches!(qp.state, QpState::ReadyToSend | QpState::Error)
        {
            tracing::warn!(qpn, rung, state = ?qp.state, "a doorbell that cannot be: the queue pair goes to the error state");
            self.fail_qp(qpn);
            return;
        }
        // By the doorbell, not by the count: a malformed WQE flushes what is behind it from inside this loop.
        while let Ok(qp) = self.objects.qp(qpn)
            && qp.sq.rung(doorbell) != 0
        {
            let consumer = qp.sq.consumer;
            let (slot, phase) = (qp.sq.size.slot(consumer) as usize, qp.sq.size.wq_phase(consumer));
            qp.sq.consumer = consumer.wrapping_add(1);
            let ids = if qp.req_id_64 { u64::MAX } else { 0xffff };
            let flushing = qp.state == QpState::Error;
            if qp.wide {
                let wqe = Wqe128::from_words(qp.sq.ring.load_entry(slot * 128));
                let request = wqe.decode().ok().filter(|r| r.phase == phase && r.req_id <= ids);
                self.take_wqe(now, qpn, wqe.req_id() & ids, request, flushing);
            } else {
                let wqe = Wqe64::from_words(qp.sq.ring.load_entry(slot * 64));
                let request = wqe.decode().ok().filter(|r| r.phase == phase && r.req_id <= ids);
                self.take_wqe(now, qpn, wqe.req_id() & ids, request, flushing);
            }
        }
    }

    fn take_wqe(&mut self, now: Time, qpn: u16, req_id: u64, request: Option<SendRequest<'_>>, flushing: bool) {
        let op = request.map_or(OpCode::Send, |request| request.op.code());
        if flushing {
            self.objects.complete_send(qpn, req_id, op, Status::Flushed);
            return;
        }
        let Some(request) = request else {
            tracing::warn!(qpn, req_id, "malformed WQE: the queue pair goes to the error state");
            self.objects.complete_send(qpn, req_id, op, Status::QpInternal);
            self.fail_qp(qpn);
            return;
        };
        match self.accept(qpn, &request) {
            Ok((gid, message)) => {
                self.count_request(op, request.op.total_bytes());
                let Some(index) = self.flow_to(now, gid) else {
                    self.objects.complete_send(qpn, req_id, op, Status::QpInternal);
                    return;
                };
                let flow = &mut self.flows[index];
                if flow.is_idle() {
                    flow.lively_at = now;
                }
                flow.tx[Lane::Requests as usize].push(message);
                self.wake(index);
            }
            Err(status) => {
                self.count_error(op);
                self.objects.complete_send(qpn, req_id, op, status);
            }
        }
    }

    /// What the device checks before anything leaves it.
    fn accept(&mut self, qpn: u16, request: &SendRequest<'_>) -> Result<(Gid, Message), Status> {
        let config = &self.config;
        let objects = &mut self.objects;
        let (pd, inline_bytes, inline_write) = match objects.qp(qpn) {
            Ok(qp) => (qp.pd, usize::from(qp.inline_bytes), qp.inline_write),
            Err(_) => return Err(Status::QpInternal),
        };
        let (enabled, max) = match request.op.code() {
            OpCode::Send => (true, config.mtu),
            OpCode::RdmaRead => (config.rdma_read, config.max_rdma_bytes),
            OpCode::RdmaWrite => (config.rdma_write, config.max_rdma_bytes),
        };
        if !enabled {
            return Err(Status::UnsupportedOp);
        }
        if request.op.total_bytes() > max.into() {
            return Err(Status::BadLength);
        }
        let dest = request.dest;
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
        };
        let check = |buf: &LocalBuf, need| match objects.local(pd, buf, need) {
            Some(_) => Ok(()),
            None => Err(Status::InvalidLkey),
        };
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
                let bufs = efa_io::op::Bufs::new(&[write.local]).map_err(|_| Status::QpInternal)?;
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
        Ok((gid, Message { header, origin, memory }))
    }

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

    fn count_error(&mut self, op: OpCode) {
        match op {
            OpCode::Send => {}
            OpCode::RdmaRead => self.counters.rdma_read_wr_err += 1,
            OpCode::RdmaWrite => self.counters.rdma_write_wr_err += 1,
        }
    }

    /// The next packet for the network; `None` when there is nothing to send now.
    ///
    /// Give the bytes back with [`recycle`](Self::recycle) to save an allocation a packet.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Transmit> {
        loop {
            let transmit = self.next_packet(now)?;
            self.counters.tx_pkts += 1;
            self.counters.tx_bytes += transmit.bytes.len() as u64;
            // The hardware does not deliver to itself: the packet leaves, and nothing ever comes back.
            if transmit.dst != self.config.gid || self.config.loopback {
                return Some(transmit);
            }
            self.recycle(transmit.bytes);
        }
    }

    /// Takes back the memory of a packet.
    pub fn recycle(&mut self, bytes: Vec<u8>) {
        if self.spare.len() < 1024 {
            self.spare.push(bytes);
        }
    }

    fn next_packet(&mut self, now: Time) -> Option<Transmit> {
        if let Some(envelope) = self.resets.pop_front() {
            let mut bytes = self.spare.pop().unwrap_or_default();
            wire::encode_reset(&mut bytes, &envelope);
            return Some(Transmit { dst: envelope.dst, bytes });
        }
        while let Some(index) = self.busy.pop_front() {
            let flow = &mut self.flows[index];
            let envelope = Envelope {
                src: self.config.gid,
                dst: flow.peer,
                src_incarnation: self.config.incarnation,
                dst_incarnation: flow.peer_incarnation,
            };
            if let Some(lane) = Lane::ALL.into_iter().find(|&lane| flow.rx[lane as usize].wants_to_ack()) {
                flow.rx[lane as usize].poll_acks(&mut self.acks);
                self.busy.push_back(index);
                if self.acks.is_empty() {
                    continue;
                }
                let mut bytes = self.spare.pop().unwrap_or_default();
                wire::encode_acks(&mut bytes, &envelope, lane, &self.acks);
                self.counters.ack_pkts += 1;
                return Some(Transmit { dst: flow.peer, bytes });
            }
            flow.turn = 1 - flow.turn;
            let lanes = [flow.turn, 1 - flow.turn];
            let Some((lane, due)) = lanes.into_iter().find_map(|lane| Some((lane, flow.tx[lane].poll_send(now)?)))
            else {
                flow.queued = false;
                continue;
            };
            let tx = &flow.tx[lane];
            let base = tx.base();
            let Some(message) = tx.message(due.message) else { continue };
            let mut bytes = self.spare.pop().unwrap_or_default();
            let filled = fill_packet(&self.objects, &mut bytes, &envelope, due, base, self.config.mtu, message);
            self.busy.push_back(index);
            match filled {
                Ok(()) => {
                    if due.resent {
                        self.counters.retrans_pkts += 1;
                        self.counters.retrans_bytes += bytes.len() as u64;
                    }
                    return Some(Transmit { dst: self.flows[index].peer, bytes });
                }
                Err(status) => {
                    // The region went away while the message was under way.
                    self.recycle(bytes);
                    let finished = self.flows[index].tx[lane].finish(due.message, status);
                    self.settle(index, finished);
                }
            }
        }
        None
    }

    /// When [`on_timeout`](Self::on_timeout) next has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        let deadline = |flow: &super::Flow| {
            let silence = (!flow.is_idle()).then(|| flow.lively_at + self.config.peer_timeout);
            flow.tx.iter().filter_map(TxFlow::next_time).chain(silence).min()
        };
        self.flows.iter().filter_map(deadline).min()
    }

    /// Does what is due by now: packets go out again, peers that stay silent are given up.
    pub fn on_timeout(&mut self, now: Time) {
        for index in 0..self.flows.len() {
            if self.flows[index].is_idle() {
                continue;
            }
            self.pass_time(now, index);
            let flow = &mut self.flows[index];
            if now >= flow.lively_at + self.config.peer_timeout {
                let status = if flow.peer_incarnation == 0 {
                    Status::UnreachableRemote
                } else {
                    self.counters.unresponsive_remote_events += 1;
                    Status::UnresponsiveRemote
                };
                let finished = flow.finish_where(status, |_| true);
                self.settle(index, finished);
            }
            self.wake(index);
        }
    }

    /// Lets a flow see what is overdue.
    pub(super) fn pass_time(&mut self, now: Time, flow: usize) {
        for tx in &mut self.flows[flow].tx {
            tx.on_time(now);
            self.counters.retrans_timeout_events += tx.take_timeouts();
        }
    }

    /// Tells whoever waits for these messages how they ended.
    pub(super) fn settle(&mut self, flow: usize, finished: impl IntoIterator<Item = Finished>) {
        for Finished { message, status } in finished {
            match message.origin {
                Origin::Wqe { qpn, req_id, op } => {
                    if !status.is_ok() {
                        self.count_error(op);
                    }
                    self.objects.complete_send(qpn, req_id, op, status);
                }
                Origin::Response { request, .. } => {
                    if status.is_ok() {
                        self.counters.rdma_read_resp_bytes += u64::from(message.header.bytes);
                        continue;
                    }
                    // The requester still waits for its bytes.
                    let rx = &mut self.flows[flow].rx[Lane::Requests as usize];
                    if let Some(slot) = rx.known(request) {
                        *slot = Slot::Done(Status::RemoteBadAddress);
                        rx.touch(request);
                    }
                }
            }
        }
        self.wake(flow);
    }

    /// Puts a queue pair in the error state and flushes it.
    pub(super) fn fail_qp(&mut self, qpn: u16) {
        let Ok(qp) = self.objects.qp(qpn) else { return };
        let doorbell = qp.sq.doorbell();
        let believable = qp.sq.rung(doorbell) <= qp.sq.size.entries();
        if !believable {
            qp.sq.consumer = doorbell; // nor can anything in the ring be
        }
        if std::mem::replace(&mut qp.state, QpState::Error) == QpState::Error {
            return;
        }
        for flow in 0..self.flows.len() {
            let finished = self.flows[flow].finish_where(Status::Flushed, |message| message.origin.qpn() == qpn);
            self.settle(flow, finished);
        }
        self.flush_receives(qpn);
        if believable {
            self.ring_sq(Time::ZERO, qpn, doorbell, u32::MAX);
        }
    }

    /// Completes every posted receive of a queue pair in error as flushed.
    fn flush_receives(&mut self, qpn: u16) {
        while let Ok(qp) = self.objects.qp(qpn) {
            let cqn = qp.recv_cq;
            match qp.take_receive() {
                Ok(Some(receive)) => {
                    let received = efa_io::cqe::Received {
                        op: OpCode::Send,
                        length: 0,
                        ah: None,
                        src_qpn: 0,
                        imm: None,
                        unsolicited: false,
                        src_gid: None,
                    };
                    let event = Event::Receive(received);
                    let req_id = receive.req_id.into();
                    self.objects
                        .complete(cqn, Completion { req_id, status: Status::Flushed, qpn, phase: false, event });
                }
                Ok(None) => return,
                Err(_) => {
                    qp.rq.consumer = qp.rq.doorbell();
                    return;
                }
            }
        }
    }

    /// Drops every message of a queue pair without telling its owner; peers that wait for it are told.
    pub(super) fn forget_messages(&mut self, qpn: u16) {
        for flow in 0..self.flows.len() {
            let mut finished = self.flows[flow].finish_where(Status::Flushed, |message| message.origin.qpn() == qpn);
            finished.retain(|f| matches!(f.message.origin, Origin::Response { .. }));
            self.settle(flow, finished);
        }
    }
}

impl Objects {
    pub(super) fn local(&self, pd: u32, buf: &LocalBuf, need: Access) -> Option<(&dyn crate::memory::Backing, usize)> {
        self.regions.local(pd, buf.lkey.get(), buf.addr, buf.length.into(), need)
    }
}

/// Builds packet `due` of `message` in `bytes`, fetching its payload.
fn fill_packet(
    objects: &Objects,
    bytes: &mut Vec<u8>,
    envelope: &Envelope,
    due: Due,
    base: u32,
    stride: u32,
    message: &Message,
) -> Result<(), Status> {
    let header = message.header;
    let from = (u64::from(due.packet) * u64::from(stride)) as usize;
    let data = Data { message: due.message, base, header, stride, packet: due.packet, payload: &[] };
    let len = header.payload_len(due.packet, stride);
    wire::encode_data(bytes, envelope, &data, len, |payload| match &message.memory {
        Memory::Inline(data) => {
            payload.copy_from_slice(&data[from..from + len]);
            Ok(())
        }
        Memory::Gather { pd, bufs } => gather(objects, *pd, bufs.as_slice(), from, payload),
        Memory::Remote { .. } if payload.is_empty() => Ok(()), // no bytes, so no key is looked at
        Memory::Remote { pd, rkey, addr } => {
            let found = objects.regions.remote(*pd, *rkey, *addr, header.bytes.into(), Access::REMOTE_READ);
            let (backing, offset) = found.ok_or(Status::RemoteBadAddress)?;
            backing.read(offset + from, payload);
            Ok(())
        }
        Memory::Scatter { .. } => Ok(()),
    })
}

/// Fetches `payload.len()` bytes from offset `from` of the concatenated buffers.
fn gather(objects: &Objects, pd: u32, bufs: &[LocalBuf], mut from: usize, payload: &mut [u8]) -> Result<(), Status> {
    let mut rest = payload;
    for buf in bufs {
        let length = buf.length as usize;
        if from >= length {
            from -= length;
            continue;
        }
        let (here, later) = rest.split_at_mut((length - from).min(rest.len()));
        let (backing, offset) = objects.local(pd, buf, Access::LOCAL_READ).ok_or(Status::InvalidLkey)?;
        backing.read(offset + from, here);
        (rest, from) = (later, 0);
    }
    Ok(())
}
