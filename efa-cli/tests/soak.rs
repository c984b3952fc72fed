//! Tests of `efa soak` as a user runs it: two processes with all kinds of traffic while faults come and go.

use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn efa(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_efa"));
    command.args(args);
    command
}

/// Runs the soak, asserts that it succeeded, and returns its JSON.
fn soak(args: &[&str]) -> Value {
    let output = efa(&[&["soak", "--json"], args].concat()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(node: &Value, field: &str) -> u64 {
    node.pointer(field).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {field} in {node:#}"))
}

/// The environment variable `EFA_SOAK` sets another duration, for example `EFA_SOAK=1h`.
#[test]
fn a_soak_of_two_minutes_loses_nothing_and_memory_stays_flat() {
    let duration = std::env::var("EFA_SOAK").unwrap_or("2m".into());
    let report = soak(&["--duration", &duration, "--pace", "1000", "--seed", "5"]);
    assert_eq!(report["ok"], true);
    for node in report["nodes"].as_array().unwrap() {
        for field in ["/packets/resent", "/packets/corrupt_dropped", "/arrivals/datagrams_lost", "/faults", "/events"] {
            assert!(number(node, field) > 0, "{field} of {node:#}");
        }
        let [warm, largest] = ["/rss/warm", "/rss/largest"].map(|field| number(node, field));
        assert!(largest <= warm + (16 << 10).max(warm / 5), "{node:#}");
    }
}

#[test]
fn a_short_soak_reports_every_kind_of_operation() {
    let report = soak(&["--duration", "5s", "--pace", "1000", "--seed", "7"]);
    assert_eq!((&report["ok"], &report["seed"], &report["pace"]), (&true.into(), &7.into(), &1000.into()));
    assert!(report["seconds"].as_f64().unwrap() >= 5.0);
    let [a, b] = [&report["nodes"][0], &report["nodes"][1]];
    for node in [a, b] {
        for kind in ["sends", "inline_sends", "writes", "inline_writes", "writes_with_immediate", "reads", "datagrams"]
        {
            assert!(number(node, &format!("/operations/{kind}")) > 0, "{kind} of {node:#}");
        }
        for field in
            ["/operations/bytes", "/packets/sent", "/packets/received", "/rss/warm", "/rss/largest", "/rss/last"]
        {
            assert!(number(node, field) > 0, "{field} of {node:#}");
        }
        for field in ["/packets/duplicates_dropped", "/packets/not_ready", "/packets/lost", "/arrivals/datagrams_again"]
        {
            number(node, field);
        }
    }
    for (from, to) in [(a, b), (b, a)] {
        // Only the sender knows the kind of a message. The nodes have compared that all have arrived.
        let sends = number(from, "/operations/sends") + number(from, "/operations/inline_sends");
        assert!(number(to, "/arrivals/messages") >= sends + number(from, "/operations/writes_with_immediate"));
        let datagrams = number(to, "/arrivals/datagrams") + number(to, "/arrivals/datagrams_lost");
        assert_eq!(datagrams, number(from, "/operations/datagrams"));
    }
}

/// Calls `done` until it returns a value, and returns it.
fn within_seconds<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn nodes_end_with_the_process_that_started_them() {
    let mut soak = efa(&["soak", "--duration", "1h", "--pace", "100"]).stderr(Stdio::null()).spawn().unwrap();
    let pid = soak.id();
    let nodes = within_seconds("two nodes start", || {
        let nodes = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let nodes: Vec<String> = nodes.split_whitespace().map(String::from).collect();
        (nodes.len() == 2).then_some(nodes)
    });
    soak.kill().unwrap();
    soak.wait().unwrap();
    for node in nodes {
        within_seconds("a node ends", || {
            let status = fs::read_to_string(format!("/proc/{node}/status")).unwrap_or_default();
            (status.is_empty() || status.contains("State:\tZ")).then_some(())
        });
    }
}

#[test]
fn a_duration_that_makes_no_sense_is_refused() {
    for duration in ["5", "0s", "soon"] {
        let output = efa(&["soak", "--duration", duration]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("--duration"), "{duration}: {errors}");
    }
}
