//! Devices of one process: a [`Net`], and a thread that steps it.

use super::events::{Waiters, Waker};
use super::handle::{DeviceHandle, inherited};
use super::worker::{Idle, IdleMode, Life, Worker, now};
use crate::contain::log;
use crate::{Device, DeviceConfig, LinkConfig, LinkCounters, Net};
use efa_types::AsyncEvent;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

struct Shared {
    net: Mutex<Net>,
    /// By the device's number in `net`.
    waiters: Mutex<Vec<Arc<Waiters>>>,
}

/// A network of devices inside this process, and the thread that drives them. Dropping it stops the thread.
pub struct LocalNetwork {
    shared: Arc<Shared>,
    worker: Worker,
}

/// A handle to one device of a [`LocalNetwork`].
struct LocalHandle {
    shared: Arc<Shared>,
    index: usize,
    waiters: Arc<Waiters>,
    life: Life,
}

impl LocalNetwork {
    /// Starts a network without devices, which treats packets as `link` says.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(link: LinkConfig, idle: IdleMode) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { net: Mutex::new(Net::new(link)), waiters: Mutex::default() });
        let (running, failing) = (shared.clone(), shared.clone());
        let run = move |stop: &AtomicBool| running.run(idle, stop);
        let failed = move || failing.waiters.lock().iter().for_each(|waiters| waiters.tell(AsyncEvent::DeviceFatal));
        let worker = Worker::start("efa-soft", run, failed)?;
        Ok(Self { shared, worker })
    }

    /// Adds a device, which exists until its handle is dropped. In a child by `fork` the network is gone, and so is a
    /// device that is added to it.
    ///
    /// # Panics
    /// If the configuration is invalid: see [`DeviceConfig::check`].
    pub fn add(&self, config: DeviceConfig) -> Arc<dyn DeviceHandle> {
        let (shared, life) = (self.shared.clone(), self.worker.life().clone());
        let waiters = Arc::new(Waiters::default());
        let index = if life.is_elsewhere() {
            usize::MAX // no device has this number
        } else {
            let mut net = self.shared.net.lock();
            let index = net.add(config);
            let mut all = self.shared.waiters.lock();
            let places = all.len().max(index + 1);
            all.resize_with(places, Default::default);
            all[index] = waiters.clone();
            index
        };
        Arc::new(LocalHandle { shared, index, waiters, life })
    }
}

impl Shared {
    /// Steps the network until `stop`. The lock is held except for naps and where control calls take their turn, so
    /// that a step costs no lock.
    fn run(&self, idle: IdleMode, stop: &AtomicBool) {
        let mut idle = Idle::new(idle);
        let mut net = self.net.lock();
        while !stop.load(Ordering::Relaxed) {
            let at = now();
            let progress = net.step_contained(at, |index| {
                log!(error, index, "a software device failed: nothing on it completes any more");
                if let Some(waiters) = self.waiters.lock().get(index) {
                    waiters.tell(AsyncEvent::DeviceFatal);
                }
            });
            for (index, waiters) in self.waiters.lock().iter().enumerate() {
                if let Some(device) = net.device(index) {
                    waiters.dispatch(device);
                }
            }
            match idle.nap(at, progress) {
                Some(nap) => {
                    let nap = net.next_time().map_or(nap, |due| nap.min(due.since(at)));
                    MutexGuard::unlocked(&mut net, || std::thread::sleep(nap));
                }
                None => MutexGuard::bump(&mut net), // lets control calls take their turn
            }
        }
    }
}

impl DeviceHandle for LocalHandle {
    fn with(&self, f: &mut dyn FnMut(&mut Device)) -> bool {
        if self.life.is_elsewhere() {
            return false;
        }
        let mut net = self.shared.net.lock();
        let Some(device) = net.device(self.index).filter(|_| !self.life.is_over()) else { return false };
        device.set_time(now());
        f(device);
        true
    }

    fn set_waker(&self, cqn: u32, waker: Option<Waker>) -> std::io::Result<()> {
        if self.life.is_elsewhere() {
            return Err(inherited());
        }
        self.waiters.set_waker(cqn, waker);
        Ok(())
    }

    fn next_event(&self) -> Option<AsyncEvent> {
        if self.life.is_elsewhere() { None } else { self.waiters.next_event() }
    }

    fn link_counters(&self) -> LinkCounters {
        if self.life.is_elsewhere() { LinkCounters::default() } else { self.shared.net.lock().link_counters() }
    }

    fn change_link(&self, change: &mut dyn FnMut(&mut LinkConfig)) {
        if !self.life.is_elsewhere() {
            change(self.shared.net.lock().link_config_mut());
        }
    }
}

impl Drop for LocalHandle {
    fn drop(&mut self) {
        if !self.life.is_elsewhere() {
            self.shared.net.lock().remove(self.index);
        }
    }
}
