//! Simulations of random operations on several devices over a bad network, with an oracle.
//!
//! `EFA_SIM_OPS` sets the number of operations. `EFA_SIM_SEED` runs only the simulation with this seed.

use efa_soft::LinkConfig;
use efa_tests::oracle::{Outcome, Plan, run};
use std::sync::Mutex;
use std::time::Duration;

/// The number of operations of one of several runs.
const SHARE: u64 = 125_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no whole number")))
}

/// Returns the plan of a run. It depends only on the seed.
fn plan(seed: u64, operations: u64) -> Plan {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
    let link = LinkConfig {
        loss: rng.f64() * 0.1,
        duplicate: rng.f64() * 0.1,
        corrupt: rng.f64() * 0.01,
        reorder: true,
        delay: Duration::from_micros(rng.u64(0..50)),
        jitter: Duration::from_micros(rng.u64(0..200)),
        seed,
        ..LinkConfig::default()
    };
    Plan { seed, operations, link, chaos: true, churn: false }
}

/// Runs this many operations in several runs with different seeds, unless the environment sets another number or one
/// seed. Calls `check` with each result.
fn simulate(operations: u64, plan: impl Fn(u64, u64) -> Plan + Sync, check: impl Fn(&Outcome) + Sync) {
    let operations = number("EFA_SIM_OPS").unwrap_or(operations);
    let (seeds, share) = match number("EFA_SIM_SEED") {
        Some(seed) => (seed..=seed, operations),
        None => (1..=operations.div_ceil(SHARE), SHARE.min(operations)),
    };
    // Two runs at a time, each in one thread.
    let seeds = Mutex::new(seeds);
    let next = || seeds.lock().unwrap().next();
    let work = || {
        while let Some(seed) = next() {
            let outcome = run(plan(seed, share));
            println!("seed {seed}: {outcome:?}");
            let Outcome { sends, writes, reads, datagrams, refused, .. } = outcome;
            assert_eq!(sends + writes + reads + datagrams + refused, share);
            // Without faults, the simulation would prove nothing.
            if share > 50_000 {
                check(&outcome);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
}

#[test]
fn every_byte_lands_once_and_every_operation_completes_once_whatever_goes_wrong() {
    simulate(1_000_000, plan, |outcome| {
        let Outcome { resent, duplicates, corrupt, not_ready, qp_failures, deaths, doomed, .. } = *outcome;
        let much = [resent, duplicates, corrupt, not_ready, doomed];
        assert!(much.iter().all(|&count| count > 100) && qp_failures > 10 && deaths > 0, "{outcome:?}");
    });
}

#[test]
fn a_completion_of_a_queue_pair_that_is_gone_counts_for_no_other_though_numbers_come_again() {
    let churn = |seed, operations| Plan { chaos: false, churn: true, ..plan(seed, operations) };
    simulate(250_000, churn, |outcome| {
        let Outcome { dropped, numbers_again, skipped, .. } = *outcome;
        assert!(dropped > 1000 && numbers_again > 500 && skipped > 1000, "{outcome:?}");
    });
}

#[test]
fn one_seed_gives_one_run() {
    let plan = plan(7, 20_000);
    assert_eq!(run(plan), run(plan));
}

#[test]
fn a_perfect_network_resends_nothing_however_often_receivers_are_not_ready() {
    let link = LinkConfig { reorder: false, delay: Duration::from_micros(5), ..LinkConfig::default() };
    let outcome = run(Plan { seed: 3, operations: 5000, link, chaos: false, churn: false });
    assert_eq!((outcome.resent, outcome.duplicates), (0, 0), "{outcome:?}");
    assert!(outcome.not_ready > 0, "{outcome:?}");
}
