//! From a packet to memory and completions.

use super::{Device, Objects};
use crate::Gid;
use crate::Time;
use crate::mr::Access;
use crate::qp::Receive;
use crate::srd::MESSAGE_WINDOW;
use crate::srd::bitmap::Bitmap;
use crate::srd::rx::{Partial, Slot};
use crate::srd::tx::{Memory, Message, Origin};
use crate::wire::{self, Data, Envelope, Lane, MessageHeader, Packet, WireError, WireOp};
use efa_io::cqe::Received;
use efa_io::{Completion, Event, OpCode, Status};

/// Most introductions that wait to be sent; who gets none asks again.
const MAX_RESETS: usize = 64;

/// What became of a packet's bytes; `Err` with the status that its sender is told: the message cannot be taken.
type Outcome = Result<Placed, Status>;

/// What became of bytes that may be placed.
enum Placed {
    /// They are where they belong.
    Yes,
    /// They need a receive descriptor, and there is none.
    NotReady,
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
            Packet::Acks(lane, acks) => {
                let mut finished = Vec::new();
                for ack in acks {
                    self.flows[flow].tx[lane as usize].on_ack(now, ack, &mut finished);
                }
                self.settle(flow, finished);
                self.pass_time(now, flow);
            }
            Packet::Reset => {}
        }
        self.wake(flow);
        while let Some(qpn) = self.objects.broken.pop() {
            self.fail_qp(qpn);
        }
    }

    /// Whether a packet is for this life of this device, from a life of the peer that is not over; and its flow.
    fn admit(&mut self, now: Time, envelope: &Envelope, packet: &Packet<'_>) -> Option<usize> {
        let Envelope { src, dst, src_incarnation, dst_incarnation } = *envelope;
        if dst != self.config.gid || src_incarnation == 0 {
            return None;
        }
        if dst_incarnation != 0 && dst_incarnation != self.config.incarnation {
            if *packet != Packet::Reset && dst_incarnation < self.config.incarnation {
                self.introduce(envelope);
            }
            return None;
        }
        let flow = match packet {
            Packet::Data(_) => self.flow_to(now, src)?,
            _ => *self.flow_of.get(&src)?,
        };
        let known = self.flows[flow].peer_incarnation;
        if src_incarnation < known {
            return None;
        }
        if src_incarnation > known {
            if known != 0 {
                // Much is lost by believing this, so only a peer that has heard from us is believed.
                if dst_incarnation == 0 {
                    self.introduce(envelope);
                    return None;
                }
                self.peer_restarted(flow);
            }
            self.flows[flow].peer_incarnation = src_incarnation;
        }
        self.flows[flow].lively_at = now;
        Some(flow)
    }

    /// Tells the sender of a packet which life of this device it speaks to.
    fn introduce(&mut self, envelope: &Envelope) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(Envelope {
                src: envelope.dst,
                dst: envelope.src,
                src_incarnation: self.config.incarnation,
                dst_incarnation: envelope.src_incarnation,
            });
        }
    }

    /// What the peer's earlier life had received or promised is gone.
    fn peer_restarted(&mut self, flow: usize) {
        self.counters.impaired_remote_conn_events += 1;
        self.flows[flow].rx = Default::default();
        let finished = self.flows[flow].finish_where(Status::RemoteAbort, |_| true);
        self.settle(flow, finished);
    }

    fn on_data(&mut self, index: usize, envelope: &Envelope, data: &Data<'_>) {
        let lane = data.header.op.lane() as usize;
        let Some(slot) = self.flows[index].rx[lane].slot(data.message, data.base) else {
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
                    Some(Err(Status::RemoteBadStatus))
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
        self.flows[index].rx[lane].touch(data.message);
    }

    /// Moves a message on after one of its packets was placed or could not be.
    fn advance(&mut self, index: usize, envelope: &Envelope, data: &Data<'_>, outcome: Outcome) {
        let header = data.header;
        let lane = header.op.lane() as usize;
        let Some(slot) = self.flows[index].rx[lane].known(data.message) else { return };
        match outcome {
            Err(status) => {
                *slot = Slot::Done(status);
                return;
            }
            Ok(Placed::NotReady) => {
                self.counters.rnr_sent += 1;
                return;
            }
            Ok(Placed::Yes) => {}
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
                let announced = match header.imm {
                    Some(_) => self.objects.announce(&header, envelope.src),
                    None => Ok(Placed::Yes),
                };
                self.counters.rdma_write_recv_bytes += u64::from(header.bytes);
                *slot = match announced {
                    Ok(Placed::Yes) => Slot::Done(Status::Ok),
                    Err(status) => Slot::Done(status),
                    Ok(Placed::NotReady) => {
                        self.counters.rnr_sent += 1;
                        Slot::Waiting(Box::new(header))
                    }
                };
            }
            WireOp::ReadRequest => *slot = Slot::Accepted,
            WireOp::ReadResponse => {
                *slot = Slot::Done(Status::Ok);
                let finished = self.flows[index].tx[Lane::Requests as usize].finish(header.reply_to, Status::Ok);
                self.settle(index, finished);
            }
        }
    }

    /// Checks what a packet asks for, and does it.
    fn place(&mut self, index: usize, envelope: &Envelope, data: &Data<'_>) -> Outcome {
        let header = &data.header;
        let offset = data.packet as usize * data.stride as usize;
        match header.op {
            WireOp::Send => {
                let pd = self.objects.target(header)?;
                if header.packets(data.stride) != 1 {
                    return Err(Status::RemoteFeatureMismatch); // a send is one packet
                }
                let placed = self.objects.receive(pd, header, envelope.src, data.payload)?;
                if let Placed::Yes = placed {
                    self.counters.recv_wrs += 1;
                    self.counters.recv_bytes += u64::from(header.bytes);
                }
                Ok(placed)
            }
            WireOp::Write => {
                let pd = self.objects.target(header)?;
                let enabled = self.config.rdma_write;
                let target = self.objects.remote(pd, header, envelope.src, Access::REMOTE_WRITE, enabled)?;
                if let Some((backing, start)) = target {
                    backing.write(start + offset, data.payload);
                }
                Ok(Placed::Yes)
            }
            WireOp::ReadRequest => {
                let pd = self.objects.target(header)?;
                let enabled = self.config.rdma_read;
                self.objects.remote(pd, header, envelope.src, Access::REMOTE_READ, enabled)?;
                let responses = &mut self.flows[index].tx[Lane::Responses as usize];
                if responses.len() >= MESSAGE_WINDOW as usize {
                    return Err(Status::RemoteBadStatus); // more than a peer can have asked for
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
                responses.push(Message { header: response, origin, memory });
                Ok(Placed::Yes)
            }
            WireOp::ReadResponse => self.place_response(index, header, offset, data.payload),
        }
    }

    /// Bytes that a read of ours asked for.
    fn place_response(&mut self, index: usize, header: &MessageHeader, offset: usize, payload: &[u8]) -> Outcome {
        let requests = &mut self.flows[index].tx[Lane::Requests as usize];
        let Some(request) = requests.message(header.reply_to) else {
            return Err(Status::RemoteAbort); // the read has ended in some other way
        };
        let Memory::Scatter { pd, buf } = request.memory else {
            return Err(Status::RemoteBadStatus);
        };
        let status = if request.header.bytes != header.bytes {
            Status::RemoteBadStatus
        } else if buf.length == 0 {
            return Ok(Placed::Yes);
        } else if let Some((backing, start)) = self.objects.local(pd, &buf, Access::LOCAL_WRITE) {
            backing.write(start + offset, payload);
            return Ok(Placed::Yes);
        } else {
            Status::InvalidLkey
        };
        let finished = requests.finish(header.reply_to, status);
        self.settle(index, finished);
        Err(Status::RemoteAbort)
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
    fn receive(&mut self, pd: u32, header: &MessageHeader, src: Gid, payload: &[u8]) -> Outcome {
        let received = self.received(pd, header, src, OpCode::Send);
        let Some((receive, cqn)) = self.take_receive(header.dst_qpn)? else { return Ok(Placed::NotReady) };
        // What the receiver's own completion says, and what the sender is told.
        let (status, outcome) = match self.scatter(pd, &receive, payload) {
            Ok(()) => (Status::Ok, Ok(Placed::Yes)),
            Err(Status::BadLength) => (Status::BadLength, Err(Status::RemoteBadLength)),
            Err(status) => (status, Err(Status::RemoteBadStatus)),
        };
        let req_id = receive.req_id.into();
        let event = Event::Receive(received);
        self.complete(cqn, Completion { req_id, status, qpn: header.dst_qpn, phase: false, event });
        outcome
    }

    /// The next receive of a queue pair and where it completes, if one was posted.
    fn take_receive(&mut self, qpn: u16) -> Result<Option<(Receive, u32)>, Status> {
        let qp = self.qp(qpn).map_err(|_| Status::RemoteBadDestQpn)?;
        let cqn = qp.recv_cq;
        match qp.take_receive() {
            Ok(receive) => Ok(receive.map(|receive| (receive, cqn))),
            Err(error) => {
                tracing::warn!(qpn, %error, "malformed receive ring: the queue pair goes to the error state");
                self.broken.push(qpn);
                Err(Status::RemoteBadDestQpn)
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
    fn announce(&mut self, header: &MessageHeader, src: Gid) -> Outcome {
        let qpn = header.dst_qpn;
        let (pd, cqn, unsolicited) = match self.qp(qpn) {
            Ok(qp) if qp.state.receives() => (qp.pd, qp.recv_cq, qp.unsolicited_write_recv),
            _ => return Err(Status::RemoteBadDestQpn),
        };
        let received = Received { unsolicited, ..self.received(pd, header, src, OpCode::RdmaWrite) };
        let req_id = if unsolicited {
            0
        } else {
            match self.take_receive(qpn)? {
                Some((receive, _)) => receive.req_id.into(),
                None => return Ok(Placed::NotReady),
            }
        };
        let event = Event::Receive(received);
        self.complete(cqn, Completion { req_id, status: Status::Ok, qpn, phase: false, event });
        Ok(Placed::Yes)
    }
}
