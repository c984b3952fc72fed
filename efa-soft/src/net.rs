//! Devices and the network between them, in one process and one thread.

use crate::contain::contain;
use crate::link::{Link, Parcel};
use crate::wire::Packet;
use crate::{Device, DeviceConfig, LinkConfig, LinkCounters, Time};
use efa_types::Gid;
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// Most packets that a device sends before others get their turn: so few that they are still in the cache when they
/// arrive.
const BURST: usize = 64;

/// A packet on its way from one device to another.
#[derive(Clone)]
enum Flight {
    /// As its sender made it, with a reference to its payload.
    Whole(Packet<'static>),
    /// As bytes, because it was damaged.
    Bytes { dst: Gid, path: u8, bytes: Vec<u8> },
}

impl Parcel for Flight {
    fn path(&self) -> u8 {
        match self {
            Self::Whole(packet) => packet.envelope.path,
            Self::Bytes { path, .. } => *path,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        if let Self::Whole(packet) = self {
            let mut bytes = Vec::new();
            if !packet.emit(&mut bytes) {
                bytes.clear(); // the payload is gone: the receiver finds a damaged packet
            }
            *self = Self::Bytes { dst: packet.envelope.dst, path: packet.envelope.path, bytes };
        }
        match self {
            Self::Bytes { bytes, .. } => bytes,
            Self::Whole(_) => &mut [],
        }
    }
}

/// A device on a network.
struct Place {
    device: Device,
    /// The device panicked. It keeps its place, but gets no turn any more.
    failed: bool,
}

/// What becomes of a panic that comes out of a device.
trait OnPanic {
    /// Calls `work`. Returns `None` if it panicked and the panic ends here.
    fn run<T>(work: impl FnOnce() -> T) -> Option<T>;
}

/// The panic goes on to the caller, so that no test misses it.
struct Propagated;

impl OnPanic for Propagated {
    fn run<T>(work: impl FnOnce() -> T) -> Option<T> {
        Some(work())
    }
}

/// The panic fails that device alone.
struct Contained;

impl OnPanic for Contained {
    fn run<T>(work: impl FnOnce() -> T) -> Option<T> {
        contain(work)
    }
}

/// Devices on one network, as a state machine: it has no clock and no thread, and [`step`](Self::step) is told the
/// time.
pub struct Net {
    places: Vec<Option<Place>>,
    /// The place of each address.
    by_gid: HashMap<Gid, usize, RandomState>,
    link: Link<Flight>,
    /// The last step left something to do at once.
    is_busy: bool,
}

impl Net {
    /// Creates a network without devices, which treats packets as `link` says.
    pub fn new(link: LinkConfig) -> Self {
        Self { places: Vec::new(), by_gid: HashMap::default(), link: Link::new(link), is_busy: false }
    }

    /// Puts a device on the network, and returns its number. From here on it gets the packets to its address, even if
    /// another device has the same address.
    ///
    /// # Panics
    /// If the configuration is invalid: see [`DeviceConfig::check`].
    pub fn add(&mut self, config: DeviceConfig) -> usize {
        let device = Device::new(config);
        let vacant = self.places.iter().position(Option::is_none);
        let index = vacant.unwrap_or(self.places.len());
        self.by_gid.insert(device.gid(), index);
        if vacant.is_none() {
            self.places.push(None);
        }
        self.places[index] = Some(Place { device, failed: false });
        index
    }

    /// Takes a device off the network, and drops it.
    pub fn remove(&mut self, index: usize) {
        if let Some(Place { device, .. }) = self.places.get_mut(index).and_then(Option::take)
            && self.by_gid.get(&device.gid()) == Some(&index)
        {
            self.by_gid.remove(&device.gid());
        }
    }

    /// Returns a device, by the number that [`add`](Self::add) returned; `None` if it was removed or has failed.
    pub fn device(&mut self, index: usize) -> Option<&mut Device> {
        let place = self.places.get_mut(index)?.as_mut()?;
        (!place.failed).then_some(&mut place.device)
    }

    /// Returns the configuration of the network, to be changed. The course of its randomness goes on.
    pub fn link_config_mut(&mut self) -> &mut LinkConfig {
        self.link.config_mut()
    }

    /// Returns what the network did.
    pub fn link_counters(&self) -> LinkCounters {
        self.link.counters()
    }

    /// Does what there is to do at `now`: doorbells, timeouts, packets. Returns `true` if there was anything.
    pub fn step(&mut self, now: Time) -> bool {
        self.step_with::<Propagated>(now, &mut |_| ())
    }

    /// Does the same as [`step`](Self::step), but contains panics: a device that panics gets no turn any more, and
    /// `failed` is called with its number.
    pub(crate) fn step_contained(&mut self, now: Time, mut failed: impl FnMut(usize)) -> bool {
        self.step_with::<Contained>(now, &mut failed)
    }

    fn step_with<P: OnPanic>(&mut self, now: Time, failed: &mut dyn FnMut(usize)) -> bool {
        let Self { places, by_gid, link, is_busy } = self;
        let mut progress = false;
        *is_busy = false;
        for (index, place) in places.iter_mut().enumerate() {
            let Some(Place { device, failed: false }) = place else { continue };
            let turn = P::run(|| take_turn(device, link, now));
            fail_unless(turn.is_some(), place, || failed(index));
            let (worked, unfinished) = turn.unwrap_or_default();
            progress |= worked;
            *is_busy |= unfinished;
        }
        while let Some(flight) = link.pop(now) {
            progress = true;
            *is_busy = true; // its receiver may answer
            let dst = match &flight {
                Flight::Whole(packet) => packet.envelope.dst,
                Flight::Bytes { dst, .. } => *dst,
            };
            let Some(&index) = by_gid.get(&dst) else { continue };
            let Some(Place { device, failed: false }) = &mut places[index] else { continue };
            let handled = P::run(|| match &flight {
                Flight::Whole(packet) => device.handle_packet(now, packet),
                Flight::Bytes { bytes, .. } => device.handle(now, bytes),
            });
            fail_unless(handled.is_some(), &mut places[index], || failed(index));
        }
        progress
    }

    /// Returns when [`step`](Self::step) next has something to do, apart from doorbells.
    pub fn next_time(&self) -> Option<Time> {
        if self.is_busy {
            return Some(Time::ZERO);
        }
        let devices = self.places.iter().flatten().filter(|place| !place.failed);
        let devices = devices.filter_map(|place| place.device.poll_timeout());
        devices.chain(self.link.next_time()).min()
    }
}

/// Drives a device once, without the packets for it. Returns whether it did anything, and whether it has more to send.
fn take_turn(device: &mut Device, link: &mut Link<Flight>, now: Time) -> (bool, bool) {
    let mut progress = device.poll_doorbells(now);
    if device.poll_timeout().is_some_and(|due| due <= now) {
        device.on_timeout(now);
        progress = true;
    }
    let mut sent = 0;
    while sent < BURST
        && let Some(packet) = device.poll_transmit(now)
    {
        sent += 1;
        link.push(now, Flight::Whole(packet));
    }
    (progress | (sent > 0), sent == BURST)
}

/// Marks a device as failed unless it did its work.
fn fail_unless(worked: bool, place: &mut Option<Place>, tell: impl FnOnce()) {
    if !worked && let Some(place) = place {
        place.failed = true;
        tell();
    }
}
