//! What the parts of an object share, and keep alive until the last of them is gone.
//!
//! A queue pair is given out in parts, each with an owner of its own: two rings, and control. They, the domain, the
//! completion queues and the counters behind them refer to one another here, where no part of a queue is known: so the
//! files of the parts need not know each other.

pub(crate) mod counter;
pub(crate) mod cq;
pub(crate) mod domain;
pub(crate) mod qp;
