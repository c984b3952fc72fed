//! From a doorbell to a packet.

use super::flow::Flow;
use super::objects::Objects;
use super::{AsyncEvent, Device, DeviceEvent};
use crate::Time;
use crate::contain::log;
use crate::qp::QueuePair;
use crate::srd::rx::Standing;
use crate::srd::tx::{Due, Finished, Memory, Message, Origin};
use crate::trace::{DropReason, Traced, TracedPacket};
use crate::wire::{Body, Data, Envelope, Lane, MessageHeader, Packet, Payload, Span, WireOp};
use efa_io::{LocalBuf, Op, OpCode, RemoteBuf, SendRequest, Status, Wqe64, Wqe128};
use efa_types::{Access, CounterOps, Gid, QpState, Transport};
use std::collections::VecDeque;

/// Most datagrams of a queue pair that wait to leave; further WQEs stay in its ring until some have left.
const DATAGRAM_WINDOW: u32 = 16;

/// A send of an unreliable queue pair that has not left.
pub(super) struct Datagram {
    dst: Gid,
    message: Message,
}

impl Device {
    /// Looks at every doorbell, and does what was asked for since the last look.
    ///
    /// Between two looks a program may have rung several times, so this cannot notice a batch over `max_batch`;
    /// [`ring_send_doorbell`](Self::ring_send_doorbell) does. Returns whether there was anything to do.
    pub fn poll_doorbells(&mut self, now: Time) -> bool {
        self.objects.tracer.now = now;
        self.wqes_wait = false;
        let mut progress = false;
        for i in 0..self.objects.live.len() {
            let Some(qp) = &self.objects.qps[self.objects.live[i]] else { continue };
            let (qpn, state, value) = (qp.qpn, qp.state, qp.sq.doorbell());
            if qp.sq.rung(value) != 0 && state != QpState::Reset {
                progress |= self.ring_sq(now, qpn, value, u32::MAX);
            }
            if state == QpState::Error {
                self.flush_receives(qpn);
            }
        }
        if self.wqes_wait {
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
            self.ring_sq(now, qpn, value, max_batch);
        }
    }

    /// Fetches the WQEs up to a doorbell; whether there were any.
    fn ring_sq(&mut self, now: Time, qpn: u16, doorbell: u32, max_batch: u32) -> bool {
        let Ok(qp) = self.objects.qp(qpn) else { return false };
        let (rung, batch) = (qp.sq.rung(doorbell), qp.sq.see(doorbell));
        if batch != 0 {
            self.objects.tracer.emit(|| Traced::Doorbell { qpn, value: doorbell, wqes: batch });
        }
        let Ok(qp) = self.objects.qp(qpn) else { return false };
        if rung > qp.sq.size.entries() || !matches!(qp.state, QpState::ReadyToSend | QpState::Error) {
            let state = qp.state;
            if state != QpState::Error && self.may_complain() {
                log!(warn, qpn, rung, ?state, "a doorbell that cannot be: the queue pair goes to the error state");
            }
            self.fail_qp_by_itself(qpn);
            return true;
        }
        // Its first WQE is taken for malformed, whatever it says (assumed).
        let too_long = batch > max_batch;
        let mut progress = false;
        // By the doorbell, not by the count: a malformed WQE flushes what is behind it from inside this loop.
        // One that was rung meanwhile is past it by then: `rung` is more than a ring full.
        while let Ok(qp) = self.objects.qp(qpn)
            && (1..=qp.sq.size.entries()).contains(&qp.sq.rung(doorbell))
        {
            let flushing = qp.state == QpState::Error;
            if qp.datagrams >= DATAGRAM_WINDOW && !flushing {
                self.wqes_wait = true;
                return progress;
            }
            if !self.faults.wqe_time.is_zero() && !flushing && !too_long {
                if now < self.next_wqe_at {
                    self.wqes_wait = true;
                    return progress;
                }
                self.next_wqe_at = now + self.faults.wqe_time;
            }
            progress = true;
            let consumer = qp.sq.consumer;
            let (slot, phase) = (qp.sq.size.slot(consumer) as usize, qp.sq.size.wq_phase(consumer));
            qp.sq.consumer = consumer.wrapping_add(1);
            // More than the ring holds without completions: some of what was under way is overwritten.
            let too_many = qp.outstanding >= qp.sq.size.entries();
            qp.outstanding += 1;
            let too_long = too_long || too_many;
            let ids = if qp.req_id_64 { u64::MAX } else { 0xffff };
            if qp.wide {
                let wqe = Wqe128::from_words(qp.sq.ring.load_entry(slot * 128));
                let request = wqe.decode().ok().filter(|r| !too_long && r.phase == phase && r.req_id <= ids);
                self.take_wqe(now, qpn, wqe.req_id() & ids, request, flushing);
            } else {
                let wqe = Wqe64::from_words(qp.sq.ring.load_entry(slot * 64));
                let request = wqe.decode().ok().filter(|r| !too_long && r.phase == phase && r.req_id <= ids);
                self.take_wqe(now, qpn, wqe.req_id() & ids, request, flushing);
            }
        }
        progress
    }

    fn take_wqe(&mut self, now: Time, qpn: u16, req_id: u64, request: Option<SendRequest<'_>>, flushing: bool) {
        let op = request.map_or(OpCode::Send, |request| request.op.code());
        if flushing {
            self.objects.complete_send(qpn, req_id, op, Status::Flushed);
            return;
        }
        let bytes = request.map_or(0, |request| request.op.total_bytes() as u32);
        let Some(request) = request else {
            if self.may_complain() {
                log!(warn, qpn, req_id, "malformed WQE: the queue pair goes to the error state");
            }
            self.objects.tracer.emit(|| Traced::Wqe { qpn, req_id, op, bytes, status: Status::QpInternal });
            self.objects.complete_send(qpn, req_id, op, Status::QpInternal);
            self.fail_qp_by_itself(qpn);
            return;
        };
        let accepted = self.accept(qpn, &request);
        let status = accepted.as_ref().err().copied().unwrap_or(Status::Ok);
        self.objects.tracer.emit(|| Traced::Wqe { qpn, req_id, op, bytes, status });
        match accepted {
            Ok((dst, message)) => {
                self.count_request(op, bytes.into());
                if let Ok(qp) = self.objects.qp(qpn)
                    && qp.transport == Transport::Ud
                {
                    qp.datagrams += 1;
                    self.datagrams.push_back(Datagram { dst, message });
                    return;
                }
                let Some(index) = self.flow_to(now, dst) else {
                    self.count_error(op);
                    self.objects.complete_send(qpn, req_id, op, Status::QpInternal);
                    return;
                };
                let flow = &mut self.flows[index];
                if flow.is_idle() {
                    flow.lively_at = now;
                }
                flow.matters = true;
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
        let Ok(&mut QueuePair { pd, inline_bytes, inline_write, transport, rnr_retries, .. }) = objects.qp(qpn) else {
            return Err(Status::QpInternal);
        };
        let inline_bytes = usize::from(inline_bytes);
        let is_srd = transport == Transport::Srd;
        let (enabled, max) = match request.op.code() {
            OpCode::Send => (true, config.attributes.mtu),
            OpCode::RdmaRead => (is_srd && config.attributes.rdma_read, config.attributes.max_rdma_bytes),
            OpCode::RdmaWrite => (is_srd && config.attributes.rdma_write, config.attributes.max_rdma_bytes),
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
            placed: false,
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
        Ok((gid, Message { header, origin, memory, ah: Some(dest.ah), rnr_retries, refusals: 0 }))
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
    pub fn poll_transmit(&mut self, now: Time) -> Option<Packet<'static>> {
        self.objects.tracer.now = now;
        loop {
            let (packet, resent) = self.next_packet(now)?;
            if !self.port_up {
                self.objects.tracer.emit(|| Traced::PacketDropped { reason: DropReason::PortDown });
                continue;
            }
            let bytes = packet.wire_len();
            self.counters.tx_pkts += 1;
            self.counters.tx_bytes += bytes as u64;
            if resent {
                self.counters.retrans_pkts += 1;
                self.counters.retrans_bytes += bytes as u64;
            }
            self.objects.tracer.emit(|| {
                let Packet { envelope: Envelope { dst, path, .. }, body } = &packet;
                let packet = TracedPacket::of(body);
                Traced::PacketOut { dst: *dst, packet, path: *path, bytes: bytes as u32, resent }
            });
            if self.is_routable(packet.envelope.dst) {
                return Some(packet);
            }
            self.objects.tracer.emit(|| Traced::PacketDropped { reason: DropReason::Unroutable });
        }
    }

    fn envelope(&self, flow: usize, path: u8) -> Envelope {
        let Flow { peer, own_incarnation, peer_incarnation, .. } = self.flows[flow];
        let (src, dst) = (self.config.attributes.gid, peer);
        Envelope { src, dst, src_incarnation: own_incarnation, dst_incarnation: peer_incarnation, path }
    }

    /// The next packet, and whether it left before.
    fn next_packet(&mut self, now: Time) -> Option<(Packet<'static>, bool)> {
        if let Some(answer) = self.answers.pop_front() {
            return Some((answer, false));
        }
        // Datagrams and flows take turns.
        self.datagrams_turn = !self.datagrams_turn;
        if self.datagrams_turn
            && let Some(datagram) = self.next_datagram()
        {
            return Some((datagram, false));
        }
        self.next_of_flows(now).or_else(|| Some((self.next_datagram()?, false)))
    }

    fn next_datagram(&mut self) -> Option<Packet<'static>> {
        while let Some(datagram) = self.datagrams.pop_front() {
            if let Some(packet) = self.send_datagram(datagram) {
                return Some(packet);
            }
        }
        None
    }

    fn next_of_flows(&mut self, now: Time) -> Option<(Packet<'static>, bool)> {
        while let Some(&index) = self.busy.front() {
            if let Some(lane) = [Lane::Requests, Lane::Responses]
                .into_iter()
                .find(|&lane| self.flows[index].rx[lane as usize].wants_to_ack())
            {
                let envelope = self.envelope(index, self.flows[index].ack_path);
                let acks = self.flows[index].rx[lane as usize].poll_acks(self.config.attributes.mtu as usize);
                if acks.is_empty() {
                    continue;
                }
                self.counters.ack_pkts += 1;
                let congested = self.is_congested();
                return Some((Packet { envelope, body: Body::Acks { lane, congested, acks } }, false));
            }
            if let Some(hello) = self.flows[index].poll_hello(now, &self.config) {
                let envelope = Envelope { dst_incarnation: 0, ..self.envelope(index, 0) };
                return Some((Packet { envelope, body: Body::Hello(hello) }, false));
            }
            let flow = &mut self.flows[index];
            let is_known = flow.peer_incarnation != 0;
            flow.turn = 1 - flow.turn;
            let mut lanes = is_known.then_some([flow.turn, 1 - flow.turn]).into_iter().flatten();
            let Some((lane, due)) = lanes.find_map(|lane| Some((lane, flow.tx[lane].poll_send(now)?))) else {
                self.busy.pop_front();
                self.rest(index);
                continue;
            };
            // Its turn is over after one packet.
            self.busy.rotate_left(1);
            let tx = &self.flows[index].tx[lane];
            let base = tx.base();
            let Some(message) = tx.message(due.message) else { continue };
            let (header, stride) = (message.header, self.config.attributes.mtu);
            match payload(&self.objects, due, stride, message) {
                Ok(payload) => {
                    let data = Data { message: due.message, base, header, stride, packet: due.packet };
                    let envelope = self.envelope(index, due.path);
                    return Some((Packet { envelope, body: Body::Data(data, payload) }, due.resent));
                }
                Err(status) => {
                    // The region went away while the message was under way.
                    let finished = self.flows[index].tx[lane].finish(due.message, status);
                    self.settle(index, finished);
                }
            }
        }
        None
    }

    /// Sends a datagram, and completes its request; nothing more will be heard of it.
    fn send_datagram(&mut self, Datagram { dst, message }: Datagram) -> Option<Packet<'static>> {
        let Origin::Wqe { qpn, req_id, op } = message.origin else { return None };
        self.has_left(qpn);
        let due = Due { message: 0, packet: 0, path: 0, resent: false };
        // The program may reuse its buffers from here on.
        let payload = payload(&self.objects, due, self.config.attributes.mtu, &message)
            .and_then(|payload| payload.snapshot().ok_or(Status::InvalidLkey));
        let status = payload.as_ref().err().copied().unwrap_or(Status::Ok);
        self.objects.complete_send(qpn, req_id, op, status);
        let body = Body::Datagram(message.header, payload.ok()?);
        let src_incarnation = match self.known_flow(dst) {
            Some(flow) => self.flows[flow].own_incarnation,
            None => self.config.incarnation_for(dst),
        };
        let envelope = Envelope { src: self.config.attributes.gid, dst, src_incarnation, dst_incarnation: 0, path: 0 };
        Some(Packet { envelope, body })
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
                Origin::Response { qpn, request } => {
                    if status.is_ok() {
                        self.counters.rdma_read_resp_bytes += u64::from(message.header.bytes);
                        self.objects.count(qpn, CounterOps::REMOTE_RDMA_READ, Status::Ok);
                        continue;
                    }
                    // The requester still waits for its bytes.
                    let rx = &mut self.flows[flow].rx[Lane::Requests as usize];
                    rx.set(request, Standing::Done(Status::RemoteBadAddress));
                    rx.touch(request);
                }
            }
        }
        self.wake(flow);
    }

    /// Puts a queue pair in the error state because it cannot go on, and tells the program.
    pub(super) fn fail_qp_by_itself(&mut self, qpn: u16) {
        if self.objects.qp(qpn).is_ok_and(|qp| qp.state != QpState::Error) {
            self.objects.tell(DeviceEvent::Async(AsyncEvent::QpFatal(qpn)));
        }
        self.fail_qp(qpn);
    }

    /// Puts a queue pair in the error state and flushes it.
    pub(super) fn fail_qp(&mut self, qpn: u16) {
        let Ok(qp) = self.objects.qp(qpn) else { return };
        let (was, doorbell) = (qp.state, qp.sq.doorbell());
        let believable = qp.sq.rung(doorbell) <= qp.sq.size.entries();
        if !believable {
            qp.sq.consumer = doorbell; // nor can anything in the ring be
        }
        if was == QpState::Error {
            return;
        }
        self.objects.set_state(qpn, QpState::Error);
        for flow in 0..self.flows.len() {
            let finished = self.flows[flow].finish_where(Status::Flushed, |message| message.origin.qpn() == qpn);
            self.settle(flow, finished);
        }
        self.flush_datagrams(|message| message.origin.qpn() == qpn);
        self.flush_receives(qpn);
        if believable {
            self.ring_sq(Time::ZERO, qpn, doorbell, u32::MAX);
        }
    }

    /// Takes the datagrams that have not left and for which `which` holds.
    fn take_datagrams(&mut self, which: impl Fn(&Message) -> bool) -> VecDeque<Datagram> {
        let all = std::mem::take(&mut self.datagrams).into_iter();
        let (taken, left): (VecDeque<_>, _) = all.partition(|datagram| which(&datagram.message));
        self.datagrams = left;
        for datagram in &taken {
            self.has_left(datagram.message.origin.qpn());
        }
        taken
    }

    /// A datagram of this queue pair does not wait any more.
    fn has_left(&mut self, qpn: u16) {
        if let Ok(qp) = self.objects.qp(qpn) {
            qp.datagrams = qp.datagrams.saturating_sub(1);
        }
    }

    /// Ends datagrams that have not left.
    pub(super) fn flush_datagrams(&mut self, which: impl Fn(&Message) -> bool) {
        for datagram in self.take_datagrams(which) {
            if let Origin::Wqe { qpn, req_id, op } = datagram.message.origin {
                self.objects.complete_send(qpn, req_id, op, Status::Flushed);
            }
        }
    }

    /// Completes every posted receive of a queue pair in error as flushed.
    fn flush_receives(&mut self, qpn: u16) {
        while let Ok(qp) = self.objects.qp(qpn) {
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
                    self.objects.complete_receive(qpn, receive.req_id.into(), received, Status::Flushed);
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
        self.take_datagrams(|message| message.origin.qpn() == qpn);
    }
}

/// The bytes of packet `due` of `message`.
fn payload(objects: &Objects, due: Due, stride: u32, message: &Message) -> Result<Payload<'static>, Status> {
    let header = &message.header;
    let from = (u64::from(due.packet) * u64::from(stride)) as usize;
    let len = header.payload_len(due.packet, stride);
    if len == 0 {
        return Ok(Payload::EMPTY); // and no key is looked at
    }
    let (spans, gone) = match &message.memory {
        Memory::Inline(data) => return Ok(Payload::copied(&data[from..from + len])),
        Memory::Gather { pd, bufs } => (gather(objects, *pd, bufs.as_slice(), from, len)?, Status::InvalidLkey),
        Memory::Remote { pd, rkey, addr } => {
            let found = objects.regions.remote(*pd, *rkey, *addr, header.bytes.into(), Access::REMOTE_READ);
            let (memory, offset) = found.ok_or(Status::RemoteBadAddress)?;
            ([Some(Span { memory: memory.clone(), offset: offset + from, len }), None], Status::RemoteBadAddress)
        }
        Memory::Scatter { .. } => return Ok(Payload::EMPTY),
    };
    Payload::of_spans(spans).ok_or(gone)
}

/// Where `len` bytes from offset `from` of the concatenated buffers are.
fn gather(
    objects: &Objects,
    pd: u32,
    bufs: &[LocalBuf],
    mut from: usize,
    mut len: usize,
) -> Result<[Option<Span>; 2], Status> {
    let mut spans = [None, None];
    for (span, buf) in spans.iter_mut().zip(bufs) {
        let skipped = from.min(buf.length as usize);
        let here = len.min(buf.length as usize - skipped);
        (from, len) = (from - skipped, len - here);
        if here > 0 {
            let (memory, offset) = objects.local(pd, buf, Access::LOCAL_READ).ok_or(Status::InvalidLkey)?;
            *span = Some(Span { memory: memory.clone(), offset: offset + skipped, len: here });
        }
    }
    Ok(spans)
}
