//! The entries of an acknowledgement packet.

use efa_io::Status;
use std::borrow::Cow;

/// Most entries in a packet.
pub const MAX_ACKS: usize = 64;
/// 64-bit words of the bitmap in an entry.
pub const ACK_WORDS: usize = 4;

/// Bytes of an entry without bitmap, and so of the shortest.
const ENTRY: usize = 8;
/// Bytes in front of the bitmap of an entry that has one.
const PARTIAL: usize = 12;

/// The acknowledgement of a message, or of several that follow each other.
///
/// An entry begins with its kind:
///
/// | byte | [`Done`](Self::Done) | [`Partial`](Self::Partial) | [`NotReady`](Self::NotReady) | [`Accepted`](Self::Accepted) |
/// | --- | --- | --- | --- | --- |
/// | 0 | 0 | 1 | 2 | 3 |
/// | 1 | status | words of the bitmap that follow | 0 | 0 |
/// | 2 | count (2 bytes) | 0 | 0 | 0 |
/// | 4 | first message (4 bytes) | message (4 bytes) | message (4 bytes) | message (4 bytes) |
/// | 8 | | next (4 bytes) | | |
/// | 12 | | the bitmap up to its last word that is not 0 | | |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// `count` messages from `first` on ended with this status.
    Done {
        /// First message.
        first: u32,
        /// Number of messages.
        count: u16,
        /// How they ended.
        status: Status,
    },
    /// Some packets of the message have arrived: those below `next`, and those whose bit is set.
    Partial {
        /// The message.
        message: u32,
        /// Lowest packet that is missing.
        next: u32,
        /// The packets from `next` on, one bit each.
        bitmap: [u64; ACK_WORDS],
    },
    /// All of the message arrived, but there is no receive descriptor for it. Its sender offers it again, under a new
    /// number.
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

/// Returns how many words of a bitmap there are up to the last one that is not 0.
fn used_words(bitmap: &[u64; ACK_WORDS]) -> usize {
    ACK_WORDS - bitmap.iter().rev().take_while(|&&word| word == 0).count()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

impl Ack {
    /// Returns the number of bytes of the entry in a packet.
    pub fn wire_len(&self) -> usize {
        match self {
            Self::Partial { bitmap, .. } => PARTIAL + 8 * used_words(bitmap),
            Self::Done { .. } | Self::NotReady { .. } | Self::Accepted { .. } => ENTRY,
        }
    }

    /// Reads the entry at the start of `bytes`. Returns `None` if there is none, or an invalid one.
    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < ENTRY {
            return None;
        }
        let message = u32_at(bytes, 4);
        Some(match bytes[0] {
            0 => {
                let count = u16::from_le_bytes([bytes[2], bytes[3]]);
                Self::Done { first: message, count, status: Status::from_code(bytes[1]) }
            }
            1 => {
                let words = bytes[1] as usize;
                if words > ACK_WORDS || bytes.len() < PARTIAL + 8 * words {
                    return None;
                }
                let mut bitmap = [0; ACK_WORDS];
                for (word, bytes) in bitmap[..words].iter_mut().zip(bytes[PARTIAL..].chunks_exact(8)) {
                    *word = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
                }
                Self::Partial { message, next: u32_at(bytes, 8), bitmap }
            }
            2 => Self::NotReady { message },
            3 => Self::Accepted { message },
            _ => return None,
        })
    }

    fn emit(&self, buf: &mut Vec<u8>) {
        let mut begin = |kind: u8, detail: u8, count: u16, message: u32| {
            buf.extend_from_slice(&[kind, detail]);
            buf.extend_from_slice(&count.to_le_bytes());
            buf.extend_from_slice(&message.to_le_bytes());
        };
        match *self {
            Self::Done { first, count, status } => begin(0, status.code(), count, first),
            Self::NotReady { message } => begin(2, 0, 0, message),
            Self::Accepted { message } => begin(3, 0, 0, message),
            Self::Partial { message, next, bitmap } => {
                let words = used_words(&bitmap);
                begin(1, words as u8, 0, message);
                buf.extend_from_slice(&next.to_le_bytes());
                for word in &bitmap[..words] {
                    buf.extend_from_slice(&word.to_le_bytes());
                }
            }
        }
    }
}

/// The acknowledgements of a packet, in their bytes: parsed ones are borrowed from the packet, others are owned.
///
/// The entries stay bytes inside a process, too. That takes a tenth of the memory of as many [`Ack`]s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acks<'a>(Cow<'a, [u8]>);

impl<'a> Acks<'a> {
    /// No acknowledgements, with room for `count` short ones.
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self(Cow::Owned(Vec::with_capacity(count.min(MAX_ACKS) * ENTRY)))
    }

    /// Takes what stands behind the header of a packet for acknowledgements. [`iter`](Self::iter) stops at the first
    /// invalid one.
    pub(super) fn parse(rest: &'a [u8]) -> Self {
        Self(Cow::Borrowed(rest))
    }

    /// Adds an acknowledgement. A receiver reads no more than [`MAX_ACKS`] of them.
    pub fn push(&mut self, ack: &Ack) {
        ack.emit(self.0.to_mut());
    }

    /// Returns `true` if there is no acknowledgement.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Iterates over the acknowledgements, at most [`MAX_ACKS`], and stops at the first invalid one.
    pub fn iter(&self) -> AckIter<'_> {
        AckIter { rest: &self.0, left: MAX_ACKS }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromIterator<Ack> for Acks<'_> {
    fn from_iter<I: IntoIterator<Item = Ack>>(acks: I) -> Self {
        let mut all = Self::default();
        acks.into_iter().for_each(|ack| all.push(&ack));
        all
    }
}

/// An iterator over [`Acks`].
#[derive(Clone, Debug)]
pub struct AckIter<'a> {
    rest: &'a [u8],
    /// Entries that may still be read.
    left: usize,
}

impl Iterator for AckIter<'_> {
    type Item = Ack;

    fn next(&mut self) -> Option<Ack> {
        self.left = self.left.checked_sub(1)?;
        let ack = Ack::parse(self.rest)?;
        // Not `wire_len`: a sender may spell out words of the bitmap that are 0.
        let len = if let Ack::Partial { .. } = ack { PARTIAL + 8 * usize::from(self.rest[1]) } else { ENTRY };
        self.rest = &self.rest[len..];
        Some(ack)
    }
}
