//! Packets inside one process: not bytes yet, and perhaps never.
//!
//! A packet that stays in the process carries its payload as a reference to the sender's region, so that the bytes are copied
//! once, from region to region, as DMA would. One that leaves it is [encoded](Transmit::encode).

use crate::mr::Pinned;
use crate::wire::{self, Ack, Data, Envelope, Hello, Lane, MessageHeader};
use efa_types::Gid;
use std::sync::Arc;

/// Payloads up to this many bytes are copied when the packet is built: cheaper than to refer to them.
const SHORT: usize = 64;

/// A piece of a region.
#[derive(Clone)]
pub(crate) struct Span {
    pub(crate) memory: Arc<Pinned>,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// A packet's payload, wherever its bytes are.
#[derive(Clone)]
pub(crate) enum Payload {
    /// A few bytes, here.
    Short([u8; SHORT], u8),
    /// More bytes, here.
    Long(Box<[u8]>),
    /// In up to two pieces of regions, one after the other.
    Spans([Option<Span>; 2]),
}

impl Payload {
    /// No bytes.
    pub(crate) const EMPTY: Self = Self::Short([0; SHORT], 0);

    /// A copy of these bytes.
    pub(crate) fn copied(bytes: &[u8]) -> Self {
        if bytes.len() > SHORT {
            return Self::Long(bytes.into());
        }
        let mut short = [0; SHORT];
        short[..bytes.len()].copy_from_slice(bytes);
        Self::Short(short, bytes.len() as u8)
    }

    /// The bytes of these pieces. `None`: one of their regions was taken back.
    pub(crate) fn of_spans(spans: [Option<Span>; 2]) -> Option<Self> {
        let spans = Self::Spans(spans);
        if spans.len() > SHORT { Some(spans) } else { spans.snapshot() }
    }

    /// The same bytes as they are now, whatever becomes of their regions.
    pub(crate) fn snapshot(self) -> Option<Self> {
        let len = self.len();
        if !matches!(self, Self::Spans(_)) {
            return Some(self);
        }
        if len <= SHORT {
            let mut short = [0; SHORT];
            return self.view().read(&mut short[..len]).then_some(Self::Short(short, len as u8));
        }
        let mut long = vec![0; len];
        self.view().read(&mut long).then(|| Self::Long(long.into()))
    }

    pub(crate) fn len(&self) -> usize {
        self.view().len()
    }

    pub(crate) fn view(&self) -> View<'_> {
        match self {
            Self::Short(bytes, len) => View::Bytes(&bytes[..usize::from(*len)]),
            Self::Long(bytes) => View::Bytes(bytes),
            Self::Spans(spans) => View::Spans(spans),
        }
    }
}

/// A payload as its receiver sees it.
#[derive(Clone, Copy)]
pub(crate) enum View<'a> {
    /// Bytes off the network.
    Bytes(&'a [u8]),
    /// The sender's regions.
    Spans(&'a [Option<Span>; 2]),
}

impl View<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Spans(spans) => spans.iter().flatten().map(|span| span.len).sum(),
        }
    }

    /// Whether a region of the sender was deregistered while the packet was under way: it is lost.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::Bytes(_) => false,
            Self::Spans(spans) => spans.iter().flatten().any(|span| span.memory.is_gone()),
        }
    }

    /// Copies all of it out. `false`: a region was taken back.
    fn read(&self, mut into: &mut [u8]) -> bool {
        match self {
            Self::Bytes(bytes) => {
                into.copy_from_slice(bytes);
                true
            }
            Self::Spans(spans) => spans.iter().flatten().all(|span| {
                let (here, later) = std::mem::take(&mut into).split_at_mut(span.len);
                into = later;
                span.memory.read(span.offset, here)
            }),
        }
    }

    /// Copies `len` bytes from `from` on into a region. `false`: it was taken back, or the source was.
    pub(crate) fn place(&self, mut from: usize, mut len: usize, target: &Pinned, mut at: usize) -> bool {
        match self {
            Self::Bytes(bytes) => target.write(at, &bytes[from..from + len]),
            Self::Spans(spans) => spans.iter().flatten().all(|span| {
                let skipped = from.min(span.len);
                let here = len.min(span.len - skipped);
                let placed = here == 0 || span.memory.copy_to(span.offset + skipped, target, at, here);
                (from, len, at) = (from - skipped, len - here, at + here);
                placed
            }),
        }
    }
}

/// What a packet says.
#[derive(Clone)]
pub(crate) enum Body {
    Data(Data, Payload),
    Datagram(MessageHeader, Payload),
    Acks { lane: Lane, congested: bool, acks: Vec<Ack> },
    Hello(Hello),
}

/// A packet to be put on the network.
#[derive(Clone)]
pub struct Transmit {
    pub(crate) envelope: Envelope,
    pub(crate) body: Body,
    /// It left before.
    pub(crate) resent: bool,
}

impl Transmit {
    /// The device it goes to.
    pub fn dst(&self) -> Gid {
        self.envelope.dst
    }

    /// Which of the paths between the two devices it takes.
    pub fn path(&self) -> u8 {
        self.envelope.path
    }

    /// Bytes that it has on the wire.
    pub fn wire_len(&self) -> usize {
        match &self.body {
            Body::Data(_, payload) | Body::Datagram(_, payload) => wire::DATA_HEADER + payload.len(),
            Body::Acks { acks, .. } => wire::HEADER + acks.iter().map(Ack::wire_len).sum::<usize>(),
            Body::Hello(_) => wire::HELLO,
        }
    }

    /// Turns it into bytes, in `buf`. `false`: its payload was taken back since, so there is nothing to send; to the devices this
    /// is a packet lost.
    #[must_use]
    pub fn encode(&self, buf: &mut Vec<u8>) -> bool {
        let fill = |payload: &Payload, into: &mut [u8]| if payload.view().read(into) { Ok(()) } else { Err(()) };
        match &self.body {
            Body::Data(data, payload) => {
                wire::encode_data(buf, &self.envelope, data, payload.len(), |into| fill(payload, into)).is_ok()
            }
            Body::Datagram(header, payload) => {
                wire::encode_datagram(buf, &self.envelope, header, payload.len(), |into| fill(payload, into)).is_ok()
            }
            Body::Acks { lane, congested, acks } => {
                wire::encode_acks(buf, &self.envelope, *lane, *congested, acks);
                true
            }
            Body::Hello(hello) => {
                wire::encode_hello(buf, &self.envelope, hello);
                true
            }
        }
    }
}

impl std::fmt::Debug for Transmit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transmit({} bytes to {} on path {})", self.wire_len(), self.dst(), self.path())
    }
}
