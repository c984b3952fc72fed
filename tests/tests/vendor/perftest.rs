//! Tests with perftest over SRD: two processes on two nodes, each with a report.

use efa_tests::vendor::{EfaRun, free_port};
use std::time::Duration;

/// A line of a report: bytes, iterations, then the measured values.
type Row = Vec<f64>;

/// Runs one of perftest's programs on two nodes and returns the client's report.
fn measure(node: &EfaRun, program: &str, args: &[&str]) -> Vec<Row> {
    let port = free_port().to_string();
    // -x: use a GID, which perftest does not choose by itself here. -F: ignore that the processor's clock varies.
    let args = [&["-c", "SRD", "-x", "0", "-F", "-p", &port], args].concat();
    let mut server = node.start(program, &args);
    server.wait_until_listening(port.parse().expect("it is a port"));
    let client = node.start(program, &[&args[..], &["127.0.0.1"]].concat());
    let most = Duration::from_secs(120);
    let report = client.finish(most);
    server.finish(most);
    let row = |line: &str| line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<Row>>();
    let rows: Vec<Row> = report.lines().filter_map(row).filter(|row| row.len() >= 4).collect();
    assert!(!rows.is_empty(), "{program} reports nothing: {report}");
    rows
}

/// Checks a report of bandwidth: bytes, iterations, peak and average in MB/s, million messages a second.
fn check_bw(rows: &[Row], sizes: &[u64], iterations: u64) {
    assert_eq!(rows.iter().map(|row| row[0] as u64).collect::<Vec<_>>(), sizes, "{rows:?}");
    for row in rows {
        assert_eq!(row[1] as u64, iterations, "{row:?}");
        // A few small messages may be reported as 0.00 MB/s.
        assert!(row[4] > 0.0 && row[3] < 100_000.0, "a rate that cannot be: {row:?}");
    }
}

/// Checks a report of latency: bytes, iterations, then least, most, typical and average µs.
fn check_lat(rows: &[Row], size: u64, iterations: u64) {
    let [row] = rows else { panic!("one size, one line: {rows:?}") };
    assert_eq!((row[0] as u64, row[1] as u64), (size, iterations), "{row:?}");
    let (least, most, typical) = (row[2], row[3], row[4]);
    assert!(least > 0.0 && least <= typical && typical <= most, "{row:?}");
}

/// Returns the sizes of `-a`: the powers of two up to this one.
fn all_sizes(most: u64) -> Vec<u64> {
    (1..64).map(|log2| 1 << log2).take_while(|size| *size <= most).collect()
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn sends_of_all_sizes_up_to_the_mtu() {
    let node = EfaRun::new(&[]);
    let all = all_sizes(4096);
    for mode in [&["-a"][..], &["-a", "-b"]] {
        let rows = measure(&node, "ib_send_bw", &[mode, &["-n", "200"]].concat());
        assert!(rows.len() >= all.len(), "{rows:?}");
        // A message of one MTU, which is not a power of two, may follow.
        check_bw(&rows[..all.len()], &all, 200);
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn writes_and_reads_of_all_sizes() {
    let node = EfaRun::new(&[]);
    for program in ["ib_write_bw", "ib_read_bw"] {
        let rows = measure(&node, program, &["-a", "-n", "10"]);
        check_bw(&rows, &all_sizes(8 << 20), 10);
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn writes_and_reads_in_both_directions_at_once() {
    let node = EfaRun::new(&[]);
    for program in ["ib_write_bw", "ib_read_bw"] {
        for (size, iterations) in [(2, 1000), (8192, 1000), (1 << 20, 50)] {
            let rows = measure(&node, program, &["-b", "-s", &size.to_string(), "-n", &iterations.to_string()]);
            check_bw(&rows, &[size], iterations);
        }
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn latency_of_sends_writes_and_reads() {
    let node = EfaRun::new(&[]);
    for program in ["ib_send_lat", "ib_write_lat", "ib_read_lat"] {
        // Inline, one packet, and many packets if the operation allows it.
        let large = if program == "ib_send_lat" { 8192 } else { 1 << 20 };
        for (size, iterations) in [(2, 200), (4096, 200), (large, 20)] {
            let args = ["-s", &size.to_string(), "-n", &iterations.to_string()];
            check_lat(&measure(&node, program, &[&args[..], inline(program)].concat()), size, iterations);
        }
    }
}

/// This perftest posts small writes inline without asking for a queue pair that supports it, so libefa refuses them.
fn inline(program: &str) -> &'static [&'static str] {
    if program == "ib_write_lat" { &["-I", "0"] } else { &[] }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn several_queue_pairs_several_requests_a_doorbell_and_events_instead_of_polling() {
    let node = EfaRun::new(&[]);
    for program in ["ib_send_bw", "ib_write_bw", "ib_read_bw"] {
        let rows = measure(&node, program, &["-l", "16", "-s", "1024", "-n", "320"]);
        check_bw(&rows, &[1024], 320);
        let rows = measure(&node, program, &["-q", "4", "-s", "4096", "-n", "200"]);
        check_bw(&rows, &[4096], 800);
    }
    // Perftest supports this for sends only.
    let rows = measure(&node, "ib_send_bw", &["-e", "-s", "4096", "-n", "200"]);
    check_bw(&rows, &[4096], 200);
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn a_bad_network_changes_times_and_nothing_else() {
    let node = EfaRun::new(&["--soft", "loss=0.1,jitter=1ms,seed=3"]);
    for (program, size, iterations) in
        [("ib_send_bw", 4096, 200), ("ib_write_bw", 65_536, 50), ("ib_read_bw", 65_536, 50)]
    {
        let rows = measure(&node, program, &["-s", &size.to_string(), "-n", &iterations.to_string()]);
        check_bw(&rows, &[size], iterations);
    }
    for (program, size) in [("ib_send_lat", 2), ("ib_write_lat", 65_536), ("ib_read_lat", 65_536)] {
        let rows = measure(&node, program, &["-s", &size.to_string(), "-n", "20"]);
        check_lat(&rows, size, 20);
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn devices_of_every_generation_do_what_theirs_did() {
    for profile in ["p4d", "p5", "p5en", "p6-b200"] {
        let node = EfaRun::new(&["--soft", &format!("profile={profile}")]);
        for program in ["ib_send_bw", "ib_read_bw", "ib_write_bw"] {
            // The oldest device has no RDMA write, and perftest would end with an error.
            if (profile, program) != ("p4d", "ib_write_bw") {
                let rows = measure(&node, program, &["-q", "2", "-s", "4096", "-n", "100"]);
                check_bw(&rows, &[4096], 200);
            }
        }
    }
}
