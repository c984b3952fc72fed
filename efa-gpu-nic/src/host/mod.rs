//! The host's side: it lays the tables out, and hands out the handles of queues.
//!
//! ```
//! use efa_gpu_nic::host::{Access, Builder, DeviceConfig, HostMemory, QpConfig};
//!
//! let mut memory = HostMemory::default(); // a GPU's, for a NIC that runs there
//! let mut builder = Builder::new(1);
//! let [a, b] = [builder.device(DeviceConfig::default()), builder.device(DeviceConfig::default())];
//! let [pd_a, pd_b] = [builder.domain(a)?, builder.domain(b)?];
//! let cq = builder.completion_queue(&mut memory, 256)?;
//! let qp = builder.queue_pair(&mut memory, pd_a, QpConfig::new(64, 16, cq, cq, 7))?;
//! let peer = builder.queue_pair(&mut memory, pd_b, QpConfig::new(64, 16, cq, cq, 7))?;
//! let (to, _back) = (builder.address_handle(pd_a, b)?, builder.address_handle(pd_b, a)?);
//! let keys = builder.region(pd_b, 0x1000, 4096, Access::ALL)?;
//! let placed = builder.place(&mut memory)?;
//! // Launch a kernel that calls `run` with `placed.tables`, and another that posts to `qp.send`.
//! # assert!(to >= 16 && keys.rkey != 0 && peer.send.qpn != qp.send.qpn && placed.tables != 0);
//! # Ok::<(), efa_gpu_nic::host::Error>(())
//! ```

mod builder;
mod error;
mod memory;

pub use builder::{Access, Builder, CqId, DeviceConfig, DeviceId, Domain, Placed, QpConfig, Queues, RegionKeys};
pub use error::Error;
pub use memory::{HostMemory, Memory, MemoryError};
