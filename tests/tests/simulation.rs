//! Random operations on several devices over a network that misbehaves, and an oracle.
//!
//! `EFA_SIM_OPS` sets the number of operations, `EFA_SIM_SEED` the seed of a single run.

use efa_soft::LinkConfig;
use efa_tests::oracle::{Plan, run};
use std::time::Duration;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no whole number")))
}

/// A fault schedule that follows from the seed.
fn plan(seed: u64, operations: u64) -> Plan {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
    let link = LinkConfig {
        loss: rng.f64() * 0.25,
        duplicate: rng.f64() * 0.2,
        corrupt: rng.f64() * 0.05,
        reorder: true,
        delay: Duration::from_micros(rng.u64(0..50)),
        jitter: Duration::from_micros(rng.u64(0..200)),
        seed,
        ..LinkConfig::default()
    };
    Plan { seed, operations, link }
}

#[test]
fn every_byte_lands_once_and_every_operation_completes_once_whatever_the_network_does() {
    let operations = number("EFA_SIM_OPS").unwrap_or(100_000);
    let seeds: Vec<u64> = match number("EFA_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=4).collect(),
    };
    for &seed in &seeds {
        let plan = plan(seed, operations / seeds.len() as u64);
        let outcome = run(plan);
        println!("seed {seed}: {outcome:?} with {:?}", plan.link);
        assert_eq!(outcome.sends + outcome.writes + outcome.reads, plan.operations);
        // The simulation proves nothing if the network behaved.
        if plan.operations > 10_000 {
            assert!(
                outcome.resent > 100 && outcome.duplicates > 100 && outcome.arrivals > 1000 && outcome.not_ready > 10,
                "{outcome:?}"
            );
        }
    }
}

#[test]
fn one_seed_gives_one_run() {
    let plan = plan(7, 2000);
    assert_eq!(format!("{:?}", run(plan)), format!("{:?}", run(plan)));
}

#[test]
fn a_perfect_network_resends_nothing_however_often_receivers_are_not_ready() {
    let link = LinkConfig { reorder: false, delay: Duration::from_micros(5), ..LinkConfig::default() };
    let outcome = run(Plan { seed: 3, operations: 5000, link });
    assert_eq!((outcome.resent, outcome.duplicates), (0, 0), "{outcome:?}");
    assert!(outcome.not_ready > 0, "{outcome:?}");
}
