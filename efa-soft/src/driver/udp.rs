//! A device whose packets travel over UDP, to other processes and other hosts.

use super::events::{Waiters, Waker};
use super::handle::{DeviceHandle, inherited};
use super::seal::{self, Key, Sealer};
use super::worker::{Idle, IdleMode, Worker, now};
use crate::contain::log;
use crate::link::{Link, Parcel};
use crate::wire::{Envelope, Packet};
use crate::{Device, DeviceConfig, LinkConfig, LinkCounters, Secret, Time};
use efa_types::{AsyncEvent, Gid};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most packets taken from the socket in one step, so that timeouts and doorbells get their turn.
const BATCH: usize = 64;
/// Length of the longest UDP datagram. A peer's MTU may be larger than this device's.
const MAX_DATAGRAM: usize = 1 << 16;
/// Most buffers kept for packets to come.
const SPARE: usize = 1024;
/// Size of the socket's buffers that is asked for, in bytes. The system may give less.
const SOCKET_BUFFER: usize = 4 << 20;

/// The configuration of a device on UDP: where it listens, and what happens to its packets before they leave.
#[derive(Clone, Debug)]
pub struct UdpConfig {
    /// Address to listen at; port 0 takes a free one. Peers must be able to reach the address, since the GID carries
    /// it.
    pub bind: SocketAddrV4,
    /// Faults of the network, applied to outgoing packets.
    pub link: LinkConfig,
    /// What the driver's thread does when there is nothing to do.
    pub idle: IdleMode,
    /// A key for networks that are not trusted, with which every datagram is sealed. Devices hear each other only if
    /// they have the same key, or none. [`driver`](crate::driver) says what that promises.
    pub key: Option<Key>,
}

impl Default for UdpConfig {
    fn default() -> Self {
        let bind = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        Self { bind, link: LinkConfig::default(), idle: IdleMode::default(), key: None }
    }
}

/// A packet on its way to the socket.
#[derive(Clone)]
struct Datagram {
    to: SocketAddr,
    path: u8,
    bytes: Vec<u8>,
}

impl Parcel for Datagram {
    fn path(&self) -> u8 {
        self.path
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// The reason why a datagram is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// It did not come from the address that it gives as its sender's.
    Address,
    /// It has no seal, and the device has a key.
    Bare,
    /// It has a seal, and the device has no key.
    Sealed,
    /// It has a seal of another key.
    OtherKey,
    /// It arrived before.
    Repeated,
}

impl Refusal {
    /// Returns what the log says about it, once.
    fn why(self) -> &'static str {
        match self {
            Self::Address => {
                "a packet did not come from the address that it gives as its sender's: it is forged, or there is an address translator \
                 on the way, which software devices cannot work through"
            }
            Self::Bare => {
                "a packet is not sealed: its sender has no key and this device has one, so they do not hear each other"
            }
            Self::Sealed => {
                "a packet is sealed: its sender has a key and this device has none, so they do not hear each other"
            }
            Self::OtherKey => "a packet is sealed with another key than this device's, so they do not hear each other",
            Self::Repeated => "a sealed packet came again",
        }
    }
}

/// Decides which datagrams the device may see.
struct Gate {
    own: Gid,
    sealer: Option<Sealer>,
    /// The reasons that are in the log already.
    told: Vec<Refusal>,
}

impl Gate {
    /// Returns the packet in a datagram that came from this address.
    fn open<'a>(&mut self, from: SocketAddr, datagram: &'a mut [u8]) -> Result<&'a [u8], Refusal> {
        let is_sealed = datagram.starts_with(&seal::MAGIC);
        let mut number = None;
        let (packet, flaw) = match &self.sealer {
            Some(sealer) if is_sealed => {
                let (packet, counted, right) = sealer.open(datagram);
                number = Some(counted);
                (packet, (!right).then_some(Refusal::OtherKey))
            }
            Some(_) => (&*datagram, Some(Refusal::Bare)),
            None if is_sealed => return Err(Refusal::Sealed),
            None => (&*datagram, None),
        };
        // Without an envelope it is no packet: the device counts it as malformed.
        let Some(envelope) = Envelope::parse(packet) else { return Ok(if flaw.is_some() { &[] } else { packet }) };
        let flaw = flaw.or((envelope.src.to_udp() != Some(from)).then_some(Refusal::Address));
        if let Some(flaw) = flaw {
            // A packet that was damaged on its way must not pass for forged. The device drops what does not parse, and
            // counts it.
            return if Packet::parse(packet).is_ok() { Err(flaw) } else { Ok(packet) };
        }
        if let (Some(sealer), Some(number)) = (&mut self.sealer, number)
            && envelope.dst == self.own
            && sealer.is_repeated(&envelope, number)
        {
            return Err(Refusal::Repeated);
        }
        Ok(packet)
    }

    /// Logs once why packets like this one are dropped.
    fn complain(&mut self, refusal: Refusal, from: SocketAddr) {
        if !self.told.contains(&refusal) {
            self.told.push(refusal);
            let why = refusal.why();
            log!(warn, %from, device = %self.own, "{why}: dropped and counted (`refused_pkts`), like all others of the kind");
        }
    }
}

struct State {
    device: Device,
    gate: Gate,
    link: Link<Datagram>,
    /// Buffers of packets that are gone, for packets to come.
    spare: Vec<Vec<u8>>,
}

struct Shared {
    state: Mutex<State>,
    socket: UdpSocket,
    waiters: Waiters,
}

/// A device on UDP, and the thread that drives it. Dropping it stops both.
pub struct Udp {
    shared: Arc<Shared>,
    worker: Worker,
}

impl Udp {
    /// Starts the device that `device` configures, given its GID. The GID comes from the socket's address, the
    /// incarnation from the wall clock, and the secret is random.
    ///
    /// # Errors
    /// The address is invalid, or unspecified like 0.0.0.0; the system gives no randomness; or no thread could be
    /// started.
    pub fn start(udp: &UdpConfig, device: impl FnOnce(Gid) -> DeviceConfig) -> io::Result<Self> {
        if udp.bind.ip().is_unspecified() {
            let problem = format!("{} is no address that peers can reach: name one of this host's", udp.bind);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let socket = UdpSocket::bind(udp.bind)?;
        socket.set_nonblocking(true)?;
        // Best effort: smaller buffers mean more retransmissions, and nothing else.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
        let port = socket.local_addr()?.port();
        let mut config = device(Gid::of_udp(SocketAddrV4::new(*udp.bind.ip(), port)));
        config.incarnation = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
        config.secret = secret()?;
        let gate = Gate { own: config.attributes.gid, sealer: udp.key.clone().map(Sealer::new), told: Vec::new() };
        let state = State { device: Device::new(config), gate, link: Link::new(udp.link), spare: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), socket, waiters: Waiters::default() });
        let idle = udp.idle;
        let (running, failing) = (shared.clone(), shared.clone());
        let run = move |stop: &AtomicBool| running.run(idle, stop);
        let worker = Worker::start("efa-soft-udp", run, move || failing.waiters.tell(AsyncEvent::DeviceFatal))?;
        Ok(Self { shared, worker })
    }
}

/// Returns a random secret.
fn secret() -> io::Result<Secret> {
    let mut secret = [0; 32];
    // The kernel returns so few bytes in one piece, or none (getrandom(2)).
    let len = rustix::rand::getrandom(&mut secret[..], rustix::rand::GetRandomFlags::empty())?;
    if len == secret.len() { Ok(Secret(secret)) } else { Err(io::ErrorKind::Interrupted.into()) }
}

impl Shared {
    fn run(&self, idle: IdleMode, stop: &AtomicBool) {
        let mut idle = Idle::new(idle);
        let mut state = self.state.lock();
        let mut buf = vec![0; MAX_DATAGRAM];
        while !stop.load(Ordering::Relaxed) {
            let at = now();
            let progress = state.step(at, &self.socket, &mut buf);
            self.waiters.dispatch(&mut state.device);
            match idle.nap(at, progress) {
                Some(nap) => {
                    let nap = state.until_next(at).map_or(nap, |due| nap.min(due));
                    MutexGuard::unlocked(&mut state, || self.nap(nap));
                }
                None => MutexGuard::bump(&mut state), // lets control calls take their turn
            }
        }
    }

    /// Sleeps until a packet arrives, or a nap is over.
    fn nap(&self, nap: Duration) {
        let timeout = Timespec { tv_sec: 0, tv_nsec: nap.subsec_nanos().into() };
        let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout));
    }
}

impl State {
    /// Returns how long it is until something is due.
    fn until_next(&self, now: Time) -> Option<Duration> {
        let next = self.device.poll_timeout().into_iter().chain(self.link.next_time()).min();
        next.map(|next| next.since(now))
    }

    /// Drives the device once: input, time, output, in the order that [`Device`] asks for. Returns `true` if there was
    /// anything to do.
    fn step(&mut self, now: Time, socket: &UdpSocket, buf: &mut [u8]) -> bool {
        let Self { device, gate, link, spare } = self;
        let mut progress = device.poll_doorbells(now);
        for _ in 0..BATCH {
            match socket.recv_from(buf) {
                Ok((len, from)) => match gate.open(from, &mut buf[..len]) {
                    Ok(packet) => device.handle(now, packet),
                    Err(Refusal::Repeated) => device.refuse_duplicate(now, len),
                    Err(refusal) => {
                        device.refuse(now, len);
                        gate.complain(refusal, from);
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The answer to an earlier packet: no socket listens there, or not yet.
                Err(error) => {
                    log!(debug, %error, "receiving");
                }
            }
            progress = true;
        }
        if device.poll_timeout().is_some_and(|due| due <= now) {
            device.on_timeout(now);
            progress = true;
        }
        while let Some(packet) = device.poll_transmit(now) {
            progress = true;
            let Some(to) = packet.envelope.dst.to_udp() else { continue }; // the GID holds no UDP address
            let mut bytes = spare.pop().unwrap_or_default();
            if packet.emit(&mut bytes) {
                if let Some(sealer) = &mut gate.sealer {
                    sealer.seal(&mut bytes);
                }
                let unwanted = link.push(now, Datagram { to, path: packet.envelope.path, bytes });
                spare.extend(unwanted.map(|datagram| datagram.bytes));
            } else {
                spare.push(bytes);
            }
        }
        while let Some(Datagram { to, bytes, .. }) = link.pop(now) {
            progress = true;
            // What the socket refuses is a packet lost, as on any network.
            if let Err(error) = socket.send_to(&bytes, to) {
                log!(debug, %error, %to, "sending");
            }
            if spare.len() < SPARE {
                spare.push(bytes);
            }
        }
        progress
    }
}

impl DeviceHandle for Udp {
    fn with(&self, f: &mut dyn FnMut(&mut Device)) -> bool {
        let life = self.worker.life();
        if life.is_elsewhere() {
            return false;
        }
        let mut state = self.shared.state.lock();
        state.device.set_time(now());
        let usable = !life.is_over();
        if usable {
            f(&mut state.device);
        }
        usable
    }

    fn set_waker(&self, cqn: u32, waker: Option<Waker>) -> std::io::Result<()> {
        if self.worker.life().is_elsewhere() {
            return Err(inherited());
        }
        self.shared.waiters.set_waker(cqn, waker);
        Ok(())
    }

    fn next_event(&self) -> Option<AsyncEvent> {
        if self.worker.life().is_elsewhere() { None } else { self.shared.waiters.next_event() }
    }

    fn link_counters(&self) -> LinkCounters {
        let is_elsewhere = self.worker.life().is_elsewhere();
        if is_elsewhere { LinkCounters::default() } else { self.shared.state.lock().link.counters() }
    }

    fn change_link(&self, change: &mut dyn FnMut(&mut LinkConfig)) {
        if !self.worker.life().is_elsewhere() {
            change(self.shared.state.lock().link.config_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Body, Hello};
    use std::fmt::Write;
    use std::sync::Mutex as StdMutex;
    use std::sync::atomic::AtomicU64;

    const HERE: Gid = Gid::of_udp(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));
    const THERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2);
    const ELSEWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 3);

    fn key(secret: u8) -> Key {
        Key::new(&[secret; 32]).unwrap()
    }

    fn gate(secret: Option<u8>) -> Gate {
        Gate { own: HERE, sealer: secret.map(key).map(Sealer::new), told: Vec::new() }
    }

    fn packet() -> Vec<u8> {
        static LIVES: AtomicU64 = AtomicU64::new(1);
        let src_incarnation = LIVES.fetch_add(1, Ordering::Relaxed);
        let envelope = Envelope { src: Gid::of_udp(THERE), dst: HERE, src_incarnation, dst_incarnation: 0, path: 0 };
        let (hello, mut bytes) = (Body::Hello(Hello { challenge: 1, echo: 0 }), Vec::new());
        assert!(Packet { envelope, body: hello }.emit(&mut bytes));
        bytes
    }

    fn sealed(secret: u8) -> Vec<u8> {
        let mut packet = packet();
        Sealer::new(key(secret)).seal(&mut packet);
        packet
    }

    #[test]
    fn a_packet_gets_in_from_its_senders_address_and_with_the_devices_seal_and_once() {
        let open = |gate: &mut Gate, from: SocketAddrV4, datagram: &[u8]| {
            let mut bytes = datagram.to_vec();
            gate.open(from.into(), &mut bytes).map(|packet| Packet::parse(packet).is_ok())
        };
        let (bare, own, other) = (packet(), sealed(1), sealed(2));
        let mut without = gate(None);
        assert_eq!(open(&mut without, THERE, &bare), Ok(true));
        assert_eq!(open(&mut without, ELSEWHERE, &bare), Err(Refusal::Address));
        assert_eq!(open(&mut without, THERE, &own), Err(Refusal::Sealed));
        let mut with = gate(Some(1));
        assert_eq!(open(&mut with, THERE, &bare), Err(Refusal::Bare));
        assert_eq!(open(&mut with, THERE, &other), Err(Refusal::OtherKey));
        assert_eq!(open(&mut with, ELSEWHERE, &own), Err(Refusal::Address));
        assert_eq!(open(&mut with, THERE, &own), Ok(true));
        assert_eq!(open(&mut with, THERE, &own), Err(Refusal::Repeated));
        // Damage is no forgery: the device counts it, and nothing else.
        for gate in [&mut without, &mut with] {
            for datagram in [&bare, &own, &other] {
                for byte in 4..datagram.len().min(80) {
                    let mut damaged = datagram.clone();
                    damaged[byte] ^= 1;
                    assert_ne!(open(gate, THERE, &damaged), Ok(true), "byte {byte}");
                }
                for len in 0..datagram.len() {
                    assert_ne!(open(gate, THERE, &datagram[..len]), Ok(true), "{len} bytes");
                }
            }
        }
    }

    /// A subscriber of the crate `tracing` that keeps what it is told.
    #[derive(Clone, Default)]
    struct Log(Arc<StdMutex<String>>);

    impl tracing::field::Visit for Log {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
            write!(self.0.lock().unwrap(), "{field}={value:?} ").unwrap();
        }
    }

    impl tracing::Subscriber for Log {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            event.record(&mut self.clone());
            self.0.lock().unwrap().push('\n');
        }

        fn enter(&self, _: &tracing::span::Id) {}

        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn each_kind_of_refusal_is_logged_once_and_in_words() {
        let log = Log::default();
        let refusals = [Refusal::Address, Refusal::Bare, Refusal::Sealed, Refusal::OtherKey];
        tracing::subscriber::with_default(log.clone(), || {
            let mut gate = gate(Some(1));
            for _ in 0..3 {
                refusals.iter().for_each(|&refusal| gate.complain(refusal, THERE.into()));
            }
        });
        let log = log.0.lock().unwrap();
        assert_eq!(log.lines().count(), refusals.len(), "{log}");
        for (line, words) in log.lines().zip(["not come from the address", "has no key", "has a key", "another key"]) {
            assert!(line.contains(words) && line.contains("127.0.0.1:2") && line.contains("refused_pkts"), "{line}");
        }
    }
}
