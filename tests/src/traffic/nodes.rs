//! Two nodes on software devices.

use super::{Area, Bytes, Ends};
use efa_direct::cuda::{Gpu, GpuRegion, Mappable, Mapped};
use efa_direct::{
    Access, CompletionQueue, CqConfig, Device, GpuCompletionQueue, GpuRecvQueue, GpuSendQueue, Peer, ProtectionDomain,
    QpConfig, QpControl, Region,
};
use efa_io::{CompletionRingHandle, RecvRingHandle, SendRingHandle, SendWqe, Wqe};
use std::sync::Arc;

/// The place of the nodes' bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    /// In host memory.
    Host,
    /// In the GPU's memory.
    Gpu,
}

/// Two nodes on software devices with a queue pair each, whose rings belong to a GPU or to the executor.
pub struct Nodes {
    rings: Box<dyn Rings>,
    areas: Vec<Area>,
    to: (u16, u16, u32),
    from_qpn: u16,
    mtu: u32,
    inline: u32,
    _keep: Box<dyn std::any::Any>,
}

/// The four rings, mapped into a GPU or not.
trait Rings {
    fn handles(&self) -> (SendRingHandle, CompletionRingHandle, RecvRingHandle, CompletionRingHandle);
    /// Takes the rings back to the CPU, drained at these positions.
    fn take_back(self: Box<Self>, ends: &Ends);
}

struct Plain<const W: usize>(GpuSendQueue<W>, GpuCompletionQueue, GpuRecvQueue, GpuCompletionQueue)
where
    Wqe<W>: SendWqe;

/// A send queue that can be mapped. Both WQE sizes can.
trait Send: Mappable<Handle = SendRingHandle> {}
impl<Q: Mappable<Handle = SendRingHandle>> Send for Q {}

struct OnGpu<const W: usize>(
    Mapped<GpuSendQueue<W>>,
    Mapped<GpuCompletionQueue>,
    Mapped<GpuRecvQueue>,
    Mapped<GpuCompletionQueue>,
)
where
    Wqe<W>: SendWqe,
    GpuSendQueue<W>: Send;

macro_rules! rings {
    ($rings:ident, $queue:ident => $back:expr) => {
        impl<const W: usize> Rings for $rings<W>
        where
            Wqe<W>: SendWqe,
            GpuSendQueue<W>: Send,
        {
            fn handles(&self) -> (SendRingHandle, CompletionRingHandle, RecvRingHandle, CompletionRingHandle) {
                (self.0.handle(), self.1.handle(), self.2.handle(), self.3.handle())
            }

            fn take_back(self: Box<Self>, ends: &Ends) {
                let send = {
                    let $queue = self.0;
                    $back
                };
                let recv = {
                    let $queue = self.2;
                    $back
                };
                let Ends { recv: handle, .. } = ends;
                // SAFETY: the kernels have ended, so nothing else uses the rings. They wrote these positions when
                // everything had completed.
                unsafe {
                    let send = send.into_idle(ends.send.producer, ends.send.producer);
                    send.expect("nothing is outstanding").into_cpu();
                    let recv = recv.into_idle(handle.producer, handle.posted, handle.posted);
                    recv.expect("nothing is outstanding").into_cpu();
                }
                for (cq, consumer) in [
                    (
                        {
                            let $queue = self.1;
                            $back
                        },
                        ends.send_cq.consumer,
                    ),
                    (
                        {
                            let $queue = self.3;
                            $back
                        },
                        ends.recv_cq.consumer,
                    ),
                ] {
                    // SAFETY: the kernels have ended, so nothing else polls the queue. They wrote this position at
                    // their end.
                    let mut cq = unsafe { cq.into_idle(consumer) }.into_cpu();
                    assert_eq!(cq.poll_one(), None, "everything was taken");
                }
            }
        }
    };
}

rings!(Plain, queue => queue);
rings!(OnGpu, queue => queue.unmap());

impl Bytes for Region<'static> {
    fn write(&self, offset: u64, bytes: &[u8]) {
        Region::write(self, offset, bytes).expect("inside");
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        Region::read(self, offset, into).expect("inside");
    }
}

impl Bytes for GpuRegion {
    fn write(&self, offset: u64, bytes: &[u8]) {
        GpuRegion::write(self, offset, bytes).expect("inside");
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        GpuRegion::read(self, offset, into).expect("inside");
    }
}

struct End<const W: usize>
where
    Wqe<W>: SendWqe,
{
    pd: Arc<ProtectionDomain>,
    cq: CompletionQueue,
    qp: efa_direct::ActiveQueuePair<W>,
}

fn end<const W: usize>(device: &str, config: QpConfig<W>, cqes: u32) -> End<W>
where
    Wqe<W>: SendWqe,
{
    let device = Device::open(device).expect("a software device");
    let pd = Arc::new(device.alloc_pd().expect("a domain"));
    let cq = device.create_cq(CqConfig::new(cqes)).expect("a completion queue");
    let qp = pd.create_qp(&cq, &cq, config).expect("a queue pair").activate(0x1234).expect("it activates");
    End { pd, cq, qp }
}

impl Nodes {
    /// Creates nodes on these two devices. Send queues have `entries` entries, areas have `bytes` bytes. The rings are
    /// mapped into `gpu`, if there is one.
    pub fn new<const W: usize>(
        devices: [&str; 2],
        config: QpConfig<W>,
        [entries, receives]: [u32; 2],
        bytes: usize,
        gpu: Option<&Gpu>,
        place: Place,
    ) -> Self
    where
        Wqe<W>: SendWqe,
        GpuSendQueue<W>: Mappable<Handle = SendRingHandle>,
    {
        let [a, b] = devices.map(|device| end(device, config, entries + receives));
        let area = |pd: &Arc<ProtectionDomain>, bytes: usize| match (place, gpu) {
            (Place::Gpu, Some(gpu)) => {
                let memory = gpu.allocate(bytes as u64).expect("GPU memory");
                let region = pd.register_gpu(&memory, .., Access::ALL).expect("it registers");
                let (addr, len, keys) = (region.addr(), region.len(), region.keys());
                Area { addr, lkey: keys.lkey, rkey: keys.rkey, len, bytes: Box::new(region) }
            }
            _ => {
                let region = pd.allocate_shared(bytes, Access::ALL).expect("memory");
                let (addr, len, keys) = (region.addr(), region.len(), region.keys());
                Area { addr, lkey: keys.lkey, rkey: keys.rkey, len, bytes: Box::new(region) }
            }
        };
        let attributes = *Device::open(devices[0]).expect("it is open").attributes();
        let inbox = (attributes.mtu.min(8192) * receives) as usize;
        let areas =
            vec![area(&a.pd, bytes), area(&a.pd, bytes), area(&b.pd, bytes), area(&b.pd, bytes), area(&b.pd, inbox)];
        let peer: Peer = a.pd.peer(&b.qp.endpoint).expect("a peer");
        let back: Peer = b.pd.peer(&a.qp.endpoint).expect("a peer");
        let (to, from_qpn) = ((peer.ah(), b.qp.endpoint.qpn, b.qp.endpoint.qkey), a.qp.endpoint.qpn);
        let rings = Plain(
            a.qp.send.into_gpu(),
            a.cq.into_gpu().expect("one ring"),
            b.qp.recv.into_gpu(),
            b.cq.into_gpu().expect("one ring"),
        );
        let rings: Box<dyn Rings> = match gpu {
            None => Box::new(rings),
            Some(gpu) => {
                let Plain(send, send_cq, recv, recv_cq) = rings;
                Box::new(OnGpu(
                    gpu.map(send).expect("mapped"),
                    gpu.map(send_cq).expect("mapped"),
                    gpu.map(recv).expect("mapped"),
                    gpu.map(recv_cq).expect("mapped"),
                ))
            }
        };
        let controls: [QpControl; 2] = [a.qp.control, b.qp.control];
        Self {
            rings,
            areas,
            to,
            from_qpn,
            mtu: attributes.mtu,
            inline: if W == 8 { attributes.inline_bytes.into() } else { attributes.inline_bytes_ex.into() },
            _keep: Box::new((peer, back, controls, a.qp.recv, b.qp.send, a.pd, b.pd)),
        }
    }

    /// Returns the ends for one [`Traffic`](super::Traffic).
    pub fn ends(&mut self) -> Ends {
        let (send, send_cq, recv, recv_cq) = self.rings.handles();
        let mut areas = self.areas.drain(..);
        let mut next = || areas.next().expect("five, and once");
        Ends {
            send,
            send_cq,
            recv,
            recv_cq,
            to: self.to,
            from_qpn: self.from_qpn,
            source: next(),
            sink: next(),
            target: next(),
            origin: next(),
            inbox: next(),
            mtu: self.mtu,
            inline: self.inline,
        }
    }

    /// Takes the rings back to the CPU at the positions that the traffic has reached, and checks that nothing is left
    /// in them.
    pub fn take_back(self, ends: &Ends) {
        self.rings.take_back(ends);
    }
}
