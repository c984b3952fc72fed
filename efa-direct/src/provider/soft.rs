//! The provider of software devices, in this process or over UDP.
//!
//! Names: `soft0`, `soft1`, … are devices on a network inside this process. `soft:KEY=VALUE,…` is a device of its own
//! over UDP, with the keys of [`SoftSpec`].

use super::{
    CounterWord, EventSource, HostRange, Provider, RawCounter, RawCq, RawExternalCq, RawQp, Registration, ring_size,
};
use crate::error::{OpenError, SetupError};
use crate::external::{DmabufRange, ExternalMemory};
use crate::provider::DeviceInfo;
use crate::ring::RawRing;
use efa_io::Limits;
use efa_memory::{Backing, DoorbellMemory, HostMemory, RingMemory};
use efa_soft::driver::{DeviceHandle, EventFd, IdleMode, LocalNetwork, SoftSpec};
use efa_soft::{CounterPlace, Device, DeviceConfig, LinkConfig, LinkCounters, WqInfo};
use efa_types::{
    Access, AsyncEvent, ControlError, CounterOps, CounterValue, CqAttributes, DeviceAttributes, Gid, QpAttributes,
    QpState, Transport,
};
use parking_lot::{Mutex, RwLock};
use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// Number of in-process devices that [`list`] shows. Any number can be opened.
const LISTED_DEVICES: u32 = 4;

/// Returns the software devices that can be opened by name.
pub(crate) fn list() -> Vec<DeviceInfo> {
    let local = (0..LISTED_DEVICES).map(|i| DeviceInfo {
        name: format!("soft{i}"),
        description: "software device on the network inside this process (any number)".into(),
        missing: Vec::new(),
        usable: true,
    });
    let udp = DeviceInfo {
        name: "soft:udp=127.0.0.1:0".into(),
        description: "software device over UDP (and faults, limits and more: see `SoftSpec`)".into(),
        missing: Vec::new(),
        usable: true,
    };
    local.chain([udp]).collect()
}

/// Opens a software device. Returns `None` if this is not the name of one.
pub(crate) fn open(name: &str) -> Option<Result<Arc<dyn Provider>, OpenError>> {
    let rest = name.strip_prefix("soft")?;
    let invalid = |problem: String| OpenError::InvalidName { name: name.into(), problem };
    Some(if let Some(spec) = rest.strip_prefix(':') {
        spec.parse().map_err(invalid).and_then(|spec| open_udp(name, &spec))
    } else {
        let index = rest.parse().map_err(|_| invalid("expected soft0, soft1, … or soft:KEY=VALUE,…".into()));
        index.and_then(|index| open_local(name, index))
    })
}

fn open_local(name: &str, index: u32) -> Result<Arc<dyn Provider>, OpenError> {
    static NETWORK: OnceLock<Result<LocalNetwork, String>> = OnceLock::new();
    static OPEN: Mutex<Option<HashMap<u32, Weak<Soft>>>> = Mutex::new(None);
    let network = NETWORK
        .get_or_init(|| LocalNetwork::start(LinkConfig::default(), IdleMode::default()).map_err(|e| e.to_string()));
    let network = network.as_ref().map_err(|problem| cannot_start(name, io::Error::other(problem.clone())))?;
    let mut open = OPEN.lock();
    let open = open.get_or_insert_default();
    if let Some(soft) = open.get(&index).and_then(Weak::upgrade) {
        return Ok(soft);
    }
    static INCARNATIONS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let incarnation = INCARNATIONS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let config = DeviceConfig { incarnation, seed: index.into(), ..DeviceConfig::new(Gid::local(index)) };
    let soft = Arc::new(Soft::new(name, network.add(config))?);
    open.insert(index, Arc::downgrade(&soft));
    Ok(soft)
}

fn cannot_start(name: &str, source: io::Error) -> OpenError {
    OpenError::CannotStart { name: name.into(), source }
}

fn open_udp(name: &str, spec: &SoftSpec) -> Result<Arc<dyn Provider>, OpenError> {
    let udp = spec.start(false).map_err(|error| cannot_start(name, error))?;
    Ok(Arc::new(Soft::new(name, Arc::new(udp))?))
}

const NO_COUNTER_PAGE: ControlError = ControlError::NoMemory { what: "a page of completion counters", bytes: 4096 };

/// A software device, which some driver runs.
pub(crate) struct Soft {
    name: String,
    handle: Arc<dyn DeviceHandle>,
    attributes: DeviceAttributes,
}

impl Soft {
    pub(crate) fn new(name: &str, handle: Arc<dyn DeviceHandle>) -> Result<Self, OpenError> {
        let mut config = None;
        handle.with(&mut |device| config = Some(device.config().clone()));
        let config = config.ok_or_else(|| cannot_start(name, io::Error::other("its driver has ended")))?;
        Ok(Self { name: name.into(), handle, attributes: config.attributes })
    }

    /// Calls `f` with the device.
    ///
    /// # Errors
    /// The device refused, or its driver has ended.
    fn call<T>(&self, f: impl FnOnce(&mut Device) -> Result<T, ControlError>) -> Result<T, SetupError> {
        let (mut f, mut answer) = (Some(f), Err(ControlError::DeviceGone));
        self.handle.with(&mut |device| {
            if let Some(f) = f.take() {
                answer = f(device);
            }
        });
        answer.map_err(SetupError::Control)
    }

    /// Registers memory that this provider can take back from the device.
    fn register_revocable(
        &self,
        pd: u32,
        memory: Arc<Revocable>,
        addr: u64,
        access: Access,
    ) -> Result<Registration, SetupError> {
        // The device may have the memory already when the call fails or unwinds.
        let revoke = RevokeOnDrop(&memory);
        let keys = self.call(|device| device.register(pd, memory.clone(), addr, access))?;
        std::mem::forget(revoke);
        Ok(Registration { keys, token: Some(memory) })
    }

    fn destroy(&self, what: &'static str, f: impl FnOnce(&mut Device) -> Result<(), ControlError>) {
        if let Err(error) = self.call(f) {
            tracing::error!(%error, what, "the device refused to destroy an object");
        }
    }
}

/// Returns the ring that begins `offset` bytes into `ring`.
fn raw_ring(
    ring: &Arc<RingMemory>,
    offset: usize,
    doorbell: Option<(&Arc<DoorbellMemory>, usize)>,
    entries: u32,
    entry_size: u32,
) -> Result<RawRing, SetupError> {
    let base = NonNull::new(ring.as_ptr().wrapping_add(offset))
        .ok_or(ControlError::NoMemory { what: "a ring", bytes: ring.len() })?;
    let register = doorbell.and_then(|(page, offset)| NonNull::new(page.as_ptr().wrapping_add(offset).cast()));
    let owner = (ring.clone(), doorbell.map(|(page, _)| page.clone()));
    // SAFETY: the device made the ring this long, from the start of a page, so every entry is inside the memory and as
    // aligned as it is long. It reports the doorbell's place in its page. `owner` keeps both alive. `RingMemory` is
    // accessed only as 64-bit atomics and `DoorbellMemory` only as 32-bit ones, by the device and by all safe code.
    Ok(unsafe { RawRing::new(base, register, ring_size(entries)?, entry_size as usize, false, Arc::new(owner)) })
}

fn raw_wq(wq: &WqInfo) -> Result<RawRing, SetupError> {
    raw_ring(&wq.ring, 0, Some((&wq.doorbell, wq.doorbell_offset)), wq.entries, wq.entry_size)
}

/// Registered memory that the provider can take back, because it is only borrowed, or belongs to somebody else. Taking
/// it back must not depend on the device: safe code can reach the device ([`DeviceHandle::with`]) and keep it.
struct Revocable {
    len: usize,
    memory: RwLock<Option<Arc<dyn Backing>>>,
    /// What keeps the memory alive until it is revoked.
    owner: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
}

impl Revocable {
    fn new(memory: Arc<dyn Backing>, owner: Option<Arc<dyn Any + Send + Sync>>) -> Arc<Self> {
        Arc::new(Self { len: memory.len(), memory: RwLock::new(Some(memory)), owner: Mutex::new(owner) })
    }

    /// Takes the memory back. After this nobody can access the bytes; an access that is under way ends first.
    fn revoke(&self) {
        // Dropped outside the locks: the drop may run any code, and may unwind.
        let memory = self.memory.write().take();
        let owner = self.owner.lock().take();
        drop((memory, owner));
    }
}

/// Revokes memory when dropped, also by unwinding: anybody's code may run behind a [`DeviceHandle`], or listen to
/// `tracing`.
struct RevokeOnDrop<'r>(&'r Revocable);

impl Drop for RevokeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.revoke();
    }
}

impl Backing for Revocable {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        self.memory.read_recursive().as_ref().is_some_and(|memory| memory.read(offset, dst))
    }

    fn write(&self, offset: usize, src: &[u8]) -> bool {
        self.memory.read_recursive().as_ref().is_some_and(|memory| memory.write(offset, src))
    }

    fn lend(&self, f: &mut dyn FnMut(&HostMemory)) -> bool {
        // Recursive, because source and target of a copy may be the same region.
        self.memory.read_recursive().as_ref().is_some_and(|memory| memory.lend(f))
    }
}

/// The events of a completion queue of a software device.
struct SoftEvents {
    fd: Arc<EventFd>,
    handle: Weak<dyn DeviceHandle>,
    cqn: u32,
}

impl EventSource for SoftEvents {
    fn wait(&self, timeout: Duration) -> std::io::Result<bool> {
        self.fd.wait(timeout)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SoftEvents {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.upgrade() {
            let _ = handle.set_waker(self.cqn, None); // a waker was set, so it can be removed
        }
    }
}

// SAFETY: the device's `HostMemory` keeps the owner of owned bytes alive. All other bytes are `Revocable`. A
// `RevokeOnDrop` takes them from the device when `deregister` ends, and when `register_revocable` ends without success,
// whether they return or unwind. Then no access is under way, since accesses hold the lock that revoking takes.
unsafe impl Provider for Soft {
    fn name(&self) -> &str {
        &self.name
    }

    fn attributes(&self) -> &DeviceAttributes {
        &self.attributes
    }

    fn alloc_pd(&self) -> Result<u32, SetupError> {
        self.call(Device::alloc_pd)
    }

    fn dealloc_pd(&self, pd: u32) {
        self.destroy("protection domain", |device| device.dealloc_pd(pd));
    }

    fn register(&self, pd: u32, range: HostRange, access: Access) -> Result<Registration, SetupError> {
        let addr = range.ptr.as_ptr() as u64;
        let (len, owned) = (range.len, range.owner.is_some());
        // SAFETY: `HostRange` promises that the bytes are valid until they are deregistered: owned ones live as long as
        // their owner, which this value keeps, and borrowed ones until `deregister`, which drops this value.
        // `region.rs` accesses them as atomic bytes and gives out no reference to them.
        let memory = unsafe { HostMemory::from_raw(range.ptr, len, range.owner) };
        if owned {
            let keys = self.call(|device| device.register(pd, Arc::new(memory), addr, access))?;
            return Ok(Registration { keys, token: None });
        }
        self.register_revocable(pd, Revocable::new(Arc::new(memory), None), addr, access)
    }

    fn register_external(
        &self,
        pd: u32,
        memory: ExternalMemory<'_>,
        access: Access,
    ) -> Result<Registration, SetupError> {
        let backing = memory.backing().ok_or(ControlError::Unsupported(
            "the registration of memory that its CPU cannot access: give it a way with `ExternalMemory::backed_by`",
        ))?;
        if backing.len() as u64 != memory.len() {
            let (what, expected) = ("the backing's length in bytes", "the memory's length");
            return Err(ControlError::Invalid { what, value: backing.len() as u64, expected }.into());
        }
        self.register_revocable(pd, Revocable::new(backing, memory.owner()), memory.addr(), access)
    }

    fn deregister(&self, registration: &Registration) {
        let revocable = registration.token.as_ref().and_then(|token| token.downcast_ref::<Revocable>());
        let _revoke = revocable.map(RevokeOnDrop); // whatever happens to the call, and to the device
        self.destroy("memory region", |device| device.deregister(registration.keys.lkey));
    }

    fn create_cq(&self, request: CqAttributes) -> Result<RawCq, SetupError> {
        let cq = self.call(|device| device.create_cq(request))?;
        let complete = || {
            let doorbell = cq.doorbell.as_ref().map(|page| (page, 0));
            let sub_bytes = cq.entries as usize * cq.entry_size as usize;
            let rings = (0..usize::from(cq.sub_queues))
                .map(|sub| raw_ring(&cq.ring, sub * sub_bytes, doorbell, cq.entries, cq.entry_size))
                .collect::<Result<_, _>>()?;
            let mut events = None;
            if request.events {
                let fd = Arc::new(EventFd::new().map_err(SetupError::io("making an event descriptor"))?);
                let signal = fd.clone();
                let waker = self.handle.set_waker(cq.cqn, Some(Arc::new(move || signal.signal())));
                waker.map_err(SetupError::io("asking for events"))?;
                let source = SoftEvents { fd, handle: Arc::downgrade(&self.handle), cqn: cq.cqn };
                events = Some(Box::new(source) as Box<dyn EventSource>);
            }
            Ok(RawCq { cqn: cq.cqn, rings, events })
        };
        complete().inspect_err(|_| self.destroy_cq(cq.cqn))
    }

    fn create_cq_in(
        &self,
        _: CqAttributes,
        _: DmabufRange<'_>,
        _: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<RawExternalCq, SetupError> {
        Err(SetupError::Control(ControlError::Unsupported(
            "completion queues in GPU memory, which its CPU cannot map: choose `CqPlace::PinnedHost`",
        )))
    }

    fn destroy_cq(&self, cqn: u32) {
        self.destroy("completion queue", |device| device.destroy_cq(cqn));
    }

    fn create_qp(&self, request: QpAttributes) -> Result<RawQp, SetupError> {
        let qp = self.call(|device| device.create_qp(request))?;
        let a = &self.attributes;
        let is_srd = request.transport == Transport::Srd;
        let operation = |enabled: bool, bit| if enabled && is_srd { bit } else { 0 };
        let limits = Limits {
            max_send_bytes: a.mtu,
            max_rdma_bytes: a.max_rdma_bytes,
            max_inline_bytes: request.inline_bytes,
            max_send_bufs: a.max_sq_sge.min(2),
            operations: operation(a.rdma_read, Limits::RDMA_READ)
                | operation(a.rdma_write, Limits::RDMA_WRITE)
                | operation(request.inline_write, Limits::INLINE_WRITE),
        };
        Ok(RawQp {
            qpn: qp.qpn,
            // The bits of the number above the place in the device's table change from one queue pair to the next.
            generation: (u32::from(qp.qpn) / a.max_qp.next_power_of_two()) as u16,
            send: raw_wq(&qp.sq)?,
            send_max_batch: qp.sq.max_batch,
            req_id_64: qp.sq.req_id_64,
            recv: raw_wq(&qp.rq)?,
            recv_max_batch: qp.rq.max_batch,
            limits,
        })
    }

    fn activate_qp(&self, qpn: u16, qkey: u32) -> Result<(), SetupError> {
        self.call(|device| {
            device.modify_qp(qpn, QpState::Init, Some(qkey))?;
            device.modify_qp(qpn, QpState::ReadyToReceive, None)?;
            device.modify_qp(qpn, QpState::ReadyToSend, None)
        })
    }

    fn fail_qp(&self, qpn: u16) -> Result<(), SetupError> {
        self.call(|device| device.modify_qp(qpn, QpState::Error, None))
    }

    fn destroy_qp(&self, qpn: u16) {
        self.destroy("queue pair", |device| device.destroy_qp(qpn));
    }

    fn create_ah(&self, pd: u32, gid: Gid) -> Result<u16, SetupError> {
        self.call(|device| device.create_ah(pd, gid))
    }

    fn destroy_ah(&self, pd: u32, ah: u16) {
        self.destroy("address handle", |device| device.destroy_ah(pd, ah));
    }

    fn create_counter(&self) -> Result<RawCounter, SetupError> {
        let page = RingMemory::zeroed(4096).map_err(|_| NO_COUNTER_PAGE)?;
        let place = |offset| CounterPlace::Shared(page.clone(), offset);
        let word = |offset: usize| {
            let word = NonNull::new(page.as_ptr().wrapping_add(offset).cast()).ok_or(NO_COUNTER_PAGE)?;
            // SAFETY: `offset` is 0 or 64, so this is an aligned word inside the page, which the owner keeps alive. A
            // `RingMemory` is accessed only as 64-bit atomics, by the device and by all safe code.
            Ok::<_, SetupError>(unsafe { CounterWord::new(word, Arc::new(page.clone())) })
        };
        // On separate cache lines, since the device writes one while programs poll the other.
        let (completions, errors) = (0, 64);
        let id = self.call(|device| device.create_counter(place(completions), place(errors)))?;
        Ok(RawCounter { id, completions: word(completions)?, errors: word(errors)? })
    }

    fn create_counter_in(
        &self,
        _: BorrowedFd<'_>,
        _: u64,
        _: u64,
        _: Option<Arc<dyn std::any::Any + Send + Sync>>,
    ) -> Result<u32, SetupError> {
        Err(SetupError::Control(ControlError::Unsupported(
            "completion counters in GPU memory, which its CPU cannot map: map one of `Device::create_counter` into the GPU",
        )))
    }

    fn attach_counter(&self, qpn: u16, id: u32, ops: CounterOps) -> Result<(), SetupError> {
        self.call(|device| device.attach_counter(qpn, id, ops))
    }

    fn set_counter(&self, id: u32, which: CounterValue, value: u64) -> Result<(), SetupError> {
        self.call(|device| device.set_counter(id, which, value))
    }

    fn destroy_counter(&self, id: u32) {
        self.destroy("completion counter", |device| device.destroy_counter(id));
    }

    fn next_event(&self) -> Option<AsyncEvent> {
        self.handle.next_event()
    }

    fn orders_gpu_writes(&self) -> bool {
        true
    }

    fn soft_device(&self) -> Option<Arc<dyn DeviceHandle>> {
        Some(self.handle.clone())
    }

    fn counters(&self) -> efa_soft::Counters {
        self.handle.counters()
    }

    fn link_counters(&self) -> Option<LinkCounters> {
        Some(self.handle.link_counters())
    }
}
