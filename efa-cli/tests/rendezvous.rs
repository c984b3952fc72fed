//! Tests of how two nodes meet: with strangers that connect, and with another node that sends wrong messages.

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A timeout that no passing test reaches.
const SOON: Duration = Duration::from_secs(60);

fn efa(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_efa"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A listening node and its port. Dropping it kills the node.
struct Listener {
    child: Child,
    port: u16,
}

impl Listener {
    fn start(args: &[&str]) -> Self {
        let mut child = efa(&[&["node", "--listen", "localhost:0", "--json"], args].concat()).spawn().unwrap();
        let mut line = Vec::new();
        // Read byte by byte, because the report follows this line.
        let out = child.stdout.as_mut().unwrap();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            out.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        let line: Value = serde_json::from_slice(&line).unwrap();
        let port = line["listening"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
        Self { child, port }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("localhost", self.port)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Runs a node that connects to this one by name, and returns its output.
    fn peer(&self, args: &[&str]) -> Output {
        let to = format!("localhost:{}", self.port);
        efa(&[&["node", "--connect", &to, "--json"], args].concat()).output().unwrap()
    }

    /// Waits until the node has ended. Returns its exit code, its output and its error output.
    fn end(mut self) -> (Option<i32>, String, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < SOON, "the listening node does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let (mut out, mut errors) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (status.code(), out, errors)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns node 0's introduction with this work.
fn hello(work: Value) -> Vec<u8> {
    let mut hello = json!({
        "endpoint": {"gid": "fe80::2ef:1234:7f00:1", "qpn": 256, "qkey": 1},
        "region": {"addr": 0, "len": 0, "lkey": 0, "rkey": 0},
        "work": {"size": 8, "count": 1, "seed": 1, "timeout": 2},
    });
    hello["work"].as_object_mut().unwrap().extend(work.as_object().unwrap().clone());
    format!("{hello}\n").into_bytes()
}

/// Returns the line that the node answers.
fn answer(stream: TcpStream) -> String {
    let mut line = String::new();
    let _ = BufReader::new(stream).read_line(&mut line);
    line
}

fn assert_met(peer: &Output, listener: Listener) -> String {
    let errors = String::from_utf8_lossy(&peer.stderr);
    assert!(peer.status.success(), "{errors}");
    let (code, out, errors) = listener.end();
    assert_eq!(code, Some(0), "{errors}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["words"], json!({"matching": 512, "total": 512}));
    errors
}

#[test]
fn a_listening_node_outlasts_strays_and_the_right_peer_finds_it_by_name() {
    let listener = Listener::start(&[]);
    let silent = listener.connect();
    drop(listener.connect());
    for (said, why) in [
        (b"hello\n".to_vec(), "it said \\\"hello\\\""),
        (b"[".repeat(10_000).into_iter().chain(*b"\n").collect(), "invalid type: sequence"),
        (hello(json!({"size": 7})), "--size 7"),
        (hello(json!({"size": 0})), "--size 0"),
        (hello(json!({"count": -1})), "invalid value"),
        (hello(json!({"count": 1u64 << 40, "size": 1 << 30})), "4 GiB"),
    ] {
        let mut stray = listener.connect();
        stray.write_all(&said).unwrap();
        let told = answer(stray);
        assert!(told.starts_with("{\"Refused\"") && told.contains(why), "{told}");
    }
    let peer = listener.peer(&[]);
    let complaints = assert_met(&peer, listener);
    assert!(complaints.contains("it closed the connection without a word; waiting on"), "{complaints}");
    assert!(complaints.lines().all(|line| line.len() < 1000), "{complaints}");
    assert!(answer(silent).contains("another node came first"));
}

#[test]
fn many_strays_do_not_make_a_listening_node_talk_without_end() {
    let listener = Listener::start(&[]);
    for _ in 0..200 {
        drop(listener.connect());
    }
    let peer = listener.peer(&[]);
    let complaints = assert_met(&peer, listener);
    assert!((1..=30).contains(&complaints.lines().count()), "{complaints}");
}

#[test]
fn a_line_without_end_costs_a_listening_node_neither_memory_nor_a_long_complaint() {
    let listener = Listener::start(&[]);
    let mut flood = listener.connect();
    let mut sent = 0u64;
    while sent < 256 << 20 {
        match flood.write_all(&[b'x'; 1 << 16]) {
            Ok(()) => sent += 1 << 16,
            Err(_) => break,
        }
    }
    assert!(sent < 256 << 20, "all of it was read");
    let peer = listener.peer(&[]);
    let status = fs::read_to_string(format!("/proc/{}/status", listener.child.id())).unwrap_or_default();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    assert!(most.unwrap_or(0u64) < 128 << 10, "{status}");
    let complaints = assert_met(&peer, listener);
    assert!(complaints.contains("a line of more than") && complaints.len() < 2000, "{} bytes", complaints.len());
}

#[test]
fn a_listening_node_that_runs_out_of_descriptors_lets_silent_connections_go() {
    let listener = Listener::start(&[]);
    let pid = listener.child.id();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
    // `prlimit` of util-linux leaves the node its own descriptors and a few for connections.
    let limit = Command::new("prlimit").args([format!("--pid={pid}"), format!("--nofile={}:", open + 5)]).status();
    assert!(limit.unwrap().success());
    let crowd: Vec<_> = (0..30).map(|_| listener.connect()).collect();
    let mut peer = listener.connect();
    peer.write_all(&hello(json!({}))).unwrap();
    let answer = answer(peer);
    drop(crowd);
    // The device may lack a descriptor, too. The peer must get an answer in any case.
    assert!(answer.starts_with("{\"Welcome\"") || answer.starts_with("{\"Refused\""), "{answer}");
}

#[test]
fn the_time_that_a_listening_node_waits_is_its_own() {
    let listener = Listener::start(&["--timeout", "1"]);
    let mut peer = listener.connect();
    peer.write_all(&hello(json!({"timeout": u64::MAX}))).unwrap();
    assert!(answer(peer).starts_with("{\"Welcome\""));
    let (code, _, errors) = listener.end();
    assert_eq!(code, Some(1));
    assert!(errors.contains("no completion within 1 s"), "{errors}");
}

#[test]
fn slow_bytes_do_not_keep_a_listening_node_from_its_peer() {
    let listener = Listener::start(&["--timeout", "5"]);
    let mut slow = listener.connect();
    let trickle = std::thread::spawn(move || {
        let _ = b"{\"endpoint\":{\"gid\":".iter().try_for_each(|byte| {
            std::thread::sleep(Duration::from_millis(50));
            slow.write_all(&[*byte])
        });
    });
    let peer = listener.peer(&[]);
    assert_met(&peer, listener);
    trickle.join().unwrap();
}

#[test]
fn every_seed_is_one() {
    for command in [&["demo", "--seed"][..], &["soak", "--duration", "1s", "--pace", "100", "--seed"]] {
        let output = efa(&[command, &[&u64::MAX.to_string()]].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn what_a_listening_node_answers_is_checked_as_well() {
    let pretender = |answer: String| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap().to_string();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(answer.as_bytes());
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let output = efa(&["node", "--connect", &to, "--timeout", "2"]).output().unwrap();
        served.join().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let welcome = |addr: u64, len: u64, gid: &str| {
        let work = json!({"size": 4096, "count": 1, "seed": 1});
        let region = json!({"addr": addr, "len": len, "lkey": 0, "rkey": 0});
        format!(
            "{}\n",
            json!({"Welcome": {"endpoint": {"gid": gid, "qpn": 1, "qkey": 1}, "region": region, "work": work}})
        )
    };
    let gid = "fe80::2ef:1234:7f00:1";
    for (answer, complaint) in [
        (welcome(0x1000, 8, gid), "the other node's memory has 8 bytes, asked were 4096"),
        (welcome(u64::MAX - 8, 4096, gid), "pass the end of all memory"),
        (welcome(0, 4096, "\u{1b}[2J"), "the other node's GID \"\\u{1b}[2J\""),
        ("{\"Refused\":\"not \\u001b[2Jyou\"}\n".into(), "the other node refused: not \\u{1b}[2Jyou"),
        ("x".repeat(1 << 20), "a line of more than"),
        (String::new(), "no whole line came within 2s (--timeout)"),
    ] {
        let errors = pretender(answer);
        assert!(errors.contains(complaint) && errors.len() < 2000 && !errors.contains('\x1b'), "{errors}");
    }
}

#[test]
fn addresses_without_a_port_and_times_that_are_none_are_refused_with_what_to_do() {
    for (args, complaint) in [
        (&["--connect", "localhost"][..], "is not HOST:PORT"),
        (&["--listen", "localhost"], "is not HOST:PORT"),
        (&["--connect", "localhost:1", "--timeout", "0"], "1..=604800"),
    ] {
        let output = efa(&[&["node"], args].concat()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(complaint), "{errors}");
    }
}
