//! A peer on the vendor's library: the program in `c/`, which executes commands that it reads line by line.

use super::node::EfaRun;
use super::packages::Vendor;
use efa_direct::{Endpoint, Gid};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// The running program. Dropping it ends the program.
pub struct Peer {
    child: Child,
    /// The program's input. The program ends when it is closed.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// The folder of counters that its node prints.
    folder: Receiver<PathBuf>,
}

/// A peer's queue pair and the size of its send ring.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct QueuePairInfo {
    pub qpn: u16,
    pub entry_size: usize,
    pub entries: u32,
    pub max_batch: u32,
}

/// A completion as the vendor's library reports it (`ibv_wc`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of this name")]
pub struct WorkCompletion {
    pub wr_id: u64,
    /// `enum ibv_wc_status`.
    pub status: u32,
    /// The device's own status.
    pub vendor_err: u32,
    /// `enum ibv_wc_opcode`.
    pub opcode: u32,
    pub qp_num: u16,
    pub byte_len: u32,
    pub src_qp: u16,
    /// The number of the source's address handle, or 0xffff if there is none.
    pub slid: u16,
    pub imm: Option<u32>,
    pub unsolicited: bool,
    /// The source's GID, if there is no address handle.
    pub sgid: Option<Gid>,
}

/// Returns the bytes of the pattern with which the peer fills and compares memory.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let base = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let byte = |index| (base.wrapping_add(index).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) as u8;
    (0..len as u64).map(byte).collect()
}

impl Peer {
    /// Starts a peer under this `efa run` and opens its first device. Returns the peer and the device's GID.
    pub fn start(node: &EfaRun) -> (Self, Gid) {
        let mut peer = Self::spawn(&mut node.command(&Vendor::get().loaded(Vendor::get().peer())));
        let gid = peer.open("");
        (peer, gid)
    }

    /// Starts a peer with this command.
    pub fn spawn(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("efa run starts");
        let out = child.stdout.take().expect("it is piped");
        let errors = child.stderr.take().expect("it is piped");
        let (sender, lines) = channel();
        thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let (sender, folder) = channel();
        thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                match line.strip_prefix("efa: counters below ") {
                    // Fails if the peer is dropped already.
                    Some(folder) => _ = sender.send(folder.into()),
                    None => eprintln!("{line}"),
                }
            }
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines, folder }
    }

    /// Opens the device of this name, or the first one if the name is empty. Returns its GID.
    pub fn open(&mut self, name: &str) -> Gid {
        let answer = self.ask(&format!("open {name}"));
        word_after(&answer, "gid").parse().expect("a GID is written like an IPv6 address")
    }

    /// Returns the folder that programs of the node see as `/sys`.
    ///
    /// # Panics
    /// The node was not started with `--verbose`.
    pub fn sysfs(&self) -> PathBuf {
        self.folder.recv_timeout(Duration::from_secs(10)).expect("efa run --verbose says where counters are")
    }

    /// Kills the node with SIGKILL. Its program gets SIGTERM.
    pub fn kill_node(&mut self) {
        self.child.kill().expect("it has not ended");
    }

    /// Sends a line that has no answer.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("it is there as long as this");
        writeln!(stdin, "{line}").expect("the peer runs");
    }

    /// Receives the next line.
    ///
    /// # Panics
    /// There is none within 60 seconds.
    pub fn hear(&mut self) -> String {
        let line = self.lines.recv_timeout(Duration::from_secs(60));
        line.unwrap_or_else(|_| panic!("the peer says nothing: {:?}", self.child.try_wait()))
    }

    /// Sends a line and returns the answer or the peer's error.
    ///
    /// # Panics
    /// There is no answer.
    pub fn try_ask(&mut self, line: &str) -> Result<String, String> {
        self.tell(line);
        let answer = self.hear();
        match answer.strip_prefix("error ") {
            Some(error) => Err(error.into()),
            None => Ok(answer),
        }
    }

    /// Sends a line and returns the answer.
    ///
    /// # Panics
    /// The answer is an error, or there is none.
    pub fn ask(&mut self, line: &str) -> String {
        self.try_ask(line).unwrap_or_else(|error| panic!("the peer, told {line:?}, says: {error}"))
    }

    /// Creates an active queue pair; the options are those of the peer's command `qp`.
    pub fn create_qp(&mut self, options: &str) -> QueuePairInfo {
        let answer = self.ask(&format!("qp {options}"));
        let number = |word| word_after(&answer, word).parse::<u32>().expect("it is a number");
        QueuePairInfo {
            qpn: number("qp") as u16,
            entry_size: number("entry") as usize,
            entries: number("entries"),
            max_batch: number("batch"),
        }
    }

    /// Registers this many bytes of memory. Returns the address, the local key and the remote key.
    pub fn create_memory(&mut self, len: usize) -> (u64, u32, u32) {
        self.register(&format!("memory len={len}"))
    }

    /// Registers memory with this line. Returns the device's address of it, the local key and the remote key.
    pub fn register(&mut self, line: &str) -> (u64, u32, u32) {
        let answer = self.ask(line);
        let numbers: Vec<u64> = answer.split(' ').skip(1).map(|word| word.parse().expect("it is a number")).collect();
        (numbers[0], numbers[1] as u32, numbers[2] as u32)
    }

    /// Returns bytes of the peer's shared buffer.
    pub fn bytes(&mut self, at: usize, len: usize) -> Vec<u8> {
        let answer = self.ask(&format!("bytes at={at} len={len}"));
        let hex = word_after(&answer, "bytes");
        (0..len).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("the peer says digits")).collect()
    }

    /// Sets the destination of the peer's requests. Returns the number of the address handle.
    pub fn meet(&mut self, endpoint: &Endpoint) -> u16 {
        let Endpoint { gid, qpn, qkey } = endpoint;
        let answer = self.ask(&format!("peer {gid} qpn={qpn} qkey={qkey}"));
        word_after(&answer, "ah").parse().expect("it is a number")
    }

    /// Polls the next completion by the extended calls (`ibv_start_poll` and so on).
    ///
    /// # Panics
    /// There is none within 30 seconds.
    pub fn poll(&mut self) -> WorkCompletion {
        WorkCompletion::parse(&self.ask("poll ms=30000"))
    }

    /// Polls the next completion by `ibv_poll_cq`.
    ///
    /// # Panics
    /// There is none within 30 seconds.
    pub fn poll_plain(&mut self) -> WorkCompletion {
        WorkCompletion::parse(&self.ask("poll ms=30000 plain"))
    }

    /// Returns the words of an entry of the send ring.
    pub fn wqe(&mut self, slot: u32) -> Vec<u64> {
        let answer = self.ask(&format!("wqes first={slot} count=1"));
        let hex = word_after(&answer, "wqes");
        let word = |at: usize| u64::from_str_radix(&hex[at..at + 16], 16).expect("the peer says digits").swap_bytes();
        (0..hex.len()).step_by(16).map(word).collect()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The program ends when its input is closed, and its node then removes its folder.
        self.stdin = None;
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl WorkCompletion {
    fn parse(line: &str) -> Self {
        let mut wc = Self::default();
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("wc"), "no completion came: {line}");
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let number = || value.parse::<u64>().expect("it is a number");
            match key {
                "id" => wc.wr_id = number(),
                "status" => wc.status = number() as u32,
                "vendor" => wc.vendor_err = number() as u32,
                "opcode" => wc.opcode = number() as u32,
                "qpn" => wc.qp_num = number() as u16,
                "bytes" => wc.byte_len = number() as u32,
                "source" => wc.src_qp = number() as u16,
                "ah" => wc.slid = number() as u16,
                "imm" => wc.imm = Some(number() as u32),
                "unsolicited" => wc.unsolicited = true,
                "sgid" => wc.sgid = value.parse().ok(),
                _ => panic!("{word:?} is no field of a completion"),
            }
        }
        wc
    }
}

/// Returns the value of this name in an answer of names and values.
fn word_after<'a>(answer: &'a str, name: &str) -> &'a str {
    let mut words = answer.split(' ');
    words.find(|word| *word == name).and(words.next()).unwrap_or_else(|| panic!("no {name} in {answer:?}"))
}
