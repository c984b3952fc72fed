//! Memory that program and device access at once, each kind of it in its own way. These tests are small enough for
//! Miri, and made for it and for the thread sanitizer: `cargo xtask miri`, `cargo xtask sanitize`.

use efa_direct::*;
use std::thread;
use std::time::{Duration, Instant};

/// Under Miri time passes with what is executed.
const PATIENCE: Duration = Duration::from_secs(if cfg!(miri) { 3000 } else { 10 });
/// Operations of each test.
const COUNT: u64 = if cfg!(miri) { 3 } else { 200 };

/// A queue pair, and what belongs to it.
struct Node {
    pd: ProtectionDomain,
    sq: CpuSendQueue<8>,
    rq: CpuRecvQueue,
    cq: CpuCompletionQueue,
    counter: CompletionCounter,
    endpoint: Endpoint,
}

impl Node {
    fn new(index: u32) -> Self {
        let device = Device::open(&format!("soft{index}")).unwrap();
        let pd = device.alloc_pd().unwrap();
        let cq = device.create_cq(CqConfig::new(4)).unwrap();
        let counter = device.create_counter().unwrap();
        let qp = pd.create_qp(&cq, &cq, QpConfig::new(2, 2).recv_bufs(2)).unwrap();
        qp.attach_counter(&counter, CounterOps::RECV | CounterOps::RDMA_WRITE).unwrap();
        let qp = qp.activate(7).unwrap();
        let endpoint = qp.endpoint;
        Self { pd, sq: qp.send.into_cpu(), rq: qp.recv.into_cpu(), cq: cq.into_cpu(), counter, endpoint }
    }
}

/// The next completion, which is a good one.
fn next(cq: &mut CpuCompletionQueue) -> Completion {
    let completion = cq.wait(PATIENCE).expect("it completes");
    assert!(completion.status.is_ok(), "{completion:?}");
    completion
}

/// Two nodes on devices of these numbers, and the first one's address of the second.
fn nodes(first: u32) -> (Node, Node, Peer) {
    let (a, b) = (Node::new(first), Node::new(first + 1));
    let to_b = a.pd.peer(&b.endpoint).unwrap();
    // RDMA needs an address handle on both sides; this one stays.
    std::mem::forget(b.pd.peer(&a.endpoint).unwrap());
    (a, b, to_b)
}

#[test]
fn a_region_may_be_read_and_written_while_a_peer_writes_it() {
    let (mut a, b, to_b) = nodes(70);
    let source = a.pd.allocate(200, Access::LOCAL_READ).unwrap();
    source.write(0, &[9; 200]).unwrap();
    let mut bytes = vec![7; 300];
    b.pd.with_borrowed(&mut bytes, Access::ALL, |region| {
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                for _ in 0..COUNT {
                    let seen = region.read_vec(90..250).unwrap();
                    assert!(seen.iter().all(|byte| [5, 7, 9].contains(byte)), "{seen:?}");
                    region.write(200, &[5; 3]).unwrap();
                    thread::yield_now();
                }
            });
            for id in 0..COUNT {
                let remote = region.remote().slice(100..300).unwrap();
                a.sq.post(&to_b, RdmaWrite::new(source.slice(..).unwrap(), remote), id).unwrap();
                a.sq.ring();
                source.write(3, &[9; 100]).unwrap();
                assert_eq!(next(&mut a.cq).wr_id, id);
            }
            reader.join().unwrap();
        });
        // The device counts once the completion is there.
        let late = Instant::now() + PATIENCE;
        while a.counter.completions() != COUNT && Instant::now() < late {
            thread::yield_now();
        }
        assert_eq!(a.counter.completions(), COUNT);
    })
    .unwrap();
    // They are the caller's own again.
    bytes[100] += 1;
    assert_eq!((bytes[99], bytes[100], bytes[150], bytes[299]), (7, 10, 9, 9));
}

#[test]
fn regions_may_overlap_whoever_writes_them() {
    let (mut a, b, to_b) = nodes(72);
    let source = a.pd.allocate(100, Access::LOCAL_READ).unwrap();
    let mut bytes = vec![0; 150];
    b.pd.with_borrowed(&mut bytes, Access::ALL, |all| {
        let both = [all.remote().slice(..100).unwrap(), all.remote().slice(50..150).unwrap()];
        for id in 0..COUNT {
            for remote in both {
                a.sq.post(&to_b, RdmaWrite::new(source.slice(..).unwrap(), remote), id).unwrap();
            }
            a.sq.ring();
            source.write(0, &[id as u8; 100]).unwrap();
            let _racing = all.read_vec(40..110).unwrap();
            next(&mut a.cq);
            next(&mut a.cq);
        }
    })
    .unwrap();
    assert!(bytes.iter().all(|&byte| u64::from(byte) < COUNT));
}

#[test]
fn sends_are_posted_taken_and_counted_on_two_threads() {
    let (mut a, mut b, to_b) = nodes(74);
    let buffer = b.pd.allocate(64, Access::LOCAL_WRITE).unwrap();
    let counter = b.counter.clone();
    thread::scope(|scope| {
        scope.spawn(|| {
            for id in 0..COUNT {
                b.rq.post(&[buffer.slice(..32).unwrap(), buffer.slice(32..).unwrap()], id).unwrap();
                b.rq.ring();
                assert_eq!(next(&mut b.cq).wr_id, id);
                let text = buffer.read_vec(..5).unwrap();
                assert_eq!((&text[..4], text[4]), (&b"send"[..], id as u8));
            }
        });
        for id in 0..COUNT {
            let text = [b's', b'e', b'n', b'd', id as u8];
            a.sq.post(&to_b, SendInline::new(&text), id).unwrap();
            a.sq.ring();
            assert_eq!(next(&mut a.cq).wr_id, id);
            // One at a time: the buffer is there for one, and messages have no order.
            let start = Instant::now();
            while counter.completions() <= id {
                assert!(start.elapsed() < PATIENCE, "it is counted");
                thread::yield_now();
            }
        }
    });
    assert_eq!((counter.completions(), counter.errors()), (COUNT, 0));
}
