//! Arbitrary contents of rings and doorbells.

use super::harness::{Harness, LOCAL, OPEN, REMOTE};
use super::script::Script;
use efa_io::rx::RxBuf;
use efa_io::{RxDesc, Wqe};
use efa_soft::trace::{TraceEvent, Traced};
use efa_soft::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Executes a script of a program that writes arbitrary bytes.
pub(crate) fn rings(data: &[u8]) {
    let mut script = Script(data);
    let (traits, sizes) = (script.byte(), script.byte());
    let has = |bit: u8| traits >> bit & 1 != 0;
    let sub_cqs = if has(0) { 3 } else { 1 };
    let mut harness = Harness::new(DeviceConfig { loopback: has(1), req_id_64: has(2), sub_cqs, ..Harness::config() });
    let pd = harness.create_objects();
    let entry_size = if has(3) { CqeSize::Small } else { CqeSize::Large };
    let entries = 1 << (sizes & 3);
    let cq = harness.create_cq(CqAttributes { entries, entry_size, events: has(4) }).expect("the first queue");
    let transport = if has(5) { Transport::Ud } else { Transport::Srd };
    let is_srd = transport == Transport::Srd;
    let qp = harness.create_qp(QpAttributes {
        transport,
        pd,
        send_cq: cq,
        recv_cq: cq,
        send_entries: 1 << (sizes >> 2 & 3),
        recv_entries: 1 << (sizes >> 4 & 3),
        recv_sge: (sizes >> 6).into(),
        inline_bytes: if has(6) { 80 } else { 32 },
        inline_write: has(6) && is_srd,
        unsolicited_write_recv: has(7) && is_srd,
        rnr_retry: None,
    });
    let qpn = qp.expect("the first queue pair");
    harness.activate(qpn).expect("verbs' way");
    // For each doorbell value, the device fetches at most as many WQEs as the ring has, and each completes at most
    // once.
    let completions = Arc::new(AtomicU32::new(0));
    let mut doorbells = 0;
    harness.device.subscribe(Box::new({
        let completions = completions.clone();
        move |event: &TraceEvent| {
            let of_send = matches!(event.what, Traced::Completion { receive: false, .. });
            completions.fetch_add(of_send.into(), Relaxed);
        }
    }));
    let mut kept = vec![];
    while !script.is_over() {
        doorbells += 1;
        match script.below(16) {
            0..4 if harness.qps[0].info.sq.entry_size == 64 => harness.post_nearly::<8>(&mut script),
            0..4 => harness.post_nearly::<16>(&mut script),
            4 | 5 => harness.post_receive_nearly(&mut script),
            6 => harness.scribble(&mut script),
            7 => harness.ring_anything(&mut script),
            8 => harness.ring_completions(&mut script),
            9..12 => harness.transmit(&mut script, &mut kept),
            12 => harness.receive(&mut script),
            13 => harness.pass(&mut script),
            14 => {
                let wqe_time = Duration::from_micros(script.pick(&[0, 1, 10, 1000]));
                harness.device.set_faults(Faults { wqe_time, ..Faults::default() });
            }
            _ => {
                let to = script.pick(&[QpState::Error, QpState::Reset, QpState::Reset]);
                harness.device.modify_qp(qpn, to, None).expect("both are allowed in every state");
                if to == QpState::Reset {
                    harness.qps[0].was_reset();
                    harness.activate(qpn).expect("verbs' way");
                }
            }
        }
        while harness.device.poll_event().is_some() {}
        harness.now = harness.now + Duration::from_micros(1);
    }
    harness.settle();
    let most = (doorbells + 1) * harness.qps[0].info.sq.entries;
    assert!(completions.load(Relaxed) <= most, "{} completions of at most {most} WQEs", completions.load(Relaxed));
    harness.cqs[0].check();
    harness.check_memory(&[OPEN, LOCAL, REMOTE]);
}

/// The differences of a posted entry from a valid one: its phase, a bit, the distance of the doorbell.
struct Flaws {
    phase: bool,
    bit: Option<usize>,
    ring: bool,
}

impl Flaws {
    fn of(script: &mut Script<'_>) -> Self {
        let choice = script.byte();
        let bit = (choice & 0x30 == 0x30).then(|| script.u16().into());
        Self { phase: choice & 0xc0 == 0xc0, bit, ring: choice % 4 != 3 }
    }

    fn apply<const W: usize>(&self, mut words: [u64; W]) -> [u64; W] {
        if let Some(bit) = self.bit {
            words[bit / 64 % W] ^= 1 << (bit % 64);
        }
        words
    }
}

impl Harness {
    /// Posts a WQE that is nearly valid.
    fn post_nearly<const W: usize>(&mut self, script: &mut Script<'_>)
    where
        Wqe<W>: efa_io::SendWqe,
    {
        let wqe: Wqe<W> = self.some_wqe(script);
        let flaws = Flaws::of(script);
        let id = script.u16();
        let high = self.qps[0].high_id_bits();
        self.qps[0].put_wqe(|phase| {
            let proper = wqe.with_req_id_64(u64::from(id) | high).with_phase(phase != flaws.phase);
            Wqe::from_words(flaws.apply(*proper.words()))
        });
        if flaws.ring {
            self.qps[0].ring_send();
            self.device.poll_doorbells(self.now);
        }
    }

    /// Posts a receive descriptor that is nearly valid.
    fn post_receive_nearly(&mut self, script: &mut Script<'_>) {
        let kind = script.byte();
        let buf =
            RxBuf { req_id: script.u16(), first: kind & 3 != 3, last: kind & 12 != 12, ..self.some_receive(script) };
        let flaws = Flaws::of(script);
        self.qps[0].put_receive(RxDesc::from_words(flaws.apply(*RxDesc::new(buf).words())));
        if flaws.ring {
            self.qps[0].ring_receive();
            self.device.poll_doorbells(self.now);
        }
    }

    /// Writes arbitrary bytes to a ring.
    fn scribble(&mut self, script: &mut Script<'_>) {
        let choice = script.byte();
        let info = &self.qps[0].info;
        let wq = if choice & 1 == 0 { &info.sq } else { &info.rq };
        let room = (wq.entries * wq.entry_size) as usize;
        let offset = usize::from(script.u16()) % room;
        let bytes = script.bytes(usize::from(choice / 2).min(room - offset));
        for (at, byte) in (offset..).zip(bytes) {
            let (word, shift) = (at & !7, at % 8 * 8);
            let others = wq.ring.load_word(word) & !(0xff << shift);
            wq.ring.store_word(word, others | u64::from(*byte) << shift);
        }
    }

    /// Writes an arbitrary value to a doorbell.
    fn ring_anything(&mut self, script: &mut Script<'_>) {
        let qp = &mut self.qps[0];
        let (choice, distance) = (script.byte(), script.number(&[0, 1, 2, 3, 4, 8, 9, 64, u32::MAX]));
        if choice & 1 == 0 {
            qp.sent = qp.sent.wrapping_add(distance);
            if choice & 2 == 0 {
                qp.ring_send();
                self.device.poll_doorbells(self.now);
            } else {
                self.device.ring_send_doorbell(self.now, qp.info.qpn, qp.sent);
            }
        } else {
            qp.received = qp.received.wrapping_add(distance);
            qp.ring_receive();
            self.device.poll_doorbells(self.now);
        }
    }

    /// Writes an arbitrary value to the doorbell of the completion queue.
    fn ring_completions(&mut self, script: &mut Script<'_>) {
        let value = script.number(&[0, 1, 2, 4, 8, 1 << 31, 1 << 31 | 1, 1 << 31 | 2, 0xffff]);
        if let Some(doorbell) = &self.cqs[0].info.doorbell {
            doorbell.store_doorbell(0, value);
            self.device.poll_doorbells(self.now);
        }
    }
}
