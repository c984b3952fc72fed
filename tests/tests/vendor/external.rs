//! Tests of libefa with completion queues, counters and regions in external memory, given by DMA-BUF or by address.

use crate::interop::{MEMORY, Pair};
use efa_direct::{Gid, RdmaWrite, RemoteRegion, Status};
use efa_io::{Completion, Cqe32};
use efa_tests::vendor::{EfaRun, Peer, skip};
use std::time::{Duration, Instant};

/// The sizes of a completion entry and of a page in bytes.
const ENTRY: usize = 32;
const PAGE: usize = 4096;

/// Starts a peer that has opened a device and has a shared buffer of this many bytes.
fn peer_with_buffer(len: usize, options: &str) -> (Peer, Gid) {
    let (mut peer, gid) = Peer::start(&EfaRun::new(&[]));
    peer.ask(&format!("buffer len={len} {options}"));
    (peer, gid)
}

fn pair(peer: Peer, gid: Gid, memory: (u64, u32, u32)) -> Pair {
    Pair::of(peer, gid, memory, "soft:udp=127.0.0.1:0", "sq=64 rq=64")
}

/// Returns words of the peer's shared buffer.
fn word(peer: &mut Peer, at: usize) -> u64 {
    u64::from_le_bytes(peer.bytes(at, 8).try_into().expect("eight were asked for"))
}

/// Returns a completion entry as it is in memory.
fn decode(entry: &[u8]) -> Completion {
    let words = entry.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("words have eight bytes")));
    let words: Vec<_> = words.collect();
    Cqe32::from_words(words.try_into().expect("an entry has four words")).decode().expect("it is an entry")
}

/// Runs all kinds of traffic over a completion queue in external memory, which libefa polls.
fn exchange_over_an_external_queue(options: &str) {
    // Few entries, so that the ring wraps.
    let (entries, at) = (64, PAGE);
    let (mut peer, gid) = peer_with_buffer(4 * PAGE, options);
    peer.ask(&format!("cq entries={entries} external at={at} len={PAGE}"));
    let memory = peer.create_memory(MEMORY);
    let mut pair = pair(peer, gid, memory);
    pair.exchange_all(1);
    pair.exchange_all(5000);
    // The last entries are in the file next to each other, and the bytes around the ring are untouched.
    let ring = pair.peer.bytes(at, entries * ENTRY);
    for entry in ring.chunks_exact(ENTRY) {
        let completion = decode(entry);
        assert_eq!((completion.qpn, completion.status), (pair.queue.qpn, Status::Ok));
    }
    let around = [pair.peer.bytes(0, at), pair.peer.bytes(at + ring.len(), 3 * PAGE - ring.len())].concat();
    assert!(around.iter().all(|&byte| byte == 0), "the device wrote past the ring");
    pair.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn a_completion_queue_in_a_dma_buf_is_polled_there() {
    exchange_over_an_external_queue("");
}

/// Returns `true` if this machine can create real DMA-BUFs.
fn has_udmabuf() -> bool {
    let is_there = std::fs::File::options().read(true).write(true).open("/dev/udmabuf").is_ok();
    if !is_there {
        skip("/dev/udmabuf cannot be opened; `modprobe udmabuf`, and rights to it, enable this test");
    }
    is_there
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn a_completion_queue_in_a_real_dma_buf_is_polled_there() {
    if has_udmabuf() {
        exchange_over_an_external_queue("udmabuf");
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn completions_are_in_memory_that_libefa_cannot_see() {
    let (mut peer, gid) = peer_with_buffer(PAGE, "");
    peer.ask(&format!("cq entries=64 external at=0 len={PAGE} blind"));
    let memory = peer.create_memory(MEMORY);
    let mut pair = pair(peer, gid, memory);
    pair.post_recv(1);
    pair.peer.ask("send id=1 at=0 len=100");
    assert_eq!(pair.received().length, 100);
    let start = Instant::now();
    while pair.peer.bytes(0, ENTRY) == [0; ENTRY] {
        assert!(start.elapsed() < Duration::from_secs(10), "the send completes");
    }
    let completion = decode(&pair.peer.bytes(0, ENTRY));
    assert_eq!((completion.qpn, completion.status, completion.phase), (pair.queue.qpn, Status::Ok, true));
    pair.close();
}

/// The C library's text for `EINVAL`.
const EINVAL: &str = "Invalid argument";

/// Sends a line to the peer and asserts that it is refused.
fn assert_refused(peer: &mut Peer, line: &str) {
    let error = peer.try_ask(line).expect_err(line);
    assert!(error.ends_with(EINVAL), "{line}: {error}");
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn memory_that_does_not_do_is_refused() {
    let (mut peer, _) = peer_with_buffer(2 * PAGE, "");
    for line in [
        "cq entries=256 external at=0 len=4096",    // 8 KiB
        "cq entries=256 external at=4096 len=8192", // past the end
        "cq entries=64 external at=20 len=4096",
        "cq entries=64 external at=0 len=100",
        "counter external dmabuf at=4 errors=8",
        "counter external dmabuf at=0 errors=8192",
        "counter external at=0 errors=9",
        "dmabuf at=0 len=8193 iova=0",
        "dmabuf at=8192 len=1 iova=0",
        "dmabuf at=16 len=16 iova=32", // another offset in the page
        "dmabuf at=0 len=0 iova=0",
    ] {
        assert_refused(&mut peer, line);
    }
    peer.ask(&format!("buffer len={PAGE} unsealed"));
    for line in
        ["cq entries=64 external at=0 len=4096", "counter external dmabuf at=0 errors=8", "dmabuf at=0 len=4096 iova=0"]
    {
        assert_refused(&mut peer, line);
    }
    assert_eq!(peer.ask("close"), "ok", "nothing was left of what was refused");
}

/// Runs messages, writes and reads with memory that was registered by its DMA-BUF. It begins in the middle of a page,
/// and its address for the device differs.
fn exchange_in_a_dma_buf(options: &str) {
    let (len, at, iova) = (MEMORY + 2 * PAGE, 5000, 0x10_0000_0000 + 5000 % PAGE);
    let (mut peer, gid) = peer_with_buffer(len, options);
    peer.ask("cq entries=256");
    let memory = peer.register(&format!("dmabuf at={at} len={MEMORY} iova={iova}"));
    assert_eq!(memory.0, iova as u64);
    let mut pair = pair(peer, gid, memory);
    pair.exchange_all(1);
    // No byte outside the registered range has changed.
    let end = at + MEMORY;
    let around = [pair.peer.bytes(0, at), pair.peer.bytes(end, len - end)].concat();
    assert!(around.iter().all(|&byte| byte == 0), "the device wrote past the region");
    // Access to the first byte after the range and to the last one in front of it is refused.
    for addr in [memory.0 + MEMORY as u64 - 7, memory.0 - 1] {
        let beyond = RemoteRegion { addr, rkey: memory.2, len: 8 };
        let done = pair.post(|sq, peer, memory| {
            let write = RdmaWrite::new(memory.slice(..8).unwrap(), beyond.slice(..8).unwrap());
            sq.post(peer, write, 9)
        });
        assert_eq!(done.status, Status::RemoteBadAddress);
    }
    pair.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn dma_bufs_are_sources_and_targets_at_an_address_of_their_own() {
    exchange_in_a_dma_buf("");
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn real_dma_bufs_are_sources_and_targets_at_an_address_of_their_own() {
    if has_udmabuf() {
        exchange_in_a_dma_buf("udmabuf");
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn completion_counters_count_in_memory_of_the_program() {
    const COUNT: usize = 64;
    const ERRORS: usize = PAGE - 8;
    for by in ["", "dmabuf"] {
        let (mut peer, gid) = peer_with_buffer(PAGE, "");
        peer.ask("cq entries=256");
        peer.ask(&format!("counter external {by} at={COUNT} errors={ERRORS}"));
        let memory = peer.create_memory(MEMORY);
        let mut pair = pair(peer, gid, memory);
        // The numbers in memory, and those that the library reads.
        let assert_count = |peer: &mut Peer, count: u64, errors: u64| {
            assert_eq!((word(peer, COUNT), word(peer, ERRORS)), (count, errors), "{by}");
            assert_eq!(peer.ask("count"), format!("count {count} {errors}"), "{by}");
        };
        assert_count(&mut pair.peer, 0, 0);
        pair.send_from_peer(100, None, "", 1);
        pair.send_to_peer(100, None, false, 2);
        pair.write_from_peer(20_000, None, "", 3);
        assert_count(&mut pair.peer, 3, 0);
        let remote = pair.side.memory.remote();
        pair.peer.ask(&format!("write id=4 at=0 len=8 to={} rkey={}", remote.addr, remote.rkey ^ 0xffff));
        assert_eq!(pair.peer.poll().vendor_err, 7, "bad remote address or key");
        assert_count(&mut pair.peer, 3, 1);
        pair.peer.ask("set value=1000");
        pair.peer.ask("add value=7");
        pair.peer.ask("set value=20 errors");
        pair.peer.ask("add value=22 errors");
        assert_count(&mut pair.peer, 1007, 42);
        // The hardware's counters have 31 bits.
        pair.peer.ask(&format!("set value={}", (1u64 << 31) - 2));
        pair.send_from_peer(1, None, "", 5);
        assert_count(&mut pair.peer, (1 << 31) - 1, 42);
        pair.write_to_peer(1, None, 6);
        assert_count(&mut pair.peer, 0, 42);
        pair.send_from_peer(1, None, "", 7);
        assert_count(&mut pair.peer, 1, 42);
        pair.close();
    }
}
