//! From a message to a packet: whose turn it is, and which bytes the packet carries.
//!
//! Answers to peers go first, since a peer waits for each of them and they are short. Then datagrams and peers take
//! turns, one packet each, and so do the peers, the lanes of a peer, and the queue pairs of a lane. None of them waits
//! for all that another has to send.

use super::Device;
use super::datagrams::Datagram;
use super::peer::PeerIndex;
use crate::Time;
use crate::srd::Origin;
use crate::trace::{DropReason, Traced, TracedPacket};
use crate::wire::{Body, Data, Envelope, Packet};
use efa_io::Status;

/// A packet that is to leave.
struct Outgoing {
    packet: Packet<'static>,
    /// It left before.
    resent: bool,
}

impl From<Packet<'static>> for Outgoing {
    fn from(packet: Packet<'static>) -> Self {
        Self { packet, resent: false }
    }
}

/// # Output
impl Device {
    /// Returns the next packet for the network, or `None` if there is nothing to send now.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Packet<'static>> {
        self.objects.tracer.now = now;
        loop {
            let Outgoing { packet, resent } = self.next_packet(now)?;
            if !self.port_up {
                self.objects.tracer.emit(|| Traced::PacketDropped { reason: DropReason::PortDown });
                continue;
            }
            // The sender's counters grow even if the packet gets nowhere: hardware is not told either.
            let bytes = packet.wire_len();
            self.counters.tx_pkts += 1;
            self.counters.tx_bytes += bytes as u64;
            if resent {
                self.counters.retrans_pkts += 1;
                self.counters.retrans_bytes += bytes as u64;
            }
            let Envelope { dst, path, .. } = packet.envelope;
            self.objects.tracer.emit(|| {
                let packet = TracedPacket::of(&packet.body);
                Traced::PacketOut { dst, packet, path, bytes: bytes as u32, resent }
            });
            if self.is_routable(dst) {
                return Some(packet);
            }
            self.objects.tracer.emit(|| Traced::PacketDropped { reason: DropReason::Unroutable });
        }
    }
}

impl Device {
    fn next_packet(&mut self, now: Time) -> Option<Outgoing> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer.into());
        }
        // The turn is passed on even if nobody has used it, so that neither side can hold it.
        if self.datagrams.take_turn()
            && let Some(datagram) = self.next_datagram()
        {
            return Some(datagram.into());
        }
        self.next_to_peers(now).or_else(|| self.next_datagram().map(Outgoing::from))
    }

    fn next_datagram(&mut self) -> Option<Packet<'static>> {
        while let Some(datagram) = self.datagrams.pop() {
            if let Some(packet) = self.send_datagram(datagram) {
                return Some(packet);
            }
        }
        None
    }

    /// Makes a packet of a datagram, and completes its request: a datagram is not acknowledged, so that it has left is
    /// all that can be said of it.
    fn send_datagram(&mut self, Datagram { dst, message }: Datagram) -> Option<Packet<'static>> {
        let Origin::Wqe { qpn, req_id, op } = message.origin else { return None };
        self.objects.datagram_left(qpn);
        // The program may reuse its buffers as soon as the request completes, so the packet cannot refer to them.
        let payload = self.objects.payload(&message, 0, self.config.attributes.mtu);
        let payload = payload.and_then(|payload| payload.snapshot().ok_or(Status::InvalidLkey));
        let status = payload.as_ref().err().copied().unwrap_or(Status::Ok);
        self.objects.complete_send(qpn, req_id, op, status);
        let body = Body::Datagram(message.header, payload.ok()?);
        // No peer is added for a datagram: nothing will be heard of it. The incarnation of a known peer is at hand.
        let src_incarnation = match self.peers.find(dst) {
            Some(peer) => self.peers[peer].own_incarnation,
            None => self.config.incarnation_for(dst),
        };
        let envelope = Envelope { src: self.config.attributes.gid, dst, src_incarnation, dst_incarnation: 0, path: 0 };
        Some(Packet { envelope, body })
    }

    fn envelope(&self, peer: PeerIndex, path: u8) -> Envelope {
        let peer = &self.peers[peer];
        Envelope {
            src: self.config.attributes.gid,
            dst: peer.gid,
            src_incarnation: peer.own_incarnation,
            dst_incarnation: peer.incarnation,
            path,
        }
    }

    /// Returns the next packet to the peer whose turn it is. A peer keeps its turn while there are acknowledgements or
    /// a hello for it, and passes it on after one packet of a message.
    fn next_to_peers(&mut self, now: Time) -> Option<Outgoing> {
        while let Some(peer) = self.peers.next_to_send() {
            // Acknowledgements first: they let the peer's messages end, and make room in its window.
            if let Some(lane) = self.peers[peer].lane_to_ack() {
                let acks = self.peers[peer].recv_lanes[lane].poll_acks(self.config.attributes.mtu as usize);
                if acks.is_empty() {
                    continue; // all that was to be acknowledged is forgotten
                }
                self.counters.ack_pkts += 1;
                let envelope = self.envelope(peer, self.peers[peer].ack_path);
                let congested = self.inbox.is_congested(&self.faults);
                return Some(Packet { envelope, body: Body::Acks { lane, congested, acks } }.into());
            }
            if let Some(hello) = self.peers[peer].poll_hello(now, &self.config) {
                // The peer answers a hello whatever life it is in.
                let envelope = Envelope { dst_incarnation: 0, ..self.envelope(peer, 0) };
                return Some(Packet { envelope, body: Body::Hello(hello) }.into());
            }
            let state = &mut self.peers[peer];
            let lanes = state.take_turn();
            // Until the peer has said which life it is in, its messages wait.
            let may_send = state.incarnation != 0;
            let due = lanes.into_iter().find_map(|lane| {
                let due = if may_send { state.send_lanes[lane].poll_send(now) } else { None };
                Some((lane, due?))
            });
            let Some((lane, due)) = due else {
                self.peers.rest_front();
                continue;
            };
            self.peers.pass_turn();
            // The payload is looked up only now, when the packet leaves: no region is held for packets that wait.
            let (lane, stride) = (&mut self.peers[peer].send_lanes[lane], self.config.attributes.mtu);
            let base = lane.base();
            let Some(message) = lane.message(due.message) else { continue }; // the lane returns open messages only
            match self.objects.payload(message, due.packet, stride) {
                Ok(payload) => {
                    let data = Data { message: due.message, base, header: message.header, stride, packet: due.packet };
                    let packet = Packet { envelope: self.envelope(peer, due.path), body: Body::Data(data, payload) };
                    return Some(Outgoing { packet, resent: due.resent });
                }
                Err(status) => {
                    // The program deregistered the region while the message was under way.
                    let ended = lane.end(due.message, status);
                    self.report_ended(peer, ended);
                }
            }
        }
        None
    }
}
