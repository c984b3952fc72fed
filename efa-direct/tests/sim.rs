//! What the simulation promises.

use efa_direct::sim::{Node, NodeConfig, Sim, SimError};
use efa_direct::*;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Two nodes that have met.
fn pair(sim: &mut Sim) -> (Node, Node) {
    let (mut a, mut b) = (sim.node("a").unwrap(), sim.node("b").unwrap());
    a.meet(&mut b).unwrap();
    (a, b)
}

/// All that can be seen of a run on a bad network.
fn story(seed: u64) -> impl PartialEq + std::fmt::Debug {
    let mut sim = Sim::with_seed(seed);
    let jitter = Duration::from_micros(50);
    sim.network(|link| (link.loss, link.duplicate, link.corrupt, link.jitter) = (0.2, 0.2, 0.1, jitter)).unwrap();
    let (mut a, mut b) = pair(&mut sim);
    for i in 0..20 {
        a.write(..30_000).to(&b, i * 1000).unwrap();
        b.read(..30_000).from(&a, i * 1000).unwrap();
    }
    sim.settle().unwrap();
    let completions: Vec<Completion> = a.completions().chain(b.completions()).collect();
    assert_eq!(completions.len(), 40);
    (completions, sim.now(), sim.link_counters(), a.device.counters(), b.device.counters(), a.memory.keys())
}

#[test]
fn one_seed_gives_one_run() {
    assert_eq!(story(7), story(7));
    assert_ne!(story(7), story(8));
}

#[test]
fn time_stands_still_except_where_it_is_to_pass() {
    let mut sim = Sim::with_seed(1);
    let (mut a, b) = pair(&mut sim);
    a.write(..8).to(&b, 0).unwrap();
    assert_eq!((sim.now(), a.cq.poll_one()), (Duration::ZERO, None));
    sim.step(SECOND); // to the first packet's arrival
    assert_eq!(sim.now(), Duration::from_micros(5));
    sim.advance(SECOND);
    assert_eq!(sim.now(), SECOND + Duration::from_micros(5));
    assert!(a.cq.poll_one().is_some());
    assert!(!sim.run_until(SECOND, || false));
    assert_eq!(sim.now(), 2 * SECOND + Duration::from_micros(5));
}

#[test]
fn time_ends() {
    let mut sim = Sim::with_seed(1);
    let (mut a, b) = pair(&mut sim);
    a.write(..8).to(&b, 0).unwrap();
    sim.settle_within(Duration::MAX).unwrap();
    assert!(sim.run_until(Duration::MAX, || a.cq.poll_one().is_some()));
    sim.step(Duration::ZERO);
    sim.advance(Duration::MAX);
    sim.advance(Duration::MAX);
    assert_eq!(sim.now(), Duration::from_nanos(u64::MAX));
    assert!(!sim.run_until(SECOND, || false));
    sim.settle().unwrap();
}

#[test]
fn what_changes_faults_may_look_at_the_simulation() {
    let mut sim = Sim::with_seed(1);
    let (_a, b) = pair(&mut sim);
    sim.network(|link| link.delay += sim.now() + Duration::from_nanos(sim.link_counters().packets)).unwrap();
    sim.faults("b", |faults| faults.wqe_time = Duration::from_nanos(b.device.counters().rx_pkts)).unwrap();
}

#[test]
fn settling_ends_once_nothing_is_under_way() {
    let mut sim = Sim::with_seed(1);
    let (mut a, b) = pair(&mut sim);
    sim.settle().unwrap();
    assert_eq!(sim.now(), Duration::ZERO, "nobody has begun anything");
    a.write(..100_000).to(&b, 0).unwrap();
    sim.settle().unwrap();
    let settled = sim.now();
    assert!(settled < SECOND, "{settled:?}");
    assert!(sim.completion(&mut a.cq).unwrap().status.is_ok());
    sim.settle().unwrap();
    assert_eq!(sim.now(), settled, "completions were there already");
}

#[test]
fn what_does_not_settle_is_an_error_and_may_settle_later() {
    let mut sim = Sim::with_seed(1);
    let (mut a, mut b) = pair(&mut sim);
    a.send_inline(b"hello").to(&b).unwrap();
    let refused = sim.settle_within(SECOND).unwrap_err();
    assert!(matches!(refused, SimError::NotSettled { after: SECOND }), "{refused}");
    assert!(refused.to_string().contains("waits for a receive"), "{refused}");
    assert_eq!((sim.now(), a.cq.poll_one()), (SECOND, None));
    b.receive(..5).unwrap();
    sim.settle().unwrap();
    assert_eq!(b.memory.read_vec(..5).unwrap(), b"hello");
}

#[test]
fn a_completion_that_nothing_can_bring_is_an_error_at_once() {
    let mut sim = Sim::with_seed(1);
    let (mut a, b) = pair(&mut sim);
    a.post(&b, SendInline::new(b"x"), 1).unwrap();
    let refused = sim.completion(&mut a.cq).unwrap_err(); // nobody has rung
    assert!(matches!(refused, SimError::NoCompletion { after } if after < SECOND), "{refused}");
}

#[test]
fn verbs_name_the_node_and_the_bytes() {
    let mut sim = Sim::with_seed(1);
    let (mut a, mut b) = pair(&mut sim);
    a.memory.write(0, b"one two three").unwrap();
    for _ in 0..2 {
        b.receive(200..300).unwrap();
    }
    let ids = [
        a.write(0..3).to(&b, 100).unwrap(),
        a.write(4..7).imm(5).to(&b, 110).unwrap(),
        a.read(50..60).from(&b, 95).unwrap(),
        a.send(8..).to(&b).map_or_else(|_| a.send(8..13).imm(6).to(&b).unwrap(), |_| panic!("a send of a megabyte")),
    ];
    assert_eq!(ids, [0, 1, 2, 3], "a request that was refused takes no number");
    sim.settle().unwrap();
    assert!(a.completions().all(|done| done.status.is_ok()));
    let mut imms: Vec<_> = b
        .completions()
        .map(|done| match done.kind {
            CompletionKind::Receive(received) => (received.imm, received.length),
            CompletionKind::Send(_) => panic!("{done:?}"),
        })
        .collect();
    imms.sort();
    assert_eq!(imms, [(Some(5), 3), (Some(6), 5)]);
    assert_eq!(b.memory.read_vec(100..113).unwrap(), b"one\0\0\0\0\0\0\0two");
    assert_eq!(b.memory.read_vec(200..205).unwrap(), b"three");
}

#[test]
fn nodes_that_have_not_met_say_so() {
    let mut sim = Sim::with_seed(1);
    let (mut a, b) = (sim.node("a").unwrap(), sim.node("b").unwrap());
    let refused = a.write(..8).to(&b, 0).unwrap_err().to_string();
    assert!(refused.starts_with("a has not met b"), "{refused}");
    a.learn(b.endpoint).unwrap(); // which is not mutual
    a.write(..8).to(&b, 0).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::RemoteUnknownPeer);
}

#[test]
fn the_next_life_of_a_node_has_its_address_and_nothing_else() {
    let mut sim = Sim::with_seed(1);
    let (mut a, b) = pair(&mut sim);
    a.write(..8).to(&b, 0).unwrap();
    sim.settle().unwrap();
    let taken = sim.node("b").unwrap_err();
    assert!(matches!(&taken, Error::Sim(SimError::NameTaken { name }) if name == "b"), "{taken}");
    sim.kill("b").unwrap();
    assert!(matches!(sim.kill("b"), Err(SimError::NoSuchNode { .. })));
    assert!(matches!(sim.faults("b", |_| ()), Err(SimError::NoSuchNode { .. })));

    let mut again = sim.node("b").unwrap();
    assert_eq!(again.endpoint.gid, b.endpoint.gid);
    assert!(b.device.alloc_pd().is_err(), "the dead stay dead");
    drop(b); // what it had is not taken from its next life
    a.meet(&mut again).unwrap();
    again.write(..8).to(&a, 0).unwrap();
    assert_eq!(sim.completion(&mut again.cq).unwrap().status, Status::Ok);
}

#[test]
fn what_cannot_be_simulated_is_refused_and_changes_nothing() {
    let mut sim = Sim::with_seed(1);
    for loss in [-0.1, 1.1, f64::NAN] {
        let refused = sim.network(|link| (link.loss, link.cut) = (loss, true)).unwrap_err();
        assert!(matches!(refused, SimError::Share { what: "loss", .. }), "{refused}");
    }
    let refused = sim.device("a", |config| config.attributes.mtu = 1).unwrap_err();
    assert!(matches!(refused, Error::Setup(SetupError::Control(ControlError::Invalid { .. }))), "{refused}");
    let small = NodeConfig { cq: CqConfig::new(16), ..NodeConfig::default() };
    assert!(sim.node_with("b", small).unwrap_err().to_string().contains("make it larger"));

    let (mut a, b) = pair(&mut sim);
    a.write(..8).to(&b, 0).unwrap();
    assert_eq!(sim.completion(&mut a.cq).unwrap().status, Status::Ok);
}

#[test]
fn a_slow_receiver_takes_its_time() {
    let mut sim = Sim::with_seed(1);
    let (mut a, b) = pair(&mut sim);
    sim.faults("b", |faults| faults.rx_rate = Some(1_000_000)).unwrap();
    a.write(..500_000).to(&b, 0).unwrap();
    assert!(sim.completion(&mut a.cq).unwrap().status.is_ok());
    assert!(sim.now() > SECOND / 4, "half a megabyte at a megabyte a second: {:?}", sim.now());
}

#[test]
fn a_test_without_faults_runs_on_devices_that_exist() {
    let mut sim = Sim::on_devices(["soft80", "soft81"]);
    let (mut a, mut b) = pair(&mut sim);
    a.memory.write(0, b"hello").unwrap();
    b.receive(..0).unwrap();
    a.write(..5).imm(1).to(&b, 100).unwrap();
    assert!(sim.completion(&mut a.cq).unwrap().status.is_ok());
    assert!(sim.run_until(10 * SECOND, || b.cq.poll_one().is_some()));
    assert_eq!(b.memory.read_vec(100..105).unwrap(), b"hello");
    let before = sim.now();
    sim.advance(Duration::from_millis(1));
    assert!(sim.now() - before >= Duration::from_millis(1));
    for refused in [sim.kill("a"), sim.network(|link| link.loss = 0.5), sim.faults("a", |_| ()), sim.settle()] {
        assert!(matches!(refused, Err(SimError::NotSimulated { .. })));
    }
    assert!(Sim::on_devices(["none"]).node("a").unwrap_err().to_string().contains("there is no device \"none\""));
}

#[test]
fn requests_on_a_port_that_is_down_settle() {
    let mut sim = Sim::with_seed(1);
    let qp = QpConfig::new(4, 4).unreliable();
    let mut unreliable = sim.node_with("u", NodeConfig { qp, ..NodeConfig::default() }).unwrap();
    let (mut a, b) = pair(&mut sim);
    unreliable.learn(b.endpoint).unwrap();
    for node in [&a, &unreliable] {
        assert!(node.device.soft_device().unwrap().with(&mut |device| device.set_port(false)));
    }
    a.write(..8).to(&b, 0).unwrap();
    unreliable.send_inline(b"hello").to(&b).unwrap();
    sim.settle().unwrap();
    assert_eq!(a.cq.poll_one().map(|done| done.status), Some(Status::UnreachableRemote));
    assert_eq!(unreliable.cq.poll_one().map(|done| done.status), Some(Status::Ok), "it has left, for nowhere");
}
