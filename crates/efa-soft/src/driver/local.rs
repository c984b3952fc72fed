//! Several devices in one process: a [`Net`] and a thread.

use super::events::Waiters;
use super::worker::{Failure, Idle, IdleMode, Worker, now};
use super::{Port, Waker};
use crate::{AsyncEvent, Device, DeviceConfig, LinkConfig, LinkCounters, Net};
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

struct Shared {
    net: Mutex<Net>,
    waiters: Mutex<Vec<Arc<Waiters>>>,
}

/// A network of devices that a thread drives. Dropping it stops the thread.
pub struct Local {
    shared: Arc<Shared>,
    worker: Worker,
}

/// One device of a [`Local`].
struct LocalPort {
    shared: Arc<Shared>,
    index: usize,
    waiters: Arc<Waiters>,
    failure: Failure,
}

impl Local {
    /// Starts a network without devices.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(link: LinkConfig, idle: IdleMode) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { net: Mutex::new(Net::new(link)), waiters: Mutex::default() });
        let worker = Worker::start("efa-soft", {
            let shared = shared.clone();
            move |stop| shared.run(idle, stop)
        })?;
        Ok(Self { shared, worker })
    }

    /// Adds a device. It goes when its port does.
    ///
    /// # Panics
    /// If the configuration makes no sense: see [`DeviceConfig::check`].
    pub fn add(&self, config: DeviceConfig) -> Arc<dyn Port> {
        let waiters = Arc::new(Waiters::default());
        let index = {
            let mut net = self.shared.net.lock();
            let index = net.add(config);
            let mut all = self.shared.waiters.lock();
            let places = all.len().max(index + 1);
            all.resize_with(places, Default::default);
            all[index] = waiters.clone();
            index
        };
        Arc::new(LocalPort { shared: self.shared.clone(), index, waiters, failure: self.worker.failure().clone() })
    }
}

impl Shared {
    fn run(&self, idle: IdleMode, stop: &AtomicBool) {
        let mut idle = Idle::new(idle);
        let mut net = self.net.lock();
        while !stop.load(Ordering::Relaxed) {
            let at = now();
            let progress = net.step(at);
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
                None => MutexGuard::bump(&mut net), // control calls take their turn here
            }
        }
    }
}

impl Port for LocalPort {
    fn with(&self, f: &mut dyn FnMut(&mut Device)) -> bool {
        let mut net = self.shared.net.lock();
        let Some(device) = net.device(self.index).filter(|_| !self.failure.has_come()) else { return false };
        device.set_time(now());
        f(device);
        true
    }

    fn wake(&self, cqn: u32, waker: Option<Waker>) -> std::io::Result<()> {
        self.waiters.wake(cqn, waker);
        Ok(())
    }

    fn next_event(&self) -> Option<AsyncEvent> {
        self.waiters.next_event()
    }

    fn link_counters(&self) -> LinkCounters {
        self.shared.net.lock().link_counters()
    }

    fn change_link(&self, change: &mut dyn FnMut(&mut LinkConfig)) {
        change(self.shared.net.lock().link_config_mut());
    }
}

impl Drop for LocalPort {
    fn drop(&mut self) {
        self.shared.net.lock().remove(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::TraceEvent;
    use crate::{CqConfig, CqeSize, Gid, QpConfig, QpState, Transport};
    use std::time::{Duration, Instant};

    #[test]
    fn a_device_whose_driver_failed_is_gone() {
        let network = Local::start(LinkConfig::default(), IdleMode::Nap).unwrap();
        let port = network.add(DeviceConfig::new(Gid::local(0)));
        let there = port.with(&mut |device| {
            let pd = device.alloc_pd().unwrap();
            let cq = device.create_cq(CqConfig { entries: 4, entry_size: CqeSize::Small, channel: false }).unwrap();
            let qp = device
                .create_qp(QpConfig {
                    transport: Transport::Srd,
                    pd,
                    send_cq: cq.cqn,
                    recv_cq: cq.cqn,
                    send_entries: 4,
                    recv_entries: 4,
                    recv_sge: 1,
                    inline_bytes: 0,
                    inline_write: false,
                    unsolicited_write_recv: false,
                })
                .unwrap();
            device.modify_qp(qp.qpn, QpState::Init, Some(1)).unwrap();
            // A subscriber's panic takes the driver along.
            device.subscribe(Box::new(|_: &TraceEvent| panic!("on purpose")));
            qp.sq.doorbell.store_doorbell(qp.sq.doorbell_offset, 1);
        });
        assert!(there);
        let start = Instant::now();
        while port.with(&mut |_| ()) {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::yield_now();
        }
    }
}
