//! A key that devices share, and the seal that it puts on their datagrams.
//!
//! A sealed datagram is the packet with another magic, then the number of the datagram at its sender (8 bytes), then
//! the BLAKE3 keyed hash of all of that (32 bytes).

use crate::wire::{self, Envelope};
use efa_types::{ControlError, Gid};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;

/// The first four bytes of a sealed datagram, in place of the packet's.
pub(super) const MAGIC: [u8; 4] = *b"EFAK";
const NUMBER: usize = 8;
/// Bytes that a seal adds to a packet.
pub(super) const SEAL: usize = NUMBER + blake3::OUT_LEN;
/// The context of the key's derivation, so that the key is of no use for anything else.
const CONTEXT: &str = "efa-soft 2026-11 datagrams between software devices";
/// How many datagrams may overtake another before it counts as a repetition.
const WINDOW: u64 = 1 << 14;
/// Most lives of peers whose repetitions are noticed: the ones that were heard last.
const MAX_LIVES: usize = 4096;

/// A key that devices share ([`UdpConfig::key`](super::UdpConfig::key)). [`Debug`](fmt::Debug) does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// Fewest bytes of a secret.
    pub const MIN_BYTES: usize = 16;
    /// Most bytes of a secret.
    pub const MAX_BYTES: usize = 4096;

    /// Derives the key from a secret of [`MIN_BYTES`](Self::MIN_BYTES) to [`MAX_BYTES`](Self::MAX_BYTES) bytes. The
    /// secret should be random: somebody who records datagrams can try words without anybody noticing.
    ///
    /// # Errors
    /// The secret is shorter or longer.
    pub fn new(secret: &[u8]) -> Result<Self, ControlError> {
        if !(Self::MIN_BYTES..=Self::MAX_BYTES).contains(&secret.len()) {
            let (what, expected) = ("number of bytes of a key", "16 to 4096");
            return Err(ControlError::Invalid { what, value: secret.len() as u64, expected });
        }
        Ok(Self(blake3::derive_key(CONTEXT, secret)))
    }

    /// Derives the key from the contents of a file, without the end of its last line.
    ///
    /// # Errors
    /// The file cannot be read, or [`new`](Self::new) refuses what it holds.
    pub fn read(path: &Path) -> io::Result<Self> {
        let about = |error: &dyn fmt::Display| format!("key file {}: {error}", path.display());
        let mut secret = Vec::new();
        let file = std::fs::File::open(path).map_err(|error| io::Error::new(error.kind(), about(&error)))?;
        file.take(Self::MAX_BYTES as u64 + 3)
            .read_to_end(&mut secret)
            .map_err(|error| io::Error::new(error.kind(), about(&error)))?;
        let line = secret.strip_suffix(b"\n").unwrap_or(&secret);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        Self::new(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, about(&error)))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Seals what a device sends, and checks the seals of what it is sent.
pub(super) struct Sealer {
    key: Key,
    /// The number of the next datagram.
    number: u64,
    /// What was heard, by the address of the peer and its incarnation.
    heard: HashMap<(Gid, u64), Window, RandomState>,
    /// Counts datagrams, to find the life that was heard longest ago.
    clock: u64,
}

impl Sealer {
    pub(super) fn new(key: Key) -> Self {
        Self { key, number: 0, heard: HashMap::default(), clock: 0 }
    }

    fn hash(&self, text: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.key.0, text)
    }

    /// Seals a packet.
    pub(super) fn seal(&mut self, packet: &mut Vec<u8>) {
        packet[..MAGIC.len()].copy_from_slice(&MAGIC);
        packet.extend_from_slice(&self.number.to_le_bytes());
        let hash = self.hash(packet);
        packet.extend_from_slice(hash.as_bytes());
        self.number += 1;
    }

    /// Returns the packet in a datagram that begins with [`MAGIC`], its number, and `true` if the seal is valid.
    pub(super) fn open<'a>(&self, datagram: &'a mut [u8]) -> (&'a [u8], u64, bool) {
        let Some(end) = datagram.len().checked_sub(SEAL) else { return (&[], 0, false) };
        let (text, hash) = datagram.split_at(end + NUMBER);
        // In constant time.
        let right = blake3::Hash::from_slice(hash).is_ok_and(|hash| hash == self.hash(text));
        let number = u64::from_le_bytes(std::array::from_fn(|i| text[end + i]));
        if let Some(magic) = datagram[..end].first_chunk_mut() {
            *magic = wire::MAGIC;
        }
        (&datagram[..end], number, right)
    }

    /// Returns `true` if a datagram of this peer with this number came before.
    pub(super) fn is_repeated(&mut self, envelope: &Envelope, number: u64) -> bool {
        self.clock += 1;
        let life = (envelope.src, envelope.src_incarnation);
        if self.heard.len() >= MAX_LIVES && !self.heard.contains_key(&life) {
            let oldest = self.heard.iter().min_by_key(|(_, window)| window.used).map(|(&life, _)| life);
            oldest.map(|oldest| self.heard.remove(&oldest));
        }
        let window = self.heard.entry(life).or_insert_with(|| Window::new(number));
        window.used = self.clock;
        !window.insert(number)
    }
}

/// The numbers that were heard, up to the highest.
struct Window {
    /// One more than the highest.
    end: u64,
    /// A bit for each of the last [`WINDOW`] numbers, by the number modulo [`WINDOW`].
    bits: Box<[u64]>,
    /// `Sealer::clock` at its last use.
    used: u64,
}

impl Window {
    fn new(end: u64) -> Self {
        Self { end, bits: vec![0; WINDOW as usize / 64].into(), used: 0 }
    }

    /// Notes a number. Returns `true` if it was certainly not heard before.
    fn insert(&mut self, number: u64) -> bool {
        let place = |number: u64| ((number % WINDOW / 64) as usize, 1 << (number % 64));
        if number >= self.end {
            if number - self.end >= WINDOW {
                self.bits.fill(0);
            } else {
                (self.end..=number).map(place).for_each(|(word, bit)| self.bits[word] &= !bit);
            }
            self.end = number.saturating_add(1);
        } else if self.end - number > WINDOW {
            return false;
        }
        let (word, bit) = place(number);
        let new = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Body, Hello, Packet};

    const SECRET: &[u8] = b"0123456789abcdef";

    fn hello(life: u64) -> (Envelope, Vec<u8>) {
        let (src, dst) = (Gid::local(1), Gid::local(2));
        let envelope = Envelope { src, dst, src_incarnation: life, dst_incarnation: 0, path: 0 };
        let (hello, mut bytes) = (Body::Hello(Hello { challenge: 1, echo: 0 }), Vec::new());
        assert!(Packet { envelope, body: hello }.emit(&mut bytes));
        (envelope, bytes)
    }

    #[test]
    fn a_seal_is_good_with_its_key_alone_and_for_no_other_bytes() {
        let [mut sealer, other] = [SECRET, b"0123456789abcdeF"].map(|secret| Sealer::new(Key::new(secret).unwrap()));
        let (_, packet) = hello(5);
        for number in 0..3 {
            let mut datagram = packet.clone();
            sealer.seal(&mut datagram);
            assert_eq!(datagram.len(), packet.len() + SEAL);
            assert_eq!(sealer.open(&mut datagram.clone()), (&packet[..], number, true));
            assert!(!other.open(&mut datagram.clone()).2);
            for bit in 0..datagram.len() * 8 {
                let mut changed = datagram.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!sealer.open(&mut changed).2, "bit {bit}");
            }
            for len in 0..datagram.len() {
                assert!(!sealer.open(&mut datagram.clone()[..len]).2, "{len} bytes");
            }
        }
    }

    #[test]
    fn what_was_heard_is_a_repetition_whatever_came_between() {
        let mut sealer = Sealer::new(Key::new(SECRET).unwrap());
        let (envelope, _) = hello(5);
        let numbers: Vec<u64> = (0..50_000u64).map(|i| (i ^ 0x5a5) + 100).collect();
        assert!(
            numbers.iter().all(|&number| !sealer.is_repeated(&envelope, number)),
            "though they overtake each other"
        );
        assert!(numbers.iter().all(|&number| sealer.is_repeated(&envelope, number)));
        assert!(!sealer.is_repeated(&hello(6).0, 100), "another life counts anew");
        assert!(!sealer.is_repeated(&envelope, u64::MAX - 1) && sealer.is_repeated(&envelope, u64::MAX - 1));
    }

    #[test]
    fn lives_are_kept_in_bounded_memory() {
        let mut sealer = Sealer::new(Key::new(SECRET).unwrap());
        for life in 1..MAX_LIVES as u64 + 100 {
            assert!(!sealer.is_repeated(&hello(life).0, 7));
            assert!(sealer.is_repeated(&hello(1).0, 7), "one that is heard is remembered");
        }
        assert_eq!(sealer.heard.len(), MAX_LIVES);
    }

    #[test]
    fn a_key_is_neither_short_nor_shown_and_a_file_may_end_its_line() {
        assert!(Key::new(&SECRET[..15]).unwrap_err().to_string().contains("15, expected 16 to 4096"));
        assert!(Key::new(&[0; 4097]).is_err());
        let key = Key::new(SECRET).unwrap();
        assert_eq!(format!("{key:?} {:?}", Some(&key)), "Key(..) Some(Key(..))");
        let path = std::env::temp_dir().join(format!("efa-soft-key-{}", std::process::id()));
        for (text, good) in
            [(&b"0123456789abcdef\r\n"[..], true), (SECRET, true), (b"short\n", false), (&[7; 5000], false)]
        {
            std::fs::write(&path, text).unwrap();
            let read = Key::read(&path);
            assert_eq!(read.as_ref().ok() == Some(&key), good, "{read:?}");
            if let Err(error) = read {
                assert!(error.to_string().contains("efa-soft-key") && !error.to_string().contains("short\n"));
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(Key::read(&path).unwrap_err().to_string().contains("efa-soft-key"));
    }
}
