//! The host's side: laying a world out, and the handles of its queues.
//!
//! ```
//! use efa_gpu_nic::host::{Access, Builder, DeviceConfig, HostMemory, QpConfig};
//!
//! let mut memory = HostMemory::default(); // a GPU's, for a NIC that runs there
//! let mut world = Builder::new(1);
//! let [a, b] = [world.device(DeviceConfig::default()), world.device(DeviceConfig::default())];
//! let [pd_a, pd_b] = [world.domain(a)?, world.domain(b)?];
//! let cq = world.completion_queue(&mut memory, 256)?;
//! let qp = world.queue_pair(&mut memory, pd_a, QpConfig::new(64, 16, cq, cq, 7))?;
//! let peer = world.queue_pair(&mut memory, pd_b, QpConfig::new(64, 16, cq, cq, 7))?;
//! let (to, _back) = (world.address_handle(pd_a, b)?, world.address_handle(pd_b, a)?);
//! let keys = world.region(pd_b, 0x1000, 4096, Access::ALL)?;
//! let placed = world.place(&mut memory)?;
//! // Launch a kernel that calls `run` with `placed.world`, and another that posts to `qp.send`.
//! # assert!(to >= 16 && keys.rkey != 0 && peer.send.qpn != qp.send.qpn && placed.world != 0);
//! # Ok::<(), efa_gpu_nic::host::Error>(())
//! ```

mod builder;
mod error;
mod memory;

pub use builder::{Access, Builder, CqId, DeviceConfig, DeviceId, Domain, Placed, QpConfig, Queues, RegionKeys};
pub use error::Error;
pub use memory::{HostMemory, Memory, MemoryError};
