//! From a packet to memory and completions.

use super::Device;
use super::objects::Objects;
use crate::Time;
use crate::contain::log;
use crate::mr::RevocableMemory;
use crate::qp::Receive;
use crate::srd::MESSAGE_WINDOW;
use crate::srd::rx::Standing;
use crate::srd::tx::{Memory, Message, Origin};
use crate::trace::{DropReason, Traced, TracedPacket};
use crate::wire::{Acks, Body, Data, Envelope, Hello, Lane, MessageHeader, Packet, Payload, WireError, WireOp};
use efa_io::cqe::Received;
use efa_io::{OpCode, Status};
use efa_types::{Access, CounterOps, Gid, Transport, UD_PREFIX};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Most answers that wait to be sent; who gets none asks again.
const MAX_ANSWERS: usize = 64;

/// What became of a packet's bytes; `Err` with the status that its sender is told: the message cannot be taken.
type Outcome = Result<Placed, Status>;

/// What became of bytes that may be placed.
enum Placed {
    /// They are where they belong.
    Yes,
    /// They need a receive descriptor, and there is none.
    NotReady,
    /// There is no room for them now: let them come again.
    Later,
}

/// Packets that a slow receiver has not taken in yet.
#[derive(Default)]
pub(super) struct Inbox {
    /// With the time at which each is.
    packets: VecDeque<(Time, Vec<u8>)>,
    bytes: usize,
    /// When the last of them is.
    busy_until: Time,
}

impl Inbox {
    /// From `now` on packets are taken in at this rate, those that wait already among them.
    pub(super) fn reschedule(&mut self, now: Time, rate: Option<u64>) {
        self.busy_until = now;
        for (due, bytes) in &mut self.packets {
            self.busy_until = self.busy_until + takes(bytes.len(), rate);
            *due = self.busy_until;
        }
    }

    /// When the next one is taken in.
    pub(super) fn next_time(&self) -> Option<Time> {
        self.packets.front().map(|(due, _)| *due)
    }
}

/// How long it takes to take a packet in.
fn takes(bytes: usize, rate: Option<u64>) -> Duration {
    Duration::from_nanos(rate.map_or(0, |rate| bytes as u64 * 1_000_000_000 / rate.max(1)))
}

impl Device {
    /// A packet arrived. Whatever its bytes are, nothing is touched that a registered region does not allow.
    pub fn handle(&mut self, now: Time, bytes: &[u8]) {
        if self.arrived(now, bytes.len()) {
            if self.is_slow() {
                self.put_off(now, bytes.into());
            } else {
                self.take_bytes(now, bytes);
            }
        }
    }

    /// A packet arrived that never left this process.
    pub fn handle_packet(&mut self, now: Time, packet: &Packet<'_>) {
        if !self.arrived(now, packet.wire_len()) {
            return;
        }
        if self.is_slow() {
            let mut bytes = Vec::new();
            if packet.emit(&mut bytes) {
                self.put_off(now, bytes);
            }
            return;
        }
        self.take_packet(now, packet);
    }

    /// A packet of `len` bytes arrived that its driver does not let in.
    pub(crate) fn refuse(&mut self, now: Time, len: usize) {
        if self.arrived(now, len) {
            self.counters.refused_pkts += 1;
            self.drop_packet(DropReason::Refused);
        }
    }

    /// A packet of `len` bytes arrived again, as its driver noticed.
    pub(crate) fn refuse_duplicate(&mut self, now: Time, len: usize) {
        if self.arrived(now, len) {
            self.duplicate();
        }
    }

    /// Counts a packet; whether it gets in.
    fn arrived(&mut self, now: Time, len: usize) -> bool {
        self.objects.tracer.now = now;
        if !self.port_up {
            self.objects.tracer.emit(|| Traced::PacketDropped { reason: DropReason::PortDown });
            return false;
        }
        self.counters.rx_pkts += 1;
        self.counters.rx_bytes += len as u64;
        true
    }

    fn is_slow(&self) -> bool {
        self.faults.rx_rate.is_some() || !self.inbox.packets.is_empty()
    }

    /// Whether more arrives than the device can take in.
    pub(super) fn is_congested(&self) -> bool {
        self.inbox.bytes > self.faults.rx_buffer / 4
    }

    /// Takes a packet in later, as fast as a slow receiver can.
    fn put_off(&mut self, now: Time, bytes: Vec<u8>) {
        let inbox = &mut self.inbox;
        if inbox.bytes + bytes.len() > self.faults.rx_buffer {
            self.drop_packet(DropReason::Overrun);
            return;
        }
        inbox.busy_until = inbox.busy_until.max(now) + takes(bytes.len(), self.faults.rx_rate);
        inbox.bytes += bytes.len();
        inbox.packets.push_back((inbox.busy_until, bytes));
    }

    /// Takes in what a slow receiver can have taken in by now.
    pub(super) fn take_in(&mut self, now: Time) {
        while self.inbox.next_time().is_some_and(|due| due <= now)
            && let Some((_, bytes)) = self.inbox.packets.pop_front()
        {
            self.inbox.bytes -= bytes.len();
            self.take_bytes(now, &bytes);
        }
    }

    fn take_bytes(&mut self, now: Time, bytes: &[u8]) {
        match Packet::parse(bytes) {
            Ok(packet) => self.take_packet(now, &packet),
            Err(error) => {
                let corrupt = matches!(error, WireError::Corrupt { .. });
                self.counters.corrupt_pkts += u64::from(corrupt);
                log!(debug, %error, "packet dropped");
                self.drop_packet(if corrupt { DropReason::Corrupt } else { DropReason::Malformed });
            }
        }
    }

    fn take_packet(&mut self, now: Time, Packet { envelope, body }: &Packet<'_>) {
        if let Body::Data(_, payload) = body
            && payload.is_gone()
        {
            self.drop_packet(DropReason::SourceGone);
            return;
        }
        self.objects.tracer.emit(|| Traced::PacketIn { src: envelope.src, packet: TracedPacket::of(body) });
        match body {
            Body::Data(data, payload) => self.take_data(now, envelope, data, payload),
            Body::Datagram(header, payload) => self.take_datagram(envelope, header, payload),
            Body::Acks { lane, congested, acks } => self.take_acks(now, envelope, *lane, *congested, acks),
            Body::Hello(hello) => self.take_hello(now, envelope, hello),
        }
    }

    fn take_data(&mut self, now: Time, envelope: &Envelope, data: &Data, payload: &Payload<'_>) {
        let src = envelope.src;
        let flow = match self.is_spoken_to(envelope) {
            Some(false) => {
                // It is told, at the address that it gives, which life it speaks to.
                self.answer(envelope, Hello::default());
                None
            }
            Some(true) => self.flow_to(now, src).filter(|&flow| self.hears(now, envelope, flow)),
            None => None,
        };
        match flow {
            Some(flow) => {
                self.on_data(flow, src, data, payload);
                self.wake(flow);
                self.fail_broken();
            }
            None => self.drop_packet(DropReason::NotForUs),
        }
    }

    fn take_acks(&mut self, now: Time, envelope: &Envelope, lane: Lane, congested: bool, acks: &Acks<'_>) {
        let src = envelope.src;
        let flow = if self.is_spoken_to(envelope) == Some(true) { self.known_flow(src) } else { None };
        let Some(flow) = flow.filter(|&flow| self.hears(now, envelope, flow)) else {
            self.drop_packet(DropReason::NotForUs);
            return;
        };
        let mut finished = Vec::new();
        let tx = &mut self.flows[flow].tx[lane as usize];
        for ack in acks.iter() {
            tx.on_ack(now, ack, &mut finished);
        }
        if congested {
            tx.congested(now);
        }
        self.settle(flow, finished);
        self.pass_time(now, flow);
    }

    fn take_hello(&mut self, now: Time, envelope: &Envelope, hello: &Hello) {
        let src = envelope.src;
        let spoken_to = self.is_spoken_to(envelope);
        if spoken_to.is_some() && hello.challenge != 0 {
            self.answer(envelope, Hello { challenge: 0, echo: hello.challenge });
            self.note_return(now, envelope);
            return;
        }
        let Some(flow) = self.known_flow(src).filter(|_| spoken_to == Some(true)) else {
            self.drop_packet(DropReason::NotForUs);
            return;
        };
        if hello.echo == self.flows[flow].challenge {
            self.learn(now, envelope, flow);
        } else if self.flows[flow].peer_incarnation != envelope.src_incarnation {
            self.flows[flow].doubt();
        }
        self.wake(flow);
    }

    /// A peer has just said which life it is in.
    fn learn(&mut self, now: Time, envelope: &Envelope, index: usize) {
        self.challenges += 1;
        let flow = &mut self.flows[index];
        (flow.challenge, flow.doubt) = (self.challenges, false);
        (flow.lively_at, flow.ack_path) = (now, envelope.path);
        let known = std::mem::replace(&mut flow.peer_incarnation, envelope.src_incarnation);
        if known != 0 && known != envelope.src_incarnation {
            self.peer_restarted(index);
        }
    }

    /// A peer asks who we are. After a long silence it has forgotten us, and counts from anew.
    fn note_return(&mut self, now: Time, envelope: &Envelope) {
        if let Some(flow) = self.known_flow(envelope.src) {
            let flow = &mut self.flows[flow];
            if flow.peer_incarnation == envelope.src_incarnation && now >= flow.lively_at + self.config.peer_timeout {
                flow.rx = Default::default();
            }
        }
    }

    /// A datagram: placed if there is a place for it, and forgotten otherwise.
    fn take_datagram(&mut self, envelope: &Envelope, header: &MessageHeader, payload: &Payload<'_>) {
        let src = envelope.src;
        let for_us = self.is_spoken_to(envelope);
        if for_us.is_none() || for_us == Some(false) && envelope.dst_incarnation != 0 {
            self.drop_packet(DropReason::NotForUs);
            return;
        }
        let wanted = self.objects.qp(header.dst_qpn).is_ok_and(|qp| qp.takes(Transport::Ud, header.qkey));
        if !wanted || header.op != WireOp::Send || payload.len() != header.bytes as usize {
            self.drop_packet(DropReason::Unwanted);
            return;
        }
        match self.objects.receive(header, src, payload, UD_PREFIX) {
            Ok(Placed::Yes) => self.count_received(header),
            Ok(Placed::NotReady | Placed::Later) => self.drop_packet(DropReason::Unwanted),
            Err(_) => {}
        }
        self.fail_broken();
    }

    fn count_received(&mut self, header: &MessageHeader) {
        self.counters.recv_wrs += 1;
        self.counters.recv_bytes += u64::from(header.bytes);
        let (qpn, bytes) = (header.dst_qpn, header.bytes);
        self.objects.tracer.emit(|| Traced::Placed { qpn, bytes });
    }

    /// Whether a packet is for this life of this device; `None`: it is not for this device, or from nobody who could send it one.
    fn is_spoken_to(&mut self, envelope: &Envelope) -> Option<bool> {
        let Envelope { src, dst, src_incarnation, dst_incarnation, .. } = *envelope;
        if dst != self.config.attributes.gid || src_incarnation == 0 || !self.is_routable(src) {
            return None;
        }
        let own = match self.known_flow(src) {
            Some(flow) => self.flows[flow].own_incarnation,
            None if dst_incarnation == 0 => return Some(false),
            None => self.config.incarnation_for(src),
        };
        Some(dst_incarnation == own)
    }

    /// Whether a packet for this life of ours is from the life of the peer that we know, or from the first one that we hear of.
    fn hears(&mut self, now: Time, envelope: &Envelope, index: usize) -> bool {
        let flow = &mut self.flows[index];
        if flow.peer_incarnation == 0 {
            flow.peer_incarnation = envelope.src_incarnation;
        }
        if flow.peer_incarnation != envelope.src_incarnation {
            flow.doubt();
            self.wake(index);
            return false;
        }
        (flow.lively_at, flow.ack_path) = (now, envelope.path);
        true
    }

    /// Tells the sender of a packet which life of this device it speaks to.
    fn answer(&mut self, envelope: &Envelope, hello: Hello) {
        if self.answers.len() < MAX_ANSWERS {
            let envelope = Envelope {
                src: envelope.dst,
                dst: envelope.src,
                src_incarnation: self.config.incarnation_for(envelope.src),
                dst_incarnation: envelope.src_incarnation,
                path: envelope.path,
            };
            self.answers.push_back(Packet { envelope, body: Body::Hello(hello) });
        }
    }

    /// What the peer's earlier life had received or promised is gone.
    fn peer_restarted(&mut self, flow: usize) {
        self.counters.impaired_remote_conn_events += 1;
        self.flows[flow].rx = Default::default();
        let finished = self.flows[flow].finish_where(Status::RemoteAbort, |_| true);
        self.settle(flow, finished);
    }

    fn duplicate(&mut self) {
        self.counters.duplicate_pkts += 1;
        self.objects.tracer.emit(|| Traced::PacketDropped { reason: DropReason::Duplicate });
    }

    fn on_data(&mut self, index: usize, src: Gid, data: &Data, payload: &Payload<'_>) {
        let header = &data.header;
        let lane = header.op.lane() as usize;
        let flow = &mut self.flows[index];
        let Some(standing) = flow.rx[lane].open(data.message, data.base, flow.span()) else {
            self.duplicate();
            return;
        };
        let is_new = match standing {
            Standing::Empty => true,
            Standing::Done(_) | Standing::Accepted | Standing::NotReady => false,
            Standing::Partial => match self.flows[index].rx[lane].partial(data.message) {
                Some(partial) if partial.header == *header && partial.stride == data.stride => {
                    !partial.received.contains(data.packet)
                }
                _ => {
                    self.conclude(index, src, data, Err(Status::RemoteBadStatus));
                    return;
                }
            },
        };
        if is_new {
            let outcome = self.place(index, src, data, payload);
            self.flows[index].matters |= matches!(outcome, Ok(Placed::Yes));
            self.conclude(index, src, data, outcome);
            return;
        }
        // What comes after a refusal may be here for the first time.
        if !matches!(standing, Standing::Done(status) if !status.is_ok()) {
            self.duplicate();
        }
        self.flows[index].rx[lane].touch(data.message);
    }

    /// Moves a message on after one of its packets was placed or could not be.
    fn conclude(&mut self, index: usize, src: Gid, data: &Data, outcome: Outcome) {
        let lane = data.header.op.lane() as usize;
        let next = match outcome {
            Ok(Placed::Later) => return,
            Err(status) => Some(Standing::Done(status)),
            Ok(Placed::NotReady) => Some(Standing::NotReady),
            Ok(Placed::Yes) if self.is_complete(index, data) => Some(self.finish_message(index, src, data)),
            Ok(Placed::Yes) => None,
        };
        self.counters.rnr_sent += u64::from(next == Some(Standing::NotReady));
        let rx = &mut self.flows[index].rx[lane];
        if let Some(standing) = next {
            rx.set(data.message, standing);
        }
        rx.touch(data.message);
    }

    /// Notes that a packet is placed; whether all of its message is.
    fn is_complete(&mut self, index: usize, data: &Data) -> bool {
        let header = data.header;
        if header.packets(data.stride) == 1 {
            return true;
        }
        let rx = &mut self.flows[index].rx[header.op.lane() as usize];
        let partial = match rx.known(data.message) {
            Some(Standing::Partial) => rx.partial(data.message),
            _ => rx.begin(data.message, header, data.stride),
        };
        // Without a place in the book the packet was placed in vain, and comes again.
        partial.is_some_and(|partial| {
            partial.received.insert(data.packet);
            partial.received.missing() == 0
        })
    }

    /// All bytes of a message are placed.
    fn finish_message(&mut self, index: usize, src: Gid, data: &Data) -> Standing {
        let header = &data.header;
        match header.op {
            WireOp::Send => Standing::Done(Status::Ok),
            WireOp::Write => {
                if !header.placed {
                    self.counters.rdma_write_recv_bytes += u64::from(header.bytes);
                }
                let announced = match header.imm {
                    Some(_) => self.objects.announce(header, src),
                    None => Ok(Placed::Yes),
                };
                match announced {
                    Ok(Placed::Yes) => {
                        self.objects.count(header.dst_qpn, CounterOps::REMOTE_RDMA_WRITE, Status::Ok);
                        Standing::Done(Status::Ok)
                    }
                    Ok(Placed::NotReady | Placed::Later) => Standing::NotReady,
                    Err(status) => Standing::Done(status),
                }
            }
            WireOp::ReadRequest => Standing::Accepted,
            WireOp::ReadResponse => {
                let finished = self.flows[index].tx[Lane::Requests as usize].finish(header.reply_to, Status::Ok);
                self.settle(index, finished);
                Standing::Done(Status::Ok)
            }
        }
    }

    /// Checks what a packet asks for, and does it.
    fn place(&mut self, index: usize, src: Gid, data: &Data, payload: &Payload<'_>) -> Outcome {
        let header = &data.header;
        let offset = data.packet as usize * data.stride as usize;
        match header.op {
            WireOp::Send => {
                self.objects.target(header)?;
                if header.packets(data.stride) != 1 || header.placed {
                    return Err(Status::RemoteFeatureMismatch); // a send is one packet
                }
                let placed = self.objects.receive(header, src, payload, 0)?;
                if let Placed::Yes = placed {
                    self.count_received(header);
                }
                Ok(placed)
            }
            WireOp::Write => {
                let pd = self.objects.target(header)?;
                let enabled =
                    self.config.attributes.rdma_write && header.bytes <= self.config.attributes.max_rdma_bytes;
                let target = self.objects.remote(pd, header, src, Access::REMOTE_WRITE, enabled)?;
                if let Some((memory, start)) = target
                    && !payload.place(0, payload.len(), memory, start + offset)
                {
                    return Err(Status::RemoteBadAddress);
                }
                let (qpn, bytes) = (header.dst_qpn, payload.len() as u32);
                self.objects.tracer.emit(|| Traced::Placed { qpn, bytes });
                Ok(Placed::Yes)
            }
            WireOp::ReadRequest => {
                let pd = self.objects.target(header)?;
                let enabled = self.config.attributes.rdma_read && header.bytes <= self.config.attributes.max_rdma_bytes;
                self.objects.remote(pd, header, src, Access::REMOTE_READ, enabled)?;
                let responses = &mut self.flows[index].tx[Lane::Responses as usize];
                if responses.len() >= MESSAGE_WINDOW as usize {
                    // Some of them have arrived and it is only not known here yet: more a peer has no use for.
                    return Ok(Placed::Later);
                }
                let response = MessageHeader {
                    reply_to: data.message,
                    ..MessageHeader::new(WireOp::ReadResponse, header.dst_qpn, header.src_qpn, header.bytes)
                };
                let origin = Origin::Response { qpn: header.dst_qpn, request: data.message };
                let memory = Memory::Remote { pd, rkey: header.rkey, addr: header.remote_addr };
                let (ah, rnr_retries) = (None, None);
                responses.push(Message { header: response, origin, memory, ah, rnr_retries, refusals: 0 });
                Ok(Placed::Yes)
            }
            WireOp::ReadResponse => self.place_response(index, header, offset, payload),
        }
    }

    /// Bytes that a read of ours asked for.
    fn place_response(
        &mut self,
        index: usize,
        header: &MessageHeader,
        offset: usize,
        payload: &Payload<'_>,
    ) -> Outcome {
        let requests = &mut self.flows[index].tx[Lane::Requests as usize];
        let Some(request) = requests.message(header.reply_to) else {
            return Err(Status::RemoteAbort); // the read has ended in some other way
        };
        let Memory::Scatter { pd, buf } = request.memory else {
            return Err(Status::RemoteBadStatus);
        };
        let status = if request.header.bytes != header.bytes || header.placed {
            Status::RemoteBadStatus
        } else if buf.length == 0 {
            return Ok(Placed::Yes);
        } else if let Some((memory, start)) = self.objects.local(pd, &buf, Access::LOCAL_WRITE)
            && payload.place(0, payload.len(), memory, start + offset)
        {
            let (qpn, bytes) = (header.dst_qpn, payload.len() as u32);
            self.objects.tracer.emit(|| Traced::Placed { qpn, bytes });
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
            Ok(qp) if qp.takes(Transport::Srd, header.qkey) => Ok(qp.pd),
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
    ) -> Result<Option<(&Arc<RevocableMemory>, usize)>, Status> {
        if !enabled {
            return Err(Status::RemoteFeatureMismatch);
        }
        if self.known_peer.get() != Some((pd, src)) {
            if !self.ah_of.contains_key(&(pd, src)) {
                return Err(Status::RemoteUnknownPeer);
            }
            self.known_peer.set(Some((pd, src)));
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

    /// Places a send in the next receive, behind `prefix` bytes of zeros.
    fn receive(&mut self, header: &MessageHeader, src: Gid, payload: &Payload<'_>, prefix: u32) -> Outcome {
        let qpn = header.dst_qpn;
        let pd = self.qp(qpn).map_err(|_| Status::RemoteBadDestQpn)?.pd;
        let mut received = self.received(pd, header, src, OpCode::Send);
        received.length += prefix;
        let Some(receive) = self.take_receive(qpn)? else { return Ok(Placed::NotReady) };
        // What the receiver's own completion says, and what the sender is told.
        let (status, outcome) = match self.scatter(pd, &receive, payload, prefix as usize) {
            Ok(()) => (Status::Ok, Ok(Placed::Yes)),
            Err(Status::BadLength) => (Status::BadLength, Err(Status::RemoteBadLength)),
            Err(status) => (status, Err(Status::RemoteBadStatus)),
        };
        self.complete_receive(qpn, receive.req_id.into(), received, status);
        outcome
    }

    /// The next receive of a queue pair, if one was posted.
    fn take_receive(&mut self, qpn: u16) -> Result<Option<Receive>, Status> {
        let qp = self.qp(qpn).map_err(|_| Status::RemoteBadDestQpn)?;
        qp.take_receive().map_err(|error| {
            log!(warn, qpn, %error, "malformed receive ring: the queue pair goes to the error state");
            self.broken.push(qpn);
            Status::RemoteBadDestQpn
        })
    }

    /// Spreads `prefix` zeros and a message over a receive's buffers. Nothing is written unless all of it fits.
    fn scatter(&self, pd: u32, receive: &Receive, payload: &Payload<'_>, prefix: usize) -> Result<(), Status> {
        let total = prefix + payload.len();
        // Where each buffer's part begins and how long it is.
        let parts = receive.bufs.iter().scan(0, |from, buf| {
            let here = usize::from(buf.length).min(total - *from);
            *from += here;
            Some((buf, *from - here, here))
        });
        let parts = parts.filter(|&(_, _, here)| here > 0);
        let find = |buf: &efa_io::rx::RxBuf| {
            let found = self.regions.local(pd, buf.lkey.get(), buf.addr, buf.length.into(), Access::LOCAL_WRITE);
            found.ok_or(Status::InvalidLkey)
        };
        let mut room = 0;
        for (buf, _, here) in parts.clone() {
            find(buf)?;
            room += here;
        }
        if room < total {
            return Err(Status::BadLength);
        }
        for (buf, from, here) in parts {
            let (memory, at) = find(buf)?;
            let zeros = prefix.saturating_sub(from).min(here);
            let placed = memory.write(at, &[0; UD_PREFIX as usize][..zeros])
                && payload.place((from + zeros).saturating_sub(prefix), here - zeros, memory, at + zeros);
            if !placed {
                return Err(Status::InvalidLkey);
            }
        }
        Ok(())
    }

    /// Delivers the immediate of a write whose bytes are all placed.
    fn announce(&mut self, header: &MessageHeader, src: Gid) -> Outcome {
        let qpn = header.dst_qpn;
        let (pd, unsolicited) = match self.qp(qpn) {
            Ok(qp) if qp.state.receives() => (qp.pd, qp.unsolicited_write_recv),
            _ => return Err(Status::RemoteBadDestQpn),
        };
        let received = Received { unsolicited, ..self.received(pd, header, src, OpCode::RdmaWrite) };
        let req_id = if unsolicited {
            0
        } else {
            match self.take_receive(qpn)? {
                Some(receive) => receive.req_id.into(),
                None => return Ok(Placed::NotReady),
            }
        };
        self.complete_receive(qpn, req_id, received, Status::Ok);
        Ok(Placed::Yes)
    }
}
