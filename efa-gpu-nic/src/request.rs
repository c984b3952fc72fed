//! From a WQE to a request.

use efa_io::{FlatRequest, LocalBuf, Wqe64};

/// What the WQE with these first eight words, at address `at`, asks for; `None` if it makes no sense. It has 128 bytes if it is `wqe_128`. Where its
/// bytes are is an address for whoever runs the NIC, also of those that came inline.
#[inline(always)]
pub(crate) fn decode(words: [u64; 8], wqe_128: bool, at: u64) -> Option<FlatRequest> {
    let mut request = Wqe64::from_words(words).decode_flat(wqe_128)?;
    if request.inline {
        request.first = LocalBuf { addr: at + request.first.addr, ..request.first };
    }
    Some(request)
}

/// Bytes that a request moves.
#[inline(always)]
pub(crate) fn total_bytes(request: &FlatRequest) -> u64 {
    u64::from(request.first.length) + u64::from(request.second.length)
}

/// Phase and request id of a WQE, whatever else it says.
#[inline(always)]
pub(crate) fn phase_and_id(words: [u64; 8]) -> (bool, u64) {
    let wqe = Wqe64::from_words(words);
    (wqe.phase(), wqe.req_id())
}
