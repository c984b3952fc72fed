//! An open device: what a program has created through it, and where its commands go.

use crate::call::Call;
use crate::caller::Caller;
use crate::channel::Channel;
use crate::commands;
use crate::device::SoftDevice;
use crate::errno::{Errno, Outcome, refuse};
use efa_soft::RegionKeys;
use efa_soft::memory::Mappable;
use slab::Slab;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// An open device. Everything goes with it that was created through it.
pub(crate) struct Context {
    pub(crate) device: Arc<SoftDevice>,
    /// What was created, by handle.
    objects: Slab<Object>,
    pub(crate) channels: Vec<Arc<Channel>>,
    /// What can be mapped, by offset.
    maps: HashMap<u64, Arc<dyn Mappable>>,
    next_key: u64,
    /// Where asynchronous events would be written, had the driver any to report.
    pub(crate) async_events: Option<OwnedFd>,
    /// The program has said who it is.
    pub(crate) is_set_up: bool,
}

/// Something that a program has created.
pub(crate) enum Object {
    Pd { pd: u32 },
    Mr { keys: RegionKeys, len: u64, iova: u64 },
    Cq(Cq),
    Qp(Qp),
    Ah { pd: u32, number: u16 },
    Counter { id: u32 },
}

/// What kind of object something is; those that use others come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    QueuePair,
    MemoryRegion,
    AddressHandle,
    CompletionCounter,
    CompletionQueue,
    ProtectionDomain,
}

impl Object {
    fn kind(&self) -> Kind {
        match self {
            Self::Pd { .. } => Kind::ProtectionDomain,
            Self::Mr { .. } => Kind::MemoryRegion,
            Self::Cq(_) => Kind::CompletionQueue,
            Self::Qp(_) => Kind::QueuePair,
            Self::Ah { .. } => Kind::AddressHandle,
            Self::Counter { .. } => Kind::CompletionCounter,
        }
    }
}

/// A completion queue.
pub(crate) struct Cq {
    pub(crate) cqn: u32,
    /// What of it can be mapped.
    pub(crate) keys: Vec<u64>,
    /// Where its events go, and what the program calls it there (`user_handle`).
    pub(crate) channel: Option<(Arc<Channel>, u64)>,
}

/// A queue pair.
pub(crate) struct Qp {
    pub(crate) qpn: u16,
    pub(crate) keys: Vec<u64>,
    pub(crate) is_srd: bool,
    /// Send and receive work requests and buffers, inline bytes, as asked for.
    pub(crate) cap: [u32; 5],
    pub(crate) qkey: u32,
    pub(crate) sq_psn: u32,
    pub(crate) rnr_retry: u8,
}

/// The fields of an object, if it is of this kind.
macro_rules! fields {
    ($context:expr, $handle:expr, $kind:ident, $pattern:pat => $found:expr) => {
        match $context.object($handle, $crate::context::Kind::$kind)? {
            $pattern => Ok($found),
            _ => $crate::errno::refuse($crate::errno::Errno::INVAL, "it is of another kind"),
        }
    };
}
pub(crate) use fields;

impl Context {
    pub(crate) fn new(device: Arc<SoftDevice>) -> Self {
        Self {
            device,
            objects: Slab::new(),
            channels: Vec::new(),
            maps: HashMap::new(),
            next_key: 0,
            async_events: None,
            is_set_up: false,
        }
    }

    /// Does what the command at `addr` of the caller's memory says.
    pub(crate) fn ioctl(&mut self, caller: &Caller, addr: u64) -> Result<i64, Errno> {
        let call = Call::read(caller, addr);
        let (name, outcome) = match call {
            Ok(call) => (commands::name(&call), commands::run(self, &call)),
            Err(refusal) => ("ioctl".into(), Err(refusal)),
        };
        match outcome {
            Ok(()) => Ok(0),
            Err(refusal) => {
                let device = &self.device.name;
                if commands::is_probe(&name, refusal.errno) {
                    tracing::debug!(device, "{name}: {}", refusal.why);
                } else {
                    tracing::warn!(device, errno = ?refusal.errno, "{name} failed: {}", refusal.why);
                }
                Err(refusal.errno)
            }
        }
    }

    /// What the program maps at this offset.
    pub(crate) fn map(&self, offset: u64) -> Result<&dyn Mappable, Errno> {
        self.maps.get(&offset).map(AsRef::as_ref).ok_or(Errno::INVAL)
    }

    /// Lets the program map this; the offset.
    pub(crate) fn offer(&mut self, memory: Arc<dyn Mappable>) -> u64 {
        self.next_key += 1 << 12;
        self.maps.insert(self.next_key, memory);
        self.next_key
    }

    /// The object with this handle, which must be of this kind.
    pub(crate) fn object(&mut self, handle: u64, kind: Kind) -> Outcome<&mut Object> {
        match usize::try_from(handle).ok().and_then(|handle| self.objects.get_mut(handle)) {
            Some(object) if object.kind() == kind => Ok(object),
            Some(object) => refuse(Errno::INVAL, format!("handle {handle} is a {:?}, not a {kind:?}", object.kind())),
            None => refuse(Errno::NOENT, format!("there is nothing with handle {handle}")),
        }
    }

    /// The number of a protection domain.
    pub(crate) fn pd(&mut self, handle: u64) -> Outcome<u32> {
        fields!(self, handle, ProtectionDomain, Object::Pd { pd } => *pd)
    }

    /// The number of a completion queue.
    pub(crate) fn cq(&mut self, handle: u64) -> Outcome<u32> {
        fields!(self, handle, CompletionQueue, Object::Cq(cq) => cq.cqn)
    }

    /// A queue pair.
    pub(crate) fn qp(&mut self, handle: u64) -> Outcome<&mut Qp> {
        fields!(self, handle, QueuePair, Object::Qp(qp) => qp)
    }

    /// The number of a completion counter.
    pub(crate) fn counter(&mut self, handle: u64) -> Outcome<u32> {
        fields!(self, handle, CompletionCounter, Object::Counter { id } => *id)
    }

    /// Keeps what the device has just created, and tells the program with `answer`. If that fails, the object goes again.
    pub(crate) fn keep(&mut self, object: Object, answer: impl FnOnce(u32) -> Outcome<()>) -> Outcome<()> {
        let kind = object.kind();
        let handle = self.objects.insert(object);
        let told = answer(handle as u32);
        if told.is_err() {
            self.destroy(handle as u64, kind)?;
        }
        told
    }

    /// Destroys an object of this kind, if nothing uses it. Events that its program has read, of a completion queue.
    pub(crate) fn destroy(&mut self, handle: u64, kind: Kind) -> Outcome<u32> {
        self.object(handle, kind)?;
        let index = handle as usize;
        let device = &self.device;
        let mut reader = None;
        match &self.objects[index] {
            &Object::Pd { pd } => device.call(|device| device.dealloc_pd(pd))?,
            Object::Mr { keys, .. } => device.call(|device| device.deregister(keys.lkey))?,
            Object::Cq(cq) => {
                // Before anything is gone: the number of events that were read has to be right.
                reader = cq.channel.as_ref().map(|(channel, _)| channel.reader()).transpose()?;
                device.call(|device| device.destroy_cq(cq.cqn))?;
            }
            Object::Qp(qp) => device.call(|device| device.destroy_qp(qp.qpn))?,
            &Object::Ah { pd, number } => device.call(|device| device.destroy_ah(pd, number))?,
            &Object::Counter { id } => device.call(|device| device.destroy_counter(id))?,
        }
        let mut events = 0;
        match self.objects.remove(index) {
            Object::Cq(Cq { cqn, keys, channel }) => {
                self.withdraw(&keys);
                if let Some(((channel, user_handle), reader)) = channel.zip(reader) {
                    self.device.wake(cqn, None)?;
                    events = channel.forget(user_handle, &reader);
                }
            }
            Object::Qp(Qp { keys, .. }) => self.withdraw(&keys),
            _ => {}
        }
        Ok(events)
    }

    fn withdraw(&mut self, keys: &[u64]) {
        for key in keys {
            self.maps.remove(key);
        }
    }

    /// Whether a file is one of the channels; which.
    pub(crate) fn channel(&self, fd: impl AsFd) -> Outcome<Arc<Channel>> {
        match self.channels.iter().find(|channel| channel.is(&fd)) {
            Some(channel) => Ok(channel.clone()),
            None => refuse(Errno::INVAL, "the descriptor is no completion channel of this context"),
        }
    }
}

impl Drop for Context {
    /// What uses others goes first.
    fn drop(&mut self) {
        let mut order: Vec<_> = self.objects.iter().map(|(index, object)| (object.kind(), index)).collect();
        order.sort_unstable();
        for (kind, index) in order {
            if let Err(refusal) = self.destroy(index as u64, kind) {
                tracing::error!(device = self.device.name, "cleaning up after a program: {}", refusal.why);
            }
        }
    }
}
