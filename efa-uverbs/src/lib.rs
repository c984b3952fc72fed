//! The kernel's verbs interface in user space.
//!
//! A [`Node`] has software devices of `efa-soft`, and a folder. A program that is started with it finds the devices where the kernel
//! shows real ones, and the vendor's own libibverbs and libefa, unmodified, drive them:
//!
//! ```text
//!   program                               node (this process)
//!   ┌────────────────────────────┐        ┌─────────────────────────────┐
//!   │ perftest, libfabric, …     │        │ Context: what ib_uverbs and │
//!   │ libefa ─ libibverbs        │        │ efa do in the kernel        │
//!   │   │        │ open, ioctl,  │ socket │             │               │
//!   │   │        │ mmap          │◀──────▶│             ▼               │
//!   │   │   preloaded library    │        │     efa_soft::Device ──▶ UDP│
//!   │   ▼                        │  maps  │             ▲               │
//!   │ rings, doorbells ◀─────────┼────────┼─────────────┘               │
//!   │ registered memory ◀────────┼────────┼── /proc/PID/mem             │
//!   └────────────────────────────┘        └─────────────────────────────┘
//! ```
//!
//! Rings and doorbells are memory files that both map, so posting and polling take no system call, as on hardware. A program's registered
//! memory is accessed from outside, so nothing of the device runs in the program: it may fork, be killed, or unmap what it has
//! registered, and the device goes on. What a command answers, and with which error it fails, follows the kernel's sources; a
//! command that fails is logged in one line.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `node.rs` | devices, the folder, and threads that answer programs |
//! | `sysfs.rs` | the tree of files where programs look for devices |
//! | `preload/` | the library that takes a program's calls here, and how the two talk |
//! | `caller.rs`, `call.rs` | the program that calls, and what it says |
//! | `device.rs` | a software device under the name that programs know |
//! | `context.rs` | an open device, and what was created through it |
//! | `commands/` | what a program can command |
//! | `channel.rs` | completion channels |
//! | `quota.rs` | what one program may have of a node |
//! | `guard.rs` | memory of programs whose pages go away |
//! | `errno.rs` | why a command is refused |
//! | `abi/` | the kernel's structures and numbers |
//!
//! What is different from hardware and its driver:
//! - There are no asynchronous events; the driver reports none either.
//! - Memory that is unmapped while it is registered fails, instead of being kept; memory that a `userfaultfd` should fill fails as well. Mapped
//!   files whose pages take long to come (of FUSE, of a network) make the whole device wait. Memory of GPUs, by address, cannot be reached.
//! - Completion queues lie in memory of the node, or in a DMA-BUF, but not in a program's memory by address.
//! - Programs are reached through the C library: those that are linked statically, or make system calls themselves, see no device. Programs with the
//!   address sanitizer want `ASAN_OPTIONS=verify_asan_link_order=0`.
//! - A program's memory is reached by what it opens itself, its `/proc/thread-self/mem`: the node needs no right over it, and gets none. So a program may
//!   change its user, its root directory and its environment. One that has declared itself not to be dumped is dumpable for
//!   as long as opening that file takes. One that cannot see `/proc`, nor could when it opened the device, is refused with `ENOENT`.
//! - A node of root can be used by everyone, as the kernel's device files can: its programs may become other users.
//! - `write` on the device (rdma-core before `ioctl`, 2018) is not answered.
//!
//! # Programs among each other
//!
//! No program should harm another. What one may have of a node is limited: see [`Quotas`]. Nothing that a program says is read without a bound,
//! and no file that it hands over is waited for by anyone but itself. Memory files whose pages go away cost the node no more than that
//! memory: it answers `SIGBUS`, from the first mapping on, for the whole process that it is in. Queue pairs take turns at a device.
//! What is not kept apart: processes that a program starts count by themselves; numbers of descriptors that a node may have (`ulimit -n`)
//! are shared by all.
//!
//! Unsafe code: `guard.rs` (the handler of `SIGBUS`), `node.rs` (what the process may have of descriptors).

#![deny(missing_docs)]

mod abi;
mod call;
mod caller;
mod channel;
mod commands;
mod context;
mod device;
mod errno;
mod guard;
mod node;
mod quota;
mod sysfs;
#[allow(dead_code, reason = "the other side uses the rest")]
#[path = "../preload/talk.rs"]
mod talk;

pub use node::{Error, Node};
pub use quota::Quotas;
