//! Round trips, limits, and decoders under arbitrary bytes.

use efa_io::cqe::Received;
use efa_io::rx::RxBuf;
use efa_io::*;
use proptest::array::{uniform2, uniform4, uniform8, uniform16};
use proptest::prelude::*;

const LIMITS: Limits = Limits::of_queue(8192, 1 << 30);

prop_compose! {
    fn dest()(ah: u16, qpn: u16, qkey: u32) -> Destination {
        Destination { ah, qpn, qkey }
    }
}

prop_compose! {
    fn local(max: u32)(addr: u64, lkey in 0u32..1 << 24, length in 0..=max) -> LocalBuf {
        LocalBuf { addr, lkey: Lkey::new(lkey).unwrap(), length }
    }
}

prop_compose! {
    fn remote()(addr: u64, rkey: u32) -> RemoteBuf {
        RemoteBuf { addr, rkey }
    }
}

fn hints() -> impl Strategy<Value = Hints> {
    prop_oneof![Just(Hints::NONE), Just(Hints::BURST_PPS)]
}

/// Encodes any operation that a WQE of `W` words takes.
fn encode<const W: usize>(op: &Op, limits: &Limits, dest: Destination) -> Result<Wqe<W>, EncodeError>
where
    Wqe<W>: SendWqe,
{
    match op {
        Op::Send(op) => op.encode(limits, dest),
        Op::SendInline(op) => op.encode(limits, dest),
        Op::RdmaWrite(op) => op.encode(limits, dest),
        Op::RdmaRead(op) => op.encode(limits, dest),
        Op::RdmaWriteInline(_) => unreachable!("encoded by the 128-byte test alone"),
    }
}

fn round_trip<const W: usize>(op: Op, dest: Destination, req_id: u64, phase: bool)
where
    Wqe<W>: SendWqe,
{
    let wqe: Wqe<W> = encode(&op, &LIMITS, dest).unwrap().with_req_id_64(req_id).with_phase(phase);
    assert_eq!(wqe.decode(), Ok(SendRequest { req_id, phase, dest, op }));
    let short = encode::<W>(&op, &LIMITS, dest).unwrap().with_req_id(req_id as u16).with_phase(phase);
    assert_eq!(short.decode(), Ok(SendRequest { req_id: req_id & 0xffff, phase, dest, op }));
}

/// Whatever decodes means the same after encoding it again, and dissects without a complaint.
fn decodes_or_names_a_field<const W: usize>(wqe: Wqe<W>)
where
    Wqe<W>: SendWqe,
{
    let text = wqe.to_string();
    match wqe.decode() {
        Ok(request) => {
            let limits = Limits::of_queue(u32::MAX, u32::MAX);
            if request.op.total_bytes() <= u32::MAX as u64 && !matches!(request.op, Op::RdmaWriteInline(_)) {
                let again: Wqe<W> = encode(&request.op, &limits, request.dest).unwrap();
                let again = again.with_req_id_64(request.req_id).with_phase(request.phase);
                assert_eq!(again.decode(), Ok(request));
            }
            assert!(!text.contains("MALFORMED"), "{text}");
        }
        Err(e) => {
            assert!(!e.field.is_empty() && e.byte < W * 8);
            assert!(text.contains("MALFORMED"), "{text}");
        }
    }
}

proptest! {
    #[test]
    fn a_send_survives_the_round_trip(
        bufs in prop::collection::vec(local(4096), 0..=2),
        imm: Option<u32>,
        hints in hints(),
        dest in dest(),
        req_id: u64,
        phase: bool,
    ) {
        let op = Op::Send(Send { imm, hints, ..Send::new(&bufs).unwrap() });
        round_trip::<8>(op, dest, req_id, phase);
        round_trip::<16>(op, dest, req_id, phase);
    }

    #[test]
    fn an_inline_send_survives_the_round_trip(
        data in prop::collection::vec(any::<u8>(), 0..=80),
        imm: Option<u32>,
        hints in hints(),
        dest in dest(),
        req_id: u64,
        phase: bool,
    ) {
        let op = Op::SendInline(SendInline { data: &data, imm, hints });
        if data.len() <= 32 {
            round_trip::<8>(op, dest, req_id, phase);
        } else {
            let too_long = EncodeError::InlineTooLong { given: data.len(), max: 32 };
            prop_assert_eq!(encode::<8>(&op, &LIMITS, dest), Err(too_long));
        }
        round_trip::<16>(op, dest, req_id, phase);
    }

    #[test]
    fn rdma_survives_the_round_trip(
        local in local(1 << 30),
        remote in remote(),
        imm: Option<u32>,
        hints in hints(),
        dest in dest(),
        req_id: u64,
        phase: bool,
    ) {
        let write = RdmaWrite { local, remote, imm, hints };
        for op in [Op::RdmaWrite(write), Op::RdmaRead(RdmaRead { local, remote, hints })] {
            round_trip::<8>(op, dest, req_id, phase);
            round_trip::<16>(op, dest, req_id, phase);
        }
    }

    #[test]
    fn an_inline_write_survives_the_round_trip(
        data in prop::collection::vec(any::<u8>(), 0..=80),
        remote in remote(),
        imm: Option<u32>,
        hints in hints(),
        dest in dest(),
        req_id: u64,
        phase: bool,
    ) {
        let op = RdmaWriteInline { data: &data, remote, imm, hints };
        let wqe = op.encode(&LIMITS, dest).unwrap().with_req_id_64(req_id).with_phase(phase);
        prop_assert_eq!(wqe.decode(), Ok(SendRequest { req_id, phase, dest, op: Op::RdmaWriteInline(op) }));
    }

    #[test]
    fn arbitrary_words_are_a_wqe_or_name_the_offending_field(
        words in uniform8(any::<u64>()),
        wide in uniform16(any::<u64>()),
    ) {
        decodes_or_names_a_field(Wqe64::from_words(words));
        decodes_or_names_a_field(Wqe128::from_words(wide));
    }

    /// Random words hardly ever have all fixed bits right, so this test sets them.
    #[test]
    fn nearly_right_words_are_a_wqe_or_name_the_offending_field(
        words in uniform8(any::<u64>()),
        wide in uniform16(any::<u64>()),
        op in 0u64..4,
        length in 0u64..96,
        equal: bool,
    ) {
        fn nearly<const W: usize>(mut words: [u64; W], op: u64, length: u64, equal: bool) -> Wqe<W> {
            words[0] = words[0] & 0x0000_ffff_013f_ffff & !0xf_0000 | 0x1c80_0000 | op << 16 | length << 48;
            words[1] &= 0x0003_ffff_ffff_ffff;
            words[2] &= 0xffff_ffff;
            words[3] &= !0xffff;
            words[6] &= 0x00ff_ffff_ffff_ffff;
            if equal {
                let is_inline = words[0] >> 21 & 1 == 1;
                words[4] = words[4] & !0xffff_ffff | if is_inline { length } else { words[6] & 0xffff_ffff };
            }
            Wqe::from_words(words)
        }
        decodes_or_names_a_field(nearly(words, op, length, equal));
        decodes_or_names_a_field(nearly(wide, op, length, equal));
    }

    #[test]
    fn a_receive_descriptor_survives_the_round_trip(
        req_id: u16,
        addr: u64,
        lkey in 0u32..1 << 24,
        length: u16,
        first: bool,
        last: bool,
    ) {
        let buf = RxBuf { req_id, addr, lkey: Lkey::new(lkey).unwrap(), length, first, last };
        prop_assert_eq!(RxDesc::new(buf).decode(), Ok(buf));
    }

    #[test]
    fn arbitrary_words_are_a_receive_descriptor_or_name_the_offending_field(words in uniform2(any::<u64>())) {
        let desc = RxDesc::from_words(words);
        match desc.decode() {
            Ok(buf) => prop_assert_eq!(RxDesc::new(buf), desc),
            Err(e) => prop_assert_eq!(e.field, "lkey_ctrl.reserved"),
        }
        prop_assert_eq!(desc.to_string().contains("MALFORMED"), desc.decode().is_err());
    }

    #[test]
    fn a_send_completion_survives_the_round_trip(req_id: u64, status: u8, qpn: u16, phase: bool, op in 0u64..3) {
        let event = Event::Send { op: OpCode::from_bits(op).unwrap() };
        let completion = Completion { req_id, status: Status::from_code(status), qpn, phase, event };
        prop_assert_eq!(completion.encode::<2>().unwrap().decode(), Ok(completion));
        prop_assert_eq!(completion.encode::<4>().unwrap().decode(), Ok(completion));
    }

    #[test]
    fn a_receive_completion_survives_the_round_trip(
        req_id: u16,
        status: u8,
        qpn: u16,
        phase: bool,
        write: bool,
        length: u32,
        ah: Option<u16>,
        src_qpn: u16,
        imm: Option<u32>,
        unsolicited: bool,
        gid: [u8; 16],
    ) {
        let ah = ah.filter(|&ah| ah != 0xffff);
        let op = if write { OpCode::RdmaWrite } else { OpCode::Send };
        let length = if write { length } else { length & 0xffff };
        let src_gid = (ah.is_none() && !write).then_some(gid);
        let received = Received { op, length, ah, src_qpn, imm, unsolicited, src_gid };
        let event = Event::Receive(received);
        let completion = Completion { req_id: req_id.into(), status: Status::from_code(status), qpn, phase, event };
        prop_assert_eq!(completion.encode::<4>().unwrap().decode(), Ok(completion));
        let short = Completion { event: Event::Receive(Received { src_gid: None, ..received }), ..completion };
        match completion.encode::<2>() {
            Ok(cqe) => prop_assert_eq!(cqe.decode(), Ok(short)),
            Err(e) => {
                prop_assert!(length > 0xffff);
                prop_assert_eq!(e, EncodeError::EntryTooSmall { length });
            }
        }
    }

    #[test]
    fn arbitrary_words_are_a_completion_or_name_the_offending_field(words in uniform4(any::<u64>())) {
        let cqe = Cqe32::from_words(words);
        match cqe.decode() {
            Ok(completion) => prop_assert_eq!(completion.encode::<4>().unwrap().decode(), Ok(completion)),
            Err(e) => prop_assert!(["flags.q_type", "flags.op_type"].contains(&e.field)),
        }
        prop_assert_eq!(cqe.to_string().contains("MALFORMED"), cqe.decode().is_err());
    }
}

#[test]
fn a_request_over_a_limit_is_refused_with_the_numbers() {
    let dest = Destination::default();
    let lkey = Lkey::new(1).unwrap();
    let buf = |length| LocalBuf { addr: 0, lkey, length };
    let small = Limits { max_send_bufs: 1, operations: Limits::RDMA_WRITE, ..Limits::of_queue(8192, 1 << 20) };

    assert_eq!(Send::new(&[buf(1); 3]), Err(EncodeError::TooManyBuffers { given: 3, max: 2 }));
    let two = Send::new(&[buf(1); 2]).unwrap();
    assert_eq!(two.encode::<8>(&small, dest), Err(EncodeError::TooManyBuffers { given: 2, max: 1 }));
    let long = Send::new(&[buf(4097), buf(4096)]).unwrap();
    assert_eq!(
        long.encode::<8>(&LIMITS, dest),
        Err(EncodeError::MessageTooLong { op: OpCode::Send, given: 8193, max: 8192 })
    );
    let write = RdmaWrite::new(buf((1 << 20) + 1), RemoteBuf::default());
    assert_eq!(
        write.encode::<8>(&small, dest),
        Err(EncodeError::MessageTooLong { op: OpCode::RdmaWrite, given: (1 << 20) + 1, max: 1 << 20 })
    );
    let read = RdmaRead::new(buf(1), RemoteBuf::default());
    assert_eq!(read.encode::<8>(&small, dest), Err(EncodeError::Unsupported { op: OpCode::RdmaRead }));
    let inline = RdmaWriteInline::new(&[0; 81], RemoteBuf::default());
    assert_eq!(inline.encode(&LIMITS, dest), Err(EncodeError::InlineTooLong { given: 81, max: 80 }));
    assert_eq!(inline.encode(&small, dest), Err(EncodeError::Unsupported { op: OpCode::RdmaWrite }));
    assert_eq!(Lkey::new(1 << 24), Err(EncodeError::LkeyTooWide { lkey: 1 << 24 }));
}

#[test]
fn builders_work_at_compile_time() {
    const WQE: Wqe64 = match SendInline::new(b"hello").imm(9).encode(&LIMITS, Destination { ah: 1, qpn: 2, qkey: 3 }) {
        Ok(wqe) => wqe.with_req_id(4).with_phase(true),
        Err(_) => panic!(),
    };
    assert_eq!(WQE.words()[4], u64::from_le_bytes(*b"hello\0\0\0"));
    assert_eq!(WQE.words()[0], 0x0005_0002_1db0_0004);
}

#[test]
fn each_reserved_bit_of_a_wqe_is_named_when_set() {
    let wqe: Wqe64 = SendInline::new(b"x").encode(&LIMITS, Destination::default()).unwrap();
    let named = [
        (0, 22, "ctrl1.meta_extension"),
        (0, 25, "ctrl2.reserved25"),
        (0, 30, "ctrl2.reserved29"),
        (1, 50, "ctrl3.reserved"),
        (1, 56, "reserved"),
        (2, 40, "reserved2"),
        (3, 15, "reserved2"),
    ];
    for (word, bit, name) in named {
        let mut words = *wqe.words();
        words[word] |= 1 << bit;
        assert_eq!(Wqe64::from_words(words).decode().unwrap_err().field, name);
    }
    for (bit, name) in [(23, "ctrl1.meta_desc"), (26, "ctrl2.first"), (27, "ctrl2.last"), (28, "ctrl2.comp_req")] {
        let mut words = *wqe.words();
        words[0] &= !(1 << bit);
        assert_eq!(Wqe64::from_words(words).decode().unwrap_err().field, name);
    }
}

#[test]
fn a_dissected_write_teaches_what_is_in_it() {
    let local = LocalBuf { addr: 0x7f00_0000_1000, lkey: Lkey::new(0x42).unwrap(), length: 4096 };
    let remote = RemoteBuf { addr: 0x7f11_0000_2000, rkey: 0x99 };
    let wqe: Wqe64 =
        RdmaWrite::new(local, remote).imm(7).encode(&LIMITS, Destination { ah: 3, qpn: 17, qkey: 0x1234 }).unwrap();
    let expected = "\
send WQE, 64 bytes: RDMA write
  byte   0        req_id                   5
  byte   2 [3:0]  ctrl1.op_type            2                  RDMA write
  byte   2 [4]    ctrl1.has_imm            1                  immediate data is valid
  byte   2 [5]    ctrl1.inline_msg         0
  byte   2 [7]    ctrl1.meta_desc          1                  always 1
  byte   3 [0]    ctrl2.phase              0                  an even lap
  byte   3 [2]    ctrl2.first              1                  always 1
  byte   3 [3]    ctrl2.last               1                  always 1
  byte   3 [4]    ctrl2.comp_req           1                  wants a completion entry
  byte   4        dest_qp_num              17
  byte   6        length                   1                  buffers
  byte   8        immediate_data           0x7
  byte  12        ah                       3
  byte  14 [1:0]  ctrl3.processing_hints   0
  byte  16        qkey                     0x1234
  byte  32        remote_mem.length        0x1000             bytes
  byte  36        remote_mem.rkey          0x99
  byte  40        remote_mem.buf_addr      0x7f1100002000
  byte  48        buf.length               0x1000             bytes
  byte  52        buf.lkey                 0x42
  byte  56        buf.buf_addr             0x7f0000001000
";
    let text: String = wqe.with_req_id(5).to_string().lines().map(|l| format!("{}\n", l.trim_end())).collect();
    assert_eq!(text, expected);
}
