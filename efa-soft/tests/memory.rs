//! The memory that strange peers can make a device hold. This is one test, since it measures the whole process.

mod common;

use common::*;
use efa_memory::SharedMemory;
use efa_soft::wire::{MessageHeader, Packet, WireError, WireOp};
use efa_soft::*;

#[test]
fn whatever_peers_do_memory_stays_bounded() {
    forged_packets_of_large_messages_reserve_no_memory();
    strangers_cost_a_bounded_amount_of_memory();
    reads_whose_answers_nobody_acknowledges_are_refused_in_the_end();
}

/// Returns the address space of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn forged_packets_of_large_messages_reserve_no_memory() {
    let mut node = Node::new(HERE, THERE, 16);
    let before = resident();
    for message in 0..500 {
        let forged = header(WireOp::ReadResponse, 1, u32::MAX);
        node.device.handle(at(1), &data(&from_there(), forged, message, 0, 64));
        let tiny = data(&from_there(), forged, message, 0, 1);
        assert!(matches!(Packet::parse(&tiny), Err(WireError::Field { field: "stride", .. })));
    }
    assert!(resident() - before < 32 << 10, "{} KiB", resident() - before);
}

fn strangers_cost_a_bounded_amount_of_memory() {
    let mut node = Node::new(HERE, THERE, 16);
    let before = resident();
    for i in 0..20_000 {
        let envelope = from(Gid::local(100 + i));
        node.device.handle(at(1), &data(&envelope, header(WireOp::Send, 1, 1), 2047, 0, 64));
        if i % 1000 == 0 {
            node.packets(at(1));
        }
    }
    assert!(resident() - before < 400 << 10, "{} KiB", resident() - before);
    node.packets(at(1));
    // Those that stay silent make room for others.
    let late = at(60_000_000);
    let envelope = from(Gid::local(99_999));
    node.device.handle(late, &data(&envelope, header(WireOp::Send, 1, 1), 0, 0, 64));
    assert_eq!(node.packets(late).len(), 1, "the newcomer gets an answer");
}

fn reads_whose_answers_nobody_acknowledges_are_refused_in_the_end() {
    let mut node = Node::new(HERE, THERE, 16);
    let memory = SharedMemory::zeroed(4096).unwrap();
    let keys = node.device.register(node.pd, memory, 0x1000, Access::ALL).unwrap();
    let request = MessageHeader { rkey: keys.rkey, remote_addr: 0x1000, ..header(WireOp::ReadRequest, node.qp.qpn, 8) };
    let before = resident();
    for i in 0..200_000 {
        node.device.handle(at(1), &data(&from_there(), request, i, i, 64));
        if i % 64 == 0 {
            node.packets(at(1));
        }
    }
    assert!(resident() - before < 32 << 10, "{} KiB", resident() - before);
}
