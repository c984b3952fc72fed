//! One of two communicating sides: a device with one object of each kind.

use efa_direct::*;
use std::sync::Arc;

/// A device with a domain, a completion queue that the CPU polls, an active queue pair and some memory.
#[expect(missing_docs, reason = "each is what its type says")]
pub struct Side {
    pub device: Device,
    pub pd: Arc<ProtectionDomain>,
    pub cq: CpuCompletionQueue,
    pub sq: CpuSendQueue<8>,
    pub rq: CpuRecvQueue,
    pub endpoint: Endpoint,
    pub control: QpControl,
    /// The other side, after [`meet`](Self::meet).
    pub peer: Option<Peer>,
    /// One MiB of registered memory with all access rights.
    pub memory: Region<'static>,
}

impl Side {
    /// Creates a side on this device. `prepare` is called with the queue pair before it is activated.
    pub fn new(
        device: Device,
        qkey: u32,
        cq: CqConfig,
        config: QpConfig<8>,
        prepare: impl FnOnce(&QueuePair<8>),
    ) -> Self {
        let pd = Arc::new(device.alloc_pd().unwrap());
        let cq = device.create_cq(cq).unwrap();
        let qp = pd.create_qp(&cq, &cq, config).unwrap();
        prepare(&qp);
        let qp = qp.activate(qkey).unwrap();
        let memory = pd.allocate_shared(1 << 20, Access::ALL).unwrap();
        let (sq, rq, cq) = (qp.send.into_cpu(), qp.recv.into_cpu(), cq.into_cpu());
        Self { device, pd, cq, sq, rq, endpoint: qp.endpoint, control: qp.control, peer: None, memory }
    }

    /// Sets the other side, to which all requests go.
    pub fn meet(&mut self, other: &Endpoint) {
        self.peer = Some(self.pd.peer(other).unwrap());
    }

    /// Posts a request to the other side.
    ///
    /// # Errors
    /// The send queue's error.
    pub fn post(&mut self, request: impl Request<8>, wr_id: u64) -> Result<(), PostError> {
        self.sq.post(self.peer.as_ref().unwrap(), request, wr_id)
    }
}
