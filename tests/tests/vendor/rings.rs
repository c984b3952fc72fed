//! A comparison of the WQEs that libefa writes into a send ring with those that this project encodes.

use crate::interop::Pair;
use efa_io::op::{Bufs, Operation};
use efa_io::{
    Destination, EncodeError, Hints, Limits, Lkey, LocalBuf, RdmaRead, RdmaWrite, RdmaWriteInline, RemoteBuf, RingSize,
    Send, SendInline, SendWqe, Wqe,
};
use efa_tests::vendor::{EfaRun, QueuePairInfo, pattern};

/// A request: the line for the peer, and the WQE that this project encodes, without request id and phase.
type Case<const W: usize> = (String, Wqe<W>);

/// The destination of requests, and the memory on both sides.
struct Places {
    dest: Destination,
    local: LocalBuf,
    remote: RemoteBuf,
}

impl Places {
    /// Returns this many bytes of the local memory, beginning at `offset`.
    fn at(&self, offset: u64, length: u32) -> LocalBuf {
        LocalBuf { addr: self.local.addr + offset, length, ..self.local }
    }

    fn build<const W: usize>(&self, op: impl Operation<W>) -> Wqe<W>
    where
        Wqe<W>: SendWqe,
    {
        op.encode(&Limits::of_queue(8192, 1 << 30), self.dest).expect("the request is within the limits")
    }

    /// Returns every operation in every form that both WQE sizes have.
    fn cases<const W: usize>(&self) -> Result<Vec<Case<W>>, EncodeError>
    where
        Wqe<W>: SendWqe,
    {
        let send = |bufs: &[LocalBuf], imm, hints| Ok(self.build(Send { bufs: Bufs::new(bufs)?, imm, hints }));
        let inline = pattern(1, Wqe::<W>::MAX_INLINE_SEND);
        let inline = |len: usize, imm| self.build(SendInline { data: &inline[..len], imm, hints: Hints::NONE });
        let write = |local, imm| self.build(RdmaWrite { local, remote: self.remote, imm, hints: Hints::NONE });
        let read = |local| self.build(RdmaRead { local, remote: self.remote, hints: Hints::NONE });
        let to = format!("to={} rkey={}", self.remote.addr, self.remote.rkey);
        let full = Wqe::<W>::MAX_INLINE_SEND;
        Ok(vec![
            ("send at=0 len=100".into(), send(&[self.at(0, 100)], None, Hints::NONE)?),
            ("send at=0 len=100 plain".into(), send(&[self.at(0, 100)], None, Hints::NONE)?),
            ("send at=0 len=0 burst".into(), send(&[self.at(0, 0)], None, Hints::BURST_PPS)?),
            (
                "send at=8 len=9 at2=99 len2=10 imm=7".into(),
                send(&[self.at(8, 9), self.at(99, 10)], Some(7), Hints::NONE)?,
            ),
            ("send at=0 len=1 inline".into(), inline(1, None)),
            (format!("send at=0 len={full} inline imm=0xfedcba98"), inline(full, Some(0xfedc_ba98))),
            (format!("send at=0 len={full} inline plain imm=9"), inline(full, Some(9))),
            (format!("write at=16 len=4000 {to}"), write(self.at(16, 4000), None)),
            (format!("write at=0 len=1 {to} imm=0x80000001"), write(self.at(0, 1), Some(0x8000_0001))),
            // To other memory than that from which the other requests take their bytes.
            (format!("read at=8192 len=4096 {to}"), read(self.at(8192, 4096))),
        ])
    }

    /// Returns the operations that only 128-byte WQEs have.
    fn wide_cases(&self) -> Vec<Case<16>> {
        let data = pattern(1, 80);
        let write = |len: usize, imm| {
            self.build(RdmaWriteInline { data: &data[..len], remote: self.remote, imm, hints: Hints::NONE })
        };
        let to = format!("to={} rkey={}", self.remote.addr, self.remote.rkey);
        vec![
            (format!("write at=0 len=80 {to} inline"), write(80, None)),
            (format!("write at=0 len=3 {to} inline imm=5"), write(3, Some(5))),
        ]
    }
}

/// Starts a peer on libefa with such a device. Returns it with the destination and memory of its requests.
fn set_up(device: &str, options: &str) -> (Pair, QueuePairInfo, Places) {
    let mut pair = Pair::new(&EfaRun::new(&["--soft", device]), "soft:udp=127.0.0.1:0", options);
    pair.peer.ask("fill at=0 len=4096 seed=1");
    let remote = pair.side.memory.remote();
    let (addr, lkey, _) = pair.memory;
    let here = pair.side.endpoint;
    let places = Places {
        dest: Destination { ah: pair.ah, qpn: here.qpn, qkey: here.qkey },
        local: LocalBuf { addr, lkey: Lkey::new(lkey).expect("keys have 24 bits"), length: 0 },
        remote: RemoteBuf { addr: remote.addr, rkey: remote.rkey },
    };
    let queue = pair.queue;
    (pair, queue, places)
}

/// Makes the peer post the cases repeatedly, for more than three laps, with ids from `first_id` on, and compares the
/// entries of its ring. Returns the request ids that the library chose; all other fields are known.
fn compare<const W: usize>(mut pair: Pair, queue: QueuePairInfo, cases: &[Case<W>], first_id: u64) -> Vec<u64>
where
    Wqe<W>: SendWqe,
{
    assert_eq!(queue.entry_size, Wqe::<W>::SIZE);
    let size = RingSize::new(queue.entries).expect("a ring has a power of two of entries");
    let post = |counter: u32| {
        let (line, built) = &cases[counter as usize % cases.len()];
        let consumes = line.starts_with("send") || line.contains("imm=");
        if consumes {
            pair.post_recv(counter.into());
        }
        let id = first_id + u64::from(counter);
        pair.peer.ask(&format!("{line} id={id}"));
        let words = pair.peer.wqe(size.slot(counter));
        let theirs = Wqe::<W>::from_words(words.try_into().expect("the entry has the size of a WQE"));
        let ours = built.with_req_id_64(theirs.req_id()).with_phase(size.wq_phase(counter));
        assert_eq!(theirs, ours, "{line}, posted as number {counter}");
        let wc = pair.peer.poll();
        assert_eq!((wc.wr_id, wc.status), (id, 0), "{line}: {wc:?}");
        if consumes {
            pair.received();
        }
        theirs.req_id()
    };
    (0..3 * queue.entries + cases.len() as u32).map(post).collect()
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn wqes_of_64_bytes_are_equal_on_every_lap() {
    let (pair, queue, places) = set_up("", "sq=32 rq=32 hints");
    let cases = places.cases::<8>().expect("two buffers are not too many");
    compare(pair, queue, &cases, 0);
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn wqes_of_128_bytes_are_equal_on_every_lap() {
    let (pair, queue, places) = set_up("", "sq=32 rq=32 hints wide");
    let mut cases = places.cases::<16>().expect("two buffers are not too many");
    cases.extend(places.wide_cases());
    compare(pair, queue, &cases, 0);
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn wqes_with_64_bits_of_request_id_are_equal() {
    let (pair, queue, places) = set_up("reqid64=on", "sq=32 rq=32 hints");
    let cases = places.cases::<8>().expect("two buffers are not too many");
    // A 64-bit id is the program's own.
    let first_id = 0xfedc_ba98_7654_3210;
    let ids = compare(pair, queue, &cases, first_id);
    assert!(ids.iter().zip(first_id..).all(|(id, expected)| *id == expected), "{ids:x?}");
}
