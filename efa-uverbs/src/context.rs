//! An open device: what a program has created through it, and where its commands go.

use crate::call::Call;
use crate::caller::Caller;
use crate::channel::Channel;
use crate::commands;
use crate::device::SoftDevice;
use crate::errno::{Errno, Outcome, refuse};
use crate::guard::Guarded;
use crate::quota::{Account, Charge, Item};
use efa_memory::{Mappable, RingMemory, Shared, Unit};
use efa_types::RegionKeys;
use slab::Slab;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// An open device. Everything goes with it that was created through it.
pub(crate) struct Context {
    pub(crate) device: Arc<SoftDevice>,
    /// The program that has opened it.
    pub(crate) account: Arc<Account>,
    /// What was created, by handle, and what that counts for.
    objects: Slab<(Object, Vec<Charge>)>,
    pub(crate) channels: Vec<Arc<Channel>>,
    /// As soon as there are so many channels, those that the program has closed are forgotten.
    forget_at: usize,
    /// What can be mapped, by offset.
    maps: HashMap<u64, Guarded<dyn Mappable>>,
    next_key: u64,
    /// Where asynchronous events would be written, had the driver any to report.
    pub(crate) async_events: Option<(OwnedFd, Charge)>,
    /// The program has said who it is.
    pub(crate) is_set_up: bool,
    /// Failures that were logged.
    failures: u32,
}

/// Most failures of an open device that are logged; a program that fails without end is not to fill disks.
const MOST_FAILURES: u32 = 1000;

/// Something that a program has created.
pub(crate) enum Object {
    Pd {
        pd: u32,
    },
    Mr {
        keys: RegionKeys,
        len: u64,
        iova: u64,
    },
    Cq(Cq),
    Qp(Qp),
    Ah {
        pd: u32,
        number: u16,
    },
    Counter {
        id: u32,
        /// The memory of the program's in which it is, if that is a DMA-BUF.
        _memory: [Option<Guarded<RingMemory>>; 2],
    },
}

/// What kind of object something is; those that use others come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    /// The memory of the program's in which it is, if that is a DMA-BUF.
    pub(crate) _memory: Option<Guarded<RingMemory>>,
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
    pub(crate) fn new(device: Arc<SoftDevice>, account: Arc<Account>) -> Self {
        Self {
            device,
            account,
            objects: Slab::new(),
            channels: Vec::new(),
            forget_at: 64,
            maps: HashMap::new(),
            next_key: 0,
            async_events: None,
            is_set_up: false,
            failures: 0,
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
                let is_news = !commands::is_probe(&name, refusal.errno) && self.failures < MOST_FAILURES;
                if !is_news {
                    tracing::debug!(device, errno = ?refusal.errno, "{name} failed: {}", refusal.why);
                    return Err(refusal.errno);
                }
                tracing::warn!(device, errno = ?refusal.errno, "{name} failed: {}", refusal.why);
                self.failures += 1;
                if self.failures == MOST_FAILURES {
                    tracing::warn!(
                        device,
                        "{MOST_FAILURES} commands of an open device have failed: further ones are logged as debug"
                    );
                }
                Err(refusal.errno)
            }
        }
    }

    /// What the program maps at this offset.
    pub(crate) fn map(&self, offset: u64) -> Result<&dyn Mappable, Errno> {
        self.maps.get(&offset).map(|memory| &**memory.memory()).ok_or(Errno::INVAL)
    }

    /// Lets the program map this; the offset.
    pub(crate) fn offer<U: Unit>(&mut self, memory: Arc<Shared<U>>) -> u64 {
        self.next_key += 1 << 12;
        self.maps.insert(self.next_key, Guarded::mappable(memory));
        self.next_key
    }

    /// The object with this handle, which must be of this kind.
    pub(crate) fn object(&mut self, handle: u64, kind: Kind) -> Outcome<&mut Object> {
        match usize::try_from(handle).ok().and_then(|handle| self.objects.get_mut(handle)) {
            Some((object, _)) => match object.kind() {
                found if found == kind => Ok(object),
                found => refuse(Errno::INVAL, format!("handle {handle} is a {found:?}, not a {kind:?}")),
            },
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
        fields!(self, handle, CompletionCounter, Object::Counter { id, .. } => *id)
    }

    /// Whether the program may have one more object of a kind of which the device has `max`, with this many descriptors: what to keep with it.
    pub(crate) fn charge(&self, kind: Kind, max: u32, descriptors: u64) -> Outcome<Vec<Charge>> {
        let object = self.account.charge_object(self.device.bus, kind, max)?;
        if descriptors == 0 {
            return Ok(vec![object]);
        }
        Ok(vec![object, self.account.charge(Item::Descriptors, descriptors)?])
    }

    /// Keeps what the device has just created, and tells the program with `answer`. If that fails, the object goes again.
    pub(crate) fn keep(
        &mut self,
        object: Object,
        charges: Vec<Charge>,
        answer: impl FnOnce(u32) -> Outcome<()>,
    ) -> Outcome<()> {
        let kind = object.kind();
        let handle = self.objects.insert((object, charges));
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
        match &self.objects[index].0 {
            &Object::Pd { pd } => device.call(|device| device.dealloc_pd(pd))?,
            Object::Mr { keys, .. } => device.call(|device| device.deregister(keys.lkey))?,
            Object::Cq(cq) => {
                // Before anything is gone: the number of events that were read has to be right.
                reader = cq.channel.as_ref().map(|(channel, _)| channel.reader()).transpose()?;
                device.call(|device| device.destroy_cq(cq.cqn))?;
            }
            Object::Qp(qp) => device.call(|device| device.destroy_qp(qp.qpn))?,
            &Object::Ah { pd, number } => device.call(|device| device.destroy_ah(pd, number))?,
            &Object::Counter { id, .. } => device.call(|device| device.destroy_counter(id))?,
        }
        let mut events = 0;
        match self.objects.remove(index).0 {
            Object::Cq(Cq { cqn, keys, channel, _memory }) => {
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

    /// Keeps a channel.
    pub(crate) fn keep_channel(&mut self, channel: Channel) {
        if self.channels.len() >= self.forget_at {
            self.forget_channels();
        }
        self.channels.push(Arc::new(channel));
    }

    /// Forgets channels that the program has closed, and no completion queue has.
    pub(crate) fn forget_channels(&mut self) {
        self.channels.retain(|channel| Arc::strong_count(channel) > 1 || channel.has_reader());
        // So that looking at all of them costs little for each.
        self.forget_at = 64.max(2 * self.channels.len());
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
        let mut order: Vec<_> = self.objects.iter().map(|(index, (object, _))| (object.kind(), index)).collect();
        order.sort_unstable();
        for (kind, index) in order {
            if let Err(refusal) = self.destroy(index as u64, kind) {
                tracing::error!(device = self.device.name, "cleaning up after a program: {}", refusal.why);
            }
        }
    }
}
