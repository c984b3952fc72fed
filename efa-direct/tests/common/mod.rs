//! The devices that tests run on.

// Each test uses a part of it.
#![allow(dead_code)]

use efa_direct::Device;
use efa_direct::sim::Sim;

/// The environment variable with names of devices, separated by commas. Tests that can run on any device use these, in
/// real time, instead of software devices.
const DEVICES: &str = "EFA_TEST_DEVICES";

/// Returns the names in [`DEVICES`], if the variable is set.
fn given() -> Option<Vec<String>> {
    let names = std::env::var(DEVICES).ok()?;
    Some(names.split(',').map(str::to_owned).collect())
}

/// Opens a device: one of those in [`DEVICES`] (`index` modulo their number), or the software device with this number.
pub(crate) fn open(index: usize) -> Device {
    let name = given().map_or(format!("soft{index}"), |names| names[index % names.len()].clone());
    Device::open(&name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Creates a simulation, or a network of the devices in [`DEVICES`].
pub(crate) fn sim() -> Sim {
    given().map_or_else(|| Sim::with_seed(1), Sim::on_devices)
}
