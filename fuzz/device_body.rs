//! What must hold of a software device whatever a program writes into its rings, whatever a network delivers, and whichever
//! control calls are made in whichever order.
//!
//! The input is a script. A device with some objects executes it; memory lies around its regions as a canary. Nothing may
//! panic, no byte outside a region may change, and none inside one that lacks the right.

use efa_io::{Lkey, LocalBuf};
use efa_soft::memory::{Backing, HostMemory, SharedMemory};
use efa_soft::wire::{self, Ack, Data, Envelope, Lane, MessageHeader, Packet, WireOp};
use efa_soft::{Access, CqConfig, CqeSize, Device, DeviceConfig, Gid, QpConfig, QpInfo, QpState, Time, Transport};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

const OWN: Gid = Gid::local(1);
const PEER: Gid = Gid::local(2);
const MTU: u32 = 256;
/// Bytes of the memory in which the regions lie.
const MEMORY: usize = 8192;
/// Where in it: one that may be read only, and one that may be written, too.
const READ_ONLY: std::ops::Range<usize> = 1000..2000;
const WRITABLE: std::ops::Range<usize> = 4003..5003;
const CANARY: u8 = 0xc5;
/// Where the owner believes the regions to be; small, so that scripts hit them.
const READ_ONLY_ADDR: u64 = 0x1000;
const WRITABLE_ADDR: u64 = 0x4000;

/// Reads values off the script; an exhausted script gives zeros.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    /// One of these, or (for one value of the choosing byte in sixteen) anything.
    fn one_of(&mut self, likely: &[u32]) -> u32 {
        let choice = self.byte();
        match likely.get(usize::from(choice & 0xf) % (likely.len() + 1)) {
            Some(value) => *value,
            None => self.u32(),
        }
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        head
    }
}

struct World {
    device: Device,
    memory: Arc<SharedMemory>,
    now: Time,
    pd: u32,
    cq: u32,
    qps: Vec<QpInfo>,
    /// Keys that were given out at some time: lkey, rkey.
    keys: Vec<(u32, u32)>,
    ahs: Vec<u16>,
    /// Numbers of messages that the device has sent.
    sent: Vec<u32>,
}

/// A region inside `memory` that the device sees at `addr`.
fn register(
    device: &mut Device,
    pd: u32,
    memory: &Arc<SharedMemory>,
    range: std::ops::Range<usize>,
    addr: u64,
    access: Access,
) -> (u32, u32) {
    let ptr = NonNull::new(memory.as_ptr().wrapping_add(range.start)).expect("the memory is somewhere");
    // SAFETY: the range lies inside the memory, which the backing keeps alive and which everyone accesses atomically.
    let backing = unsafe { HostMemory::from_raw(ptr, range.len(), Some(memory.clone())) };
    match device.register(pd, Arc::new(backing), addr, access) {
        Ok(keys) => (keys.lkey, keys.rkey),
        Err(_) => (0, 0),
    }
}

impl World {
    fn new() -> Self {
        let mut device = Device::new(DeviceConfig {
            mtu: MTU,
            max_qp: 4,
            max_pd: 4,
            max_cq: 4,
            max_mr: 16,
            max_ah: 8,
            ..DeviceConfig::new(OWN)
        });
        let memory = SharedMemory::zeroed(MEMORY).expect("two pages");
        assert!(memory.write(0, &[CANARY; MEMORY]));
        let pd = device.alloc_pd().expect("the first domain");
        let cq = device
            .create_cq(CqConfig { entries: 64, entry_size: CqeSize::Large, channel: true })
            .expect("the first completion queue");
        let read_only = register(&mut device, pd, &memory, READ_ONLY, READ_ONLY_ADDR, Access::REMOTE_READ);
        let rights = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
        let writable = register(&mut device, pd, &memory, WRITABLE, WRITABLE_ADDR, rights);
        let ah = device.create_ah(pd, PEER).expect("the first address handle");
        let mut world = Self {
            device,
            memory,
            now: Time::from_nanos(1),
            pd,
            cq: cq.cqn,
            qps: vec![],
            keys: vec![read_only, writable],
            ahs: vec![ah],
            sent: vec![],
        };
        for wide in [false, true] {
            world.create_qp(wide);
        }
        world
    }

    fn create_qp(&mut self, wide: bool) {
        let config = QpConfig {
            transport: Transport::Srd,
            pd: self.pd,
            send_cq: self.cq,
            recv_cq: self.cq,
            send_entries: 8,
            recv_entries: 4,
            recv_sge: 2,
            inline_bytes: if wide { 80 } else { 32 },
            inline_write: wide,
            unsolicited_write_recv: wide,
        };
        if let Ok(qp) = self.device.create_qp(config) {
            for state in [QpState::Init, QpState::ReadyToReceive, QpState::ReadyToSend] {
                let _ = self.device.modify_qp(qp.qpn, state, Some(7));
            }
            self.qps.push(qp);
        }
    }

    fn qpn(&self, script: &mut Script<'_>) -> u16 {
        let known: Vec<u32> = self.qps.iter().map(|qp| qp.qpn.into()).collect();
        script.one_of(&known) as u16
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 8 {
            0 => self.packet(script),
            1 => self.raw_packet(script),
            2 => self.post(script),
            3 => self.raw_ring(script),
            4 => self.doorbell(script),
            5 => self.control(script),
            6 => {
                self.now = self.now + Duration::from_micros(script.u32().into());
                self.device.on_timeout(self.now);
            }
            _ => self.transmit(script),
        }
    }

    /// A well-formed packet of arbitrary meaning.
    fn packet(&mut self, script: &mut Script<'_>) {
        let src = if script.byte() < 0xf0 { PEER } else { OWN };
        let envelope = Envelope {
            src,
            dst: OWN,
            src_incarnation: script.one_of(&[1, 1, 2]).into(),
            dst_incarnation: script.one_of(&[0, 1, 1]).into(),
            path: script.byte(),
        };
        let mut bytes = Vec::new();
        match script.byte() % 4 {
            0 => {
                let acks: Vec<Ack> = (0..script.byte() % 8).map(|_| ack(script, &self.sent)).collect();
                let lane = if script.byte() & 1 == 0 { Lane::Requests } else { Lane::Responses };
                wire::encode_acks(&mut bytes, &envelope, lane, script.byte() & 1 == 1, &acks);
            }
            1 if script.byte() < 16 => wire::encode_reset(&mut bytes, &envelope),
            _ => {
                let op = [WireOp::Send, WireOp::Write, WireOp::ReadRequest, WireOp::ReadResponse]
                    [usize::from(script.byte() % 4)];
                let rkeys: Vec<u32> = self.keys.iter().map(|keys| keys.1).collect();
                let addrs =
                    [READ_ONLY_ADDR, WRITABLE_ADDR, WRITABLE_ADDR + 1, WRITABLE_ADDR + 999].map(|addr| addr as u32);
                let header = MessageHeader {
                    op,
                    src_qpn: script.u16(),
                    dst_qpn: self.qpn(script),
                    qkey: script.one_of(&[7, 7, 7]),
                    imm: (script.byte() & 1 != 0).then_some(9),
                    bytes: script.one_of(&[0, 1, 8, 256, 257, 999, 1000, 1001]),
                    rkey: script.one_of(&rkeys),
                    remote_addr: u64::from(script.one_of(&addrs)) | u64::from(script.byte() / 255) << 63,
                    reply_to: script.one_of(&self.sent),
                    placed: script.byte() & 7 == 7,
                };
                let stride = script.one_of(&[MTU, MTU, 64, 1, 1000]).max(1);
                let packet = script.one_of(&[0, 0, 1, 2, 3]) % header.packets(stride);
                let len = header.payload_len(packet, stride).min(70_000);
                let data = Data {
                    message: script.one_of(&[0, 1, 2, 3]),
                    base: script.one_of(&[0, 0, 1]),
                    header,
                    stride,
                    packet,
                };
                let fill = script.byte();
                let _ = wire::encode_data(&mut bytes, &envelope, &data, len, |payload| {
                    payload.fill(fill);
                    Ok::<_, ()>(())
                });
            }
        }
        self.device.handle(self.now, &bytes);
    }

    fn raw_packet(&mut self, script: &mut Script<'_>) {
        let count = script.byte().into();
        self.device.handle(self.now, script.bytes(count));
    }

    /// A WQE that means something, where the device expects the next one.
    fn post(&mut self, script: &mut Script<'_>) {
        let Some(qp) = self.qps.get(usize::from(script.byte()) % self.qps.len().max(1)) else { return };
        let limits = efa_io::Limits::of_queue(u32::MAX, u32::MAX);
        let ahs: Vec<u32> = self.ahs.iter().map(|&ah| ah.into()).collect();
        let dest = efa_io::Destination { ah: script.one_of(&ahs) as u16, qpn: script.u16(), qkey: script.u32() };
        let lkeys: Vec<u32> = self.keys.iter().map(|keys| keys.0).collect();
        let local = LocalBuf {
            addr: script.one_of(&[READ_ONLY_ADDR as u32, WRITABLE_ADDR as u32, WRITABLE_ADDR as u32 + 1]).into(),
            lkey: Lkey::new(script.one_of(&lkeys) & 0xff_ffff).unwrap_or_default(),
            length: script.one_of(&[0, 1, 8, 256, 257, 999, 1000, 1001]),
        };
        let remote = efa_io::RemoteBuf { addr: script.u32().into(), rkey: script.u32() };
        let producer = qp.sq.doorbell.load_doorbell(qp.sq.doorbell_offset);
        let slot = producer % qp.sq.entries;
        let phase = producer / qp.sq.entries % 2 == 1;
        let kind = script.byte();
        let id = script.u16();
        let size = qp.sq.entry_size as usize;
        macro_rules! store {
            ($words:expr, $op:expr) => {
                if let Ok(wqe) = $op.encode::<$words>(&limits, dest) {
                    let wqe = wqe.with_req_id(id).with_phase(phase);
                    let _ = qp.sq.ring.write(slot as usize * size, wqe.as_bytes());
                }
            };
        }
        let inline = &[0x11; 80][..usize::from(script.byte()) % 33];
        let send = efa_io::Send::new(&[local]).expect("one buffer");
        match (kind % 4, size) {
            (0, 64) => store!(8, send),
            (0, _) => store!(16, send),
            (1, 64) => store!(8, efa_io::RdmaWrite::new(local, remote)),
            (1, _) => store!(16, efa_io::RdmaWrite::new(local, remote).imm(5)),
            (2, 64) => store!(8, efa_io::RdmaRead::new(local, remote)),
            (2, _) => store!(16, efa_io::RdmaRead::new(local, remote)),
            (_, 64) => store!(8, efa_io::SendInline::new(inline)),
            (_, _) => {
                if let Ok(wqe) = efa_io::RdmaWriteInline::new(inline, remote).encode(&limits, dest) {
                    let _ = qp.sq.ring.write(slot as usize * size, wqe.with_req_id(id).with_phase(phase).as_bytes());
                }
            }
        }
        qp.sq.doorbell.store_doorbell(qp.sq.doorbell_offset, producer.wrapping_add(1));
        self.device.poll_doorbells(self.now);
    }

    /// Arbitrary bytes in a ring.
    fn raw_ring(&mut self, script: &mut Script<'_>) {
        let Some(qp) = self.qps.get(usize::from(script.byte()) % self.qps.len().max(1)) else { return };
        let wq = if script.byte() & 1 == 0 { &qp.sq } else { &qp.rq };
        let count = script.byte();
        let bytes = script.bytes(count.into());
        let room = (wq.entries * wq.entry_size) as usize;
        let offset = usize::from(script.u16()) % room;
        let _ = wq.ring.write(offset, &bytes[..bytes.len().min(room - offset)]);
    }

    /// An arbitrary value in a doorbell, a receive or completion doorbell among them.
    fn doorbell(&mut self, script: &mut Script<'_>) {
        let Some(qp) = self.qps.get(usize::from(script.byte()) % self.qps.len().max(1)) else { return };
        let wq = if script.byte() & 1 == 0 { &qp.sq } else { &qp.rq };
        let value = script.one_of(&[1, 2, 3, 4, 8, 9]);
        if script.byte() & 1 == 0 {
            wq.doorbell.store_doorbell(wq.doorbell_offset, value);
            self.device.poll_doorbells(self.now);
        } else {
            self.device.ring_send_doorbell(self.now, qp.qpn, value);
        }
    }

    fn control(&mut self, script: &mut Script<'_>) {
        let qpn = self.qpn(script);
        let device = &mut self.device;
        match script.byte() % 12 {
            0 => drop(device.alloc_pd()),
            1 => drop(device.dealloc_pd(script.one_of(&[self.pd]))),
            2 => drop(device.create_cq(CqConfig {
                entries: script.one_of(&[1, 16]),
                entry_size: CqeSize::Small,
                channel: false,
            })),
            3 => drop(device.destroy_cq(script.one_of(&[self.cq, 2]))),
            4 => self.create_qp(script.byte() & 1 == 1),
            5 => {
                if device.destroy_qp(qpn).is_ok() {
                    self.qps.retain(|qp| qp.qpn != qpn);
                }
            }
            6 => {
                use QpState::*;
                let to = [Reset, Init, ReadyToReceive, ReadyToSend, Error][usize::from(script.byte() % 5)];
                drop(device.modify_qp(qpn, to, Some(7)));
            }
            7 => {
                let rights = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
                let keys = register(device, self.pd, &self.memory, WRITABLE, WRITABLE_ADDR, rights);
                self.keys.push(keys);
            }
            8 => {
                let lkeys: Vec<u32> = self.keys.iter().map(|keys| keys.0).collect();
                drop(device.deregister(script.one_of(&lkeys)));
            }
            9 => {
                if let Ok(ah) = device
                    .create_ah(self.pd, [PEER, OWN, Gid::local(script.byte().into())][usize::from(script.byte() % 3)])
                {
                    self.ahs.push(ah);
                }
            }
            10 => {
                let ahs: Vec<u32> = self.ahs.iter().map(|&ah| ah.into()).collect();
                drop(device.destroy_ah(self.pd, script.one_of(&ahs) as u16));
            }
            _ => drop(device.query_qp(qpn)),
        }
    }

    /// Lets the device send; some packets come back to it, as if the peer were a mirror.
    fn transmit(&mut self, script: &mut Script<'_>) {
        for _ in 0..64 {
            let Some(transmit) = self.device.poll_transmit(self.now) else { return };
            assert!(transmit.wire_len() <= wire::DATA_HEADER + MTU.max(1024) as usize, "a packet over the MTU");
            let mut bytes = Vec::new();
            assert!(transmit.encode(&mut bytes) && bytes.len() == transmit.wire_len());
            if let Ok((_, Packet::Data(data, _))) = wire::parse(&bytes)
                && !self.sent.contains(&data.message)
                && self.sent.len() < 15
            {
                self.sent.push(data.message);
            }
            match script.byte() & 3 {
                0 => self.device.handle(self.now, &bytes),
                1 => self.device.handle_transmit(self.now, &transmit),
                _ => {}
            }
        }
    }

    /// Nothing outside the regions has changed, nor the one that may only be read.
    fn check(&self) {
        let mut bytes = [0; MEMORY];
        assert!(self.memory.read(0, &mut bytes));
        let outside = bytes.iter().enumerate().filter(|(i, _)| !WRITABLE.contains(i));
        for (i, byte) in outside {
            assert_eq!(*byte, CANARY, "byte {i} was written");
        }
    }
}

/// An acknowledgement, mostly of a message that was sent.
fn ack(script: &mut Script<'_>, sent: &[u32]) -> Ack {
    let message = script.one_of(sent);
    match script.byte() % 4 {
        0 => Ack::Done { first: message, count: script.u16(), status: efa_io::Status::from_code(script.byte()) },
        1 => Ack::Partial { message, next: script.one_of(&[0, 1, 2]), bitmap: [script.u32().into(), 0, u64::MAX, 1] },
        2 => Ack::NotReady { message },
        _ => Ack::Accepted { message },
    }
}

/// Executes a script.
pub(crate) fn device(data: &[u8]) {
    let mut script = Script(data);
    let mut world = World::new();
    while !script.0.is_empty() {
        world.step(&mut script);
        world.now = world.now + Duration::from_micros(1);
    }
    world.device.on_timeout(world.now + Duration::from_secs(60));
    while world.device.poll_transmit(world.now).is_some() {}
    world.check();
}
