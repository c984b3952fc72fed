//! The kernel's verbs ABI, as far as an EFA has it: structures and numbers, under the kernel's names without their prefixes.
//!
//! | file | after |
//! | --- | --- |
//! | `ioctl.rs` | `rdma/rdma_user_ioctl_cmds.h`, `rdma/ib_user_ioctl_cmds.h`: how a command is written, objects, methods, attributes |
//! | `verbs.rs` | `rdma/ib_user_verbs.h`, `rdma/ib_user_ioctl_verbs.h`: what is in them |
//! | `efa.rs` | `rdma/efa-abi.h`: what the EFA driver adds |
//!
//! The headers are those that rdma-core 65 carries. They only ever grow.

pub(crate) mod efa;
pub(crate) mod ioctl;
pub(crate) mod verbs;
