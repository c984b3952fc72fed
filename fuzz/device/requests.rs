//! Valid requests of a program: WQEs and receives.

use super::harness::{Harness, QKEY, Qp, Target};
use super::script::Script;
use efa_io::op::Bufs;
use efa_io::rx::RxBuf;
use efa_io::*;

/// The bytes of inline messages.
const INLINE: [u8; 80] = [0x11; 80];

impl Target {
    fn local(&self) -> LocalBuf {
        let lkey = Lkey::new(self.keys.lkey & 0xff_ffff).expect("24 bits");
        LocalBuf { addr: self.addr, lkey, length: self.length }
    }

    fn remote(&self) -> RemoteBuf {
        RemoteBuf { addr: self.addr, rkey: self.keys.rkey }
    }
}

impl Harness {
    /// Returns a WQE of a random operation, without request id and phase.
    pub(crate) fn some_wqe<const W: usize>(&self, script: &mut Script<'_>) -> Wqe<W>
    where
        Wqe<W>: SendWqe,
    {
        let choice = script.byte();
        let imm = (choice & 0x40 != 0).then_some(5);
        let ahs: Vec<u32> = self.ahs.iter().map(|&ah| ah.into()).collect();
        let dest =
            Destination { ah: script.number(&ahs) as u16, qpn: self.some_qpn(script), qkey: script.number(&[QKEY]) };
        let limits = Limits::of_queue(u32::MAX, u32::MAX);
        let wqe = match choice % 8 {
            0 => Send { bufs: Bufs::default(), imm, hints: Hints::NONE }.encode(&limits, dest),
            1 | 2 => {
                let local: Vec<_> = (0..choice % 8).map(|_| self.some_target(script).local()).collect();
                let bufs = Bufs::new(&local).expect("one or two");
                Send { bufs, imm, hints: Hints::BURST_PPS }.encode(&limits, dest)
            }
            3 | 4 => {
                let (local, remote) = (self.some_target(script).local(), self.some_target(script).remote());
                RdmaWrite { local, remote, imm, hints: Hints::NONE }.encode(&limits, dest)
            }
            5 => {
                let (local, remote) = (self.some_target(script).local(), self.some_target(script).remote());
                RdmaRead::new(local, remote).encode(&limits, dest)
            }
            6 if W == 16 => {
                let data = &INLINE[..script.below(INLINE.len() + 1)];
                let write =
                    RdmaWriteInline { data, remote: self.some_target(script).remote(), imm, hints: Hints::NONE };
                write.encode(&limits, dest).map(|wqe| Wqe::from_words(std::array::from_fn(|i| wqe.words()[i])))
            }
            _ => {
                let data = &INLINE[..script.below(<Wqe<W> as SendWqe>::MAX_INLINE_SEND + 1)];
                SendInline { data, imm, hints: Hints::NONE }.encode(&limits, dest)
            }
        };
        wqe.expect("nothing is over the limits")
    }

    /// Returns a buffer for a receive.
    pub(crate) fn some_receive(&self, script: &mut Script<'_>) -> RxBuf {
        let LocalBuf { addr, lkey, length } = self.some_target(script).local();
        RxBuf { req_id: 0, addr, lkey, length: length as u16, first: true, last: true }
    }

    /// Posts a WQE on a queue pair and rings.
    pub(crate) fn post_send(&mut self, script: &mut Script<'_>) {
        let Some(index) = self.some_qp(script) else { return };
        let id = self.qps[index].sends.len() as u64 | self.qps[index].high_id_bits();
        if self.qps[index].info.sq.entry_size == 64 {
            let wqe: Wqe64 = self.some_wqe(script);
            self.qps[index].put_wqe(|phase| wqe.with_req_id_64(id).with_phase(phase));
        } else {
            let wqe: Wqe128 = self.some_wqe(script);
            self.qps[index].put_wqe(|phase| wqe.with_req_id_64(id).with_phase(phase));
        }
        self.qps[index].sends.push(true);
        self.qps[index].ring_send();
        self.device.poll_doorbells(self.now);
    }

    /// Posts a receive of one or two buffers on a queue pair and rings.
    pub(crate) fn post_receive(&mut self, script: &mut Script<'_>) {
        let Some(index) = self.some_qp(script) else { return };
        let two = script.byte() & 1 != 0;
        let req_id = self.qps[index].receives.len() as u16;
        let first = RxBuf { req_id, last: !two, ..self.some_receive(script) };
        self.qps[index].put_receive(RxDesc::new(first));
        if two {
            let second = RxBuf { first: false, ..self.some_receive(script) };
            self.qps[index].put_receive(RxDesc::new(second));
        }
        self.qps[index].receives.push(true);
        self.qps[index].ring_receive();
        self.device.poll_doorbells(self.now);
    }
}

impl Qp {
    /// Returns the upper bits of its sends' request ids, beyond the first 16.
    pub(crate) fn high_id_bits(&self) -> u64 {
        if self.info.sq.req_id_64 { 0x1234_5678_9abc << 16 } else { 0 }
    }

    /// Writes a WQE to the next entry of the ring, with the phase of that entry.
    pub(crate) fn put_wqe<const W: usize>(&mut self, wqe: impl FnOnce(bool) -> Wqe<W>) {
        let sq = &self.info.sq;
        let size = RingSize::new(sq.entries).expect("a power of two");
        let wqe = wqe(size.wq_phase(self.sent));
        sq.ring.publish_entry((size.slot(self.sent) * sq.entry_size) as usize, wqe.words());
        self.sent = self.sent.wrapping_add(1);
    }

    /// Writes a receive descriptor to the next entry of the ring.
    pub(crate) fn put_receive(&mut self, desc: RxDesc) {
        let rq = &self.info.rq;
        let slot = self.received % rq.entries;
        rq.ring.publish_entry((slot * rq.entry_size) as usize, desc.words());
        self.received = self.received.wrapping_add(1);
    }

    /// Resets the positions in both rings, after a change to `Reset`.
    pub(crate) fn was_reset(&mut self) {
        (self.sent, self.received) = (0, 0);
    }

    pub(crate) fn ring_send(&self) {
        self.info.sq.doorbell.store_doorbell(self.info.sq.doorbell_offset, self.sent);
    }

    pub(crate) fn ring_receive(&self) {
        self.info.rq.doorbell.store_doorbell(self.info.rq.doorbell_offset, self.received);
    }
}
