//! A device of a simulated network, as the rest of this crate reaches it.

use super::clockwork::Clockwork;
use efa_soft::driver::{DeviceHandle, Waker};
use efa_soft::{AsyncEvent, DeviceEvent, LinkConfig, LinkCounters};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One life of a simulated device.
pub(super) struct SimHandle {
    clockwork: Arc<Mutex<Clockwork>>,
    index: usize,
    /// It is set under the network's lock, and `with` reads it there: from then on another device may have the place
    /// `index`.
    dead: AtomicBool,
}

impl SimHandle {
    /// Creates the handle of the device at this place of the network.
    pub(super) fn new(clockwork: Arc<Mutex<Clockwork>>, index: usize) -> Self {
        Self { clockwork, index, dead: AtomicBool::new(false) }
    }

    /// Removes the device from the network.
    pub(super) fn kill(&self) {
        let mut clockwork = self.clockwork.lock();
        if !self.dead.swap(true, Ordering::Relaxed) {
            clockwork.net.remove(self.index);
        }
    }

    /// Returns `true` if the device was removed.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

impl DeviceHandle for SimHandle {
    fn with(&self, f: &mut dyn FnMut(&mut efa_soft::Device)) -> bool {
        let Clockwork { net, now } = &mut *self.clockwork.lock();
        if self.is_dead() {
            return false;
        }
        let Some(device) = net.device(self.index) else { return false };
        device.set_time(*now);
        f(device);
        true
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
        self.clockwork.lock().net.link_counters()
    }

    fn change_link(&self, change: &mut dyn FnMut(&mut LinkConfig)) {
        change(self.clockwork.lock().net.link_config_mut());
    }
}
