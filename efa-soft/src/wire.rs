//! What travels between two software devices.
//!
//! The hardware's SRD packets are not public; this format is our own. Every packet carries both ends' GIDs and
//! incarnations and a checksum, so that one which went astray, outlived its device or was damaged is dropped and counted.
//!
//! An *incarnation* is a number for one life of a device, told to one peer; every peer is told another, and nobody can guess it
//! ([`DeviceConfig::incarnation_for`](crate::DeviceConfig::incarnation_for)). So a packet that names the receiver's incarnation comes from
//! whoever receives at the address that it gives as its own, or from somebody who sees the packets pass by.
//!
//! Reliability is kept per *message*, not per packet stream, so that no message waits for another: a data packet names
//! its message and its place in it, an acknowledgement says of each message what has arrived or how it ended. `base` is the oldest
//! message that the sender still cares about; the receiver forgets everything below it. A sender has at most 2048 messages under way, and
//! goes no further than 65536 beyond the oldest of them.
//!
//! A message that finds no receive descriptor ends there, as "not ready", and its sender offers it again under a new number: however
//! long a receiver is not ready for it, no other message waits.
//!
//! Two devices say hello before anything else, so that each knows which life of the other it speaks to: a packet that reaches a device
//! that died and came back must not do there what it did before. A hello with a challenge asks for one that echoes it. Only an answer that
//! echoes the last challenge convinces a device that a peer it knows has begun another life: what is late, played again or invented does not.
//! No answer is longer than what it answers.
//!
//! Requests and the answers to read requests are numbered apart ([`Lane`]): answers that waited behind requests could wait for
//! ever, since it is answers that let read requests end. Datagrams (UD) have no number, no acknowledgement and no second chance.
//!
//! ```text
//!  byte 0 magic "EFAS" · 4 version · 5 kind · 6 operation · 7 flags · 8 CRC-32 of everything else
//!      12 path · 13 reserved · 16 source GID · 32 destination GID · 48 source incarnation · 56 destination incarnation
//!      64 data: message · base · bytes · stride · packet · qkey · imm · rkey · reply_to · qpns · remote address · payload
//!      64 ack:  entries
//!      64 hello: challenge · echo
//! ```
//!
//! A datagram looks like data of one packet; its message, base and packet mean nothing.

use efa_io::Status;
use efa_types::Gid;

pub(crate) const MAGIC: [u8; 4] = *b"EFAS";
const VERSION: u8 = 3;
const KIND_DATA: u8 = 0;
const KIND_ACK: u8 = 1;
const KIND_HELLO: u8 = 2;
const KIND_DATAGRAM: u8 = 3;
const FLAG_IMM: u8 = 1;
const FLAG_RESPONSES: u8 = 2;
const FLAG_PLACED: u8 = 4;
const FLAG_CONGESTED: u8 = 8;
/// Fewest payload bytes of a packet in a message of several, so that nobody makes a receiver keep book of single bytes.
pub const MIN_STRIDE: u32 = 64;
const CRC: std::ops::Range<usize> = 8..12;
const PATH: usize = 12;
/// Bytes that every packet has.
pub(crate) const HEADER: usize = 64;
/// Bytes of a hello.
pub(crate) const HELLO: usize = HEADER + 16;
/// Bytes that a data packet has beyond its payload.
pub const DATA_HEADER: usize = 112;
/// Most acknowledgement entries in a packet.
pub const MAX_ACKS: usize = 64;
/// 64-bit words of the bitmap in an acknowledgement.
pub const ACK_WORDS: usize = 4;

/// Who sent a packet, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Sender.
    pub src: Gid,
    /// Receiver.
    pub dst: Gid,
    /// Which life of the sender speaks, as the sender calls it before this receiver; never 0.
    pub src_incarnation: u64,
    /// Which life of the receiver is meant, as the receiver calls it before this sender; 0 in a hello that asks, and in a datagram: the
    /// sender need not know.
    pub dst_incarnation: u64,
    /// Which of the paths between the two the packet takes.
    pub path: u8,
}

/// What a hello asks and answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// What the answer is to echo; 0: no answer is wanted.
    pub challenge: u64,
    /// The challenge that this answers; 0: nobody asked. The sender was spoken to as a life that it is not in.
    pub echo: u64,
}

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WireOp {
    /// Goes to a receive descriptor.
    Send = 0,
    /// Asks for `bytes` bytes of remote memory.
    ReadRequest = 1,
    /// Goes to remote memory.
    Write = 2,
    /// Answers a read request.
    ReadResponse = 3,
}

/// Which of the two numberings between a pair of devices, in one direction, a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Lane {
    /// Sends, writes and read requests.
    Requests = 0,
    /// Answers to read requests.
    Responses = 1,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Requests, Self::Responses];
}

impl std::fmt::Display for WireOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::ReadRequest => "RDMA read request",
            Self::Write => "RDMA write",
            Self::ReadResponse => "RDMA read response",
        })
    }
}

impl WireOp {
    /// The lane of such messages.
    pub fn lane(self) -> Lane {
        if self == Self::ReadResponse { Lane::Responses } else { Lane::Requests }
    }
}

/// What every packet of a message says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageHeader {
    /// What it does.
    pub op: WireOp,
    /// Sending queue pair.
    pub src_qpn: u16,
    /// Destination queue pair.
    pub dst_qpn: u16,
    /// The destination's queue key, as the sender knows it.
    pub qkey: u32,
    /// Immediate data.
    pub imm: Option<u32>,
    /// Bytes of the whole message.
    pub bytes: u32,
    /// Remote key (write, read request).
    pub rkey: u32,
    /// Remote address (write, read request).
    pub remote_addr: u64,
    /// The read request that this answers, by the number that its sender gave it.
    pub reply_to: u32,
    /// The bytes of this write are in place since an earlier attempt; what is left to deliver is its immediate.
    pub placed: bool,
}

/// Which packet of which message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// The message's number among those from this sender to this receiver.
    pub message: u32,
    /// The oldest message that the sender still waits for.
    pub base: u32,
    /// What all packets of the message share.
    pub header: MessageHeader,
    /// Payload bytes of every packet but the last.
    pub stride: u32,
    /// Which packet of the message this is; its payload goes to `packet * stride`.
    pub packet: u32,
}

/// What a receiver says about a message, or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// `count` messages from `first` on ended with this status.
    Done {
        /// First message.
        first: u32,
        /// How many messages.
        count: u16,
        /// How they ended.
        status: Status,
    },
    /// Packets below `next` have arrived, and those whose bit is set counting from `next`.
    Partial {
        /// The message.
        message: u32,
        /// Lowest packet that is missing.
        next: u32,
        /// Packets from `next` on.
        bitmap: [u64; ACK_WORDS],
    },
    /// All of it arrived, but there is no receive descriptor for it: offer it again, under a new number.
    NotReady {
        /// The message.
        message: u32,
    },
    /// The read request arrived and is being answered.
    Accepted {
        /// The message.
        message: u32,
    },
}

/// A parsed packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A piece of a message, and its bytes.
    Data(Data, &'a [u8]),
    /// A message that nobody acknowledges, and its bytes.
    Datagram(MessageHeader, &'a [u8]),
    /// Acknowledgements of one lane; [`Acks`] iterates over them.
    Acks {
        /// Whose numbers these are.
        lane: Lane,
        /// More arrives at the receiver than it can take.
        congested: bool,
        /// The entries.
        acks: Acks<'a>,
    },
    /// "I am this life of mine."
    Hello(Hello),
}

/// Why a packet is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Too short for its kind.
    #[error("{0} bytes are too short")]
    Short(usize),
    /// Not ours, or a version we do not speak.
    #[error("wrong magic or version")]
    Foreign,
    /// The checksum does not match.
    #[error("damaged: checksum {found:#010x}, computed {computed:#010x}")]
    Corrupt {
        /// Checksum in the packet.
        found: u32,
        /// Checksum of the packet.
        computed: u32,
    },
    /// A field that makes no sense.
    #[error("{field} is {value}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn gid_at(bytes: &[u8], at: usize) -> Gid {
    Gid(std::array::from_fn(|i| bytes[at + i]))
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..CRC.start]);
    hasher.update(&bytes[CRC.end..]);
    hasher.finalize()
}

fn begin(buf: &mut Vec<u8>, envelope: &Envelope, kind: u8, op: u8, flags: u8) {
    buf.clear();
    buf.extend_from_slice(&MAGIC);
    buf.extend_from_slice(&[VERSION, kind, op, flags]);
    buf.extend_from_slice(&[0, 0, 0, 0, envelope.path, 0, 0, 0]);
    buf.extend_from_slice(&envelope.src.0);
    buf.extend_from_slice(&envelope.dst.0);
    buf.extend_from_slice(&envelope.src_incarnation.to_le_bytes());
    buf.extend_from_slice(&envelope.dst_incarnation.to_le_bytes());
}

fn seal(buf: &mut [u8]) {
    let crc = checksum(buf);
    buf[CRC].copy_from_slice(&crc.to_le_bytes());
}

/// Builds a data packet in `buf`; `fill` puts `payload_len` payload bytes in.
///
/// # Errors
/// Whatever `fill` answers; `buf` is unusable then.
pub fn encode_data<E>(
    buf: &mut Vec<u8>,
    envelope: &Envelope,
    data: &Data,
    payload_len: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    encode_message(buf, envelope, KIND_DATA, data, payload_len, fill)
}

/// Builds a datagram in `buf`; `fill` puts its `payload_len` bytes in.
///
/// # Errors
/// Whatever `fill` answers; `buf` is unusable then.
pub fn encode_datagram<E>(
    buf: &mut Vec<u8>,
    envelope: &Envelope,
    header: &MessageHeader,
    payload_len: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let data = Data { message: 0, base: 0, header: *header, stride: header.bytes.max(1), packet: 0 };
    encode_message(buf, envelope, KIND_DATAGRAM, &data, payload_len, fill)
}

fn encode_message<E>(
    buf: &mut Vec<u8>,
    envelope: &Envelope,
    kind: u8,
    data: &Data,
    payload_len: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let h = &data.header;
    let flags = if h.imm.is_some() { FLAG_IMM } else { 0 } | if h.placed { FLAG_PLACED } else { 0 };
    begin(buf, envelope, kind, h.op as u8, flags);
    for word in [data.message, data.base, h.bytes, data.stride, data.packet, h.qkey, h.imm.unwrap_or(0), h.rkey] {
        buf.extend_from_slice(&word.to_le_bytes());
    }
    buf.extend_from_slice(&h.reply_to.to_le_bytes());
    buf.extend_from_slice(&h.src_qpn.to_le_bytes());
    buf.extend_from_slice(&h.dst_qpn.to_le_bytes());
    buf.extend_from_slice(&h.remote_addr.to_le_bytes());
    debug_assert_eq!(buf.len(), DATA_HEADER);
    buf.resize(DATA_HEADER + payload_len, 0);
    fill(&mut buf[DATA_HEADER..])?;
    seal(buf);
    Ok(())
}

/// Builds an acknowledgement packet in `buf`.
pub fn encode_acks(buf: &mut Vec<u8>, envelope: &Envelope, lane: Lane, congested: bool, acks: &[Ack]) {
    let flags = if lane == Lane::Responses { FLAG_RESPONSES } else { 0 } | if congested { FLAG_CONGESTED } else { 0 };
    begin(buf, envelope, KIND_ACK, 0, flags);
    for ack in acks {
        match *ack {
            Ack::Done { first, count, status } => {
                buf.extend_from_slice(&[0, status.code()]);
                buf.extend_from_slice(&count.to_le_bytes());
                buf.extend_from_slice(&first.to_le_bytes());
            }
            Ack::Partial { message, next, bitmap } => {
                let words = ack_words(&bitmap);
                buf.extend_from_slice(&[1, words as u8, 0, 0]);
                buf.extend_from_slice(&message.to_le_bytes());
                buf.extend_from_slice(&next.to_le_bytes());
                for word in &bitmap[..words] {
                    buf.extend_from_slice(&word.to_le_bytes());
                }
            }
            Ack::NotReady { message } => {
                buf.extend_from_slice(&[2, 0, 0, 0]);
                buf.extend_from_slice(&message.to_le_bytes());
            }
            Ack::Accepted { message } => {
                buf.extend_from_slice(&[3, 0, 0, 0]);
                buf.extend_from_slice(&message.to_le_bytes());
            }
        }
    }
    seal(buf);
}

/// Words of a bitmap up to the last one with a bit set.
fn ack_words(bitmap: &[u64; ACK_WORDS]) -> usize {
    ACK_WORDS - bitmap.iter().rev().take_while(|&&w| w == 0).count()
}

impl Ack {
    /// Bytes that it has in a packet.
    pub fn wire_len(&self) -> usize {
        match self {
            Self::Partial { bitmap, .. } => 12 + 8 * ack_words(bitmap),
            Self::Done { .. } | Self::NotReady { .. } | Self::Accepted { .. } => 8,
        }
    }
}

/// Builds a hello in `buf`.
pub fn encode_hello(buf: &mut Vec<u8>, envelope: &Envelope, hello: &Hello) {
    begin(buf, envelope, KIND_HELLO, 0, 0);
    buf.extend_from_slice(&hello.challenge.to_le_bytes());
    buf.extend_from_slice(&hello.echo.to_le_bytes());
    seal(buf);
}

/// Who this packet says sent it, and to whom; `None`: it is no packet of ours at all. Nothing else is looked at, the checksum neither.
pub fn envelope(bytes: &[u8]) -> Option<Envelope> {
    if bytes.len() < HEADER || bytes[..4] != MAGIC || bytes[4] != VERSION {
        return None;
    }
    Some(Envelope {
        src: gid_at(bytes, 16),
        dst: gid_at(bytes, 32),
        src_incarnation: u64_at(bytes, 48),
        dst_incarnation: u64_at(bytes, 56),
        path: bytes[PATH],
    })
}

/// Parses a packet.
///
/// # Errors
/// Says why it is none. Arbitrary bytes never panic.
pub fn parse(bytes: &[u8]) -> Result<(Envelope, Packet<'_>), WireError> {
    if bytes.len() < HEADER {
        return Err(WireError::Short(bytes.len()));
    }
    let envelope = envelope(bytes).ok_or(WireError::Foreign)?;
    let (found, computed) = (u32_at(bytes, CRC.start), checksum(bytes));
    if found != computed {
        return Err(WireError::Corrupt { found, computed });
    }
    let packet = match bytes[5] {
        KIND_DATA => Packet::Data(parse_data(bytes)?, &bytes[DATA_HEADER..]),
        KIND_DATAGRAM => Packet::Datagram(parse_data(bytes)?.header, &bytes[DATA_HEADER..]),
        KIND_ACK => Packet::Acks {
            lane: if bytes[7] & FLAG_RESPONSES != 0 { Lane::Responses } else { Lane::Requests },
            congested: bytes[7] & FLAG_CONGESTED != 0,
            acks: Acks { rest: &bytes[HEADER..], left: MAX_ACKS },
        },
        KIND_HELLO => match bytes.len() {
            HELLO => Packet::Hello(Hello { challenge: u64_at(bytes, HEADER), echo: u64_at(bytes, HEADER + 8) }),
            len => return Err(WireError::Field { field: "length of a hello", value: len as u64 }),
        },
        kind => return Err(WireError::Field { field: "kind", value: kind.into() }),
    };
    Ok((envelope, packet))
}

fn parse_data(bytes: &[u8]) -> Result<Data, WireError> {
    if bytes.len() < DATA_HEADER {
        return Err(WireError::Short(bytes.len()));
    }
    let op = match bytes[6] {
        0 => WireOp::Send,
        1 => WireOp::ReadRequest,
        2 => WireOp::Write,
        3 => WireOp::ReadResponse,
        op => return Err(WireError::Field { field: "operation", value: op.into() }),
    };
    let header = MessageHeader {
        op,
        src_qpn: u16_at(bytes, 100),
        dst_qpn: u16_at(bytes, 102),
        qkey: u32_at(bytes, 84),
        imm: (bytes[7] & FLAG_IMM != 0).then(|| u32_at(bytes, 88)),
        bytes: u32_at(bytes, 72),
        rkey: u32_at(bytes, 92),
        remote_addr: u64_at(bytes, 104),
        reply_to: u32_at(bytes, 96),
        placed: bytes[7] & FLAG_PLACED != 0,
    };
    let data = Data {
        message: u32_at(bytes, 64),
        base: u32_at(bytes, 68),
        header,
        stride: u32_at(bytes, 76),
        packet: u32_at(bytes, 80),
    };
    let payload_len = bytes.len() - DATA_HEADER;
    if data.stride == 0 || data.stride < MIN_STRIDE && header.packets(data.stride) > 1 {
        return Err(WireError::Field { field: "stride", value: data.stride.into() });
    }
    if data.packet >= header.packets(data.stride) {
        return Err(WireError::Field { field: "packet", value: data.packet.into() });
    }
    if payload_len != header.payload_len(data.packet, data.stride) {
        return Err(WireError::Field { field: "payload length", value: payload_len as u64 });
    }
    Ok(data)
}

impl MessageHeader {
    /// A message of `bytes` bytes from one queue pair to another, with everything else zero.
    pub fn new(op: WireOp, src_qpn: u16, dst_qpn: u16, bytes: u32) -> Self {
        Self { op, src_qpn, dst_qpn, qkey: 0, imm: None, bytes, rkey: 0, remote_addr: 0, reply_to: 0, placed: false }
    }

    /// Bytes that travel in the message's own packets: none in a read request, nor in a write whose bytes are in place.
    pub fn carried(&self) -> u32 {
        if self.op == WireOp::ReadRequest || self.placed { 0 } else { self.bytes }
    }

    /// Packets of the message, at least one.
    pub fn packets(&self, stride: u32) -> u32 {
        self.carried().div_ceil(stride).max(1)
    }

    /// Payload bytes of packet number `packet`.
    pub fn payload_len(&self, packet: u32, stride: u32) -> usize {
        let from = u64::from(packet) * u64::from(stride);
        (u64::from(self.carried()).saturating_sub(from)).min(stride.into()) as usize
    }
}

/// The acknowledgements of a packet. Stops at the first one that makes no sense, and after [`MAX_ACKS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acks<'a> {
    rest: &'a [u8],
    left: usize,
}

impl Iterator for Acks<'_> {
    type Item = Ack;

    fn next(&mut self) -> Option<Ack> {
        let rest = self.rest;
        if rest.len() < 8 {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        let message = u32_at(rest, 4);
        let (ack, len) = match rest[0] {
            0 => (Ack::Done { first: message, count: u16_at(rest, 2), status: Status::from_code(rest[1]) }, 8),
            1 => {
                let words = rest[1] as usize;
                let len = 12 + 8 * words;
                if words > ACK_WORDS || rest.len() < len {
                    return None;
                }
                let bitmap = std::array::from_fn(|i| if i < words { u64_at(rest, 12 + 8 * i) } else { 0 });
                (Ack::Partial { message, next: u32_at(rest, 8), bitmap }, len)
            }
            2 => (Ack::NotReady { message }, 8),
            3 => (Ack::Accepted { message }, 8),
            _ => return None,
        };
        self.rest = &rest[len..];
        Some(ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn a_data_packet_survives_the_round_trip() {
        let payload = [0xab; 100];
        let data = Data { message: 1, base: 0, header: header(WireOp::Write, 1124), stride: 1024, packet: 1 };
        let mut buf = Vec::new();
        let fill = |to: &mut [u8]| {
            to.copy_from_slice(&payload);
            Ok::<_, ()>(())
        };
        encode_data(&mut buf, &ENVELOPE, &data, 100, fill).unwrap();
        assert_eq!(parse(&buf), Ok((ENVELOPE, Packet::Data(data, &payload))));
        let placed = Data { header: MessageHeader { placed: true, ..data.header }, packet: 0, ..data };
        encode_data(&mut buf, &ENVELOPE, &placed, 0, |_| Ok::<_, ()>(())).unwrap();
        assert_eq!(parse(&buf), Ok((ENVELOPE, Packet::Data(placed, &[]))));
        let datagram = header(WireOp::Send, 100);
        encode_datagram(&mut buf, &ENVELOPE, &datagram, 100, fill).unwrap();
        assert_eq!(parse(&buf), Ok((ENVELOPE, Packet::Datagram(datagram, &payload))));
    }

    #[test]
    fn a_hello_survives_the_round_trip_and_has_one_length() {
        let (mut buf, hello) = (Vec::new(), Hello { challenge: 5, echo: u64::MAX });
        encode_hello(&mut buf, &ENVELOPE, &hello);
        assert_eq!(parse(&buf), Ok((ENVELOPE, Packet::Hello(hello))));
        assert_eq!((buf.len(), envelope(&buf)), (HELLO, Some(ENVELOPE)));
        buf.push(0);
        seal(&mut buf);
        assert!(matches!(parse(&buf), Err(WireError::Field { field: "length of a hello", value: 81 })));
        assert_eq!((envelope(&buf[..HEADER - 1]), envelope(&[0; 200])), (None, None));
    }

    #[test]
    fn every_single_bit_error_is_noticed() {
        let mut buf = Vec::new();
        encode_acks(
            &mut buf,
            &ENVELOPE,
            Lane::Requests,
            false,
            &[Ack::Done { first: 4, count: 3, status: Status::Ok }],
        );
        for bit in 0..buf.len() * 8 {
            let mut damaged = buf.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // Reserved bytes are covered by the checksum like the rest.
            assert!(parse(&damaged).is_err(), "bit {bit}");
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
        let mut buf = Vec::new();
        for lane in Lane::ALL {
            encode_acks(&mut buf, &ENVELOPE, lane, true, &acks);
            let Ok((_, Packet::Acks { lane: parsed_lane, congested: true, acks: parsed })) = parse(&buf) else {
                panic!()
            };
            assert_eq!((parsed_lane, parsed.collect::<Vec<_>>()), (lane, acks.to_vec()));
            assert_eq!(buf.len(), HEADER + acks.iter().map(Ack::wire_len).sum::<usize>());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_packet_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..300), fix: bool) {
            if fix && bytes.len() >= HEADER {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4] = VERSION;
                bytes[5] %= 4;
                bytes[6] %= 4;
                seal(&mut bytes);
            }
            if let Ok((_, Packet::Acks { acks, .. })) = parse(&bytes) {
                prop_assert!(acks.count() <= bytes.len() / 8);
            }
        }
    }
}
