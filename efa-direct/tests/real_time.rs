//! Tests of devices in real time: with a thread in this process, and over UDP on loopback.

mod common;

use common::open;
use efa_direct::sim::{Node, NodeConfig};
use efa_direct::*;
use std::os::unix::thread::JoinHandleExt;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_wait_ends_at_its_deadline_when_nothing_comes() {
    let device = open(20);
    let mut cq = device.create_cq(CqConfig::new(16).events()).unwrap().into_cpu();
    let start = Instant::now();
    assert!(cq.wait(Duration::from_millis(20)).is_none());
    assert!(!cq.wait_event(Duration::from_millis(20)).unwrap());
    assert!(start.elapsed() >= Duration::from_millis(40));
    assert!(!cq.take_event().unwrap());
    let mut plain = device.create_cq(CqConfig::new(16)).unwrap().into_cpu();
    assert!(matches!(plain.wait_event(Duration::ZERO), Err(EventError::NotEnabled)));
}

#[test]
fn a_sleeper_sleeps_on_when_signals_come_and_ends_at_its_deadline() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: zeros are a valid `sigaction`, and the handler has the right signature and does nothing. No other test
    // uses this signal.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        assert_eq!(libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()), 0);
    }
    let while_ = Duration::from_millis(300);
    for device in [open(23), Device::open("soft:udp=127.0.0.1:0").unwrap()] {
        let mut cq = device.create_cq(CqConfig::new(16).events()).unwrap().into_cpu();
        let sleeper = std::thread::spawn(move || {
            let start = Instant::now();
            (cq.wait_event(while_).unwrap(), start.elapsed())
        });
        while !sleeper.is_finished() {
            // SAFETY: the thread has not been joined yet, so its handle is valid even if the thread has ended.
            unsafe { libc::pthread_kill(sleeper.as_pthread_t(), libc::SIGUSR2) };
            std::thread::sleep(Duration::from_millis(5));
        }
        let (came, after) = sleeper.join().unwrap();
        assert!(!came && after >= while_, "{came} after {after:?}");
    }
}

#[test]
fn the_event_of_a_completion_that_was_polled_already_wakes_nobody() {
    let device = open(24);
    let pd = device.alloc_pd().unwrap();
    let cq = device.create_cq(CqConfig::new(32).events()).unwrap();
    let qp = pd.create_qp(&cq, &cq, QpConfig::new(8, 8)).unwrap().activate(1).unwrap();
    let other = pd.create_qp(&cq, &cq, QpConfig::new(8, 8)).unwrap().activate(2).unwrap();
    let (peer, _known) = (pd.peer(&other.endpoint).unwrap(), pd.peer(&qp.endpoint).unwrap());
    let local = pd.allocate(64, Access::LOCAL_READ).unwrap();
    let remote = pd.allocate(64, Access::REMOTE_WRITE).unwrap();
    let (mut sq, mut cq) = (qp.send.into_cpu(), cq.into_cpu());
    cq.arm().unwrap();
    sq.post(&peer, RdmaWrite::new(local.slice(..).unwrap(), remote.remote().slice(..).unwrap()), 1).unwrap();
    sq.ring();
    assert_eq!(cq.wait(PATIENCE).map(|completion| completion.wr_id), Some(1));
    // The event has arrived or arrives in a moment.
    let (while_, start) = (Duration::from_millis(300), Instant::now());
    assert!(!cq.wait_event(while_).unwrap());
    assert!(start.elapsed() >= while_);
}

#[test]
fn a_sleeper_is_woken_by_every_completion() {
    let (a, b) = (open(21), open(22));
    let (pd_a, pd_b) = (a.alloc_pd().unwrap(), b.alloc_pd().unwrap());
    let cq_a = a.create_cq(CqConfig::new(16)).unwrap();
    let cq_b = b.create_cq(CqConfig::new(16).events()).unwrap();
    let qp_a = pd_a.create_qp(&cq_a, &cq_a, QpConfig::new(8, 8)).unwrap().activate(1).unwrap();
    let qp_b = pd_b.create_qp(&cq_b, &cq_b, QpConfig::new(8, 8)).unwrap().activate(2).unwrap();
    let peer = pd_a.peer(&qp_b.endpoint).unwrap();
    let memory = pd_b.allocate(64, Access::LOCAL_WRITE).unwrap();
    let (mut sq, mut rq) = (qp_a.send.into_cpu(), qp_b.recv.into_cpu());
    let (mut cq_a, mut cq_b) = (cq_a.into_cpu(), cq_b.into_cpu());
    for i in 0..50 {
        rq.post(&[memory.slice(..).unwrap()], i).unwrap();
        rq.ring();
        // Sometimes the message arrives before the sleep, sometimes during it.
        let sender = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(i % 5 * 100));
                sq.post(&peer, SendInline::new(&i.to_le_bytes()), i).unwrap();
                sq.ring();
                cq_a.wait(PATIENCE).unwrap()
            });
            let completion = loop {
                assert!(cq_b.wait_event(PATIENCE).unwrap(), "message {i} woke nobody");
                if let Some(completion) = cq_b.poll_one() {
                    break completion;
                }
            };
            assert_eq!((completion.wr_id, completion.status), (i, Status::Ok));
            sender.join().unwrap()
        });
        assert!(sender.status.is_ok());
    }
    assert!(cq_b.event_fd().is_some());
}

#[test]
fn poster_and_poller_may_be_two_threads() {
    let (a, b) = (open(23), open(24));
    let (pd_a, pd_b) = (a.alloc_pd().unwrap(), b.alloc_pd().unwrap());
    let (cq_a, cq_b) = (a.create_cq(CqConfig::new(64)).unwrap(), b.create_cq(CqConfig::new(64)).unwrap());
    let qp_a = pd_a.create_qp(&cq_a, &cq_a, QpConfig::new(32, 8)).unwrap().activate(1).unwrap();
    let qp_b = pd_b.create_qp(&cq_b, &cq_b, QpConfig::new(8, 8)).unwrap().activate(2).unwrap();
    let peer = pd_a.peer(&qp_b.endpoint).unwrap();
    let _back = pd_b.peer(&qp_a.endpoint).unwrap();
    let source = pd_a.allocate(8, Access::LOCAL_READ).unwrap();
    let target = pd_b.allocate(8, Access::REMOTE_WRITE).unwrap();
    let remote = target.remote();
    let (mut sq, mut cq) = (qp_a.send.into_cpu(), cq_a.into_cpu());
    const COUNT: u64 = 20_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = 0;
            let start = Instant::now();
            while next < COUNT && start.elapsed() < PATIENCE {
                let write = RdmaWrite::new(source.slice(..).unwrap(), remote.slice(..).unwrap());
                match sq.post(&peer, write, next) {
                    Ok(()) => next += 1,
                    Err(PostError::RingFull { .. }) => {
                        sq.ring();
                        std::thread::yield_now();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            sq.ring();
        });
        let mut seen = vec![false; COUNT as usize];
        let mut batch = [Completion::default(); 32];
        let (mut count, start) = (0, Instant::now());
        while count < COUNT as usize && start.elapsed() < PATIENCE {
            let polled = cq.poll(&mut batch);
            for completion in &batch[..polled] {
                assert!(completion.status.is_ok());
                assert!(!std::mem::replace(&mut seen[completion.wr_id as usize], true), "{completion:?} came twice");
            }
            count += polled;
            if polled == 0 {
                std::thread::yield_now();
            }
        }
        assert_eq!(count, COUNT as usize);
    });
}

#[test]
fn every_operation_crosses_udp_with_loss_in_both_directions() {
    let open = |seed| Device::open(&format!("soft:loss=0.1,dup=0.1,jitter=300us,mtu=1024,seed={seed}")).unwrap();
    let (a, b) = (open(1), open(2));
    let (pd_a, pd_b) = (a.alloc_pd().unwrap(), b.alloc_pd().unwrap());
    let (cq_a, cq_b) = (a.create_cq(CqConfig::new(64)).unwrap(), b.create_cq(CqConfig::new(64)).unwrap());
    let qp_a = pd_a.create_qp(&cq_a, &cq_a, QpConfig::new(8, 8).wqe_128()).unwrap().activate(1).unwrap();
    let qp_b = pd_b.create_qp(&cq_b, &cq_b, QpConfig::new(8, 8).wqe_128()).unwrap().activate(2).unwrap();
    let (to_b, _to_a) = (pd_a.peer(&qp_b.endpoint).unwrap(), pd_b.peer(&qp_a.endpoint).unwrap());
    let near = pd_a.allocate(100_000, Access::ALL).unwrap();
    let far = pd_b.allocate(100_000, Access::ALL).unwrap();
    let pattern: Vec<u8> = (0..50_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    near.write(0, &pattern).unwrap();
    let (mut sq, mut rq) = (qp_a.send.into_cpu(), qp_b.recv.into_cpu());
    let (mut cq_a, mut cq_b) = (cq_a.into_cpu(), cq_b.into_cpu());
    rq.post(&[far.slice(60_000..61_000).unwrap()], 1).unwrap();
    rq.post(&[far.slice(61_000..62_000).unwrap()], 2).unwrap();
    rq.ring();
    let remote = far.remote();

    sq.post(&to_b, RdmaWrite::new(near.slice(..50_000).unwrap(), remote.slice(..50_000).unwrap()), 1).unwrap();
    sq.ring();
    assert_eq!(cq_a.wait(PATIENCE).unwrap().status, Status::Ok);
    assert!(far.read_vec(..50_000).unwrap() == pattern);

    let read = RdmaRead::new(near.slice(50_001..99_999).unwrap(), remote.slice(1..49_999).unwrap());
    sq.post(&to_b, read, 2).unwrap();
    sq.post(&to_b, RdmaWriteInline::new(&pattern[..80], remote.slice(99_000..99_080).unwrap()).imm(77), 3).unwrap();
    sq.post(&to_b, Send::new(&[near.slice(10..20).unwrap(), near.slice(30..40).unwrap()]), 4).unwrap();
    sq.ring();
    let mut ids: Vec<u64> = (0..3)
        .map(|_| {
            let completion = cq_a.wait(PATIENCE).unwrap();
            assert!(completion.status.is_ok(), "{completion:?}");
            completion.wr_id
        })
        .collect();
    ids.sort();
    assert_eq!(ids, [2, 3, 4]);
    assert!(near.read_vec(50_001..99_999).unwrap() == pattern[1..49_999]);
    assert_eq!(far.read_vec(99_000..99_080).unwrap(), pattern[..80]);
    for _ in 0..2 {
        let completion = cq_b.wait(PATIENCE).unwrap();
        let CompletionKind::Receive(received) = completion.kind else { panic!("{completion:?}") };
        match received.op {
            OpCode::RdmaWrite => assert_eq!((received.imm, received.length), (Some(77), 80)),
            _ => {
                let at = 60_000 + (completion.wr_id - 1) * 1000;
                assert_eq!(received.length, 20);
                assert_eq!(far.read_vec(at..at + 20).unwrap(), [&pattern[10..20], &pattern[30..40]].concat());
            }
        }
    }
    assert!(a.counters().retrans_pkts + b.counters().retrans_pkts > 0);
}

#[test]
fn a_device_listens_where_peers_can_reach_it() {
    let refused = Device::open("soft:udp=0.0.0.0:0").unwrap_err().to_string();
    assert!(refused.contains("0.0.0.0:0 is no address that peers can reach"), "{refused}");
}

#[test]
fn devices_of_different_mtus_understand_each_other() {
    let open = |mtu| Device::open(&format!("soft:mtu={mtu}")).unwrap();
    let (a, b) = (open(8192), open(128));
    let (pd_a, pd_b) = (a.alloc_pd().unwrap(), b.alloc_pd().unwrap());
    let (cq_a, cq_b) = (a.create_cq(CqConfig::new(64)).unwrap(), b.create_cq(CqConfig::new(64)).unwrap());
    let qp_a = pd_a.create_qp(&cq_a, &cq_a, QpConfig::new(8, 8)).unwrap().activate(1).unwrap();
    let qp_b = pd_b.create_qp(&cq_b, &cq_b, QpConfig::new(8, 8)).unwrap().activate(2).unwrap();
    let (to_b, _to_a) = (pd_a.peer(&qp_b.endpoint).unwrap(), pd_b.peer(&qp_a.endpoint).unwrap());
    let near = pd_a.allocate(65_536, Access::ALL).unwrap();
    let far = pd_b.allocate(65_536, Access::ALL).unwrap();
    near.write(0, &[9; 65_536]).unwrap();
    let (mut sq, mut cq) = (qp_a.send.into_cpu(), cq_a.into_cpu());
    for _ in 0..4 {
        sq.post(&to_b, RdmaWrite::new(near.slice(..).unwrap(), far.remote().slice(..).unwrap()), 1).unwrap();
        sq.post(&to_b, RdmaRead::new(near.slice(..).unwrap(), far.remote().slice(..).unwrap()), 2).unwrap();
    }
    sq.ring();
    for _ in 0..8 {
        assert_eq!(cq.wait(PATIENCE).unwrap().status, Status::Ok);
    }
    assert!(far.read_vec(..).unwrap() == [9; 65_536]);
}

/// Creates two nodes on these devices. The first sends to the second.
fn nodes(devices: [Device; 2], cqs: [CqConfig; 2], qp: QpConfig<8>) -> [Node; 2] {
    let [a, b] = devices;
    let node = |device, cq| Node::new(device, NodeConfig { cq, qp, ..NodeConfig::default() }).unwrap();
    let (mut a, b) = (node(a, cqs[0]), node(b, cqs[1]));
    a.learn(b.endpoint).unwrap();
    [a, b]
}

#[test]
fn what_goes_to_another_subnet_never_arrives_and_nobody_is_told() {
    let config = QpConfig::new(8, 8).unreliable();
    let [mut a, b] = nodes(
        ["soft:subnet=1", "soft:subnet=2"].map(|name| Device::open(name).unwrap()),
        [CqConfig::new(64); 2],
        config,
    );
    a.send_inline(b"hello?").to(&b).unwrap();
    assert_eq!(a.cq.wait(PATIENCE).unwrap().status, Status::Ok, "a datagram completes once it has left");
    assert_eq!((a.device.counters().tx_pkts, b.device.counters().rx_pkts), (1, 0));
}

#[test]
fn an_event_that_was_asked_for_survives_polling() {
    let cqs = [CqConfig::new(16), CqConfig::new(16).events()];
    let [mut a, mut b] = nodes([open(25), open(26)], cqs, QpConfig::new(8, 8));
    let mut send = |b: &mut Node| {
        b.receive(..64).unwrap();
        a.send_inline(b"x").to(b).unwrap();
        assert!(a.cq.wait(PATIENCE).unwrap().status.is_ok());
    };
    for i in 0..20 {
        send(&mut b);
        // The poll writes its position to the register with which the event was just requested.
        b.cq.arm().unwrap();
        assert!(b.cq.poll_one().is_some());
        send(&mut b);
        let start = Instant::now();
        while !b.cq.take_event().unwrap() {
            assert!(start.elapsed() < PATIENCE, "round {i}: no event");
            std::thread::yield_now();
        }
        assert!(b.cq.poll_one().is_some());
        let _ = b.cq.take_event().unwrap(); // one event more than necessary is allowed
    }
}

#[test]
fn completions_of_a_queue_pair_that_is_gone_take_no_room_from_the_next() {
    let config = QpConfig::new(4, 1).unreliable();
    let [a, b] = nodes([open(27), open(28)], [CqConfig::new(16).events(), CqConfig::new(16)], config);
    let Node { device, pd, mut cq, peers, sq, rq, control, .. } = a;
    let peer = &peers[&b.endpoint];
    drop((sq, rq, control));
    for round in 0..8 {
        let qp = pd.create_qp(&cq, &cq, config).unwrap().activate(1).unwrap();
        let mut sq = qp.send.into_cpu();
        let sent_before = device.counters().tx_pkts;
        for i in 0..4 {
            sq.post(peer, SendInline::new(b"x"), i).unwrap();
        }
        sq.ring();
        let start = Instant::now();
        while device.counters().tx_pkts < sent_before + 4 {
            assert!(start.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        if round % 2 == 1 {
            for _ in 0..4 {
                assert!(cq.wait(PATIENCE).unwrap().status.is_ok(), "round {round}");
            }
        }
        // In the other rounds, the queue pair is dropped before anything is polled.
        drop((sq, qp.recv, qp.control));
        assert_eq!(cq.poll_one(), None);
    }
}
