//! Shared code of the tests across crates: software devices in simulated time under the host API, a simulation with an
//! oracle, traffic for GPU kernels, and the vendor's programs.

use efa_direct::Device;
use efa_soft::driver::{DeviceHandle, Waker};
use efa_soft::{AsyncEvent, DeviceConfig, DeviceEvent, Gid, LinkConfig, LinkCounters, Net, Time};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub mod oracle;
mod side;
pub mod traffic;
pub mod vendor;

pub use side::Side;

/// The environment variable with names of devices, separated by commas. Tests that can run on any device use these, in
/// real time, instead of software devices.
pub const DEVICES: &str = "EFA_TEST_DEVICES";

/// Returns the names in [`DEVICES`], if the variable is set.
fn given() -> Option<Vec<String>> {
    let names = std::env::var(DEVICES).ok()?;
    Some(names.split(',').map(str::to_owned).collect())
}

/// Opens a device: one of those in [`DEVICES`] (`index` modulo their number), or the software device with this number.
pub fn open(index: usize) -> Device {
    let name = given().map_or(format!("soft{index}"), |names| names[index % names.len()].clone());
    Device::open(&name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Devices on a simulated network. Nothing happens, and no time passes, except in [`step`](Self::step).
///
/// If [`DEVICES`] is set, these are the devices instead, time is real, and changes of the network have no effect.
pub struct Sim {
    net: Arc<Mutex<Net>>,
    now: Time,
    is_real: bool,
}

/// One device of a [`Sim`].
struct SimHandle {
    net: Arc<Mutex<Net>>,
    index: usize,
}

impl Sim {
    /// Creates a network without devices.
    pub fn new(link: LinkConfig) -> Self {
        Self { net: Arc::new(Mutex::new(Net::new(link))), now: Time::ZERO, is_real: given().is_some() }
    }

    /// Adds device number `index` and opens it.
    pub fn add(&self, index: u32, configure: impl FnOnce(&mut DeviceConfig)) -> Device {
        if self.is_real {
            return open(index as usize);
        }
        let mut config = DeviceConfig { seed: index.into(), ..DeviceConfig::new(Gid::local(index)) };
        configure(&mut config);
        let index = self.net.lock().add(config);
        let port = SimHandle { net: self.net.clone(), index };
        Device::from_soft_device(&format!("sim{index}"), Arc::new(port)).expect("the device was just added")
    }

    /// Removes the device that was added as number `nth` (from 0) with all its objects, as if its process had died.
    pub fn kill(&self, nth: usize) {
        self.net.lock().remove(nth);
    }

    /// Delivers what is due, then advances time to the next event, by at most `most`.
    pub fn step(&mut self, most: Duration) {
        if self.is_real {
            return std::thread::sleep(most);
        }
        let mut net = self.net.lock();
        net.step(self.now);
        let next = net.next_time().unwrap_or(self.now + most);
        self.now = next.clamp(self.now + Duration::from_nanos(100), self.now + most);
    }

    /// Steps until `done` returns `true`, for at most `most` of simulated time. Returns `false` if time ran out.
    pub fn run_until(&mut self, most: Duration, mut done: impl FnMut() -> bool) -> bool {
        if self.is_real {
            return wait_until(most, done);
        }
        let end = self.now + most;
        while !done() {
            if self.now >= end {
                return false;
            }
            self.step(Duration::from_millis(1));
        }
        true
    }

    /// Returns the simulated time.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Changes the configuration of the network.
    pub fn set_link(&self, change: impl FnOnce(&mut LinkConfig)) {
        change(self.net.lock().link_config_mut());
    }

    /// Returns the counters of the network.
    pub fn link_counters(&self) -> LinkCounters {
        self.net.lock().link_counters()
    }
}

/// Waits in real time until `done` returns `true`, for at most `most`. Returns `false` if time ran out.
fn wait_until(most: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > most {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

impl DeviceHandle for SimHandle {
    fn with(&self, f: &mut dyn FnMut(&mut efa_soft::Device)) -> bool {
        self.net.lock().device(self.index).map(f).is_some()
    }

    fn set_waker(&self, _: u32, _: Option<Waker>) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "simulated time cannot be slept through"))
    }

    fn next_event(&self) -> Option<AsyncEvent> {
        let mut next = None;
        self.with(&mut |device| {
            next = std::iter::from_fn(|| device.poll_event()).find_map(|event| match event {
                DeviceEvent::Async(event) => Some(event),
                _ => None,
            });
        });
        next
    }

    fn link_counters(&self) -> LinkCounters {
        self.net.lock().link_counters()
    }

    fn change_link(&self, change: &mut dyn FnMut(&mut LinkConfig)) {
        change(self.net.lock().link_config_mut());
    }
}
