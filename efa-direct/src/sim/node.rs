//! Nodes: a device with one object of each kind.

use crate::{
    Access, Completion, CpuCompletionQueue, CpuRecvQueue, CpuSendQueue, CqConfig, Device, Endpoint, Peer,
    ProtectionDomain, QpConfig, QpControl, QueuePair, Region, SetupError,
};
use std::collections::HashMap;
use std::sync::Arc;

/// The configuration of a [`Node`].
#[derive(Clone, Copy, Debug)]
pub struct NodeConfig {
    /// The completion queue: 512 entries by default.
    pub cq: CqConfig,
    /// The queue pair: 128 sends and 128 receives by default.
    pub qp: QpConfig<8>,
    /// The queue pair's key: 1 by default.
    pub qkey: u32,
    /// Bytes of registered memory: 1 MiB by default.
    pub memory: usize,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { cq: CqConfig::new(512), qp: QpConfig::new(128, 128), qkey: 1, memory: 1 << 20 }
    }
}

/// A device with a protection domain, a completion queue, an active queue pair and registered memory.
///
/// All parts are public, for tests that need more than [`write`](Self::write), [`read`](Self::read),
/// [`send`](Self::send) and [`receive`](Self::receive).
pub struct Node {
    /// The device. It has the node's name.
    pub device: Device,
    /// The protection domain of all other parts.
    pub pd: Arc<ProtectionDomain>,
    /// The completion queue of sends and receives.
    pub cq: CpuCompletionQueue,
    /// The send queue.
    pub sq: CpuSendQueue<8>,
    /// The receive queue.
    pub rq: CpuRecvQueue,
    /// The queue pair's address for peers.
    pub endpoint: Endpoint,
    /// Control over the queue pair's state.
    pub control: QpControl,
    /// Memory that peers may read and write. It is zeroed at first.
    pub memory: Region<'static>,
    /// Address handles of the nodes that this one has [met](Self::meet).
    pub peers: HashMap<Endpoint, Peer>,
    /// The `wr_id` of the next verb.
    pub(super) next_id: u64,
}

impl Node {
    /// Creates a node on a device, simulated or not.
    ///
    /// # Errors
    /// The device refused, or the completion queue is too small for the rings.
    pub fn new(device: Device, config: NodeConfig) -> Result<Self, SetupError> {
        Self::prepared(device, config, |_| Ok(()))
    }

    /// Creates a node, and calls `prepare` with the queue pair before it is activated, for example to attach counters.
    ///
    /// # Errors
    /// The device or `prepare` refused.
    pub fn prepared(
        device: Device,
        config: NodeConfig,
        prepare: impl FnOnce(&QueuePair<8>) -> Result<(), SetupError>,
    ) -> Result<Self, SetupError> {
        let pd = Arc::new(device.alloc_pd()?);
        let cq = device.create_cq(config.cq)?;
        let qp = pd.create_qp(&cq, &cq, config.qp)?;
        prepare(&qp)?;
        let qp = qp.activate(config.qkey)?;
        let memory = pd.allocate_shared(config.memory, Access::ALL)?;
        let (sq, rq, cq) = (qp.send.into_cpu(), qp.recv.into_cpu(), cq.into_cpu());
        let (endpoint, control, peers) = (qp.endpoint, qp.control, HashMap::new());
        Ok(Self { device, pd, cq, sq, rq, endpoint, control, memory, peers, next_id: 0 })
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Makes two nodes known to each other. Each gets an address handle of the other, since RDMA needs one on both
    /// sides.
    ///
    /// # Errors
    /// A device refused.
    pub fn meet(&mut self, other: &mut Self) -> Result<(), SetupError> {
        self.learn(other.endpoint)?;
        other.learn(self.endpoint)
    }

    /// Makes an endpoint known to this node only. Sends work then. RDMA completes with
    /// [`Status::RemoteUnknownPeer`](crate::Status::RemoteUnknownPeer) until the other side knows this node, too.
    ///
    /// # Errors
    /// The device refused.
    pub fn learn(&mut self, endpoint: Endpoint) -> Result<(), SetupError> {
        self.peers.insert(endpoint, self.pd.peer(&endpoint)?);
        Ok(())
    }

    /// Takes the completions that have arrived. Does not wait: call [`Sim::settle`](super::Sim::settle) before, or
    /// [`Sim::completion`](super::Sim::completion) instead.
    pub fn completions(&mut self) -> impl Iterator<Item = Completion> {
        std::iter::from_fn(|| self.cq.poll_one())
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({:?}, {:?})", self.name(), self.endpoint)
    }
}
