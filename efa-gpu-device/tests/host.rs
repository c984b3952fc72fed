//! Kernels as plain functions on the host: they post to a software device and poll its completions.

use efa_direct::{
    Access, ActiveQueuePair, CompletionQueue as HostCompletionQueue, CqConfig, Device, Peer, ProtectionDomain, QpConfig,
};
use efa_gpu_device::{CompletionQueue, Entry, PostError, ThreadSendQueue};
use efa_io::{Destination, EncodeError, Event, Lkey, LocalBuf, OpCode, RdmaWrite, RemoteBuf};
use std::time::{Duration, Instant};

const ENTRIES: u32 = 16;

struct Side {
    pd: ProtectionDomain,
    cq: HostCompletionQueue,
    qp: ActiveQueuePair<8>,
}

fn side(device: &str, qkey: u32) -> Side {
    let pd = Device::open(device).unwrap().alloc_pd().unwrap();
    let cq = Device::open(device).unwrap().create_cq(CqConfig::new(2 * ENTRIES)).unwrap();
    let qp = pd.create_qp(&cq, &cq, QpConfig::new(ENTRIES, 1)).unwrap().activate(qkey).unwrap();
    Side { pd, cq, qp }
}

/// The next completion.
fn wait(cq: &mut CompletionQueue) -> Entry {
    let start = Instant::now();
    loop {
        if let Some(entry) = cq.poll() {
            return entry;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "no completion");
        std::thread::yield_now();
    }
}

/// Has `post` write word after word into another device's memory, many laps of the ring, and checks every one.
fn writes_arrive(
    devices: [&str; 2],
    run: impl FnOnce(efa_io::SendRingHandle, efa_io::CompletionRingHandle, Destination, &dyn Fn(u64) -> RdmaWrite),
) {
    const WORDS: u64 = 500;
    let [a, b] = [side(devices[0], 1), side(devices[1], 2)];
    let peer: Peer = a.pd.peer(&b.qp.endpoint).unwrap();
    let _back = b.pd.peer(&a.qp.endpoint).unwrap();
    let to = Destination { ah: peer.ah(), qpn: b.qp.endpoint.qpn, qkey: b.qp.endpoint.qkey };
    let source = a.pd.allocate(8 * WORDS as usize, Access::LOCAL_READ).unwrap();
    let target = b.pd.allocate(8 * WORDS as usize, Access::ALL).unwrap();
    let bytes: Vec<u8> = (0..WORDS).flat_map(|i| (i * 0x9e37_79b9).to_le_bytes()).collect();
    source.write(0, &bytes).unwrap();
    let write = |i: u64| {
        let lkey = Lkey::new(source.keys().lkey).unwrap();
        let local = LocalBuf { addr: source.addr() + 8 * i, lkey, length: 8 };
        RdmaWrite::new(local, RemoteBuf { addr: target.addr() + 8 * i, rkey: target.keys().rkey })
    };
    let (send, cq) = (a.qp.send.into_gpu(), a.cq.into_gpu().unwrap());
    run(send.handle(), cq.handle(), to, &write);
    assert!(target.read_vec(..).unwrap() == bytes);
    drop((a.qp.recv, a.qp.control, b.qp.control));
}

#[test]
fn a_thread_posts_over_many_laps_and_is_stopped_where_the_ring_is_full() {
    writes_arrive(["soft70", "soft71"], |ring, cq, to, write| {
        // SAFETY: the queues were handed over to nobody else, and live until this returns.
        let (mut sq, mut cq) =
            unsafe { (ThreadSendQueue::<8>::new(&ring).unwrap(), CompletionQueue::new(&cq).unwrap()) };
        // SAFETY: nothing comes of it.
        assert!(unsafe { ThreadSendQueue::<16>::new(&ring) }.is_none(), "its WQEs have 64 bytes");
        let long = RdmaWrite { local: LocalBuf { length: u32::MAX, ..write(0).local }, ..write(0) };
        let refused = sq.post(to, &long, 0);
        assert!(matches!(refused, Err(PostError::Encode(EncodeError::MessageTooLong { .. }))), "{refused:?}");
        let (mut posted, mut settled) = (0, 0);
        while settled < 500 {
            while posted < 500 && sq.room() > 0 {
                sq.post(to, &write(posted), posted).unwrap();
                posted += 1;
            }
            if posted < 500 {
                assert_eq!(sq.post(to, &write(0), 0), Err(PostError::Full));
            }
            sq.ring();
            let done = wait(&mut cq);
            assert!(done.status().is_ok());
            assert_eq!(done.completion().unwrap().event, Event::Send { op: OpCode::RdmaWrite });
            assert_eq!(sq.release(done), None);
            settled += 1;
        }
        assert_eq!((sq.room(), cq.poll()), (ENTRIES, None));
    });
}

#[test]
fn many_requests_are_placed_together_or_none_of_them() {
    writes_arrive(["soft74", "soft75"], |ring, cq, to, write| {
        // SAFETY: as above.
        let (mut sq, mut cq) =
            unsafe { (ThreadSendQueue::<8>::new(&ring).unwrap(), CompletionQueue::new(&cq).unwrap()) };
        let nothing = sq.post_many(ENTRIES + 1, |i| (to, write(i.into()), 0));
        assert_eq!((nothing, sq.room()), (Err(PostError::Full), ENTRIES));
        for first in (0..500).step_by(10) {
            let request = |i: u32| (to, write(first + u64::from(i)), first + u64::from(i));
            sq.post_many(10, request).unwrap();
            assert_eq!(sq.post_many(10, request), Err(PostError::Full));
            sq.ring();
            for _ in 0..10 {
                assert_eq!(sq.release(wait(&mut cq)), None);
            }
        }
        // One that cannot be ends it, and those before it are as good as posted.
        let long = LocalBuf { length: u32::MAX, ..write(0).local };
        let stopped =
            sq.post_many(4, |i| (to, if i == 2 { RdmaWrite { local: long, ..write(0) } } else { write(i.into()) }, 0));
        assert!(matches!(stopped, Err(PostError::Encode(_))));
        assert_eq!(sq.room(), ENTRIES - 2);
        sq.ring();
        for _ in 0..2 {
            assert_eq!(sq.release(wait(&mut cq)), None);
        }
        assert_eq!(sq.post_many(ENTRIES, |i| (to, write(i.into()), 0)), Ok(()), "all of the ring is there");
        sq.ring();
        for _ in 0..ENTRIES {
            assert_eq!(sq.release(wait(&mut cq)), None);
        }
    });
}
