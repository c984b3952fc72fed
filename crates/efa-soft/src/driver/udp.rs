//! One device whose packets travel over UDP, to other processes and other hosts.

use super::events::Waiters;
use super::worker::{Idle, IdleMode, Worker, now};
use super::{Port, Waker, inherited};
use crate::contain::log;
use crate::link::{Link, Parcel};
use crate::{AsyncEvent, Device, DeviceConfig, Gid, LinkConfig, LinkCounters, Time};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Packets taken from the socket in one go, so that timeouts and doorbells get their turn.
const BATCH: usize = 64;
/// Longest datagram there is: a peer's MTU may be larger than ours.
const MAX_DATAGRAM: usize = 1 << 16;
/// Most packets whose memory is kept.
const SPARE: usize = 1024;
/// Socket buffer asked for, in bytes; the system may give less.
const SOCKET_BUFFER: usize = 4 << 20;

/// Where a device listens, and what happens to its packets before they leave.
#[derive(Clone, Debug)]
pub struct UdpConfig {
    /// Address to listen at; port 0 takes a free one. It must be one that peers can reach, since the GID carries it.
    pub bind: SocketAddrV4,
    /// Faults, applied to outgoing packets.
    pub link: LinkConfig,
    /// What its thread does when there is nothing to do.
    pub idle: IdleMode,
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self { bind: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), link: LinkConfig::default(), idle: IdleMode::default() }
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

struct State {
    device: Device,
    link: Link<Datagram>,
    /// Memory of packets that are gone, for those to come.
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
    /// Starts a device. Its GID and incarnation are filled in from the socket's address and the wall clock.
    ///
    /// # Errors
    /// The address cannot be used or is nobody's in particular, or no thread could be started.
    pub fn start(udp: &UdpConfig, device: impl FnOnce(Gid) -> DeviceConfig) -> io::Result<Self> {
        if udp.bind.ip().is_unspecified() {
            let problem = format!("{} is no address that peers can reach: name one of this host's", udp.bind);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let socket = UdpSocket::bind(udp.bind)?;
        socket.set_nonblocking(true)?;
        // Best effort: less memory means more retransmission, not less correctness.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
        let port = socket.local_addr()?.port();
        let mut config = device(Gid::of_udp(SocketAddrV4::new(*udp.bind.ip(), port)));
        config.incarnation = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
        let state = State { device: Device::new(config), link: Link::new(udp.link), spare: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), socket, waiters: Waiters::default() });
        let idle = udp.idle;
        let (running, failing) = (shared.clone(), shared.clone());
        let run = move |stop: &AtomicBool| running.run(idle, stop);
        let worker = Worker::start("efa-soft-udp", run, move || failing.waiters.tell(AsyncEvent::DeviceFatal))?;
        Ok(Self { shared, worker })
    }
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
                None => MutexGuard::bump(&mut state), // control calls take their turn here
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
    /// How long until something is due.
    fn until_next(&self, now: Time) -> Option<Duration> {
        let next = self.device.poll_timeout().into_iter().chain(self.link.next_time()).min();
        next.map(|next| next.since(now))
    }

    fn step(&mut self, now: Time, socket: &UdpSocket, buf: &mut [u8]) -> bool {
        let Self { device, link, spare } = self;
        let mut progress = device.poll_doorbells(now);
        for _ in 0..BATCH {
            match socket.recv_from(buf) {
                Ok((len, _)) => device.handle(now, &buf[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An earlier packet to a port without listener: the peer is not there, or not yet.
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
        while let Some(transmit) = device.poll_transmit(now) {
            progress = true;
            let Some(to) = transmit.dst().to_udp() else { continue }; // no such address on this network
            let mut bytes = spare.pop().unwrap_or_default();
            if transmit.encode(&mut bytes) {
                let unwanted = link.push(now, Datagram { to, path: transmit.path(), bytes });
                spare.extend(unwanted.map(|datagram| datagram.bytes));
            } else {
                spare.push(bytes);
            }
        }
        while let Some(Datagram { to, bytes, .. }) = link.pop(now) {
            progress = true;
            // What the socket refuses is lost, like anything else on a network.
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

impl Port for Udp {
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

    fn wake(&self, cqn: u32, waker: Option<Waker>) -> std::io::Result<()> {
        if self.worker.life().is_elsewhere() {
            return Err(inherited());
        }
        self.shared.waiters.wake(cqn, waker);
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
