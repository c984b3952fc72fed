//! Strangers who send a device packets in a peer's name.

mod common;

use common::world::*;
use common::*;
use efa_io::Status;
use efa_soft::wire::{Ack, Body, Envelope, Hello, MessageHeader, Packet, WireOp};
use efa_soft::*;

/// Returns all packets that the device sends.
fn said(node: &mut Node, now: Time) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| node.device.poll_transmit(now)).map(|packet| bytes(&packet)).collect()
}

fn parsed(packet: &[u8]) -> Body<'_> {
    Packet::parse(packet).unwrap().body
}

/// Returns the challenge of the hello among these packets, if there is one.
fn asked(packets: &[Vec<u8>]) -> Option<u64> {
    packets.iter().find_map(|packet| match parsed(packet) {
        Body::Hello(Hello { challenge, .. }) if challenge != 0 => Some(challenge),
        _ => None,
    })
}

fn nothing() -> MessageHeader {
    header(WireOp::Send, 1, 0)
}

/// Returns `true` if the peer of [`from_there`] is heard: its next message is acknowledged.
fn hears(node: &mut Node, now: Time, envelope: &Envelope, message: u32) -> bool {
    node.device.handle(now, &data(envelope, nothing(), message, message, 64));
    let answers = said(node, now);
    answers.iter().any(|packet| matches!(parsed(packet), Body::Acks { .. }))
}

#[test]
fn who_does_not_receive_at_an_address_changes_nothing_in_its_name() {
    let mut node = Node::new(HERE, THERE, 16);
    let known = from_there();
    assert!(hears(&mut node, at(1), &known, 0));
    // All that can be guessed of the peer's packets: that which no packet needs to have been seen for.
    for src_incarnation in [known.src_incarnation, 1, 2, u64::MAX] {
        for dst_incarnation in [0, 1, u64::MAX, known.dst_incarnation ^ 1, known.dst_incarnation - 1] {
            let forged = Envelope { src_incarnation, dst_incarnation, ..known };
            for packet in [
                data(&forged, nothing(), 1 << 20, 1 << 20, 64),
                hello(&forged, 0, 0),
                hello(&forged, 0, 1),
                hello(&forged, 0, 2),
                hello(&forged, 9, 0),
                acks_of(&forged),
            ] {
                node.device.handle(at(2), &packet);
                assert!(asked(&said(&mut node, at(2))).is_none(), "nor is the peer asked");
            }
        }
    }
    let counters = node.device.counters();
    assert_eq!((counters.impaired_remote_conn_events, counters.unresponsive_remote_events), (0, 0));
    assert!(hears(&mut node, at(3), &known, 1), "the peer is heard as before");
}

fn acks_of(envelope: &Envelope) -> Vec<u8> {
    acks_from(envelope, true, &[Ack::Done { first: 0, count: u16::MAX, status: Status::Ok }])
}

#[test]
fn another_life_of_a_peer_is_believed_once_the_peer_has_answered_and_not_before() {
    let mut node = Node::new(HERE, THERE, 16);
    let known = from_there();
    let later = Envelope { src_incarnation: 7, ..known };
    assert!(hears(&mut node, at(1), &known, 0));
    assert!(!hears(&mut node, at(2), &later, 0));
    let mut heard = Vec::new();
    // It asks again, so the question is found even if the first one was in `hears`.
    for ms in [30, 90, 200] {
        node.on_time(at(ms * 1000));
        heard.extend(said(&mut node, at(ms * 1000)));
    }
    let challenge = asked(&heard).expect("the peer is asked");
    for (answer, why) in [
        (hello(&later, 0, 0), "an answer to nothing"),
        (hello(&later, 0, challenge + 1), "an answer to something else"),
        (hello(&Envelope { dst_incarnation: 0, ..later }, 0, challenge), "an answer to somebody else"),
    ] {
        node.device.handle(at(300_000), &answer);
        assert!(hears(&mut node, at(300_000), &known, 1), "{why}");
    }
    node.device.handle(at(300_001), &hello(&later, 0, challenge));
    assert!(hears(&mut node, at(300_002), &later, 0), "the peer lives again");
    assert!(!hears(&mut node, at(300_003), &known, 2), "and its earlier life is over");
    // What answered once does not answer again, whoever repeats it.
    node.device.handle(at(300_004), &hello(&known, 0, challenge));
    assert!(hears(&mut node, at(300_005), &later, 1));
}

#[test]
fn a_peer_that_does_not_answer_is_not_asked_for_ever() {
    let mut node = Node::new(HERE, THERE, 16);
    assert!(hears(&mut node, at(1), &from_there(), 0));
    let late = Envelope { src_incarnation: 7, ..from_there() };
    node.device.handle(at(2), &data(&late, nothing(), 0, 0, 64));
    let mut questions = 0;
    for ms in 0..60_000 {
        let now = at(1000 * (ms + 1));
        node.on_time(now);
        questions += said(&mut node, now).iter().filter(|packet| matches!(parsed(packet), Body::Hello(_))).count();
    }
    assert_eq!(questions, 8);
    assert_eq!(node.device.poll_timeout(), None, "nothing is left to do");
    assert!(hears(&mut node, at(70_000_000), &from_there(), 1));
}

#[test]
fn no_answer_is_longer_than_what_it_answers() {
    let mut node = Node::new(HERE, THERE, 16);
    let mut packets = Vec::new();
    for envelope in [from_there(), Envelope { dst_incarnation: 0, ..from_there() }, from(Gid::local(9))] {
        for stranger in [envelope, Envelope { dst_incarnation: 3, ..envelope }] {
            packets.push(hello(&stranger, 5, 0));
            packets.push(hello(&stranger, 0, 5));
            packets.push(acks_of(&stranger));
            packets.push(data(&stranger, nothing(), 0, 0, 64));
            packets.push(data(&stranger, header(WireOp::Send, node.qp.qpn, 1), 1, 0, 64));
        }
    }
    for (i, packet) in packets.iter().enumerate() {
        let now = at(i as u64 + 1);
        node.device.handle(now, packet);
        let answered: usize = said(&mut node, now).iter().map(Vec::len).sum();
        assert!(answered <= packet.len(), "{answered} bytes for {}: {:?}", packet.len(), parsed(packet));
    }
}

#[test]
fn a_peer_whose_lives_count_backwards_comes_back_all_the_same() {
    let mut world = World::pair();
    world.acquaint(A, B);
    for life in (1..5).rev() {
        // The clock of a host that starts again may be wrong.
        world.hosts[B].setup.device.incarnation = life;
        world.restart(B);
        let write = world.write(A, B, 8);
        assert_eq!(world.status_of(A, write), Status::RemoteAbort, "it was meant for the life before");
        assert_eq!(world.status_of(A, write), Status::RemoteBadDestQpn, "the device is there, its queue pair is not");
    }
}

#[test]
fn what_a_life_is_called_is_told_only_to_whom_it_is_called_so() {
    let mut node = Node::new(HERE, THERE, 16);
    let mut told = Vec::new();
    for stranger in 100..200 {
        let src = Gid::local(stranger);
        node.device.handle(at(1), &hello(&Envelope { dst_incarnation: 0, ..from(src) }, 5, 0));
        for packet in said(&mut node, at(1)) {
            let envelope = Envelope::parse(&packet).unwrap();
            assert_eq!((envelope.dst, envelope.src_incarnation), (src, from(src).dst_incarnation));
            told.push(envelope.src_incarnation);
        }
    }
    told.push(from_there().dst_incarnation);
    told.sort();
    told.dedup();
    assert_eq!(told.len(), 101, "each was told another number, and none the peer's");
}
