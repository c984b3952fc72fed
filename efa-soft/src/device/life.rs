//! The life of a queue pair's work: how it ends, whether it succeeds, fails or is flushed.
//!
//! Each WQE completes exactly once. Either its message ends in its lane ([`Device::report_ended`]), or its queue pair
//! fails, which flushes everything: the messages under way, the datagrams that have not left, and the receives and WQEs
//! in the rings.

use super::Device;
use super::event::DeviceEvent;
use super::peer::PeerIndex;
use crate::srd::{Ended, Message, Origin, Standing};
use efa_io::cqe::Received;
use efa_io::{OpCode, Status};
use efa_types::{AsyncEvent, CounterOps, QpState};

impl Device {
    /// Reports how messages to a peer ended: to the program by a completion, or to the peer that waits for the answer
    /// to its read.
    pub(super) fn report_ended(&mut self, peer: PeerIndex, ended: impl IntoIterator<Item = Ended>) {
        for Ended { message, status } in ended {
            match message.origin {
                Origin::Wqe { qpn, req_id, op } => {
                    if !status.is_ok() {
                        self.count_error(op);
                    }
                    self.objects.complete_send(qpn, req_id, op, status);
                }
                Origin::Response { qpn, .. } if status.is_ok() => {
                    self.counters.rdma_read_resp_bytes += u64::from(message.header.bytes);
                    self.objects.count(qpn, CounterOps::REMOTE_RDMA_READ, Status::Ok);
                }
                Origin::Response { request, .. } => {
                    // The peer still waits for the bytes that it asked for: its request ends with an error.
                    let requests = &mut self.peers[peer].recv_lanes.requests;
                    requests.set(request, Standing::Done(Status::RemoteBadAddress));
                    requests.acknowledge(request);
                }
            }
        }
        // The messages that ended may have made room for others.
        self.peers.wake(peer);
    }

    /// Counts a work request that failed, under the kernel driver's names (`rdma_read_wr_err`, `rdma_write_wr_err`).
    /// There is none for sends.
    pub(super) fn count_error(&mut self, op: OpCode) {
        match op {
            OpCode::Send => {}
            OpCode::RdmaRead => self.counters.rdma_read_wr_err += 1,
            OpCode::RdmaWrite => self.counters.rdma_write_wr_err += 1,
        }
    }

    /// Puts a queue pair in the error state because its rings are malformed, and tells the program
    /// (`IBV_EVENT_QP_FATAL`).
    pub(super) fn fail_qp_with_event(&mut self, qpn: u16) {
        if self.objects.qp(qpn).is_ok_and(|qp| qp.state != QpState::Error) {
            self.objects.tell(DeviceEvent::Async(AsyncEvent::QpFatal(qpn)));
        }
        self.fail_qp(qpn);
    }

    /// Puts a queue pair in the error state and flushes it.
    pub(super) fn fail_qp(&mut self, qpn: u16) {
        let Ok(qp) = self.objects.qp(qpn) else { return };
        let (was, doorbell) = (qp.state, qp.sq.doorbell());
        let is_credible = qp.sq.rung(doorbell) <= qp.sq.entries();
        if !is_credible {
            // The doorbell names more WQEs than the ring holds: nobody can say which of them were posted, so none
            // completes.
            qp.sq.skip_to(doorbell);
        }
        if was == QpState::Error {
            return;
        }
        // First the state, so that nothing which happens below is posted or received any more. Then what was posted
        // first completes first: messages in their lanes, datagrams, and WQEs that are still in the ring.
        self.objects.set_state(qpn, QpState::Error);
        for peer in self.peers.indexes() {
            let ended = self.peers[peer].end_where(Status::Flushed, |message| message.origin.qpn() == qpn);
            self.report_ended(peer, ended);
        }
        self.flush_datagrams(|message| message.origin.qpn() == qpn);
        self.flush_receives(qpn);
        if is_credible {
            self.note_doorbell(qpn, doorbell);
            self.flush_sends(qpn, doorbell);
        }
    }

    /// Completes the WQEs of a queue pair in error up to a doorbell as flushed. Returns `true` if there were any.
    pub(super) fn flush_sends(&mut self, qpn: u16, doorbell: u32) -> bool {
        let mut progress = false;
        while let Ok(qp) = self.objects.qp(qpn)
            && qp.sq.rung(doorbell) != 0
        {
            progress = true;
            let wqe = qp.take_wqe();
            // The operation of a malformed WQE is unknown.
            let op = wqe.decode().map_or(OpCode::Send, |request| request.op.code());
            self.objects.complete_send(qpn, wqe.req_id(), op, Status::Flushed);
        }
        progress
    }

    /// Completes every posted receive of a queue pair in error as flushed.
    pub(super) fn flush_receives(&mut self, qpn: u16) {
        // The device looks again with every look at the doorbells: what is posted to a queue pair in error is flushed,
        // too.
        while let Ok(qp) = self.objects.qp(qpn) {
            match qp.take_receive() {
                Ok(Some(receive)) => {
                    let nothing = Received {
                        op: OpCode::Send,
                        length: 0,
                        ah: None,
                        src_qpn: 0,
                        imm: None,
                        unsolicited: false,
                        src_gid: None,
                    };
                    self.objects.complete_receive(qpn, receive.req_id.into(), nothing, Status::Flushed);
                }
                Ok(None) => return,
                Err(_) => {
                    // Without a proper first and last descriptor there is no request to complete.
                    qp.rq.skip_to(qp.rq.doorbell());
                    return;
                }
            }
        }
    }

    /// Completes the datagrams that have not left and for which `which` holds as flushed.
    pub(super) fn flush_datagrams(&mut self, which: impl Fn(&Message) -> bool) {
        for datagram in self.datagrams.take_where(which) {
            self.objects.datagram_left(datagram.message.origin.qpn());
            if let Origin::Wqe { qpn, req_id, op } = datagram.message.origin {
                self.objects.complete_send(qpn, req_id, op, Status::Flushed);
            }
        }
    }

    /// Drops all work of a queue pair that is reset or destroyed: nothing of it completes. Peers that wait for an
    /// answer to a read are told.
    pub(super) fn forget_work(&mut self, qpn: u16) {
        for peer in self.peers.indexes() {
            let mut ended = self.peers[peer].end_where(Status::Flushed, |message| message.origin.qpn() == qpn);
            // Without completions: after `ibv_modify_qp` to Reset or `ibv_destroy_qp` a program expects none.
            ended.retain(|ended| matches!(ended.message.origin, Origin::Response { .. }));
            self.report_ended(peer, ended);
        }
        for _ in self.datagrams.take_where(|message| message.origin.qpn() == qpn) {
            self.objects.datagram_left(qpn);
        }
    }
}
