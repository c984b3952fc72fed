//! Golden vectors: entries that the vendor's CUDA library (efa-dp-direct 0.0.1) wrote or read, compared byte for byte.

use efa_io::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct WqeVector {
    op: String,
    req_id: u16,
    ah: u16,
    dest_qpn: u16,
    qkey: u32,
    burst_pps_hint: bool,
    producer_counter: u32,
    ring_entries: u32,
    #[serde(default)]
    imm: Option<u32>,
    #[serde(default)]
    lkey: u32,
    #[serde(default)]
    local_addr: Hex,
    #[serde(default)]
    rkey: u32,
    #[serde(default)]
    remote_addr: Hex,
    #[serde(default)]
    length: u32,
    #[serde(default)]
    inline: Bytes,
    slot: u32,
    wqe: Bytes,
}

#[derive(Deserialize)]
struct CompletionVectors {
    cqe: Vec<CqeVector>,
    rq: Vec<RxVector>,
}

#[derive(Deserialize)]
struct CqeVector {
    cqe: Bytes,
    phase: u8,
    opcode: String,
    status: u8,
    req_id: u16,
    qpn: u16,
    #[serde(default)]
    unsolicited: bool,
    #[serde(default)]
    has_imm: bool,
    #[serde(default)]
    byte_len: u32,
    #[serde(default)]
    src_qpn: u16,
    #[serde(default)]
    ah: u16,
    #[serde(default)]
    imm: u32,
}

#[derive(Deserialize)]
struct RxVector {
    req_id: u16,
    addr: Hex,
    length: u16,
    lkey: u32,
    producer_counter: u32,
    ring_entries: u32,
    slot: u32,
    desc: Bytes,
}

#[derive(Default, Deserialize)]
#[serde(try_from = "String")]
struct Hex(u64);

impl TryFrom<String> for Hex {
    type Error = std::num::ParseIntError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(text.trim_start_matches("0x"), 16).map(Self)
    }
}

#[derive(Default, Deserialize)]
#[serde(try_from = "String")]
struct Bytes(Vec<u8>);

impl TryFrom<String> for Bytes {
    type Error = std::num::ParseIntError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16)).collect::<Result<_, _>>().map(Self)
    }
}

fn words<const W: usize>(bytes: &[u8]) -> [u64; W] {
    assert_eq!(bytes.len(), W * 8);
    std::array::from_fn(|i| u64::from_le_bytes(bytes[i * 8..][..8].try_into().unwrap()))
}

/// The vectors' lengths are random, far over any device's.
const LIMITS: Limits = Limits::of_queue(u32::MAX, u32::MAX);

#[test]
fn every_wqe_equals_the_vendors_byte_for_byte_and_decodes_to_what_it_was_built_from() {
    let vectors: Vec<WqeVector> = serde_json::from_str(include_str!("vectors/wqe64.json")).unwrap();
    assert_eq!(vectors.len(), 28);
    for (n, v) in vectors.iter().enumerate() {
        let dest = Destination { ah: v.ah, qpn: v.dest_qpn, qkey: v.qkey };
        let hints = if v.burst_pps_hint { Hints::BURST_PPS } else { Hints::NONE };
        let local = LocalBuf { addr: v.local_addr.0, lkey: Lkey::new(v.lkey).unwrap(), length: v.length };
        let remote = RemoteBuf { addr: v.remote_addr.0, rkey: v.rkey };
        let op = match v.op.as_str() {
            "send" | "send_imm" => Op::Send(Send { imm: v.imm, hints, ..Send::new(&[local]).unwrap() }),
            "send_inline" | "send_inline_imm" => Op::SendInline(SendInline { data: &v.inline.0, imm: v.imm, hints }),
            "rdma_write" | "rdma_write_imm" => Op::RdmaWrite(RdmaWrite { local, remote, imm: v.imm, hints }),
            "rdma_read" => Op::RdmaRead(RdmaRead { local, remote, hints }),
            other => panic!("vector {n} has operation {other}"),
        };
        let built: Wqe64 = match op {
            Op::Send(op) => op.encode(&LIMITS, dest),
            Op::SendInline(op) => op.encode(&LIMITS, dest),
            Op::RdmaWrite(op) => op.encode(&LIMITS, dest),
            Op::RdmaRead(op) => op.encode(&LIMITS, dest),
            Op::RdmaWriteInline(_) => unreachable!(),
        }
        .unwrap();
        let ring = RingSize::new(v.ring_entries).unwrap();
        let wqe = built.with_req_id(v.req_id).with_phase(ring.wq_phase(v.producer_counter));
        assert_eq!(wqe.as_bytes(), v.wqe.0, "vector {n}, {}", v.op);
        assert_eq!(ring.slot(v.producer_counter), v.slot, "vector {n}");

        let request = SendRequest { req_id: v.req_id.into(), phase: ring.wq_phase(v.producer_counter), dest, op };
        assert_eq!(Wqe64::from_words(words(&v.wqe.0)).decode(), Ok(request), "vector {n}");
    }
}

#[test]
fn every_completion_entry_reads_as_the_vendors_library_reads_it() {
    let vectors: CompletionVectors = serde_json::from_str(include_str!("vectors/cqe_rq.json")).unwrap();
    assert_eq!(vectors.cqe.len(), 30);
    for (n, v) in vectors.cqe.iter().enumerate() {
        let cqe = Cqe32::from_words(words(&v.cqe.0));
        let completion = cqe.decode().unwrap();
        assert_eq!(completion.phase, v.phase == 1, "vector {n}");
        assert_eq!(completion.status.code(), v.status, "vector {n}");
        assert_eq!(completion.qpn, v.qpn, "vector {n}");
        assert_eq!(completion.req_id as u16, v.req_id, "vector {n}");
        match (v.opcode.as_str(), completion.event) {
            ("send", Event::Send { op: OpCode::Send })
            | ("rdma_read", Event::Send { op: OpCode::RdmaRead })
            | ("rdma_write", Event::Send { op: OpCode::RdmaWrite }) => {
                // The entry holds nothing else, so building it anew gives the same 16 bytes, less the reserved ones.
                assert_eq!(completion.encode::<2>().unwrap().as_bytes()[..12], v.cqe.0[..12], "vector {n}");
            }
            ("recv", Event::Receive(r @ Received { op: OpCode::Send, .. }))
            | ("recv_rdma_with_imm", Event::Receive(r @ Received { op: OpCode::RdmaWrite, .. })) => {
                assert_eq!(r.length, v.byte_len, "vector {n}");
                assert_eq!(r.ah, Some(v.ah), "vector {n}");
                assert_eq!(r.src_qpn, v.src_qpn, "vector {n}");
                assert_eq!(r.imm, v.has_imm.then_some(v.imm), "vector {n}");
                assert_eq!(r.unsolicited, v.unsolicited, "vector {n}");
                let mut expected = v.cqe.0.clone();
                if !v.has_imm {
                    expected[12..16].fill(0); // not valid, and random in the vector
                }
                let used = if r.op == OpCode::RdmaWrite { 18 } else { 16 };
                assert_eq!(completion.encode::<4>().unwrap().as_bytes()[..used], expected[..used], "vector {n}");
            }
            (opcode, event) => panic!("vector {n} is {opcode} and decodes to {event:?}"),
        }
    }
}

#[test]
fn every_receive_descriptor_equals_the_vendors_byte_for_byte() {
    let vectors: CompletionVectors = serde_json::from_str(include_str!("vectors/cqe_rq.json")).unwrap();
    assert_eq!(vectors.rq.len(), 10);
    for (n, v) in vectors.rq.iter().enumerate() {
        let buf = rx::RxBuf {
            req_id: v.req_id,
            addr: v.addr.0,
            lkey: Lkey::new(v.lkey).unwrap(),
            length: v.length,
            first: true,
            last: true,
        };
        assert_eq!(RxDesc::new(buf).as_bytes(), v.desc.0, "vector {n}");
        assert_eq!(RxDesc::from_words(words(&v.desc.0)).decode(), Ok(buf), "vector {n}");
        assert_eq!(RingSize::new(v.ring_entries).unwrap().slot(v.producer_counter), v.slot, "vector {n}");
    }
}

use cqe::Received;
