//! An open device, and the objects that a program has created through it.

use crate::channel::Channel;
use crate::device::SoftDevice;
use crate::errno::{Errno, Outcome, Refusal, refuse};
use crate::guard::Guarded;
use crate::kind::Kind;
use crate::quota::{Account, Charge, Item};
use efa_memory::{Mappable, RingMemory, Shared, Unit};
use efa_types::RegionKeys;
use slab::Slab;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// An open device. Dropping it destroys all objects that were created through it.
pub(crate) struct Context {
    pub(crate) device: Arc<SoftDevice>,
    /// The account of the program that opened the device.
    pub(crate) account: Arc<Account>,
    /// The objects by handle, each with what it counts for in the account.
    objects: Slab<(Object, Vec<Charge>)>,
    pub(crate) channels: Vec<Arc<Channel>>,
    /// The number of channels at which those that the program has closed are dropped.
    forget_at: usize,
    /// Rings and doorbells that the program can map, by offset.
    maps: HashMap<u64, Guarded<dyn Mappable>>,
    next_key: u64,
    /// The pipe for asynchronous events. The driver reports none, so nothing is written to it.
    pub(crate) async_events: Option<(OwnedFd, Charge)>,
    /// `true` after GET_CONTEXT, the first command of a program.
    pub(crate) is_set_up: bool,
    /// The number of failures that were logged as warnings.
    failures: u32,
}

/// The maximum number of failures of an open device that are logged as warnings. A program that keeps failing should
/// not fill the disk.
const MOST_FAILURES: u32 = 1000;

/// An object that a program has created.
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
        /// The DMA-BUFs that contain its two numbers, if they are in DMA-BUFs.
        _memory: [Option<Guarded<RingMemory>>; 2],
    },
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
    /// The offsets at which the program maps its memory.
    pub(crate) keys: Vec<u64>,
    /// The channel for its events, and the program's name for the queue there (`user_handle`).
    pub(crate) channel: Option<(Arc<Channel>, u64)>,
    /// The DMA-BUF that contains the ring, if it is in one.
    pub(crate) _memory: Option<Guarded<RingMemory>>,
}

/// A queue pair.
pub(crate) struct Qp {
    pub(crate) qpn: u16,
    /// The offsets at which the program maps its memory.
    pub(crate) keys: Vec<u64>,
    pub(crate) is_srd: bool,
    /// The capabilities that the program asked for, which a query returns (`struct ib_uverbs_qp_cap`).
    pub(crate) cap: [u32; 5],
    pub(crate) qkey: u32,
    pub(crate) sq_psn: u32,
    pub(crate) rnr_retry: u8,
}

/// Reads fields of the object with a handle, and refuses the command if the object is of another kind.
macro_rules! fields {
    ($context:expr, $handle:expr, $kind:ident, $pattern:pat => $found:expr) => {
        match $context.object($handle, $crate::kind::Kind::$kind)? {
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

    /// Logs that a command was refused. An error that libibverbs provokes, and each one after the first
    /// [`MOST_FAILURES`], is logged as debug only.
    pub(crate) fn log_failure(&mut self, command: &str, is_expected: bool, Refusal { errno, why }: &Refusal) {
        let device = &self.device.name;
        if is_expected || self.failures >= MOST_FAILURES {
            tracing::debug!(device, ?errno, "{command} failed: {why}");
            return;
        }
        tracing::warn!(device, ?errno, "{command} failed: {why}");
        self.failures += 1;
        if self.failures == MOST_FAILURES {
            tracing::warn!(
                device,
                "{MOST_FAILURES} commands of an open device have failed: further ones are logged as debug"
            );
        }
    }

    /// Returns the memory that the program maps at this offset.
    pub(crate) fn map(&self, offset: u64) -> Result<&dyn Mappable, Errno> {
        self.maps.get(&offset).map(|memory| &**memory.memory()).ok_or(Errno::INVAL)
    }

    /// Makes memory mappable for the program, and returns the offset at which it is.
    pub(crate) fn offer<U: Unit>(&mut self, memory: Arc<Shared<U>>) -> u64 {
        self.next_key += 1 << 12;
        self.maps.insert(self.next_key, Guarded::mappable(memory));
        self.next_key
    }

    /// Returns the object with this handle, which must be of this kind.
    pub(crate) fn object(&mut self, handle: u64, kind: Kind) -> Outcome<&mut Object> {
        match usize::try_from(handle).ok().and_then(|handle| self.objects.get_mut(handle)) {
            Some((object, _)) => match object.kind() {
                found if found == kind => Ok(object),
                found => refuse(Errno::INVAL, format!("handle {handle} is a {found:?}, not a {kind:?}")),
            },
            None => refuse(Errno::NOENT, format!("there is nothing with handle {handle}")),
        }
    }

    /// Returns the device's number of a protection domain.
    pub(crate) fn pd(&mut self, handle: u64) -> Outcome<u32> {
        fields!(self, handle, ProtectionDomain, Object::Pd { pd } => *pd)
    }

    /// Returns the device's number of a completion queue.
    pub(crate) fn cq(&mut self, handle: u64) -> Outcome<u32> {
        fields!(self, handle, CompletionQueue, Object::Cq(cq) => cq.cqn)
    }

    /// Returns a queue pair.
    pub(crate) fn qp(&mut self, handle: u64) -> Outcome<&mut Qp> {
        fields!(self, handle, QueuePair, Object::Qp(qp) => qp)
    }

    /// Returns the device's number of a completion counter.
    pub(crate) fn counter(&mut self, handle: u64) -> Outcome<u32> {
        fields!(self, handle, CompletionCounter, Object::Counter { id, .. } => *id)
    }

    /// Counts one more object of this kind, of which the device has `max`, and the node's descriptors that it takes.
    /// Returns the charges to keep with the object.
    ///
    /// # Errors
    /// The program's quota is used up.
    pub(crate) fn charge(&self, kind: Kind, max: u32, descriptors: u64) -> Outcome<Vec<Charge>> {
        let object = self.account.charge_object(self.device.bus, kind, max)?;
        if descriptors == 0 {
            return Ok(vec![object]);
        }
        Ok(vec![object, self.account.charge(Item::Descriptors, descriptors)?])
    }

    /// Stores an object that the device has just created, and reports its handle to the program with `answer`. If
    /// `answer` fails, the object is destroyed.
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

    /// Destroys an object of this kind, if nothing uses it. Returns the number of events that the program has read,
    /// which is 0 for all objects but completion queues.
    pub(crate) fn destroy(&mut self, handle: u64, kind: Kind) -> Outcome<u32> {
        self.object(handle, kind)?;
        let index = handle as usize;
        let device = &self.device;
        let mut reader = None;
        match &self.objects[index].0 {
            &Object::Pd { pd } => device.call(|device| device.dealloc_pd(pd))?,
            Object::Mr { keys, .. } => device.call(|device| device.deregister(keys.lkey))?,
            Object::Cq(cq) => {
                // Opened first, because it can fail: after the queue is destroyed, its events must be counted.
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

    /// Stores a channel.
    pub(crate) fn keep_channel(&mut self, channel: Channel) {
        if self.channels.len() >= self.forget_at {
            self.forget_channels();
        }
        self.channels.push(Arc::new(channel));
    }

    /// Drops the channels that the program has closed and no completion queue uses.
    pub(crate) fn forget_channels(&mut self) {
        self.channels.retain(|channel| Arc::strong_count(channel) > 1 || channel.has_reader());
        // Twice as many, so that the cost of looking at all of them is shared by many new ones.
        self.forget_at = 64.max(2 * self.channels.len());
    }

    /// Returns the channel that a descriptor belongs to.
    pub(crate) fn channel(&self, fd: impl AsFd) -> Outcome<Arc<Channel>> {
        match self.channels.iter().find(|channel| channel.is(&fd)) {
            Some(channel) => Ok(channel.clone()),
            None => refuse(Errno::INVAL, "the descriptor is no completion channel of this context"),
        }
    }
}

impl Drop for Context {
    /// Destroys all objects, those that use others first.
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
