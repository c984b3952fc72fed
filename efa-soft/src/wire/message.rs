//! The header of a message, and which of its packets a packet is.

use super::header::{WireError, flag};
use bytemuck::{Pod, Zeroable};
use std::fmt;

/// Fewest payload bytes of a packet in a message of several packets. With fewer, a peer could make a receiver keep book
/// of single bytes.
pub const MIN_STRIDE: u32 = 64;

/// The operation of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WireOp {
    /// Places its bytes in the next receive of the destination.
    Send = 0,
    /// Asks for `bytes` bytes of remote memory.
    ReadRequest = 1,
    /// Places its bytes in remote memory.
    Write = 2,
    /// Answers a read request with the bytes that it asked for.
    ReadResponse = 3,
}

/// One of the two numberings of the messages that go from one device to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Sends, writes and read requests.
    Requests,
    /// Answers to read requests.
    Responses,
}

impl WireOp {
    /// Returns the lane of messages with this operation.
    pub fn lane(self) -> Lane {
        if self == Self::ReadResponse { Lane::Responses } else { Lane::Requests }
    }
}

impl fmt::Display for WireOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::ReadRequest => "RDMA read request",
            Self::Write => "RDMA write",
            Self::ReadResponse => "RDMA read response",
        })
    }
}

/// The header of a message. Every packet of the message repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageHeader {
    /// Operation.
    pub op: WireOp,
    /// Number of the sending queue pair.
    pub src_qpn: u16,
    /// Number of the destination queue pair.
    pub dst_qpn: u16,
    /// Queue key of the destination, as the sender knows it.
    pub qkey: u32,
    /// Immediate data.
    pub imm: Option<u32>,
    /// Bytes of the whole message.
    pub bytes: u32,
    /// Remote key of the memory to write or to read.
    pub rkey: u32,
    /// Address of the memory to write or to read.
    pub remote_addr: u64,
    /// In an answer, the number of the read request.
    pub reply_to: u32,
    /// The bytes of this write are in place since an earlier attempt, and only its immediate is left to deliver.
    pub placed: bool,
}

/// One packet of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// The message's number among those of its lane from this sender to this receiver.
    pub message: u32,
    /// The oldest message that the sender still waits for.
    pub base: u32,
    /// The header of the message.
    pub header: MessageHeader,
    /// Payload bytes of every packet but the last.
    pub stride: u32,
    /// The packet's number in the message. Its payload begins at byte `packet * stride`.
    pub packet: u32,
}

/// A packet's place and its message's header as they are in a packet, behind the header of the packet.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DataBytes {
    message: [u8; 4],
    base: [u8; 4],
    bytes: [u8; 4],
    stride: [u8; 4],
    packet: [u8; 4],
    qkey: [u8; 4],
    imm: [u8; 4],
    rkey: [u8; 4],
    reply_to: [u8; 4],
    src_qpn: [u8; 2],
    dst_qpn: [u8; 2],
    remote_addr: [u8; 8],
}

impl MessageHeader {
    /// Creates the header of a message of `bytes` bytes from one queue pair to another, with all other fields zero.
    pub fn new(op: WireOp, src_qpn: u16, dst_qpn: u16, bytes: u32) -> Self {
        Self { op, src_qpn, dst_qpn, qkey: 0, imm: None, bytes, rkey: 0, remote_addr: 0, reply_to: 0, placed: false }
    }

    /// Returns how many bytes travel in the message's own packets: none in a read request, and none in a write whose
    /// bytes are in place already.
    pub fn carried(&self) -> u32 {
        if self.op == WireOp::ReadRequest || self.placed { 0 } else { self.bytes }
    }

    /// Returns the number of packets of the message, at least one.
    pub fn packets(&self, stride: u32) -> u32 {
        self.carried().div_ceil(stride).max(1)
    }

    /// Returns the number of payload bytes of packet number `packet`.
    pub fn payload_len(&self, packet: u32, stride: u32) -> usize {
        let from = u64::from(packet) * u64::from(stride);
        (u64::from(self.carried()).saturating_sub(from)).min(stride.into()) as usize
    }

    /// Returns the message's flags in the header of its packets.
    pub(super) fn flags(&self) -> u8 {
        (if self.imm.is_some() { flag::IMM } else { 0 }) | if self.placed { flag::PLACED } else { 0 }
    }
}

impl Data {
    /// Bytes in front of the payload, behind the header of the packet.
    pub(super) const BYTES: usize = size_of::<DataBytes>();

    /// The only packet of a datagram, which has no number.
    pub(super) fn datagram(header: MessageHeader) -> Self {
        Self { message: 0, base: 0, header, stride: header.bytes.max(1), packet: 0 }
    }

    /// Reads what stands behind the header of a packet, and returns it with the payload. `packet_len` is the length of
    /// the whole packet, for the error.
    pub(super) fn parse(op: u8, flags: u8, rest: &[u8], packet_len: usize) -> Result<(Self, &[u8]), WireError> {
        let (data, payload) = rest.split_at_checked(Self::BYTES).ok_or(WireError::Short(packet_len))?;
        let op = match op {
            0 => WireOp::Send,
            1 => WireOp::ReadRequest,
            2 => WireOp::Write,
            3 => WireOp::ReadResponse,
            op => return Err(WireError::Field { field: "operation", value: op.into() }),
        };
        let fields: &DataBytes = bytemuck::from_bytes(data);
        let header = MessageHeader {
            op,
            src_qpn: u16::from_le_bytes(fields.src_qpn),
            dst_qpn: u16::from_le_bytes(fields.dst_qpn),
            qkey: u32::from_le_bytes(fields.qkey),
            imm: (flags & flag::IMM != 0).then_some(u32::from_le_bytes(fields.imm)),
            bytes: u32::from_le_bytes(fields.bytes),
            rkey: u32::from_le_bytes(fields.rkey),
            remote_addr: u64::from_le_bytes(fields.remote_addr),
            reply_to: u32::from_le_bytes(fields.reply_to),
            placed: flags & flag::PLACED != 0,
        };
        let data = Self {
            message: u32::from_le_bytes(fields.message),
            base: u32::from_le_bytes(fields.base),
            header,
            stride: u32::from_le_bytes(fields.stride),
            packet: u32::from_le_bytes(fields.packet),
        };
        data.check(payload.len())?;
        Ok((data, payload))
    }

    /// Checks that this packet exists in its message and carries the right number of bytes.
    fn check(&self, payload_len: usize) -> Result<(), WireError> {
        let Self { header, stride, packet, .. } = *self;
        let invalid = |field, value| Err(WireError::Field { field, value });
        if stride == 0 || stride < MIN_STRIDE && header.packets(stride) > 1 {
            return invalid("stride", stride.into());
        }
        if packet >= header.packets(stride) {
            return invalid("packet", packet.into());
        }
        if payload_len != header.payload_len(packet, stride) {
            return invalid("payload length", payload_len as u64);
        }
        Ok(())
    }

    pub(super) fn emit(&self, buf: &mut Vec<u8>) {
        let Self { message, base, header, stride, packet } = *self;
        let fields = DataBytes {
            message: message.to_le_bytes(),
            base: base.to_le_bytes(),
            bytes: header.bytes.to_le_bytes(),
            stride: stride.to_le_bytes(),
            packet: packet.to_le_bytes(),
            qkey: header.qkey.to_le_bytes(),
            imm: header.imm.unwrap_or(0).to_le_bytes(),
            rkey: header.rkey.to_le_bytes(),
            reply_to: header.reply_to.to_le_bytes(),
            src_qpn: header.src_qpn.to_le_bytes(),
            dst_qpn: header.dst_qpn.to_le_bytes(),
            remote_addr: header.remote_addr.to_le_bytes(),
        };
        buf.extend_from_slice(bytemuck::bytes_of(&fields));
    }
}
