//! The parts of the kernel's verbs ABI that an EFA uses: structures and numbers, with the kernel's names but without
//! their prefixes.
//!
//! | file | kernel headers | contents |
//! | --- | --- | --- |
//! | `ioctl.rs` | `rdma/rdma_user_ioctl_cmds.h`, `rdma/ib_user_ioctl_cmds.h` | commands, methods, attributes |
//! | `verbs.rs` | `rdma/ib_user_verbs.h`, `rdma/ib_user_ioctl_verbs.h` | structures in commands |
//! | `efa.rs` | `rdma/efa-abi.h` | additions of the EFA driver |
//!
//! The headers are those in rdma-core 65. Newer ones only add to them.

pub(crate) mod efa;
pub(crate) mod ioctl;
pub(crate) mod verbs;
