//! The header of every packet.

use bytemuck::{Pod, Zeroable};
use efa_types::Gid;
use std::ops::Range;

/// The first four bytes of every packet.
pub(crate) const MAGIC: [u8; 4] = *b"EFAS";
/// The version of this format. A device drops packets of any other.
const VERSION: u8 = 3;

/// The header as it is in a packet.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct HeaderBytes {
    /// [`MAGIC`].
    magic: [u8; 4],
    /// [`VERSION`].
    version: u8,
    /// A [`Kind`].
    kind: u8,
    /// The operation of a data packet ([`WireOp`](super::WireOp)); otherwise 0.
    op: u8,
    /// [`flag`] bits.
    flags: u8,
    /// CRC-32 of all other bytes of the packet, including the reserved ones.
    checksum: [u8; 4],
    path: u8,
    reserved: [u8; 3],
    src: [u8; 16],
    dst: [u8; 16],
    src_incarnation: [u8; 8],
    dst_incarnation: [u8; 8],
}

/// Bytes of the header.
pub(super) const HEADER: usize = size_of::<HeaderBytes>();
/// The place of the checksum in the header.
const CHECKSUM: Range<usize> = 8..12;
const _: () = assert!(HEADER == 64 && std::mem::offset_of!(HeaderBytes, checksum) == CHECKSUM.start);

/// The kind of a packet, which says what follows the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data = 0,
    Acks = 1,
    Hello = 2,
    Datagram = 3,
}

/// Bits of the header's flags.
pub(super) mod flag {
    /// The message has immediate data.
    pub(crate) const IMM: u8 = 1;
    /// The acknowledgements are those of [`Lane::Responses`](super::super::Lane::Responses).
    pub(crate) const RESPONSES: u8 = 2;
    /// The bytes of the write are in place since an earlier attempt.
    pub(crate) const PLACED: u8 = 4;
    /// More arrives at the sender of the acknowledgements than it can take in.
    pub(crate) const CONGESTED: u8 = 8;
}

/// The sender and the receiver of a packet, and its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Address of the sender.
    pub src: Gid,
    /// Address of the receiver.
    pub dst: Gid,
    /// The incarnation that the sender has for this receiver; never 0.
    pub src_incarnation: u64,
    /// The incarnation that the receiver has for this sender. It is 0 in a hello with a challenge and in a datagram,
    /// whose senders may not know it.
    pub dst_incarnation: u64,
    /// Number of the path that the packet takes.
    pub path: u8,
}

/// The reason why bytes are not a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// There are too few bytes for a packet of this kind.
    #[error("{0} bytes are too short")]
    Short(usize),
    /// The packet belongs to another protocol, or to another version of this one.
    #[error("wrong magic or version")]
    Foreign,
    /// The checksum does not match.
    #[error("damaged: checksum {found:#010x}, computed {computed:#010x}")]
    Corrupt {
        /// Checksum in the packet.
        found: u32,
        /// Checksum of the packet's bytes.
        computed: u32,
    },
    /// A field has an invalid value.
    #[error("{field} is {value}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// A parsed header.
pub(super) struct Header {
    pub(super) envelope: Envelope,
    pub(super) kind: Kind,
    pub(super) op: u8,
    pub(super) flags: u8,
}

impl HeaderBytes {
    /// Reads the header, if the bytes begin with one of this version.
    fn of(bytes: &[u8]) -> Option<&Self> {
        let header: &Self = bytemuck::from_bytes(bytes.get(..HEADER)?);
        (header.magic == MAGIC && header.version == VERSION).then_some(header)
    }

    fn envelope(&self) -> Envelope {
        Envelope {
            src: Gid(self.src),
            dst: Gid(self.dst),
            src_incarnation: u64::from_le_bytes(self.src_incarnation),
            dst_incarnation: u64::from_le_bytes(self.dst_incarnation),
            path: self.path,
        }
    }
}

impl Envelope {
    /// Reads the envelope of a packet, or returns `None` if the bytes do not begin like a packet of this version.
    ///
    /// Nothing else is checked, not even the checksum: a driver uses this to decide whether the device may see the
    /// packet at all.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        HeaderBytes::of(bytes).map(HeaderBytes::envelope)
    }
}

impl Header {
    /// Reads the header of a packet and checks its checksum.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() < HEADER {
            return Err(WireError::Short(bytes.len()));
        }
        let header = HeaderBytes::of(bytes).ok_or(WireError::Foreign)?;
        let (found, computed) = (u32::from_le_bytes(header.checksum), checksum(bytes));
        if found != computed {
            return Err(WireError::Corrupt { found, computed });
        }
        let kind = match header.kind {
            0 => Kind::Data,
            1 => Kind::Acks,
            2 => Kind::Hello,
            3 => Kind::Datagram,
            kind => return Err(WireError::Field { field: "kind", value: kind.into() }),
        };
        Ok(Self { envelope: header.envelope(), kind, op: header.op, flags: header.flags })
    }

    /// Begins a packet in `buf`, without checksum: [`seal`] adds that.
    pub(super) fn emit(&self, buf: &mut Vec<u8>) {
        let Envelope { src, dst, src_incarnation, dst_incarnation, path } = self.envelope;
        let header = HeaderBytes {
            magic: MAGIC,
            version: VERSION,
            kind: self.kind as u8,
            op: self.op,
            flags: self.flags,
            checksum: [0; 4],
            path,
            reserved: [0; 3],
            src: src.0,
            dst: dst.0,
            src_incarnation: src_incarnation.to_le_bytes(),
            dst_incarnation: dst_incarnation.to_le_bytes(),
        };
        buf.clear();
        buf.extend_from_slice(bytemuck::bytes_of(&header));
    }
}

fn checksum(packet: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&packet[..CHECKSUM.start]);
    hasher.update(&packet[CHECKSUM.end..]);
    hasher.finalize()
}

/// Completes a packet with its checksum.
pub(super) fn seal(packet: &mut [u8]) {
    let checksum = checksum(packet);
    packet[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_is_read_from_whatever_begins_like_a_packet() {
        let (src, dst) = (Gid::local(1), Gid::local(2));
        let envelope = Envelope { src, dst, src_incarnation: 77, dst_incarnation: 0, path: 3 };
        let mut bytes = Vec::new();
        Header { envelope, kind: Kind::Hello, op: 0, flags: 0 }.emit(&mut bytes);
        assert_eq!(Envelope::parse(&bytes), Some(envelope));
        assert_eq!((Envelope::parse(&bytes[..HEADER - 1]), Envelope::parse(&[0; 200])), (None, None));
    }
}
