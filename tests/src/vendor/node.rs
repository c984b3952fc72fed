//! Nodes: programs under `efa run`, each with software devices of its own.

use super::packages::Vendor;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How programs are started: with `efa run` and its options.
#[derive(Clone, Debug)]
pub struct EfaRun {
    options: Vec<String>,
}

/// A program that runs on a node, ended with this value.
pub struct Process {
    child: Child,
    name: String,
    /// They read what it says, so that it never waits for a reader.
    outputs: [Option<JoinHandle<String>>; 2],
}

impl EfaRun {
    /// One with these options of `efa run`.
    pub fn new(options: &[&str]) -> Self {
        Self { options: options.iter().map(|option| option.to_string()).collect() }
    }

    /// The command that runs this command line on the node.
    pub fn command(&self, line: &[OsString]) -> Command {
        let mut command = Command::new(efa());
        let (key, value) = Vendor::get().environment();
        command.env(key, value).arg("run").args(&self.options).arg("--").args(line).stdin(Stdio::null());
        command
    }

    /// The command that runs a shell script on the node, with what [`Vendor::prelude`] defines.
    pub fn script(&self, script: &str) -> Command {
        self.command(&["sh".into(), "-c".into(), (Vendor::get().prelude() + script).into()])
    }

    /// Starts one of the packaged programs.
    pub fn start(&self, program: &str, args: &[&str]) -> Process {
        let mut command = self.command(&Vendor::get().program(program));
        Process::start(command.args(args), format!("{program} {}", args.join(" ")))
    }

    /// Runs one of the packaged programs and gives what it prints.
    ///
    /// # Panics
    /// It failed, or took longer than `most`.
    pub fn run(&self, program: &str, args: &[&str], most: Duration) -> String {
        self.start(program, args).finish(most)
    }
}

fn read(mut out: impl Read) -> String {
    let mut bytes = Vec::new();
    // What came until an error is what there is to show.
    let _ = out.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Process {
    /// Starts this command; `name` is for people.
    pub fn start(command: &mut Command, name: impl Into<String>) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
        let outputs = [
            child.stdout.take().map(|out| thread::spawn(move || read(out))),
            child.stderr.take().map(|out| thread::spawn(move || read(out))),
        ];
        Self { child, name: name.into(), outputs }
    }

    /// Waits until it listens at this TCP port.
    ///
    /// # Panics
    /// It does not within ten seconds, or ends.
    pub fn wait_until_listening(&mut self, port: u16) {
        let start = Instant::now();
        while !is_listening(port) {
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || start.elapsed() > Duration::from_secs(10) {
                self.fail(&format!("does not listen at port {port} ({ended:?})"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it has ended by itself, and well; gives what it printed.
    ///
    /// # Panics
    /// It failed, or took longer than `most`.
    pub fn finish(mut self, most: Duration) -> String {
        let status = self.wait(most);
        match status.success() {
            true => self.output(0),
            false => self.fail(&format!("ended with {status}")),
        }
    }

    /// Waits until it has failed; gives what it printed and what it complained of.
    ///
    /// # Panics
    /// It ended well, or took longer than `most`.
    pub fn finish_failing(mut self, most: Duration) -> String {
        match self.wait(most).success() {
            true => self.fail("did not fail"),
            false => self.output(0) + &self.output(1),
        }
    }

    /// Waits until it has ended; whether well.
    ///
    /// # Panics
    /// It took longer than `most`.
    pub fn has_worked(mut self, most: Duration) -> bool {
        self.wait(most).success()
    }

    fn wait(&mut self, most: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            match self.child.try_wait().expect("the child is ours") {
                Some(status) => return status,
                None if start.elapsed() > most => self.fail(&format!("did not end within {most:?}")),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Kills it at once, with no chance to tidy up.
    pub fn kill(mut self) {
        self.child.kill().expect("it has not ended");
    }

    fn output(&mut self, which: usize) -> String {
        self.outputs[which].take().and_then(|reader| reader.join().ok()).unwrap_or_default()
    }

    fn fail(&mut self, why: &str) -> ! {
        // Its output ends with it, and here too, where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let (out, errors) = (self.output(0), self.output(1));
        panic!("{} {why}\n{out}{errors}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing to kill where it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command as a shell script says it.
pub fn words(command: &Command) -> String {
    let quoted = |word: &OsStr| format!(" '{}'", word.display());
    let set =
        |(key, value): (&OsStr, Option<&OsStr>)| value.map(|value| format!(" {}='{}'", key.display(), value.display()));
    let environment: String = command.get_envs().filter_map(set).collect();
    let words = [command.get_program()].into_iter().chain(command.get_args());
    format!("env{environment}{}", words.map(quoted).collect::<String>())
}

/// A TCP port of this host that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Whether some process of this host listens at a TCP port.
pub fn is_listening(port: u16) -> bool {
    // Asking the kernel, since a connection would be taken for the other side's.
    let listening = |table| {
        let table = fs::read_to_string(table).unwrap_or_default();
        let address = format!(":{port:04X}");
        table.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|local| local.ends_with(&address)) && words.nth(1) == Some("0A")
        })
    };
    listening("/proc/net/tcp") || listening("/proc/net/tcp6")
}

/// The command `efa`.
pub fn efa() -> &'static Path {
    static EFA: OnceLock<PathBuf> = OnceLock::new();
    EFA.get_or_init(|| built(&["build", "--package", "efa-cli"]))
}

/// The test executable of this name of this package.
pub fn test_executable(name: &str) -> PathBuf {
    built(&["test", "--no-run", "--package", "efa-tests", "--test", name])
}

/// The executable that cargo builds with these arguments: by itself it builds the programs of a package for that package's tests only.
fn built(args: &[&str]) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(args).args(["--quiet", "--message-format", "json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "{cargo:?} failed");
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    // One message says where the executable is; the others have null there.
    let executable = messages.lines().find_map(|line| line.split_once(r#""executable":""#)?.1.split('"').next());
    executable.expect("cargo says where the executable is").into()
}
