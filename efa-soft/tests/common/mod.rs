//! A device with a queue pair, driven by hand.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod world;

use efa_io::*;
use efa_soft::wire::{Ack, Body, Data, Envelope, Hello, Lane, MessageHeader, Packet, WireOp};
use efa_soft::*;

pub(crate) const HERE: Gid = Gid::local(1);
pub(crate) const THERE: Gid = Gid::local(2);

/// A device with a queue pair, and the producer's side of its send ring.
pub(crate) struct Node {
    pub(crate) device: Device,
    pub(crate) pd: u32,
    pub(crate) ah: u16,
    pub(crate) cq: CqInfo,
    pub(crate) qp: QpInfo,
    pub(crate) producer: u32,
}

pub(crate) fn at(us: u64) -> Time {
    Time::from_nanos(us * 1000)
}

/// Returns how often a test repeats itself: `natively`, or a hundredth of it in Miri, which takes about that much
/// longer.
pub(crate) fn times(natively: usize) -> usize {
    if cfg!(miri) { natively.div_ceil(100) } else { natively }
}

impl Node {
    pub(crate) fn new(gid: Gid, peer: Gid, send_entries: u32) -> Self {
        let mut device = Device::new(DeviceConfig::new(gid));
        let pd = device.alloc_pd().unwrap();
        let ah = device.create_ah(pd, peer).unwrap();
        let cq = device.create_cq(CqAttributes { entries: 8192, entry_size: CqeSize::Large, events: false }).unwrap();
        let qp = qp(&mut device, pd, cq.cqn, send_entries);
        activate(&mut device, qp.qpn);
        Self { pd, ah, qp, cq, device, producer: 0 }
    }

    pub(crate) fn put(&mut self, wqe: Wqe64) {
        put_raw(&self.qp, self.producer, stamp(&self.qp, self.producer, wqe));
        self.producer += 1;
    }

    pub(crate) fn ring(&mut self, now: Time) {
        self.qp.sq.doorbell.store_doorbell(self.qp.sq.doorbell_offset, self.producer);
        self.device.poll_doorbells(now);
    }

    pub(crate) fn send(&self, dst_qpn: u16) -> Wqe64 {
        SendInline::new(b"hi").encode(&limits(), self.to(dst_qpn)).unwrap()
    }

    pub(crate) fn to(&self, qpn: u16) -> Destination {
        Destination { ah: self.ah, qpn, qkey: 7 }
    }

    /// Returns the completions of the first lap, as a program would read them.
    pub(crate) fn completions(&self) -> Vec<Completion> {
        let entry = |i: u32| Cqe32::from_words(self.cq.ring.load_entry(i as usize * 32));
        (0..self.cq.entries).map(entry).take_while(Cqe32::phase).map(|cqe| cqe.decode().unwrap()).collect()
    }

    pub(crate) fn packets(&mut self, now: Time) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        while let Some(packet) = self.device.poll_transmit(now) {
            match packet {
                // The peer says who it is.
                Packet { envelope, body: Body::Hello(Hello { challenge, .. }) } if challenge != 0 => {
                    let src_incarnation = DeviceConfig::new(envelope.dst).incarnation_for(envelope.src);
                    let answer = Envelope { src_incarnation, ..back(&envelope) };
                    self.device.handle(now, &hello(&answer, 0, challenge));
                }
                packet => packets.push(bytes(&packet)),
            }
        }
        packets
    }

    pub(crate) fn on_time(&mut self, now: Time) {
        if self.device.poll_timeout().is_some_and(|due| due <= now) {
            self.device.on_timeout(now);
        }
    }
}

/// Takes a queue pair to `ReadyToSend`.
pub(crate) fn activate(device: &mut Device, qpn: u16) {
    for state in [QpState::Init, QpState::ReadyToReceive, QpState::ReadyToSend] {
        device.modify_qp(qpn, state, Some(7)).unwrap();
    }
}

/// Returns a WQE as a program writes it in its place in the ring: with a request id, and the phase of the lap.
pub(crate) fn stamp<const W: usize>(qp: &QpInfo, producer: u32, wqe: Wqe<W>) -> Wqe<W> {
    let size = RingSize::new(qp.sq.entries).unwrap();
    wqe.with_req_id(producer as u16).with_phase(size.wq_phase(producer))
}

/// Writes `wqe`, as it is, in its place in a send ring.
pub(crate) fn put_raw<const W: usize>(qp: &QpInfo, producer: u32, wqe: Wqe<W>) {
    let slot = RingSize::new(qp.sq.entries).unwrap().slot(producer);
    assert_eq!(qp.sq.entry_size as usize, W * 8);
    qp.sq.ring.publish_entry(slot as usize * W * 8, wqe.words());
}

pub(crate) fn bytes(packet: &Packet<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert!(packet.emit(&mut bytes));
    assert_eq!(bytes.len(), packet.wire_len());
    bytes
}

/// Returns the bytes of a packet with this content.
pub(crate) fn packet(envelope: &Envelope, body: Body<'_>) -> Vec<u8> {
    bytes(&Packet { envelope: *envelope, body })
}

pub(crate) fn qp(device: &mut Device, pd: u32, cqn: u32, send_entries: u32) -> QpInfo {
    device
        .create_qp(QpAttributes {
            transport: Transport::Srd,
            pd,
            send_cq: cqn,
            recv_cq: cqn,
            send_entries,
            recv_entries: 16,
            recv_sge: 1,
            inline_bytes: 32,
            inline_write: false,
            unsolicited_write_recv: true,
            rnr_retry: None,
        })
        .unwrap()
}

pub(crate) fn limits() -> Limits {
    Limits::of_queue(8192, 1 << 30)
}

pub(crate) fn from_there() -> Envelope {
    from(THERE)
}

/// Returns the envelope of a packet from a device at `src` to a [`Node`] at [`HERE`]. Each knows the other's
/// incarnation.
pub(crate) fn from(src: Gid) -> Envelope {
    let called = |gid, peer| DeviceConfig::new(gid).incarnation_for(peer);
    Envelope { src, dst: HERE, src_incarnation: called(src, HERE), dst_incarnation: called(HERE, src), path: 0 }
}

/// Returns the envelope of an answer.
pub(crate) fn back(envelope: &Envelope) -> Envelope {
    let Envelope { src, dst, src_incarnation, dst_incarnation, path } = *envelope;
    Envelope { src: dst, dst: src, src_incarnation: dst_incarnation, dst_incarnation: src_incarnation, path }
}

pub(crate) fn hello(envelope: &Envelope, challenge: u64, echo: u64) -> Vec<u8> {
    packet(envelope, Body::Hello(Hello { challenge, echo }))
}

pub(crate) fn acks(acks: &[Ack]) -> Vec<u8> {
    acks_from(&from_there(), false, acks)
}

pub(crate) fn acks_from(envelope: &Envelope, congested: bool, acks: &[Ack]) -> Vec<u8> {
    packet(envelope, Body::Acks { lane: Lane::Requests, congested, acks: acks.iter().copied().collect() })
}

pub(crate) fn data(envelope: &Envelope, header: MessageHeader, message: u32, base: u32, stride: u32) -> Vec<u8> {
    let data = Data { message, base, header, stride, packet: 0 };
    let payload = vec![0; header.payload_len(0, stride)];
    packet(envelope, Body::Data(data, payload[..].into()))
}

pub(crate) fn header(op: WireOp, dst_qpn: u16, bytes: u32) -> MessageHeader {
    MessageHeader { qkey: 7, ..MessageHeader::new(op, 1, dst_qpn, bytes) }
}

/// Returns the number of the first message that is under way.
pub(crate) fn first_message(packets: &[Vec<u8>]) -> u32 {
    let Ok(Packet { body: Body::Data(data, _), .. }) = Packet::parse(&packets[0]) else { panic!() };
    data.base
}
