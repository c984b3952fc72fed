//! The kernel's verbs interface in user space, on software devices.
//!
//! A [`Node`] owns software devices of `efa-soft` and a folder. A program that is started on the node finds the devices
//! where the kernel shows real ones, and its own unmodified libibverbs and libefa drive them:
//!
//! ```text
//!   program                               node (this process)
//!   ┌────────────────────────────┐        ┌─────────────────────────────┐
//!   │ perftest, libfabric, …     │        │ Context: what ib_uverbs and │
//!   │ libefa ─ libibverbs        │        │ efa do in the kernel        │
//!   │   │        │ open, ioctl,  │ socket │             │               │
//!   │   │        │ mmap          │◀──────▶│             ▼               │
//!   │   │   preloaded library    │        │     efa_soft::Device ──▶ UDP│
//!   │   ▼                        │ mapped │             ▲               │
//!   │ rings, doorbells ◀─────────┼────────┼─────────────┘               │
//!   │ registered memory ◀────────┼────────┼── /proc/PID/mem             │
//!   └────────────────────────────┘        └─────────────────────────────┘
//! ```
//!
//! Rings and doorbells are memory files that both processes map, so posting and polling need no system call, as on
//! hardware. The node accesses a program's registered memory from outside. Nothing of the device runs in the program:
//! the program may fork, be killed, or unmap registered memory, and the device continues. The answers and errors of
//! commands follow the kernel's sources. Each command that fails is logged in one line.
//!
//! | file | contents |
//! | --- | --- |
//! | `node.rs` | the node: devices, the folder, and the threads that answer programs |
//! | `sysfs.rs` | the tree of files in which programs look for devices |
//! | `preload/` | the library that forwards a program's calls to the node, and their messages |
//! | `commands/` | the commands of programs, and their dispatch |
//! | `context.rs` | an open device, and the objects that were created through it |
//! | `call.rs`, `caller.rs` | a command, and the process that sent it |
//! | `channel.rs` | completion channels |
//! | `device.rs` | a software device with the name that programs know |
//! | `quota.rs`, `kind.rs` | limits for each program, and the kinds of objects |
//! | `guard.rs` | programs' memory whose pages may disappear |
//! | `errno.rs` | the reason why a command is refused |
//! | `abi/` | the kernel's structures and numbers |
//!
//! Differences from hardware and its driver:
//! - There are no asynchronous events. The driver reports none either.
//! - Memory that is unmapped while it is registered fails, while hardware would keep it. Memory that a `userfaultfd`
//!   should fill fails as well. Mapped files whose pages arrive late (FUSE, network file systems) make the whole device
//!   wait. GPU memory cannot be registered by address.
//! - Completion queues are in the node's memory or in a DMA-BUF, but not in a program's memory by address.
//! - Calls are intercepted at the C library. Programs that are linked statically, or that make system calls themselves,
//!   see no device. Programs with the address sanitizer need `ASAN_OPTIONS=verify_asan_link_order=0`.
//! - The node accesses a program's memory through a file that the program opens itself, its `/proc/thread-self/mem`.
//!   The node needs no right over the program. So a program may change its user, its root directory and its
//!   environment. A program that is not dumpable becomes dumpable for the moment of opening that file. A program that
//!   cannot see `/proc`, and could not when it opened the device, is refused with `ENOENT`.
//! - If root runs a node, everyone can use it, as with the kernel's device files: its programs may become other users.
//! - `write` on the device (rdma-core before `ioctl`, 2018) is not supported.
//!
//! # Programs among each other
//!
//! One program should not harm another. [`Quotas`] limit what one program may have of a node. The node reads a bounded
//! amount of what a program sends, and only the program itself waits for a file that it hands over. If the pages of a
//! program's memory file disappear, only accesses to that memory fail: from the first mapping on, the node handles
//! `SIGBUS` for its whole process. Queue pairs take turns at a device.
//!
//! Two things are not separated: a process that a program starts has quotas of its own, and all programs share the
//! node's limit of descriptors (`ulimit -n`).
//!
//! Unsafe code: `guard.rs` (the handler of `SIGBUS`), `node.rs` (reads the process id of a connection).

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
mod kind;
mod node;
mod quota;
mod sysfs;
#[allow(dead_code, reason = "the preloaded library uses the rest")]
#[path = "../preload/talk.rs"]
mod talk;

pub use node::{Error, Node};
pub use quota::Quotas;
