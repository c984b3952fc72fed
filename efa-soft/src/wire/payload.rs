//! The bytes of a message, before they are copied into a packet.
//!
//! A packet that stays in the process carries its payload as a reference to the sender's region. So the bytes are
//! copied once, from region to region, as DMA would copy them. They become bytes of the packet only when the packet
//! leaves the process, or when a simulated network damages it.

use crate::regions::RevocableMemory;
use std::sync::Arc;

/// Payloads of up to this many bytes are copied when the packet is built: that costs less than a reference to the
/// region.
const SHORT: usize = 64;

/// A piece of a region.
#[derive(Clone)]
pub(crate) struct Span {
    pub(crate) memory: Arc<RevocableMemory>,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// The payload of a packet: bytes, or a reference to the regions in which they are.
#[derive(Clone)]
pub struct Payload<'a>(Place<'a>);

#[derive(Clone)]
enum Place<'a> {
    /// Bytes of a packet that was parsed.
    Borrowed(&'a [u8]),
    /// A few bytes, here.
    Short([u8; SHORT], u8),
    /// More bytes.
    Long(Box<[u8]>),
    /// Up to two pieces of regions, one after the other: a WQE names no more (`max_sq_sge`).
    Spans([Option<Span>; 2]),
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    /// Borrows the bytes.
    fn from(bytes: &'a [u8]) -> Self {
        Self(Place::Borrowed(bytes))
    }
}

impl Payload<'static> {
    /// No bytes.
    pub(crate) const EMPTY: Self = Self(Place::Borrowed(&[]));

    /// Copies these bytes.
    pub(crate) fn copied(bytes: &[u8]) -> Self {
        if bytes.len() > SHORT {
            return Self(Place::Long(bytes.into()));
        }
        let mut short = [0; SHORT];
        short[..bytes.len()].copy_from_slice(bytes);
        Self(Place::Short(short, bytes.len() as u8))
    }

    /// Refers to these pieces of regions, or copies them if they are short. Returns `None` if one of the regions was
    /// deregistered.
    pub(crate) fn of_spans(spans: [Option<Span>; 2]) -> Option<Self> {
        let payload = Self(Place::Spans(spans));
        if payload.len() > SHORT { Some(payload) } else { payload.snapshot() }
    }

    /// Copies the bytes as they are now, so that nothing that happens to their regions later changes them. Returns
    /// `None` if one of the regions was deregistered.
    pub(crate) fn snapshot(self) -> Option<Self> {
        let len = self.len();
        if !matches!(self.0, Place::Spans(_)) {
            return Some(self);
        }
        if len <= SHORT {
            let mut short = [0; SHORT];
            return self.read(&mut short[..len]).then_some(Self(Place::Short(short, len as u8)));
        }
        let mut long = vec![0; len];
        self.read(&mut long).then(|| Self(Place::Long(long.into())))
    }
}

impl Payload<'_> {
    /// Returns the bytes if they are at hand, and pieces of regions otherwise.
    fn parts(&self) -> Result<&[u8], &[Option<Span>; 2]> {
        match &self.0 {
            Place::Borrowed(bytes) => Ok(bytes),
            Place::Short(bytes, len) => Ok(&bytes[..usize::from(*len)]),
            Place::Long(bytes) => Ok(bytes),
            Place::Spans(spans) => Err(spans),
        }
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        self.parts().map_or_else(|spans| spans.iter().flatten().map(|span| span.len).sum(), <[u8]>::len)
    }

    /// Returns `true` if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns `true` if the sender deregistered a region of the payload while the packet was under way. The packet is
    /// lost then.
    pub(crate) fn is_gone(&self) -> bool {
        self.parts().is_err_and(|spans| spans.iter().flatten().any(|span| span.memory.is_revoked()))
    }

    /// Copies all bytes to `into`, which is as long as the payload. Returns `false` if a region was deregistered.
    #[must_use]
    pub fn read(&self, mut into: &mut [u8]) -> bool {
        match self.parts() {
            Ok(bytes) => {
                into.copy_from_slice(bytes);
                true
            }
            Err(spans) => spans.iter().flatten().all(|span| {
                let (here, later) = std::mem::take(&mut into).split_at_mut(span.len);
                into = later;
                span.memory.read(span.offset, here)
            }),
        }
    }

    /// Copies `len` bytes from byte `from` on to byte `at` of a region. Returns `false` if that region or one of the
    /// payload's was deregistered.
    #[must_use]
    pub(crate) fn place(&self, mut from: usize, mut len: usize, target: &RevocableMemory, mut at: usize) -> bool {
        match self.parts() {
            Ok(bytes) => target.write(at, &bytes[from..from + len]),
            Err(spans) => spans.iter().flatten().all(|span| {
                let skipped = from.min(span.len);
                let here = len.min(span.len - skipped);
                let placed = here == 0 || span.memory.copy_to(span.offset + skipped, target, at, here);
                (from, len, at) = (from - skipped, len - here, at + here);
                placed
            }),
        }
    }
}

impl std::fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}
