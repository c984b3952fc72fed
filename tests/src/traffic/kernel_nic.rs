//! Two nodes on the NIC that runs as a kernel, with all memory in one GPU or in two.

use super::{Area, Bytes, Ends};
use efa_direct::cuda::{Gpu, GpuMemory, Module, PinnedWords, Running, Shape, Stream};
use efa_gpu_nic::host::{Access, Builder, DeviceConfig, Memory, MemoryError, QpConfig};
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

/// A running NIC kernel with two nodes.
pub struct KernelNic {
    ends: Option<Ends>,
    running: Running,
    control: PinnedWords,
    _stream: Stream,
    _memory: OnGpu,
}

/// Allocations in a GPU's memory.
struct OnGpu {
    gpu: Gpu,
    pieces: Vec<GpuMemory>,
}

impl OnGpu {
    fn find(&self, at: u64) -> Result<(&GpuMemory, u64), MemoryError> {
        let inside = |piece: &&GpuMemory| at.checked_sub(piece.addr()).is_some_and(|offset| offset < piece.len());
        let piece = self.pieces.iter().find(inside).ok_or("not allocated here")?;
        Ok((piece, at - piece.addr()))
    }
}

impl Memory for OnGpu {
    fn allocate(&mut self, bytes: usize, _align: usize) -> Result<u64, MemoryError> {
        let piece = self.gpu.allocate(bytes as u64)?;
        self.pieces.push(piece.clone());
        Ok(piece.addr())
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let (piece, offset) = self.find(to)?;
        Ok(piece.write(offset, bytes)?)
    }

    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let (piece, offset) = self.find(from)?;
        Ok(piece.read(offset, into)?)
    }
}

impl Bytes for GpuMemory {
    fn write(&self, offset: u64, bytes: &[u8]) {
        GpuMemory::write(self, offset, bytes).expect("inside");
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        GpuMemory::read(self, offset, into).expect("inside");
    }
}

impl KernelNic {
    /// Starts a NIC with two nodes. `seed` determines the order in which it executes and completes requests. Send
    /// queues have `entries` entries, areas have `bytes` bytes. Node B's areas are in the memory of `far`, which may be
    /// another GPU.
    ///
    /// # Panics
    /// A call of CUDA fails.
    pub fn start(
        [gpu, far]: [&Gpu; 2],
        module: &Module,
        seed: u64,
        wide: bool,
        [entries, receives]: [u32; 2],
        bytes: u64,
    ) -> Self {
        let mut memory = OnGpu { gpu: gpu.clone(), pieces: Vec::new() };
        let mut builder = Builder::new(seed);
        builder.idle_timeout_ns(60_000_000_000);
        let [a, b] = [(); 2].map(|()| builder.device(DeviceConfig::default()));
        let [pd_a, pd_b] = [a, b].map(|device| builder.domain(device).expect("a domain"));
        let [to_b, _to_a] = [(pd_a, b), (pd_b, a)].map(|(pd, to)| builder.address_handle(pd, to).expect("a handle"));
        let mtu = DeviceConfig::default().mtu;
        let area = |builder: &mut Builder, on: &Gpu, pd, len: u64| {
            let piece = on.allocate(len).expect("GPU memory");
            let keys = builder.region(pd, piece.addr(), len, Access::ALL).expect("a region");
            Area { addr: piece.addr(), lkey: keys.lkey, rkey: keys.rkey, len, bytes: Box::new(piece) }
        };
        let [source, sink] = [(); 2].map(|()| area(&mut builder, gpu, pd_a, bytes));
        let [target, origin] = [(); 2].map(|()| area(&mut builder, far, pd_b, bytes));
        let inbox = area(&mut builder, far, pd_b, (mtu * receives).into());
        let cqs = [(); 2].map(|()| builder.completion_queue(&mut memory, entries + receives).expect("a queue"));
        let qkey = 0x1234;
        let [qp_a, qp_b] = [(pd_a, cqs[0]), (pd_b, cqs[1])].map(|(pd, cq)| {
            let config = QpConfig::new(entries, receives, cq, cq, qkey);
            builder.queue_pair(&mut memory, pd, if wide { config.wqe_128() } else { config }).expect("a queue pair")
        });
        let [send_cq, recv_cq] = cqs.map(|cq| builder.completions(cq).expect("a queue"));
        let control = gpu.pinned_words(2).expect("pinned memory");
        let placed = builder.place_with_control(&mut memory, control.addr()).expect("memory");
        let stream = gpu.stream().expect("a stream");
        let kernel = module.kernel("nic").expect("a kernel of ours");
        // SAFETY: the kernel takes these arguments. `Self` keeps the memory of the NIC's tables and areas, and `stop`
        // waits until the kernel has ended; if it does not end, the test panics with `Self` still in use.
        let running = unsafe { kernel.launch(&stream, Shape::new(placed.warps, 32), (placed.tables, seed)) };
        let ends = Ends {
            send: qp_a.send,
            send_cq,
            recv: qp_b.recv,
            recv_cq,
            to: (to_b, qp_b.qpn, qkey),
            from_qpn: qp_a.qpn,
            source,
            sink,
            target,
            origin,
            inbox,
            mtu,
            inline: if wide { 80 } else { 32 },
        };
        Self { ends: Some(ends), running: running.expect("it starts"), control, _stream: stream, _memory: memory }
    }

    /// Returns the ends for one [`Traffic`](super::Traffic).
    pub fn ends(&mut self) -> Ends {
        self.ends.take().expect("once")
    }

    /// Stops the NIC and waits until its kernel has ended.
    ///
    /// # Panics
    /// The kernel failed, timed out, or does not end.
    pub fn stop(self) {
        self.control[0].store(1, Release);
        let mut looks = 0;
        while !self.running.is_done() {
            looks += 1;
            assert!(looks < 10_000, "the NIC does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.running.wait().expect("the NIC ends well");
        assert_eq!(self.control[1].load(Acquire), 0, "the NIC gave up");
    }
}
