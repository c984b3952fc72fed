//! The properties of `efa-io`'s decoders that must hold for all bytes: one body for each fuzz target.
//!
//! The fuzz targets run these bodies on new inputs, and the test `corpora` of `efa-io` runs them on the inputs kept
//! here.

#![allow(dead_code, reason = "a fuzz target runs one of the bodies")]

use efa_io::rx::RxBuf;
use efa_io::*;
use std::fmt::{Debug, Display};

/// Checks the 64-byte send WQE.
pub(crate) fn wqe64(data: &[u8]) {
    decodes_or_names_a_field(Wqe64::from_words(words(data)));
}

/// Checks the 128-byte send WQE.
pub(crate) fn wqe128(data: &[u8]) {
    decodes_or_names_a_field(Wqe128::from_words(words(data)));
}

/// Checks the receive descriptor. All its bits have a meaning, so a decoded value encodes to the same bytes.
pub(crate) fn rx_desc(data: &[u8]) {
    let desc = RxDesc::from_words(words(data));
    decodes_or_names_a_field(desc);
    if let Ok(buf) = desc.decode() {
        assert_eq!(RxDesc::new(buf), desc);
    }
}

/// Checks the 16-byte completion entry.
pub(crate) fn cqe16(data: &[u8]) {
    decodes_or_names_a_field(Cqe16::from_words(words(data)));
}

/// Checks the 32-byte completion entry.
pub(crate) fn cqe32(data: &[u8]) {
    decodes_or_names_a_field(Cqe32::from_words(words(data)));
}

/// Returns the words of an entry that begins with `data`. The rest is zero, and bytes beyond the entry's end are left
/// out.
fn words<const W: usize>(data: &[u8]) -> [u64; W] {
    let byte = |at: usize| data.get(at).copied().unwrap_or(0);
    std::array::from_fn(|word| u64::from_le_bytes(std::array::from_fn(|i| byte(word * 8 + i))))
}

/// Checks three properties: a decoded value is the same after encoding and decoding it again, an error names a field of
/// the entry with its value, and the dissection reports an error exactly if the decoder does.
fn decodes_or_names_a_field<E: Entry>(entry: E) {
    let text = entry.to_string();
    match entry.decoded() {
        Ok(value) => {
            if let Some(again) = E::encoded(&value) {
                assert_eq!(again.decoded(), Ok(value), "{entry:?} encodes again as {again:?}");
            }
            assert!(!text.contains("MALFORMED"), "{entry:?} decodes, and dissects as\n{text}");
        }
        Err(e) => {
            let named = E::CHECKED.iter().find(|field| (field.name, field.byte) == (e.field, e.byte));
            let named = named.unwrap_or_else(|| panic!("{entry:?} fails at a field that is not checked: {e}"));
            assert_eq!(e.value, named.value(entry.bytes()), "{entry:?}: {e}");
            assert!(!e.expected.is_empty(), "{entry:?}: {e}");
            assert!(text.contains(&format!("MALFORMED: {e}\n")), "{entry:?} fails with {e}, and dissects as\n{text}");
        }
    }
}

/// A field that a decoder checks, at its place in the vendor's header: the first byte, the lowest bit in that byte, the
/// width in bits.
struct Checked {
    name: &'static str,
    byte: usize,
    bit: u32,
    width: u32,
}

const fn at(name: &'static str, byte: usize, bit: u32, width: u32) -> Checked {
    Checked { name, byte, bit, width }
}

impl Checked {
    /// Returns the field's value in an entry's bytes, without using the crate under test.
    fn value(&self, entry: &[u8]) -> u64 {
        let from_first_byte = entry[self.byte..].iter().take(4).rev().fold(0, |value, &b| value << 8 | u64::from(b));
        from_first_byte >> self.bit & ((1 << self.width) - 1)
    }
}

/// An entry with a checked decoder.
trait Entry: Debug + Display {
    /// The decoded value.
    type Value<'a>: Copy + Debug + PartialEq
    where
        Self: 'a;

    /// The fields that can be invalid.
    const CHECKED: &'static [Checked];

    fn bytes(&self) -> &[u8];

    fn decoded(&self) -> Result<Self::Value<'_>, DecodeError>;

    /// Encodes a value. Returns `None` if the format can hold values that the encoder refuses.
    fn encoded(value: &Self::Value<'_>) -> Option<Self>
    where
        Self: Sized;
}

impl<const W: usize> Entry for Wqe<W>
where
    Wqe<W>: SendWqe,
{
    type Value<'a> = SendRequest<'a>;

    const CHECKED: &'static [Checked] = &[
        at("ctrl1.op_type", 2, 0, 4),
        at("ctrl1.has_imm", 2, 4, 1),
        at("ctrl1.inline_msg", 2, 5, 1),
        at("ctrl1.meta_extension", 2, 6, 1),
        at("ctrl1.meta_desc", 2, 7, 1),
        at("ctrl2.reserved25", 3, 1, 1),
        at("ctrl2.first", 3, 2, 1),
        at("ctrl2.last", 3, 3, 1),
        at("ctrl2.comp_req", 3, 4, 1),
        at("ctrl2.reserved29", 3, 5, 3),
        at("length", 6, 0, 16),
        at("ctrl3.reserved", 14, 2, 6),
        at("reserved", 15, 0, 8),
        at("reserved2", 20, 0, 32),
        at("reserved2", 24, 0, 16),
        at("remote_mem.length", 32, 0, 32),
        at("buf.reserved", 39, 0, 8),
        at("buf.reserved", 55, 0, 8),
    ];

    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    fn decoded(&self) -> Result<SendRequest<'_>, DecodeError> {
        self.decode()
    }

    fn encoded(request: &SendRequest<'_>) -> Option<Self> {
        let limits = Limits::of_queue(u32::MAX, u32::MAX);
        let dest = request.dest;
        let wqe = match &request.op {
            Op::Send(op) => op.encode(&limits, dest),
            Op::SendInline(op) => op.encode(&limits, dest),
            Op::RdmaWrite(op) => op.encode(&limits, dest),
            Op::RdmaRead(op) => op.encode(&limits, dest),
            Op::RdmaWriteInline(op) => {
                assert_eq!(W, 16, "only a 128-byte WQE holds an inline RDMA write: {op:?}");
                op.encode(&limits, dest).map(|wqe| Self::from_words(std::array::from_fn(|word| wqe.words()[word])))
            }
        };
        let given = request.op.total_bytes();
        if given > u32::MAX.into() {
            // Two buffers can be longer than a message may be.
            assert_eq!(wqe, Err(EncodeError::MessageTooLong { op: OpCode::Send, given, max: u32::MAX }));
            return None;
        }
        let wqe = wqe.unwrap_or_else(|e| panic!("{request:?} does not encode: {e}"));
        Some(wqe.with_req_id_64(request.req_id).with_phase(request.phase))
    }
}

impl Entry for RxDesc {
    type Value<'a> = RxBuf;

    const CHECKED: &'static [Checked] = &[at("lkey_ctrl.reserved", 15, 0, 6)];

    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    fn decoded(&self) -> Result<RxBuf, DecodeError> {
        self.decode()
    }

    fn encoded(buf: &RxBuf) -> Option<Self> {
        Some(Self::new(*buf))
    }
}

impl<const W: usize> Entry for Cqe<W> {
    type Value<'a> = Completion;

    const CHECKED: &'static [Checked] = &[at("flags.q_type", 3, 1, 2), at("flags.op_type", 3, 4, 3)];

    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    fn decoded(&self) -> Result<Completion, DecodeError> {
        self.decode()
    }

    fn encoded(completion: &Completion) -> Option<Self> {
        Some(completion.encode().unwrap_or_else(|e| panic!("{completion:?} does not encode: {e}")))
    }
}
