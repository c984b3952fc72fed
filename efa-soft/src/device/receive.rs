//! From the network to the lanes: which packets the device takes in, and for whom they are.
//!
//! Every packet that arrives while the port is up is counted, and ends in one of three ways: it is handled, it is
//! dropped for a [reason](DropReason), or it waits in the [inbox](super::inbox) of a slow device and comes back here.
//! Nothing that a peer sends can make the device panic or grow without bound: each queue and table that packets fill
//! has a limit.

use super::Device;
use super::handshake::Addressee;
use crate::Time;
use crate::contain::log;
use crate::trace::{DropReason, Traced, TracedPacket};
use crate::wire::{Acks, Body, Data, Envelope, Hello, Lane, MessageHeader, Packet, Payload, WireError};

/// # Input from the network
impl Device {
    /// Handles a packet that arrived as bytes. Whatever the bytes are, the device reads and writes memory only where a
    /// registered region allows it.
    pub fn handle(&mut self, now: Time, bytes: &[u8]) {
        if !self.arrived(now, bytes.len()) {
            return;
        }
        if self.is_slow() {
            self.put_off(now, bytes.into());
        } else {
            self.take_bytes(now, bytes);
        }
    }

    /// Handles a packet that arrived without leaving this process.
    pub fn handle_packet(&mut self, now: Time, packet: &Packet<'_>) {
        if !self.arrived(now, packet.wire_len()) {
            return;
        }
        if self.is_slow() {
            // As bytes: the sender may deregister its memory while the packet waits.
            let mut bytes = Vec::new();
            if packet.emit(&mut bytes) {
                self.put_off(now, bytes);
            }
        } else {
            self.take_packet(now, packet);
        }
    }

    /// Counts a packet of `len` bytes that the driver does not let in.
    pub(crate) fn refuse(&mut self, now: Time, len: usize) {
        if self.arrived(now, len) {
            self.counters.refused_pkts += 1;
            self.drop_packet(DropReason::Refused);
        }
    }

    /// Counts a packet of `len` bytes that arrived again, as the driver noticed.
    pub(crate) fn refuse_duplicate(&mut self, now: Time, len: usize) {
        if self.arrived(now, len) {
            self.count_duplicate();
        }
    }
}

impl Device {
    /// Counts a packet. Returns `false` if the port is down, so that it does not get in.
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

    pub(super) fn drop_packet(&mut self, reason: DropReason) {
        self.counters.rx_drops += 1;
        self.objects.tracer.emit(|| Traced::PacketDropped { reason });
    }

    /// Counts a packet that arrived before. The hardware's `rx_drops` does not count these (assumed).
    pub(super) fn count_duplicate(&mut self) {
        self.counters.duplicate_pkts += 1;
        self.objects.tracer.emit(|| Traced::PacketDropped { reason: DropReason::Duplicate });
    }

    /// Returns `true` if packets wait in the inbox before they are taken in: also after the fault has ended, so that
    /// they keep their order.
    fn is_slow(&self) -> bool {
        self.faults.rx_rate.is_some() || !self.inbox.is_empty()
    }

    /// Has a slow device take a packet in later.
    fn put_off(&mut self, now: Time, bytes: Vec<u8>) {
        if !self.inbox.push(now, bytes, &self.faults) {
            self.drop_packet(DropReason::Overrun);
        }
    }

    /// Takes in what a slow device can have taken in by now.
    pub(super) fn empty_inbox(&mut self, now: Time) {
        while let Some(bytes) = self.inbox.pop(now) {
            self.take_bytes(now, &bytes);
        }
    }

    fn take_bytes(&mut self, now: Time, bytes: &[u8]) {
        match Packet::parse(bytes) {
            Ok(packet) => self.take_packet(now, &packet),
            // Who sent it is unknown: what does not parse cannot be trusted to say. So nobody is answered.
            Err(error) => {
                let corrupt = matches!(error, WireError::Corrupt { .. });
                self.counters.corrupt_pkts += u64::from(corrupt);
                log!(debug, %error, "packet dropped");
                self.drop_packet(if corrupt { DropReason::Corrupt } else { DropReason::Malformed });
            }
        }
    }

    /// Handles a packet, whichever way it came.
    fn take_packet(&mut self, now: Time, Packet { envelope, body }: &Packet<'_>) {
        // On hardware the bytes would have been read before. So this packet counts as lost, and its message fails at
        // the sender.
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
        // Only who knows this life's incarnation may become a peer: it receives at the address that it gives, or its
        // packets pass by there. So forged addresses do not fill the table of peers.
        let peer = match self.addressee(envelope) {
            Addressee::ThisLife => {
                let peer = self.peers.find_or_add(now, src, &self.config, &mut self.rng);
                peer.filter(|&peer| self.hears(now, envelope, peer))
            }
            Addressee::AnotherLife => {
                // The sender learns, at the address that it gives, which life it speaks to.
                self.answer(envelope, Hello::default());
                None
            }
            Addressee::SomebodyElse => None,
        };
        let Some(peer) = peer else {
            self.drop_packet(DropReason::NotForUs);
            return;
        };
        self.peers.wake(peer); // there will be something to acknowledge
        self.on_data(peer, src, data, payload);
    }

    fn take_acks(&mut self, now: Time, envelope: &Envelope, lane: Lane, congested: bool, acks: &Acks<'_>) {
        let for_us = self.addressee(envelope) == Addressee::ThisLife;
        // Who was never sent anything has nothing to acknowledge: no peer is added for it.
        let peer = if for_us { self.peers.find(envelope.src) } else { None };
        let Some(peer) = peer.filter(|&peer| self.hears(now, envelope, peer)) else {
            self.drop_packet(DropReason::NotForUs);
            return;
        };
        let mut ended = Vec::new();
        let lane = &mut self.peers[peer].send_lanes[lane];
        for ack in acks.iter() {
            lane.on_ack(now, ack, &mut ended);
        }
        if congested {
            lane.congested(now);
        }
        self.report_ended(peer, ended);
        self.advance(now, peer); // packets that were overtaken are lost
    }

    fn take_datagram(&mut self, envelope: &Envelope, header: &MessageHeader, payload: &Payload<'_>) {
        let is_for_us = match self.addressee(envelope) {
            Addressee::ThisLife => true,
            // A sender of datagrams need not know the receiver's incarnation.
            Addressee::AnotherLife => envelope.dst_incarnation == 0,
            Addressee::SomebodyElse => false,
        };
        if is_for_us {
            self.on_datagram(envelope.src, header, payload);
        } else {
            self.drop_packet(DropReason::NotForUs);
        }
    }
}
