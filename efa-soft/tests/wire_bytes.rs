//! The bytes of one packet of each kind. Devices of different builds talk to each other as long as these stay as they
//! are.

use efa_io::Status;
use efa_soft::Gid;
use efa_soft::wire::{Ack, Body, Data, Envelope, Hello, Lane, MessageHeader, Packet, WireOp};

const ENVELOPE: Envelope = Envelope {
    src: Gid::local(1),
    dst: Gid::local(0x0203_0405),
    src_incarnation: 0x1112_1314_1516_1718,
    dst_incarnation: 0x2122_2324_2526_2728,
    path: 3,
};
const HEADER: MessageHeader = MessageHeader {
    op: WireOp::Write,
    src_qpn: 0x3132,
    dst_qpn: 0x4142,
    qkey: 0x5152_5354,
    imm: Some(0x6162_6364),
    bytes: 69,
    rkey: 0x7172_7374,
    remote_addr: 0x8182_8384_8586_8788,
    reply_to: 0x9192_9394,
    placed: false,
};
const DATA: Data = Data { message: 0xa1a2_a3a4, base: 0xb1b2_b3b4, header: HEADER, stride: 64, packet: 1 };

fn emitted(body: Body<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert!(Packet { envelope: ENVELOPE, body }.emit(&mut bytes));
    bytes
}

fn data(data: &Data, payload: &[u8]) -> Vec<u8> {
    emitted(Body::Data(*data, payload.into()))
}

fn datagram(header: &MessageHeader, payload: &[u8]) -> Vec<u8> {
    emitted(Body::Datagram(*header, payload.into()))
}

fn acks(lane: Lane, congested: bool, acks: &[Ack]) -> Vec<u8> {
    emitted(Body::Acks { lane, congested, acks: acks.iter().copied().collect() })
}

fn hello(hello: &Hello) -> Vec<u8> {
    emitted(Body::Hello(*hello))
}

/// The bytes as hexadecimal digits, 16 bytes a line.
fn hex(bytes: &[u8]) -> Vec<String> {
    let line = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.chunks(16).map(line).collect()
}

/// Asserts that a packet consists of these lines behind its addresses and incarnations, which are those of
/// [`ENVELOPE`].
fn assert_bytes(what: &str, packet: &[u8], first: &str, rest: &[&str]) {
    let addresses =
        ["fe8000000000000002efa00000000001", "fe8000000000000002efa00002030405", "18171615141312112827262524232221"];
    let expected: Vec<&str> = [first].into_iter().chain(addresses).chain(rest.iter().copied()).collect();
    assert_eq!(hex(packet), expected, "{what}");
}

#[test]
fn a_data_packet_has_these_bytes() {
    assert_bytes(
        "the second packet of a write with immediate",
        &data(&DATA, &[1, 2, 3, 4, 5]),
        "4546415303000201e05adf2003000000",
        &[
            "a4a3a2a1b4b3b2b14500000040000000",
            "01000000545352516463626174737271",
            "94939291323142418887868584838281",
            "0102030405",
        ],
    );
    let placed = Data { header: MessageHeader { placed: true, imm: None, ..HEADER }, packet: 0, ..DATA };
    assert_bytes(
        "a write without immediate whose bytes are in place",
        &data(&placed, &[]),
        "45464153030002045fa49b3103000000",
        &["a4a3a2a1b4b3b2b14500000040000000", "00000000545352510000000074737271", "94939291323142418887868584838281"],
    );
}

#[test]
fn a_datagram_has_these_bytes() {
    let header = MessageHeader { op: WireOp::Send, bytes: 3, ..HEADER };
    assert_bytes(
        "a datagram",
        &datagram(&header, &[7, 8, 9]),
        "4546415303030001937cedb303000000",
        &[
            "00000000000000000300000003000000",
            "00000000545352516463626174737271",
            "94939291323142418887868584838281",
            "070809",
        ],
    );
}

#[test]
fn acknowledgements_have_these_bytes() {
    let entries = [
        Ack::Done { first: 0x0102_0304, count: 0x0506, status: Status::RemoteRnr },
        Ack::Partial { message: 0x1112_1314, next: 0x2122_2324, bitmap: [1, 0, 0x80, 0] },
        Ack::Partial { message: 0x3132_3334, next: 0x4142_4344, bitmap: [0; 4] },
        Ack::NotReady { message: 0x5152_5354 },
        Ack::Accepted { message: 0x6162_6364 },
    ];
    assert_bytes(
        "one entry of each kind, of requests",
        &acks(Lane::Requests, false, &entries),
        "45464153030100001b45bb9603000000",
        &[
            "000a0605040302010103000014131211",
            "24232221010000000000000000000000",
            "00000000800000000000000001000000",
            "34333231444342410200000054535251",
            "0300000064636261",
        ],
    );
    assert_bytes(
        "one entry of responses, from a congested receiver",
        &acks(Lane::Responses, true, &entries[..1]),
        "454641530301000abbf7c73603000000",
        &["000a060504030201"],
    );
}

#[test]
fn a_hello_has_these_bytes() {
    assert_bytes(
        "a hello",
        &hello(&Hello { challenge: 0x7172_7374_7576_7778, echo: 0x8182_8384_8586_8788 }),
        "45464153030200000384c90303000000",
        &["78777675747372718887868584838281"],
    );
}
