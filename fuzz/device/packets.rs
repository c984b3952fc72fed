//! Arbitrary packets.

use super::harness::{Harness, LOCAL, OPEN, REMOTE};
use super::script::Script;
use efa_soft::*;
use std::time::Duration;

/// Executes a script of packets for a device with queue pairs, receives and outstanding messages of its own.
pub(crate) fn packets(data: &[u8]) {
    let mut script = Script(data);
    let traits = script.byte();
    let has = |bit: u8| traits >> bit & 1 != 0;
    let mut harness = Harness::new(DeviceConfig { loopback: has(0), req_id_64: has(1), ..Harness::config() });
    let pd = harness.create_objects();
    let entry_size = if has(2) { CqeSize::Small } else { CqeSize::Large };
    let cq = harness.create_cq(CqAttributes { entries: 512, entry_size, events: false }).expect("the first queue");
    let transports = if has(3) { &[Transport::Srd, Transport::Ud][..] } else { &[Transport::Srd] };
    for &transport in transports {
        let is_srd = transport == Transport::Srd;
        let qp = harness.create_qp(QpAttributes {
            transport,
            pd,
            send_cq: cq,
            recv_cq: cq,
            send_entries: 16,
            recv_entries: 16,
            recv_sge: 2,
            inline_bytes: if has(4) { 80 } else { 32 },
            inline_write: has(4) && is_srd,
            unsolicited_write_recv: has(5) && is_srd,
            rnr_retry: None,
        });
        let qpn = qp.expect("the first queue pairs");
        if has(6) && is_srd {
            harness.device.set_rnr_retry(qpn, 1).expect("an SRD queue pair that is new");
        }
        harness.activate(qpn).expect("verbs' way");
        harness.post_receive(&mut script);
    }
    if has(7) {
        harness.device.subscribe(Box::new(|_: &trace::TraceEvent| {}));
    }
    let mut kept = vec![];
    while !script.is_over() {
        match script.below(16) {
            0..6 => harness.receive(&mut script),
            6 | 7 => harness.post_send(&mut script),
            8 => harness.post_receive(&mut script),
            9..12 => harness.transmit(&mut script, &mut kept),
            12 => harness.arrive_late(&mut script, &kept),
            13 => harness.pass(&mut script),
            14 => {
                let rx_rate = script.pick(&[None, Some(1), Some(1000), Some(1_000_000)]);
                let rx_buffer = script.pick(&[0, 300, 2000, 256 << 10]);
                harness.device.set_faults(Faults { rx_rate, rx_buffer, wqe_time: Duration::ZERO });
            }
            _ => harness.device.set_port(script.byte() & 1 == 0),
        }
        harness.reap();
        harness.now = harness.now + Duration::from_micros(1);
    }
    harness.device.set_port(true);
    harness.settle();
    harness.reap();
    for qp in &harness.qps {
        assert!(!qp.sends.contains(&true), "queue pair {}: a send never ends", qp.info.qpn);
    }
    harness.check_memory(&[OPEN, LOCAL, REMOTE]);
}
