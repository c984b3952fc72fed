//! Arbitrary control calls in any order.

use super::harness::{Cq, Harness, LOCAL, OPEN, OWN, PEER, QKEY, READ_ONLY, REMOTE};
use super::script::Script;
use efa_memory::RingMemory;
use efa_soft::wire::Packet;
use efa_soft::*;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// The size in bytes of the memory for counters, and the value of all bytes beside them.
const PAGE: usize = 4096;
const CANARY: u64 = 0x5c5c_5c5c_5c5c_5c5c;

thread_local! {
    static PAGE_OF_COUNTERS: Arc<RingMemory> = RingMemory::zeroed(PAGE).expect("a page");
}

/// A counter: its number, and the places of its two numbers.
struct Counter {
    id: u32,
    memory: Arc<RingMemory>,
    offsets: [usize; 2],
}

/// Objects of one kind: those that exist, each as often as it was created, and all that have ever existed.
struct Book<T> {
    live: Vec<T>,
    ever: Vec<u32>,
}

impl<T: Copy + PartialEq + Debug + Into<u64>> Book<T> {
    const EMPTY: Self = Self { live: vec![], ever: vec![] };

    fn created(&mut self, object: T) {
        self.live.push(object);
        self.ever.push(object.into() as u32);
    }

    /// Notes the result of destroying an object. Returns `true` if the object is gone.
    fn destroyed(&mut self, object: T, outcome: Result<(), ControlError>) -> bool {
        let existed = self.live.iter().position(|live| *live == object);
        match outcome {
            Ok(()) => {
                self.live.swap_remove(existed.unwrap_or_else(|| panic!("{object:?} was destroyed, but did not exist")));
                true
            }
            Err(ControlError::NoSuch { .. }) => {
                assert!(existed.is_none(), "{object:?} exists");
                false
            }
            Err(error) => {
                assert!(matches!(error, ControlError::InUse { .. }), "{object:?}: {error}");
                false
            }
        }
    }
}

/// A harness, and the objects that its program believes to exist.
struct Program {
    harness: Harness,
    pds: Book<u32>,
    cqs: Book<u32>,
    qps: Book<u16>,
    regions: Book<u32>,
    /// Address handles: domain and number combined in one number.
    ahs: Book<u64>,
    counters: Book<u32>,
    /// The places of each counter.
    infos: Vec<Counter>,
    page: Arc<RingMemory>,
    kept: Vec<Packet<'static>>,
}

/// Executes a script of control calls, with a few posts, packets and pauses between them.
pub(crate) fn control(data: &[u8]) {
    let mut script = Script(data);
    let traits = script.byte();
    let has = |bit: u8| traits >> bit & 1 != 0;
    let sub_cqs = if has(1) { 3 } else { 1 };
    let page = PAGE_OF_COUNTERS.with(Arc::clone);
    (0..PAGE).step_by(8).for_each(|at| page.store_word(at, CANARY));
    let mut program = Program {
        harness: Harness::new(DeviceConfig { loopback: has(0), sub_cqs, ..Harness::config() }),
        pds: Book::EMPTY,
        cqs: Book::EMPTY,
        qps: Book::EMPTY,
        regions: Book::EMPTY,
        ahs: Book::EMPTY,
        counters: Book::EMPTY,
        infos: vec![],
        page,
        kept: vec![],
    };
    let device = &mut program.harness.device;
    program.pds.created(device.alloc_pd().expect("the first domain"));
    for place in [READ_ONLY, OPEN, LOCAL, REMOTE] {
        program.register(1, place);
    }
    program.create_ah(1, PEER);
    program.create_ah(1, OWN);
    program.create_cq(CqAttributes { entries: 16, entry_size: CqeSize::Large, events: has(2) });
    if !has(3) {
        program.create_qp(&mut Script(&[]));
        let _ = program.harness.activate(program.harness.qps[0].info.qpn);
    }
    while !script.is_over() {
        program.step(&mut script);
        program.harness.now = program.harness.now + Duration::from_micros(1);
    }
    program.harness.device.set_port(true);
    if has(4) {
        program.harness.settle();
    }
    program.harness.check_memory(&program.writable());
    program.destroy_everything();
    program.check_page();
    // Outstanding requests find no memory to write to any more.
    for packet in &program.kept {
        program.harness.device.handle_packet(program.harness.now, packet);
    }
    program.harness.settle();
    program.harness.check_memory(&[]);
}

impl Program {
    fn step(&mut self, script: &mut Script<'_>) {
        let harness = &mut self.harness;
        match script.below(32) {
            0 => self.pds.ever.extend(harness.device.alloc_pd().inspect(|&pd| self.pds.live.push(pd))),
            1 => {
                let pd = script.number(&self.pds.ever);
                self.pds.destroyed(pd, harness.device.dealloc_pd(pd));
            }
            2 => {
                let entry_size = script.pick(&[CqeSize::Small, CqeSize::Large]);
                let entries = script.number(&[0, 1, 3, 16, 1024, 1025]);
                self.create_cq(CqAttributes { entries, entry_size, events: script.byte() & 1 == 0 });
            }
            3 => {
                let cqn = script.number(&self.cqs.ever);
                if self.cqs.destroyed(cqn, harness.device.destroy_cq(cqn)) {
                    harness.cqs.retain(|cq| cq.info.cqn != cqn);
                }
            }
            4 | 5 => self.create_qp(script),
            6 => {
                let qpn = script.number(&self.qps.ever) as u16;
                self.destroy_qp(qpn);
            }
            7..10 => {
                use QpState::*;
                let to = script.pick(&[Reset, Init, ReadyToReceive, ReadyToSend, Error]);
                let qkey = script.pick(&[Some(QKEY), Some(0), None]);
                let qpn = script.number(&self.qps.ever) as u16;
                if harness.device.modify_qp(qpn, to, qkey).is_ok() && to == Reset {
                    harness.qps.iter_mut().filter(|qp| qp.info.qpn == qpn).for_each(|qp| qp.was_reset());
                }
            }
            10 => {
                if let Some(index) = harness.some_qp(script) {
                    let _ = harness.activate(harness.qps[index].info.qpn);
                }
            }
            11 => {
                let (pd, place) = (script.number(&self.pds.ever), script.below(REMOTE + 1));
                self.register(pd, place);
            }
            12 | 13 => {
                let lkey = script.number(&self.regions.ever);
                self.deregister(lkey);
            }
            14 => {
                let (pd, gid) =
                    (script.number(&self.pds.ever), script.pick(&[PEER, OWN, Gid::local(3), Gid::local(4)]));
                self.create_ah(pd, gid);
            }
            15 => {
                let (pd, numbers) = (script.number(&self.pds.ever), &self.ahs.ever);
                let number = script.number(numbers) as u16;
                self.destroy_ah(pd, number);
            }
            16 => {
                let retry = script.byte() % 9;
                let _ = harness.device.set_rnr_retry(script.number(&self.qps.ever) as u16, retry);
            }
            17 => self.create_counter(script),
            18 => {
                let (qpn, id) = (script.number(&self.qps.ever) as u16, script.number(&self.counters.ever));
                let _ = harness.device.attach_counter(
                    qpn,
                    id,
                    CounterOps::from_bits(script.number(&[1, 2, 63, 0, 21, 42])),
                );
            }
            19 => self.change_counter(script),
            20 => {
                let id = script.number(&self.counters.ever);
                self.counters.destroyed(id, harness.device.destroy_counter(id));
            }
            21 | 22 => harness.post_send(script),
            23 => harness.post_receive(script),
            24 | 25 => harness.receive(script),
            26..29 => harness.transmit(script, &mut self.kept),
            29 => harness.arrive_late(script, &self.kept),
            30 => harness.pass(script),
            _ => harness.device.set_port(script.byte() & 1 == 0),
        }
        while self.harness.device.poll_event().is_some() {}
    }

    fn create_cq(&mut self, config: CqAttributes) {
        self.cqs.ever.extend(self.harness.create_cq(config).inspect(|&cqn| self.cqs.live.push(cqn)));
    }

    fn create_qp(&mut self, script: &mut Script<'_>) {
        let traits = script.byte();
        let inline_write = traits & 0x18 == 0x18;
        let config = QpAttributes {
            transport: if traits & 1 == 0 { Transport::Srd } else { Transport::Ud },
            pd: script.number(&self.pds.ever),
            send_cq: script.number(&self.cqs.ever),
            recv_cq: script.number(&self.cqs.ever),
            send_entries: script.number(&[8, 0, 1, 3]) % 1024,
            recv_entries: script.number(&[8, 0, 1, 3]) % 1024,
            recv_sge: (traits >> 1 & 3).into(),
            inline_bytes: if traits & 0x10 == 0 { 32 } else { script.byte().into() },
            inline_write,
            unsolicited_write_recv: traits & 0x20 != 0,
            rnr_retry: None,
        };
        if let Ok(qpn) = self.harness.create_qp(config) {
            self.qps.created(qpn);
        }
    }

    fn destroy_qp(&mut self, qpn: u16) {
        if self.qps.destroyed(qpn, self.harness.device.destroy_qp(qpn)) {
            self.harness.qps.retain(|qp| qp.info.qpn != qpn);
        }
    }

    /// Returns the places that may be written now, because a region is registered there.
    fn writable(&self) -> Vec<usize> {
        let place = |lkey: &u32| self.harness.keys.iter().rfind(|keys| keys.lkey == *lkey).map(|keys| keys.place);
        let live: Vec<_> = self.regions.live.iter().filter_map(place).collect();
        [OPEN, LOCAL, REMOTE].into_iter().filter(|place| live.contains(place)).collect()
    }

    fn register(&mut self, pd: u32, place: usize) {
        self.harness.check_memory(&self.writable());
        if let Ok(keys) = self.harness.register(pd, place) {
            self.regions.created(keys.lkey);
        }
    }

    /// Deregisters a region. A later write to it is noticed.
    fn deregister(&mut self, lkey: u32) {
        let before = self.writable();
        if self.regions.destroyed(lkey, self.harness.device.deregister(lkey)) {
            let after = self.writable();
            before.iter().filter(|place| !after.contains(place)).for_each(|&place| self.harness.clear(place));
        }
    }

    fn create_ah(&mut self, pd: u32, gid: Gid) {
        if let Ok(number) = self.harness.device.create_ah(pd, gid) {
            self.harness.ahs.push(number);
            self.ahs.created(u64::from(pd) << 32 | u64::from(number));
        }
    }

    fn destroy_ah(&mut self, pd: u32, number: u16) {
        let outcome = self.harness.device.destroy_ah(pd, number);
        self.ahs.destroyed(u64::from(pd) << 32 | u64::from(number), outcome);
    }

    fn create_counter(&mut self, script: &mut Script<'_>) {
        let choice = script.byte();
        let (memory, offsets) = if choice & 1 == 0 {
            let mut offset = || script.number(&[0, 8, 64, 4088, 4, 4096]) as usize;
            (self.page.clone(), [offset(), offset()])
        } else {
            (RingMemory::zeroed(PAGE).expect("a page"), [0, 64])
        };
        let [completions, errors] = offsets.map(|offset| CounterPlace::Shared(memory.clone(), offset));
        if let Ok(id) = self.harness.device.create_counter(completions, errors) {
            self.counters.created(id);
            self.infos.push(Counter { id, memory, offsets });
        }
    }

    /// Sets a counter, or adds to it.
    fn change_counter(&mut self, script: &mut Script<'_>) {
        let (id, choice) = (script.number(&self.counters.ever), script.byte());
        let value = script.pick(&[0, 1, COUNTER_MAX, COUNTER_MAX + 1, u64::MAX]);
        let which = if choice & 1 == 0 { CounterValue::Completions } else { CounterValue::Errors };
        let device = &mut self.harness.device;
        if choice & 2 != 0 {
            let _ = device.add_to_counter(id, which, value);
        } else if device.set_counter(id, which, value).is_ok() {
            let info = self.infos.iter().find(|info| info.id == id).expect("it was created");
            assert_eq!(info.memory.load_word(info.offsets[usize::from(choice & 1)]), value & COUNTER_MAX);
        }
    }

    /// Checks that all objects can be destroyed in the right order, once.
    fn destroy_everything(&mut self) {
        for qpn in self.qps.live.clone() {
            self.destroy_qp(qpn);
        }
        for lkey in self.regions.live.clone() {
            self.deregister(lkey);
        }
        let device = &mut self.harness.device;
        for ah in self.ahs.live.clone() {
            self.ahs.destroyed(ah, device.destroy_ah((ah >> 32) as u32, ah as u16));
        }
        for id in self.counters.live.clone() {
            self.counters.destroyed(id, device.destroy_counter(id));
        }
        self.harness.cqs.iter().filter(|cq| cq.info.entries <= 16).for_each(Cq::check);
        for cqn in self.cqs.live.clone() {
            self.cqs.destroyed(cqn, device.destroy_cq(cqn));
        }
        for pd in self.pds.live.clone() {
            self.pds.destroyed(pd, device.dealloc_pd(pd));
        }
        let left = [
            self.qps.live.len(),
            self.regions.live.len(),
            self.ahs.live.len(),
            self.counters.live.len(),
            self.cqs.live.len(),
            self.pds.live.len(),
        ];
        assert_eq!(left, [0; 6], "queue pairs, regions, handles, counters, completion queues or domains are left");
    }

    /// Checks that counters have changed nothing beside their words.
    fn check_page(&self) {
        for info in self.infos.iter().filter(|info| !Arc::ptr_eq(&info.memory, &self.page)) {
            let words: Vec<_> = (0..PAGE).step_by(8).map(|at| info.memory.load_word(at)).collect();
            let own = info.offsets.map(|offset| offset / 8);
            let strays = words.iter().enumerate().filter(|(at, word)| !own.contains(at) && **word != 0).count();
            assert_eq!(strays, 0, "words beside a counter's own were written");
        }
        let mut words: Vec<_> = (0..PAGE).step_by(8).map(|at| self.page.load_word(at)).collect();
        for info in self.infos.iter().filter(|info| Arc::ptr_eq(&info.memory, &self.page)) {
            for offset in info.offsets {
                words[offset / 8] = CANARY;
            }
        }
        assert!(words.iter().all(|&word| word == CANARY), "something beside counters was written");
    }
}
