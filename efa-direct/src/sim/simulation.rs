//! The simulation: devices by name, the network between them, and time.

use super::clockwork::Clockwork;
use super::error::SimError;
use super::handle::SimHandle;
use super::node::{Node, NodeConfig};
use crate::{Completion, CpuCompletionQueue, Device, Error};
use efa_soft::{DeviceConfig, Faults, Gid, LinkConfig, LinkCounters, Net, Time};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest simulated time that [`Sim::settle`] and [`Sim::completion`] take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest simulated time between two calls of a condition.
const LOOK: Duration = Duration::from_millis(1);

/// Nodes on a network of their own, in simulated time.
///
/// Nothing happens, and no time passes, except in [`step`](Self::step), [`advance`](Self::advance),
/// [`run_until`](Self::run_until), [`settle`](Self::settle) and [`completion`](Self::completion). So do not wait by
/// other means, such as [`CpuCompletionQueue::wait`]: nothing arrives meanwhile.
pub struct Sim {
    kind: Kind,
}

enum Kind {
    Simulated {
        seed: u64,
        clockwork: Arc<Mutex<Clockwork>>,
        /// The latest life of every node.
        nodes: BTreeMap<String, Life>,
    },
    Real {
        names: Vec<String>,
        /// Nodes so far.
        count: usize,
        start: Instant,
    },
}

/// The latest life of a node.
struct Life {
    /// The node's number in the order of creation. Its address follows from it.
    number: u32,
    incarnation: u64,
    handle: Arc<SimHandle>,
}

impl Sim {
    /// Creates a network without nodes. It loses no packets, each packet takes 5 µs, and packets overtake each other,
    /// since SRD does not order them. Every random decision follows from `seed`.
    pub fn with_seed(seed: u64) -> Self {
        let link = LinkConfig { delay: Duration::from_micros(5), seed, ..LinkConfig::default() };
        let clockwork = Arc::new(Mutex::new(Clockwork { net: Net::new(link), now: Time::ZERO }));
        Self { kind: Kind::Simulated { seed, clockwork, nodes: BTreeMap::new() } }
    }

    /// Creates a network of existing devices, so that a test without faults runs on hardware, too. Names are those of
    /// [`Device::open`]. Each new node uses the next device, and after the last one the first again. Time is real.
    /// Faults, [`kill`](Self::kill) and [`settle`](Self::settle) fail with [`SimError::NotSimulated`].
    pub fn on_devices<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        Self { kind: Kind::Real { names, count: 0, start: Instant::now() } }
    }

    /// Adds a node. If a node of this name was [killed](Self::kill), the new one has its address, and nothing else of
    /// it.
    ///
    /// # Errors
    /// [`SimError::NameTaken`] while a node of this name lives.
    pub fn node(&mut self, name: &str) -> Result<Node, Error> {
        self.node_with(name, NodeConfig::default())
    }

    /// Adds a node with this configuration.
    ///
    /// # Errors
    /// [`SimError::NameTaken`], or the device refused the configuration.
    pub fn node_with(&mut self, name: &str, config: NodeConfig) -> Result<Node, Error> {
        let device = self.device(name, |_| ())?;
        Ok(Node::new(device, config).inspect_err(|_| drop(self.kill(name)))?)
    }

    /// Adds a device without objects, for tests that create these themselves or by [`Node::new`]. `configure` changes
    /// the device's limits and capabilities; it is not called for existing devices.
    ///
    /// # Errors
    /// [`SimError::NameTaken`], or the configuration is invalid.
    pub fn device(&mut self, name: &str, configure: impl FnOnce(&mut DeviceConfig)) -> Result<Device, Error> {
        let (seed, clockwork, nodes) = match &mut self.kind {
            Kind::Simulated { seed, clockwork, nodes } => (*seed, clockwork, nodes),
            Kind::Real { names, count, .. } => {
                let name = names.get(*count % names.len().max(1)).map_or("", String::as_str);
                *count += 1;
                return Ok(Device::open(name)?);
            }
        };
        let (number, incarnation) = match nodes.get(name) {
            Some(life) if !life.handle.is_dead() => return Err(SimError::NameTaken { name: name.into() }.into()),
            Some(life) => (life.number, life.incarnation.wrapping_add(1).max(1)),
            None => (nodes.len() as u32, 1),
        };
        // Each device's randomness is its own.
        let seed = seed.wrapping_add(u64::from(number) << 32);
        let mut config = DeviceConfig { incarnation, seed, ..DeviceConfig::new(Gid::local(number)) };
        configure(&mut config);
        config.check()?;
        let incarnation = config.incarnation;
        let index = clockwork.lock().net.add(config);
        let handle = Arc::new(SimHandle::new(clockwork.clone(), index));
        nodes.insert(name.into(), Life { number, incarnation, handle: handle.clone() });
        Ok(Device::from_soft_device(name, handle)?)
    }

    /// Removes a node's device with all its objects, as if the node's process had died. Peers get no answers any more,
    /// and the node's own requests never complete.
    ///
    /// # Errors
    /// [`SimError::NoSuchNode`].
    pub fn kill(&mut self, name: &str) -> Result<(), SimError> {
        self.handle(name, "killing a node")?.kill();
        Ok(())
    }

    /// Changes how the network treats packets from now on: loss, duplication, damage, delay, partition. Packets that
    /// are under way stay as they are. The field `seed` has no effect.
    ///
    /// # Errors
    /// [`SimError::Share`].
    pub fn network(&self, change: impl FnOnce(&mut LinkConfig)) -> Result<(), SimError> {
        let clockwork = self.clockwork("a fault of the network")?;
        let mut link = *clockwork.lock().net.link_config_mut();
        change(&mut link); // without the lock: it may look at the simulation
        let shares = [("loss", link.loss), ("duplicate", link.duplicate), ("corrupt", link.corrupt)];
        let paths = link.paths.iter().map(|path| ("loss of a path", path.loss));
        for (what, value) in shares.into_iter().chain(paths) {
            if !(0.0..=1.0).contains(&value) {
                return Err(SimError::Share { what, value });
            }
        }
        *clockwork.lock().net.link_config_mut() = link;
        Ok(())
    }

    /// Changes the faults of a node's device from now on: a slow receiver, a slow device. [`Device::soft_device`] gives
    /// access to everything else that can be done to a software device.
    ///
    /// # Errors
    /// [`SimError::NoSuchNode`].
    pub fn faults(&self, name: &str, change: impl FnOnce(&mut Faults)) -> Result<(), SimError> {
        use efa_soft::driver::DeviceHandle;
        let handle = self.handle(name, "a fault of a device")?;
        let mut faults = Faults::default();
        handle.with(&mut |device| faults = device.faults());
        change(&mut faults);
        handle.with(&mut |device| device.set_faults(faults));
        Ok(())
    }

    /// Returns what the network has done to packets. All numbers are 0 on existing devices.
    pub fn link_counters(&self) -> LinkCounters {
        match &self.kind {
            Kind::Simulated { clockwork, .. } => clockwork.lock().net.link_counters(),
            Kind::Real { .. } => LinkCounters::default(),
        }
    }

    /// Returns the time since the simulation began.
    pub fn now(&self) -> Duration {
        match &self.kind {
            Kind::Simulated { clockwork, .. } => clockwork.lock().now.since(Time::ZERO),
            Kind::Real { start, .. } => start.elapsed(),
        }
    }

    /// Does what is due now, then advances time to the next event, by at most `most`.
    pub fn step(&mut self, most: Duration) {
        match &self.kind {
            Kind::Simulated { clockwork, .. } => {
                clockwork.lock().step(most);
            }
            Kind::Real { .. } => std::thread::sleep(most),
        }
    }

    /// Advances time by this much, and does all that is due on the way.
    pub fn advance(&mut self, time: Duration) {
        let end = self.after(time);
        while let left = end.saturating_sub(self.now())
            && !left.is_zero()
        {
            self.step(left);
        }
    }

    /// Advances time until `done` returns `true`, by at most `limit`. Returns `false` if time ran out. `done` is called
    /// at least once per simulated millisecond.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut() -> bool) -> bool {
        let end = self.after(limit);
        while !done() {
            let left = end.saturating_sub(self.now());
            if left.is_zero() {
                return false;
            }
            self.go_on(left);
        }
        true
    }

    /// Advances time until nothing is under way: every send, write and read whose doorbell was rung has completed,
    /// every packet has arrived or is lost, no timer runs. Receives may still wait for a message.
    ///
    /// # Errors
    /// [`SimError::NotSettled`] if something is still under way after a minute.
    pub fn settle(&mut self) -> Result<(), SimError> {
        self.settle_within(PATIENCE)
    }

    /// Advances time until nothing is under way, by at most `limit`.
    ///
    /// # Errors
    /// [`SimError::NotSettled`].
    pub fn settle_within(&mut self, limit: Duration) -> Result<(), SimError> {
        let settled = self.clockwork("settling")?.lock().settle(limit);
        if settled { Ok(()) } else { Err(SimError::NotSettled { after: limit }) }
    }

    /// Returns the next completion of a queue. Advances time until there is one, by at most a minute.
    ///
    /// # Errors
    /// [`SimError::NoCompletion`]. If nothing is under way, it is returned at once.
    pub fn completion(&mut self, cq: &mut CpuCompletionQueue) -> Result<Completion, SimError> {
        let start = self.now();
        let mut busy = true;
        loop {
            if let Some(completion) = cq.poll_one() {
                return Ok(completion);
            }
            let after = self.now() - start;
            if !busy || after >= PATIENCE {
                return Err(SimError::NoCompletion { after });
            }
            busy = self.go_on(PATIENCE - after);
        }
    }

    /// Returns the time after this much more, which is at most the last moment there is.
    fn after(&self, time: Duration) -> Duration {
        self.now().saturating_add(time).min(Duration::from_nanos(u64::MAX))
    }

    /// Does what is due now, and advances time by at most `most`. Returns `false` if nothing is under way.
    fn go_on(&mut self, most: Duration) -> bool {
        match &self.kind {
            Kind::Simulated { clockwork, .. } => clockwork.lock().step(most.min(LOOK)),
            Kind::Real { .. } => {
                std::thread::yield_now();
                true
            }
        }
    }

    fn clockwork(&self, what: &'static str) -> Result<&Mutex<Clockwork>, SimError> {
        match &self.kind {
            Kind::Simulated { clockwork, .. } => Ok(clockwork),
            Kind::Real { .. } => Err(SimError::NotSimulated { what }),
        }
    }

    fn handle(&self, name: &str, what: &'static str) -> Result<&SimHandle, SimError> {
        let Kind::Simulated { nodes, .. } = &self.kind else { return Err(SimError::NotSimulated { what }) };
        let life = nodes.get(name).filter(|life| !life.handle.is_dead());
        life.map(|life| &*life.handle).ok_or_else(|| SimError::NoSuchNode { name: name.into() })
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Simulated { nodes, .. } => write!(f, "Sim(nodes {:?}, at {:?})", nodes.keys(), self.now()),
            Kind::Real { names, .. } => write!(f, "Sim(on devices {names:?})"),
        }
    }
}
