//! The provider of EFA devices, through libibverbs and libefa.
//!
//! The libraries create the objects and report where their rings are (`efadv_query_qp_wqs`, `efadv_query_cq`). Only
//! this crate posts to these rings and polls them. It never calls the vendor's `ibv_post_send` or `ibv_poll_cq`, which
//! keep counters of their own.

#[cfg(test)]
#[path = "../../../../efa-sys/tests/fake/mod.rs"]
mod fake;
mod hw_counters;
mod list;
mod memory;
mod query;
mod sub_queues;

pub(crate) use list::list;

use super::{
    CounterWord, EventSource, HostRange, Provider, RawCounter, RawCq, RawExternalCq, RawQp, Registration, ring_size,
};
use crate::error::{OpenError, SetupError};
use crate::external::{DmabufRange, ExternalMemory};
use crate::ring::RawRing;
use efa_io::{Cqe16, Limits};
use efa_memory::RingMemory;
use efa_sys::sys::*;
use efa_sys::{
    Ah, AsyncElement, CompChannel, CompCounter, Context, Cq, CqAttr, DeviceList, ExternalRing, Mr, Pd, Qp, QpAttr,
    QpType,
};
use efa_types::{
    Access, AsyncEvent, ControlError, CounterOps, CounterValue, Counters, CqAttributes, DeviceAttributes, Gid,
    QpAttributes, RegionKeys, Transport,
};
use memory::{Bytes, Registered, access_flags};
use parking_lot::Mutex;
use query::DeviceQuery;
use std::any::Any;
use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Opens the EFA device with this name. If the machine has none, the inner error says which devices it has.
pub(crate) fn open(name: &str) -> Result<Result<Arc<dyn Provider>, String>, OpenError> {
    let libraries = match Libraries::get() {
        Ok(libraries) => libraries,
        Err(error) => return Ok(Err(format!("EFA devices cannot be listed: {error}"))),
    };
    let list = DeviceList::get(libraries)?;
    if let Some(device) = list.iter().find(|device| device.name() == name) {
        return Ok(Ok(Arc::new(Verbs::new(name, device.open()?)?)));
    }
    // The list also has devices that libibverbs leaves out, and why.
    let devices = self::list()?;
    let missing =
        |name: &str| devices.iter().find(|device| device.name == name).map(|device| device.missing.join("; "));
    Ok(Err(missing(name).unwrap_or_else(|| {
        let names: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
        if names.is_empty() {
            "this machine has no EFA device".into()
        } else {
            format!("EFA devices here: {}", names.join(", "))
        }
    })))
}

const NO_COUNTER_PAGE: ControlError = ControlError::NoMemory { what: "a page of completion counters", bytes: 4096 };

/// An open EFA device.
pub(crate) struct Verbs {
    name: String,
    query: DeviceQuery,
    attributes: DeviceAttributes,
    /// Number of rings in a completion queue; set when the first one is created.
    sub_queues: OnceLock<u64>,
    // Objects by number. Removing one destroys it, unless another object still uses it.
    pds: Mutex<HashMap<u32, Arc<Pd>>>,
    cqs: Mutex<HashMap<u32, Arc<Cq>>>,
    qps: Mutex<HashMap<u16, QueuePair>>,
    /// Number of queue pairs so far in each place of the device's table.
    generations: Mutex<HashMap<u32, u16>>,
    /// Address handles by domain and number. Handles for one peer device share a number, so there is one for each time
    /// that it was created.
    ahs: Mutex<HashMap<(u32, u16), Vec<Ah>>>,
    counters: Mutex<HashMap<u32, Arc<CompCounter>>>,
    /// The last field, so that it is closed last.
    context: Arc<Context>,
}

/// A queue pair, with the setting that its last change of state needs.
#[derive(Clone)]
struct QueuePair {
    qp: Arc<Qp>,
    rnr_retry: Option<u8>,
}

/// The events of a completion queue of an EFA device.
struct Events(Arc<CompChannel>);

impl EventSource for Events {
    fn wait(&self, timeout: Duration) -> io::Result<bool> {
        self.0.wait(timeout)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
}

/// Returns the error of a call that names an object which does not exist.
fn no_such(kind: &'static str, id: impl Into<u32>) -> SetupError {
    ControlError::NoSuch { kind, id: id.into() }.into()
}

/// Returns the object with this number.
fn lookup<K: Copy + Eq + Hash + Into<u32>, T: Clone>(
    objects: &Mutex<HashMap<K, T>>,
    kind: &'static str,
    id: K,
) -> Result<T, SetupError> {
    objects.lock().get(&id).cloned().ok_or_else(|| no_such(kind, id))
}

/// Removes an object from its table, which destroys it unless another object uses it.
fn remove<K: Eq + Hash + Display, T>(objects: &Mutex<HashMap<K, T>>, kind: &'static str, id: K) {
    // Dropped outside the lock.
    let object = objects.lock().remove(&id);
    if object.is_none() {
        tracing::error!(kind, %id, "an object is destroyed that does not exist");
    }
}

impl Verbs {
    fn new(name: &str, context: Context) -> Result<Self, efa_sys::Error> {
        let query = DeviceQuery::of(&context)?;
        let attributes = query.attributes(&context);
        Ok(Self {
            name: name.into(),
            query,
            attributes,
            sub_queues: OnceLock::new(),
            pds: Mutex::default(),
            cqs: Mutex::default(),
            qps: Mutex::default(),
            generations: Mutex::default(),
            ahs: Mutex::default(),
            counters: Mutex::default(),
            context: Arc::new(context),
        })
    }

    /// Returns `true` if the device has WQEs of 128 bytes.
    fn has_128_byte_wqes(&self) -> bool {
        self.attributes.inline_bytes_ex > 32
    }

    /// Refuses a queue pair that exceeds a limit, as far as the library reports limits (rdma-core 63 and newer). The
    /// vendor's own answer would be `EINVAL`, without numbers.
    fn check_depths(&self, request: &QpAttributes, attr: &QpAttr) -> Result<(), SetupError> {
        let flags = if request.inline_write { EFADV_SQ_DEPTH_ATTR_INLINE_WRITE } else { 0 };
        let (max_send_sge, max_inline_data) = (attr.send_sge, attr.inline_bytes);
        let depth = efadv_sq_depth_attr { flags, max_send_sge, max_inline_data, ..Default::default() };
        if let Ok(max) = self.context.max_sq_depth(depth) {
            ControlError::check_limit("sends", attr.send_wr, max)?;
        }
        ControlError::check_limit("buffers of a receive", attr.recv_sge, self.attributes.max_rq_sge)?;
        match self.context.max_rq_depth(attr.recv_sge) {
            Ok(max) => Ok(ControlError::check_limit("receives", attr.recv_wr, max)?),
            Err(_) => Ok(()),
        }
    }

    /// Refuses access rights that the device does not support.
    fn check_access(&self, access: Access) -> Result<(), SetupError> {
        for (right, can, what) in [
            (Access::REMOTE_WRITE, self.attributes.rdma_write, "RDMA write: register without `Access::REMOTE_WRITE`"),
            (Access::REMOTE_READ, self.attributes.rdma_read, "RDMA read: register without `Access::REMOTE_READ`"),
        ] {
            if access.allows(right) && !can {
                return Err(ControlError::Unsupported(what).into());
            }
        }
        Ok(())
    }

    /// Returns the attributes to pass to libefa.
    fn qp_attr(&self, request: &QpAttributes) -> QpAttr {
        let is_srd = request.transport == Transport::Srd;
        let mut send_ops = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM;
        let mut flags = 0;
        if is_srd && self.attributes.rdma_read {
            send_ops |= IBV_QP_EX_WITH_RDMA_READ;
        }
        if is_srd && self.attributes.rdma_write {
            send_ops |= IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM;
        }
        if request.inline_write && self.has_128_byte_wqes() {
            flags |= EFADV_QP_FLAGS_INLINE_WRITE;
        }
        if request.unsolicited_write_recv {
            flags |= EFADV_QP_FLAGS_UNSOLICITED_WRITE_RECV;
        }
        QpAttr {
            qp_type: if is_srd { QpType::Srd } else { QpType::Ud },
            send_wr: request.send_entries,
            // libefa makes no ring for 0 entries.
            recv_wr: request.recv_entries.max(1),
            send_sge: self.attributes.max_sq_sge.min(2).into(),
            recv_sge: request.recv_sge.max(1).into(),
            inline_bytes: request.inline_bytes.into(),
            send_ops: send_ops.into(),
            flags: flags as u16,
            ..Default::default()
        }
    }
}

/// Returns the registration of a region.
fn registration(mr: Mr, bytes: Bytes) -> Registration {
    let keys = RegionKeys { lkey: mr.lkey(), rkey: mr.rkey() };
    Registration { keys, token: Some(Arc::new(Registered::new(mr, bytes))) }
}

/// Returns a ring of libefa, which lives as long as `owner`.
///
/// # Safety
/// `owner` is a handle of efa-sys. libefa reported that its object has this ring, of so many entries of that size, and
/// this doorbell, which is null if there is none; or `buffer` is that of another ring of the same length in the same
/// mapping. Only the holder of the returned ring posts to it or reads it.
unsafe fn raw_ring(
    buffer: *mut u8,
    doorbell: *mut u32,
    entries: u32,
    entry_size: u32,
    write_combining: bool,
    owner: Arc<dyn Any + Send + Sync>,
) -> Result<RawRing, SetupError> {
    let size = ring_size(entries)?;
    let base = NonNull::new(buffer)
        .ok_or(ControlError::NoMemory { what: "a ring", bytes: entries as usize * entry_size as usize })?;
    // SAFETY: libefa mapped all entries, at the start of a page or behind other rings of whole pages, and the doorbell,
    // a word of a device's register page. It unmaps them when it destroys the object, which the handle does when it is
    // dropped, so they are valid as long as `owner` lives. The library accesses neither, because nobody calls its
    // functions for posting and polling: the caller's promise.
    let ring = unsafe { RawRing::new(base, NonNull::new(doorbell), size, entry_size as usize, write_combining, owner) };
    Ok(ring.with_io_doorbell())
}

// SAFETY: `deregister` takes the region out of its registration and drops it, once (`DeregisterOnDrop`). Either the
// kernel deregisters it, and then the device accesses the bytes no more. Or a guard keeps the bytes from being reused,
// even if logging panics: an owner is kept forever, and borrowed bytes abort the process, so that `deregister` does not
// return.
unsafe impl Provider for Verbs {
    fn name(&self) -> &str {
        &self.name
    }

    fn attributes(&self) -> &DeviceAttributes {
        &self.attributes
    }

    fn alloc_pd(&self) -> Result<u32, SetupError> {
        let pd = Pd::alloc(&self.context)?;
        let id = pd.handle();
        self.pds.lock().insert(id, Arc::new(pd));
        Ok(id)
    }

    fn dealloc_pd(&self, pd: u32) {
        remove(&self.pds, "protection domain", pd);
    }

    fn register(&self, pd: u32, range: HostRange, access: Access) -> Result<Registration, SetupError> {
        self.check_access(access)?;
        let pd = lookup(&self.pds, "protection domain", pd)?;
        let bytes = range.owner().map_or(Bytes::Borrowed, Bytes::Owned);
        // SAFETY: `HostRange` promises that the bytes are allocated until they are deregistered. `DeregisterOnDrop`
        // keeps the owner of owned bytes as long as the region exists, and lets nobody have borrowed bytes back before.
        // `region.rs`, which made the range, gives out no reference to them and copies atomically.
        let mr = unsafe { Mr::register(&pd, range.as_ptr(), range.len(), access_flags(access)) }?;
        Ok(registration(mr, bytes))
    }

    fn register_external(
        &self,
        pd: u32,
        memory: ExternalMemory<'_>,
        access: Access,
    ) -> Result<Registration, SetupError> {
        self.check_access(access)?;
        let pd = lookup(&self.pds, "protection domain", pd)?;
        let bytes = |otherwise| memory.owner().map_or(otherwise, Bytes::Owned);
        let len = memory.len() as usize;
        let by_dmabuf = memory
            .as_dmabuf()
            .map(|range| Mr::register_dmabuf(&pd, range.fd, range.offset, len, memory.addr(), access_flags(access)));
        let refused = match by_dmabuf {
            Ok(Ok(mr)) => return Ok(registration(mr, bytes(Bytes::Kernel))),
            Ok(Err(error)) if !memory.is_by_address() => return Err(error.into()),
            Ok(Err(error)) => error.to_string(),
            Err(reason) => reason.to_string(),
        };
        let by_address = match NonNull::new(memory.addr() as *mut u8).filter(|_| memory.is_by_address()) {
            Some(addr) => {
                // SAFETY: the caller of `ExternalMemory::by_address` promised that the bytes stay allocated until the
                // region is deregistered, and as long as their owner lives. `DeregisterOnDrop` keeps the owner as long
                // as the region exists; without an owner it treats the bytes as borrowed.
                let mr = unsafe { Mr::register(&pd, addr, len, access_flags(access)) };
                mr.map_err(|error| error.to_string())
            }
            None => Err("its owner does not allow it: see `ExternalMemory::by_address`".into()),
        };
        match by_address {
            Ok(mr) => Ok(registration(mr, bytes(Bytes::Borrowed))),
            Err(by_address) => Err(SetupError::ExternalMemory { dmabuf: refused, by_address }),
        }
    }

    fn deregister(&self, registration: &Registration) {
        let registered = registration.token.as_ref().and_then(|token| token.downcast_ref::<Registered>());
        if let Some(registered) = registered {
            registered.deregister();
        }
    }

    fn create_cq(&self, request: CqAttributes) -> Result<RawCq, SetupError> {
        ControlError::check_limit("entries of a completion queue", request.entries, self.attributes.max_cqe)?;
        let channel = if request.events { Some(Arc::new(CompChannel::create(&self.context)?)) } else { None };
        // Enough entries to fill whole pages, even with the smallest entries. Then the length of the mapping shows the
        // number of sub-queues.
        let least = sub_queues::page_bytes() / Cqe16::SIZE as u64;
        let entries = request.entries.max(least as u32).min(self.attributes.max_cqe);
        let with_sgid = self.query.has_capability(EFADV_DEVICE_ATTR_CAPS_CQ_WITH_SGID);
        let attr = CqAttr {
            entries,
            channel: channel.as_ref(),
            efa_wc_flags: if with_sgid { EFADV_WC_EX_WITH_SGID.into() } else { 0 },
            ..CqAttr::default()
        };
        // Locked before the first queue is created, so that `count` looks at it before another one exists.
        let mut cqs = self.cqs.lock();
        let cq = Arc::new(Cq::create(&self.context, &attr)?);
        let ring = cq.query()?;
        let ring_bytes = u64::from(ring.num_entries) * u64::from(ring.entry_size);
        let count = *self.sub_queues.get_or_init(|| sub_queues::count(ring.buffer as u64, ring_bytes));
        let rings = (0..count).map(|sub| {
            let buffer = ring.buffer.wrapping_add((sub * ring_bytes) as usize);
            // SAFETY: `query` reported the first ring. `count` found this many in its mapping, one behind the other,
            // when the device's first queue was created, of whole pages; all queues of a device have as many, and rings
            // of whole pages. Nobody polls through libefa: the table, which is the only other holder of the queue, only
            // destroys it.
            unsafe { raw_ring(buffer, ring.doorbell, ring.num_entries, ring.entry_size, false, cq.clone()) }
        });
        let rings = rings.collect::<Result<_, _>>()?;
        let cqn = cq.handle();
        cqs.insert(cqn, cq);
        Ok(RawCq { cqn, rings, events: channel.map(|channel| Box::new(Events(channel)) as Box<dyn EventSource>) })
    }

    fn create_cq_in(
        &self,
        request: CqAttributes,
        memory: DmabufRange<'_>,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<RawExternalCq, SetupError> {
        if !self.query.has_capability(EFADV_DEVICE_ATTR_CAPS_CQ_WITH_EXT_MEM_DMABUF) {
            return Err(ControlError::Unsupported("completion queues in memory that the CPU cannot access").into());
        }
        if request.events {
            return Err(ControlError::Unsupported(
                "events of completion queues in memory that the CPU cannot access: poll the queue, or use host memory",
            )
            .into());
        }
        ControlError::check_limit("entries of a completion queue", request.entries, self.attributes.max_cqe)?;
        let with_sgid = self.query.has_capability(EFADV_DEVICE_ATTR_CAPS_CQ_WITH_SGID);
        let DmabufRange { fd, offset, len } = memory;
        let attr = CqAttr {
            entries: request.entries,
            efa_wc_flags: if with_sgid { EFADV_WC_EX_WITH_SGID.into() } else { 0 },
            external: Some(ExternalRing { fd, offset, len, buffer: None, owner }),
            ..CqAttr::default()
        };
        let cq = Arc::new(Cq::create(&self.context, &attr)?);
        let ring = cq.query()?;
        let raw = RawExternalCq {
            cqn: cq.handle(),
            size: ring_size(ring.num_entries)?,
            entry_size: ring.entry_size as usize,
        };
        self.cqs.lock().insert(raw.cqn, cq);
        Ok(raw)
    }

    fn destroy_cq(&self, cqn: u32) {
        remove(&self.cqs, "completion queue", cqn);
    }

    fn create_qp(&self, request: QpAttributes) -> Result<RawQp, SetupError> {
        let attr = self.qp_attr(&request);
        self.check_depths(&request, &attr)?;
        if request.rnr_retry.is_some() && !self.query.has_capability(EFADV_DEVICE_ATTR_CAPS_RNR_RETRY) {
            return Err(ControlError::Unsupported(
                "a limit of retries to a receiver that is not ready: leave out `QpConfig::rnr_retry`",
            )
            .into());
        }
        let pd = lookup(&self.pds, "protection domain", request.pd)?;
        let send_cq = lookup(&self.cqs, "completion queue", request.send_cq)?;
        let recv_cq = lookup(&self.cqs, "completion queue", request.recv_cq)?;
        let qp = Arc::new(Qp::create(&pd, &send_cq, &recv_cq, &attr)?);
        let number = qp.number();
        let qpn = u16::try_from(number).map_err(|_| ControlError::Invalid {
            what: "queue pair number reported by the device",
            value: number.into(),
            expected: "16 bits",
        })?;
        let (sq, rq) = qp.query_wqs()?;
        // SAFETY: `query_wqs` reported both rings. Nobody posts through libefa: the table, which is the only other
        // holder of the queue pair, only changes its state and destroys it.
        let (send, recv) = unsafe {
            (
                raw_ring(sq.buffer, sq.doorbell, sq.num_entries, sq.entry_size, true, qp.clone())?,
                raw_ring(rq.buffer, rq.doorbell, rq.num_entries, rq.entry_size, false, qp.clone())?,
            )
        };
        let generation = {
            let mut generations = self.generations.lock();
            let generation = generations.entry(number & (self.attributes.max_qp.next_power_of_two() - 1)).or_default();
            *generation = generation.wrapping_add(1);
            *generation
        };
        self.qps.lock().insert(qpn, QueuePair { qp, rnr_retry: request.rnr_retry });
        let has = |operation: u32, bit| if attr.send_ops & u64::from(operation) != 0 { bit } else { 0 };
        let inline_write = attr.flags & EFADV_QP_FLAGS_INLINE_WRITE as u16 != 0;
        Ok(RawQp {
            qpn,
            generation,
            send,
            send_max_batch: sq.max_batch,
            req_id_64: u32::from(sq.caps) & EFADV_WQ_CAPS_64_BIT_REQ_ID != 0,
            recv,
            recv_max_batch: rq.max_batch,
            limits: Limits {
                max_send_bytes: self.attributes.mtu,
                max_rdma_bytes: self.attributes.max_rdma_bytes,
                max_inline_bytes: request.inline_bytes,
                max_send_bufs: attr.send_sge as u16,
                operations: has(IBV_QP_EX_WITH_RDMA_READ, Limits::RDMA_READ)
                    | has(IBV_QP_EX_WITH_RDMA_WRITE, Limits::RDMA_WRITE)
                    | if inline_write { Limits::INLINE_WRITE } else { 0 },
            },
        })
    }

    fn activate_qp(&self, qpn: u16, qkey: u32) -> Result<(), SetupError> {
        let QueuePair { qp, rnr_retry } = lookup(&self.qps, "queue pair", qpn)?;
        qp.to_init(qkey)?;
        qp.to_rtr()?;
        Ok(qp.to_rts(rnr_retry)?)
    }

    fn fail_qp(&self, qpn: u16) -> Result<(), SetupError> {
        Ok(lookup(&self.qps, "queue pair", qpn)?.qp.to_error()?)
    }

    fn destroy_qp(&self, qpn: u16) {
        remove(&self.qps, "queue pair", qpn);
    }

    fn create_ah(&self, pd: u32, gid: Gid) -> Result<u16, SetupError> {
        let ah = Ah::create(&lookup(&self.pds, "protection domain", pd)?, gid.0)?;
        let number = ah.number();
        self.ahs.lock().entry((pd, number)).or_default().push(ah);
        Ok(number)
    }

    fn destroy_ah(&self, pd: u32, ah: u16) {
        let mut ahs = self.ahs.lock();
        let Some(handles) = ahs.get_mut(&(pd, ah)) else {
            return tracing::error!(pd, ah, "an address handle is destroyed that does not exist");
        };
        let handle = handles.pop();
        if handles.is_empty() {
            ahs.remove(&(pd, ah));
        }
        drop(ahs);
        drop(handle); // outside the lock
    }

    fn create_counter(&self) -> Result<RawCounter, SetupError> {
        if !self.query.has_capability(EFADV_DEVICE_ATTR_CAPS_COMP_CNTR) {
            return Err(ControlError::Unsupported("completion counters").into());
        }
        let page = RingMemory::zeroed(4096).map_err(|_| NO_COUNTER_PAGE)?;
        // On separate cache lines, since the device writes one while programs poll the other.
        let word = |offset: usize| {
            let word = page.as_ptr().wrapping_add(offset).cast::<u64>();
            NonNull::new(word).ok_or(NO_COUNTER_PAGE)
        };
        let (completions, errors) = (word(0)?, word(64)?);
        // SAFETY: both are aligned words inside the page, at 0 and 64 of 4096 bytes. The counter and the words each
        // hold the page, so it outlives them. This process accesses the words only through `CounterWord`, as
        // `AtomicU64`.
        unsafe {
            let counter = CompCounter::create_at(&self.context, completions, errors, page.clone())?;
            let id = counter.handle();
            self.counters.lock().insert(id, Arc::new(counter));
            Ok(RawCounter {
                id,
                completions: CounterWord::new(completions, page.clone()),
                errors: CounterWord::new(errors, page),
            })
        }
    }

    fn create_counter_in(
        &self,
        fd: BorrowedFd<'_>,
        completions: u64,
        errors: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<u32, SetupError> {
        if !self.query.has_capability(EFADV_DEVICE_ATTR_CAPS_COMP_CNTR) {
            return Err(ControlError::Unsupported("completion counters").into());
        }
        let counter = CompCounter::create_in(&self.context, fd, completions, errors, owner)?;
        let id = counter.handle();
        self.counters.lock().insert(id, Arc::new(counter));
        Ok(id)
    }

    fn attach_counter(&self, qpn: u16, id: u32, ops: CounterOps) -> Result<(), SetupError> {
        let counter = lookup(&self.counters, "completion counter", id)?;
        // `CounterOps` has libibverbs' bits (tested below).
        Ok(lookup(&self.qps, "queue pair", qpn)?.qp.attach_counter(&counter, ops.bits())?)
    }

    fn set_counter(&self, id: u32, which: CounterValue, value: u64) -> Result<(), SetupError> {
        let which = match which {
            CounterValue::Completions => efa_sys::CounterValue::Completions,
            CounterValue::Errors => efa_sys::CounterValue::Errors,
        };
        Ok(lookup(&self.counters, "completion counter", id)?.set(which, value)?)
    }

    fn destroy_counter(&self, id: u32) {
        remove(&self.counters, "completion counter", id);
    }

    fn next_event(&self) -> Option<AsyncEvent> {
        loop {
            let event = self.context.next_async_event();
            let event =
                event.inspect_err(|error| tracing::warn!(%error, "asynchronous events cannot be read")).ok()??;
            match (event.kind, event.element) {
                (IBV_EVENT_CQ_ERR, AsyncElement::Cq(cqn)) => return Some(AsyncEvent::CqError(cqn)),
                (IBV_EVENT_QP_FATAL, AsyncElement::Qp(qpn)) => return Some(AsyncEvent::QpFatal(qpn as u16)),
                (IBV_EVENT_PORT_ACTIVE, _) => return Some(AsyncEvent::PortActive),
                (IBV_EVENT_PORT_ERR, _) => return Some(AsyncEvent::PortError),
                _ => tracing::warn!(?event, "an asynchronous event of an unknown kind"),
            }
        }
    }

    fn counters(&self) -> Counters {
        hw_counters::read(self.context.sysfs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use efa_types::CqeSize;

    /// If one ring were taken for two, the reader would read beyond its end.
    #[test]
    fn a_device_s_first_completion_queue_tells_how_many_rings_all_have_however_small_its_entries_are() {
        for flags in [&[][..], &["-DSMALL"]] {
            let library: &'static Libraries = Box::leak(Box::new(fake::load(flags)));
            let list = DeviceList::get(library).unwrap();
            let verbs = Verbs::new("fake0", list.iter().next().unwrap().open().unwrap()).unwrap();
            let create =
                |entries| verbs.create_cq(CqAttributes { entries, entry_size: CqeSize::Large, events: false }).unwrap();
            let (first, second) = (create(1), create(4096));
            assert_eq!((first.rings.len(), second.rings.len()), (1, 1), "{flags:?}");
            assert_eq!(second.rings[0].size().entries(), 4096);
        }
    }

    #[test]
    fn kinds_of_completions_have_the_bits_that_verbs_give_them() {
        for (ops, bits) in [
            (CounterOps::SEND, IBV_QP_ATTACH_COMP_CNTR_OP_SEND),
            (CounterOps::RECV, IBV_QP_ATTACH_COMP_CNTR_OP_RECV),
            (CounterOps::RDMA_READ, IBV_QP_ATTACH_COMP_CNTR_OP_RDMA_READ),
            (CounterOps::REMOTE_RDMA_READ, IBV_QP_ATTACH_COMP_CNTR_OP_REMOTE_RDMA_READ),
            (CounterOps::RDMA_WRITE, IBV_QP_ATTACH_COMP_CNTR_OP_RDMA_WRITE),
            (CounterOps::REMOTE_RDMA_WRITE, IBV_QP_ATTACH_COMP_CNTR_OP_REMOTE_RDMA_WRITE),
        ] {
            assert_eq!(ops.bits(), bits);
        }
    }
}
