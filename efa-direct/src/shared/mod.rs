//! The state that the parts of an object share and keep alive.
//!
//! A queue pair is handed out in parts, each with its own owner: two rings and a control handle. The parts, the domain,
//! the completion queues and the counters refer to one another through the types of this module. None of these types
//! knows a part, so the files of the parts need not know each other, and the modules form no circle.

pub(crate) mod counter;
pub(crate) mod cq;
pub(crate) mod domain;
pub(crate) mod qp;
