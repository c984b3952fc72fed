//! The builder: adds objects one by one, and lays their tables out.

use super::{Error, Memory};
use crate::tables::{Ah, Control, Cq, FIRST_AH, FIRST_QPN, MAX_RECV_BUFS, NO_AH, Progress, QueuePair, Region, Tables};
use bytemuck::Zeroable;
use efa_gpu_device::warp::LANES;
use efa_io::handle::unique_tag;
use efa_io::{CompletionRingHandle, Cqe32, Limits, RecvRingHandle, RingSize, RxDesc, SendRingHandle};
use std::mem::offset_of;
use std::ops::BitOr;

/// Alignment of rings, doorbells and tables: lines that nobody shares with others.
const ALIGN: usize = 128;
/// Most entries of a completion queue.
const MAX_CQ_ENTRIES: u32 = 1 << 20;

/// Access rights of a region. Local reads are always allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access(u32);

impl Access {
    /// Local reads only.
    pub const LOCAL_READ: Self = Self(0);
    /// The device may write it for its owner: receives, and targets of RDMA reads.
    pub const LOCAL_WRITE: Self = Self(Region::LOCAL_WRITE);
    /// Peers may write it.
    pub const REMOTE_WRITE: Self = Self(Region::REMOTE_WRITE);
    /// Peers may read it.
    pub const REMOTE_READ: Self = Self(Region::REMOTE_READ);
    /// Everything.
    pub const ALL: Self = Self(Region::LOCAL_WRITE | Region::REMOTE_WRITE | Region::REMOTE_READ);
}

impl BitOr for Access {
    type Output = Self;
    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId(u32);

/// A protection domain of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Domain(u32);

/// A completion queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CqId(u32);

/// Attributes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Longest send in bytes.
    pub mtu: u32,
    /// Longest RDMA operation in bytes.
    pub max_rdma_bytes: u32,
    /// Most WQEs between two doorbells, in units of 64 bytes.
    pub max_tx_batch: u32,
    /// RDMA read works.
    pub rdma_read: bool,
    /// RDMA write works.
    pub rdma_write: bool,
    /// Send queues carry 64-bit request ids.
    pub req_id_64: bool,
    /// The device delivers to itself. EFA does not.
    pub loopback: bool,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            mtu: 8192,
            max_rdma_bytes: 1 << 30,
            max_tx_batch: 512,
            rdma_read: true,
            rdma_write: true,
            req_id_64: true,
            loopback: false,
        }
    }
}

/// Configuration of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpConfig {
    /// Most outstanding sends; rounded up to a power of two.
    pub send_entries: u32,
    /// Most outstanding receives.
    pub recv_entries: u32,
    /// Most buffers of a receive.
    pub recv_bufs: u32,
    /// Completion queue of sends.
    pub send_cq: CqId,
    /// Completion queue of receives.
    pub recv_cq: CqId,
    /// The queue key that a message must have.
    pub qkey: u32,
    /// Longest inline message in bytes; over 32 asks for 128-byte WQEs.
    pub inline_bytes: u16,
    /// Inline RDMA writes; asks for 128-byte WQEs.
    pub inline_write: bool,
    /// Writes with immediate take no receive.
    pub unsolicited_write_recv: bool,
}

impl QpConfig {
    /// A queue pair with so many sends, and receives of one buffer, with 64-byte WQEs.
    pub fn new(send_entries: u32, recv_entries: u32, send_cq: CqId, recv_cq: CqId, qkey: u32) -> Self {
        Self {
            send_entries,
            recv_entries,
            recv_bufs: 1,
            send_cq,
            recv_cq,
            qkey,
            inline_bytes: 32,
            inline_write: false,
            unsolicited_write_recv: false,
        }
    }

    /// Chooses 128-byte WQEs, 80 bytes inline and inline writes.
    pub fn wqe_128(self) -> Self {
        Self { inline_bytes: 80, inline_write: true, ..self }
    }
}

/// The keys of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionKeys {
    /// Key for the owner's work requests; 24 bits.
    pub lkey: u32,
    /// Key for peers.
    pub rkey: u32,
}

/// The handles of a queue pair, for a kernel that posts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// Its number.
    pub qpn: u16,
    /// The send queue.
    pub send: SendRingHandle,
    /// The receive queue.
    pub recv: RecvRingHandle,
}

/// Tables that were laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Address of the [`Tables`].
    pub tables: u64,
    /// Most warps that have something to do: the number of queue pairs.
    pub warps: u32,
    progress: u64,
}

impl Placed {
    /// Returns the address of the word to which the host writes [`Progress::ERROR`] to put a queue pair into the error
    /// state.
    pub fn state_of(&self, qpn: u16) -> u64 {
        let index = u64::from(qpn).saturating_sub(FIRST_QPN.into());
        self.progress + index * size_of::<Progress>() as u64 + offset_of!(Progress, state) as u64
    }
}

/// A completion queue that was added.
#[derive(Clone, Copy)]
struct CompletionQueue {
    row: Cq,
    /// Requests that its queue pairs may have outstanding.
    needs: u64,
    tag: u32,
}

/// Builds the tables of a NIC, object by object.
pub struct Builder {
    rng: fastrand::Rng,
    idle_timeout_ns: u64,
    first: u32,
    devices: Vec<DeviceConfig>,
    /// Each domain's device.
    domains: Vec<u32>,
    regions: Vec<Region>,
    completion_queues: Vec<CompletionQueue>,
    address_handles: Vec<Ah>,
    queue_pairs: Vec<QueuePair>,
    progress: Vec<Progress>,
}

impl Builder {
    /// A builder without objects. Keys are drawn from the seed.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            idle_timeout_ns: 10_000_000_000,
            first: 0,
            devices: vec![],
            domains: vec![],
            regions: vec![],
            completion_queues: vec![],
            address_handles: vec![],
            queue_pairs: vec![],
            progress: vec![],
        }
    }

    /// Sets how many nanoseconds a warp of the NIC waits for work before it returns; ten seconds if not set.
    pub fn idle_timeout_ns(&mut self, ns: u64) -> &mut Self {
        self.idle_timeout_ns = ns;
        self
    }

    /// Sets the first value of the counters of send and receive rings that are added from here on; zero if not set.
    /// For tests of their wrap.
    pub fn first_counter(&mut self, counter: u32) -> &mut Self {
        self.first = counter;
        self
    }

    /// Adds a device.
    pub fn device(&mut self, config: DeviceConfig) -> DeviceId {
        self.devices.push(config);
        DeviceId(self.devices.len() as u32 - 1)
    }

    /// Adds a protection domain.
    ///
    /// # Errors
    /// No such device.
    pub fn domain(&mut self, device: DeviceId) -> Result<Domain, Error> {
        self.config(device.0)?;
        self.domains.push(device.0);
        Ok(Domain(self.domains.len() as u32 - 1))
    }

    /// Registers `len` bytes at `base`, an address for whoever runs the NIC.
    ///
    /// # Errors
    /// No such domain, a range that wraps, or more regions than keys can tell apart.
    pub fn region(&mut self, pd: Domain, base: u64, len: u64, access: Access) -> Result<RegionKeys, Error> {
        self.device_of(pd)?;
        limit("regions", self.regions.len() as u64 + 1, 1 << 16)?;
        if base.checked_add(len).is_none() {
            return Err(Error::RegionWraps { base, len });
        }
        let index = self.regions.len() as u32;
        let lkey = index << 8 | u32::from(self.rng.u8(1..));
        let rkey = index << 16 | u32::from(self.rng.u16(1..));
        self.regions.push(Region { base, len, pd: pd.0, access: access.0, lkey, rkey });
        Ok(RegionKeys { lkey, rkey })
    }

    /// Returns the number of the address handle that leads from a domain to a device. There is one for each such pair,
    /// however often this is called.
    ///
    /// # Errors
    /// No such domain or device, or more handles than numbers.
    pub fn address_handle(&mut self, pd: Domain, to: DeviceId) -> Result<u16, Error> {
        self.device_of(pd)?;
        self.config(to.0)?;
        let ah = Ah { pd: pd.0, target: to.0 };
        let index = match self.address_handles.iter().position(|known| *known == ah) {
            Some(index) => index,
            None => {
                limit("address handles", self.address_handles.len() as u64 + 1, u64::from(NO_AH - FIRST_AH))?;
                self.address_handles.push(ah);
                self.address_handles.len() - 1
            }
        };
        Ok((FIRST_AH as usize + index) as u16)
    }

    /// Adds a completion queue, whose ring goes to `memory`. The number of entries is rounded up to a power of two.
    ///
    /// # Errors
    /// None, more than 2^20 entries, or no memory.
    pub fn completion_queue(&mut self, memory: &mut dyn Memory, entries: u32) -> Result<CqId, Error> {
        let size = ring_size("completion queue entries", entries, MAX_CQ_ENTRIES)?;
        let ring = allocate(memory, "a completion queue", size.entries() as usize * Cqe32::SIZE)?;
        let row = Cq { ring, mask: size.mask(), ..Cq::zeroed() };
        self.completion_queues.push(CompletionQueue { row, needs: 0, tag: unique_tag() });
        Ok(CqId(self.completion_queues.len() as u32 - 1))
    }

    /// Returns the handle of a completion queue, for a kernel that polls.
    ///
    /// # Errors
    /// No such completion queue.
    pub fn completions(&self, cq: CqId) -> Result<CompletionRingHandle, Error> {
        let CompletionQueue { row: Cq { ring, mask, .. }, tag, .. } = *self.find(cq)?;
        let (shift, cqe_size) = (RingSize::from_mask(mask).log2() as u16, Cqe32::SIZE as u16);
        Ok(CompletionRingHandle { ring, doorbell: 0, mask, shift, cqe_size, consumer: 0, tag })
    }

    fn find(&self, cq: CqId) -> Result<&CompletionQueue, Error> {
        self.completion_queues.get(cq.0 as usize).ok_or(Error::NoSuch { kind: "completion queue", id: cq.0 })
    }

    /// Adds a queue pair, ready to send, whose rings and doorbells go to `memory`.
    ///
    /// # Errors
    /// No such domain or completion queue, a completion queue that could overflow, more than fits a ring, an operation
    /// that the device lacks, or no memory.
    pub fn queue_pair(&mut self, memory: &mut dyn Memory, pd: Domain, config: QpConfig) -> Result<Queues, Error> {
        let device = self.device_of(pd)?;
        let DeviceConfig { mtu, max_rdma_bytes, max_tx_batch, rdma_read, rdma_write, req_id_64, loopback } =
            *self.config(device)?;
        if config.inline_write && !rdma_write {
            return Err(Error::Unsupported("RDMA write"));
        }
        limit("queue pairs", self.queue_pairs.len() as u64 + 1, u64::from(0x1_0000 - FIRST_QPN))?;
        limit("bytes of an RDMA operation", max_rdma_bytes.into(), 1 << 31)?;
        limit("inline bytes", config.inline_bytes.into(), 80)?;
        limit("buffers in a receive", config.recv_bufs.into(), MAX_RECV_BUFS.into())?;
        let recv_bufs = config.recv_bufs.max(1);
        let most = RingSize::MAX_WQ_ENTRIES;
        let send = ring_size("sends", config.send_entries.max(1), most)?;
        let recv = ring_size("receive descriptors", config.recv_entries.saturating_mul(recv_bufs).max(1), most)?;
        // A batch that is taken out never overlaps with what of it is parked again.
        let parked = ring_size("sends", send.entries() + LANES, u32::MAX)?;
        self.reserve_completions([(config.send_cq, send.entries()), (config.recv_cq, config.recv_entries)])?;

        let wqe_size = if config.inline_bytes > 32 || config.inline_write { 128 } else { 64 };
        let send_ring = allocate(memory, "a send ring", send.entries() as usize * wqe_size)?;
        let recv_ring = allocate(memory, "a receive ring", recv.entries() as usize * RxDesc::SIZE)?;
        let doorbells = allocate(memory, "doorbells", 2 * ALIGN)?;
        let parked_wqes = allocate(memory, "WQEs that wait", parked.entries() as usize * wqe_size)?;
        let taken = allocate(memory, "receives that are taken", (LANES * MAX_RECV_BUFS) as usize * RxDesc::SIZE)?;
        let (send_doorbell, recv_doorbell) = (doorbells, doorbells + ALIGN as u64);

        let qpn = FIRST_QPN + self.queue_pairs.len() as u32;
        let can = |can, operation| if can { operation } else { 0 };
        let limits = Limits {
            max_send_bytes: mtu,
            max_rdma_bytes,
            max_inline_bytes: config.inline_bytes,
            max_send_bufs: 2,
            operations: can(rdma_read, Limits::RDMA_READ)
                | can(rdma_write, Limits::RDMA_WRITE)
                | can(config.inline_write, Limits::INLINE_WRITE),
        };
        for doorbell in [send_doorbell, recv_doorbell] {
            let written = memory.write(doorbell, &self.first.to_le_bytes());
            written.map_err(|source| Error::Memory { what: "doorbells", source })?;
        }
        let (send_consumer, recv_consumer) = (self.first, self.first);
        self.progress.push(Progress { send_consumer, recv_consumer, ..Progress::zeroed() });
        self.queue_pairs.push(QueuePair {
            send_ring,
            send_doorbell,
            recv_ring,
            recv_doorbell,
            parked: parked_wqes,
            taken,
            device,
            pd: pd.0,
            qpn,
            qkey: config.qkey,
            send_mask: send.mask(),
            wqe_size: wqe_size as u32,
            req_id_64: req_id_64.into(),
            recv_mask: recv.mask(),
            parked_mask: parked.mask(),
            send_cq: config.send_cq.0,
            recv_cq: config.recv_cq.0,
            limits,
            flags: can(config.unsolicited_write_recv, QueuePair::UNSOLICITED_WRITE_RECV)
                | can(loopback, QueuePair::LOOPBACK),
            reserved: [0; 4],
        });
        let send = SendRingHandle {
            ring: send_ring,
            doorbell: send_doorbell,
            mask: send.mask(),
            shift: send.log2(),
            wqe_size: wqe_size as u16,
            qpn: qpn as u16,
            cq: self.find(config.send_cq)?.tag,
            max_batch: (max_tx_batch.saturating_mul(64) / wqe_size as u32).min(send.entries()).max(1),
            producer: self.first,
            credits: send.entries(),
            req_id_64: req_id_64.into(),
            limits,
        };
        let recv = RecvRingHandle {
            ring: recv_ring,
            doorbell: recv_doorbell,
            mask: recv.mask(),
            shift: recv.log2(),
            max_batch: recv.entries(),
            producer: self.first,
            credits: config.recv_entries,
            max_bufs: recv_bufs as u16,
            qpn: qpn as u16,
            cq: self.find(config.recv_cq)?.tag,
            posted: 0,
        };
        Ok(Queues { qpn: qpn as u16, send, recv })
    }

    /// Reserves room for these requests in their completion queues.
    fn reserve_completions(&mut self, more: [(CqId, u32); 2]) -> Result<(), Error> {
        let mut all: Vec<u64> = self.completion_queues.iter().map(|cq| cq.needs).collect();
        for (CqId(cq), entries) in more {
            let (row, needs) = match (self.completion_queues.get(cq as usize), all.get_mut(cq as usize)) {
                (Some(cq), Some(needs)) => (cq.row, needs),
                _ => return Err(Error::NoSuch { kind: "completion queue", id: cq }),
            };
            *needs += u64::from(entries);
            let holds = row.mask + 1;
            if *needs > holds.into() {
                return Err(Error::CqTooSmall { cq, holds, needs: *needs });
            }
        }
        self.completion_queues.iter_mut().zip(all).for_each(|(cq, all)| cq.needs = all);
        Ok(())
    }

    fn config(&self, device: u32) -> Result<&DeviceConfig, Error> {
        self.devices.get(device as usize).ok_or(Error::NoSuch { kind: "device", id: device })
    }

    fn device_of(&self, pd: Domain) -> Result<u32, Error> {
        self.domains.get(pd.0 as usize).copied().ok_or(Error::NoSuch { kind: "protection domain", id: pd.0 })
    }

    /// Lays everything out, with the [`Control`] words in the same memory: for hosts that reach it while the NIC runs.
    ///
    /// # Errors
    /// No memory.
    pub fn place(self, memory: &mut dyn Memory) -> Result<Placed, Error> {
        let control = allocate(memory, "control words", size_of::<Control>())?;
        self.place_with_control(memory, control)
    }

    /// Lays everything out. `control` is the address, as the NIC sees it, of a [`Control`], all zero, in memory that
    /// the host reaches, too.
    ///
    /// # Errors
    /// No memory.
    pub fn place_with_control(self, memory: &mut dyn Memory, control: u64) -> Result<Placed, Error> {
        let (devices, domains) = (self.devices.len(), self.domains.len());
        let mut peers = vec![NO_AH; devices * domains];
        for (index, ah) in self.address_handles.iter().enumerate() {
            peers[ah.pd as usize * devices + ah.target as usize] = FIRST_AH + index as u32;
        }
        let cqs: Vec<Cq> = self.completion_queues.iter().map(|cq| cq.row).collect();
        let mut place = |what, bytes: &[u8]| {
            let at = allocate(memory, what, bytes.len())?;
            memory.write(at, bytes).map_err(|source| Error::Memory { what, source })?;
            Ok::<u64, Error>(at)
        };
        let progress = place("counters", bytemuck::cast_slice(&self.progress))?;
        let tables = Tables {
            queue_pairs: place("queue pairs", bytemuck::cast_slice(&self.queue_pairs))?,
            progress,
            regions: place("regions", bytemuck::cast_slice(&self.regions))?,
            completion_queues: place("completion queues", bytemuck::cast_slice(&cqs))?,
            address_handles: place("address handles", bytemuck::cast_slice(&self.address_handles))?,
            peers: place("peers", bytemuck::cast_slice(&peers))?,
            control,
            idle_timeout_ns: self.idle_timeout_ns,
            queue_pair_count: self.queue_pairs.len() as u32,
            region_count: self.regions.len() as u32,
            completion_queue_count: cqs.len() as u32,
            address_handle_count: self.address_handles.len() as u32,
            devices: devices as u32,
            domains: domains as u32,
        };
        let warps = tables.queue_pair_count;
        Ok(Placed { tables: place("the tables", bytemuck::bytes_of(&tables))?, warps, progress })
    }
}

fn allocate(memory: &mut dyn Memory, what: &'static str, bytes: usize) -> Result<u64, Error> {
    memory.allocate(bytes.max(1), ALIGN).map_err(|source| Error::Memory { what, source })
}

fn limit(what: &'static str, asked: u64, max: u64) -> Result<(), Error> {
    if asked <= max { Ok(()) } else { Err(Error::Limit { what, asked, max }) }
}

/// Returns the smallest ring with at least so many entries.
fn ring_size(what: &'static str, entries: u32, max: u32) -> Result<RingSize, Error> {
    let size = RingSize::at_least(entries).ok().filter(|size| size.entries() <= max);
    size.ok_or(Error::Limit { what, asked: entries.into(), max: max.into() })
}
