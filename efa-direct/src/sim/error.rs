//! Errors of simulations.

use std::time::Duration;

/// An error of a [`Sim`](super::Sim) or a [`Node`](super::Node). Nothing was changed or posted, but time may have
/// passed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The node has no address handle of the node that a request is for.
    #[error("{from} has not met {to}, or met an earlier life of it: call `Node::meet` first")]
    NotMet {
        /// The node that would post the request.
        from: String,
        /// The node that the request is for.
        to: String,
    },
    /// A living node has this name.
    #[error("there is a node {name:?} already: choose another name, or end that one with `Sim::kill`")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// No living node has this name.
    #[error("there is no living node {name:?}")]
    NoSuchNode {
        /// The name.
        name: String,
    },
    /// A share of packets is invalid.
    #[error("{what} is {value}, expected a share of packets: 0 to 1")]
    Share {
        /// The field of [`LinkConfig`](super::LinkConfig).
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// The network did not come to rest in time.
    #[error(
        "something is still under way after {after:?}: if a message waits for a receive, post one, or set \
         `QpConfig::rnr_retry`"
    )]
    NotSettled {
        /// The time that was allowed.
        after: Duration,
    },
    /// No completion arrived.
    #[error("no completion arrived within {after:?}: is a request outstanding, and was the doorbell rung?")]
    NoCompletion {
        /// The time that passed: less than a minute if nothing was under way.
        after: Duration,
    },
    /// The call needs simulated devices.
    #[error("{what} needs simulated devices: these run by themselves, in real time")]
    NotSimulated {
        /// What was asked for.
        what: &'static str,
    },
}
