//! Tests with several processes on a node, several devices of a process, and several hosts (network namespaces).

use crate::interop::{MEMORY, PEER_QKEY, Pair, QKEY};
use efa_direct::sim::Node;
use efa_direct::{CompletionKind, Endpoint, RdmaWrite, RemoteRegion};
use efa_tests::vendor::{EfaRun, Peer, Process, Vendor, free_port, pattern, skip, words};
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Returns a script that runs perftest's programs at the same time, each with these words at the end of its command
/// line. The script fails if one of them fails.
fn all_at_once(ports: &[u16], server: &str) -> String {
    let programs = ["ib_write_bw", "ib_read_bw", "ib_send_bw"];
    let starts = ports.iter().zip(programs.iter().cycle()).map(|(port, program)| {
        format!("loaded \"$BIN/{program}\" -c SRD -x 0 -F -s 4096 -n 500 -p {port} {server} & all=\"$all $!\"\n")
    });
    starts.collect::<String>() + "for one in $all; do wait $one || exit 1; done"
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn processes_of_a_node_share_its_device_and_do_not_meet() {
    let ports: Vec<_> = (0..6).map(|_| free_port()).collect();
    let node = EfaRun::new(&[]);
    let mut servers = Process::start(&mut node.script(&all_at_once(&ports, "")), "servers on one node");
    ports.iter().for_each(|&port| servers.wait_until_listening(port));
    let clients = Process::start(&mut node.script(&all_at_once(&ports, "127.0.0.1")), "clients on another");
    let report = clients.finish(SOON);
    servers.finish(SOON);
    let rows = report.lines().filter(|line| line.trim_start().starts_with("4096 ")).count();
    assert_eq!(rows, ports.len(), "{report}");
}

/// One of a peer's open devices, with the device of this process that it communicates with.
struct Rail {
    side: Node,
    to_peer: efa_direct::Peer,
    /// The peer's memory.
    remote: RemoteRegion,
    qpn: u16,
}

/// The length of a message in bytes.
const LEN: usize = 20_000;

impl Rail {
    /// Creates the peer's rail with this index, on the device of this name.
    fn new(peer: &mut Peer, index: usize, name: &str) -> Self {
        peer.ask(&format!("use {index}"));
        let gid = peer.open(name);
        peer.ask("cq entries=64");
        let (addr, _, rkey) = peer.create_memory(MEMORY);
        let qpn = peer.create_qp(&format!("sq=16 rq=16 qkey={PEER_QKEY}")).qpn;
        let side = Pair::side("soft:udp=127.0.0.1:0", "");
        assert_eq!(side.endpoint.qkey, QKEY);
        peer.meet(&side.endpoint);
        let to_peer = side.pd.peer(&Endpoint { gid, qpn, qkey: PEER_QKEY }).unwrap();
        Self { side, to_peer, remote: RemoteRegion { addr, rkey, len: MEMORY as u64 }, qpn }
    }

    /// Posts a write with immediate at both ends: the peer's to the beginning of our memory, ours to the middle of the
    /// peer's.
    fn post(&mut self, peer: &mut Peer, seed: u64) {
        let there = self.side.memory.remote();
        let inbox = self.side.memory.slice(..0).unwrap();
        self.side.rq.post(&[inbox], seed).unwrap();
        self.side.rq.ring();
        peer.ask(&format!("recv id={seed} at=0 len=0"));
        peer.ask(&format!("fill at=0 len={LEN} seed={seed}"));
        peer.ask(&format!("write id={seed} at=0 len={LEN} to={} rkey={} imm={seed}", there.addr, there.rkey));
        let (from, to) = (300_000, 500_000);
        self.side.memory.write(from, &pattern(!seed, LEN)).unwrap();
        let local = self.side.memory.slice(from..from + LEN as u64).unwrap();
        let remote = self.remote.slice(to..to + LEN as u64).unwrap();
        let write = RdmaWrite::new(local, remote).imm(seed as u32);
        self.side.sq.post(&self.to_peer, write, seed).unwrap();
        self.side.sq.ring();
    }

    /// Asserts that both writes complete on this rail.
    fn check(&mut self, peer: &mut Peer, seed: u64) {
        for _ in 0..2 {
            let wc = peer.poll();
            assert_eq!((wc.wr_id, wc.status, wc.qp_num), (seed, 0, self.qpn), "{wc:?}");
            let done = self.side.cq.wait(Duration::from_secs(30)).expect("both complete");
            assert!(done.status.is_ok() && done.wr_id == seed, "{done:?}");
            if let CompletionKind::Receive(received) = done.kind {
                assert_eq!((received.imm, received.src_qpn), (Some(seed as u32), self.qpn));
            }
        }
        assert_eq!(peer.ask(&format!("check at=500000 len={LEN} seed={}", !seed)), "match");
        assert!(self.side.memory.read_vec(..LEN as u64).unwrap() == pattern(seed, LEN));
    }
}

/// Runs one process that uses all of these devices at the same time.
fn talk_on(devices: &str, names: &[&str]) {
    let mut peer = Peer::spawn(&mut EfaRun::new(&["--devices", devices]).script("loaded \"$PEER\""));
    let open = |(index, name): (usize, &&str)| Rail::new(&mut peer, index, name);
    let mut rails: Vec<_> = names.iter().enumerate().map(open).collect();
    for round in 0..5 {
        let seed = |index| 100 * round + index as u64;
        for (index, rail) in rails.iter_mut().enumerate() {
            peer.ask(&format!("use {index}"));
            rail.post(&mut peer, seed(index));
        }
        for (index, rail) in rails.iter_mut().enumerate() {
            peer.ask(&format!("use {index}"));
            rail.check(&mut peer, seed(index));
        }
    }
    for index in 0..rails.len() {
        peer.ask(&format!("use {index}"));
        assert_eq!(peer.ask("close"), "ok");
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn a_process_uses_several_devices_at_once() {
    talk_on("4", &["rdmap79s0", "rdmap80s0", "rdmap81s0", "rdmap82s0"]);
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn a_process_opens_a_device_twice_and_talks_on_both() {
    talk_on("2", &["rdmap80s0", "rdmap80s0", "rdmap79s0"]);
}

/// The beginning of a script with two hosts: the script's own network namespace (10.77.0.1), and another one
/// (10.77.0.2), which `far` enters. Both disappear when the script ends.
const TWO_HOSTS: &str = r#"set -e
unshare --net sleep 100 & other=$!
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.01; done
ip link add efa-near type veth peer name efa-far netns $other
far() { nsenter --target $other --net "$@"; }
ip addr add 10.77.0.1/24 dev efa-near
ip link set efa-near up
far ip addr add 10.77.0.2/24 dev efa-far
far ip link set efa-far up
"#;

/// Runs a script in its own namespaces.
fn in_namespaces(script: &str) -> Process {
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]);
    Process::start(unshare.arg(TWO_HOSTS.to_owned() + script), "two hosts")
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn hosts_with_addresses_of_their_own_talk() {
    if !in_namespaces("far true").has_worked(SOON) {
        return skip(
            "no network namespaces here: `unshare --map-root-user --net`, or `ip link add … type veth`, fails",
        );
    }
    for program in ["ib_write_bw", "ib_read_bw", "ib_send_bw"] {
        let on = |address| words(&EfaRun::new(&["--address", address]).command(&Vendor::get().program(program)));
        let [near, far] = ["10.77.0.1", "10.77.0.2"].map(on);
        let args = "-c SRD -x 0 -F -s 4096 -n 500";
        let script = format!(
            "far {far} {args} >/dev/null & server=$!
             until far grep -q ':4853 .* 0A' /proc/net/tcp /proc/net/tcp6; do sleep 0.01; done
             {near} {args} 10.77.0.2
             wait $server"
        );
        let report = in_namespaces(&script).finish(SOON);
        assert!(report.lines().any(|line| line.trim_start().starts_with("4096 ")), "{report}");
    }
}
