//! Programs that run under `efa run`, on software devices.

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

/// The command `efa run` with its options. Every program that it starts has a node of its own.
#[derive(Clone, Debug)]
pub struct EfaRun {
    options: Vec<String>,
}

/// A running program. Dropping it kills the program.
pub struct Process {
    child: Child,
    name: String,
    /// The threads that read its output and its errors, so that it never waits for a reader.
    outputs: [Option<JoinHandle<String>>; 2],
}

impl EfaRun {
    /// Creates the command with these options.
    pub fn new(options: &[&str]) -> Self {
        Self { options: options.iter().map(|option| option.to_string()).collect() }
    }

    /// Returns the command that runs this command line on a node.
    pub fn command(&self, line: &[OsString]) -> Command {
        let mut command = Command::new(efa());
        let (key, value) = Vendor::get().environment();
        command.env(key, value).arg("run").args(&self.options).arg("--").args(line).stdin(Stdio::null());
        command
    }

    /// Returns the command that runs a shell script on a node, with the definitions of [`Vendor::prelude`].
    pub fn script(&self, script: &str) -> Command {
        self.command(&["sh".into(), "-c".into(), (Vendor::get().prelude() + script).into()])
    }

    /// Starts one of the packaged programs.
    pub fn start(&self, program: &str, args: &[&str]) -> Process {
        let mut command = self.command(&Vendor::get().program(program));
        Process::start(command.args(args), format!("{program} {}", args.join(" ")))
    }

    /// Runs one of the packaged programs and returns its output.
    ///
    /// # Panics
    /// The program failed, or took longer than `most`.
    pub fn run(&self, program: &str, args: &[&str], most: Duration) -> String {
        self.start(program, args).finish(most)
    }
}

/// Reads everything until the end or an error.
fn read(mut out: impl Read) -> String {
    let mut bytes = Vec::new();
    // After an error, the bytes before it are used.
    let _ = out.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Process {
    /// Starts this command. `name` is for messages.
    pub fn start(command: &mut Command, name: impl Into<String>) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
        let outputs = [
            child.stdout.take().map(|out| thread::spawn(move || read(out))),
            child.stderr.take().map(|out| thread::spawn(move || read(out))),
        ];
        Self { child, name: name.into(), outputs }
    }

    /// Waits until the program listens at this TCP port.
    ///
    /// # Panics
    /// The program ends, or does not listen within ten seconds.
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

    /// Waits until the program has succeeded, and returns its output.
    ///
    /// # Panics
    /// The program failed, or took longer than `most`.
    pub fn finish(mut self, most: Duration) -> String {
        let status = self.wait(most);
        match status.success() {
            true => self.output(0),
            false => self.fail(&format!("ended with {status}")),
        }
    }

    /// Waits until the program has failed, and returns its output and errors.
    ///
    /// # Panics
    /// The program succeeded, or took longer than `most`.
    pub fn finish_failing(mut self, most: Duration) -> String {
        match self.wait(most).success() {
            true => self.fail("did not fail"),
            false => self.output(0) + &self.output(1),
        }
    }

    /// Waits until the program has ended. Returns `true` if it succeeded.
    ///
    /// # Panics
    /// The program took longer than `most`.
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

    /// Kills the program with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("it has not ended");
    }

    fn output(&mut self, which: usize) -> String {
        self.outputs[which].take().and_then(|reader| reader.join().ok()).unwrap_or_default()
    }

    fn fail(&mut self, why: &str) -> ! {
        // Killing ends its output, too. It fails if the program has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let (out, errors) = (self.output(0), self.output(1));
        panic!("{} {why}\n{out}{errors}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killing fails if the program has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Formats a command as a line of a shell script.
pub fn words(command: &Command) -> String {
    let quoted = |word: &OsStr| format!(" '{}'", word.display());
    let set =
        |(key, value): (&OsStr, Option<&OsStr>)| value.map(|value| format!(" {}='{}'", key.display(), value.display()));
    let environment: String = command.get_envs().filter_map(set).collect();
    let words = [command.get_program()].into_iter().chain(command.get_args());
    format!("env{environment}{}", words.map(quoted).collect::<String>())
}

/// Returns a TCP port of this host that is free at the moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Returns `true` if a process of this host listens at a TCP port.
pub fn is_listening(port: u16) -> bool {
    // Read from `/proc`, because the listening process would take a connection for the other side's.
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

/// Builds the command `efa` and returns its path.
pub fn efa() -> &'static Path {
    static EFA: OnceLock<PathBuf> = OnceLock::new();
    EFA.get_or_init(|| built(&["build", "--package", "efa-cli"]))
}

/// Builds a package's test executable of this name and returns its path.
pub fn test_executable(package: &str, name: &str) -> PathBuf {
    built(&["test", "--no-run", "--package", package, "--test", name])
}

/// Returns the path of the executable that cargo builds with these arguments. Cargo builds a package's programs
/// automatically only for that package's own tests.
fn built(args: &[&str]) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(args).args(["--quiet", "--message-format", "json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "{cargo:?} failed");
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    // One message has the path of the executable; in the others it is null.
    let executable = messages.lines().find_map(|line| line.split_once(r#""executable":""#)?.1.split('"').next());
    executable.expect("cargo says where the executable is").into()
}
