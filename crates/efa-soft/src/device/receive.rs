//! From a packet to memory and completions.

use super::{Device, Objects};
use crate::Gid;
use crate::Time;
use crate::mr::Access;
use crate::qp::Receive;
use crate::srd::bitmap::Bitmap;
use crate::srd::rx::{Partial, Slot};
use crate::srd::tx::{Memory, Message, Origin};
use crate::wire::{self, Data, Envelope, MessageHeader, Packet, WireError, WireOp};
use efa_io::cqe::Received;
use efa_io::{Completion, Event, OpCode, Status};

/// What became of a packet's bytes.
enum Placed {
    /// They are where they belong.
    Yes,
    /// They need a receive descriptor, and there is none.
    NotReady,
    /// The message cannot be taken.
    Refused(Status),
}

impl Device {
    /// A packet arrived. Whatever its bytes are, nothing is touched that a registered region does not allow.
    pub fn handle(&mut self, now: Time, bytes: &[u8]) {
        self.counters.rx_pkts += 1;
        self.counters.rx_bytes += bytes.len() as u64;
        let (envelope, packet) = match wire::parse(bytes) {
            Ok(parsed) => parsed,
            Err(error) => {
                self.counters.corrupt_pkts += u64::from(matches!(error, WireError::Corrupt { .. }));
                self.counters.rx_drops += 1;
                tracing::debug!(%error, "packet dropped");
                return;
            }
        };
        let Some(flow) = self.admit(now, &envelope, &packet) else {
            self.counters.rx_drops += 1;
            return;
        };
        match packet {
            Packet::Data(data) => self.on_data(flow, &envelope, &data),
            Packet::Acks(acks) => {
                let mut finished = Vec::new();
                for ack in acks {
                    self.flows[flow].tx.on_ack(now, ack, &mut finished);
                }
                self.settle(flow, finished);
                self.flows[flow].tx.on_time(now);
            }
            Packet::Reset => {}
        }
        self.wake(flow);
    }

    /// Whether a packet is for this life of this device, from a life of the peer that is not over; and its flow.
    fn admit(&mut self, now: Time, envelope: &Envelope, packet: &Packet<'_>) -> Option<usize> {
        let Envelope { src, dst, src_incarnation, dst_incarnation } = *envelope;
        if dst != self.config.gid || src_incarnation == 0 {
            return None;
        }
        if dst_incarnation != 0 && dst_incarnation != self.config.incarnation {
            if *packet != Packet::Reset && dst_incarnation < self.config.incarnation && self.resets.len() < 64 {
                self.resets.push_back(Envelope {
                    src: dst,
                    dst: src,
                    src_incarnation: self.config.incarnation,
                    dst_incarnation: src_incarnation,
                });
            }
            return None;
        }
        let flow = match packet {
            Packet::Data(_) => self.flow_to(src),
            _ => *self.flow_of.get(&src)?,
        };
        let known = self.flows[flow].peer_incarnation;
        if src_incarnation < known {
            return None;
        }
        if src_incarnation > known {
            self.flows[flow].peer_incarnation = src_incarnation;
            if known != 0 {
                self.peer_restarted(flow);
            }
        }
        self.flows[flow].lively_at = now;
        Some(flow)
    }

    /// What the peer's earlier life had received or promised is gone.
    fn peer_restarted(&mut self, flow: usize) {
        self.counters.impaired_remote_conn_events += 1;
        self.flows[flow].rx = Default::default();
        let mut finished = Vec::new();
        self.flows[flow].tx.finish_where(Status::RemoteAbort, |_| true, &mut finished);
        self.settle(flow, finished);
    }

    fn on_data(&mut self, index: usize, envelope: &Envelope, data: &Data<'_>) {
        let flow = &mut self.flows[index];
        let Some(slot) = flow.rx.slot(data.message, data.base) else {
            self.counters.duplicate_pkts += 1;
            return;
        };
        let header = &data.header;
        // How the message stands after this packet; `None`: as before.
        let outcome = match slot {
            Slot::Done(_) | Slot::Accepted => {
                self.counters.duplicate_pkts += 1;
                None
            }
            Slot::Waiting(waiting) => {
                let waiting = **waiting;
                Some(self.objects.announce(&waiting, envelope.src))
            }
            Slot::Partial(partial) => {
                if partial.header != *header || partial.stride != data.stride {
                    Some(Placed::Refused(Status::RemoteBadStatus))
                } else if partial.received.contains(data.packet) {
                    self.counters.duplicate_pkts += 1;
                    None
                } else {
                    Some(self.place(index, envelope, data))
                }
            }
            Slot::Empty => Some(self.place(index, envelope, data)),
        };
        if let Some(outcome) = outcome {
            self.advance(index, envelope, data, outcome);
        }
        self.flows[index].rx.touch(data.message);
    }

    /// Moves a message on after one of its packets was placed or could not be.
    fn advance(&mut self, index: usize, envelope: &Envelope, data: &Data<'_>, placed: Placed) {
        let header = data.header;
        let Some(slot) = self.flows[index].rx.known(data.message) else { return };
        match placed {
            Placed::Refused(status) => {
                *slot = Slot::Done(status);
                return;
            }
            Placed::NotReady => {
                self.counters.rnr_sent += 1;
                return;
            }
            Placed::Yes => {}
        }
        if matches!(slot, Slot::Waiting(_)) {
            *slot = Slot::Done(Status::Ok);
            return;
        }
        let packets = header.packets(data.stride);
        if packets > 1 {
            if let Slot::Empty = slot {
                let received = Bitmap::new(packets);
                *slot = Slot::Partial(Box::new(Partial { header, stride: data.stride, received }));
            }
            let Slot::Partial(partial) = slot else { return };
            partial.received.insert(data.packet);
            if partial.received.missing() > 0 {
                return;
            }
        }
        // Everything is placed.
        match header.op {
            WireOp::Send => *slot = Slot::Done(Status::Ok),
            WireOp::Write => {
                let outcome =
                    if header.imm.is_some() { self.objects.announce(&header, envelope.src) } else { Placed::Yes };
                self.counters.rdma_write_recv_bytes += u64::from(header.bytes);
                *slot = match outcome {
                    Placed::Yes => Slot::Done(Status::Ok),
                    Placed::Refused(status) => Slot::Done(status),
                    Placed::NotReady => {
                        self.counters.rnr_sent += 1;
                        Slot::Waiting(Box::new(header))
                    }
                };
            }
            WireOp::ReadRequest => *slot = Slot::Accepted,
            WireOp::ReadResponse => {
                *slot = Slot::Done(Status::Ok);
                let finished = self.flows[index].tx.finish(header.reply_to, Status::Ok);
                self.settle(index, finished);
            }
        }
    }

    /// Checks what a packet asks for, and does it.
    fn place(&mut self, index: usize, envelope: &Envelope, data: &Data<'_>) -> Placed {
        let header = &data.header;
        let offset = data.packet as usize * data.stride as usize;
        if header.op == WireOp::ReadResponse {
            return self.place_response(index, header, offset, data.payload);
        }
        let pd = match self.objects.target(header) {
            Ok(pd) => pd,
            Err(status) => return Placed::Refused(status),
        };
        match header.op {
            WireOp::Send => {
                if header.packets(data.stride) != 1 {
                    return Placed::Refused(Status::RemoteFeatureMismatch); // a send over our MTU
                }
                let placed = self.objects.receive(pd, header, envelope.src, data.payload);
                if let Placed::Yes = placed {
                    self.counters.recv_wrs += 1;
                    self.counters.recv_bytes += u64::from(header.bytes);
                }
                placed
            }
            WireOp::Write => {
                let need = Access::REMOTE_WRITE;
                match self.objects.remote(pd, header, envelope.src, need, self.config.rdma_write) {
                    Ok(Some((backing, start))) => backing.write(start + offset, data.payload),
                    Ok(None) => {}
                    Err(status) => return Placed::Refused(status),
                }
                Placed::Yes
            }
            WireOp::ReadRequest => {
                let need = Access::REMOTE_READ;
                if let Err(status) = self.objects.remote(pd, header, envelope.src, need, self.config.rdma_read) {
                    return Placed::Refused(status);
                }
                let response = MessageHeader {
                    op: WireOp::ReadResponse,
                    src_qpn: header.dst_qpn,
                    dst_qpn: header.src_qpn,
                    qkey: 0,
                    imm: None,
                    bytes: header.bytes,
                    rkey: 0,
                    remote_addr: 0,
                    reply_to: data.message,
                };
                let origin = Origin::Response { qpn: header.dst_qpn, request: data.message };
                let memory = Memory::Remote { pd, rkey: header.rkey, addr: header.remote_addr };
                self.flows[index].tx.push(Message { header: response, origin, memory });
                Placed::Yes
            }
            WireOp::ReadResponse => Placed::Yes,
        }
    }

    /// Bytes that a read of ours asked for.
    fn place_response(&mut self, index: usize, header: &MessageHeader, offset: usize, payload: &[u8]) -> Placed {
        let Some(request) = self.flows[index].tx.message(header.reply_to) else {
            return Placed::Yes; // the read has ended in some other way
        };
        let Memory::Scatter { pd, buf } = request.memory else {
            return Placed::Refused(Status::RemoteBadStatus);
        };
        let status = if request.header.bytes != header.bytes {
            Status::RemoteBadStatus
        } else if buf.length == 0 {
            return Placed::Yes;
        } else if let Some((backing, start)) = self.objects.local(pd, &buf, Access::LOCAL_WRITE) {
            backing.write(start + offset, payload);
            return Placed::Yes;
        } else {
            Status::InvalidLkey
        };
        let finished = self.flows[index].tx.finish(header.reply_to, status);
        self.settle(index, finished);
        Placed::Refused(Status::RemoteAbort)
    }
}

impl Objects {
    /// The protection domain of the queue pair that a message is for.
    ///
    /// A wrong qkey is answered like a wrong number (assumed: no public source says what the hardware answers).
    fn target(&mut self, header: &MessageHeader) -> Result<u32, Status> {
        match self.qp(header.dst_qpn) {
            Ok(qp) if qp.state.receives() && qp.qkey == header.qkey => Ok(qp.pd),
            _ => Err(Status::RemoteBadDestQpn),
        }
    }

    /// The memory that a remote operation names; `None` for no bytes at all. RDMA wants an address handle for the
    /// initiator (`EFA_IO_COMP_STATUS_REMOTE_ERROR_UNKNOWN_PEER`).
    fn remote(
        &self,
        pd: u32,
        header: &MessageHeader,
        src: Gid,
        need: Access,
        enabled: bool,
    ) -> Result<Option<(&dyn crate::memory::Backing, usize)>, Status> {
        if !enabled {
            return Err(Status::RemoteFeatureMismatch);
        }
        if !self.ah_of.contains_key(&(pd, src)) {
            return Err(Status::RemoteUnknownPeer);
        }
        if header.bytes == 0 {
            return Ok(None);
        }
        let found = self.regions.remote(pd, header.rkey, header.remote_addr, header.bytes.into(), need);
        found.map(Some).ok_or(Status::RemoteBadAddress)
    }

    /// What a receive completion says of this message.
    fn received(&self, pd: u32, header: &MessageHeader, src: Gid, op: OpCode) -> Received {
        let ah = self.ah_of.get(&(pd, src)).copied();
        Received {
            op,
            length: header.bytes,
            ah,
            src_qpn: header.src_qpn,
            imm: header.imm,
            unsolicited: false,
            src_gid: ah.is_none().then_some(src.0),
        }
    }

    /// Places a send in the next receive.
    fn receive(&mut self, pd: u32, header: &MessageHeader, src: Gid, payload: &[u8]) -> Placed {
        let received = self.received(pd, header, src, OpCode::Send);
        let (receive, cqn) = match self.take_receive(header.dst_qpn) {
            Ok(taken) => taken,
            Err(placed) => return placed,
        };
        // (What the receiver's own completion says, what the sender is told.)
        let (status, answer) = match self.scatter(pd, &receive, payload) {
            Ok(()) => (Status::Ok, Placed::Yes),
            Err(Status::BadLength) => (Status::BadLength, Placed::Refused(Status::RemoteBadLength)),
            Err(status) => (status, Placed::Refused(Status::RemoteBadStatus)),
        };
        let req_id = receive.req_id.into();
        let event = Event::Receive(received);
        self.complete(cqn, Completion { req_id, status, qpn: header.dst_qpn, phase: false, event });
        answer
    }

    fn take_receive(&mut self, qpn: u16) -> Result<(Receive, u32), Placed> {
        let Ok(qp) = self.qp(qpn) else { return Err(Placed::Refused(Status::RemoteBadDestQpn)) };
        match qp.take_receive() {
            Ok(Some(receive)) => Ok((receive, qp.recv_cq)),
            Ok(None) => Err(Placed::NotReady),
            Err(error) => {
                tracing::warn!(qpn, %error, "malformed receive ring: the queue pair takes nothing more");
                qp.state = crate::qp::QpState::Error;
                Err(Placed::Refused(Status::RemoteBadDestQpn))
            }
        }
    }

    /// Spreads a message over a receive's buffers. Nothing is written unless all of it fits.
    fn scatter(&self, pd: u32, receive: &Receive, payload: &[u8]) -> Result<(), Status> {
        let mut rest = payload;
        let mut parts = Vec::with_capacity(receive.bufs.len());
        for buf in &receive.bufs {
            let (here, later) = rest.split_at(usize::from(buf.length).min(rest.len()));
            if !here.is_empty() {
                let len = buf.length.into();
                let found = self.regions.local(pd, buf.lkey.get(), buf.addr, len, Access::LOCAL_WRITE);
                parts.push((found.ok_or(Status::InvalidLkey)?, here));
            }
            rest = later;
        }
        if !rest.is_empty() {
            return Err(Status::BadLength);
        }
        for ((backing, offset), bytes) in parts {
            backing.write(offset, bytes);
        }
        Ok(())
    }

    /// Delivers the immediate of a write whose bytes are all placed.
    fn announce(&mut self, header: &MessageHeader, src: Gid) -> Placed {
        let qpn = header.dst_qpn;
        let (pd, cqn, unsolicited) = match self.qp(qpn) {
            Ok(qp) if qp.state.receives() => (qp.pd, qp.recv_cq, qp.unsolicited_write_recv),
            _ => return Placed::Refused(Status::RemoteBadDestQpn),
        };
        let received = Received { unsolicited, ..self.received(pd, header, src, OpCode::RdmaWrite) };
        let req_id = if unsolicited {
            0
        } else {
            match self.take_receive(qpn) {
                Ok((receive, _)) => receive.req_id.into(),
                Err(placed) => return placed,
            }
        };
        let event = Event::Receive(received);
        self.complete(cqn, Completion { req_id, status: Status::Ok, qpn, phase: false, event });
        Placed::Yes
    }
}
