//! Verbs: requests that name nodes and offsets in their memory.
//!
//! Each verb posts one request, rings the doorbell and returns the request's `wr_id`. A node counts them from 0.

use super::error::SimError;
use super::node::Node;
use crate::{
    CpuSendQueue, Device, Endpoint, Error, LocalSlice, Peer, RangeError, RdmaRead, RdmaWrite, RemoteSlice, Request,
    Send, SendInline,
};
use std::collections::HashMap;
use std::ops::{Bound, RangeBounds};

/// A range of offsets, before it is known what they are offsets in.
type Range = (Bound<u64>, Bound<u64>);

fn keep(range: impl RangeBounds<u64>) -> Range {
    (range.start_bound().cloned(), range.end_bound().cloned())
}

/// An RDMA write without a destination: [`Node::write`].
#[must_use = "nothing is posted before `to`"]
#[derive(Debug)]
pub struct Writing<'n> {
    node: &'n mut Node,
    bytes: Range,
    imm: Option<u32>,
}

/// An RDMA read without a source: [`Node::read`].
#[must_use = "nothing is posted before `from`"]
#[derive(Debug)]
pub struct Reading<'n> {
    node: &'n mut Node,
    bytes: Range,
}

/// A send without a destination: [`Node::send`] and [`Node::send_inline`].
#[must_use = "nothing is posted before `to`"]
#[derive(Debug)]
pub struct Sending<'n> {
    node: &'n mut Node,
    message: Message<'n>,
    imm: Option<u32>,
}

#[derive(Debug)]
enum Message<'n> {
    /// Bytes of the node's memory.
    Slice(Range),
    /// Bytes inside the WQE.
    Inline(&'n [u8]),
}

impl Node {
    /// Begins an RDMA write of these bytes of this node's memory.
    pub fn write(&mut self, bytes: impl RangeBounds<u64>) -> Writing<'_> {
        Writing { node: self, bytes: keep(bytes), imm: None }
    }

    /// Begins an RDMA read into these bytes of this node's memory.
    pub fn read(&mut self, bytes: impl RangeBounds<u64>) -> Reading<'_> {
        Reading { node: self, bytes: keep(bytes) }
    }

    /// Begins a send of these bytes of this node's memory, at most the device's MTU.
    pub fn send(&mut self, bytes: impl RangeBounds<u64>) -> Sending<'_> {
        Sending { node: self, message: Message::Slice(keep(bytes)), imm: None }
    }

    /// Begins a send of bytes that travel in the WQE, at most 32.
    pub fn send_inline<'n>(&'n mut self, bytes: &'n [u8]) -> Sending<'n> {
        Sending { node: self, message: Message::Inline(bytes), imm: None }
    }

    /// Posts a receive into these bytes of this node's memory, at most 65535, and rings. Returns its `wr_id`.
    ///
    /// # Errors
    /// The range is invalid, or the receive queue refused.
    pub fn receive(&mut self, bytes: impl RangeBounds<u64>) -> Result<u64, Error> {
        let id = self.next_id;
        self.rq.post(&[self.memory.slice(bytes)?], id)?;
        self.rq.ring();
        self.next_id += 1;
        Ok(id)
    }

    /// Posts a request of any kind to another node, without ringing: call `self.sq.ring()` then. With slices of this
    /// node's own memory, post it directly: `a.sq.post(&a.peers[&b.endpoint], request, wr_id)`.
    ///
    /// # Errors
    /// The nodes have not met, or the send queue refused.
    pub fn post(&mut self, to: &Node, request: impl Request<8>, wr_id: u64) -> Result<(), Error> {
        Ok(self.sq.post(find(&self.peers, &self.device, to)?, request, wr_id)?)
    }

    /// Returns the address handle of a node that this one has [met](Self::meet).
    ///
    /// # Errors
    /// [`SimError::NotMet`].
    pub fn peer(&self, other: &Node) -> Result<&Peer, SimError> {
        find(&self.peers, &self.device, other)
    }
}

impl Writing<'_> {
    /// Adds immediate data. The write then consumes a receive of the other node, and completes it with this data.
    pub fn imm(mut self, imm: u32) -> Self {
        self.imm = Some(imm);
        self
    }

    /// Posts the write to the other node's memory, from byte `at` on, and rings. Returns its `wr_id`.
    ///
    /// # Errors
    /// The nodes have not met, a range is invalid, or the send queue refused.
    pub fn to(self, other: &Node, at: u64) -> Result<u64, Error> {
        let Node { sq, memory, peers, device, next_id, .. } = self.node;
        let peer = find(peers, device, other)?;
        let local = memory.slice(self.bytes)?;
        let write = RdmaWrite::new(local, remote(other, at, &local)?);
        let write = self.imm.map_or(write, |imm| write.imm(imm));
        post_and_ring(sq, peer, write, next_id)
    }
}

impl Reading<'_> {
    /// Posts the read of the other node's memory, from byte `at` on, and rings. Returns its `wr_id`.
    ///
    /// # Errors
    /// The nodes have not met, a range is invalid, or the send queue refused.
    pub fn from(self, other: &Node, at: u64) -> Result<u64, Error> {
        let Node { sq, memory, peers, device, next_id, .. } = self.node;
        let peer = find(peers, device, other)?;
        let local = memory.slice(self.bytes)?;
        post_and_ring(sq, peer, RdmaRead::new(local, remote(other, at, &local)?), next_id)
    }
}

impl Sending<'_> {
    /// Adds immediate data, which the receive completes with.
    pub fn imm(mut self, imm: u32) -> Self {
        self.imm = Some(imm);
        self
    }

    /// Posts the send to the other node, where it consumes a receive, and rings. Returns its `wr_id`.
    ///
    /// # Errors
    /// The nodes have not met, the range is invalid, or the send queue refused.
    pub fn to(self, other: &Node) -> Result<u64, Error> {
        let Node { sq, memory, peers, device, next_id, .. } = self.node;
        let peer = find(peers, device, other)?;
        match self.message {
            Message::Slice(bytes) => {
                let local = [memory.slice(bytes)?];
                let send = Send::new(&local);
                post_and_ring(sq, peer, self.imm.map_or(send, |imm| send.imm(imm)), next_id)
            }
            Message::Inline(bytes) => {
                let send = SendInline::new(bytes);
                post_and_ring(sq, peer, self.imm.map_or(send, |imm| send.imm(imm)), next_id)
            }
        }
    }
}

fn find<'p>(peers: &'p HashMap<Endpoint, Peer>, own: &Device, other: &Node) -> Result<&'p Peer, SimError> {
    peers.get(&other.endpoint).ok_or_else(|| SimError::NotMet { from: own.name().into(), to: other.name().into() })
}

/// Returns as many bytes of the node's memory as `local` has, from `at` on.
fn remote(node: &Node, at: u64, local: &LocalSlice<'_>) -> Result<RemoteSlice, RangeError> {
    node.memory.remote().slice(at..at.saturating_add(local.len().into()))
}

fn post_and_ring(
    sq: &mut CpuSendQueue<8>,
    peer: &Peer,
    request: impl Request<8>,
    next_id: &mut u64,
) -> Result<u64, Error> {
    let id = *next_id;
    sq.post(peer, request, id)?;
    sq.ring();
    *next_id += 1;
    Ok(id)
}
