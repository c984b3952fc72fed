//! The hello, which tells two devices which life of the other they speak to.

use super::header::WireError;
use bytemuck::{Pod, Zeroable};

/// A hello: a question, an answer, or neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The number that the answer is to echo; 0 if no answer is wanted.
    pub challenge: u64,
    /// The challenge that this hello answers. It is 0 if nobody asked: then the sender was spoken to as a life that it
    /// is not in.
    pub echo: u64,
}

/// A hello as it is in a packet, behind the header.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct HelloBytes {
    challenge: [u8; 8],
    echo: [u8; 8],
}

impl Hello {
    /// Bytes of a hello behind the header.
    pub(super) const BYTES: usize = size_of::<HelloBytes>();

    /// Reads what stands behind the header; `packet_len` is the length of the whole packet, for the error.
    pub(super) fn parse(rest: &[u8], packet_len: usize) -> Result<Self, WireError> {
        let invalid = |_| WireError::Field { field: "length of a hello", value: packet_len as u64 };
        let hello: &HelloBytes = bytemuck::try_from_bytes(rest).map_err(invalid)?;
        Ok(Self { challenge: u64::from_le_bytes(hello.challenge), echo: u64::from_le_bytes(hello.echo) })
    }

    pub(super) fn emit(&self, buf: &mut Vec<u8>) {
        let hello = HelloBytes { challenge: self.challenge.to_le_bytes(), echo: self.echo.to_le_bytes() };
        buf.extend_from_slice(bytemuck::bytes_of(&hello));
    }
}
