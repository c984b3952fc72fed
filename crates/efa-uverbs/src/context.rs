//! An open device: what a program has created through it, and where its commands go.

use crate::call::Call;
use crate::caller::Caller;
use crate::channel::Channel;
use crate::commands;
use crate::device::SoftDevice;
use crate::errno::{Errno, Outcome, refuse};
use efa_soft::RegionKeys;
use efa_soft::memory::SharedMemory;
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
    maps: HashMap<u64, Arc<SharedMemory>>,
    next_key: u64,
    /// Where asynchronous events would be written: the driver reports none.
    pub(crate) async_events: Vec<OwnedFd>,
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

/// A completion queue.
pub(crate) struct Cq {
    pub(crate) cqn: u32,
    /// What of it can be mapped.
    pub(crate) keys: Vec<u64>,
    /// Where its events go, and what the program calls it there.
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

/// The fields of one kind of object.
macro_rules! find {
    ($context:expr, $handle:expr, $name:literal, $pattern:pat => $found:expr) => {
        match $context.object($handle)? {
            $pattern => Ok($found),
            _ => $crate::errno::refuse($crate::errno::Errno::INVAL, format!("handle {} is no {}", $handle, $name)),
        }
    };
}
pub(crate) use find;

impl Context {
    pub(crate) fn new(device: Arc<SoftDevice>) -> Self {
        Self {
            device,
            objects: Slab::new(),
            channels: Vec::new(),
            maps: HashMap::new(),
            next_key: 0,
            async_events: Vec::new(),
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
    pub(crate) fn map(&self, offset: u64) -> Result<&SharedMemory, Errno> {
        self.maps.get(&offset).map(AsRef::as_ref).ok_or(Errno::INVAL)
    }

    /// Lets the program map this; the offset.
    pub(crate) fn offer(&mut self, memory: &Arc<SharedMemory>) -> u64 {
        self.next_key += 1 << 12;
        self.maps.insert(self.next_key, memory.clone());
        self.next_key
    }

    /// The object with this handle.
    pub(crate) fn object(&mut self, handle: u64) -> Outcome<&mut Object> {
        match usize::try_from(handle).ok().and_then(|handle| self.objects.get_mut(handle)) {
            Some(object) => Ok(object),
            None => refuse(Errno::NOENT, format!("there is nothing with handle {handle}")),
        }
    }

    /// The number of a protection domain.
    pub(crate) fn pd(&mut self, handle: u64) -> Outcome<u32> {
        find!(self, handle, "protection domain", Object::Pd { pd } => *pd)
    }

    /// The number of a completion queue.
    pub(crate) fn cq(&mut self, handle: u64) -> Outcome<u32> {
        find!(self, handle, "completion queue", Object::Cq(cq) => cq.cqn)
    }

    /// A queue pair.
    pub(crate) fn qp(&mut self, handle: u64) -> Outcome<&mut Qp> {
        find!(self, handle, "queue pair", Object::Qp(qp) => qp)
    }

    /// The number of a completion counter.
    pub(crate) fn counter(&mut self, handle: u64) -> Outcome<u32> {
        find!(self, handle, "completion counter", Object::Counter { id } => *id)
    }

    /// Keeps what the device has just created, and tells the program with `answer`. If that fails, the object goes again.
    pub(crate) fn keep(&mut self, object: Object, answer: impl FnOnce(u32) -> Outcome<()>) -> Outcome<()> {
        let handle = self.objects.insert(object);
        let told = answer(handle as u32);
        if told.is_err() {
            self.destroy(handle as u64)?;
        }
        told
    }

    /// Destroys an object, if nothing uses it. Events that its program has read, of a completion queue.
    pub(crate) fn destroy(&mut self, handle: u64) -> Outcome<u32> {
        self.object(handle)?;
        let index = handle as usize;
        let device = &self.device;
        match &self.objects[index] {
            &Object::Pd { pd } => device.call(|device| device.dealloc_pd(pd))?,
            Object::Mr { keys, .. } => device.call(|device| device.deregister(keys.lkey))?,
            Object::Cq(cq) => device.call(|device| device.destroy_cq(cq.cqn))?,
            Object::Qp(qp) => device.call(|device| device.destroy_qp(qp.qpn))?,
            &Object::Ah { pd, number } => device.call(|device| device.destroy_ah(pd, number))?,
            &Object::Counter { id } => device.call(|device| device.destroy_counter(id))?,
        }
        let mut events = 0;
        match self.objects.remove(index) {
            Object::Cq(Cq { cqn, keys, channel }) => {
                self.withdraw(&keys);
                if let Some((channel, name)) = channel {
                    self.device.wake(cqn, None)?;
                    events = channel.forget(name);
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
        let rank = |object: &Object| match object {
            Object::Qp(_) => 0,
            Object::Mr { .. } | Object::Ah { .. } | Object::Counter { .. } => 1,
            Object::Cq(_) => 2,
            Object::Pd { .. } => 3,
        };
        let mut order: Vec<_> = self.objects.iter().map(|(index, object)| (rank(object), index)).collect();
        order.sort_unstable();
        for (_, index) in order {
            if let Err(refusal) = self.destroy(index as u64) {
                tracing::error!(device = self.device.name, "cleaning up after a program: {}", refusal.why);
            }
        }
    }
}
