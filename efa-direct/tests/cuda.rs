//! What the feature `cuda` promises, on a real GPU, with software devices and a few kernels written by hand.
//!
//! `cargo test -p efa-direct --features cuda --test cuda -- --ignored --test-threads 1`; the program needs nothing of
//! the machine that built it.

use efa_direct::cuda::*;
use efa_direct::*;
use efa_gpu_device::TimeoutReport;
use efa_io::{Cqe32, Event};
use std::process::Command;
use std::sync::atomic::Ordering::*;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

const PTX: &[(u32, &str)] = &[(80, include_str!("cuda/kernels.ptx"))];
const PATIENCE: Duration = Duration::from_secs(10);

/// One test at a time: what one allocates may wait for another's kernel, and that for its test.
fn gpu() -> (MutexGuard<'static, ()>, Gpu) {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    (guard, Gpu::open(0).unwrap())
}

fn kernel(gpu: &Gpu, name: &str) -> (Kernel, Stream) {
    (gpu.load(PTX).unwrap().kernel(name).unwrap(), gpu.stream().unwrap())
}

/// Runs a kernel of one thread until it is over.
///
/// # Safety
/// As for [`Kernel::launch`].
unsafe fn run(gpu: &Gpu, name: &str, args: impl KernelArgs) {
    let (kernel, stream) = kernel(gpu, name);
    // SAFETY: the caller keeps the contract of `launch`, which is this function's too.
    unsafe { kernel.launch(&stream, Shape::new(1, 1), args) }.unwrap().wait().unwrap();
}

/// A software device with what it takes to talk; its rings are nobody's yet.
struct Node {
    pd: ProtectionDomain,
    cq: CompletionQueue,
    qp: ActiveQueuePair<8>,
}

fn node(index: u32) -> Node {
    let device = Device::open(&format!("soft{index}")).unwrap();
    let pd = device.alloc_pd().unwrap();
    let cq = device.create_cq(CqConfig::new(64)).unwrap();
    let qp = pd.create_qp(&cq, &cq, QpConfig::new(16, 16)).unwrap().activate(7).unwrap();
    Node { pd, cq, qp }
}

/// Two nodes that know each other.
fn nodes(index: u32) -> ([Node; 2], [Peer; 2]) {
    let [a, b] = [index, index + 1].map(node);
    let peers = [a.pd.peer(&b.qp.endpoint).unwrap(), b.pd.peer(&a.qp.endpoint).unwrap()];
    ([a, b], peers)
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 11) as u8).collect()
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_gpu_is_found_with_its_properties() {
    let (_guard, gpu) = gpu();
    let info = gpu.info();
    println!("{info:?}");
    assert_eq!(Gpu::list().unwrap()[0], *info);
    assert!(info.arch() >= 80 && info.driver >= (12, 0) && info.pci_id.contains(':'), "{info:?}");
    let count = Gpu::list().unwrap().len();
    let error = Gpu::open(count).unwrap_err().to_string();
    assert!(error.starts_with(&format!("there is no GPU {count}: CUDA sees {count}")), "{error}");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_gpu_tells_whether_kernels_see_what_nics_write_in_order_and_flushes_if_it_says_that_it_can() {
    let (_guard, gpu) = gpu();
    let (info, ordering) = (gpu.info(), gpu.rdma_writes_ordering());
    println!("{}: NICs' writes are ordered for {ordering:?}; flush by the CPU: {}", info.name, info.rdma_flush);
    match gpu.flush_rdma_writes() {
        Ok(()) => assert!(info.rdma_flush || ordering == RdmaWritesOrdering::AllDevices),
        Err(GpuError::NoFlush { .. }) => {
            assert!(!info.rdma_flush && ordering < RdmaWritesOrdering::AllDevices);
        }
        Err(error) => panic!("{error}"),
    }
    // A software device's writes are in order on every GPU: its completions may be polled beside memory that it writes.
    let ([a, _b], _peers) = nodes(82);
    let memory = gpu.allocate(4096).unwrap();
    let (_mapped, _region) =
        (gpu.map(a.cq.into_gpu().unwrap()).unwrap(), a.pd.register_gpu(&memory, .., Access::ALL).unwrap());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn gpu_memory_is_zeroed_and_copies_are_exact_at_any_offset() {
    let (_guard, gpu) = gpu();
    for len in [1u64, 4096, 100_000, 3 << 20] {
        let memory = gpu.allocate(len).unwrap();
        assert_eq!((memory.len(), memory.addr() % (64 << 10)), (len, 0));
        assert!(memory.read_vec(0, len as usize).unwrap().iter().all(|&byte| byte == 0));
        let offset = len / 7;
        let bytes = pattern((len - offset) as usize, 1);
        memory.write(offset, &bytes).unwrap();
        assert_eq!(memory.read_vec(offset, bytes.len()).unwrap(), bytes);
        assert!(memory.read_vec(0, offset as usize).unwrap().iter().all(|&byte| byte == 0));
        let error = memory.write(len - 1, b"ab").unwrap_err().to_string();
        assert_eq!(error, format!("bytes {}..{} are out of range: the memory has {len} bytes", len - 1, len + 1));
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn gpu_memory_is_exported_as_a_dma_buf_or_told_why_not() {
    let (_guard, gpu) = gpu();
    for len in [1u64, 70_000, 3 << 20] {
        match gpu.allocate(len).unwrap().dmabuf() {
            Ok(fd) => println!("{len} bytes: DMA-BUF {fd:?}"),
            Err(error) => {
                println!("{error}");
                assert!(!gpu.info().dmabuf, "{error}");
            }
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn kernels_see_gpu_memory_and_pinned_memory() {
    let (_guard, gpu) = gpu();
    let (host, there, back) = (gpu.pinned(800).unwrap(), gpu.allocate(800).unwrap(), gpu.pinned(800).unwrap());
    let bytes = pattern(800, 2);
    host.write(0, &bytes).unwrap();
    // SAFETY: `copy` takes two addresses and a number of words; all are as long.
    unsafe {
        run(&gpu, "copy", (host.addr(), there.addr(), 100u32));
        run(&gpu, "copy", (there.addr(), back.addr(), 100u32));
    }
    assert_eq!(there.read_vec(0, 800).unwrap(), bytes);
    assert_eq!(back.read_vec(0, 800).unwrap(), bytes);
    let words = gpu.pinned_words(3).unwrap();
    // SAFETY: `put` takes an address and a word.
    unsafe { run(&gpu, "put", (words.addr() + 4, 0x1234_5678u32)) };
    assert_eq!(words.iter().map(|word| word.load(Acquire)).collect::<Vec<_>>(), [0, 0x1234_5678, 0]);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn rings_are_mapped_wherever_their_pages_are_and_taken_back() {
    let (_guard, gpu) = gpu();
    let nodes = [70, 71, 72].map(node);
    let mut mapped = Vec::new();
    for Node { pd, cq, qp } in nodes {
        let send = gpu.map(qp.send.into_gpu()).unwrap();
        let recv = gpu.map(qp.recv.into_gpu()).unwrap();
        let cq = gpu.map(cq.into_gpu().unwrap()).unwrap();
        // The host's view is the GPU's, but for the addresses.
        let (host, there) = (recv.queue().handle(), recv.handle());
        assert_eq!(RecvRing::of(host), RecvRing::of(there));
        assert!(there.ring != 0 && there.doorbell != 0 && cq.handle().ring != 0 && send.handle().wqe_size == 64);
        assert_eq!(cq.handle().doorbell, 0, "nobody asked for events");
        mapped.push((pd, send, recv, cq));
    }
    for (_pd, send, recv, cq) in mapped {
        let send = send.unmap();
        // Once more, while the other rings of the page are mapped or not.
        let send = gpu.map(send).unwrap();
        drop(recv);
        // SAFETY: no kernel has used these rings, so nothing was posted or taken.
        let (cq, send) = unsafe { (cq.unmap().into_idle(0), send.unmap().into_idle(0, 0)) };
        let (cq, send) = (cq.into_cpu(), send.unwrap().into_cpu());
        drop((send, cq));
    }
}

/// A receive ring's handle without addresses.
#[derive(Debug, PartialEq)]
struct RecvRing([u32; 8]);

impl RecvRing {
    fn of(handle: efa_io::RecvRingHandle) -> Self {
        let efa_io::RecvRingHandle { mask, shift, max_batch, producer, credits, max_bufs, qpn, posted, .. } = handle;
        Self([mask, shift, max_batch, producer, credits, max_bufs.into(), qpn.into(), posted])
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_kernel_posts_a_write_from_gpu_memory_into_gpu_memory() {
    let (_guard, gpu) = gpu();
    let ([a, b], [peer, _back]) = nodes(73);
    let (from, to) = (gpu.allocate(100_000).unwrap(), gpu.allocate(100_000).unwrap());
    let source = a.pd.register_gpu(&from, .., Access::LOCAL_READ).unwrap();
    let target = b.pd.register_gpu(&to, 1000..90_000, Access::REMOTE_WRITE).unwrap();
    assert_eq!((target.addr(), target.len()), (to.addr() + 1000, 89_000));
    let bytes = pattern(50_000, 3);
    from.write(20, &bytes).unwrap();

    let (send, cq) = (gpu.map(a.qp.send.into_gpu()).unwrap(), gpu.map(a.cq.into_gpu().unwrap()).unwrap());
    let handle = send.handle();
    let local = source.slice(20..50_020).unwrap().buf();
    let remote = target.remote().slice(30..50_030).unwrap().buf();
    let wqe: efa_io::Wqe64 = efa_io::RdmaWrite::new(local, remote).encode(&handle.limits, peer.destination()).unwrap();
    let wqe = wqe.with_req_id(0).with_phase(handle.size().wq_phase(0));
    let out = gpu.pinned(32).unwrap();
    // SAFETY: `post` takes the two handles, a WQE and the address of 32 bytes, all of which live.
    unsafe { run(&gpu, "post", (handle, *wqe.words(), cq.handle(), out.addr())) };

    let words: Vec<u64> =
        out.read_vec(0, 32).unwrap().chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    let done = Cqe32::from_words(words.try_into().unwrap()).decode().unwrap();
    assert_eq!((done.status, done.event), (Status::Ok, Event::Send { op: OpCode::RdmaWrite }));
    assert_eq!(to.read_vec(1030, 50_000).unwrap(), bytes);
    assert!(to.read_vec(0, 1030).unwrap().iter().all(|&byte| byte == 0));
    assert!(to.read_vec(51_030, 1000).unwrap().iter().all(|&byte| byte == 0));
    // What the kernel did, for the way back.
    // SAFETY: the kernel is over; it posted one request and took its completion.
    unsafe {
        assert!(send.unmap().into_idle(1, 1).is_ok());
        drop(cq.unmap().into_idle(1));
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn gpu_memory_is_source_and_target_of_the_cpu_s_requests() {
    let (_guard, gpu) = gpu();
    let ([a, b], [peer, _back]) = nodes(75);
    let (from, to) = (gpu.allocate(1 << 20).unwrap(), gpu.allocate(1 << 20).unwrap());
    let source = a.pd.register_gpu(&from, .., Access::ALL).unwrap();
    let target = b.pd.register_gpu(&to, .., Access::ALL).unwrap();
    let bytes = pattern(1 << 20, 4);
    source.write(0, &bytes).unwrap();
    let (mut sq, mut cq) = (a.qp.send.into_cpu(), a.cq.into_cpu());
    sq.post(&peer, RdmaWrite::new(source.slice(..).unwrap(), target.remote().slice(..).unwrap()), 1).unwrap();
    sq.ring();
    assert!(cq.wait(PATIENCE).unwrap().status.is_ok());
    assert_eq!(to.read_vec(0, 1 << 20).unwrap(), bytes);

    let remote = target.remote().slice(..8).unwrap();
    drop(target);
    sq.post(&peer, RdmaWrite::new(source.slice(..8).unwrap(), remote), 2).unwrap();
    sq.ring();
    assert_eq!(cq.wait(PATIENCE).unwrap().status, Status::RemoteBadAddress, "it is gone");
    assert!(a.pd.register_gpu(&from, ..(1 << 20) + 1, Access::ALL).is_err());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_software_device_writes_into_gpu_memory_while_a_kernel_waits_there() {
    let (_guard, gpu) = gpu();
    let ([a, b], [peer, _back]) = nodes(77);
    let (word, out) = (gpu.allocate(4).unwrap(), gpu.pinned_words(1).unwrap());
    let target = b.pd.register_gpu(&word, .., Access::REMOTE_WRITE).unwrap();
    let source = a.pd.allocate(4, Access::LOCAL_READ).unwrap();
    source.write(0, &1u32.to_le_bytes()).unwrap();
    let (mut sq, mut cq) = (a.qp.send.into_cpu(), a.cq.into_cpu());
    let (kernel, stream) = kernel(&gpu, "relay");
    // SAFETY: `relay` takes two addresses and a word; the memory lives until it is over.
    let running = unsafe { kernel.launch(&stream, Shape::new(1, 1), (word.addr(), out.addr(), 99u32)) }.unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(!running.is_done());
    // Neither does the host's copy wait for the kernel.
    assert_eq!(word.read_vec(0, 4).unwrap(), [0; 4]);
    sq.post(&peer, RdmaWrite::new(source.slice(..).unwrap(), target.remote().slice(..).unwrap()), 1).unwrap();
    sq.ring();
    assert!(cq.wait(PATIENCE).unwrap().status.is_ok());
    let start = Instant::now();
    running.wait().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "the kernel saw the write, rather than its end");
    assert_eq!(out[0].load(Acquire), 99);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_kernel_reads_a_completion_counter() {
    let (_guard, gpu) = gpu();
    let [da, db] = ["soft79", "soft80"].map(|name| Device::open(name).unwrap());
    let (pa, pb) = (da.alloc_pd().unwrap(), db.alloc_pd().unwrap());
    let cqs = [&da, &db].map(|device| device.create_cq(CqConfig::new(64)).unwrap());
    let counter = da.create_counter().unwrap();
    let qa = pa.create_qp(&cqs[0], &cqs[0], QpConfig::new(16, 16)).unwrap();
    qa.attach_counter(&counter, CounterOps::RDMA_WRITE).unwrap();
    let qa = qa.activate(1).unwrap();
    let qb = pb.create_qp(&cqs[1], &cqs[1], QpConfig::new(16, 16)).unwrap().activate(2).unwrap();
    let (peer, _back) = (pa.peer(&qb.endpoint).unwrap(), pb.peer(&qa.endpoint).unwrap());
    let (here, there) = (pa.allocate(8, Access::ALL).unwrap(), pb.allocate(8, Access::ALL).unwrap());
    let mut sq = qa.send.into_cpu();
    for id in 0..3 {
        let write = RdmaWrite::new(here.slice(..).unwrap(), there.remote().slice(..).unwrap());
        sq.post(&peer, write, id).unwrap();
    }
    sq.ring();
    let start = Instant::now();
    while counter.completions() < 3 {
        assert!(start.elapsed() < PATIENCE);
    }
    let (mapped, out) = (gpu.map(counter).unwrap(), gpu.pinned(16).unwrap());
    let handle = mapped.handle();
    // SAFETY: `copy` takes two addresses and a number of words.
    unsafe {
        run(&gpu, "copy", (handle.completions, out.addr(), 1u32));
        run(&gpu, "copy", (handle.errors, out.addr() + 8, 1u32));
    }
    assert_eq!(out.read_vec(0, 16).unwrap(), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(mapped.unmap().completions(), 3);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_kernel_that_waits_in_vain_says_for_what() {
    let (_guard, gpu) = gpu();
    let timeout = Duration::from_millis(200);
    let watchdog = gpu.watchdog(timeout).unwrap();
    let (kernel, stream) = kernel(&gpu, "wait_in_vain");
    for _ in 0..2 {
        // SAFETY: `wait_in_vain` takes a watchdog, which lives.
        let running = unsafe { kernel.launch(&stream, Shape::new(1, 1), (watchdog.handle(),)) }.unwrap();
        let error = running.wait_watched(&watchdog).unwrap_err();
        let GpuError::KernelTimedOut { waited, .. } = error else { panic!("{error}") };
        assert_eq!(waited, TimeoutReport { what: TimeoutReport::COMPLETION, number: 0, seen: 16, wanted: 17 });
        let text =
            "kernel wait_in_vain waited 0.2 s in vain for completion 17 of a completion queue, of which 16 have come";
        assert_eq!(error.to_string(), text);
    }
    // One that has nothing to say.
    let word = gpu.pinned_words(1).unwrap();
    let put = gpu.load(PTX).unwrap().kernel("put").unwrap();
    // SAFETY: `put` takes an address and a word.
    let running = unsafe { put.launch(&stream, Shape::new(1, 1), (word.addr(), 1u32)) }.unwrap();
    running.wait_watched(&watchdog).unwrap();
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_kernel_that_does_not_give_up_is_told_from_one_that_does() {
    let (_guard, gpu) = gpu();
    let words = gpu.pinned_words(2).unwrap();
    let watchdog = gpu.watchdog(Duration::from_millis(100)).unwrap().with_grace(Duration::from_millis(100));
    let (kernel, stream) = kernel(&gpu, "relay");
    let args = (words.addr(), words.addr() + 4, 5u32);
    // SAFETY: `relay` takes two addresses and a word; the words live until it is over.
    let running = unsafe { kernel.launch(&stream, Shape::new(1, 1), args) }.unwrap();
    let error = running.wait_watched(&watchdog).unwrap_err();
    assert!(matches!(error, GpuError::KernelHangs { .. }), "{error}");
    assert!(error.to_string().contains("nvidia-smi --gpu-reset"), "{error}");
    assert!(!running.is_done());
    words[0].store(1, Release);
    running.wait().unwrap();
    assert!(running.is_done());
    running.wait_watched(&watchdog).unwrap();
    assert_eq!(words[1].load(Acquire), 5);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn what_cannot_be_loaded_or_launched_is_told() {
    let (_guard, gpu) = gpu();
    let error = gpu.load(&[(80, ".version 7.0\n.target sm_80\n.address_size 64\nthis is no PTX\n")]).unwrap_err();
    println!("{error}");
    let GpuError::Compile { arch: 80, log, .. } = error else { panic!("{error}") };
    assert!(!log.is_empty(), "the compiler says why");
    let error = gpu.load(&[(999, PTX[0].1)]).unwrap_err().to_string();
    assert!(error.contains("the kernels were compiled for sm_999"), "{error}");
    let module = gpu.load(PTX).unwrap();
    let error = module.kernel("poost").unwrap_err().to_string();
    assert!(error.starts_with("the module has no kernel \"poost\""), "{error}");
    let (put, stream) = (module.kernel("put").unwrap(), gpu.stream().unwrap());
    if gpu.info().driver >= (12, 4) {
        assert_eq!(put.takes(), Some(&[8, 4][..]));
        // SAFETY: these are not its arguments, and so it is not launched.
        let error = unsafe { put.launch(&stream, Shape::new(1, 1), (1u32,)) }.unwrap_err().to_string();
        assert_eq!(error, "kernel put takes arguments of these sizes in bytes: 8, 4; given were: 4");
    }
    // SAFETY: no block has so many threads, and so it is not launched.
    let error = unsafe { put.launch(&stream, Shape::new(1, 5000), (0u64, 0u32)) }.unwrap_err();
    assert!(matches!(error, GpuError::Launch { .. }), "{error}");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn completion_queues_are_where_the_caller_says_or_nowhere() {
    let (_guard, gpu) = gpu();
    let device = Device::open("soft81").unwrap();
    let error = device.create_cq_on(&gpu, CqConfig::new(64), CqPlace::GpuMemory).unwrap_err().to_string();
    println!("{error}");
    assert!(!gpu.info().dmabuf || error.contains("choose `CqPlace::PinnedHost`"), "{error}");
    let error = device.create_counter_on(&gpu).unwrap_err().to_string();
    assert!(!gpu.info().dmabuf || error.contains("map one of `Device::create_counter`"), "{error}");
    let cq = device.create_cq_on(&gpu, CqConfig::new(64), CqPlace::PinnedHost).unwrap();
    assert_eq!((cq.place(), cq.entries(), cq.handle().cqe_size), (CqPlace::PinnedHost, 64, 32));
    let pd = device.alloc_pd().unwrap();
    let qp = pd.create_qp(&cq, &cq, QpConfig::new(16, 16)).unwrap();
    drop(qp);
    assert!(cq.into_mapped().is_ok());
}

/// In a process of its own, which has lost the GPU then.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_kernel_that_fails_is_named_and_nothing_panics_afterwards() {
    const CHILD: &str = "EFA_CUDA_FAIL";
    if std::env::var_os(CHILD).is_none() {
        let (_guard, _gpu) = gpu();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([
            "a_kernel_that_fails_is_named_and_nothing_panics_afterwards",
            "--exact",
            "--ignored",
            "--nocapture",
        ]);
        let output = child.env(CHILD, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let (_guard, gpu) = gpu();
    let (memory, words) = (gpu.allocate(8).unwrap(), gpu.pinned_words(1).unwrap());
    let (put, stream) = kernel(&gpu, "put");
    // SAFETY: no memory is at address 8, which the GPU notices.
    let running = unsafe { put.launch(&stream, Shape::new(1, 1), (8u64, 1u32)) }.unwrap();
    let error = running.wait().unwrap_err();
    println!("{error}");
    assert!(matches!(error, GpuError::KernelFailed { .. }), "{error}");
    assert!(error.to_string().contains("kernel put, or one before it, failed") && running.is_done());
    assert!(memory.read_vec(0, 8).is_err() && gpu.allocate(8).is_err());
    assert_eq!(words[0].load(Acquire), 0);
}
