//! Several devices and the network between them, in one process and one thread.

use crate::link::{Link, Parcel};
use crate::{Device, DeviceConfig, Gid, LinkConfig, LinkCounters, Time, Transmit};
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// Packets that a device sends before others get their turn: few enough to be still in the cache when they arrive.
const BURST: usize = 64;

/// A packet on its way inside this process.
#[derive(Clone)]
enum Flight {
    /// As its sender made it.
    Whole(Transmit),
    /// As bytes, to be damaged.
    Bytes { dst: Gid, path: u8, bytes: Vec<u8> },
}

impl Parcel for Flight {
    fn path(&self) -> u8 {
        match self {
            Self::Whole(transmit) => transmit.path(),
            Self::Bytes { path, .. } => *path,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        if let Self::Whole(transmit) = self {
            let mut bytes = Vec::new();
            if !transmit.encode(&mut bytes) {
                bytes.clear(); // no packet any more; what is left will be taken for a damaged one
            }
            *self = Self::Bytes { dst: transmit.dst(), path: transmit.path(), bytes };
        }
        match self {
            Self::Bytes { bytes, .. } => bytes,
            Self::Whole(_) => &mut [],
        }
    }
}

/// Devices on a common network. Still a state machine: [`step`](Self::step) is told the time.
pub struct Net {
    devices: Vec<Option<Device>>,
    by_gid: HashMap<Gid, usize, RandomState>,
    link: Link<Flight>,
    /// The last step left something to be sent.
    more: bool,
}

impl Net {
    /// A network without devices.
    pub fn new(link: LinkConfig) -> Self {
        Self { devices: Vec::new(), by_gid: HashMap::default(), link: Link::new(link), more: false }
    }

    /// Puts a device on the network and gives its number. A device with an address that is in use takes its place.
    ///
    /// # Panics
    /// If the configuration makes no sense: see [`DeviceConfig::check`].
    pub fn add(&mut self, config: DeviceConfig) -> usize {
        let device = Device::new(config);
        let vacant = self.devices.iter().position(Option::is_none);
        let index = vacant.unwrap_or(self.devices.len());
        self.by_gid.insert(device.gid(), index);
        if vacant.is_none() {
            self.devices.push(None);
        }
        self.devices[index] = Some(device);
        index
    }

    /// Takes a device off the network, with everything in it.
    pub fn remove(&mut self, index: usize) {
        if let Some(device) = self.devices.get_mut(index).and_then(Option::take)
            && self.by_gid.get(&device.gid()) == Some(&index)
        {
            self.by_gid.remove(&device.gid());
        }
    }

    /// A device, by the number that [`add`](Self::add) gave.
    pub fn device(&mut self, index: usize) -> Option<&mut Device> {
        self.devices.get_mut(index)?.as_mut()
    }

    /// How the network treats packets from here on.
    pub fn link_config_mut(&mut self) -> &mut LinkConfig {
        self.link.config_mut()
    }

    /// What the network did.
    pub fn link_counters(&self) -> LinkCounters {
        self.link.counters()
    }

    /// Does what there is to do at `now`: doorbells, timeouts, packets. Returns whether there was anything.
    pub fn step(&mut self, now: Time) -> bool {
        let mut progress = false;
        self.more = false;
        for device in self.devices.iter_mut().flatten() {
            progress |= device.poll_doorbells(now);
            if device.poll_timeout().is_some_and(|due| due <= now) {
                device.on_timeout(now);
                progress = true;
            }
            let mut sent = 0;
            while sent < BURST
                && let Some(transmit) = device.poll_transmit(now)
            {
                sent += 1;
                self.link.push(now, Flight::Whole(transmit));
            }
            progress |= sent > 0;
            self.more |= sent == BURST;
        }
        while let Some(flight) = self.link.pop(now) {
            progress = true;
            self.more = true; // whoever gets it may answer
            let dst = match &flight {
                Flight::Whole(transmit) => transmit.dst(),
                Flight::Bytes { dst, .. } => *dst,
            };
            let Some(device) = self.by_gid.get(&dst).and_then(|&index| self.devices[index].as_mut()) else { continue };
            match flight {
                Flight::Whole(transmit) => device.handle_transmit(now, &transmit),
                Flight::Bytes { bytes, .. } => device.handle(now, &bytes),
            }
        }
        progress
    }

    /// When [`step`](Self::step) next has something to do, doorbells aside.
    pub fn next_time(&self) -> Option<Time> {
        if self.more {
            return Some(Time::ZERO);
        }
        let devices = self.devices.iter().flatten().filter_map(Device::poll_timeout);
        devices.chain(self.link.next_time()).min()
    }
}
