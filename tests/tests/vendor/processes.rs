//! Tests with programs that fork, programs that are killed, and nodes that are killed.

use crate::interop::{MEMORY, Pair};
use efa_direct::{RdmaWrite, Status};
use efa_tests::vendor::{EfaRun, Peer, Process, free_port, is_listening};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The time for which a device tries to reach a peer, plus some time for a busy machine.
const PEER_TIMEOUT: Duration = Duration::from_secs(5 + 5);
const UDP: &str = "soft:udp=127.0.0.1:0";
const OPTIONS: &str = "sq=64 rq=64";

/// Starts a peer that has not opened a device yet.
fn program(node: &EfaRun) -> Peer {
    Peer::spawn(&mut node.script("loaded \"$PEER\""))
}

/// Makes the peer open its first device and exchange messages with a device of this process.
fn introduce(mut peer: Peer) -> Pair {
    let gid = peer.open("");
    peer.ask("cq entries=256");
    let memory = peer.create_memory(MEMORY);
    Pair::of(peer, gid, memory, UDP, OPTIONS)
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn a_program_goes_on_while_children_come_and_go() {
    for says_so in [true, false] {
        let mut peer = program(&EfaRun::new(&[]));
        if says_so {
            peer.ask("fork_init");
        }
        let mut pair = introduce(peer);
        for round in 0..3 {
            assert_eq!(pair.peer.ask("system true"), "exited 0");
            assert_eq!(pair.peer.ask("fork"), "forked");
            // The device accesses the parent's pages, not the child's copies.
            pair.fill(0, 100_000, round);
            let there = pair.remote().slice(..100_000).unwrap();
            let done = pair.post(|sq, peer, memory| {
                let write = RdmaWrite::new(memory.slice(..100_000).unwrap(), there);
                sq.post(peer, write, 1)
            });
            assert_eq!(done.status, Status::Ok);
            assert_eq!(pair.peer.ask("exit"), "exited 0");
            pair.assert_there(0, 100_000, round);
            pair.send_from_peer(8192, None, "", round);
            pair.write_from_peer(100_000, Some(1), "", round);
        }
        pair.exchange_all(100);
        pair.close();
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn a_child_opens_the_device_itself_and_talks() {
    let mut peer = program(&EfaRun::new(&[]));
    peer.ask("fork_init");
    let mut parent = introduce(peer);
    parent.exchange_all(1);
    let Pair { mut peer, queue, memory, ah, side, to_peer } = parent;
    assert_eq!(peer.ask("fork"), "forked");
    peer.ask("use 1");
    let mut child = introduce(peer);
    assert_ne!(child.queue.qpn, queue.qpn, "the parent's is still there");
    child.exchange_all(2);
    let mut peer = child.peer;
    assert_eq!(peer.ask("close"), "ok");
    assert_eq!(peer.ask("exit"), "exited 0");
    let mut parent = Pair { peer, queue, memory, ah, side, to_peer };
    parent.exchange_all(3);
    parent.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn a_child_that_is_killed_takes_its_own_objects_with_it_and_no_others() {
    let mut parent = introduce(program(&EfaRun::new(&[])));
    let room = parent.peer.ask("room");
    assert_eq!(parent.peer.ask("fork"), "forked");
    parent.peer.ask("use 1");
    let Pair { peer, queue, memory, ah, side, to_peer } = parent;
    let mut child = introduce(peer);
    child.exchange_all(1);
    assert_eq!(child.peer.ask("die"), format!("exited {}", libc::SIGKILL));
    let mut parent = Pair { peer: child.peer, queue, memory, ah, side, to_peer };
    parent.exchange_all(2);
    assert_eq!(parent.peer.ask("room"), room);
    parent.close();
}

/// Returns the command line of perftest's `ib_write_bw` in a script, with traffic for longer than any test.
fn endless_writes(port: u16) -> String {
    format!("loaded \"$BIN/ib_write_bw\" -c SRD -x 0 -F -s 65536 -D 100 -p {port}")
}

/// Starts a node whose program is killed by SIGKILL after a line was sent, and which then runs a peer.
fn victim(writes: &str) -> Peer {
    let node = EfaRun::new(&["--verbose"]);
    Peer::spawn(&mut node.script(&format!(
        "{writes} >&2 & victim=$!
         read line; kill -KILL $victim; wait $victim
         loaded \"$PEER\""
    )))
}

/// Waits until a port's counter has reached this value.
fn wait_until_counted(sysfs: &Path, name: &str, least: u64) {
    let file = sysfs.join("class/infiniband/rdmap79s0/ports/1/hw_counters").join(name);
    let start = Instant::now();
    while fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) < Some(least) {
        assert!(start.elapsed() < Duration::from_secs(20), "{name} stays below {least}");
        sleep(Duration::from_millis(10));
    }
}

/// Waits until a process listens at this TCP port.
fn wait_until_listening(port: u16) {
    let start = Instant::now();
    while !is_listening(port) {
        assert!(start.elapsed() < Duration::from_secs(10), "nobody listens at port {port}");
        sleep(Duration::from_millis(5));
    }
}

fn survivor(writes: &str) -> Process {
    Process::start(&mut EfaRun::new(&[]).script(writes), "the other side")
}

/// Asserts that the next program on the node of a killed one finds all objects free, and that its traffic works.
fn assert_as_new(peer: Peer) {
    let mut pair = introduce(peer);
    let mut fresh = introduce(program(&EfaRun::new(&[])));
    assert_eq!(pair.peer.ask("room"), fresh.peer.ask("room"));
    pair.exchange_all(1);
    pair.close();
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn a_server_that_is_killed_leaves_its_node_as_new_and_its_client_with_errors() {
    let port = free_port();
    let mut server = victim(&endless_writes(port));
    wait_until_listening(port);
    let client = survivor(&(endless_writes(port) + " 127.0.0.1"));
    wait_until_counted(&server.sysfs(), "rdma_write_recv_bytes", 1 << 20);
    server.tell("now");
    let complaint = client.finish_failing(PEER_TIMEOUT);
    assert!(complaint.contains("Failed status"), "{complaint}");
    assert_as_new(server);
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn a_client_that_is_killed_leaves_its_node_as_new() {
    let port = free_port();
    let server = survivor(&endless_writes(port));
    wait_until_listening(port);
    let mut client = victim(&(endless_writes(port) + " 127.0.0.1"));
    wait_until_counted(&client.sysfs(), "rdma_write_bytes", 1 << 20);
    client.tell("now");
    server.finish_failing(PEER_TIMEOUT);
    assert_as_new(client);
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn requests_to_a_node_that_is_killed_fail_in_time() {
    // Our requests to a peer on libefa.
    let mut pair = introduce(program(&EfaRun::new(&[])));
    pair.write_to_peer(8, None, 1);
    pair.peer.kill_node();
    let start = Instant::now();
    let there = pair.remote().slice(..8).unwrap();
    let done = pair.post(|sq, peer, memory| {
        let write = RdmaWrite::new(memory.slice(..8).unwrap(), there);
        sq.post(peer, write, 1)
    });
    assert_eq!(done.status, Status::UnresponsiveRemote);
    assert!(start.elapsed() < PEER_TIMEOUT, "{:?}", start.elapsed());

    // libefa's requests, in the middle of traffic.
    let port = free_port();
    let server = survivor(&endless_writes(port));
    wait_until_listening(port);
    let node = EfaRun::new(&["--verbose"]);
    let script = format!("({} 127.0.0.1) >&2; echo ended $?", endless_writes(port));
    let mut client = Peer::spawn(&mut node.script(&script));
    wait_until_counted(&client.sysfs(), "rdma_write_bytes", 1 << 20);
    server.kill();
    let start = Instant::now();
    assert_eq!(client.hear(), "ended 1");
    assert!(start.elapsed() < PEER_TIMEOUT, "{:?}", start.elapsed());
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn the_folder_of_a_node_that_is_killed_goes_with_the_next_node() {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("nodes-{}", std::process::id()));
    fs::create_dir_all(&temporary).unwrap();
    let nodes = || fs::read_dir(&temporary).unwrap().count();
    let command = |line: &[&str]| {
        let line: Vec<_> = line.iter().map(|word| word.into()).collect();
        let mut command = EfaRun::new(&[]).command(&line);
        command.env("TMPDIR", &temporary);
        command
    };
    let start = |mut command: Command, name: &str| Process::start(&mut command, name);
    let killed = start(command(&["sleep", "100"]), "one that is killed");
    let living = start(command(&["sleep", "100"]), "one that lives");
    let began = Instant::now();
    while nodes() < 2 {
        assert!(began.elapsed() < Duration::from_secs(10), "nodes have folders");
        sleep(Duration::from_millis(10));
    }
    // The folders are locked a moment after they are created.
    sleep(Duration::from_millis(200));
    killed.kill();
    assert_eq!(nodes(), 2, "nobody has tidied up yet");
    start(command(&["true"]), "the next one").finish(Duration::from_secs(10));
    assert_eq!(nodes(), 1, "that of the node that lives");
    drop(living);
    start(command(&["true"]), "one more").finish(Duration::from_secs(10));
    assert_eq!(nodes(), 0);
    fs::remove_dir(&temporary).unwrap();
}
