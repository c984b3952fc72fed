//! `efa node`: one of two nodes. Node 0 writes into node 1's memory, and node 1 learns of it from its completion queue
//! alone.
//!
//! The nodes exchange their addresses over TCP, as perftest does: each sends a line of JSON. A node checks what the
//! other sends. Other connections are refused and have no effect.

use crate::kernel::{Launcher, Queues};
use crate::report::{EndpointReport, Entry, Failure, NodeReport, Packets, RegionReport, Words};
use crate::watch::Watch;
use crate::wire::{Answer, Plain, Wire, accept_peer, resolve};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use efa_direct::{
    Access, Completion, CompletionKind, CompletionQueue, CpuCompletionQueue, CpuRecvQueue, CqConfig, Device, Endpoint,
    Peer, ProtectionDomain, QpConfig, RdmaWrite, Region, RemoteRegion, SendQueue, Status,
};
use efa_gpu_kernels::traffic::Job;
use efa_io::Wqe64;
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The immediate of the first write. Each further write's is larger by one.
const FIRST_IMM: u32 = 0x1000;
/// The number of sends and of receives that may be outstanding.
const DEPTH: u32 = 128;
/// The number of writes for which a kernel rings once.
const KERNEL_BATCH: u32 = 16;

/// Options of `efa node`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// The device to open; `efa devices` lists names.
    #[arg(long, default_value = "soft:udp=127.0.0.1:0")]
    pub(crate) device: String,
    /// Be node 1: wait at this address (port 0 stands for a free one), and let node 0 write into this node's memory.
    /// Connections that are not from a node 0 are refused.
    #[arg(long, conflicts_with = "connect", value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Be node 0: connect to node 1 at this address and write into its memory.
    #[arg(long, required_unless_present = "listen", value_name = "HOST:PORT")]
    pub(crate) connect: Option<String>,
    #[command(flatten)]
    pub(crate) work: Work,
    /// The processor that posts node 0's writes and polls their completions.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) poster: Poster,
    /// Print the report as a line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Write all events of the device to this file, for `chrome://tracing` or ui.perfetto.dev. Software devices only.
    #[arg(long)]
    pub(crate) trace: Option<PathBuf>,
}

/// The processor that posts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Poster {
    /// This processor.
    #[default]
    Cpu,
    /// A kernel: on the GPU if there is one, in the executor otherwise.
    Gpu,
}

/// The work of both nodes. Node 1 uses node 0's values, except the timeout.
#[derive(Args, Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    /// Bytes of each write, a multiple of 8.
    #[arg(long, default_value_t = 4096)]
    pub(crate) size: u64,
    /// Number of writes.
    #[arg(long, default_value_t = 1)]
    pub(crate) count: u64,
    /// Seed of what is written (and in `efa demo`, of the network).
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Seconds to wait for a completion, or for the other node's word; each node's own, at most a week.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=7 * 24 * 3600))]
    #[serde(skip)]
    pub(crate) timeout: u64,
}

/// The line that a listening node prints first, in JSON mode.
#[derive(Serialize, Deserialize)]
pub(crate) struct Listening {
    pub(crate) listening: SocketAddr,
}

/// The first message of a node to the other.
#[derive(Serialize, Deserialize)]
struct Hello {
    endpoint: EndpointReport,
    region: RegionReport,
    work: Work,
}

/// Runs `efa node`. Returns `true` if all writes succeeded and all words match.
pub(crate) fn main(options: &Options) -> Result<bool> {
    let (report, good) = match (options.listen.as_deref(), options.connect.as_deref()) {
        (Some(at), _) => run_target(options, at)?,
        (None, Some(to)) => run_writer(options, to)?,
        (None, None) => bail!("either --listen or --connect"),
    };
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(good)
}

impl Work {
    /// Returns the number of bytes of all writes together.
    ///
    /// # Errors
    /// A value is invalid, or there are more than 4 GiB.
    pub(crate) fn total(&self) -> Result<usize> {
        ensure!(
            self.size > 0 && self.size.is_multiple_of(8),
            "--size {}: give a positive multiple of 8 bytes",
            self.size
        );
        ensure!(self.count > 0, "--count 0: give at least one write");
        let total = self.size.checked_mul(self.count).filter(|&total| total <= 1 << 32);
        let total = total.with_context(|| format!("{} writes of {} bytes: keep it to 4 GiB", self.count, self.size))?;
        usize::try_from(total).context("more than this machine can address")
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Returns the word at this index of all bytes.
    fn word(&self, index: u64) -> u64 {
        split_mix((self.seed << 40).wrapping_add(index))
    }

    /// Returns the bytes of write number `k`.
    fn block(&self, k: u64) -> Vec<u8> {
        let words = self.size / 8;
        (k * words..(k + 1) * words).flat_map(|index| self.word(index).to_le_bytes()).collect()
    }
}

/// Returns the SplitMix64 hash of an index. With such words, a block that was written to a wrong place does not match.
pub(crate) fn split_mix(index: u64) -> u64 {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns a queue key that depends on the seed. Its highest bit is clear, because InfiniBand reserves keys with that
/// bit to privileged users.
pub(crate) fn qkey(seed: u64) -> u32 {
    (seed as u32).wrapping_mul(0x9e37_79b9) & 0x7fff_ffff | 1
}

fn describe(endpoint: &Endpoint, region: &Region<'_>) -> (EndpointReport, RegionReport) {
    let Endpoint { gid, qpn, qkey } = *endpoint;
    let keys = region.keys();
    let region = RegionReport { addr: region.addr(), len: region.len(), lkey: keys.lkey, rkey: keys.rkey };
    (EndpointReport { gid: gid.to_string(), qpn, qkey }, region)
}

impl Hello {
    fn endpoint(&self) -> Result<Endpoint> {
        let EndpointReport { gid, qpn, qkey } = &self.endpoint;
        // The GID is escaped (`{:?}`), and it is short, because a line is.
        let gid = gid.parse().map_err(|error| anyhow!("the other node's GID {gid:?}: {error}"))?;
        Ok(Endpoint { gid, qpn: *qpn, qkey: *qkey })
    }

    /// Returns the memory that the other node offers, which must have this many bytes.
    fn region(&self, total: usize) -> Result<RemoteRegion> {
        let RegionReport { addr, len, rkey, .. } = self.region;
        ensure!(len == total as u64, "the other node's memory has {len} bytes, asked were {total}");
        ensure!(
            addr.checked_add(len).is_some(),
            "the other node's {len} bytes at {addr:#x} pass the end of all memory"
        );
        Ok(RemoteRegion { addr, rkey, len })
    }
}

fn next_completion(cq: &mut CpuCompletionQueue, work: &Work, device: &Device) -> Result<Completion> {
    cq.wait(work.patience()).with_context(|| {
        let counters = device.counters();
        format!(
            "no completion within {} s: {} packets sent, {} received",
            work.timeout, counters.tx_pkts, counters.rx_pkts
        )
    })
}

fn open(options: &Options) -> Result<(Device, ProtectionDomain, Watch)> {
    let device = Device::open(&options.device)?;
    let watch = Watch::over(&device);
    let pd = device.alloc_pd()?;
    Ok((device, pd, watch))
}

/// Runs node 0.
fn run_writer(options: &Options, to: &str) -> Result<(NodeReport, bool)> {
    let work = options.work;
    let total = work.total()?;
    let (device, pd, watch) = open(options)?;
    let max = device.attributes().max_rdma_bytes;
    ensure!(work.size <= max.into(), "--size {}: the device writes at most {max} bytes at once", work.size);
    let cq = device.create_cq(CqConfig::new(2 * DEPTH))?;
    let qp = pd.create_qp(&cq, &cq, QpConfig::new(DEPTH, 1))?.activate(qkey(work.seed))?;
    let region = pd.allocate(total, Access::LOCAL_READ)?;
    for k in 0..work.count {
        region.write(k * work.size, &work.block(k))?;
    }

    let mut wire = Wire::connect(to, work.patience())?;
    let (endpoint, described) = describe(&qp.endpoint, &region);
    wire.send(&Hello { endpoint: endpoint.clone(), region: described.clone(), work })?;
    let theirs: Hello = match wire.receive()? {
        Answer::Welcome(hello) => hello,
        Answer::Refused(why) => bail!("the other node refused: {}", Plain(&why)),
    };
    let peer = pd.peer(&theirs.endpoint()?)?;
    let remote = theirs.region(total)?;

    let writes = Writes { work, peer: &peer, region: &region, remote: &remote, device: &device };
    let posted = match options.poster {
        Poster::Cpu => writes.by_cpu(qp.send, cq)?,
        Poster::Gpu => writes.by_kernel(qp.send, cq)?,
    };
    let Posted { poster, wqe, doorbell, completion, completed, failure, microseconds } = posted;
    let good = match failure {
        None => {
            let Words { matching, total: compared } = wire.receive()?;
            wire.send(&"bye")?;
            ensure!(compared == total as u64 / 8, "the other node compared {compared} words of {}", total / 8);
            matching == compared
        }
        Some(_) => false,
    };
    let report = NodeReport {
        node: 0,
        device: options.device.clone(),
        endpoint,
        region: described,
        operations: completed,
        size: work.size,
        poster,
        wqe,
        doorbell,
        completion,
        completions: completed,
        failure,
        words: None,
        packets: Packets::of(&device.counters(), device.link_counters()),
        timeline: watch.timeline(),
        microseconds,
    };
    watch.export(options.trace.as_deref(), 0)?;
    Ok((report, good))
}

/// The writes of node 0.
struct Writes<'a> {
    work: Work,
    peer: &'a Peer,
    region: &'a Region<'a>,
    remote: &'a RemoteRegion,
    device: &'a Device,
}

/// The result of node 0's writes.
struct Posted {
    poster: Option<String>,
    wqe: Option<Entry>,
    doorbell: Option<u32>,
    completion: Option<Entry>,
    completed: u64,
    failure: Option<Failure>,
    microseconds: u64,
}

impl Writes<'_> {
    /// Returns write number `k`.
    fn request(&self, k: u64) -> Result<RdmaWrite<'_>> {
        let range = k * self.work.size..(k + 1) * self.work.size;
        let write = RdmaWrite::new(self.region.slice(range.clone())?, self.remote.slice(range)?);
        Ok(write.imm(FIRST_IMM.wrapping_add(k as u32)))
    }

    /// Posts the writes from this processor.
    fn by_cpu(&self, send: SendQueue<8>, cq: CompletionQueue) -> Result<Posted> {
        let work = self.work;
        let (mut sq, mut cq) = (send.into_cpu(), cq.into_cpu());
        let (mut wqe, mut doorbell, mut completion) = (None, None, None);
        let (mut posted, mut completed, mut failure) = (0, 0, None);
        let start = Instant::now();
        while completed < work.count && failure.is_none() {
            while posted < work.count && sq.room() > 0 {
                let request = self.request(posted)?;
                if wqe.is_none() {
                    let preview = sq.preview(self.peer, request, posted)?;
                    wqe = Some(Entry::new(preview.as_bytes(), &preview));
                }
                sq.post(self.peer, request, posted)?;
                posted += 1;
                if doorbell.is_none() {
                    sq.ring();
                    doorbell = Some(sq.doorbell().value());
                }
            }
            sq.ring();
            let done = next_completion(&mut cq, &work, self.device)?;
            if !done.status.is_ok() {
                failure = Some(Failure::new(done.wr_id, done.status));
            }
            if completion.is_none() || failure.is_some() {
                let entry = cq.peek_back(1);
                completion = Some(Entry::new(entry.as_bytes(), &entry));
            }
            completed += 1;
        }
        let microseconds = start.elapsed().as_micros() as u64;
        Ok(Posted { poster: None, wqe, doorbell, completion, completed, failure, microseconds })
    }

    /// Posts the writes from a kernel, which owns both rings meanwhile.
    fn by_kernel(&self, send: SendQueue<8>, cq: CompletionQueue) -> Result<Posted> {
        let launcher = Launcher::find();
        let poster = Some(launcher.describe());
        let queues = Queues { send: send.into_gpu(), cq: cq.into_gpu()? };
        let to = self.peer.destination();
        let job = |k: u64| -> Result<Job> {
            let at = k * self.work.size;
            let (local, remote) =
                (self.region.slice(at..at + self.work.size)?.buf(), self.remote.slice(at..at + self.work.size)?.buf());
            let imm = FIRST_IMM.wrapping_add(k as u32);
            let (lkey, length) = (local.lkey.get(), local.length);
            let (local, remote, rkey) = (local.addr, remote.addr, remote.rkey);
            Ok(Job { kind: Job::WRITE_IMM, imm, length, lkey, rkey, split: 0, local, remote })
        };
        let jobs = (0..self.work.count).map(job).collect::<Result<Vec<_>>>()?;
        let limits = queues.send.handle().limits;
        let (local, remote) = (self.region.slice(..self.work.size)?.buf(), self.remote.slice(..self.work.size)?.buf());
        let first: Wqe64 = efa_io::RdmaWrite::new(local, remote).imm(FIRST_IMM).encode(&limits, to)?;
        let wqe = Some(Entry::new(first.as_bytes(), &first));
        let doorbell = Some(self.work.count.min(KERNEL_BATCH.into()) as u32);
        let start = Instant::now();
        let (queues, outcome) = launcher.run(queues, to, &jobs, KERNEL_BATCH, self.work.patience())?;
        let microseconds = start.elapsed().as_micros() as u64;
        // SAFETY: the kernel has ended, so nothing else polls the queue, and it has reported the number of entries that
        // it consumed.
        let entry = unsafe { queues.cq.into_idle(outcome.sent.consumed) }.into_cpu().peek_back(1);
        let failed = outcome.statuses.iter().position(|&status| status > 1);
        let failure = failed.map(|k| Failure::new(k as u64, Status::from_code((outcome.statuses[k] - 1) as u8)));
        let completion = Some(Entry::new(entry.as_bytes(), &entry));
        let completed = outcome.statuses.iter().filter(|&&status| status != 0).count() as u64;
        Ok(Posted { poster, wqe, doorbell, completion, completed, failure, microseconds })
    }
}

/// The objects of node 1 for one node 0.
struct Target<'a> {
    work: Work,
    region: Region<'a>,
    cq: CompletionQueue,
    endpoint: Endpoint,
    rq: CpuRecvQueue,
    /// The buffer of the receives. A write with immediate consumes a receive but writes nothing to its buffer.
    unused: Region<'a>,
    /// The device refuses RDMA from a peer without an address handle.
    _peer: Peer,
}

impl<'a> Target<'a> {
    fn new(options: &Options, device: &Device, pd: &'a ProtectionDomain, theirs: &Hello) -> Result<Self> {
        let work = Work { timeout: options.work.timeout, ..theirs.work };
        let region = pd.allocate(work.total()?, Access::REMOTE_WRITE)?;
        let cq = device.create_cq(CqConfig::new(2 * DEPTH))?;
        let qp = pd.create_qp(&cq, &cq, QpConfig::new(1, DEPTH))?.activate(qkey(work.seed.wrapping_add(1)))?;
        let unused = pd.allocate(64, Access::LOCAL_WRITE)?;
        let mut rq = qp.recv.into_cpu();
        for _ in 0..DEPTH {
            rq.post(&[unused.slice(..)?], 0)?;
        }
        rq.ring();
        let peer = pd.peer(&theirs.endpoint()?)?;
        Ok(Self { work, region, cq, endpoint: qp.endpoint, rq, unused, _peer: peer })
    }
}

/// Runs node 1.
fn run_target(options: &Options, at: &str) -> Result<(NodeReport, bool)> {
    let (device, pd, watch) = open(options)?;
    let at_once = resolve(at).and_then(|all| Ok(TcpListener::bind(&all[..])?));
    let listener = at_once.with_context(|| format!("listening at {at}"))?;
    let listening = listener.local_addr()?;
    if options.json {
        println!("{}", serde_json::to_string(&Listening { listening })?);
    } else {
        println!("listening at {listening}");
    }
    let welcome = |theirs: Hello| Target::new(options, &device, &pd, &theirs);
    let (mut wire, target) = accept_peer(&listener, options.work.patience(), welcome)?;
    drop(listener);
    let Target { work, region, cq, endpoint, mut rq, unused, _peer } = target;
    let (endpoint, described) = describe(&endpoint, &region);
    wire.send(&Answer::Welcome(Hello { endpoint: endpoint.clone(), region: described.clone(), work }))?;

    let mut cq = cq.into_cpu();
    let mut completion = None;
    let mut words = Words::default();
    let mut arrived = vec![false; work.count as usize];
    let start = Instant::now();
    for _ in 0..work.count {
        let done = next_completion(&mut cq, &work, &device)?;
        ensure!(done.status.is_ok(), "a receive: {}; {}", done.status, done.status.usual_cause());
        if completion.is_none() {
            let entry = cq.peek_back(1);
            completion = Some(Entry::new(entry.as_bytes(), &entry));
        }
        let CompletionKind::Receive(received) = done.kind else { bail!("{done:?}, but this node posted no sends") };
        let k = received.imm.context("a message without immediate")?.wrapping_sub(FIRST_IMM);
        let seen = arrived
            .get_mut(k as usize)
            .with_context(|| format!("immediate {k}, but there are {} writes", work.count))?;
        ensure!(!std::mem::replace(seen, true), "write {k} arrived twice");
        check(&region, &work, k.into(), &mut words)?;
        rq.post(&[unused.slice(..)?], 0)?;
        rq.ring();
    }
    let microseconds = start.elapsed().as_micros() as u64;
    wire.send(&words)?;
    // The device must stay until node 0 has received all acknowledgements.
    let _: String = wire.receive()?;
    let report = NodeReport {
        node: 1,
        device: options.device.clone(),
        endpoint,
        region: described,
        operations: work.count,
        size: work.size,
        poster: None,
        wqe: None,
        doorbell: None,
        completion,
        completions: work.count,
        failure: None,
        words: Some(words),
        packets: Packets::of(&device.counters(), device.link_counters()),
        timeline: watch.timeline(),
        microseconds,
    };
    watch.export(options.trace.as_deref(), 1)?;
    Ok((report, words.matching == words.total))
}

/// Compares the words of write number `k`.
fn check(region: &Region<'_>, work: &Work, k: u64, words: &mut Words) -> Result<()> {
    let bytes = region.read_vec(k * work.size..(k + 1) * work.size)?;
    let expected = work.block(k);
    words.total += work.size / 8;
    words.matching += bytes.chunks(8).zip(expected.chunks(8)).filter(|(is, should)| is == should).count() as u64;
    Ok(())
}
