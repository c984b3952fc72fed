//! Panics of foreign code on a device's thread, and what becomes of the device and its neighbours.

mod common;

use common::world::*;
use efa_io::*;
use efa_memory::{Backing, HostMemory};
use efa_soft::driver::{DeviceHandle, IdleMode, LocalNetwork, Udp, UdpConfig};
use efa_soft::trace::TraceEvent;
use efa_soft::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

const MOST: Duration = Duration::from_secs(30);

fn soon(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < MOST, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn works(handle: &dyn DeviceHandle) -> bool {
    let mut works = false;
    handle.with(&mut |device| works = device.alloc_pd().is_ok());
    works
}

/// A device, its neighbour if there is one, and the network that drives both.
type Driven = (Arc<dyn DeviceHandle>, Option<Arc<dyn DeviceHandle>>, Option<LocalNetwork>);

/// Returns a device of each driver.
fn devices() -> [Driven; 2] {
    let network = LocalNetwork::start(LinkConfig::default(), IdleMode::Nap).unwrap();
    let [a, b] = [0, 1].map(|index| network.add(DeviceConfig::new(Gid::local(index))));
    let udp = Udp::start(&UdpConfig::default(), DeviceConfig::new).unwrap();
    [(a, Some(b), Some(network)), (Arc::new(udp), None, None)]
}

/// Creates a completion queue with events, and a queue pair that sends.
fn furnish(handle: &dyn DeviceHandle) -> (CqInfo, QpInfo) {
    let mut made = None;
    handle.with(&mut |device| {
        let pd = device.alloc_pd().unwrap();
        let cq = device.create_cq(CqAttributes { entries: 16, entry_size: CqeSize::Large, events: true }).unwrap();
        let qp = device
            .create_qp(QpAttributes {
                transport: Transport::Srd,
                pd,
                send_cq: cq.cqn,
                recv_cq: cq.cqn,
                send_entries: 4,
                recv_entries: 4,
                recv_sge: 1,
                inline_bytes: 0,
                inline_write: false,
                unsolicited_write_recv: false,
                rnr_retry: None,
            })
            .unwrap();
        for state in [QpState::Init, QpState::ReadyToReceive, QpState::ReadyToSend] {
            device.modify_qp(qp.qpn, state, Some(1)).unwrap();
        }
        made = Some((cq, qp));
    });
    made.expect("the device is there")
}

/// Rings the doorbell for a WQE of zeros. It is malformed, and completes with an error on the device's own thread.
fn ring(qp: &QpInfo) {
    qp.sq.doorbell.store_doorbell(qp.sq.doorbell_offset, 1);
}

#[test]
fn a_subscriber_that_panics_is_told_no_more_and_the_device_goes_on() {
    for (handle, neighbour, _network) in devices() {
        let (told, others) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (here, there) = (told.clone(), others.clone());
        let (_, qp) = furnish(&*handle);
        handle.with(&mut |device| {
            let (here, there) = (here.clone(), there.clone());
            device.subscribe(Box::new(move |_: &TraceEvent| {
                here.fetch_add(1, Relaxed);
                panic!("on purpose");
            }));
            device.subscribe(Box::new(move |_: &TraceEvent| {
                there.fetch_add(1, Relaxed);
            }));
        });
        ring(&qp);
        soon("the other subscriber is told everything", || others.load(Relaxed) >= 2);
        assert_eq!(told.load(Relaxed), 1);
        assert!(works(&*handle) && neighbour.is_none_or(|neighbour| works(&*neighbour)));
        assert_eq!(handle.next_event(), Some(AsyncEvent::QpFatal(qp.qpn)));
    }
}

#[test]
fn a_waker_that_panics_is_called_no_more_and_the_device_goes_on() {
    for (handle, neighbour, _network) in devices() {
        let (cq, qp) = furnish(&*handle);
        let called = Arc::new(AtomicBool::new(false));
        let here = called.clone();
        handle
            .set_waker(
                cq.cqn,
                Some(Arc::new(move || {
                    here.store(true, Relaxed);
                    panic!("on purpose");
                })),
            )
            .unwrap();
        let page = cq.doorbell.as_ref().unwrap();
        page.store_doorbell(0, ring::CqDoorbell::arm(0, 0).value());
        ring(&qp);
        soon("it is called", || called.load(Relaxed));
        soon("the device goes on", || handle.next_event().is_some());
        assert!(works(&*handle) && neighbour.is_none_or(|neighbour| works(&*neighbour)));
    }
}

#[test]
fn a_closure_that_panics_harms_neither_its_device_nor_another() {
    for (handle, neighbour, _network) in devices() {
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| handle.with(&mut |_| panic!("on purpose"))));
        assert!(outcome.is_err(), "whoever called it is told");
        assert!(works(&*handle) && neighbour.is_none_or(|neighbour| works(&*neighbour)));
    }
}

/// Memory of any length that panics at every access.
struct Liar(AtomicUsize);

impl Backing for Liar {
    fn len(&self) -> usize {
        self.0.fetch_add(1 << 20, Relaxed)
    }

    fn read(&self, _: usize, _: &mut [u8]) -> bool {
        panic!("on purpose")
    }

    fn write(&self, _: usize, _: &[u8]) -> bool {
        panic!("on purpose")
    }

    fn lend(&self, _: &mut dyn FnMut(&HostMemory)) -> bool {
        panic!("on purpose")
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        panic!("on purpose")
    }
}

#[test]
fn memory_that_panics_fails_its_operations_and_nothing_else() {
    const AT: u64 = 1 << 32;
    let mut world = World::pair();
    let [mine, theirs] = [A, B].map(|host| {
        let (pd, liar) = (world.hosts[host].pd, Arc::new(Liar(4096.into())));
        world.device(host).register(pd, liar, AT, Access::ALL).unwrap()
    });
    let good = world.local(A, 100);
    let bad = LocalBuf { addr: AT, lkey: Lkey::new(mine.lkey).unwrap(), length: 100 };
    let remote = world.remote(B);
    let lie = RemoteBuf { addr: AT, rkey: theirs.rkey };
    let to = world.to(A, B);
    for op in
        [wqe(RdmaWrite::new(good, lie), to), wqe(RdmaRead::new(good, lie), to), wqe(RdmaWrite::new(bad, remote), to)]
    {
        let status: Status = world.status_of::<8>(A, op);
        assert!(!status.is_ok());
        assert_eq!(world.status_of::<8>(A, wqe(RdmaWrite::new(good, remote), to)), Status::Ok);
    }
    let long = LocalBuf { length: 5000, ..good };
    assert_eq!(
        world.status_of::<8>(A, wqe(RdmaWrite::new(long, lie), to)),
        Status::RemoteBadAddress,
        "it stays as long as it was when it was registered"
    );
    for (host, keys) in [(A, mine), (B, theirs)] {
        world.device(host).deregister(keys.lkey).unwrap();
    }
    assert_eq!(world.status_of::<8>(A, wqe(RdmaWrite::new(good, remote), to)), Status::Ok);
}

/// A subscriber of the crate `tracing`.
struct Log;

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        TOLD.store(true, Relaxed);
        panic!("on purpose: {}", event.metadata().target());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

static TOLD: AtomicBool = AtomicBool::new(false);

#[test]
fn a_log_that_panics_harms_no_device() {
    tracing::subscriber::set_global_default(Log).unwrap();
    for (handle, neighbour, _network) in devices() {
        let (_, qp) = furnish(&*handle);
        ring(&qp);
        soon("the queue pair fails", || handle.next_event() == Some(AsyncEvent::QpFatal(qp.qpn)));
        assert!(works(&*handle) && neighbour.is_none_or(|neighbour| works(&*neighbour)));
    }
    assert!(TOLD.load(Relaxed));
}
