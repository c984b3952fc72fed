//! Errors of encoding a request and of decoding an entry.

use crate::opcode::OpCode;
use core::fmt;

/// Why a request does not fit a WQE or its queue. Nothing was written anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// More buffers than the queue takes in one WQE.
    TooManyBuffers {
        /// Buffers in the request.
        given: usize,
        /// Buffers that one WQE of this queue holds.
        max: usize,
    },
    /// More inline bytes than the WQE size or the queue takes.
    InlineTooLong {
        /// Bytes in the request.
        given: usize,
        /// Bytes that fit.
        max: usize,
    },
    /// The message is longer than the device takes in one request.
    MessageTooLong {
        /// The operation.
        op: OpCode,
        /// Bytes in the request.
        given: u64,
        /// Bytes that the device takes: its MTU for a send, `max_rdma_size` for RDMA.
        max: u32,
    },
    /// The device or the queue lacks the operation.
    Unsupported {
        /// The operation.
        op: OpCode,
    },
    /// A key does not fit the 24 bits of a local key.
    LkeyTooWide {
        /// The key.
        lkey: u32,
    },
    /// A completion does not fit a 16-byte entry, which has no room for long lengths and source addresses.
    EntryTooSmall {
        /// The length that has no room, in bytes.
        length: u32,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooManyBuffers { given, max } => {
                write!(f, "{given} buffers in one WQE, this queue takes {max}: split the message or copy it together")
            }
            Self::InlineTooLong { given, max } => write!(
                f,
                "{given} bytes inline, {max} fit: use a registered buffer, or a queue with 128-byte WQEs (80 bytes inline)"
            ),
            Self::MessageTooLong { op, given, max } => {
                write!(f, "{op} of {given} bytes, the device takes {max} in one request: split it")
            }
            Self::Unsupported { op } => write!(
                f,
                "{op} is not available on this queue: the device lacks the capability, or the queue was created without it"
            ),
            Self::LkeyTooWide { lkey } => {
                write!(f, "local key {lkey:#x} does not fit 24 bits: it did not come from registering memory")
            }
            Self::EntryTooSmall { length } => {
                write!(f, "a receive of {length} bytes does not fit a 16-byte completion entry: use 32-byte entries")
            }
        }
    }
}

impl core::error::Error for EncodeError {}

/// An entry has an invalid field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The vendor's name of the field, for example `ctrl2.first`.
    pub field: &'static str,
    /// Offset of the field's first byte in the entry.
    pub byte: usize,
    /// The value found.
    pub value: u64,
    /// The valid values, in words.
    pub expected: &'static str,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, byte, value, expected } = *self;
        write!(f, "{field} (byte {byte}) is {value:#x}, expected {expected}")
    }
}

impl core::error::Error for DecodeError {}

impl DecodeError {
    pub(crate) const fn at(field: crate::bits::Field, value: u64, expected: &'static str) -> Self {
        Self { field: field.name, byte: field.byte(), value, expected }
    }
}
