//! Forged packets: valid ones of a peer, and invalid ones.

use super::harness::{Harness, LOCAL, MTU, OWN, PEER, QKEY, REMOTE};
use super::script::Script;
use efa_io::Status;
use efa_soft::Gid;
use efa_soft::wire::{Ack, Body, Data, Envelope, Hello, Lane, MessageHeader, Packet, WireOp};
use std::ops::Range;

/// The positions of the fields that a reflection swaps, and of the checksum.
const SRC: Range<usize> = 16..32;
const DST: Range<usize> = 32..48;
const SRC_INCARNATION: Range<usize> = 48..56;
const DST_INCARNATION: Range<usize> = 56..64;
const CHECKSUM: Range<usize> = 8..12;
const KIND: usize = 5;
const HELLO: u8 = 2;
const HELLO_LEN: usize = 80;
/// The payload of forged packets.
const PAYLOAD: [u8; 4096] = [0x77; 4096];
/// The maximum number of the device's message numbers that are remembered.
const REMEMBERED: usize = 64;

/// Corrects the checksum.
fn seal(packet: &mut [u8]) {
    if packet.len() >= CHECKSUM.end {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&packet[..CHECKSUM.start]);
        hasher.update(&packet[CHECKSUM.end..]);
        packet[CHECKSUM].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
}

/// Changes some bytes of a packet, and corrects its checksum most of the time.
fn damage(script: &mut Script<'_>, packet: &mut Vec<u8>) {
    let choice = script.byte();
    for _ in 0..=choice % 3 {
        let (at, value) = (script.byte(), script.byte());
        if let Some(byte) = packet.get_mut(usize::from(at)) {
            *byte = value;
        }
    }
    if choice & 0x40 != 0 {
        packet.truncate(script.byte().into());
    }
    if choice & 0x80 == 0 {
        seal(packet);
    }
}

/// A possible sender of packets.
fn some_gid(script: &mut Script<'_>) -> Gid {
    match script.byte() {
        0..0xe0 => PEER,
        0xe0..0xe8 => OWN,
        0xe8..0xf0 => PEER.in_subnet(1),
        stranger => Gid::local(stranger.into()),
    }
}

fn some_envelope(script: &mut Script<'_>) -> Envelope {
    let src = some_gid(script);
    let known = Harness::config().incarnation_for(src);
    match script.byte() {
        path @ 0..0xe0 => {
            let dst_incarnation = if path % 2 == 0 { 0 } else { known };
            Envelope { src, dst: OWN, src_incarnation: 1, dst_incarnation, path }
        }
        path => {
            let dst = script.pick(&[OWN, OWN, OWN, PEER, OWN.in_subnet(1)]);
            let src_incarnation = script.pick(&[0, 1, 2, 3, u64::MAX]);
            let dst_incarnation = script.pick(&[0, known, known ^ 1]);
            Envelope { src, dst, src_incarnation, dst_incarnation, path }
        }
    }
}

impl Harness {
    fn some_header(&self, script: &mut Script<'_>, op: WireOp) -> MessageHeader {
        let target = self.some_target(script);
        let flags = script.byte();
        MessageHeader {
            op,
            src_qpn: flags.into(),
            dst_qpn: self.some_qpn(script),
            qkey: script.number(&[QKEY]),
            imm: (flags & 1 != 0).then_some(9),
            bytes: if flags & 6 == 6 { script.u32() } else { target.length },
            rkey: target.keys.rkey,
            remote_addr: target.addr,
            reply_to: script.number(&self.messages),
            placed: flags & 0x38 == 0x38,
        }
    }

    /// Makes this the packet at hand.
    fn forge(&mut self, envelope: Envelope, body: Body<'_>) {
        assert!(Packet { envelope, body }.emit(&mut self.packet), "the payload is at hand");
    }

    /// Creates a packet with a part of a message.
    fn forge_data(&mut self, script: &mut Script<'_>) {
        use WireOp::*;
        let envelope = some_envelope(script);
        let op = script.pick(&[Send, Write, ReadRequest, ReadResponse]);
        let header = self.some_header(script, op);
        let stride = script.number(&[MTU, MTU, 64, 65, 1, 1000]).max(1);
        let packet = script.number(&[0, 0, 0, 1, 2, 3]) % header.packets(stride);
        let data = Data {
            message: script.number(&[0, 1, 2, 3, u32::MAX]),
            base: script.number(&[0, 0, 0, 1, u32::MAX]),
            header,
            stride,
            packet,
        };
        let len = header.payload_len(packet, stride).min(PAYLOAD.len());
        self.forge(envelope, Body::Data(data, PAYLOAD[..len].into()));
    }

    fn forge_datagram(&mut self, script: &mut Script<'_>) {
        let envelope = some_envelope(script);
        let header = self.some_header(script, WireOp::Send);
        let len = PAYLOAD.len().min(header.bytes as usize);
        self.forge(envelope, Body::Datagram(header, PAYLOAD[..len].into()));
    }

    fn some_ack(&self, script: &mut Script<'_>) -> Ack {
        let message = script.number(&self.messages);
        match script.below(8) {
            0..3 => {
                let status = script.pick(&[0, 0, 0, 9, 255]);
                Ack::Done {
                    first: message,
                    count: script.pick(&[1, 1, 2, 64, 0, 65535]),
                    status: Status::from_code(status),
                }
            }
            3 | 4 => {
                let bitmap = [script.byte().into(), 0, script.pick(&[0, u64::MAX]), script.pick(&[0, 1])];
                Ack::Partial { message, next: script.number(&[0, 1, 2, 3]), bitmap }
            }
            5 | 6 => Ack::NotReady { message },
            _ => Ack::Accepted { message },
        }
    }

    fn forge_acks(&mut self, script: &mut Script<'_>) {
        let envelope = some_envelope(script);
        let choice = script.byte();
        let acks = (0..=choice % 4).map(|_| self.some_ack(script)).collect();
        let lane = if choice & 0x40 == 0 { Lane::Requests } else { Lane::Responses };
        self.forge(envelope, Body::Acks { lane, congested: choice & 0x80 != 0, acks });
    }

    /// Delivers an arbitrary packet.
    pub(crate) fn receive(&mut self, script: &mut Script<'_>) {
        let choice = script.byte();
        match choice % 16 {
            0..8 => self.forge_data(script),
            8..12 => self.forge_acks(script),
            12 | 13 => self.forge_datagram(script),
            14 => {
                let envelope = some_envelope(script);
                // A device counts its challenges from 1 on.
                let (challenge, echo) = (script.pick(&[0, 1, 7]), script.pick(&[0, 1, 2, 3, 4]));
                self.forge(envelope, Body::Hello(Hello { challenge, echo }));
            }
            _ => {
                let count = script.byte();
                self.packet = script.bytes(count.into()).into();
            }
        }
        if choice >= 0xc0 {
            damage(script, &mut self.packet);
        }
        self.deliver();
    }

    /// Delivers the packet at hand. It changes nothing that its operation has no right to.
    fn deliver(&mut self) {
        let sealed_off: &[usize] = match Packet::parse(&self.packet).map(|packet| packet.body) {
            Ok(Body::Data(Data { header, .. }, _)) => match header.op {
                WireOp::Send | WireOp::ReadResponse => &[REMOTE],
                WireOp::Write => &[LOCAL],
                WireOp::ReadRequest => &[LOCAL, REMOTE],
            },
            Ok(Body::Datagram(..)) => &[REMOTE],
            _ => &[LOCAL, REMOTE],
        };
        let before: Vec<_> = sealed_off.iter().map(|&place| self.bytes_in(place)).collect();
        self.device.handle(self.now, &self.packet);
        for (&place, before) in sealed_off.iter().zip(&before) {
            assert!(self.bytes_in(place) == *before, "a packet wrote where it must not");
        }
    }

    /// Delivers the packet at hand as if the peer had sent it.
    fn reflect(&mut self) {
        for (own, other) in [(SRC, DST), (SRC_INCARNATION, DST_INCARNATION)] {
            let (head, tail) = self.packet.split_at_mut(other.start);
            head[own].swap_with_slice(&mut tail[..other.len()]);
        }
        // The peer is in its first life, and knows ours.
        self.packet[SRC_INCARNATION].copy_from_slice(&1u64.to_le_bytes());
        if self.packet[KIND] == HELLO && self.packet.len() == HELLO_LEN {
            self.packet[DST_INCARNATION.end..].rotate_left(8); // the challenge becomes the echo
        }
        seal(&mut self.packet);
        self.deliver();
    }

    /// Lets the device send. Its packets are lost, come back as the peer's or unchanged, or are stored in `kept`.
    pub(crate) fn transmit(&mut self, script: &mut Script<'_>, kept: &mut Vec<Packet<'static>>) {
        for _ in 0..64 {
            let Some(packet) = self.next_packet() else { return };
            if let Body::Data(Data { message, .. }, _) = packet.body
                && !self.messages.contains(&message)
                && self.messages.len() < REMEMBERED
            {
                self.messages.push(message);
            }
            match script.below(10) {
                0 => {}
                1..4 => self.reflect(),
                4 => {
                    self.reflect();
                    self.deliver();
                }
                5 => self.device.handle_packet(self.now, &packet),
                6 => self.deliver(),
                7 => {
                    damage(script, &mut self.packet);
                    self.deliver();
                }
                8 => {
                    damage(script, &mut self.packet);
                    if self.packet.len() >= DST_INCARNATION.end {
                        self.reflect();
                    }
                }
                _ => kept.push(packet),
            }
        }
    }

    /// Delivers one of the stored packets, and removes it only sometimes.
    pub(crate) fn arrive_late(&mut self, script: &mut Script<'_>, kept: &[Packet<'_>]) {
        if kept.is_empty() {
            return;
        }
        let choice = script.byte();
        let packet = &kept[usize::from(choice / 2) % kept.len()];
        if choice & 1 == 0 {
            self.device.handle_packet(self.now, packet);
        } else if packet.emit(&mut self.packet) {
            self.reflect();
        }
    }
}
