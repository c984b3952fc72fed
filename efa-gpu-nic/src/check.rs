//! The checks of a request before a byte of it moves. They are in the software device's order: of several errors both
//! report the same.

use crate::lookup::Lookup;
use crate::request::total_bytes;
use crate::tables::{QueuePair, Region};
use efa_io::{FlatRequest, Limits, OpCode, Status};

impl<'a> Lookup<'a> {
    /// Makes the checks of the sender's device. Returns the device that the request goes to, or the status that it
    /// completes with.
    #[inline(always)]
    pub(crate) fn check_at_sender(self, qp: &QueuePair, request: &FlatRequest) -> Result<u32, Status> {
        let Limits { max_inline_bytes, operations, .. } = qp.limits;
        let needs = match request.op {
            OpCode::Send => 0,
            OpCode::RdmaRead => Limits::RDMA_READ,
            OpCode::RdmaWrite => Limits::RDMA_WRITE,
        };
        if operations & needs != needs {
            return Err(Status::UnsupportedOp);
        }
        if total_bytes(request) > qp.limits.max_bytes(request.op).into() {
            return Err(Status::BadLength);
        }
        let device = self.device_of(qp.pd, request.dest.ah).ok_or(Status::InvalidAh)?;
        if request.inline {
            if request.op == OpCode::RdmaWrite && operations & Limits::INLINE_WRITE == 0 {
                return Err(Status::UnsupportedOp);
            }
            if request.first.length > max_inline_bytes.into() {
                return Err(Status::BadLength);
            }
            return Ok(device);
        }
        let need = if request.op == OpCode::RdmaRead { Region::LOCAL_WRITE } else { 0 };
        let first = request.bufs == 0 || self.allows_local(qp.pd, request.first, need);
        let second = request.bufs < 2 || self.allows_local(qp.pd, request.second, need);
        if first && second { Ok(device) } else { Err(Status::InvalidLkey) }
    }

    /// Makes the checks of the receiver's device. Returns the queue pair that the request is for with its index, or the
    /// status that the request completes with.
    #[inline(always)]
    pub(crate) fn check_at_receiver(
        self,
        qp: &QueuePair,
        request: &FlatRequest,
        device: u32,
    ) -> Result<(u32, &'a QueuePair), Status> {
        if device == qp.device && qp.flags & QueuePair::LOOPBACK == 0 {
            // As on EFA, which does not deliver to itself: no answer ever comes.
            return Err(Status::UnreachableRemote);
        }
        let dest = request.dest;
        let (index, target) = self.destination(device, dest.qpn, dest.qkey).ok_or(Status::RemoteBadDestQpn)?;
        let (operation, need) = match request.op {
            OpCode::Send => return Ok((index, target)),
            OpCode::RdmaRead => (Limits::RDMA_READ, Region::REMOTE_READ),
            OpCode::RdmaWrite => (Limits::RDMA_WRITE, Region::REMOTE_WRITE),
        };
        let length = request.first.length;
        if target.limits.operations & operation == 0 || length > target.limits.max_rdma_bytes {
            return Err(Status::RemoteFeatureMismatch);
        }
        if self.ah_for(target.pd, qp.device).is_none() {
            return Err(Status::RemoteUnknownPeer);
        }
        let remote = request.remote;
        if length == 0 || self.allows_remote(target.pd, remote.rkey, remote.addr, length, need) {
            Ok((index, target))
        } else {
            Err(Status::RemoteBadAddress)
        }
    }
}
