//! A device, driven packet by packet and doorbell by doorbell, whose programs and peers do strange things.

mod common;

use common::*;
use efa_io::*;
use efa_memory::SharedMemory;
use efa_soft::wire::{Ack, WireOp};
use efa_soft::*;
use std::time::Duration;

#[test]
fn an_acknowledgement_of_a_message_that_was_never_sent_does_nothing() {
    let mut node = Node::new(HERE, THERE, 256);
    for _ in 0..64 {
        node.put(node.send(600)); // more than the congestion window lets out
    }
    node.ring(at(1));
    let unsent = first_message(&node.packets(at(1))).wrapping_add(60);
    for ack in [
        Ack::Accepted { message: unsent },
        Ack::NotReady { message: unsent },
        Ack::Partial { message: unsent, next: 9, bitmap: [u64::MAX; 4] },
        Ack::Done { first: unsent, count: 1, status: Status::Ok },
    ] {
        node.device.handle(at(2), &acks(&[ack]));
    }
    for second in 1..4 {
        node.on_time(at(second * 1_000_000));
        node.packets(at(second * 1_000_000));
    }
    assert!(node.completions().is_empty());
}

#[test]
fn a_malformed_wqe_flushes_what_is_behind_it_and_completes_nothing_twice() {
    let mut node = Node::new(HERE, THERE, 16);
    node.put(node.send(600));
    node.put(Wqe64::from_words([0; 8]));
    for _ in 0..4 {
        node.put(node.send(600));
    }
    node.ring(at(1));
    let completions: Vec<_> = node.completions().iter().map(|c| (c.req_id, c.status)).collect();
    let flushed = |id| (id, Status::Flushed);
    assert_eq!(completions, [(1, Status::QpInternal), flushed(0), flushed(2), flushed(3), flushed(4), flushed(5)]);
    assert!(!node.device.poll_doorbells(at(2)), "there is nothing more to do");
    node.put(node.send(600));
    node.ring(at(3));
    assert_eq!(node.completions().len(), 7, "what is posted later is flushed, too");
}

#[test]
fn a_batch_over_the_maximum_is_noticed_when_doorbells_are_rung_one_by_one() {
    let mut node = Node::new(HERE, THERE, 256);
    assert_eq!(node.qp.sq.max_batch, 64);
    for _ in 0..65 {
        node.put(node.send(600));
    }
    node.device.ring_send_doorbell(at(1), node.qp.qpn, 64);
    assert_eq!(node.device.query_qp(node.qp.qpn), Ok(QpState::ReadyToSend));
    for _ in 0..65 {
        node.put(node.send(600));
    }
    node.device.ring_send_doorbell(at(2), node.qp.qpn, 64 + 65);
    assert_eq!(node.device.query_qp(node.qp.qpn), Ok(QpState::Error));
}

#[test]
fn a_doorbell_that_cannot_be_fails_the_queue_pair_once() {
    for failed_before in [false, true] {
        let mut node = Node::new(HERE, THERE, 16);
        if failed_before {
            node.device.modify_qp(node.qp.qpn, QpState::Error, None).unwrap();
        }
        node.qp.sq.doorbell.store_doorbell(0, 1000);
        node.device.poll_doorbells(at(1));
        assert_eq!(node.device.query_qp(node.qp.qpn), Ok(QpState::Error));
        assert!(!node.device.poll_doorbells(at(2)), "there is nothing more to do");
    }
}

#[test]
fn a_wqe_with_the_phase_of_another_lap_fails_the_queue_pair() {
    let mut node = Node::new(HERE, THERE, 16);
    let wqe = node.send(600).with_req_id(3).with_phase(true);
    node.qp.sq.ring.publish_entry(0, wqe.words());
    node.producer = 1;
    node.ring(at(1));
    let completions = node.completions();
    assert_eq!((completions[0].req_id, completions[0].status), (3, Status::QpInternal));
}

#[test]
fn a_malformed_receive_ring_fails_the_queue_pair_and_flushes_its_sends() {
    let mut node = Node::new(HERE, THERE, 16);
    node.put(node.send(600));
    node.ring(at(1));
    node.packets(at(1));
    let not_first = rx::RxBuf { req_id: 0, addr: 0, lkey: Lkey::default(), length: 8, first: false, last: true };
    node.qp.rq.ring.publish_entry(0, RxDesc::new(not_first).words());
    node.qp.rq.doorbell.store_doorbell(node.qp.rq.doorbell_offset, 1);
    node.device.handle(at(2), &data(&from_there(), header(WireOp::Send, node.qp.qpn, 2), 0, 0, 64));
    assert_eq!(node.device.query_qp(node.qp.qpn), Ok(QpState::Error));
    assert_eq!(node.completions().iter().map(|c| c.status).collect::<Vec<_>>(), [Status::Flushed]);
}

#[test]
fn more_reads_each_way_than_the_message_window_holds_all_complete() {
    let (mut a, mut b) = (Node::new(HERE, THERE, 4096), Node::new(THERE, HERE, 4096));
    let register = |node: &mut Node| {
        let memory = SharedMemory::zeroed(4096).unwrap();
        node.device.register(node.pd, memory, 0x1000, Access::ALL).unwrap()
    };
    let (keys_a, keys_b) = (register(&mut a), register(&mut b));
    let read = |node: &Node, own: RegionKeys, other: RegionKeys, qpn| -> Wqe64 {
        let local = LocalBuf { addr: 0x1000, lkey: Lkey::new(own.lkey).unwrap(), length: 8 };
        let remote = RemoteBuf { addr: 0x1000, rkey: other.rkey };
        RdmaRead::new(local, remote).encode(&limits(), node.to(qpn)).unwrap()
    };
    let reads = times(3000);
    for _ in 0..reads {
        a.put(read(&a, keys_a, keys_b, b.qp.qpn));
        b.put(read(&b, keys_b, keys_a, a.qp.qpn));
    }
    a.ring(at(1));
    b.ring(at(1));
    let mut now = at(1);
    while now < at(1_000_000) {
        a.on_time(now);
        b.on_time(now);
        let (from_a, from_b) = (a.packets(now), b.packets(now));
        now = now + Duration::from_micros(5);
        from_a.iter().for_each(|packet| b.device.handle(now, packet));
        from_b.iter().for_each(|packet| a.device.handle(now, packet));
        if a.completions().len() + b.completions().len() == 2 * reads {
            break;
        }
    }
    assert_eq!((a.completions().len(), b.completions().len()), (reads, reads));
    assert!(a.completions().iter().chain(&b.completions()).all(|completion| completion.status.is_ok()));
}

#[test]
fn keys_and_numbers_do_not_come_back_at_once() {
    let mut node = Node::new(HERE, THERE, 16);
    let memory = SharedMemory::zeroed(4096).unwrap();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..times(50_000) {
        let keys = node.device.register(node.pd, memory.clone(), 0x1000, Access::ALL).unwrap();
        assert!(seen.insert(keys.lkey) && keys.lkey >> 24 == 0);
        node.device.deregister(keys.lkey).unwrap();
    }
    let mut numbers = std::collections::HashSet::new();
    for i in 0..times(300) {
        let number = qp(&mut node.device, node.pd, node.cq.cqn, 1).qpn;
        assert!(number != 0 && (i >= 100 || numbers.insert(number)));
        node.device.destroy_qp(number).unwrap();
    }
}

#[test]
fn a_configuration_that_no_device_can_have_is_named() {
    let check = |change: fn(&mut DeviceConfig)| {
        let mut config = DeviceConfig::new(HERE);
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    assert_eq!(check(|config| config.attributes.mtu = 0), "mtu is 0, expected 64 to 60000 bytes");
    assert!(check(|config| config.attributes.max_qp = 0).starts_with("max_qp is 0"));
    assert!(check(|config| config.max_tx_batch = 1).starts_with("max_tx_batch is 1"));
    assert!(DeviceConfig::new(HERE).check().is_ok());
    let mut config = DeviceConfig::new(HERE);
    config.attributes.max_qp = 1;
    let mut single = Device::new(config);
    let pd = single.alloc_pd().unwrap();
    let cq = single.create_cq(CqAttributes { entries: 4, entry_size: CqeSize::Small, events: false }).unwrap();
    for _ in 0..3 {
        let number = qp(&mut single, pd, cq.cqn, 1).qpn;
        single.destroy_qp(number).unwrap();
    }
}

#[test]
fn events_that_nobody_fetches_do_not_pile_up() {
    let mut device = Device::new(DeviceConfig::new(HERE));
    let cq = device.create_cq(CqAttributes { entries: 4, entry_size: CqeSize::Large, events: true }).unwrap();
    let doorbell = cq.doorbell.unwrap();
    for sequence in 0..times(10_000) as u32 {
        // As if a completion were there that the program has not seen.
        doorbell.store_doorbell(0, ring::CqDoorbell::arm(1, sequence).value());
        device.poll_doorbells(at(1));
    }
    assert_eq!(device.poll_event(), Some(DeviceEvent::Completion(cq.cqn)));
    assert_eq!(device.poll_event(), None);
}

#[test]
fn control_calls_are_counted_and_failed_ones_by_what_they_were() {
    let mut device = Device::new(DeviceConfig { max_pd: 1, ..DeviceConfig::new(HERE) });
    let pd = device.alloc_pd().unwrap();
    assert!(device.alloc_pd().is_err());
    assert!(device.create_ah(pd + 1, THERE).is_err());
    assert!(device.create_cq(CqAttributes { entries: 1 << 20, entry_size: CqeSize::Large, events: false }).is_err());
    assert!(device.register(pd, SharedMemory::zeroed(4096).unwrap(), u64::MAX, Access::ALL).is_err());
    assert!(device.destroy_qp(1).is_err());
    let expected = CommandCounters {
        submitted_cmds: 6,
        completed_cmds: 6,
        cmds_err: 5,
        alloc_pd_err: 1,
        create_ah_err: 1,
        create_cq_err: 1,
        reg_mr_err: 1,
        ..CommandCounters::default()
    };
    assert_eq!(device.command_counters(), expected);
}
