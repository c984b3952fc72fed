//! The decoder for a WQE in registers: it makes the checks of [`Wqe::decode`](crate::Wqe::decode), without texts and
//! slices.

use crate::buf::{LocalBuf, RemoteBuf, field as buf_field};
use crate::layout::{RDMA_READ, RDMA_REMOTE, RDMA_WRITE, RDMA_WRITE_INLINE, SEND, SEND_INLINE};
use crate::meta::Destination;
use crate::opcode::OpCode;
use crate::wqe::{Wqe64, field};

/// A decoded WQE without slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlatRequest {
    /// Destination.
    pub dest: Destination,
    /// Operation.
    pub op: OpCode,
    /// Immediate data.
    pub imm: Option<u32>,
    /// `true` if the payload is in the WQE: then it is `first`, whose address is the offset of the first byte in the
    /// WQE.
    pub inline: bool,
    /// Number of local buffers, 0 to 2; 0 if the payload is inline.
    pub bufs: u32,
    /// The first local buffer, empty if there is none.
    pub first: LocalBuf,
    /// The second local buffer, empty if there is none.
    pub second: LocalBuf,
    /// The remote side of RDMA; meaningless in a send.
    pub remote: RemoteBuf,
}

/// Returns the bits of metadata word `word` that must be zero.
const fn zeros(word: usize) -> u64 {
    let (mut bits, mut i) = (0, 0);
    while i < field::MUST_BE_ZERO.len() {
        if field::MUST_BE_ZERO[i].byte() / 8 == word {
            bits |= field::MUST_BE_ZERO[i].mask();
        }
        i += 1;
    }
    bits
}

/// Returns the bits of word 0 that must be one.
const fn ones() -> u64 {
    let (mut bits, mut i) = (0, 0);
    while i < field::MUST_BE_ONE.len() {
        assert!(field::MUST_BE_ONE[i].byte() < 8);
        bits |= field::MUST_BE_ONE[i].mask();
        i += 1;
    }
    bits
}

const fn pair(words: &[u64; 8], at: usize) -> [u64; 2] {
    [words[at], words[at + 1]]
}

impl Wqe64 {
    /// Decodes a WQE of 64 bytes, or with `wqe_128` the first half of one of 128 bytes. Returns `None` where
    /// [`decode`](crate::Wqe::decode) returns an error.
    #[inline(always)]
    pub const fn decode_flat(&self, wqe_128: bool) -> Option<FlatRequest> {
        const ONES: u64 = ones();
        const ZEROS: [u64; 4] = [zeros(0), zeros(1), zeros(2), zeros(3)];
        let words = self.words();
        let reserved =
            words[0] & ZEROS[0] | words[1] & ZEROS[1] | words[2] & ZEROS[2] | words[3] & ZEROS[3] | (!words[0] & ONES);
        let inline = field::INLINE_MSG.is_set(words);
        let has_imm = field::HAS_IMM.is_set(words);
        let length = field::LENGTH.get(words);
        let Some(op) = OpCode::from_bits(field::OP_TYPE.get(words)) else { return None };
        let is_send = matches!(op, OpCode::Send);
        let is_read = matches!(op, OpCode::RdmaRead);

        // Every place is a constant of the table, chosen between and never computed: the words stay in registers.
        const SEND_AT: u64 = SEND_INLINE.payload as u64 * 8;
        const WRITE_AT: u64 = RDMA_WRITE_INLINE.payload as u64 * 8;
        let (most, offset) = match (is_send, wqe_128) {
            (true, false) => (const { SEND_INLINE.max_inline(8) }, SEND_AT),
            (true, true) => (const { SEND_INLINE.max_inline(16) }, SEND_AT),
            (false, false) => (const { RDMA_WRITE_INLINE.max_inline(8) }, WRITE_AT),
            (false, true) => (const { RDMA_WRITE_INLINE.max_inline(16) }, WRITE_AT),
        };
        let none = LocalBuf::from_words([0, 0]);
        let (one, two) = (pair(words, SEND.payload), pair(words, SEND.payload + 2));
        let (remote, local) = (pair(words, RDMA_REMOTE), pair(words, RDMA_WRITE.payload));
        let inline_is_fine = length <= most as u64 && (is_send || wqe_128) && !is_read;
        let count_is_fine = if is_send { length <= 2 } else { length == 1 };
        let (bufs, first, first_word, second, second_word) = if inline {
            (0, LocalBuf { addr: offset, length: length as u32, ..none }, 0, none, 0)
        } else if is_send {
            let (first, first_word) = if length > 0 { (LocalBuf::from_words(one), one[0]) } else { (none, 0) };
            let (second, second_word) = if length > 1 { (LocalBuf::from_words(two), two[0]) } else { (none, 0) };
            (length as u32, first, first_word, second, second_word)
        } else {
            (1, LocalBuf::from_words(local), local[0], none, 0)
        };
        let reserved_in_bufs = (first_word | second_word) & buf_field::reserved(0).mask();
        let same_length = is_send || buf_field::remote_length(RDMA_REMOTE).get(words) == first.length as u64;
        let fine = reserved | reserved_in_bufs == 0
            && if inline { inline_is_fine } else { count_is_fine }
            && same_length
            && !(is_read && has_imm && !RDMA_READ.imm);
        if !fine {
            return None;
        }
        let dest = Destination {
            ah: field::AH.get(words) as u16,
            qpn: field::DEST_QP_NUM.get(words) as u16,
            qkey: field::QKEY.get(words) as u32,
        };
        let imm = if has_imm { Some(field::IMMEDIATE_DATA.get(words) as u32) } else { None };
        Some(FlatRequest { dest, op, imm, inline, bufs, first, second, remote: RemoteBuf::from_words(remote) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Op;
    use crate::wqe::{SendWqe, Wqe, Wqe128};
    use proptest::prelude::*;

    /// What the other decoder says, in the words of this one.
    fn expected<const W: usize>(wqe: &Wqe<W>) -> Option<FlatRequest>
    where
        Wqe<W>: SendWqe,
    {
        let request = wqe.decode().ok()?;
        let none = LocalBuf::default();
        let inline = |addr, data: &[u8]| LocalBuf { addr, length: data.len() as u32, ..none };
        let (inline, bufs, first, second, remote) = match request.op {
            Op::Send(send) => {
                let bufs = send.bufs.as_slice();
                let buf = |i| bufs.get(i).copied().unwrap_or_default();
                (false, bufs.len() as u32, buf(0), buf(1), None)
            }
            Op::SendInline(send) => (true, 0, inline(32, send.data), none, None),
            Op::RdmaWrite(write) => (false, 1, write.local, none, Some(write.remote)),
            Op::RdmaWriteInline(write) => (true, 0, inline(48, write.data), none, Some(write.remote)),
            Op::RdmaRead(read) => (false, 1, read.local, none, Some(read.remote)),
        };
        let remote = remote.unwrap_or(RemoteBuf::from_words([wqe.words()[4], wqe.words()[5]]));
        let (dest, op, imm) = (request.dest, request.op.code(), request.op.imm());
        Some(FlatRequest { dest, op, imm, inline, bufs, first, second, remote })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

        #[test]
        fn both_decoders_say_the_same(
            mut words in any::<[u64; 16]>(),
            op in 0..4u64,
            flags in any::<[bool; 2]>(),
            length in 0..90u64,
            bufs in prop_oneof![3 => 0..=2u64, 1 => 0..4u64],
            few in any::<bool>(),
            same in any::<bool>(),
            spoil in prop_oneof![1 => Just(None), 1 => (0..8usize, 0..64u32).prop_map(Some)],
        ) {
            // Mostly what may be a WQE.
            let length = if few { bufs } else { length };
            for (word, zero) in [zeros(0), zeros(1), zeros(2), zeros(3)].into_iter().enumerate() {
                words[word] &= !zero;
            }
            words[0] |= ones();
            words[0] = field::OP_TYPE.replace(words[0], op);
            words[0] = field::HAS_IMM.replace(words[0], flags[0].into());
            words[0] = field::INLINE_MSG.replace(words[0], flags[1].into());
            words[0] = field::LENGTH.replace(words[0], length);
            words[6] &= !buf_field::reserved(0).mask();
            if op == 0 {
                words[4] &= !buf_field::reserved(0).mask();
            } else if same {
                words[4] = words[4] >> 32 << 32 | if flags[1] { length } else { words[6] & 0xffff_ffff };
            }
            if let Some((word, bit)) = spoil {
                words[word] ^= 1 << bit;
            }
            let narrow = Wqe64::from_words(std::array::from_fn(|i| words[i]));
            prop_assert_eq!(narrow.decode_flat(false), expected(&narrow));
            prop_assert_eq!(narrow.decode_flat(true), expected(&Wqe128::from_words(words)));
        }
    }
}
