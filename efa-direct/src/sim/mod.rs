//! A simulation for tests: named nodes, the network between them, and time.
//!
//! A test of a program on EFA needs two nodes at least, and the faults that happen between them. Here both take a few
//! lines. The nodes are software devices ([`efa_soft`]) in one process, their time is simulated, and so a timeout of
//! seconds passes in no time.
//!
//! ```
//! use efa_direct::{Status, sim::Sim};
//! use std::time::Duration;
//!
//! // Two nodes, on a network that loses three packets in ten: with this seed, always the same ones.
//! let mut sim = Sim::with_seed(7);
//! sim.network(|link| link.loss = 0.3)?;
//! let (mut a, mut b) = (sim.node("a")?, sim.node("b")?);
//! a.meet(&mut b)?;
//!
//! // a writes its first five bytes to byte 100 of b's memory. The immediate tells b that they have arrived.
//! a.memory.write(0, b"hello")?;
//! b.receive(..0)?;
//! let id = a.write(0..5).imm(7).to(&b, 100)?;
//! sim.settle()?;
//! assert_eq!(b.memory.read_vec(100..105)?, b"hello");
//! assert_eq!(sim.completion(&mut b.cq)?.status, Status::Ok);
//! let done = sim.completion(&mut a.cq)?;
//! assert_eq!((done.wr_id, done.status), (id, Status::Ok));
//! assert!(sim.link_counters().lost > 0 && a.device.counters().retrans_pkts > 0);
//!
//! // b's process dies. a learns of it after five seconds, of simulated time.
//! sim.kill("b")?;
//! let before = sim.now();
//! a.write(0..5).to(&b, 200)?;
//! assert_eq!(sim.completion(&mut a.cq)?.status, Status::UnresponsiveRemote);
//! assert!(sim.now() - before >= Duration::from_secs(5));
//!
//! // b starts again, at the same address and with new objects: the two have to meet again.
//! let mut b = sim.node("b")?;
//! a.meet(&mut b)?;
//! b.memory.write(0, b"back")?;
//! b.write(0..4).to(&a, 10)?;
//! sim.settle()?;
//! assert_eq!(a.memory.read_vec(10..14)?, b"back");
//! # Ok::<(), efa_direct::Error>(())
//! ```
//!
//! # More than one queue pair
//!
//! A [`Node`] has what most tests need: a device, a protection domain, one completion queue, one queue pair and 1 MiB
//! of memory. All of these are public. [`NodeConfig`] sets their sizes, and [`Node::prepared`] attaches counters.
//! [`Sim::device`] adds a device without objects, for example one that lacks RDMA writes:
//!
//! ```
//! use efa_direct::sim::{Node, NodeConfig, Sim};
//! use efa_direct::{CqConfig, QpConfig, SendInline};
//!
//! let mut sim = Sim::with_seed(1);
//! let old = sim.device("old", |config| config.attributes.rdma_write = false)?;
//! let mut a = Node::new(old, NodeConfig { qp: QpConfig::new(4, 4), ..NodeConfig::default() })?;
//! let mut b = sim.node("b")?;
//! a.meet(&mut b)?;
//! let refused = a.write(..8).to(&b, 0).unwrap_err();
//! assert!(refused.to_string().starts_with("RDMA write is not available on this queue"));
//!
//! // One more queue pair for b, with its own completion queue, and WQEs of 128 bytes, which hold 80 bytes inline.
//! let mut cq = b.device.create_cq(CqConfig::new(16))?.into_cpu();
//! let qp = b.pd.create_qp(&cq, &cq, QpConfig::new(4, 4).wqe_128())?.activate(5)?;
//! let mut sq = qp.send.into_cpu();
//! a.receive(..80)?;
//! sq.post(b.peer(&a)?, SendInline::new(&[7; 80]), 1)?;
//! sq.ring();
//! assert_eq!(sim.completion(&mut cq)?.wr_id, 1);
//! assert_eq!(a.memory.read_vec(..80)?, [7; 80]);
//! # Ok::<(), efa_direct::Error>(())
//! ```
//!
//! # What is deterministic
//!
//! With the same seed and the same calls from one thread, these are the same in every run: which packets are lost,
//! doubled, damaged or delayed, and their order; queue pair numbers, keys and address handles; completions and their
//! order; all times and counters. A change of one call changes the random decisions after it.
//!
//! Not deterministic are addresses of memory (also in WQEs), the numbers of protection domains in
//! [`PostError::ForeignDomain`](crate::PostError::ForeignDomain), and what several threads do.
//!
//! # Time
//!
//! Time passes only in [`step`](Sim::step), [`advance`](Sim::advance), [`run_until`](Sim::run_until),
//! [`settle`](Sim::settle) and [`completion`](Sim::completion). Neither the program nor a device takes any: time passes
//! while packets travel, and in timeouts. A simulation therefore shows what happens and in which order, but not how
//! fast a program is. [`CpuCompletionQueue::wait`](crate::CpuCompletionQueue::wait) uses the real clock and waits in
//! vain. Completion queues with events cannot be created.
//!
//! # The same test on hardware
//!
//! [`Sim::on_devices`] runs a test without faults on existing devices.

mod clockwork;
mod error;
mod handle;
mod node;
mod simulation;
mod verbs;

pub use error::SimError;
pub use node::{Node, NodeConfig};
pub use simulation::Sim;
pub use verbs::{Reading, Sending, Writing};

pub use efa_soft::{DeviceConfig, Faults, LinkConfig, LinkCounters, PathConfig, Profile};
