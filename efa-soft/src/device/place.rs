//! From a lane to memory and completions: what a message may do here, and what its sender is told.
//!
//! Packets of a message are placed in whatever order they arrive, each directly where it belongs. So a receiver needs
//! no buffer to put them in order, and a program that watches the last byte of its memory learns nothing about the
//! others. SRD has no order either (the vendor's SRD.txt). A completion is written once all bytes are placed.
//!
//! Every packet is checked as if it were the first: its queue pair may have failed since, or its region may be gone.

use super::Device;
use super::peer::PeerIndex;
use crate::contain::log;
use crate::qp::Receive;
use crate::srd::{MESSAGE_WINDOW, Memory, Message, Origin, Standing};
use crate::trace::{DropReason, Traced};
use crate::wire::{Data, MessageHeader, Payload, WireOp};
use efa_io::cqe::Received;
use efa_io::{OpCode, Status};
use efa_types::{Access, CounterOps, Gid, Transport, UD_PREFIX};

/// The outcome of placing a packet's bytes: `Err` with the status that the sender is told, if the message is refused.
type Outcome = Result<Placed, Status>;

/// What became of bytes that are not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    /// They are where they belong.
    Yes,
    /// They need a receive descriptor, and none is posted.
    NotReady,
    /// The device has no room for them now. Its peer is told nothing, and sends them again.
    Later,
}

impl Device {
    /// Handles a packet of a message.
    pub(super) fn on_data(&mut self, peer: PeerIndex, src: Gid, data: &Data, payload: &Payload<'_>) {
        let header = &data.header;
        let state = &mut self.peers[peer];
        let span = state.span();
        let lane = &mut state.recv_lanes[header.op.lane()];
        let Some(standing) = lane.open(data.message, data.base, span) else {
            self.count_duplicate();
            return;
        };
        // Each packet is placed once. A copy that arrived late must not overwrite what the program has written there
        // since.
        let is_new = match standing {
            Standing::Empty => true,
            Standing::Done(_) | Standing::Accepted | Standing::NotReady => false,
            Standing::Partial => match lane.partial(data.message) {
                Some(partial) if partial.header == *header && partial.stride == data.stride => {
                    !partial.has(data.packet)
                }
                // The packets of one message contradict each other.
                _ => {
                    self.conclude(peer, src, data, Err(Status::RemoteBadStatus));
                    return;
                }
            },
        };
        if is_new {
            let outcome = self.place(peer, src, data, payload);
            if outcome == Ok(Placed::Yes) {
                self.peers[peer].is_stranger = false;
            }
            self.conclude(peer, src, data, outcome);
            return;
        }
        // A packet of a message that was refused may be here for the first time: it is no duplicate.
        if !matches!(standing, Standing::Done(status) if !status.is_ok()) {
            self.count_duplicate();
        }
        // The acknowledgement was lost, or is under way.
        self.peers[peer].recv_lanes[header.op.lane()].acknowledge(data.message);
    }

    /// Moves a message on after one of its packets was placed, or could not be.
    fn conclude(&mut self, peer: PeerIndex, src: Gid, data: &Data, outcome: Outcome) {
        let standing = match outcome {
            Ok(Placed::Later) => return, // no acknowledgement: the sender's timer will send it again
            Err(status) => Some(Standing::Done(status)),
            Ok(Placed::NotReady) => Some(Standing::NotReady),
            Ok(Placed::Yes) if self.is_complete(peer, data) => Some(self.finish_message(peer, src, data)),
            Ok(Placed::Yes) => None,
        };
        self.counters.rnr_sent += u64::from(standing == Some(Standing::NotReady));
        let lane = &mut self.peers[peer].recv_lanes[data.header.op.lane()];
        if let Some(standing) = standing {
            lane.set(data.message, standing);
        }
        lane.acknowledge(data.message);
    }

    /// Notes that a packet is placed. Returns `true` if all of its message is.
    fn is_complete(&mut self, peer: PeerIndex, data: &Data) -> bool {
        let header = data.header;
        if header.packets(data.stride) == 1 {
            return true; // nothing to track, and no allocation
        }
        let lane = &mut self.peers[peer].recv_lanes[header.op.lane()];
        let partial = match lane.known(data.message) {
            Some(Standing::Partial) => lane.partial(data.message),
            _ => lane.begin(data.message, header, data.stride),
        };
        // If the message cannot be tracked, the packet was placed in vain, and comes again.
        partial.is_some_and(|partial| partial.complete_with(data.packet))
    }

    /// Does what is left to do once all bytes of a message are placed.
    fn finish_message(&mut self, peer: PeerIndex, src: Gid, data: &Data) -> Standing {
        let header = &data.header;
        match header.op {
            WireOp::Send => Standing::Done(Status::Ok),
            WireOp::Write => {
                // An offer that is repeated for its immediate brings no bytes.
                if !header.placed {
                    self.counters.rdma_write_recv_bytes += u64::from(header.bytes);
                }
                let delivered = match header.imm {
                    Some(_) => self.deliver_imm(header, src),
                    None => Ok(Placed::Yes),
                };
                match delivered {
                    Ok(Placed::Yes) => {
                        self.objects.count(header.dst_qpn, CounterOps::REMOTE_RDMA_WRITE, Status::Ok);
                        Standing::Done(Status::Ok)
                    }
                    Ok(Placed::NotReady | Placed::Later) => Standing::NotReady,
                    Err(status) => Standing::Done(status),
                }
            }
            // The request ends with its answer.
            WireOp::ReadRequest => Standing::Accepted,
            WireOp::ReadResponse => {
                let ended = self.peers[peer].send_lanes.requests.end(header.reply_to, Status::Ok);
                self.report_ended(peer, ended);
                Standing::Done(Status::Ok)
            }
        }
    }

    /// Checks what a packet asks for, and does it.
    ///
    /// The checks are those that `enum efa_io_comp_status` (`efa_io_defs.h`) has statuses for with "remote" in their
    /// descriptions: the queue pair and its qkey, whether the operation is enabled, whether the initiator is known,
    /// then the key, the right and the bounds.
    fn place(&mut self, peer: PeerIndex, src: Gid, data: &Data, payload: &Payload<'_>) -> Outcome {
        let header = &data.header;
        let offset = data.packet as usize * data.stride as usize;
        let limits = &self.config.attributes;
        match header.op {
            WireOp::Send => {
                self.objects.target(header)?;
                if header.packets(data.stride) != 1 || header.placed {
                    return Err(Status::RemoteFeatureMismatch); // a send is one packet
                }
                let placed = self.receive(header, src, payload, 0)?;
                if placed == Placed::Yes {
                    self.count_received(header);
                }
                Ok(placed)
            }
            WireOp::Write => {
                let pd = self.objects.target(header)?;
                // The length is that of the whole write, so that a message which passes its region fails at its first
                // packet.
                let enabled = limits.rdma_write && header.bytes <= limits.max_rdma_bytes;
                let target = self.objects.remote(pd, header, src, Access::REMOTE_WRITE, enabled)?;
                // Straight from the sender's region to this one, if both are in this process: one copy, as DMA would
                // make it.
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
                let enabled = limits.rdma_read && header.bytes <= limits.max_rdma_bytes;
                self.objects.remote(pd, header, src, Access::REMOTE_READ, enabled)?;
                self.answer_read(peer, pd, data)
            }
            WireOp::ReadResponse => self.place_response(peer, header, offset, payload),
        }
    }

    /// Queues the answer to a read request.
    fn answer_read(&mut self, peer: PeerIndex, pd: u32, data: &Data) -> Outcome {
        let header = &data.header;
        let responses = &mut self.peers[peer].send_lanes.responses;
        if responses.len() >= MESSAGE_WINDOW as usize {
            // An honest peer has no more reads outstanding: some answers have arrived, and only their acknowledgements
            // have not.
            return Ok(Placed::Later);
        }
        let response = MessageHeader {
            reply_to: data.message,
            ..MessageHeader::new(WireOp::ReadResponse, header.dst_qpn, header.src_qpn, header.bytes)
        };
        let origin = Origin::Response { qpn: header.dst_qpn, request: data.message };
        // The key is checked again for every packet, so that the program may deregister the region meanwhile.
        let memory = Memory::Remote { pd, rkey: header.rkey, addr: header.remote_addr };
        responses.push(Message { header: response, origin, memory, ah: None, rnr_retries: None, refusals: 0 });
        Ok(Placed::Yes)
    }

    /// Places bytes that a read of this device asked for.
    fn place_response(
        &mut self,
        peer: PeerIndex,
        header: &MessageHeader,
        offset: usize,
        payload: &Payload<'_>,
    ) -> Outcome {
        let requests = &mut self.peers[peer].send_lanes.requests;
        let Some(request) = requests.message(header.reply_to) else {
            return Err(Status::RemoteAbort); // the read has ended in some other way
        };
        let Memory::Scatter { pd, buf } = request.memory else {
            return Err(Status::RemoteBadStatus);
        };
        let status = if request.header.bytes != header.bytes || header.placed {
            Status::RemoteBadStatus // the peer answers another question
        } else if buf.length == 0 {
            return Ok(Placed::Yes); // no key is looked at for no bytes
        } else if let Some((memory, start)) = self.objects.local(pd, &buf, Access::LOCAL_WRITE)
            && payload.place(0, payload.len(), memory, start + offset)
        {
            let (qpn, bytes) = (header.dst_qpn, payload.len() as u32);
            self.objects.tracer.emit(|| Traced::Placed { qpn, bytes });
            return Ok(Placed::Yes);
        } else {
            Status::InvalidLkey // deregistered since the check of the WQE
        };
        // The read ends here, and its answer there: the peer need not send the rest.
        let ended = requests.end(header.reply_to, status);
        self.report_ended(peer, ended);
        Err(Status::RemoteAbort)
    }

    /// Handles a datagram: it is placed if there is a place for it, and forgotten otherwise.
    pub(super) fn on_datagram(&mut self, src: Gid, header: &MessageHeader, payload: &Payload<'_>) {
        // A sender of datagrams is never told anything, so all that is wrong is a drop.
        let wanted = self.objects.qp(header.dst_qpn).is_ok_and(|qp| qp.takes(Transport::Ud, header.qkey));
        if !wanted || header.op != WireOp::Send || payload.len() != header.bytes as usize {
            self.drop_packet(DropReason::Unwanted);
            return;
        }
        match self.receive(header, src, payload, UD_PREFIX) {
            Ok(Placed::Yes) => self.count_received(header),
            Ok(Placed::NotReady | Placed::Later) => self.drop_packet(DropReason::Unwanted),
            Err(_) => {} // the receiver's own completion, or event, says so
        }
    }

    /// Counts a send that was received, under the kernel driver's names (`recv_wrs`, `recv_bytes` in `efa_verbs.c`).
    fn count_received(&mut self, header: &MessageHeader) {
        self.counters.recv_wrs += 1;
        self.counters.recv_bytes += u64::from(header.bytes);
        let (qpn, bytes) = (header.dst_qpn, header.bytes);
        self.objects.tracer.emit(|| Traced::Placed { qpn, bytes });
    }

    /// Places a send in the next receive of its queue pair, behind `prefix` bytes of zeros.
    fn receive(&mut self, header: &MessageHeader, src: Gid, payload: &Payload<'_>, prefix: u32) -> Outcome {
        let qpn = header.dst_qpn;
        let pd = self.objects.qp(qpn).map_err(|_| Status::RemoteBadDestQpn)?.pd;
        let mut received = self.objects.received(pd, header, src, OpCode::Send);
        received.length += prefix;
        let Some(receive) = self.take_receive(qpn)? else { return Ok(Placed::NotReady) };
        // What the receiver's own completion says, and what the sender is told.
        let (status, outcome) = match self.objects.scatter(pd, &receive, payload, prefix as usize) {
            Ok(()) => (Status::Ok, Ok(Placed::Yes)),
            Err(Status::BadLength) => (Status::BadLength, Err(Status::RemoteBadLength)),
            Err(status) => (status, Err(Status::RemoteBadStatus)),
        };
        self.objects.complete_receive(qpn, receive.req_id.into(), received, status);
        outcome
    }

    /// Delivers the immediate of a write whose bytes are all placed.
    fn deliver_imm(&mut self, header: &MessageHeader, src: Gid) -> Outcome {
        let qpn = header.dst_qpn;
        let (pd, unsolicited) = match self.objects.qp(qpn) {
            Ok(qp) if qp.state.receives() => (qp.pd, qp.unsolicited_write_recv),
            _ => return Err(Status::RemoteBadDestQpn),
        };
        let received = Received { unsolicited, ..self.objects.received(pd, header, src, OpCode::RdmaWrite) };
        let req_id = if unsolicited {
            0 // there is no receive whose id it could be (`flags.unsolicited` of `struct efa_io_cdesc_common`)
        } else {
            match self.take_receive(qpn)? {
                Some(receive) => receive.req_id.into(),
                None => return Ok(Placed::NotReady),
            }
        };
        self.objects.complete_receive(qpn, req_id, received, Status::Ok);
        Ok(Placed::Yes)
    }

    /// Takes the next receive of a queue pair, if one was posted. A malformed receive ring fails the queue pair: its
    /// sender is told that there is no such queue pair, which is what every later message will be told.
    fn take_receive(&mut self, qpn: u16) -> Result<Option<Receive>, Status> {
        let qp = self.objects.qp(qpn).map_err(|_| Status::RemoteBadDestQpn)?;
        qp.take_receive().map_err(|error| {
            log!(warn, qpn, %error, "malformed receive ring: the queue pair goes to the error state");
            self.fail_qp_with_event(qpn);
            Status::RemoteBadDestQpn
        })
    }
}
