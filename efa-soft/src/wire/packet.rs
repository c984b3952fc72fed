//! A packet: its way into bytes, and back.

use super::ack::Acks;
use super::header::{Envelope, HEADER, Header, Kind, WireError, flag, seal};
use super::hello::Hello;
use super::message::{Data, Lane, MessageHeader};
use super::payload::Payload;

/// Bytes of a data packet in front of its payload.
pub const DATA_HEADER: usize = HEADER + Data::BYTES;

/// A packet. One that was [parsed](Self::parse) borrows its payload from the bytes; one that a device sends owns its
/// payload, or refers to regions of the sender.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    /// Who sends it to whom.
    pub envelope: Envelope,
    /// What it says.
    pub body: Body<'a>,
}

/// The content of a packet.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// A part of a message, and its bytes.
    Data(Data, Payload<'a>),
    /// An unreliable datagram, and its bytes.
    Datagram(MessageHeader, Payload<'a>),
    /// Acknowledgements.
    Acks {
        /// The lane whose messages they name.
        lane: Lane,
        /// More arrives at their sender than it can take in.
        congested: bool,
        /// The entries.
        acks: Acks<'a>,
    },
    /// Which life of the sender speaks.
    Hello(Hello),
}

impl<'a> Packet<'a> {
    /// Parses a packet.
    ///
    /// # Errors
    /// The reason why the bytes are not a packet. No bytes make this panic.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let Header { envelope, kind, op, flags } = Header::parse(bytes)?;
        let rest = &bytes[HEADER..];
        let body = match kind {
            Kind::Data => {
                let (data, payload) = Data::parse(op, flags, rest, bytes.len())?;
                Body::Data(data, payload.into())
            }
            Kind::Datagram => {
                let (data, payload) = Data::parse(op, flags, rest, bytes.len())?;
                Body::Datagram(data.header, payload.into())
            }
            Kind::Acks => Body::Acks {
                lane: if flags & flag::RESPONSES != 0 { Lane::Responses } else { Lane::Requests },
                congested: flags & flag::CONGESTED != 0,
                acks: Acks::parse(rest),
            },
            Kind::Hello => Body::Hello(Hello::parse(rest, bytes.len())?),
        };
        Ok(Self { envelope, body })
    }

    /// Writes the packet's bytes in `buf`, in place of what was there. Returns `false` if a region of its payload was
    /// deregistered: then there is nothing to send, which to the devices is a packet that was lost.
    #[must_use]
    pub fn emit(&self, buf: &mut Vec<u8>) -> bool {
        let begin = |buf: &mut Vec<u8>, kind, op, flags| Header { envelope: self.envelope, kind, op, flags }.emit(buf);
        let complete = match &self.body {
            Body::Data(data, payload) => {
                begin(buf, Kind::Data, data.header.op as u8, data.header.flags());
                data.emit(buf);
                append(buf, payload)
            }
            Body::Datagram(header, payload) => {
                begin(buf, Kind::Datagram, header.op as u8, header.flags());
                Data::datagram(*header).emit(buf);
                append(buf, payload)
            }
            Body::Acks { lane, congested, acks } => {
                let responses = if *lane == Lane::Responses { flag::RESPONSES } else { 0 };
                begin(buf, Kind::Acks, 0, responses | if *congested { flag::CONGESTED } else { 0 });
                buf.extend_from_slice(acks.as_bytes());
                true
            }
            Body::Hello(hello) => {
                begin(buf, Kind::Hello, 0, 0);
                hello.emit(buf);
                true
            }
        };
        if complete {
            seal(buf);
        }
        complete
    }

    /// Returns the number of bytes that [`emit`](Self::emit) writes.
    pub fn wire_len(&self) -> usize {
        match &self.body {
            Body::Data(_, payload) | Body::Datagram(_, payload) => DATA_HEADER + payload.len(),
            Body::Acks { acks, .. } => HEADER + acks.as_bytes().len(),
            Body::Hello(_) => HEADER + Hello::BYTES,
        }
    }
}

/// Appends the bytes of a payload. Returns `false` if one of its regions was deregistered.
fn append(buf: &mut Vec<u8>, payload: &Payload<'_>) -> bool {
    let start = buf.len();
    buf.resize(start + payload.len(), 0);
    payload.read(&mut buf[start..])
}

#[cfg(test)]
mod tests {
    use super::super::ack::Ack;
    use super::super::header::MAGIC;
    use super::super::message::WireOp;
    use super::*;
    use efa_io::Status;
    use efa_types::Gid;
    use proptest::prelude::*;

    const ENVELOPE: Envelope =
        Envelope { src: Gid::local(1), dst: Gid::local(2), src_incarnation: 77, dst_incarnation: 0, path: 3 };

    fn header(op: WireOp, bytes: u32) -> MessageHeader {
        MessageHeader {
            op,
            src_qpn: 3,
            dst_qpn: 4,
            qkey: 5,
            imm: Some(6),
            bytes,
            rkey: 7,
            remote_addr: 8,
            reply_to: 9,
            placed: false,
        }
    }

    fn emitted(body: Body<'_>) -> Vec<u8> {
        let (packet, mut bytes) = (Packet { envelope: ENVELOPE, body }, Vec::new());
        assert!(packet.emit(&mut bytes));
        assert_eq!(bytes.len(), packet.wire_len());
        bytes
    }

    /// Parses a packet, and copies its payload.
    fn parsed(bytes: &[u8]) -> (Body<'_>, Vec<u8>) {
        let Packet { envelope, body } = Packet::parse(bytes).unwrap();
        assert_eq!(envelope, ENVELOPE);
        let mut payload = Vec::new();
        if let Body::Data(_, bytes) | Body::Datagram(_, bytes) = &body {
            assert!(append(&mut payload, bytes));
        }
        (body, payload)
    }

    #[test]
    fn a_data_packet_survives_the_round_trip() {
        let payload = [0xab; 100];
        let data = Data { message: 1, base: 0, header: header(WireOp::Write, 1124), stride: 1024, packet: 1 };
        let bytes = emitted(Body::Data(data, payload[..].into()));
        assert!(matches!(parsed(&bytes), (Body::Data(found, _), bytes) if found == data && bytes == payload));
        let placed = Data { header: MessageHeader { placed: true, ..data.header }, packet: 0, ..data };
        let bytes = emitted(Body::Data(placed, Payload::EMPTY));
        assert!(matches!(parsed(&bytes), (Body::Data(found, _), bytes) if found == placed && bytes.is_empty()));
        let datagram = header(WireOp::Send, 100);
        let bytes = emitted(Body::Datagram(datagram, payload[..].into()));
        assert!(matches!(parsed(&bytes), (Body::Datagram(found, _), bytes) if found == datagram && bytes == payload));
    }

    #[test]
    fn a_hello_survives_the_round_trip_and_has_one_length() {
        let hello = Hello { challenge: 5, echo: u64::MAX };
        let mut bytes = emitted(Body::Hello(hello));
        assert!(matches!(parsed(&bytes).0, Body::Hello(found) if found == hello));
        assert_eq!(bytes.len(), 80);
        bytes.push(0);
        seal(&mut bytes);
        let error = Packet::parse(&bytes).unwrap_err();
        assert_eq!(error, WireError::Field { field: "length of a hello", value: 81 });
    }

    #[test]
    fn every_single_bit_error_is_noticed() {
        let acks = [Ack::Done { first: 4, count: 3, status: Status::Ok }].into_iter().collect();
        let bytes = emitted(Body::Acks { lane: Lane::Requests, congested: false, acks });
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // The checksum covers reserved bytes, too.
            assert!(Packet::parse(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn acknowledgements_survive_the_round_trip() {
        let acks = [
            Ack::Done { first: 9, count: 300, status: Status::RemoteRnr },
            Ack::Partial { message: 10, next: 4, bitmap: [1, 0, 9, 0] },
            Ack::Partial { message: 11, next: 5, bitmap: [0; 4] },
            Ack::NotReady { message: 12 },
            Ack::Accepted { message: 13 },
        ];
        for lane in [Lane::Requests, Lane::Responses] {
            let bytes = emitted(Body::Acks { lane, congested: true, acks: acks.into_iter().collect() });
            let (Body::Acks { lane: parsed_lane, congested: true, acks: parsed }, _) = parsed(&bytes) else { panic!() };
            assert_eq!((parsed_lane, parsed.iter().collect::<Vec<_>>()), (lane, acks.to_vec()));
            assert_eq!(bytes.len(), HEADER + acks.iter().map(Ack::wire_len).sum::<usize>());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_packet_or_an_error(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            fix: bool,
        ) {
            if fix && bytes.len() >= HEADER {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4] = 3;
                bytes[5] %= 4;
                bytes[6] %= 4;
                seal(&mut bytes);
            }
            if let Ok(Packet { body: Body::Acks { acks, .. }, .. }) = Packet::parse(&bytes) {
                prop_assert!(acks.iter().count() <= bytes.len() / 8);
            }
        }
    }
}
