//! The harness: a device, memory that it may access and memory that it may not, and a program that checks its
//! completions.

use super::script::Script;
use efa_io::{Completion, Cqe16, Cqe32, DecodeError, Event, RingSize};
use efa_memory::{Backing, HostMemory, SharedMemory};
use efa_soft::wire::{DATA_HEADER, Packet};
use efa_soft::*;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const OWN: Gid = Gid::local(1);
pub(crate) const PEER: Gid = Gid::local(2);
pub(crate) const MTU: u32 = 256;
pub(crate) const QKEY: u32 = 7;
/// The size in bytes of the memory that contains the regions.
const MEMORY: usize = 8192;
const CANARY: u8 = 0xc5;
const CANARIES: [u8; MEMORY] = [CANARY; MEMORY];
/// The maximum number of packets that a device sends at once.
const BURST: usize = 1 << 14;

/// A piece of the memory that can be registered.
pub(crate) struct Place {
    /// Its offset in the memory.
    bytes: Range<usize>,
    /// Its address in requests. It is small, so that scripts often use it.
    pub(crate) addr: u64,
    access: Access,
}

const fn place(start: usize, end: usize, addr: u64, access: Access) -> Place {
    Place { bytes: start..end, addr, access }
}

/// All places, ordered by their offset.
pub(crate) const PLACES: [Place; 5] = [
    place(1000, 2000, 0x1000, Access::REMOTE_READ),
    place(4003, 5003, 0x4000, Access::ALL),
    place(5500, 5800, 0x5000, Access::LOCAL_WRITE),
    place(6101, 6401, 0x6000, Access::REMOTE_WRITE),
    place(7000, 7300, 0x7000, Access::ALL),
];
pub(crate) const READ_ONLY: usize = 0;
pub(crate) const OPEN: usize = 1;
pub(crate) const LOCAL: usize = 2;
pub(crate) const REMOTE: usize = 3;
/// The place that is registered only in a domain without queue pairs, if at all.
pub(crate) const FOREIGN: usize = 4;

impl Place {
    pub(crate) fn len(&self) -> u32 {
        self.bytes.len() as u32
    }
}

thread_local! {
    /// The memory, which all scripts share: mapping it takes longer than filling it.
    static SHARED: Arc<SharedMemory> = SharedMemory::zeroed(MEMORY).expect("two pages");
}

/// The keys of a region, which may not exist any more.
#[derive(Clone, Copy)]
pub(crate) struct Keys {
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
    pub(crate) place: usize,
}

/// Memory in a request.
pub(crate) struct Target {
    pub(crate) keys: Keys,
    pub(crate) addr: u64,
    pub(crate) length: u32,
}

/// The program's view of a queue pair.
pub(crate) struct Qp {
    pub(crate) info: QpInfo,
    /// The numbers of WQEs and of receive descriptors written so far.
    pub(crate) sent: u32,
    pub(crate) received: u32,
    /// For each request id `true` while the request is outstanding.
    pub(crate) sends: Vec<bool>,
    pub(crate) receives: Vec<bool>,
}

/// The program's view of a completion queue.
pub(crate) struct Cq {
    pub(crate) info: CqInfo,
    /// The number of entries read so far from each sub-queue.
    consumers: Vec<u32>,
}

impl Cq {
    fn entry(&self, place: usize) -> Result<Completion, DecodeError> {
        match self.info.entry_size {
            16 => Cqe16::from_words(self.info.ring.load_entry(place * 16)).decode(),
            _ => Cqe32::from_words(self.info.ring.load_entry(place * 32)).decode(),
        }
    }

    /// Returns the next completion. An entry that was never written has phase 0 and is none.
    fn take(&mut self) -> Option<Completion> {
        let size = RingSize::new(self.info.entries).expect("a power of two");
        for (sub, consumer) in self.consumers.iter().enumerate() {
            let place = sub * self.info.entries as usize + size.slot(*consumer) as usize;
            let written = self.info.ring.load_word(place * self.info.entry_size as usize) >> 24 & 1 != 0;
            if written == size.cq_phase(*consumer) {
                let completion = self.entry(place).expect("the device writes proper entries");
                self.consumers[sub] += 1;
                return Some(completion);
            }
        }
        None
    }

    /// Checks that every entry that was written is a valid completion.
    pub(crate) fn check(&self) {
        for place in 0..self.info.entries as usize * usize::from(self.info.sub_queues) {
            let first = self.info.ring.load_word(place * self.info.entry_size as usize);
            assert!(first == 0 || self.entry(place).is_ok(), "entry {place} is {:?}", self.entry(place));
        }
    }
}

/// A device under test.
pub(crate) struct Harness {
    pub(crate) device: Device,
    memory: Arc<SharedMemory>,
    pub(crate) now: Time,
    pub(crate) qps: Vec<Qp>,
    pub(crate) cqs: Vec<Cq>,
    /// All keys that have ever been valid.
    pub(crate) keys: Vec<Keys>,
    /// All address handles that have ever been valid.
    pub(crate) ahs: Vec<u16>,
    /// The numbers of messages that the device has sent.
    pub(crate) messages: Vec<u32>,
    /// The bytes of the current packet.
    pub(crate) packet: Vec<u8>,
}

impl Harness {
    pub(crate) fn new(config: DeviceConfig) -> Self {
        let memory = SHARED.with(Arc::clone);
        assert!(memory.write(0, &CANARIES));
        Self {
            device: Device::new(config),
            memory,
            now: Time::from_nanos(1),
            qps: vec![],
            cqs: vec![],
            keys: vec![],
            ahs: vec![],
            messages: vec![],
            packet: vec![],
        }
    }

    /// Returns the configuration of a small device.
    pub(crate) fn config() -> DeviceConfig {
        let config = DeviceConfig::new(OWN);
        let attributes = DeviceAttributes { mtu: MTU, max_qp: 4, max_cqe: 1024, max_counters: 4, ..config.attributes };
        DeviceConfig { attributes, max_pd: 4, max_cq: 4, max_mr: 8, max_ah: 8, ..config }
    }

    /// Creates two domains, all regions, and address handles for the peer and for the device itself. Returns the number
    /// of the first domain.
    pub(crate) fn create_objects(&mut self) -> u32 {
        let pd = self.device.alloc_pd().expect("the first domain");
        let foreign = self.device.alloc_pd().expect("the second domain");
        for (place, pd) in [(READ_ONLY, pd), (OPEN, pd), (LOCAL, pd), (REMOTE, pd), (FOREIGN, foreign)] {
            self.register(pd, place).expect("the first regions");
        }
        self.ahs.extend([PEER, OWN].map(|gid| self.device.create_ah(pd, gid).expect("the first address handles")));
        pd
    }

    pub(crate) fn register(&mut self, pd: u32, place: usize) -> Result<RegionKeys, ControlError> {
        let Place { bytes, addr, access } = &PLACES[place];
        let ptr = NonNull::new(self.memory.as_ptr().wrapping_add(bytes.start)).expect("the memory is somewhere");
        // SAFETY: every place is inside the memory, which the backing keeps alive. `SharedMemory` and the device access
        // its bytes only atomically.
        let backing = unsafe { HostMemory::from_raw(ptr, bytes.len(), Some(self.memory.clone())) };
        let keys = self.device.register(pd, Arc::new(backing), *addr, *access)?;
        self.keys.push(Keys { lkey: keys.lkey, rkey: keys.rkey, place });
        Ok(keys)
    }

    pub(crate) fn create_cq(&mut self, config: CqAttributes) -> Result<u32, ControlError> {
        let info = self.device.create_cq(config)?;
        self.cqs.push(Cq { consumers: vec![0; info.sub_queues.into()], info });
        Ok(self.cqs[self.cqs.len() - 1].info.cqn)
    }

    pub(crate) fn create_qp(&mut self, config: QpAttributes) -> Result<u16, ControlError> {
        let info = self.device.create_qp(config)?;
        let qpn = info.qpn;
        self.qps.push(Qp { info, sent: 0, received: 0, sends: vec![], receives: vec![] });
        Ok(qpn)
    }

    /// Moves a queue pair to `ReadyToSend`.
    pub(crate) fn activate(&mut self, qpn: u16) -> Result<(), ControlError> {
        use QpState::*;
        let mut states = [Init, ReadyToReceive, ReadyToSend].into_iter();
        states.try_for_each(|state| self.device.modify_qp(qpn, state, Some(QKEY)))
    }

    /// Returns one of the queue pairs.
    pub(crate) fn some_qp(&self, script: &mut Script<'_>) -> Option<usize> {
        (!self.qps.is_empty()).then(|| script.below(self.qps.len()))
    }

    /// Returns the number of a queue pair, or a number that none has.
    pub(crate) fn some_qpn(&self, script: &mut Script<'_>) -> u16 {
        match (script.byte(), self.qps.len()) {
            (0xf0.., _) | (_, 0) => script.u16(),
            (choice, count) => self.qps[usize::from(choice) % count].info.qpn,
        }
    }

    /// Returns memory of a region: inside it, just outside, or with a key that is slightly wrong.
    pub(crate) fn some_target(&self, script: &mut Script<'_>) -> Target {
        let choice = script.byte();
        let mut keys = match self.keys.len() {
            0 => Keys { lkey: 0, rkey: 0, place: OPEN },
            count => self.keys[usize::from(choice) % count],
        };
        if choice >= 0xf0 {
            let bit = u32::from(choice & 0xf) * 2;
            (keys.lkey, keys.rkey) = (keys.lkey ^ 1 << (bit % 24), keys.rkey ^ 1 << bit);
        }
        let place = &PLACES[keys.place];
        let len = place.len();
        let (offset, length) = match script.byte() % 16 {
            0 => (0, len),
            1 => (0, len + 1),
            2 => (1, len),
            3 => (len.into(), 0),
            4 => (u64::from(len) - 1, 1),
            5 => (len.into(), 1),
            6 => (u64::MAX, 2),
            7 => (script.u64(), script.u16().into()),
            8 => (0, 0),
            9 => (script.byte().into(), script.u16().into()),
            _ => (script.byte().into(), script.pick(&[1, 8, 64, 65, 128, MTU, MTU + 1])),
        };
        Target { keys, addr: place.addr.wrapping_add(offset), length }
    }

    /// Advances the time.
    pub(crate) fn pass(&mut self, script: &mut Script<'_>) {
        let unit = script.pick(&[1, 100, 10_000, 1_000_000]);
        self.now = self.now + Duration::from_micros(unit * u64::from(script.byte()));
        self.device.on_timeout(self.now);
    }

    /// Takes the next packet that the device sends. Its bytes are in `packet`.
    pub(crate) fn next_packet(&mut self) -> Option<Packet<'static>> {
        let packet = self.device.poll_transmit(self.now)?;
        assert!(packet.wire_len() <= DATA_HEADER + MTU as usize, "{packet:?} is too long");
        assert!(packet.emit(&mut self.packet), "nothing was taken back yet");
        assert_eq!(self.packet.len(), packet.wire_len(), "{packet:?}");
        Some(packet)
    }

    /// Reads all completions, and checks that each belongs to one outstanding request, which it ends.
    pub(crate) fn reap(&mut self) {
        for cq in &mut self.cqs {
            while let Some(completion) = cq.take() {
                let qp = self.qps.iter_mut().find(|qp| qp.info.qpn == completion.qpn);
                let qp = qp.unwrap_or_else(|| panic!("{completion:?} is nobody's"));
                let (outstanding, id) = match completion.event {
                    Event::Send { .. } => {
                        let id = completion.req_id ^ qp.high_id_bits();
                        (&mut qp.sends, id)
                    }
                    Event::Receive(received) if received.unsolicited => continue,
                    Event::Receive(_) => (&mut qp.receives, completion.req_id),
                };
                let was_outstanding = outstanding.get_mut(id as usize).is_some_and(std::mem::take);
                assert!(was_outstanding, "{completion:?} is of no work request, or comes twice");
            }
        }
    }

    /// Returns the bytes in a place.
    pub(crate) fn bytes_in(&self, place: usize) -> [u8; 300] {
        let mut bytes = [0; 300];
        assert!(self.memory.read(PLACES[place].bytes.start, &mut bytes));
        bytes
    }

    /// Fills a place with canaries.
    pub(crate) fn clear(&self, place: usize) {
        let Place { bytes, .. } = &PLACES[place];
        assert!(self.memory.write(bytes.start, &CANARIES[bytes.clone()]));
    }

    /// Checks that a device without answers and without faults has nothing left to do after some time.
    pub(crate) fn settle(&mut self) {
        self.device.set_faults(Faults::default());
        let mut rounds = 0..1000;
        loop {
            self.device.poll_doorbells(self.now);
            self.device.on_timeout(self.now);
            let burst = (0..BURST).take_while(|_| self.next_packet().is_some()).count();
            assert!(burst < BURST, "the device does not stop sending");
            let Some(due) = self.device.poll_timeout() else { return };
            assert!(rounds.next().is_some(), "the device still waits for {due:?}, at {:?}", self.now);
            self.now = due.max(self.now + self.device.config().peer_timeout);
        }
    }

    /// Checks that no byte outside of `writable` has changed.
    pub(crate) fn check_memory(&self, writable: &[usize]) {
        let mut bytes = [0; MEMORY];
        assert!(self.memory.read(0, &mut bytes));
        let mut from = 0;
        for &place in writable {
            let Range { start, end } = PLACES[place].bytes;
            check_canaries(&bytes, from..start);
            from = end;
        }
        check_canaries(&bytes, from..MEMORY);
    }
}

fn check_canaries(bytes: &[u8; MEMORY], range: Range<usize>) {
    if bytes[range.clone()] != CANARIES[range.clone()] {
        let first = range.clone().find(|&at| bytes[at] != CANARY);
        panic!("byte {first:?} of the memory was written");
    }
}
