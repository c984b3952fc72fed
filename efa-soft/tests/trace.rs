//! Traces: what a device tells its subscribers.

mod common;

use common::world::*;
use efa_io::*;
use efa_soft::trace::{ChromeTrace, DropReason, TraceEvent, Traced, TracedPacket};
use efa_soft::wire::WireOp;
use efa_soft::*;
use serde_json::Value;
use std::time::Duration;

fn what(events: &[TraceEvent]) -> Vec<Traced> {
    events.iter().map(|event| event.what).collect()
}

#[test]
fn one_write_is_seen_from_its_doorbell_to_its_completion() {
    let mut world = World::pair();
    world.acquaint(A, B);
    let (a, b) = (world.watch(A), world.watch(B));
    let write = world.write(A, B, 8);
    assert_eq!(world.status_of(A, write), Status::Ok);
    let (a, b) = (a.lock().clone(), b.lock().clone());
    let (near, far, cqn) = (world.hosts[A].qp.qpn(), world.hosts[B].qp.qpn(), world.hosts[A].cq.info.cqn);
    let (src, dst) = (world.gid(A), world.gid(B));
    let Traced::PacketOut { packet: packet @ TracedPacket::Data { message, .. }, path, .. } = a[2].what else {
        panic!()
    };
    assert_eq!(packet, TracedPacket::Data { op: WireOp::Write, message, packet: 0 });
    let acks = TracedPacket::Acks { entries: 1 };
    assert_eq!(
        what(&a),
        [
            Traced::Doorbell { qpn: near, value: 2, wqes: 1 },
            Traced::Wqe { qpn: near, req_id: 1, op: OpCode::RdmaWrite, bytes: 8, status: Status::Ok },
            Traced::PacketOut { dst, packet, path, bytes: 112 + 8, resent: false },
            Traced::PacketIn { src: dst, packet: acks },
            Traced::Completion { cqn, qpn: near, req_id: 1, status: Status::Ok, receive: false },
        ]
    );
    assert_eq!(
        what(&b),
        [
            Traced::PacketIn { src, packet },
            Traced::Placed { qpn: far, bytes: 8 },
            Traced::PacketOut { dst: src, packet: acks, path, bytes: 64 + 8, resent: false },
        ]
    );
    assert!(a.is_sorted_by_key(|event| event.at) && b.is_sorted_by_key(|event| event.at));
    let micros = Duration::from_micros;
    assert!(b[0].at.since(a[2].at) >= micros(5) && a[3].at.since(b[2].at) >= micros(5), "the way takes its time");
}

#[test]
fn a_device_tells_everyone_who_watches_it_from_then_on_and_nobody_else() {
    let mut world = World::pair();
    world.acquaint(A, B);
    let write = world.write(A, B, 8);
    let first = world.watch(A);
    assert_eq!(world.status_of(A, write), Status::Ok);
    let second = world.watch(A);
    assert_eq!((first.lock().len(), second.lock().len()), (5, 0));
    assert_eq!(world.status_of(A, write), Status::Ok);
    assert_eq!(first.lock()[5..], second.lock()[..]);
    assert_eq!(second.lock().len(), 5);
}

#[test]
fn what_goes_wrong_is_seen_as_well() {
    let mut world = World::pair();
    world.acquaint(A, B);
    let (a, b) = (world.watch(A), world.watch(B));
    // A packet that has to be sent twice.
    world.set_link(|link| link.cut = true);
    let write = world.write(A, B, 8);
    world.post(A, [write]);
    world.step();
    world.set_link(|link| link.cut = false);
    assert_eq!(world.completion(A).status, Status::Ok);
    assert!(a.lock().iter().any(|event| matches!(event.what, Traced::PacketOut { resent: true, .. })));
    // A packet that comes twice.
    world.set_link(|link| link.duplicate = 1.0);
    assert_eq!(world.status_of(A, write), Status::Ok);
    world.set_link(|link| link.duplicate = 0.0);
    // A WQE that is refused, a packet that cannot leave, a port and a queue pair that go down.
    let bad: Wqe64 = wqe(SendInline::new(b"x"), Destination { ah: 0, ..world.to(A, B) });
    assert_eq!(world.status_of(A, bad), Status::InvalidAh);
    let own = world.write(A, A, 8);
    world.post(A, [own]);
    world.step();
    let qpn = world.hosts[A].qp.qpn();
    world.device(A).set_port(false);
    world.device(A).modify_qp(qpn, QpState::Error, None).unwrap();
    let (a, b) = (what(&a.lock()), what(&b.lock()));
    for (seen, event) in [
        (&b, Traced::PacketDropped { reason: DropReason::Duplicate }),
        (&a, Traced::Wqe { qpn, req_id: 3, op: OpCode::Send, bytes: 1, status: Status::InvalidAh }),
        (&a, Traced::PacketDropped { reason: DropReason::Unroutable }),
        (&a, Traced::Port { up: false }),
        (&a, Traced::State { qpn, state: QpState::Error }),
    ] {
        assert!(seen.contains(&event), "{event}");
    }
}

#[test]
fn a_chrome_trace_is_an_array_of_trace_events() {
    let mut world = World::pair();
    let seen = [A, B].map(|host| world.watch(host));
    let wqes = [world.write(A, B, 20_000), world.read(A, B, 8)];
    for wqe in wqes {
        assert_eq!(world.status_of(A, wqe), Status::Ok);
    }
    let mut trace = ChromeTrace::new();
    for ((pid, name), seen) in [(0, "node A"), (1, "node \"B\"")].into_iter().zip(&seen) {
        trace.add_device(pid, name, seen.lock().iter());
    }
    let json = trace.to_json();
    let Ok(Value::Array(events)) = serde_json::from_str(&json) else { panic!("{json}") };
    let of_kind = |ph| events.iter().filter(move |event| event["ph"] == ph);
    let all = seen.iter().map(|seen| seen.lock().len()).sum::<usize>();
    assert_eq!((of_kind("i").count(), of_kind("i").count() + of_kind("M").count()), (all, events.len()));
    let names = |what| of_kind("M").filter(move |event| event["name"] == what);
    let processes: Vec<_> = names("process_name").map(|event| (&event["pid"], &event["args"]["name"])).collect();
    assert_eq!(processes, [(&Value::from(0), &Value::from("node A")), (&Value::from(1), &Value::from("node \"B\""))]);
    for event in of_kind("i") {
        let (pid, tid) = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
        assert!(names("thread_name").any(|name| name["pid"] == pid && name["tid"] == tid), "{event}");
        assert!(event["s"] == "t" && event["name"].is_string() && event["args"]["what"].is_string(), "{event}");
    }
    let first = of_kind("i").next().unwrap();
    assert_eq!(
        (&first["name"], &first["args"]["what"]),
        (&Value::from("doorbell"), &Value::from(format!("doorbell of QP {} ← 1: 1 WQE", world.hosts[A].qp.qpn())))
    );
    // Microseconds.
    let times: Vec<f64> =
        of_kind("i").filter(|event| event["pid"] == 0).map(|event| event["ts"].as_f64().unwrap()).collect();
    let expected: Vec<f64> = seen[0].lock().iter().map(|event| event.at.as_nanos() as f64 / 1000.0).collect();
    assert_eq!(times, expected);
}
