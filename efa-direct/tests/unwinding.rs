//! Tests that foreign code may panic inside the library: a `DeviceHandle`, a subscriber of `tracing`, a value that is
//! dropped. Memory that was lent returns to its owner in any case.

use efa_direct::*;
use efa_memory::SharedMemory;
use efa_soft::driver::{DeviceHandle, IdleMode, LocalNetwork, Waker};
use efa_soft::{DeviceConfig, LinkConfig};
use std::any::Any;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::Duration;

/// The moments when a port panics.
const NEVER: u8 = 0;
const BEFORE: u8 = 1;
const AFTER: u8 = 2;

/// A port that panics before or after it calls the device.
struct Moody {
    inner: Arc<dyn DeviceHandle>,
    when: AtomicU8,
}

impl DeviceHandle for Moody {
    fn with(&self, f: &mut dyn FnMut(&mut efa_soft::Device)) -> bool {
        assert_ne!(self.when.load(SeqCst), BEFORE, "the port panics");
        let called = self.inner.with(f);
        assert_ne!(self.when.load(SeqCst), AFTER, "the port panics");
        called
    }

    fn set_waker(&self, cqn: u32, waker: Option<Waker>) -> std::io::Result<()> {
        self.inner.set_waker(cqn, waker)
    }

    fn next_event(&self) -> Option<AsyncEvent> {
        self.inner.next_event()
    }

    fn link_counters(&self) -> LinkCounters {
        self.inner.link_counters()
    }

    fn change_link(&self, f: &mut dyn FnMut(&mut LinkConfig)) {
        self.inner.change_link(f);
    }
}

/// A subscriber that panics at every error.
struct Panics;

impl tracing::Subscriber for Panics {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        panic!("errors are fatal in this program")
    }

    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Two nodes: one writes into the other's memory.
struct Nodes {
    _net: LocalNetwork,
    port: Arc<Moody>,
    pd: ProtectionDomain,
    _qp: ActiveQueuePair<8>,
    _peer: Peer,
    writer: Writer,
}

struct Writer {
    pd: ProtectionDomain,
    sq: CpuSendQueue<8>,
    cq: CpuCompletionQueue,
    peer: Peer,
}

impl Nodes {
    fn new() -> Self {
        let net = LocalNetwork::start(LinkConfig::default(), IdleMode::Nap).unwrap();
        let port = Arc::new(Moody { inner: net.add(DeviceConfig::new(Gid::local(1))), when: AtomicU8::new(NEVER) });
        let a = Device::from_soft_device("a", port.clone()).unwrap();
        let b = Device::from_soft_device("b", net.add(DeviceConfig::new(Gid::local(2)))).unwrap();
        let [(pd, qp, _), (writer_pd, writer, cq)] = [a, b].map(|device| {
            let (pd, cq) = (device.alloc_pd().unwrap(), device.create_cq(CqConfig::new(64)).unwrap());
            let qp = pd.create_qp(&cq, &cq, QpConfig::new(8, 1)).unwrap().activate(1).unwrap();
            (pd, qp, cq)
        });
        let (peer, back) = (writer_pd.peer(&qp.endpoint).unwrap(), pd.peer(&writer.endpoint).unwrap());
        let writer = Writer { pd: writer_pd, sq: writer.send.into_cpu(), cq: cq.into_cpu(), peer };
        Self { _net: net, port, pd, _qp: qp, _peer: back, writer }
    }
}

impl Writer {
    /// Writes different bytes to the memory, and returns the status.
    fn write(&mut self, to: RemoteRegion) -> Status {
        let source = self.pd.allocate(to.len as usize, Access::LOCAL_READ).unwrap();
        source.write(0, &vec![0x66; to.len as usize]).unwrap();
        let write = RdmaWrite::new(source.slice(..).unwrap(), to.slice(..).unwrap());
        self.sq.post(&self.peer, write, 1).unwrap();
        self.sq.ring();
        self.cq.wait(Duration::from_secs(20)).expect("the write completes").status
    }
}

#[test]
fn borrowed_bytes_are_their_owners_again_when_a_port_unwinds_instead_of_deregistering() {
    for when in [BEFORE, AFTER] {
        let mut nodes = Nodes::new();
        let (mut bytes, mut remote) = (vec![7; 4096], None);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            nodes.pd.with_borrowed(&mut bytes, Access::ALL, |region| {
                remote = Some(region.remote());
                nodes.port.when.store(when, SeqCst);
            })
        }));
        nodes.port.when.store(NEVER, SeqCst);
        assert!(outcome.is_err());
        assert_eq!(nodes.writer.write(remote.unwrap()), Status::RemoteBadAddress);
        assert!(bytes.iter().all(|&byte| byte == 7));
    }
}

#[test]
fn borrowed_bytes_are_their_owners_again_when_the_log_unwinds_over_a_device_that_refuses() {
    let mut nodes = Nodes::new();
    let mut other = efa_soft::Device::new(DeviceConfig::new(Gid::local(1)));
    let (mut bytes, mut remote) = (vec![7; 4096], None);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        tracing::subscriber::with_default(Panics, || {
            nodes.pd.with_borrowed(&mut bytes, Access::ALL, |region| {
                remote = Some(region.remote());
                nodes.port.with(&mut |device| std::mem::swap(device, &mut other));
            })
        })
    }));
    assert!(outcome.is_err());
    nodes.port.with(&mut |device| std::mem::swap(device, &mut other)); // back again
    assert_eq!(nodes.writer.write(remote.unwrap()), Status::RemoteBadAddress);
    assert!(bytes.iter().all(|&byte| byte == 7));
}

/// Memory with an owner that shows whether the memory is kept.
fn external<'f>(owner: &Arc<()>, null: &'f std::fs::File) -> ExternalMemory<'f> {
    let backing = SharedMemory::zeroed(4096).unwrap();
    let owner: Arc<dyn Any + core::marker::Send + Sync> = Arc::new(owner.clone());
    ExternalMemory::dmabuf(DmabufRange { fd: null.as_fd(), offset: 0, len: 4096 }, 0x1_0000)
        .backed_by(backing)
        .owned_by(owner)
}

#[test]
fn what_a_device_registered_before_its_port_unwound_is_nobodys() {
    let nodes = Nodes::new();
    let (owner, null) = (Arc::new(()), std::fs::File::open("/dev/null").unwrap());
    nodes.port.when.store(AFTER, SeqCst);
    let outcome =
        catch_unwind(AssertUnwindSafe(|| nodes.pd.register_external(external(&owner, &null), Access::ALL).map(drop)));
    nodes.port.when.store(NEVER, SeqCst);
    assert!(outcome.is_err());
    assert_eq!(Arc::strong_count(&owner), 1, "the device does not have it any more");
}

#[test]
fn the_owner_of_external_memory_is_kept_until_it_is_deregistered() {
    let nodes = Nodes::new();
    let (owner, null) = (Arc::new(()), std::fs::File::open("/dev/null").unwrap());
    let region = nodes.pd.register_external(external(&owner, &null), Access::ALL).unwrap();
    assert_eq!(Arc::strong_count(&owner), 2);
    drop(region);
    assert_eq!(Arc::strong_count(&owner), 1);
}
