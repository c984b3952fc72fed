//! Decodes WQEs into requests.

use efa_io::{FlatRequest, LocalBuf, Wqe64};

/// Decodes the WQE at address `at`, given its first eight words. `wqe_128` says that it has 128 bytes. Returns `None`
/// if it is invalid. Inline bytes become a buffer in the ring, with an address for whoever runs the NIC.
#[inline(always)]
pub(crate) fn decode(words: [u64; 8], wqe_128: bool, at: u64) -> Option<FlatRequest> {
    let mut request = Wqe64::from_words(words).decode_flat(wqe_128)?;
    if request.inline {
        request.first = LocalBuf { addr: at + request.first.addr, ..request.first };
    }
    Some(request)
}

/// Returns the number of bytes that a request moves.
#[inline(always)]
pub(crate) fn total_bytes(request: &FlatRequest) -> u64 {
    u64::from(request.first.length) + u64::from(request.second.length)
}

/// Returns phase and request id of a WQE, valid or not.
#[inline(always)]
pub(crate) fn phase_and_id(words: [u64; 8]) -> (bool, u64) {
    let wqe = Wqe64::from_words(words);
    (wqe.phase(), wqe.req_id())
}
