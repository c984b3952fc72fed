//! The weather of a simulation: random faults of the network and of devices that come and go.

use super::node::SimNode;
use super::sizes::{NODES, REST};
use efa_direct::sim::{Faults, LinkConfig, PathConfig, Sim};
use std::time::Duration;

/// The current faults.
pub(super) struct Weather {
    /// The configuration of the network without further faults.
    base: LinkConfig,
    /// The end of the current faults.
    until: Duration,
}

impl Weather {
    pub(super) fn new(base: LinkConfig) -> Self {
        Self { base, until: Duration::ZERO }
    }

    /// Starts other faults if the current ones are over.
    pub(super) fn pass(&mut self, sim: &Sim, nodes: &[SimNode], rng: &mut fastrand::Rng) {
        if sim.now() < self.until {
            return;
        }
        self.until = sim.now() + Duration::from_millis(rng.u64(1..300));
        self.clear(sim, nodes);
        let somebody = rng.usize(..NODES);
        let millis = |rng: &mut fastrand::Rng, most: u64| Duration::from_micros(rng.u64(..most * 1000));
        let mut paths = [PathConfig::default(); 4];
        let path = &mut paths[rng.usize(..4)];
        let mut link = self.base;
        match rng.u8(..12) {
            0 => link.loss = rng.f64() * 0.5,
            1 => link.jitter = millis(rng, 5),
            2 => link.corrupt = rng.f64() * 0.2,
            3 => link.cut = true,
            4 => path.cut = true,
            5 => path.delay = millis(rng, 4),
            6 => path.loss = rng.f64(),
            7 => set_faults(&nodes[somebody], |faults| faults.rx_rate = Some(rng.u64(20..500) << 20)),
            8 => set_faults(&nodes[somebody], |faults| {
                faults.rx_rate = Some(100 << 20);
                faults.rx_buffer = rng.usize(5_000..100_000);
            }),
            9 => set_faults(&nodes[somebody], |faults| faults.wqe_time = Duration::from_nanos(rng.u64(..50_000))),
            10 => {
                // Outstanding packets wait meanwhile. This must take less time than slots rest.
                self.until = self.until.min(sim.now() + REST / 2);
                set_port(&nodes[somebody], false);
            }
            _ => {}
        }
        link.paths = paths;
        sim.network(|now| *now = link).unwrap();
    }

    /// Ends all faults.
    pub(super) fn clear(&self, sim: &Sim, nodes: &[SimNode]) {
        sim.network(|now| *now = self.base).unwrap();
        for node in nodes {
            set_faults(node, |_| ());
            set_port(node, true);
        }
    }
}

fn set_faults(node: &SimNode, change: impl FnOnce(&mut Faults)) {
    let mut faults = Faults::default();
    change(&mut faults);
    node.with_soft(|device| device.set_faults(faults));
}

fn set_port(node: &SimNode, up: bool) {
    node.with_soft(|device| device.set_port(up));
}
