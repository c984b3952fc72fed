//! Tests of memory that this process cannot access, such as a GPU's. A memory file takes its place, which the tests can
//! read.
//!
//! Software devices do not support such memory: there, the tests check the errors. On libefa's devices (see
//! `tests/tests/vendor/provider.rs`) they use it.

mod common;

use efa_direct::sim::{Node, NodeConfig};
use efa_direct::*;
use efa_io::{Cqe32, Event};
use efa_memory::{Backing, RingMemory, Shared, SharedMemory, Unit};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
/// The address of regions in work requests. This process has nothing mapped there.
const ELSEWHERE: u64 = 0x10_0000_0000;

/// Returns a range of this memory's file.
fn piece<U: Unit>(memory: &Shared<U>, offset: u64, len: u64) -> DmabufRange<'_> {
    DmabufRange { fd: memory.file().expect("it is shareable"), offset, len }
}

/// Opens a device. Returns it with `true` if it supports external memory, which a software device of this process does
/// not.
fn device(index: usize) -> (Device, bool) {
    let device = common::open(index);
    let is_able = device.soft_device().is_none();
    (device, is_able)
}

/// Creates a node on this device.
fn node(device: Device) -> Node {
    Node::new(device, NodeConfig::default()).unwrap()
}

/// Creates two nodes on these devices that have met.
fn pair(devices: [Device; 2]) -> [Node; 2] {
    let [mut a, mut b] = devices.map(node);
    a.meet(&mut b).unwrap();
    [a, b]
}

/// Returns the status of the node's next completion.
fn status(node: &mut Node) -> Status {
    node.cq.wait(Duration::from_secs(10)).expect("it completes").status
}

/// Waits for the entry at this index of a ring that has not been polled.
fn entry(ring: &RingMemory, at: usize) -> efa_io::Completion {
    let start = Instant::now();
    loop {
        let words = ring.load_entry(at);
        let entry: Cqe32 = Cqe32::from_words(words);
        if entry.phase() {
            return entry.decode().expect("it is an entry");
        }
        assert!(start.elapsed() < Duration::from_secs(10), "the entry comes");
        std::thread::yield_now();
    }
}

#[test]
fn a_completion_queue_in_memory_of_others_is_written_there_or_refused() {
    let (device, is_able) = device(0);
    let memory = RingMemory::shareable(2 * PAGE as usize).unwrap();
    let created = device.create_cq_in(CqConfig::new(100), piece(&memory, PAGE, PAGE), Some(memory.clone()));
    if !is_able {
        let error = created.unwrap_err().to_string();
        assert!(error.contains("CPU cannot map") && error.contains("CqPlace::PinnedHost"), "{error}");
        return;
    }
    let cq = created.unwrap();
    assert_eq!(cq.entries(), 128);
    let handle = cq.handle_at(0x1000);
    assert_eq!((handle.ring, handle.doorbell, handle.mask, handle.cqe_size), (0x1000, 0, 127, 32));

    let mut other = node(common::open(1));
    let pd = device.alloc_pd().unwrap();
    let refused = pd.create_qp(&cq, &cq, QpConfig::new(128, 64)).err().unwrap().to_string();
    assert!(refused.contains("the completion queue holds 128 entries"), "{refused}");
    let qp = pd.create_qp(&cq, &cq, QpConfig::new(16, 16)).unwrap().activate(5).unwrap();
    other.learn(qp.endpoint).unwrap();
    let peer = pd.peer(&other.endpoint).unwrap();
    other.receive(..64).unwrap();
    let mut sq = qp.send.into_cpu();
    sq.post(&peer, SendInline::new(b"hello"), 7).unwrap();
    sq.ring();
    other.cq.wait(Duration::from_secs(10)).expect("the message arrives");
    let sent = entry(&memory, PAGE as usize);
    assert_eq!((sent.qpn, sent.status, sent.event), (qp.endpoint.qpn, Status::Ok, Event::Send { op: OpCode::Send }));
    assert!((0..PAGE as usize).step_by(8).all(|at| memory.load_word(at) == 0), "the device wrote beside the ring");
}

#[test]
fn what_cannot_be_a_completion_queue_is_refused_and_leaves_nothing_behind() {
    let (device, is_able) = device(0);
    let memory = RingMemory::shareable(PAGE as usize).unwrap();
    let create = |config, len| device.create_cq_in(config, piece(&memory, 0, len), None).map(|_| ());
    assert!(create(CqConfig::new(256), PAGE).is_err(), "8 KiB are needed");
    assert!(create(CqConfig::new(u32::MAX), PAGE).is_err());
    assert!(create(CqConfig::new(64).events(), PAGE).is_err());
    assert_eq!(create(CqConfig::new(64), PAGE).is_ok(), is_able);
}

#[test]
fn a_completion_counter_in_memory_of_others_counts_there_or_is_refused() {
    const COUNT: usize = 64;
    const ERRORS: usize = 4088;
    let (device, is_able) = device(0);
    let memory = RingMemory::shareable(PAGE as usize).unwrap();
    let create = |errors| {
        let fd = memory.file().expect("it is shareable");
        device.create_counter_in(fd, COUNT as u64, errors, Some(memory.clone()))
    };
    if !is_able {
        let error = create(ERRORS as u64).unwrap_err().to_string();
        assert!(error.contains("CPU cannot map") && error.contains("Device::create_counter"), "{error}");
        return;
    }
    assert!(create(PAGE).is_err(), "past the end");
    let counter = create(ERRORS as u64).unwrap();
    let attach = |qp: &QueuePair<8>| qp.attach_counter(&counter, CounterOps::SEND);
    let mut a = Node::prepared(device.clone(), NodeConfig::default(), attach).unwrap();
    let mut b = node(common::open(1));
    a.meet(&mut b).unwrap();
    for _ in 0..3 {
        b.receive(..64).unwrap();
        a.send_inline(b"hello").to(&b).unwrap();
        assert_eq!(status(&mut a), Status::Ok);
    }
    assert_eq!((memory.load_word(COUNT), memory.load_word(ERRORS)), (3, 0));
    counter.set(CounterValue::Errors, 9).unwrap();
    assert_eq!((memory.load_word(COUNT), memory.load_word(ERRORS)), (3, 9));
    drop((a, counter));
    assert_eq!(Arc::strong_count(&memory), 1, "what was given is given back");
}

// A region of a memory file that begins 100 bytes into its second page, and has another address in work requests.
fn region(pd: &ProtectionDomain, memory: &Arc<SharedMemory>) -> Result<ExternalRegion, SetupError> {
    let external = ExternalMemory::dmabuf(piece(memory, PAGE + 100, 5000), ELSEWHERE + 100);
    pd.register_external(external.owned_by(memory.clone()), Access::ALL)
}

#[test]
fn a_region_of_a_dma_buf_is_source_and_target_or_refused() {
    let memory = SharedMemory::shareable(4 * PAGE as usize).unwrap();
    let (first, is_able) = device(0);
    if !is_able {
        let error = region(&first.alloc_pd().unwrap(), &memory).unwrap_err().to_string();
        assert!(error.contains("ExternalMemory::backed_by"), "{error}");
        return;
    }
    let [mut a, mut b] = pair([first, common::open(1)]);
    let region = region(&a.pd, &memory).unwrap();
    assert_eq!((region.addr(), region.len()), (ELSEWHERE + 100, 5000));
    exchange(&mut a, &mut b, &region, &*memory, PAGE as usize + 100);
}

#[test]
fn a_piece_of_a_dma_buf_keeps_its_place_of_a_page() {
    let pd = device(0).0.alloc_pd().unwrap();
    let memory = SharedMemory::shareable(2 * PAGE as usize).unwrap();
    let named = |addr| pd.register_external(ExternalMemory::dmabuf(piece(&memory, 0x40, PAGE), addr), Access::ALL);
    let error = named(ELSEWHERE).unwrap_err();
    assert!(matches!(error, SetupError::DmabufMisaligned { addr: ELSEWHERE, offset: 0x40 }), "{error}");
    assert!(error.to_string().ends_with("the address has to end in 0x040"), "{error}");
    assert!(!matches!(named(ELSEWHERE + 0x40), Err(SetupError::DmabufMisaligned { .. })));
}

/// Writes from the region to b's memory, and back to another place of the region. Byte 0 of the region is byte `at` of
/// `memory`.
fn exchange(a: &mut Node, b: &mut Node, region: &ExternalRegion, memory: &dyn Backing, at: usize) {
    let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
    assert!(memory.write(at + 10, &bytes));
    let write = RdmaWrite::new(region.slice(10..1010).unwrap(), b.memory.remote().slice(50..1050).unwrap());
    a.post(b, write, 1).unwrap();
    a.sq.ring();
    assert_eq!(status(a), Status::Ok);
    assert_eq!(b.memory.read_vec(50..1050).unwrap(), bytes);

    let write = RdmaWrite::new(b.memory.slice(50..1050).unwrap(), region.remote().slice(4000..5000).unwrap());
    b.sq.post(&b.peers[&a.endpoint], write, 2).unwrap();
    b.sq.ring();
    assert_eq!(status(b), Status::Ok);
    let mut back = vec![0; 1002];
    assert!(memory.read(at + 3999, &mut back));
    assert_eq!((back[0], &back[1..1001], back[1001]), (0, &bytes[..], 0));
    assert!(region.slice(4000..5001).is_err());
}

#[test]
fn memory_whose_dma_buf_is_refused_is_registered_by_address_or_told_with_both_answers() {
    let (device, is_able) = device(0);
    if !is_able {
        return;
    }
    let pd = device.alloc_pd().unwrap();
    let (null, memory) = (std::fs::File::open("/dev/null").unwrap(), SharedMemory::zeroed(PAGE as usize).unwrap());
    let at = |addr| {
        let range = DmabufRange { fd: null.as_fd(), offset: 0, len: 100 };
        ExternalMemory::dmabuf(range, addr).owned_by(memory.clone())
    };
    let addr = memory.as_ptr() as u64;
    let error = pd.register_external(at(addr), Access::ALL).unwrap_err().to_string();
    assert!(error.starts_with("ibv_reg_dmabuf_mr: "), "{error}");
    // SAFETY: the region keeps `memory`, which is its own owner, and `SharedMemory` only accesses its bytes atomically.
    let region = pd.register_external(unsafe { at(addr).by_address() }, Access::ALL).unwrap();
    assert_eq!((region.addr(), region.len()), (addr, 100));
    // SAFETY: nothing is mapped at this address, so registering fails and nothing accesses the memory.
    let nowhere = unsafe { at(PAGE).by_address() };
    let error = pd.register_external(nowhere, Access::ALL).unwrap_err().to_string();
    assert!(error.contains("as a DMA-BUF (ibv_reg_dmabuf_mr: "), "{error}");
    assert!(error.contains("nor by address (ibv_reg_mr: ") && error.contains("peer-memory module"), "{error}");
}

/// Memory that a software device can access only by calls.
struct Distant(Arc<SharedMemory>);

impl Backing for Distant {
    fn len(&self) -> usize {
        5000
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        self.0.read(100 + offset, dst)
    }

    fn write(&self, offset: usize, src: &[u8]) -> bool {
        self.0.write(100 + offset, src)
    }
}

/// Creates two nodes on software devices, even if other devices were chosen.
fn soft(first: u32) -> [Node; 2] {
    pair([first, first + 1].map(|index| Device::open(&format!("soft{index}")).unwrap()))
}

#[test]
fn a_software_device_reaches_memory_through_its_backing() {
    let [mut a, mut b] = soft(60);
    let memory = SharedMemory::shareable(4 * PAGE as usize).unwrap();
    let external = || ExternalMemory::dmabuf(piece(&memory, 100, 5000), ELSEWHERE + 100);
    let region = a.pd.register_external(external().backed_by(Arc::new(Distant(memory.clone()))), Access::ALL).unwrap();
    exchange(&mut a, &mut b, &region, &*memory, 100);

    let short = external().backed_by(SharedMemory::zeroed(1).unwrap());
    let error = a.pd.register_external(short, Access::ALL).unwrap_err().to_string();
    assert_eq!(error, "the backing's length in bytes is 4096, expected the memory's length");
}

#[test]
fn a_region_of_memory_of_others_is_not_touched_once_it_is_gone() {
    let [a, mut b] = soft(62);
    let memory = SharedMemory::shareable(4 * PAGE as usize).unwrap();
    let external = ExternalMemory::dmabuf(piece(&memory, 100, 5000), ELSEWHERE + 100);
    let owner = Arc::new(());
    let backing = Arc::new(Distant(memory.clone()));
    let external = external.owned_by(owner.clone()).backed_by(backing.clone());
    let region = a.pd.register_external(external, Access::ALL).unwrap();
    let remote = region.remote().slice(..8).unwrap();
    drop(region);
    assert_eq!((Arc::strong_count(&owner), Arc::strong_count(&backing)), (1, 1), "what was given is given back");
    b.memory.write(0, b"too late").unwrap();
    let write = RdmaWrite::new(b.memory.slice(..8).unwrap(), remote);
    b.sq.post(&b.peers[&a.endpoint], write, 1).unwrap();
    b.sq.ring();
    assert_eq!(status(&mut b), Status::RemoteBadAddress);
    let mut bytes = [1; 4 * PAGE as usize];
    assert!(memory.read(0, &mut bytes));
    assert!(bytes.iter().all(|&byte| byte == 0));
}
