//! The faults of a soak: one after the other, at random.

use anyhow::{Context, Result};
use efa_direct::Device;
use efa_soft::driver::DeviceHandle;
use efa_soft::{Faults, LinkConfig};
use std::sync::Arc;
use std::time::Duration;

/// The length of a turn. Only one node may have outages in each turn: two outages in a row could be so long that a peer
/// is considered dead.
const TURN: Duration = Duration::from_secs(4);
/// The longest outage. It begins in the first half of a turn.
const LONGEST_OUTAGE: Duration = Duration::from_millis(1200);

/// A fault that holds for some time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Trouble {
    name: &'static str,
    /// The configuration of the link, without its seed.
    link: LinkConfig,
    device: Faults,
    port_up: bool,
    length: Duration,
}

impl Trouble {
    fn none(length: Duration) -> Self {
        Self { name: "none", link: LinkConfig::default(), device: Faults::default(), port_up: true, length }
    }

    /// Returns `true` if no packets get through.
    fn is_outage(&self) -> bool {
        self.link.cut || !self.port_up
    }

    /// Returns a random fault. It takes 1 to 3 seconds, or less if it is an outage.
    fn any(rng: &mut fastrand::Rng, outages: bool) -> Self {
        let millis = |rng: &mut fastrand::Rng, range| Duration::from_millis(rng.u64(range));
        let mut trouble = Self::none(millis(rng, 1000..3000));
        let Self { link, device, length, port_up, .. } = &mut trouble;
        let path = &mut link.paths[rng.usize(..4)];
        trouble.name = match rng.u8(..if outages { 8 } else { 6 }) {
            0 => "none",
            1 => {
                (link.loss, link.duplicate, link.corrupt) = (rng.f64() * 0.2, rng.f64() * 0.1, rng.f64() * 0.05);
                "loss, doubling, damage"
            }
            2 => {
                (link.delay, link.jitter) = (millis(rng, 0..5), millis(rng, 1..5));
                "delay and jitter"
            }
            3 if rng.bool() => {
                path.cut = true;
                "one path dead"
            }
            3 => {
                (path.delay, path.loss) = (millis(rng, 1..20), rng.f64() * 0.3);
                "one path slow"
            }
            4 => {
                device.rx_rate = Some(rng.u64(5_000_000..50_000_000));
                "slow receiver"
            }
            5 => {
                device.wqe_time = Duration::from_micros(rng.u64(10..200));
                "slow device"
            }
            outage => {
                *length = millis(rng, 50..LONGEST_OUTAGE.as_millis() as u64);
                if outage == 6 {
                    link.cut = true;
                    "link cut"
                } else {
                    *port_up = false;
                    *length = (*length).min(Duration::from_millis(950));
                    "port down"
                }
            }
        };
        trouble
    }
}

/// The schedule of a device's faults.
pub(super) struct Schedule {
    handle: Arc<dyn DeviceHandle>,
    rng: fastrand::Rng,
    node: usize,
    now: &'static str,
    was_outage: bool,
    until: Duration,
    applied: u64,
}

impl Schedule {
    pub(super) fn new(device: &Device, seed: u64, node: usize) -> Result<Self> {
        let handle = device.soft_device().context("the device has no faults to set: take a software device")?;
        let rng = fastrand::Rng::with_seed(seed.wrapping_mul(2).wrapping_add(node as u64));
        Ok(Self { handle, rng, node, now: "none", was_outage: false, until: Duration::from_secs(1), applied: 0 })
    }

    /// Starts the next fault if the current one is over.
    pub(super) fn tick(&mut self, elapsed: Duration) {
        if elapsed < self.until {
            return;
        }
        let outages = !self.was_outage && may_go_silent(self.node, elapsed);
        let trouble = Trouble::any(&mut self.rng, outages);
        self.was_outage = trouble.is_outage();
        self.until = elapsed + trouble.length;
        self.applied += u64::from(trouble.name != "none");
        self.apply(&trouble);
    }

    /// Ends all faults.
    pub(super) fn end(&mut self) {
        self.until = Duration::MAX;
        self.apply(&Trouble::none(Duration::MAX));
    }

    fn apply(&mut self, trouble: &Trouble) {
        self.now = trouble.name;
        self.handle.change_link(&mut |link| *link = LinkConfig { seed: link.seed, ..trouble.link });
        self.handle.with(&mut |device| {
            device.set_faults(trouble.device);
            device.set_port(trouble.port_up);
        });
    }

    /// Returns the name of the current fault.
    pub(super) fn now(&self) -> &'static str {
        self.now
    }

    /// Returns the number of faults so far.
    pub(super) fn applied(&self) -> u64 {
        self.applied
    }
}

/// Returns `true` if an outage of this node may begin now.
fn may_go_silent(node: usize, elapsed: Duration) -> bool {
    let turns = (elapsed.as_nanos() / TURN.as_nanos()) as usize;
    turns % 2 == node && elapsed.as_nanos() % TURN.as_nanos() < TURN.as_nanos() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_are_short_and_never_join() {
        let mut rng = fastrand::Rng::with_seed(1);
        let troubles = (0..1000).map(|_| Trouble::any(&mut rng, true));
        let (outages, others): (Vec<_>, Vec<_>) = troubles.partition(Trouble::is_outage);
        assert!(outages.len() > 100 && outages.iter().all(|t| t.length < LONGEST_OUTAGE));
        assert!(others.iter().all(|t| t.length >= Duration::from_secs(1) && t.length < Duration::from_secs(3)));
        for second in 0..100 {
            let at = |node| may_go_silent(node, Duration::from_secs(second));
            assert!(!(at(0) && at(1)));
            assert_eq!(at(0) || at(1), second % 4 < 2);
        }
    }
}
