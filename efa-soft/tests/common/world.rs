//! Devices on a network in simulated time, and a program that writes their rings itself.

use super::{activate, put_raw, stamp};
use efa_io::ring::CqDoorbell;
use efa_io::rx::RxBuf;
use efa_io::*;
use efa_memory::{Backing, SharedMemory};
use efa_soft::trace::TraceEvent;
use efa_soft::*;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// The first two hosts.
pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
/// The address at which every host sees its memory.
pub(crate) const ADDR: u64 = 0x10_0000;
/// Bytes of that memory.
pub(crate) const BYTES: usize = 1 << 20;
pub(crate) const QKEY: u32 = 7;
/// A time that is longer than any operation takes.
const PATIENCE: Duration = Duration::from_secs(600);
/// Limits that let every WQE through to the device.
const NO_LIMITS: Limits = Limits::of_queue(u32::MAX, u32::MAX);

/// The configuration of a host.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) device: DeviceConfig,
    pub(crate) cq: CqAttributes,
    /// The attributes of its queue pair, except domain and completion queues.
    pub(crate) qp: QpAttributes,
    pub(crate) access: Access,
}

impl Setup {
    fn number(index: usize) -> Self {
        Self {
            device: DeviceConfig { seed: index as u64, ..DeviceConfig::new(Gid::local(index as u32)) },
            cq: CqAttributes { entries: 4096, entry_size: CqeSize::Large, events: false },
            qp: QpAttributes {
                send_entries: 1024,
                recv_entries: 1024,
                recv_sge: 3,
                inline_bytes: 32,
                ..QpAttributes::default()
            },
            access: Access::ALL,
        }
    }
}

/// A device with a domain, a completion queue, a queue pair and some registered memory.
pub(crate) struct Host {
    pub(crate) setup: Setup,
    place: usize,
    pub(crate) pd: u32,
    pub(crate) cq: Cq,
    pub(crate) qp: Qp,
    pub(crate) memory: Arc<SharedMemory>,
    pub(crate) keys: RegionKeys,
    /// Address handles of all hosts, by number.
    pub(crate) ahs: Vec<u16>,
}

/// The program's side of a completion queue.
pub(crate) struct Cq {
    pub(crate) info: CqInfo,
    consumers: Vec<u32>,
}

impl Cq {
    pub(crate) fn new(info: CqInfo) -> Self {
        Self { consumers: vec![0; info.sub_queues.into()], info }
    }

    /// Returns the next completion of any sub-queue.
    pub(crate) fn take(&mut self) -> Option<Completion> {
        (0..self.consumers.len()).find_map(|sub| self.take_from(sub))
    }

    /// Returns the next completion of a sub-queue.
    pub(crate) fn take_from(&mut self, sub: usize) -> Option<Completion> {
        let size = RingSize::new(self.info.entries).unwrap();
        let consumer = self.consumers[sub];
        let place = sub * size.entries() as usize + size.slot(consumer) as usize;
        let phase = size.cq_phase(consumer);
        let completion = match self.info.entry_size {
            16 => self.entry::<2>(place, phase),
            _ => self.entry::<4>(place, phase),
        }?;
        self.consumers[sub] = consumer.wrapping_add(1);
        Some(completion)
    }

    fn entry<const W: usize>(&self, place: usize, phase: bool) -> Option<Completion> {
        let cqe = Cqe::<W>::from_words(self.info.ring.load_entry(place * W * 8));
        (cqe.phase() == phase).then(|| cqe.decode().unwrap())
    }

    /// Returns all completions.
    pub(crate) fn drain(&mut self) -> Vec<Completion> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Tells the device how many completions the program has taken.
    pub(crate) fn report(&self) {
        let taken = self.consumers.iter().sum();
        self.info.doorbell.as_ref().unwrap().store_doorbell(0, CqDoorbell::consumed(taken, 0).value());
    }
}

/// The program's side of a queue pair.
pub(crate) struct Qp {
    pub(crate) info: QpInfo,
    pub(crate) sent: u32,
    received: u32,
    receives: u16,
}

impl Qp {
    pub(crate) fn new(info: QpInfo) -> Self {
        Self { info, sent: 0, received: 0, receives: 0 }
    }

    pub(crate) fn qpn(&self) -> u16 {
        self.info.qpn
    }

    /// Writes a WQE with the next request id and the right phase.
    pub(crate) fn put<const W: usize>(&mut self, wqe: Wqe<W>) {
        self.put_raw(stamp(&self.info, self.sent, wqe));
    }

    /// Writes a WQE as it is.
    pub(crate) fn put_raw<const W: usize>(&mut self, wqe: Wqe<W>) {
        put_raw(&self.info, self.sent, wqe);
        self.sent += 1;
    }

    /// Rings the send doorbell.
    pub(crate) fn ring(&self) {
        self.info.sq.doorbell.store_doorbell(self.info.sq.doorbell_offset, self.sent);
    }

    /// Posts a receive of these buffers, which lie one after the other from `addr` on.
    pub(crate) fn receive(&mut self, lkey: u32, mut addr: u64, lengths: &[u16]) {
        let (lkey, size) = (Lkey::new(lkey).unwrap(), RingSize::new(self.info.rq.entries).unwrap());
        for (i, &length) in lengths.iter().enumerate() {
            let (first, last) = (i == 0, i + 1 == lengths.len());
            let desc = RxDesc::new(RxBuf { req_id: self.receives, addr, lkey, length, first, last });
            self.info.rq.ring.publish_entry(size.slot(self.received) as usize * RxDesc::SIZE, desc.words());
            self.received = self.received.wrapping_add(1);
            addr += u64::from(length);
        }
        self.receives = self.receives.wrapping_add(1);
        self.info.rq.doorbell.store_doorbell(self.info.rq.doorbell_offset, self.received);
    }
}

/// Hosts on a network. Nothing happens, and no time passes, except in [`step`](Self::step).
pub(crate) struct World {
    pub(crate) net: Net,
    pub(crate) now: Time,
    pub(crate) hosts: Vec<Host>,
}

impl World {
    /// Creates two hosts, 5 µs apart.
    pub(crate) fn pair() -> Self {
        Self::with(|_| ())
    }

    /// Creates two hosts, whose configurations are both changed like this.
    pub(crate) fn with(change: impl Fn(&mut Setup)) -> Self {
        Self::of(2, |_, setup| change(setup))
    }

    /// Creates `count` hosts that have address handles of each other, each with its configuration changed like this.
    pub(crate) fn of(count: usize, change: impl Fn(usize, &mut Setup)) -> Self {
        let net = Net::new(LinkConfig { delay: Duration::from_micros(5), ..LinkConfig::default() });
        let mut world = Self { net, now: Time::ZERO, hosts: Vec::new() };
        for index in 0..count {
            let mut setup = Setup::number(index);
            change(index, &mut setup);
            let place = world.net.add(setup.device.clone());
            let device = world.net.device(place).unwrap();
            let pd = device.alloc_pd().unwrap();
            let cq = device.create_cq(setup.cq).unwrap();
            setup.qp = QpAttributes { pd, send_cq: cq.cqn, recv_cq: cq.cqn, ..setup.qp };
            let qp = device.create_qp(setup.qp).unwrap();
            activate(device, qp.qpn);
            let memory = SharedMemory::zeroed(BYTES).unwrap();
            let keys = device.register(pd, memory.clone(), ADDR, setup.access).unwrap();
            let (cq, qp) = (Cq::new(cq), Qp::new(qp));
            world.hosts.push(Host { setup, place, pd, cq, qp, memory, keys, ahs: vec![] });
        }
        for host in 0..count {
            world.hosts[host].ahs = (0..count).map(|peer| world.create_ah(host, world.gid(peer))).collect();
        }
        world
    }

    pub(crate) fn device(&mut self, host: usize) -> &mut Device {
        self.net.device(self.hosts[host].place).unwrap()
    }

    pub(crate) fn gid(&self, host: usize) -> Gid {
        self.hosts[host].setup.device.attributes.gid
    }

    pub(crate) fn create_ah(&mut self, host: usize, gid: Gid) -> u16 {
        let pd = self.hosts[host].pd;
        self.device(host).create_ah(pd, gid).unwrap()
    }

    /// Creates one more queue pair like the host's first, changed like this, in state Reset.
    pub(crate) fn create_qp(&mut self, host: usize, change: impl FnOnce(&mut QpAttributes)) -> Qp {
        let mut config = self.hosts[host].setup.qp;
        change(&mut config);
        Qp::new(self.device(host).create_qp(config).unwrap())
    }

    /// Creates one more queue pair, in state ReadyToSend.
    pub(crate) fn active_qp(&mut self, host: usize, change: impl FnOnce(&mut QpAttributes)) -> Qp {
        let qp = self.create_qp(host, change);
        activate(self.device(host), qp.qpn());
        qp
    }

    /// Replaces the host's device by another life of it, without objects.
    pub(crate) fn restart(&mut self, host: usize) {
        self.net.remove(self.hosts[host].place);
        let config = &mut self.hosts[host].setup.device;
        config.incarnation += 1;
        self.hosts[host].place = self.net.add(config.clone());
    }

    /// Returns the events of the host's device from here on, as they happen.
    pub(crate) fn watch(&mut self, host: usize) -> Arc<Mutex<Vec<TraceEvent>>> {
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let here = seen.clone();
        self.device(host).subscribe(Box::new(move |event: &TraceEvent| here.lock().push(*event)));
        seen
    }

    /// Returns the next asynchronous event of a device.
    pub(crate) fn event(&mut self, host: usize) -> Option<AsyncEvent> {
        std::iter::from_fn(|| self.device(host).poll_event()).find_map(|event| match event {
            DeviceEvent::Async(event) => Some(event),
            _ => None,
        })
    }

    pub(crate) fn set_link(&mut self, change: impl FnOnce(&mut LinkConfig)) {
        change(self.net.link_config_mut());
    }

    pub(crate) fn set_faults(&mut self, host: usize, change: impl FnOnce(&mut Faults)) {
        let mut faults = self.device(host).faults();
        change(&mut faults);
        self.device(host).set_faults(faults);
    }

    /// Lets the network do what there is to do, and time pass to the next moment at which there is more, at most a
    /// millisecond.
    pub(crate) fn step(&mut self) {
        self.net.step(self.now);
        let latest = self.now + Duration::from_millis(1);
        let next = self.net.next_time().unwrap_or(latest);
        self.now = next.clamp(self.now + Duration::from_nanos(100), latest);
    }

    /// Steps until `done`, for at most `most` of simulated time. Returns `true` if `done` was reached.
    pub(crate) fn run_until(&mut self, most: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + most;
        while !done(self) {
            if self.now >= end {
                return false;
            }
            self.step();
        }
        true
    }

    /// Lets this much time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Returns the next completion of a host, after as many steps as it takes.
    pub(crate) fn completion(&mut self, host: usize) -> Completion {
        let mut completion = None;
        self.run_until(PATIENCE, |world| {
            completion = world.hosts[host].cq.take();
            completion.is_some()
        });
        completion.expect("a completion")
    }

    /// Posts these WQEs and rings once.
    pub(crate) fn post<const W: usize>(&mut self, host: usize, wqes: impl IntoIterator<Item = Wqe<W>>) {
        let qp = &mut self.hosts[host].qp;
        wqes.into_iter().for_each(|wqe| qp.put(wqe));
        qp.ring();
    }

    /// Has the devices of two hosts say hello, so that no hello comes between the packets of a test.
    pub(crate) fn acquaint(&mut self, from: usize, to: usize) {
        let write = self.write(from, to, 0);
        assert_eq!(self.status_of(from, write), Status::Ok);
    }

    /// Posts a WQE, and returns the status of its completion, which must be the next.
    pub(crate) fn status_of<const W: usize>(&mut self, host: usize, wqe: Wqe<W>) -> Status {
        self.post(host, [wqe]);
        let expected = u64::from((self.hosts[host].qp.sent as u16).wrapping_sub(1));
        let completion = self.completion(host);
        assert!(matches!(completion.event, Event::Send { .. }) && completion.req_id == expected);
        completion.status
    }

    /// Posts a receive of this many bytes at the start of the host's memory.
    pub(crate) fn receive(&mut self, host: usize, length: u16) {
        let Host { qp, keys, .. } = &mut self.hosts[host];
        qp.receive(keys.lkey, ADDR, &[length]);
    }

    /// Returns bytes from the start of a host's memory.
    pub(crate) fn bytes(&self, host: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert!(self.hosts[host].memory.read(0, &mut bytes));
        bytes
    }

    /// Returns one host's queue pair, as another's WQE names it.
    pub(crate) fn to(&self, from: usize, to: usize) -> Destination {
        Destination { ah: self.hosts[from].ahs[to], qpn: self.hosts[to].qp.qpn(), qkey: QKEY }
    }

    /// Returns the first `length` bytes of a host's memory, as its own WQE names them.
    pub(crate) fn local(&self, host: usize, length: u32) -> LocalBuf {
        LocalBuf { addr: ADDR, lkey: Lkey::new(self.hosts[host].keys.lkey).unwrap(), length }
    }

    /// Returns the start of a host's memory, as a peer's WQE names it.
    pub(crate) fn remote(&self, host: usize) -> RemoteBuf {
        RemoteBuf { addr: ADDR, rkey: self.hosts[host].keys.rkey }
    }

    pub(crate) fn send(&self, from: usize, to: usize, length: u32) -> Wqe64 {
        wqe(Send::new(&[self.local(from, length)]).unwrap(), self.to(from, to))
    }

    pub(crate) fn write(&self, from: usize, to: usize, length: u32) -> Wqe64 {
        wqe(RdmaWrite::new(self.local(from, length), self.remote(to)), self.to(from, to))
    }

    pub(crate) fn read(&self, from: usize, to: usize, length: u32) -> Wqe64 {
        wqe(RdmaRead::new(self.local(from, length), self.remote(to)), self.to(from, to))
    }
}

/// Returns the WQE of an operation, which the device may refuse.
pub(crate) fn wqe<const W: usize>(op: impl Operation<W>, dest: Destination) -> Wqe<W>
where
    Wqe<W>: SendWqe,
{
    op.encode(&NO_LIMITS, dest).unwrap()
}
